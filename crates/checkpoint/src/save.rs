//! Writing a checkpoint: the shapes first, then one tensor after the other, then the names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use kanana_tensor::{DType, Tensor};
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use crate::header::{LENGTH_BYTES, MAX_HEADER_BYTES, METADATA_KEY, written_dtype};
pub(crate) use crate::index::is_there;
use crate::index::{INDEX_FILE, SINGLE_FILE};
use crate::{CheckpointError, Result};

/// The data start at a multiple of a cache line, and so does every tensor after tensors of whole lines.
const DATA_ALIGNMENT: u64 = 64;

/// A tensor that will be written: what must be known of all of them before the first byte.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// The extent of every dimension, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// What to announce for a tensor that is at hand.
    pub fn of(name: &str, tensor: &Tensor) -> Self {
        TensorSpec { name: name.to_owned(), dtype: tensor.dtype(), shape: tensor.shape().to_vec() }
    }

    fn bytes(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product::<u64>() * self.dtype.size() as u64
    }
}

/// How to write a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    /// Text to leave in every file; the Python tools expect `format: pt`.
    pub metadata: BTreeMap<String, String>,
    /// Start another file before the tensors of one exceed this, in bytes; one file when absent.
    pub max_shard_bytes: Option<u64>,
}

/// Writes a checkpoint into `dir`, which is made if needed, and returns the files written.
///
/// `fetch` gives each tensor in host memory when its turn comes, so that one tensor at a time is enough for a
/// checkpoint that is larger than memory. Every file is written under a temporary name, synced to the disk, and
/// renamed when all are whole, the index last: a reader sees the whole checkpoint or none.
///
/// Errors: [`CheckpointError::AlreadyThere`], [`CheckpointError::BadName`], [`CheckpointError::NotAsAnnounced`],
/// [`CheckpointError::DiskFull`], [`CheckpointError::Write`], [`CheckpointError::HeaderTooLarge`], and those of
/// `fetch`. Temporary files are removed.
pub fn save<E, F>(
    dir: &Path,
    specs: &[TensorSpec],
    fetch: F,
    options: &SaveOptions,
) -> Result<Vec<PathBuf>, E>
where
    E: From<CheckpointError>,
    F: FnMut(&str) -> Result<Tensor, E>,
{
    for name in [SINGLE_FILE, INDEX_FILE] {
        if is_there(&dir.join(name)) {
            return Err(CheckpointError::AlreadyThere(dir.into()).into());
        }
    }
    check_names(specs)?;
    let needed = specs.iter().map(TensorSpec::bytes).sum();
    let mut writer = Writer { dir, needed, options, fetch, files: Vec::new() };
    fs::create_dir_all(dir).map_err(|e| writer.failed(dir, e))?;

    let shards = split(specs, options.max_shard_bytes);
    let count = shards.len();
    let mut weight_map = Map::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let name = match count {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        weight_map.extend(specs[shard.clone()].iter().map(|spec| (spec.name.clone(), json!(name))));
        writer.write_shard::<E>(&name, &specs[shard])?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": needed }, "weight_map": weight_map });
        writer.write_file(INDEX_FILE, |file| file.write_all(format!("{index:#}\n").as_bytes()))?;
    }
    Ok(writer.publish()?)
}

/// Ranges of tensors, in the order given, none above `limit` bytes unless a single tensor is.
fn split(specs: &[TensorSpec], limit: Option<u64>) -> Vec<Range<usize>> {
    let limit = limit.unwrap_or(u64::MAX);
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0u64);
    for (i, spec) in specs.iter().enumerate() {
        if i > start && bytes.saturating_add(spec.bytes()) > limit {
            shards.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += spec.bytes();
    }
    shards.push(start..specs.len());
    shards
}

fn check_names(specs: &[TensorSpec]) -> Result<()> {
    let mut names = BTreeSet::from([METADATA_KEY]);
    match specs.iter().find(|spec| !names.insert(&spec.name)) {
        Some(spec) => Err(CheckpointError::BadName(spec.name.clone())),
        None => Ok(()),
    }
}

struct Writer<'a, F> {
    dir: &'a Path,
    needed: u64,
    options: &'a SaveOptions,
    fetch: F,
    files: Vec<(NamedTempFile, PathBuf)>,
}

