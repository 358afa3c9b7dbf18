//! GGUF files that are broken, cut short or hostile: each test is named after the attack, and pins that the message
//! names what is wrong.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::path::Path;

use kanana_checkpoint::Checkpoint;
use kanana_checkpoint::gguf::{GgufFile, config_json, parse_gguf_header, tokenizer_json};
use proptest::prelude::*;

/// A header under construction; every part can be wrong.
struct File {
    version: u32,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: usize,
}

fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// A metadata entry: key, type number, bytes of the value.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key.as_bytes())[..], &kind.to_le_bytes(), value].concat()
}

/// A tensor: name, dimensions innermost first, type number, offset.
fn tensor(name: &str, sizes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let sizes_bytes: Vec<u8> = sizes.iter().flat_map(|n| n.to_le_bytes()).collect();
    let count = (sizes.len() as u32).to_le_bytes();
    [&text(name.as_bytes())[..], &count, &sizes_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

impl File {
    fn new() -> Self {
        File { version: 3, keys: vec![], tensors: vec![], data: 0 }
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push(entry(key, kind, value));
        self
    }

    fn tensor(mut self, name: &str, sizes: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.push(tensor(name, sizes, kind, offset));
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = bytes;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.keys.len() as u64].map(u64::to_le_bytes).concat();
        let parts = [self.keys.concat(), self.tensors.concat()].concat();
        let mut bytes = [&b"GGUF"[..], &self.version.to_le_bytes(), &counts, &parts].concat();
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }

    #[track_caller]
    fn check(&self, expected: &str) {
        check_bytes(&self.bytes(), expected);
    }
}

#[track_caller]
fn check_bytes(bytes: &[u8], expected: &str) {
    let error = parse_gguf_header(Path::new("m.gguf"), bytes, bytes.len() as u64).unwrap_err().to_string();
    assert!(error.starts_with("m.gguf: ") && error.contains(expected), "{error:?} does not say {expected:?}");
}

#[test]
fn other_files() {
    check_bytes(b"", "ends inside the letters GGUF");
    check_bytes(b"PK\x03\x04", "starts with [50, 4b, 03, 04], expected the letters GGUF");
    check_bytes(b"GGUF\x03", "ends inside the version: 4 bytes are needed, 1 are there");
}

#[test]
fn other_versions() {
    File { version: 1, ..File::new() }.check("is GGUF version 1, expected 2 or 3");
    File { version: 4, ..File::new() }.check("is GGUF version 4");
    File { version: 3 << 24, ..File::new() }.check("big-endian");
    let two = File { version: 2, ..File::new() }.bytes();
    assert_eq!(parse_gguf_header(Path::new("m"), &two, two.len() as u64).unwrap().version, 2);
}

#[test]
fn counts_beyond_the_file() {
    let mut bytes = File::new().bytes();
    bytes[8..16].fill(0xff);
    check_bytes(&bytes, "18446744073709551615 tensors, but the rest of the file has room for at most");
    let mut bytes = File::new().bytes();
    bytes[16..24].copy_from_slice(&1000u64.to_le_bytes());
    check_bytes(&bytes, "1000 metadata keys");
    let array = [&4u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    File::new().key("a", 9, &array).check("18446744073709551615 elements of \"a\"");
}

#[test]
fn texts_beyond_the_file() {
    let long = [&u64::MAX.to_le_bytes()[..], b"abc"].concat();
    File::new()
        .key("a", 8, &long)
        .check("ends inside the value of \"a\": 18446744073709551615 bytes are needed");
    let file = File { keys: vec![[&(1u64 << 40).to_le_bytes()[..], b"abcdefgh"].concat()], ..File::new() };
    file.check("ends inside metadata key number 0");
}

#[test]
fn texts_that_are_not_text() {
    File::new().key("a", 8, &text(b"ok\xff")).check("the value of \"a\" is not UTF-8 from byte 2");
    let file = File { keys: vec![[&text(b"\xc0\xc0")[..], &[0; 5]].concat()], ..File::new() };
    file.check("metadata key number 0 is not UTF-8 from byte 0");
    File::new().key("", 0, &[1]).check("metadata key number 0 is empty");
}

#[test]
fn values_of_no_type() {
    File::new().key("a", 13, &[0; 8]).check("metadata key \"a\" has type number 13");
    File::new().key("a", 7, &[2]).check("bool of value 2, expected 0 or 1");
    let array = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 32]].concat();
    File::new().key("a", 9, &array).check("\"a\" is an array of arrays");
}

