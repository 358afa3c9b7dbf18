//! What a good folder gives: views of the mapped file, in the order of names, released when asked.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::fs;
use std::path::Path;

use kanana_checkpoint::Checkpoint;
use kanana_tensor::{DType, bf16};
use tempfile::TempDir;

fn write(path: &Path, header: &str, data: &[u8]) {
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    fs::write(path, bytes).unwrap();
}

#[test]
fn single_file() {
    let dir = TempDir::new().unwrap();
    let header = r#"{"__metadata__":{"format":"pt"},
        "norm.weight":{"dtype":"F32","shape":[2],"data_offsets":[6,14]},
        "empty":{"dtype":"F32","shape":[0,4],"data_offsets":[6,6]},
        "embed":{"dtype":"BF16","shape":[3,1],"data_offsets":[0,6]}}"#;
    // An even header length puts the f32 tensor at 8 + even + 6, off a multiple of four for one of two lengths.
    for padding in ["", "  "] {
        let header = format!("{header}{}{padding}", " ".repeat(header.len() % 2));
        let data: Vec<u8> = [0x80, 0x3f, 0, 0xc0, 0, 0]
            .into_iter()
            .chain([1.5f32, -2.25].map(f32::to_le_bytes).concat())
            .collect();
        write(&dir.path().join("model.safetensors"), &header, &data);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();

        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["embed", "empty", "norm.weight"]);
        assert_eq!(checkpoint.total_bytes(), 14);
        assert_eq!(checkpoint.metadata()["format"], "pt");
        assert_eq!(checkpoint.files().collect::<Vec<_>>(), [dir.path().join("model.safetensors")]);
        let info = checkpoint.get("embed").unwrap();
        assert_eq!((info.dtype, info.shape, info.bytes), ("BF16", &[3, 1][..], 6));
        assert_eq!(info.tensor_dtype(), Some(DType::BF16));
        assert!(checkpoint.get("nothing").is_none());

        let embed = checkpoint.tensor("embed").unwrap();
        let norm = checkpoint.tensor("norm.weight").unwrap();
        drop(checkpoint);
        assert_eq!(embed.as_slice::<bf16>().unwrap(), [1.0, -2.0, 0.0].map(bf16::from_f32));
        assert_eq!(norm.as_slice::<f32>().unwrap(), [1.5, -2.25]);
    }
}

#[test]
fn shards_and_tensors_beyond_the_index() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("one"), r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[7]);
    let two = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"c":{"dtype":"U8","shape":[],"data_offsets":[1,2]}}"#;
    write(&dir.path().join("two"), two, &[8, 9]);
    fs::write(dir.path().join("model.safetensors.index.json"), r#"{"weight_map":{"b":"one","a":"two"}}"#)
        .unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let read = |name| checkpoint.tensor(name).unwrap().as_slice::<u8>().unwrap()[0];
    assert_eq!(checkpoint.names().map(read).collect::<Vec<_>>(), [8, 7, 9]);
    assert_eq!(checkpoint.get("b").unwrap().file, dir.path().join("one"));
}

/// Resident bytes of the map of `file`, by the kernel.
#[cfg(target_os = "linux")]
fn resident(file: &Path) -> usize {
    let name = file.canonicalize().unwrap().display().to_string();
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let rss =
        maps.lines().skip_while(|line| !line.ends_with(&name)).find(|line| line.starts_with("Rss:")).unwrap();
    rss.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn release_gives_memory_back_and_views_stay_valid() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    let len = 8 << 20;
    let data: Vec<u8> = (0..2 * len).map(|i| (i / 4096) as u8).collect();
    let header = format!(
        r#"{{"a":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}},"b":{{"dtype":"U8","shape":[{len}],"data_offsets":[{len},{}]}}}}"#,
        2 * len
    );
    write(&path, &header, &data);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let (a, b) = (checkpoint.tensor("a").unwrap(), checkpoint.tensor("b").unwrap());
    assert!(a.as_slice::<u8>().unwrap() == &data[..len] && b.as_slice::<u8>().unwrap() == &data[len..]);
    assert!(resident(&path) >= 2 * len);
    checkpoint.release("a");
    let left = resident(&path);
    // All of b stays, and of a the ends that are not whole 64 KiB pages.
    assert!(left >= len && left <= len + (256 << 10), "{left}");
    assert!(a.as_slice::<u8>().unwrap() == &data[..len]);
    checkpoint.release("nothing");
}
