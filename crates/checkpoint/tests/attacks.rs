//! Folders and files that are broken, cut short or hostile: each test is named after the attack, and pins that the
//! message names the file and what is wrong with it.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::fs;
use std::path::Path;

use kanana_checkpoint::{Checkpoint, Result};
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";

/// A file with this header text and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn error_of<T>(result: Result<T>) -> String {
    result.err().expect("the attack must be refused").to_string()
}

/// Opening the folder fails, and the message has all these parts.
fn check_folder(files: &[(&str, &[u8])], expected: &[&str]) {
    check_message(&error_of(Checkpoint::open(folder(files).path())), expected);
}

fn check_message(message: &str, expected: &[&str]) {
    for part in expected {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// A single file of these bytes is refused, and the message names it and has all these parts.
fn check_bytes(bytes: &[u8], expected: &[&str]) {
    check_folder(&[("model.safetensors", bytes)], &[&["model.safetensors: "], expected].concat());
}

fn check_header(header: &str, data: usize, expected: &[&str]) {
    check_bytes(&file(header, data), expected);
}

/// A good shard with one tensor of four bytes.
fn shard(tensor: &str) -> Vec<u8> {
    file(&format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#), 4)
}

fn index(pairs: &[(&str, &str)]) -> Vec<u8> {
    let pairs: Vec<String> = pairs.iter().map(|(tensor, file)| format!("{tensor:?}:{file:?}")).collect();
    format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{}}}}}"#, pairs.join(",")).into_bytes()
}

#[test]
fn folder_missing() {
    let dir = folder(&[]);
    check_message(&error_of(Checkpoint::open(dir.path().join("nowhere"))), &["nowhere", "no such folder"]);
}

#[test]
fn file_instead_of_folder() {
    let dir = folder(&[("model.safetensors", &shard("a"))]);
    let message = error_of(Checkpoint::open(dir.path().join("model.safetensors")));
    check_message(&message, &["model.safetensors: is a file", "give the folder"]);
}

#[test]
fn empty_folder() {
    check_folder(&[], &["holds neither model.safetensors nor model.safetensors.index.json"]);
}

#[test]
fn pickle_files_only() {
    for name in ["pytorch_model.bin", "consolidated.00.pth", "model.pt"] {
        check_folder(&[(name, b"\x80\x02")], &[name, "executes code", "save_pretrained"]);
    }
}

#[test]
fn folder_instead_of_file() {
    let dir = folder(&[]);
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    check_message(&error_of(Checkpoint::open(dir.path())), &["model.safetensors: is not a regular file"]);
}

#[cfg(unix)]
#[test]
fn pipe_instead_of_file() {
    let dir = folder(&[]);
    let path = dir.path().join("model.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    check_message(&error_of(Checkpoint::open(dir.path())), &["model.safetensors: is not a regular file"]);
}

#[cfg(unix)]
#[test]
fn link_to_nothing() {
    let dir = folder(&[]);
    std::os::unix::fs::symlink("../blobs/gone", dir.path().join("model.safetensors")).unwrap();
    check_message(&error_of(Checkpoint::open(dir.path())), &["model.safetensors: cannot be read"]);
}

#[test]
fn missing_shard() {
    check_folder(
        &[(INDEX, &index(&[("a", "one"), ("b", "two"), ("c", "two")])), ("one", &shard("a"))],
        &["two: missing", "\"b\" and 1 more tensors"],
    );
}

#[test]
fn truncated_shard() {
    let whole = shard("b");
    let cut = &whole[..whole.len() - 1];
    check_folder(
        &[(INDEX, &index(&[("a", "one"), ("b", "two")])), ("one", &shard("a")), ("two", cut)],
        &["two: cut short inside tensor \"b\"", "promises 4 bytes", "3 are there"],
    );
}

#[test]
fn tensor_in_the_index_but_not_in_the_shard() {
    check_folder(
        &[(INDEX, &index(&[("a", "one"), ("b", "one")])), ("one", &shard("a"))],
        &["one: has no tensor \"b\""],
    );
}

#[test]
fn duplicate_tensor_in_two_shards() {
    check_folder(
        &[
            (INDEX, &index(&[("a", "one"), ("b", "two")])),
            ("one", &shard("a")),
            ("two", &{
                let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                             "b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
                file(header, 2)
            }),
        ],
        &["two: tensor \"a\" is there twice", "first in", "one"],
    );
}

#[test]
fn duplicate_tensor_in_the_index() {
    check_folder(
        &[(INDEX, &index(&[("a", "one"), ("a", "two")])), ("one", &shard("a")), ("two", &shard("a"))],
        &["tensor \"a\" is there twice"],
    );
}

#[test]
fn shard_path_escapes_the_folder() {
    for path in ["../one", "/etc/passwd", "sub/one", "..", ".", "", "..\\one", "C:one", "one\0"] {
        let index = index(&[("a", path)]);
        let index = String::from_utf8(index).unwrap().replace("\\0", "\\u0000");
        check_folder(
            &[(INDEX, index.as_bytes()), ("one", &shard("a"))],
            &["expected a plain file name", "\"a\""],
        );
    }
}

#[test]
fn index_is_not_an_index() {
    for text in ["", "[]", "{}", r#"{"weight_map":["a"]}"#, r#"{"weight_map":{"a":1}}"#, "\u{feff}{}"] {
        check_folder(&[(INDEX, text.as_bytes())], &[INDEX, "expected JSON with a weight_map"]);
    }
    check_folder(&[(INDEX, &index(&[]))], &["holds neither"]);
}

#[test]
fn empty_file() {
    check_bytes(b"", &["0 bytes long", "expected 8 bytes"]);
    check_bytes(&[1, 0, 0, 0, 0, 0, 0], &["7 bytes long"]);
}

#[test]
fn header_longer_than_the_file() {
    let mut bytes = 100u64.to_le_bytes().to_vec();
    bytes.extend(b"{}");
    check_bytes(&bytes, &["should have 100 bytes", "only 2 follow"]);
}

#[test]
fn huge_header_length() {
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 100_000_001] {
        check_bytes(&length.to_le_bytes(), &[&format!("has {length} bytes"), "limit is 100000000"]);
    }
    check_bytes(&100_000_000u64.to_le_bytes(), &["only 0 follow"]);
}