#[test]
fn names_given_twice() {
    File::new().key("a", 0, &[1]).key("a", 0, &[1]).check("metadata key \"a\" is there twice");
    let twice = File::new().tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64);
    twice.check("tensor \"a\" is there twice");
}

#[test]
fn alignments_that_are_none() {
    for value in [0u32, 3, 48] {
        File::new().key("general.alignment", 4, &value.to_le_bytes()).check("expected a power of two");
    }
    File::new()
        .key("general.alignment", 10, &(1u64 << 40).to_le_bytes())
        .check("general.alignment is 1099511627776");
    File::new()
        .key("general.alignment", 8, &text(b"32"))
        .check("is a value of type string, expected an integer");
}

#[test]
fn tensors_of_wrong_shapes() {
    File::new().tensor("a", &[1; 5], 0, 0).check("has 5 dimensions, expected at most 4");
    File::new().tensor("a", &[1 << 40, 1 << 40], 0, 0).check("more elements than memory can address");
    File::new().tensor("a", &[0, 1 << 40, 1 << 40], 0, 0).check("more elements than memory can address");
    File::new().tensor("a", &[u64::MAX], 0, 0).check("more elements than memory can address");
    File::new().tensor("a", &[48, 2], 12, 0).check("has rows of 48, expected a multiple of 256 as Q4_K has");
    File::new().tensor("a", &[], 2, 0).check("has rows of 1, expected a multiple of 32 as Q4_0 has");
}

#[test]
fn tensors_of_no_type() {
    for kind in [4, 31, 99, u32::MAX] {
        File::new()
            .tensor("a", &[32], kind, 0)
            .data(64)
            .check(&format!("has type number {kind}, which is not known"));
    }
}

#[test]
fn tensors_in_wrong_places() {
    File::new()
        .tensor("a", &[8], 0, 8)
        .data(64)
        .check("starts at byte 8 of the data, expected a multiple of 32");
    File::new()
        .tensor("a", &[8], 0, 64)
        .data(64)
        .check("cut short inside tensor \"a\": it ends at byte 96 of the data, 64");
    File::new().tensor("a", &[8], 0, u64::MAX - 31).data(64).check("cut short inside tensor \"a\"");
    let overlap = File::new().tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(64);
    overlap.check("tensor \"b\" starts at byte 32 of the data, inside \"a\" that ends at 64");
}

/// Opening these files as a model fails with such a message.
#[track_caller]
fn check_model(file: File, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let opened = Checkpoint::open(&path).and_then(|checkpoint| {
        let file = checkpoint.gguf().unwrap();
        config_json(file).and_then(|_| tokenizer_json(file)).map(|_| ())
    });
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("m.gguf: ") && error.contains(expected), "{error:?} does not say {expected:?}");
}

