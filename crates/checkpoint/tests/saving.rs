//! Writing: what is written is what is read, by us and by the reference implementation of the format; and a save that
//! fails leaves nothing behind.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use kanana_checkpoint::{
    Checkpoint, CheckpointError, Header, Packing, SaveOptions, TensorSpec, parse_header, save,
};
use kanana_tensor::{DType, Tensor, bf16, f16};
use proptest::prelude::*;
use tempfile::TempDir;

type Tensors = BTreeMap<String, Tensor>;

fn specs(tensors: &Tensors) -> Vec<TensorSpec> {
    tensors.iter().map(|(name, tensor)| TensorSpec::of(name, tensor)).collect()
}

fn save_all(dir: &Path, tensors: &Tensors, options: &SaveOptions) -> Result<Vec<String>, CheckpointError> {
    let files = save(dir, &specs(tensors), |name| Ok::<_, CheckpointError>(tensors[name].clone()), options)?;
    Ok(files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect())
}

fn shards_of(bytes: u64) -> SaveOptions {
    SaveOptions { max_shard_bytes: Some(bytes), ..SaveOptions::default() }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn floats(n: usize) -> Tensor {
    Tensor::from_slice(&[n], &vec![1.0f32; n]).unwrap()
}

fn check_same(dir: &Path, tensors: &Tensors) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    assert!(checkpoint.names().eq(tensors.keys()));
    for (name, tensor) in tensors {
        let read = checkpoint.tensor(name).unwrap();
        assert_eq!((read.dtype(), read.shape()), (tensor.dtype(), tensor.shape()));
        assert_eq!(read.as_bytes().unwrap(), tensor.as_bytes().unwrap(), "{name}");
    }
}

