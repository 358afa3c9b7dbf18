//! Any bytes are a header or an error; and what is accepted tiles the data of the file.
#![no_main]

use std::path::Path;

use kanana_checkpoint::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    // Raw, as a file; and behind a right length, with each of some lengths of data: the fuzzer need not guess those.
    check(text, text.len() as u64);
    let bytes = [&(text.len() as u64).to_le_bytes(), text].concat();
    for data in [0, 4, 16, u64::MAX - bytes.len() as u64] {
        check(&bytes, bytes.len() as u64 + data);
    }
});

fn check(bytes: &[u8], file_len: u64) {
    let Ok(header) = parse_header(Path::new("model.safetensors"), bytes, file_len) else { return };
    let mut ranges: Vec<_> = header.tensors.values().map(|entry| entry.bytes.clone()).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let reached = ranges.iter().fold(8 + header_len as usize, |reached, range| {
        assert!(range.start == reached && range.end >= range.start);
        range.end
    });
    assert_eq!(reached as u64, file_len);
}
