//! Reading checkpoint folders: what is found, and every way the files can be broken.

#![allow(clippy::unwrap_used)] // tests

mod common;

use std::path::Path;

use common::{byte_level, llama3, shared};
use kanana_tokenizer::{Specials, Tokenizer, TokenizerError, tiktoken};
use serde_json::{Value, json};

fn byte_level_json() -> Value {
    let ranks: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    let specials = ["<|begin_of_text|>", "<|eot_id|>"].map(String::from);
    tiktoken::to_tokenizer_json(&ranks, &specials, tiktoken::LLAMA3_SPLIT)
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
    dir
}

/// A folder with these files does not load, and the error says `problem`.
fn check_broken(files: &[(&str, &[u8])], problem: &str) {
    let error = Tokenizer::from_dir(folder(files).path()).unwrap_err();
    assert!(error.to_string().contains(problem), "{error}");
}

#[test]
fn broken_files_say_what_is_wrong() {
    let good = byte_level_json().to_string();
    let with = |config: &'static str| {
        [("tokenizer.json", good.as_bytes()), ("tokenizer_config.json", config.as_bytes())]
    };
    check_broken(&[], "no tokenizer.json");
    check_broken(&[("tokenizer.json", b"{")], "tokenizer.json: tokenizer:");
    check_broken(
        &[("tokenizer.json", b"{\"version\": \"1.0\xff\"}")],
        "not UTF-8 (first bad byte at offset 16)",
    );
    check_broken(&[("tokenizer.json", &good.as_bytes()[..good.len() / 2])], "EOF");
    check_broken(&[("tokenizer.model", b"\x0a\x0e\x0a\x05<unk>\x15\xff")], "SentencePiece");
    check_broken(&[("tokenizer.model", b"IQ== 0\nIg== 5")], "line 2: expected ranks");
    check_broken(&with("["), "tokenizer_config.json: line 1 column 1");
    check_broken(&with("[]"), "tokenizer_config.json: top level");
    check_broken(&with(r#"{"bos_token": 3}"#), "bos_token: expected a token, got 3");
    check_broken(&with(r#"{"added_tokens_decoder": {"x": {}}}"#), "expected token ids as keys");
    let misplaced = r#"{"added_tokens_decoder": {"9": {"content": "<|eot_id|>", "special": true, "lstrip": false,
        "rstrip": false, "single_word": false, "normalized": false}}}"#;
    check_broken(&with(misplaced), "tokenizer.json has \"<|eot_id|>\" at Some(257)");
    let mut panics = byte_level_json();
    panics["decoder"] = json!({ "type": "Strip", "content": " ", "start": 0, "stop": 1 });
    check_broken(&[("tokenizer.json", panics.to_string().as_bytes())], "decoder.stop");
}

#[test]
fn config_names_and_adds_tokens() {
    let config = json!({
        "bos_token": "<|begin_of_text|>", "eos_token": { "content": "<|eot_id|>" }, "pad_token": null,
        "add_bos_token": true,
        "added_tokens_decoder": { "258": { "content": "<|new|>", "special": true, "lstrip": false, "rstrip": false,
                                           "single_word": false, "normalized": false } },
    });
    let dir = folder(&[
        ("tokenizer.json", byte_level_json().to_string().as_bytes()),
        ("tokenizer_config.json", config.to_string().as_bytes()),
        ("special_tokens_map.json", br#"{"eos_token": "<|begin_of_text|>", "unk_token": "<|new|>"}"#),
    ]);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.special_token_id("bos_token"), Some(256));
    assert_eq!(tokenizer.special_token_id("eos_token"), Some(257));
    assert_eq!(tokenizer.special_token_id("unk_token"), Some(258));
    assert_eq!(tokenizer.special_token_id("pad_token"), None);
    assert_eq!((tokenizer.vocab_size(), tokenizer.special_ids().len()), (259, 3));
    assert_eq!(tokenizer.encode_rendered("a<|new|>").unwrap(), [97, 258]);
}

#[test]
fn truncation_and_padding_are_ignored() {
    let mut json = byte_level_json();
    json["truncation"] =
        json!({ "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0 });
    json["padding"] = json!({ "strategy": { "Fixed": 64 }, "direction": "Right", "pad_to_multiple_of": null,
                              "pad_id": 0, "pad_type_id": 0, "pad_token": "!" });
    assert_eq!(Tokenizer::from_json(&json).unwrap().encode_rendered("abcdefgh").unwrap().len(), 8);
}

#[test]
fn three_ways_to_encode() {
    let tokenizer = byte_level();
    let (bos, eot) =
        (tokenizer.token_id("<|begin_of_text|>").unwrap(), tokenizer.token_id("<|eot_id|>").unwrap());
    assert_eq!(tokenizer.encode("a<|eot_id|>").unwrap(), [bos, 97, eot]);
    assert_eq!(tokenizer.encode_rendered("a<|eot_id|>").unwrap(), [97, eot]);
    let plain = tokenizer.encode_plain("a<|eot_id|>").unwrap();
    assert!(plain.iter().all(|&id| id < 256), "{plain:?}");
    assert_eq!(tokenizer.decode(&plain, Specials::Skip).unwrap(), "a<|eot_id|>");
    assert_eq!(tokenizer.decode(&[bos, 97, eot], Specials::Skip).unwrap(), "a");
    assert_eq!(tokenizer.decode(&[bos, 97, 100_000], Specials::Keep).unwrap(), "<|begin_of_text|>a");
}

#[test]
fn the_embedding_must_hold_every_id() {
    let tokenizer = byte_level();
    let size = tokenizer.vocab_size();
    assert!(tokenizer.check_fits(size).is_ok());
    let error = tokenizer.check_fits(size - 1).unwrap_err();
    assert!(matches!(error, TokenizerError::LargerThanEmbedding { .. }) && error.hint().is_some());
}

/// The cases of llama.cpp's `ggml-vocab-llama-bpe`.
#[test]
fn llama3_cases() {
    let (Some(tokenizer), Some(dir)) = (llama3(), shared("tokenizer")) else {
        return;
    };
    let read = |name: &str| std::fs::read_to_string(Path::new(&dir).join(name)).unwrap();
    let (texts, ids) = (read("ggml-vocab-llama-bpe.gguf.inp"), read("ggml-vocab-llama-bpe.gguf.out"));
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let ids: Vec<Vec<u32>> =
        ids.split('\n').map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    assert_eq!((texts.len(), ids.len()), (47, 47));
    for (text, ids) in texts.into_iter().zip(&ids) {
        assert_eq!(&tokenizer.encode_rendered(text).unwrap(), ids, "{text:?}");
        assert_eq!(&tokenizer.encode_plain(text).unwrap(), ids, "{text:?}");
        assert_eq!(&tokenizer.decode(ids, Specials::Keep).unwrap(), text);
    }
    assert_eq!(tokenizer.vocab_size(), 128_256);
    assert_eq!(tokenizer.special_token_id("bos_token"), Some(128_000));
    assert_eq!(tokenizer.encode("hi").unwrap()[0], 128_000);
}
