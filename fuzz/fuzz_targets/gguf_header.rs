//! Any bytes are a GGUF header or an error; and what is accepted lies inside the file, apart.
#![no_main]

use std::path::Path;

use kanana_checkpoint::gguf::parse_gguf_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|rest: &[u8]| {
    // Raw, as a file; and behind a right start, which the fuzzer need not guess; with some lengths of data.
    check(rest, rest.len() as u64);
    let bytes = [b"GGUF\x03\0\0\0", rest].concat();
    for data in [0, 32, 4096, u64::MAX - bytes.len() as u64] {
        check(&bytes, bytes.len() as u64 + data);
    }
});

fn check(bytes: &[u8], file_len: u64) {
    let Ok(header) = parse_gguf_header(Path::new("model.gguf"), bytes, file_len) else { return };
    let mut ranges: Vec<_> = header.tensors.values().map(|tensor| tensor.bytes.clone()).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let reached = ranges.iter().fold(0, |reached, range| {
        assert!(range.start >= reached && range.end >= range.start);
        range.end
    });
    assert!(reached as u64 <= file_len);
}
