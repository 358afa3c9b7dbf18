//! Writing a GGUF file: everything that must be known of all tensors first, then their values as they come.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;

use super::error::GgufError;
use super::header::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC};
use super::metadata::{MetadataValue, write_text};
use super::quantize::{WRITABLE, quantize};
use super::types::GgmlType;
use crate::save::{is_there, sync_folder, temporary_file, write_failed};
use crate::{CheckpointError, Result};

const VERSION: u32 = 3;
/// The most bytes that a name has in ggml, where a zero ends it.
const MAX_NAME: usize = 63;
/// Values that are quantised at once, on all cores; a row is taken whole.
const CHUNK: usize = 1 << 20;

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufSpec {
    /// Its name.
    pub name: String,
    /// How its elements are stored; rows must be whole blocks.
    pub ggml_type: GgmlType,
    /// The extent of every dimension, outermost first.
    pub shape: Vec<usize>,
}

impl GgufSpec {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        self.ggml_type.bytes_of(self.elements()) as u64
    }

    fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// Takes the values of a tensor, some whole rows at a time, in order.
pub type Sink<'a> = dyn FnMut(&[f32]) -> Result<()> + 'a;

/// Writes a GGUF file at `path`, whose folder must exist.
///
/// `fill` hands over the values of each tensor when its turn comes, in as many calls of the sink as it likes, so that
/// a part of one tensor at a time is enough for a model that is larger than memory. The file is written under a
/// temporary name, synced to the disk and renamed: a reader sees the whole file or none.
///
/// Errors: [`CheckpointError::AlreadyThere`], [`CheckpointError::DiskFull`], [`CheckpointError::Write`], and
/// [`CheckpointError::Gguf`] for names, shapes and values that the format cannot hold; those of `fill`.
pub fn save_gguf<E, F>(
    path: &Path,
    metadata: &[(String, MetadataValue)],
    specs: &[GgufSpec],
    mut fill: F,
) -> Result<(), E>
where
    E: From<CheckpointError>,
    F: FnMut(&GgufSpec, &mut Sink<'_>) -> Result<(), E>,
{
    if is_there(path) {
        return Err(CheckpointError::AlreadyThere(path.into()).into());
    }
    let problem = |problem| CheckpointError::Gguf { file: path.into(), problem };
    let header = header(metadata, specs).map_err(problem)?;
    let needed = header.len() as u64 + specs.iter().map(|spec| padded(spec.bytes())).sum::<u64>();
    let failed = |source| write_failed(path, needed, source);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));

    let mut file = BufWriter::with_capacity(1 << 20, temporary_file(dir).map_err(failed)?);
    file.write_all(&header).map_err(failed)?;
    let mut blocks = Vec::new();
    for spec in specs {
        let mut written = 0;
        let wrong_count = |got| {
            let (tensor, expected) = (spec.name.clone(), spec.elements());
            problem(GgufError::NotAsAnnounced { tensor, expected, got })
        };
        let mut sink = |values: &[f32]| -> Result<()> {
            written += values.len();
            if !values.len().is_multiple_of(spec.row_len()) || written > spec.elements() {
                return Err(wrong_count(written));
            }
            for chunk in values.chunks(CHUNK.next_multiple_of(spec.row_len().max(1))) {
                check_storable(spec, chunk).map_err(problem)?;
                encode(spec.ggml_type, chunk, &mut blocks);
                file.write_all(&blocks).map_err(failed)?;
            }
            Ok(())
        };
        fill(spec, &mut sink)?;
        if written != spec.elements() {
            return Err(wrong_count(written).into());
        }
        let padding = padded(spec.bytes()) - spec.bytes();
        file.write_all(&vec![0; padding as usize]).map_err(failed)?;
    }
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    sync_folder(dir).map_err(failed)?;
    Ok(())
}

fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(DEFAULT_ALIGNMENT)
}

/// Everything before the data, padded to where they start.
fn header(metadata: &[(String, MetadataValue)], specs: &[GgufSpec]) -> Result<Vec<u8>, GgufError> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((specs.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    let mut keys = BTreeSet::from([ALIGNMENT_KEY]);
    for (key, value) in metadata {
        if !keys.insert(key) {
            return Err(GgufError::DuplicateKey(key.clone()));
        }
        write_text(key, &mut out);
        value.write(&mut out);
    }
    let (mut names, mut offset) = (BTreeSet::new(), 0);
    for spec in specs {
        check(spec)?;
        if !names.insert(&spec.name) {
            return Err(GgufError::DuplicateTensor(spec.name.clone()));
        }
        write_text(&spec.name, &mut out);
        out.extend((spec.shape.len() as u32).to_le_bytes());
        spec.shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(spec.ggml_type.id().to_le_bytes());
        out.extend(u64::to_le_bytes(offset));
        offset += padded(spec.bytes());
    }
    out.resize(padded(out.len() as u64) as usize, 0);
    Ok(out)
}

fn check(spec: &GgufSpec) -> Result<(), GgufError> {
    let tensor = spec.name.clone();
    if tensor.len() > MAX_NAME {
        return Err(GgufError::LongName(tensor));
    }
    if !WRITABLE.contains(&spec.ggml_type) {
        return Err(GgufError::NotWritable { tensor, got: spec.ggml_type.name() });
    }
    let expected = spec.ggml_type.block_len();
    match spec.row_len() % expected {
        0 => Ok(()),
        _ => {
            let (ggml_type, got) = (spec.ggml_type.name(), spec.row_len() as u64);
            Err(GgufError::RowLength { tensor, ggml_type, expected, got })
        }
    }
}

/// Every value must be a number; and, where it or its scale is stored as f16, in the range of that.
fn check_storable(spec: &GgufSpec, values: &[f32]) -> Result<(), GgufError> {
    let limit = match spec.ggml_type {
        GgmlType::F32 | GgmlType::BF16 => return Ok(()),
        _ => kanana_tensor::f16::MAX.to_f32(),
    };
    // NaN is not below the limit either.
    let storable = |x: &f32| x.abs() <= limit;
    match values.par_iter().copied().find_first(|x| !storable(x)) {
        Some(value) => {
            let (tensor, ggml_type) = (spec.name.clone(), spec.ggml_type.name());
            Err(GgufError::Unstorable { tensor, value, ggml_type })
        }
        None => Ok(()),
    }
}

/// The blocks of whole rows, on all cores; the result does not depend on how many there are.
fn encode(ggml_type: GgmlType, values: &[f32], blocks: &mut Vec<u8>) {
    // A multiple of every block length.
    const AT_ONCE: usize = 1 << 13;
    blocks.clear();
    blocks.resize(ggml_type.bytes_of(values.len()), 0);
    let parts = blocks.par_chunks_mut(ggml_type.bytes_of(AT_ONCE)).zip(values.par_chunks(AT_ONCE));
    parts.for_each(|(blocks, values)| quantize(ggml_type, values, blocks));
}