fn any_tensor() -> impl Strategy<Value = Tensor> {
    let dtype = prop::sample::select(vec![DType::F32, DType::F16, DType::BF16, DType::U32, DType::U8]);
    (dtype, prop::collection::vec(0usize..6, 0..4)).prop_flat_map(|(dtype, shape)| {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        prop::collection::vec(any::<u8>(), bytes).prop_map(move |data| {
            fn filled<E: kanana_tensor::Element, const N: usize>(
                shape: &[usize],
                data: &[u8],
                read: fn([u8; N]) -> E,
            ) -> Tensor {
                let elements: Vec<E> = data.as_chunks().0.iter().map(|&chunk| read(chunk)).collect();
                Tensor::from_slice(shape, &elements).unwrap()
            }
            match dtype {
                DType::F32 => filled(&shape, &data, f32::from_le_bytes),
                DType::F16 => filled(&shape, &data, f16::from_le_bytes),
                DType::BF16 => filled(&shape, &data, bf16::from_le_bytes),
                DType::U32 => filled(&shape, &data, u32::from_le_bytes),
                DType::U8 => filled(&shape, &data, u8::from_le_bytes),
            }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Bitwise, NaN payloads included, in any number of shards, with any names.
    #[test]
    fn what_is_written_is_read(
        tensors in prop::collection::btree_map(any::<String>(), any_tensor(), 0..8),
        metadata in prop::collection::btree_map(any::<String>(), any::<String>(), 0..3),
        limit in prop::option::of(0u64..400),
    ) {
        prop_assume!(!tensors.contains_key("__metadata__"));
        let dir = TempDir::new().unwrap();
        let options = SaveOptions { metadata: metadata.clone(), max_shard_bytes: limit };
        let files = save_all(dir.path(), &tensors, &options).unwrap();
        check_same(dir.path(), &tensors);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        prop_assert_eq!(checkpoint.metadata(), &metadata);
        for file in files.iter().filter(|file| file.ends_with("safetensors")) {
            let bytes = fs::read(dir.path().join(file)).unwrap();
            for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
                prop_assert_eq!(view.shape(), tensors[&name].shape());
                prop_assert_eq!(view.data(), tensors[&name].as_bytes().unwrap());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in any::<u64>()) {
        let _ = parse_header(Path::new("f"), &bytes, bytes.len() as u64);
        let _ = parse_header(Path::new("f"), &bytes, cut);
        let with_length = [&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat();
        let _ = parse_header(Path::new("f"), &with_length, with_length.len() as u64);
    }

    /// Numbers, dtypes and lengths close to good ones: whatever we accept, the reference accepts, with the same layout.
    #[test]
    fn no_more_is_accepted_than_by_the_reference(
        tensors in prop::collection::vec((0usize..3, 0usize..4, 0usize..4, -1i64..2), 0..4),
        slack in -1i64..2,
    ) {
        let (mut header, mut end) = (serde_json::Map::new(), 0i64);
        for (i, &(dtype, rows, columns, shift)) in tensors.iter().enumerate() {
            let (dtype, size) = [("F32", 4), ("BF16", 2), ("F4", 1)][dtype];
            // Most shifts are harmless zeros, so that whole files are accepted often.
            let begin = end + if i % 2 == 1 { shift } else { 0 };
            end = begin + (rows * columns * size) as i64 / if dtype == "F4" { 2 } else { 1 };
            let entry = serde_json::json!({"dtype": dtype, "shape": [rows, columns], "data_offsets": [begin, end]});
            header.insert(format!("t{i}"), entry);
        }
        let text = serde_json::Value::Object(header).to_string();
        let mut bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        bytes.resize((bytes.len() as i64 + end + slack).max(0) as usize, 0);

        let ours = parse_header(Path::new("f"), &bytes, bytes.len() as u64);
        let theirs = safetensors::SafeTensors::deserialize(&bytes);
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs);
        if let (Ok(Header { tensors, .. }), Ok(theirs)) = (ours, theirs) {
            for (name, view) in theirs.tensors() {
                prop_assert_eq!(&bytes[tensors[&name].bytes.clone()], view.data());
            }
        }
    }
}

#[test]
fn shards_are_named_and_indexed_as_in_the_python_tools() {
    let dir = TempDir::new().unwrap();
    let tensors: Tensors = ["a", "b", "c"].map(|name| (name.to_owned(), floats(10))).into();
    let files = save_all(dir.path(), &tensors, &shards_of(80)).unwrap();
    let expected = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(files, expected);
    assert_eq!(entries(dir.path()), expected);
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join(expected[2])).unwrap()).unwrap();
    let map = serde_json::json!({"a": expected[0], "b": expected[0], "c": expected[1]});
    assert_eq!(index, serde_json::json!({"metadata": {"total_size": 120}, "weight_map": map}));
}

#[test]
fn data_start_on_a_cache_line() {
    let dir = TempDir::new().unwrap();
    save_all(dir.path(), &[("a".to_owned(), floats(3))].into(), &SaveOptions::default()).unwrap();
    let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    assert_eq!((bytes.len() - 12) % 64, 0);
}

#[cfg(unix)]
#[test]
fn files_have_ordinary_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    save_all(dir.path(), &Tensors::new(), &SaveOptions::default()).unwrap();
    fs::write(dir.path().join("other"), "").unwrap();
    let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("model.safetensors"), mode("other"));
}

#[test]
fn an_existing_checkpoint_is_not_mixed_with_another() {
    for (first, second) in [(None, Some(4)), (Some(4), None)] {
        let dir = TempDir::new().unwrap();
        let tensors: Tensors = ["a", "b"].map(|name| (name.to_owned(), floats(1))).into();
        save_all(dir.path(), &tensors, &SaveOptions { max_shard_bytes: first, ..Default::default() })
            .unwrap();
        let error =
            save_all(dir.path(), &tensors, &SaveOptions { max_shard_bytes: second, ..Default::default() });
        assert!(matches!(error, Err(CheckpointError::AlreadyThere(_))));
        check_same(dir.path(), &tensors);
    }
}

/// Saving these announcements fails with this message, and leaves nothing behind.
fn check_refused(specs: &[TensorSpec], expected: &str) {
    let dir = TempDir::new().unwrap();
    let message = save(dir.path(), specs, |_| Ok::<_, CheckpointError>(floats(2)), &shards_of(8))
        .unwrap_err()
        .to_string();
    assert!(message.contains(expected), "{message}");
    assert_eq!(entries(dir.path()), [""; 0]);
}

#[test]
fn bad_announcements() {
    let spec = |name: &str, n| TensorSpec::of(name, &floats(n));
    check_refused(&[spec("a", 2), spec("a", 2)], "\"a\" is given twice");
    check_refused(&[spec("__metadata__", 2)], "reserved");
    check_refused(&[spec("a", 2), spec("b", 3)], "\"b\" was announced as f32 [3] and came as f32 [2]");
}

#[test]
fn errors_of_the_source_pass_through() {
    #[derive(Debug, PartialEq)]
    struct Stopped;
    impl From<CheckpointError> for Stopped {
        fn from(error: CheckpointError) -> Self {
            panic!("{error}")
        }
    }
    let dir = TempDir::new().unwrap();
    let specs = [TensorSpec::of("a", &floats(2))];
    assert_eq!(save(dir.path(), &specs, |_| Err(Stopped), &SaveOptions::default()), Err(Stopped));
    assert_eq!(entries(dir.path()), [""; 0]);
}

const FULL_DISK_FOLDER: &str = "KANANA_TEST_FULL_DISK_FOLDER";

#[test]
#[ignore = "needs a process of its own, under a limit: the next two tests run it so"]
fn full_disk_child() {
    let dir = std::env::var_os(FULL_DISK_FOLDER).unwrap();
    let dir = Path::new(&dir);
    let tensors: Tensors = ["a", "b", "c"].map(|name| (name.to_owned(), floats(25_000))).into();
    let error = save_all(dir, &tensors, &shards_of(100_000)).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, CheckpointError::DiskFull { needed: 300_000, .. }), "{message}");
    assert!(
        message.contains("no room on the disk") && message.contains("-of-00003.safetensors: "),
        "{message}"
    );
    assert_eq!(entries(dir), [""; 0]);
    println!("the save was refused");
}