#[test]
fn header_is_not_utf8() {
    let mut bytes = 3u64.to_le_bytes().to_vec();
    bytes.extend(b"{\xff}");
    check_bytes(&bytes, &["not UTF-8 from byte 1"]);
}

#[test]
fn header_is_not_json() {
    for header in ["", "{", "[]", "null", r#"{"a":1}"#, r#"{}{}"#, r#"{"a":{"dtype":"F32"}}"#] {
        check_header(header, 0, &["expected a JSON header"]);
    }
    check_header(&"[".repeat(100_000), 0, &["expected a JSON header"]);
    check_header(&format!(r#"{{"a":{{"x":{}"#, "[".repeat(100_000)), 0, &["in \"a\""]);
}

#[test]
fn numbers_that_are_not_offsets() {
    for offsets in
        ["[-1,4]", "[0,4.0]", "[0]", "[0,2,4]", "[0,18446744073709551616]", "[0,1e3]", "\"0,4\"", "null"]
    {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}}}"#);
        check_header(&header, 4, &["in \"a\""]);
    }
    check_header(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, &["in \"a\""]);
}

#[test]
fn duplicate_tensor_in_one_header() {
    // The offsets tile the data, so only the name is wrong.
    let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                     "a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    check_header(header, 2, &["\"a\" is there twice"]);
    check_header(
        r#"{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
        0,
        &["duplicate field"],
    );
    check_header(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, &["__metadata__ is there twice"]);
}

#[test]
fn offsets_overflow() {
    let max = u64::MAX;
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{max}],"data_offsets":[0,{max}]}}}}"#);
    check_header(&header, 4, &["\"a\"", "more U8 elements than memory can address"]);
    // One byte less than wraps around when the start of the data is added.
    let bytes = u64::MAX / 8;
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
    check_header(&header, 4, &["cut short inside tensor \"a\"", &bytes.to_string(), "4 are there"]);
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[{},{max}]}}}}"#, max - 4);
    check_header(&header, 4, &["belong to no tensor"]);
    let header = format!(r#"{{"a":{{"dtype":"F3_NEW","shape":[4],"data_offsets":[0,{max}]}}}}"#);
    check_header(&header, 4, &["cut short"]);
}

#[test]
fn shape_product_overflows() {
    for shape in [
        "[4294967296,4294967296,2]",
        "[0,18446744073709551615,18446744073709551615]",
        "[4611686018427387904]",
    ] {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#);
        check_header(&header, 4, &["tensor \"a\"", "more F32 elements than memory can address"]);
    }
}

#[test]
fn tensors_overlap() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                     "b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}"#;
    check_header(header, 7, &["tensor \"b\" starts at byte 3", "inside \"a\" that ends at 4"]);
    let same = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                   "b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    check_header(same, 4, &["tensor \"b\" starts at byte 0", "inside \"a\""]);
}

