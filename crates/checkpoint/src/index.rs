//! Which files a folder's tensors are in: `model.safetensors`, or shards listed by `model.safetensors.index.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::{CheckpointError, Result};

/// The file of a checkpoint that is not sharded.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// The file that lists the shards.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// The files to open, with the tensors that each must hold (none are demanded of a single file).
pub(crate) type Layout = BTreeMap<PathBuf, Vec<String>>;

/// Finds the weights of a folder. As in transformers, a single file wins over an index beside it.
pub(crate) fn find_weights(dir: &Path) -> Result<Layout> {
    let metadata = fs::metadata(dir).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => CheckpointError::NoFolder(dir.into()),
        _ => CheckpointError::Read { file: dir.into(), source },
    })?;
    if !metadata.is_dir() {
        return Err(CheckpointError::NotAFolder(dir.into()));
    }
    if is_there(&dir.join(SINGLE_FILE)) {
        return Ok(BTreeMap::from([(dir.join(SINGLE_FILE), Vec::new())]));
    }
    if is_there(&dir.join(INDEX_FILE)) {
        return read_index(dir);
    }
    Err(match find_pickle(dir)? {
        Some(pickle) => CheckpointError::Pickle(pickle),
        None => CheckpointError::NoWeights(dir.into()),
    })
}

/// Whether the folder has an entry of this name, even a link to nothing: opening that gives the better error.
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn read_index(dir: &Path) -> Result<Layout> {
    let file = dir.join(INDEX_FILE);
    let text = fs::read(&file).map_err(|source| CheckpointError::Read { file: file.clone(), source })?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|source| CheckpointError::Index { file: file.clone(), source })?;

    let mut layout = Layout::new();
    let mut places: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (tensor, shard) in index.weight_map.0 {
        if !is_plain_file_name(&shard) {
            return Err(CheckpointError::ShardPath { index: file, tensor, shard });
        }
        let path = dir.join(&shard);
        if let Some(first) = places.insert(tensor.clone(), path.clone()) {
            return Err(CheckpointError::Duplicate { tensor, first, second: path });
        }
        layout.entry(path).or_default().push(tensor);
    }
    match layout.is_empty() {
        true => Err(CheckpointError::NoWeights(dir.into())),
        false => Ok(layout),
    }
}

/// Whether joining `name` to a folder stays in that folder, on every system.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    one && !name.contains(['/', '\\', ':', '\0'])
}

fn find_pickle(dir: &Path) -> Result<Option<PathBuf>> {
    let unreadable = |source| CheckpointError::Read { file: dir.into(), source };
    let mut pickles = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if ["bin", "pt", "pth", "ckpt", "pkl"].contains(&extension) {
            pickles.push(path);
        }
    }
    Ok(pickles.into_iter().min())
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The pairs of the weight map in file order: a map type would silently merge a name that is there twice.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a map from tensor names to file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(WeightMap(pairs))
    }
}