/// Runs [`full_disk_child`] with `dir` through a shell command that ends by executing its arguments.
fn run_full_disk_child(dir: &Path, shell: &[&str], script: &str) {
    let output = Command::new(shell[0])
        .args(&shell[1..])
        .args([script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "full_disk_child", "--ignored", "--nocapture"])
        .env(FULL_DISK_FOLDER, dir)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("the save was refused"),
        "{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[cfg(unix)]
#[test]
fn file_size_limit_reached() {
    let dir = TempDir::new().unwrap();
    // 64 or 128 blocks of 512 or 1024 bytes: below one shard either way. Ignoring the signal leaves the error code.
    run_full_disk_child(dir.path(), &["sh", "-c"], r#"trap "" XFSZ; ulimit -f 64; exec "$@""#);
}

#[cfg(target_os = "linux")]
#[test]
fn disk_full() {
    let dir = TempDir::new().unwrap();
    let mount = |then: &str| format!(r#"mount -t tmpfs -o size=192k tmpfs "${FULL_DISK_FOLDER}" && {then}"#);
    let unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"];
    let can_mount = Command::new(unshare[0])
        .args(&unshare[1..])
        .arg(mount("true"))
        .env(FULL_DISK_FOLDER, dir.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if !can_mount {
        println!("skipped: a tmpfs cannot be mounted here");
        return;
    }
    run_full_disk_child(dir.path(), &unshare, &mount(r#"exec "$@""#));
}

#[test]
fn packed_tensors_are_known_in_every_shard() {
    let dir = TempDir::new().unwrap();
    let packings = [("a", "q4", [33, 70]), ("b", "q8", [5, 6])].map(|(name, format, shape)| {
        (name.to_owned(), Packing { format: format.to_owned(), version: 3, shape })
    });
    let tensors: BTreeMap<String, Tensor> =
        ["a", "b", "c"].map(|name| (name.to_owned(), Tensor::from_slice(&[2, 4], &[7u8; 8]).unwrap())).into();
    let metadata = packings.iter().map(|(name, packing)| (name.clone(), packing.to_string())).collect();
    let files = save_all(dir.path(), &tensors, &SaveOptions { metadata, ..shards_of(8) }).unwrap();
    assert_eq!(files.len(), 4, "a shard for each, and the index");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for (name, packing) in &packings {
        assert_eq!(checkpoint.get(name).unwrap().packing, Some(packing));
        assert_eq!(checkpoint.packed(name).unwrap().as_bytes().unwrap(), [7; 8]);
    }
    assert!(checkpoint.get("c").unwrap().packing.is_none() && checkpoint.tensor("c").is_ok());
}
