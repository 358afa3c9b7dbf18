//! Files that llama.cpp's Python package wrote (`goldens/make_gguf.py`): every type, bit by bit, and a model under
//! Hugging Face's names.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::path::{Path, PathBuf};

use kanana_checkpoint::Checkpoint;
use kanana_checkpoint::gguf::{GgmlType, GgufFile, config_json, tokenizer_config_json, tokenizer_json};
use kanana_tensor::DType;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

/// Both hold the same tensors, with the same bits once widened to f32.
#[track_caller]
fn check_same(gguf: &Checkpoint, folder: &Checkpoint) {
    let expected: Vec<&str> = folder.names().collect();
    assert_eq!(gguf.names().collect::<Vec<_>>(), expected);
    for name in expected {
        let (got, expected) = (gguf.tensor(name).unwrap(), folder.tensor(name).unwrap());
        assert_eq!(got.shape(), expected.shape(), "{name}");
        assert_eq!(Some(got.dtype()), gguf.get(name).unwrap().tensor_dtype(), "{name}");
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(got.to_f32_vec().unwrap()), bits(expected.to_f32_vec().unwrap()), "{name}");
    }
}

#[test]
fn every_type_is_decoded_as_the_reference_does() {
    let file = Checkpoint::open(golden("types.gguf")).unwrap();
    let readable = GgmlType::ALL.iter().filter(|t| t.is_readable());
    assert_eq!(file.names().count(), readable.clone().count());
    check_same(&file, &Checkpoint::open(golden("types")).unwrap());
    for t in readable {
        let name = format!("{t}.weight");
        let info = file.get(&name).unwrap();
        assert_eq!((info.dtype, info.is_quantised()), (t.name(), t.is_quantised()));
        assert_eq!(info.bytes, 512 / t.block_len() * t.block_bytes());
    }
}

#[test]
fn a_model_has_the_names_and_rows_of_its_folder() {
    let file = Checkpoint::open(golden("llama.gguf")).unwrap();
    check_same(&file, &Checkpoint::open(golden("llama")).unwrap());
    assert_eq!(file.tensor("model.embed_tokens.weight").unwrap().dtype(), DType::F16, "not widened");
    assert_eq!(file.dir(), golden("llama.gguf"));
    assert_eq!(file.files().collect::<Vec<_>>(), [golden("llama.gguf")]);
    file.names().for_each(|name| file.release(name));
    check_same(&file, &Checkpoint::open(golden("llama")).unwrap());
}

#[test]
fn tensors_outlive_their_file() {
    let norm = Checkpoint::open(golden("llama.gguf")).unwrap().tensor("model.norm.weight").unwrap();
    assert_eq!(norm.as_slice::<f32>().unwrap().len(), 8);
}

#[test]
fn the_configuration_is_that_of_the_folder() {
    let file = GgufFile::open(golden("llama.gguf")).unwrap();
    assert_eq!(config_json(&file).unwrap(), json("llama/config.json"));
}

#[test]
fn the_tokenizer_is_that_of_the_folder() {
    let file = GgufFile::open(golden("llama.gguf")).unwrap();
    let (got, expected) = (tokenizer_json(&file).unwrap().unwrap(), json("llama/tokenizer.json"));
    // Not the decoder: its options do nothing when decoding, and are written in several ways.
    for field in ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model"] {
        assert_eq!(got[field], expected[field], "{field}");
    }
    assert_eq!(tokenizer_config_json(&file).unwrap(), json("llama/tokenizer_config.json"));
}

#[test]
fn metadata_is_typed() {
    let file = GgufFile::open(golden("llama.gguf")).unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.text("general.name").unwrap(), Some("tiny"));
    assert_eq!(metadata.integer("llama.block_count").unwrap(), Some(2));
    assert_eq!(metadata.float("llama.attention.layer_norm_rms_epsilon").unwrap(), Some(1e-5));
    assert_eq!(metadata.texts("tokenizer.ggml.merges").unwrap().unwrap()[0], "a n");
    assert_eq!(metadata.integers("tokenizer.ggml.token_type").unwrap().unwrap()[0], 1);
    assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap(), None);
    assert!(metadata.contains("general.name") && metadata.keys().any(|key| key == "general.name"));
    for (error, expected) in [
        (
            metadata.integer("general.name").unwrap_err(),
            "\"general.name\" is a value of type string, expected an integer",
        ),
        (
            metadata.texts("tokenizer.ggml.token_type").unwrap_err(),
            "values of type i32, expected an array of strings",
        ),
        (metadata.text("llama.block_count").unwrap_err(), "a value of type u32, expected a string"),
    ] {
        let error = error.to_string();
        assert!(error.contains("llama.gguf: metadata key") && error.contains(expected), "{error}");
    }
}