impl<F> Writer<'_, F> {
    fn write_shard<E>(&mut self, name: &str, specs: &[TensorSpec]) -> Result<(), E>
    where
        E: From<CheckpointError>,
        F: FnMut(&str) -> Result<Tensor, E>,
    {
        // The widest elements first, so that each tensor starts at a multiple of its element size.
        let mut specs: Vec<&TensorSpec> = specs.iter().collect();
        specs.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.size()));
        let path = self.dir.join(name);
        let header = header(&path, &specs, &self.options.metadata)?;
        self.write_file(name, |file| file.write_all(&header))?;
        for spec in specs {
            let tensor = (self.fetch)(&spec.name)?;
            let bytes = checked_bytes(spec, &tensor)?;
            let (file, path) = self.files.last_mut().expect("write_file has added one: this is a bug");
            let written = file.write_all(bytes);
            let path = path.clone();
            written.map_err(|e| self.failed(&path, e))?;
        }
        Ok(())
    }

    /// Starts another temporary file that will be called `name`.
    fn write_file(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut NamedTempFile) -> io::Result<()>,
    ) -> Result<()> {
        let path = self.dir.join(name);
        let mut file = temporary_file(self.dir).map_err(|e| self.failed(&path, e))?;
        fill(&mut file).map_err(|e| self.failed(&path, e))?;
        self.files.push((file, path));
        Ok(())
    }

    /// Puts all files in their places.
    fn publish(mut self) -> Result<Vec<PathBuf>> {
        for (file, path) in &self.files {
            file.as_file().sync_all().map_err(|e| self.failed(path, e))?;
        }
        let mut paths = Vec::new();
        for (file, path) in std::mem::take(&mut self.files) {
            file.persist(&path).map_err(|e| self.failed(&path, e.error))?;
            paths.push(path);
        }
        sync_folder(self.dir).map_err(|e| self.failed(self.dir, e))?;
        Ok(paths)
    }

    fn failed(&self, file: &Path, source: io::Error) -> CheckpointError {
        write_failed(file, self.needed, source)
    }
}

/// A file in `dir` that disappears unless it gets a name.
pub(crate) fn temporary_file(dir: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".partial");
    #[cfg(unix)]
    {
        // Readable by others as far as the umask allows, like any file; the default is the owner alone.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}

/// Makes the names in a folder durable. That can be done on unix only; elsewhere they reach the disk in their own time.
pub(crate) fn sync_folder(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// The error of a write that failed, of a checkpoint of `needed` bytes.
pub(crate) fn write_failed(file: &Path, needed: u64, source: io::Error) -> CheckpointError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            CheckpointError::DiskFull { file: file.into(), needed, source }
        }
        _ => CheckpointError::Write { file: file.into(), source },
    }
}

/// The length field and the header, padded with spaces so that the data start aligned.
fn header(path: &Path, specs: &[&TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert(METADATA_KEY.to_owned(), json!(metadata));
    }
    let mut begin = 0;
    for spec in specs {
        let end = begin + spec.bytes();
        let entry =
            json!({ "dtype": written_dtype(spec.dtype), "shape": spec.shape, "data_offsets": [begin, end] });
        entries.insert(spec.name.clone(), entry);
        begin = end;
    }
    let text = Value::Object(entries).to_string();
    let total = (LENGTH_BYTES + text.len() as u64).next_multiple_of(DATA_ALIGNMENT);
    let length = total - LENGTH_BYTES;
    if length > MAX_HEADER_BYTES {
        return Err(CheckpointError::HeaderTooLarge {
            file: path.into(),
            got: length,
            limit: MAX_HEADER_BYTES,
        });
    }
    let mut header = length.to_le_bytes().to_vec();
    header.extend(text.as_bytes());
    header.resize(total as usize, b' ');
    Ok(header)
}

fn checked_bytes<'t>(spec: &TensorSpec, tensor: &'t Tensor) -> Result<&'t [u8]> {
    if tensor.dtype() != spec.dtype || tensor.shape() != spec.shape {
        return Err(CheckpointError::NotAsAnnounced {
            tensor: spec.name.clone(),
            expected: format!("{} {:?}", spec.dtype, spec.shape),
            got: format!("{} {:?}", tensor.dtype(), tensor.shape()),
        });
    }
    tensor.as_bytes().map_err(|source| CheckpointError::Tensor { tensor: spec.name.clone(), source })
}