#[test]
fn holes_between_tensors() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                     "b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}}"#;
    check_header(header, 9, &["bytes 4..5", "belong to no tensor"]);
    check_header(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 6, &["bytes 4..6"]);
    check_header("{}", 1, &["bytes 0..1"]);
}

#[test]
fn offsets_out_of_range() {
    check_header(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[9],"data_offsets":[4,40]}}"#,
        20,
        &["cut short inside tensor \"b\"", "promises 40 bytes", "20 are there"],
    );
}

#[test]
fn end_before_begin() {
    check_header(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}"#,
        4,
        &["ends at byte 0, before its start 4"],
    );
}

#[test]
fn dtype_and_shape_disagree_with_the_byte_count() {
    let cases =
        [("F32", "[3]", 12), ("BF16", "[3]", 6), ("F4", "[3]", 2), ("U8", "[]", 1), ("F64", "[0,3]", 0)];
    for (dtype, shape, expected) in cases {
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,5]}}}}"#);
        check_header(
            &header,
            5,
            &[&format!("{dtype} "), &format!("takes {expected} bytes, its offsets give 5")],
        );
    }
}

#[test]
fn unsupported_dtype_is_an_error_only_when_asked_for() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                     "b":{"dtype":"I64","shape":[1],"data_offsets":[4,12]},
                     "c":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[12,14]},
                     "d":{"dtype":"F3_NEW","shape":[2],"data_offsets":[14,15]}}"#;
    let dir = folder(&[("model.safetensors", &file(header, 15))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.tensor("a").is_ok());
    for (name, dtype) in [("b", "I64"), ("c", "F8_E4M3"), ("d", "F3_NEW")] {
        assert_eq!(checkpoint.get(name).unwrap().tensor_dtype(), None);
        let message = error_of(checkpoint.tensor(name));
        check_message(
            &message,
            &["model.safetensors: ", &format!("{name:?} is {dtype}"), "expected F32, F16, BF16"],
        );
    }
}

/// A file with one tensor of four bytes, `a`, and a line about it.
fn packed(dtype: &str, line: &str) -> Vec<u8> {
    let shape = if dtype == "F32" { 1 } else { 4 };
    let header = format!(
        r#"{{"__metadata__":{{"a":"{line}"}},"a":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[0,4]}}}}"#
    );
    file(&header, 4)
}

#[test]
fn packed_bytes_are_no_numbers() {
    let dir = folder(&[("model.safetensors", &packed("U8", "kanana q4 v7 3x2"))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let info = checkpoint.get("a").unwrap();
    assert_eq!((info.dtype, info.shape, info.bytes, info.tensor_dtype()), ("q4", &[3, 2][..], 4, None));
    assert!(info.is_quantised() && info.packing.unwrap().version == 7);
    assert_eq!(checkpoint.packed("a").unwrap().shape(), [4], "as the file has them");
    let message = error_of(checkpoint.tensor("a"));
    check_message(&message, &["model.safetensors: ", "tensor \"a\" is packed as q4"]);
}

#[test]
fn packed_line_that_is_broken() {
    for line in ["kanana", "kanana q4 v1 3", "kanana q4 v-1 3x2", "kanana q4 v1 3x2 and more"] {
        check_bytes(&packed("U8", line), &["tensor \"a\" is packed, but as", line, "kanana q4 v1 8064x1792"]);
    }
    check_bytes(&packed("F32", "kanana q4 v1 3x2"), &["tensor \"a\" is said to be packed, but is F32"]);
    check_bytes(&packed("I8", "kanana q4 v1 3x2"), &["but is I8, expected U8"]);
    let dir = folder(&[("model.safetensors", &packed("F32", "weights of a bird"))]);
    assert!(Checkpoint::open(dir.path()).unwrap().tensor("a").is_ok(), "lines of others are theirs");
}

#[test]
fn tensor_that_is_not_there() {
    let dir = folder(&[("model.safetensors", &shard("a"))]);
    let message = error_of(Checkpoint::open(dir.path()).unwrap().tensor("b"));
    check_message(&message, &[&dir.path().display().to_string(), "no tensor \"b\""]);
}

#[test]
fn unreadable_path_is_named() {
    let dir = folder(&[("model.safetensors", &shard("a"))]);
    let inside = dir.path().join("model.safetensors").join("deeper");
    check_message(&error_of(Checkpoint::open(Path::new(&inside))), &["deeper: no such folder"]);
}
