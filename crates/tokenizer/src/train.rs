//! Training of a byte-level BPE vocabulary, as Llama 3's was made: pieces by a regular expression, then merges.
//!
//! The counting and merging is the `tokenizers` library's; the result is written by [`crate::tiktoken`], so that a
//! vocabulary that was trained here and one that was converted have one form. It opens no corpus: texts come in.
//! Tests: `cargo test -p kanana-tokenizer train`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior, Trainer,
};

use crate::tiktoken::{LLAMA3_SPLIT, byte_alphabet, to_tokenizer_json};
use crate::{Result, TokenizerError};

/// Control tokens that a chat needs, by Llama 3's names; the first begins every text.
pub const SPECIALS: [&str; 8] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
];

/// The frame of Llama 3: a header with the role, the text, the end of the turn.
pub const CHAT_TEMPLATE: &str = "{{- bos_token }}\
{%- for message in messages %}\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\
{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}";

/// What to make.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Ids in all: 256 bytes, merges, control tokens.
    pub vocab_size: usize,
    /// Control tokens, in the order of their ids, after the others; the first begins every text.
    pub specials: Vec<String>,
    /// Every digit is a piece of its own, where Llama 3 takes up to three together: small models count better so.
    pub single_digits: bool,
}

impl TrainOptions {
    /// [`SPECIALS`], and Llama 3's pieces.
    pub fn new(vocab_size: usize) -> Self {
        TrainOptions { vocab_size, specials: SPECIALS.map(str::to_owned).to_vec(), single_digits: false }
    }

    fn split(&self) -> String {
        match self.single_digits {
            true => LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}"),
            false => LLAMA3_SPLIT.to_owned(),
        }
    }
}

/// Learns merges from texts and gives the contents of a `tokenizer.json`.
///
/// Errors: a vocabulary that has no room for bytes and control tokens; texts that give fewer merges than it has room for.
/// Cost: memory for every distinct piece.
pub fn train<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    options: &TrainOptions,
) -> Result<Value> {
    let failed = |problem: String| TokenizerError::Training { problem };
    let least = 256 + options.specials.len();
    if options.vocab_size <= least {
        let problem =
            format!("a vocabulary of {} has no room for merges: more than {least}", options.vocab_size);
        return Err(failed(problem));
    }
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(options.vocab_size - options.specials.len())
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let pattern = SplitPattern::Regex(options.split());
    let split =
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|e| failed(e.to_string()))?;
    let bytes = ByteLevel::new(false, true, false);
    trainer
        .feed(texts, |text| {
            let mut pieces = PreTokenizedString::from(text);
            split.pre_tokenize(&mut pieces)?;
            bytes.pre_tokenize(&mut pieces)?;
            let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
            Ok(pieces.into_iter().map(|(piece, _, _)| piece.to_owned()).collect())
        })
        .map_err(|e| failed(e.to_string()))?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(|e| failed(e.to_string()))?;

    let of_char: HashMap<char, u8> = byte_alphabet().into_iter().zip(0..=255).collect();
    // Bytes first, by their value; then the merges, in the order in which they were found.
    let mut tokens: Vec<(u32, Vec<u8>)> = Vec::new();
    for (token, id) in model.get_vocab() {
        let bytes: Option<Vec<u8>> = token.chars().map(|c| of_char.get(&c).copied()).collect();
        tokens.push((id, bytes.ok_or_else(|| failed(format!("{token:?} is not made of bytes")))?));
    }
    tokens.sort_by_key(|(id, bytes)| (bytes.len() > 1, if bytes.len() > 1 { *id } else { bytes[0].into() }));
    let ranks: Vec<Vec<u8>> = tokens.into_iter().map(|(_, bytes)| bytes).collect();
    let got = ranks.len() + options.specials.len();
    if got < options.vocab_size {
        return Err(failed(format!(
            "the texts give a vocabulary of {got}, not of {}: give more text, or ask for fewer",
            options.vocab_size
        )));
    }
    Ok(to_tokenizer_json(&ranks, &options.specials, &options.split()))
}

/// The `tokenizer_config.json` beside it: which control tokens begin and end, and how a chat is framed.
pub fn tokenizer_config(options: &TrainOptions, chat_template: &str) -> Value {
    let named = |wanted: &str| options.specials.iter().find(|token| *token == wanted);
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": options.specials.first(),
        "eos_token": named("<|end_of_text|>"),
        "pad_token": named("<|finetune_right_pad_id|>"),
        "clean_up_tokenization_spaces": false,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": chat_template,
    })
}

/// Writes both files into a folder, which is made if needed.
///
/// Errors: those of the file system, naming the file.
pub fn save(dir: &Path, tokenizer: &Value, config: &Value) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| TokenizerError::Io { path, source }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    for (name, json) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)] {
        let path = dir.join(name);
        std::fs::write(&path, format!("{json:#}\n")).map_err(io(&path))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{Specials, Tokenizer};

    const TEXTS: [&str; 4] = [
        "the cat sat on the mat, the cat ate the rat 12345",
        "한국어 문장을 나눕니다. 한국어 문장을 배웁니다.",
        "the rat sat on the cat 12345",
        "한국어 단어를 배웁니다",
    ];

    fn trained(single_digits: bool) -> Tokenizer {
        let options = TrainOptions { single_digits, ..TrainOptions::new(300) };
        let json = train(TEXTS.iter(), &options).unwrap();
        assert_eq!(json, train(TEXTS.iter(), &options).unwrap(), "the same texts give the same vocabulary");
        Tokenizer::from_json_with_config(&json, &tokenizer_config(&options, CHAT_TEMPLATE)).unwrap()
    }

    #[test]
    fn every_syllable_and_byte_comes_back() {
        let tokenizer = trained(false);
        assert_eq!(tokenizer.vocab_size(), 300);
        let syllables: String = ('가'..='힣').collect();
        for text in [&syllables, "the cat", "\u{0}\u{7f}é🦀 \r\n\t", "한국어"] {
            let ids = tokenizer.encode_plain(text).unwrap();
            assert_eq!(tokenizer.decode(&ids, Specials::Keep).unwrap(), *text);
        }
        // What was seen often is a token.
        assert!(tokenizer.encode_plain(" the cat").unwrap().len() <= 3);
        assert!(tokenizer.encode_plain("한국어").unwrap().len() <= 3);
    }

    #[test]
    fn digits_stand_alone_when_asked() {
        let count = |tokenizer: &Tokenizer| tokenizer.encode_plain("123").unwrap().len();
        assert_eq!(count(&trained(true)), 3);
        assert!(count(&trained(false)) < 3);
    }

    #[test]
    fn too_little_room_or_text_is_an_error() {
        let error = |vocab_size| train(TEXTS.iter(), &TrainOptions::new(vocab_size)).unwrap_err().to_string();
        assert!(error(264).contains("no room"), "{}", error(264));
        assert!(error(5000).contains("give more text"), "{}", error(5000));
    }
}
