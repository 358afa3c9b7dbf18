//! Small tokenizers made here, and the Llama 3 vocabulary where it lies beside the workspace.
#![allow(dead_code)] // each test file uses its share

use std::path::PathBuf;

use kanana_tokenizer::{Tokenizer, tiktoken};
use serde_json::{Map, Value, json};

/// Byte-level BPE as Kanana's, with a few merges that cut Hangul and emoji inside characters.
pub fn byte_level() -> Tokenizer {
    let mut ranks: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    let merges: [&[u8]; 9] = [
        &"안".as_bytes()[..2],
        b" t",
        b" th",
        b" the",
        "안".as_bytes(),
        b"\x9f\x98",
        b"\x85\xec",
        b"\n\n",
        b"ab",
    ];
    ranks.extend(merges.map(<[u8]>::to_vec));
    let specials = ["<|begin_of_text|>", "<|eot_id|>", "<|한글|>"].map(String::from);
    Tokenizer::from_json(&tiktoken::to_tokenizer_json(&ranks, &specials, tiktoken::LLAMA3_SPLIT)).unwrap()
}

/// SentencePiece-style BPE with byte fallback, and the decoder given.
pub fn sentence_piece(decoder: Value) -> Tokenizer {
    let mut vocab = Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.insert(token, json!(id));
    };
    ["<unk>", "<s>", "</s>"].map(String::from).into_iter().for_each(&mut add);
    (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).for_each(&mut add);
    ['▁'].into_iter().chain('a'..='z').chain(['가', '나', '.']).map(String::from).for_each(&mut add);
    ["▁a", "▁▁", "▁가", "th", "the", "▁the", "가나"].map(String::from).into_iter().for_each(&mut add);
    let merges =
        json!([["▁", "a"], ["▁", "▁"], ["▁", "가"], ["t", "h"], ["th", "e"], ["▁", "the"], ["가", "나"]]);
    let special = |id: usize, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false })
    };
    Tokenizer::from_json(&json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                   "vocab": vocab, "merges": merges },
    }))
    .unwrap()
}

/// Llama 2's decoder.
pub fn llama2_decoder() -> Value {
    json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" }, { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ] })
}

/// The folder with shared test data, if this machine has it.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(name);
    if !path.exists() {
        eprintln!("skipped: no shared data ({name})");
        return None;
    }
    Some(path)
}

/// A folder with Llama 3's `tokenizer.model`, as the original checkpoints have it.
pub fn llama3() -> Option<Tokenizer> {
    let model = shared("tokenizer/llama3_tokenizer.model")?;
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(model, dir.path().join("tokenizer.model")).unwrap();
    Some(Tokenizer::from_dir(dir.path()).unwrap())
}

/// All 11,172 Hangul syllables.
pub fn syllables() -> String {
    ('가'..='힣').collect()
}
