//! The original Llama 3 vocabulary file (`tokenizer.model` in tiktoken's text format) as a `tokenizer.json`.
//!
//! Each line is `base64(token bytes) SPACE rank`; the rank is the token id and the merge priority at once, so the
//! merges that `tokenizer.json` spells out can be derived. It knows nothing of files; [`crate::Tokenizer`] reads them.
//! Tests: `cargo test -p kanana-tokenizer tiktoken`.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::{Result, TokenizerError};

/// How Llama 3 (and Kanana) cuts text into pieces before merging.
///
/// Source: meta-llama/llama-models, `models/llama3/tokenizer.py`.
pub const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The 256 control tokens of Llama 3.1, in id order from 128,000.
pub fn llama3_specials() -> Vec<String> {
    const NAMED: [&str; 11] = [
        "begin_of_text",
        "end_of_text",
        "reserved_special_token_0",
        "reserved_special_token_1",
        "finetune_right_pad_id",
        "step_id",
        "start_header_id",
        "end_header_id",
        "eom_id",
        "eot_id",
        "python_tag",
    ];
    let named = NAMED.iter().map(|name| format!("<|{name}|>"));
    named.chain((3..=247).map(|i| format!("<|reserved_special_token_{i}|>"))).collect()
}

/// Reads ranks in tiktoken's text format: the token bytes in rank order.
///
/// Errors: a line that is not `base64 rank`, or whose rank is not its line number, names `path` and the line.
pub fn parse_ranks(path: &Path, text: &str) -> Result<Vec<Vec<u8>>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    lines
        .map(|(number, line)| {
            let invalid = |problem: &str| TokenizerError::Invalid {
                path: path.into(),
                field: format!("line {}", number + 1),
                problem: problem.into(),
            };
            let (token, rank) = line.split_once(' ').ok_or_else(|| invalid("expected `base64 rank`"))?;
            if rank.trim().parse() != Ok(number) {
                return Err(invalid("expected ranks 0, 1, 2, ... in order"));
            }
            let token = base64::engine::general_purpose::STANDARD.decode(token);
            token
                .ok()
                .filter(|t| !t.is_empty())
                .ok_or_else(|| invalid("expected base64 of at least one byte"))
        })
        .collect()
}

/// The contents of a `tokenizer.json` that encodes as tiktoken does with these ranks.
///
/// `specials` follow the ranks in id order; the first one is put before every text (the beginning-of-text token).
///
/// A token whose own bytes do not merge into it has no merge: like tiktoken, the result reaches it only as a whole
/// piece (`ignore_merges`).
///
/// Cost: about one second for 128,000 tokens unoptimised; O(n^2) in the length of a token.
pub fn to_tokenizer_json(ranks: &[Vec<u8>], specials: &[String], split: &str) -> Value {
    let rank_of: HashMap<&[u8], usize> = ranks.iter().enumerate().map(|(i, t)| (t.as_slice(), i)).collect();
    let alphabet = byte_alphabet();
    let spell = |bytes: &[u8]| bytes.iter().map(|&b| alphabet[b as usize]).collect::<String>();
    let vocab: serde_json::Map<String, Value> =
        ranks.iter().enumerate().map(|(id, token)| (spell(token), json!(id))).collect();
    let merges: Vec<Value> = ranks
        .iter()
        .enumerate()
        .filter_map(|(rank, token)| last_merge(token, rank, &rank_of))
        .map(|(left, right)| json!([spell(left), spell(right)]))
        .collect();
    let added: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({ "id": ranks.len() + i, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let post_processor = specials.first().map(|bos| {
        json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [
                { "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                { "SpecialToken": { "id": bos, "type_id": 1 } }, { "Sequence": { "id": "B", "type_id": 1 } },
            ],
            "special_tokens": { bos: { "id": bos, "ids": [ranks.len()], "tokens": [bos] } },
        })
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": split }, "behavior": "Isolated", "invert": false },
                &byte_level,
            ],
        },
        "post_processor": post_processor,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": merges,
        },
    })
}

/// The pair whose merge creates `token`, found by encoding it with the ranks below its own.
///
/// One pair is enough: whatever surrounds the token in a text, the merges inside it happen in this order.
fn last_merge<'a>(
    token: &'a [u8],
    rank: usize,
    rank_of: &HashMap<&[u8], usize>,
) -> Option<(&'a [u8], &'a [u8])> {
    let mut starts: Vec<usize> = (0..=token.len()).collect(); // part i is token[starts[i]..starts[i + 1]]
    while starts.len() > 3 {
        let pairs = starts.windows(3).enumerate();
        let ranked = pairs.filter_map(|(i, w)| Some((*rank_of.get(&token[w[0]..w[2]])?, i)));
        let (_, first) = ranked.filter(|&(r, _)| r < rank).min()?;
        starts.remove(first + 1);
    }
    (starts.len() == 3).then(|| token.split_at(starts[1]))
}

/// The printable character that stands for each byte in byte-level BPE files.
///
/// Source: GPT-2 `encoder.py`, `bytes_to_unicode`.
pub(crate) fn byte_alphabet() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u8 as char,
        _ => {
            let stand_in = char::from_u32(next).expect("256..324 are characters: this is a bug");
            next += 1;
            stand_in
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_are_not_ranks_name_the_line() {
        for (text, problem) in [
            ("IQ== 0\nIg==", "line 2: expected `base64 rank`"),
            ("IQ== 0\nIg== 2", "line 2: expected ranks"),
            ("!!!! 0", "line 1: expected base64"),
            ("\u{8}\u{2}xyz", "line 1: expected `base64 rank`"),
        ] {
            let error = parse_ranks(Path::new("tokenizer.model"), text).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn merges_follow_from_ranks() {
        let ranks: Vec<Vec<u8>> = ["a", "b", "c", "ab", "abc", "cab"].map(|t| t.as_bytes().to_vec()).to_vec();
        let json = to_tokenizer_json(&ranks, &["<s>".to_string()], LLAMA3_SPLIT);
        assert_eq!(json["model"]["merges"], json!([["a", "b"], ["ab", "c"], ["c", "ab"]]));
        assert_eq!(json["added_tokens"][0]["id"], 6);
    }

    #[test]
    fn specials_have_their_published_ids() {
        let specials = llama3_specials();
        assert_eq!(specials.len(), 256);
        assert_eq!(specials[9], "<|eot_id|>");
        assert_eq!(specials[255], "<|reserved_special_token_247|>");
    }
}