#[test]
fn models_that_contradict_themselves() {
    let number = |n: u32| n.to_le_bytes();
    let llama = || File::new().key("general.architecture", 8, &text(b"llama"));
    check_model(File::new(), "has no metadata key \"general.architecture\"");
    check_model(
        File::new().key("general.architecture", 8, &text(b"mamba")),
        "is \"mamba\", expected one of llama, qwen2moe",
    );
    check_model(llama(), "has no metadata key \"llama.attention.head_count\"");
    check_model(
        llama().key("llama.attention.head_count", 5, &(-4i32).to_le_bytes()),
        "an integer that is not negative",
    );
    let heads = |n| llama().key("llama.attention.head_count", 4, &number(n));
    check_model(heads(2).key("split.count", 2, &[3, 0]), "is one of 3 parts; join them");
    check_model(heads(3).tensor("blk.0.attn_q.weight", &[1, 8], 0, 0).data(32), "expected rows for 3 heads");
    check_model(heads(0).tensor("blk.0.attn_q.weight", &[1, 8], 0, 0).data(32), "expected rows for 0 heads");
    check_model(
        heads(2)
            .key("llama.expert_count", 4, &number(3))
            .tensor("blk.0.ffn_up_exps.weight", &[1, 1, 8], 0, 0)
            .data(32),
        "a stack of 3 matrices",
    );
    check_model(
        heads(2).tensor("output_norm.weight", &[8], 0, 0).tensor("model.norm.weight", &[8], 0, 32).data(64),
        "\"model.norm.weight\" is there twice",
    );
    let sizes = |head_dim: u32| {
        ["embedding_length", "block_count", "feed_forward_length", "context_length"]
            .into_iter()
            .fold(heads(2), |file, name| file.key(&format!("llama.{name}"), 4, &number(8)))
            .key("llama.attention.key_length", 4, &number(4))
            .key("llama.rope.dimension_count", 4, &number(head_dim))
            .key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes())
            .tensor("token_embd.weight", &[8, 1], 0, 0)
            .data(32)
    };
    check_model(sizes(2), "rope.dimension_count\" is 2, expected 4, the width of a key");
    let longrope = sizes(4).key("llama.rope.scaling.type", 8, &text(b"longrope"));
    check_model(longrope, "\"longrope\", expected none, linear or yarn");
    check_model(
        sizes(4).tensor("rope_freqs.weight", &[2], 0, 32).data(64),
        "\"rope_freqs.weight\" has shape [2]",
    );
    let spm = sizes(4).key("tokenizer.ggml.model", 8, &text(b"llama"));
    check_model(spm, "\"tokenizer.ggml.model\" is \"llama\", expected \"gpt2\"");
    let bpe = || sizes(4).key("tokenizer.ggml.model", 8, &text(b"gpt2"));
    check_model(bpe(), "has no metadata key \"tokenizer.ggml.pre\"");
    check_model(
        bpe().key("tokenizer.ggml.pre", 8, &text(b"default")),
        "\"default\", expected one of llama-bpe",
    );
    let vocabulary = |types: u64| {
        let tokens = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text(b"a")].concat();
        let types = [&5u32.to_le_bytes()[..], &types.to_le_bytes(), &vec![1; 4 * types as usize]].concat();
        bpe().key("tokenizer.ggml.pre", 8, &text(b"llama-bpe")).key("tokenizer.ggml.tokens", 9, &tokens).key(
            "tokenizer.ggml.token_type",
            9,
            &types,
        )
    };
    check_model(vocabulary(2), "is 2, expected as many as tokens, 1");
    check_model(vocabulary(1), "has no metadata key \"tokenizer.ggml.merges\"");
    check_model(
        vocabulary(1).key("tokenizer.ggml.bos_token_id", 4, &number(7)),
        "is 7, expected an id below 1",
    );
    let merges = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text(b"ab")].concat();
    check_model(
        vocabulary(1).key("tokenizer.ggml.merges", 9, &merges),
        "\"ab\", expected two tokens with a space",
    );
}

#[test]
fn a_good_file_passes() {
    let mut good =
        File::new().key("a", 8, &text(b"b")).tensor("a", &[8], 0, 0).tensor("e", &[0, 4], 0, 32).data(32);
    good = good.key("general.alignment", 4, &32u32.to_le_bytes());
    let header = parse_gguf_header(Path::new("m"), &good.bytes(), good.bytes().len() as u64).unwrap();
    assert_eq!(
        (header.tensors["a"].shape.as_slice(), header.tensors["e"].shape.as_slice()),
        (&[8][..], &[4, 0][..])
    );
    assert_eq!(header.tensors["a"].bytes.len(), 32);
}

/// A file cut anywhere is refused, or, once the data end where it is cut, whole.
#[test]
fn cut_anywhere() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama.gguf");
    let bytes = std::fs::read(&path).unwrap();
    for length in 0..bytes.len() - 31 {
        assert!(parse_gguf_header(&path, &bytes[..length], length as u64).is_err(), "{length}");
    }
}

fn consistent(bytes: &[u8], file_len: u64) {
    let Ok(header) = parse_gguf_header(Path::new("m.gguf"), bytes, file_len) else { return };
    let mut ranges: Vec<_> = header.tensors.values().map(|tensor| tensor.bytes.clone()).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let reached = ranges.iter().fold(0, |reached, range| {
        assert!(range.start >= reached && range.end >= range.start);
        range.end
    });
    assert!(reached as u64 <= file_len);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400), more: u32) {
        consistent(&bytes, bytes.len() as u64);
        let bytes = [&b"GGUF\x03\0\0\0"[..], &bytes].concat();
        consistent(&bytes, bytes.len() as u64 + u64::from(more));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// A good file with some bytes changed: opened whole, and everything in it read.
    #[test]
    fn flipped_bytes(changes in prop::collection::vec((0usize..17_056, any::<u8>()), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let mut bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama.gguf")).unwrap();
        changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
        std::fs::write(&path, &bytes).unwrap();
        consistent(&bytes, bytes.len() as u64);
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            checkpoint.names().for_each(|name| drop(checkpoint.tensor(name)));
        }
        if let Ok(file) = GgufFile::open(&path) {
            drop((config_json(&file), tokenizer_json(&file)));
        }
    }
}
