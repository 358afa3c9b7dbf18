//! GGUF, the file format of llama.cpp: one file with metadata, tokenizer and tensors, most of them quantised.
//!
//! [`GgufFile`] is a checked, mapped file; [`crate::Checkpoint::open`] on its path gives its tensors under Hugging Face's
//! names, in Hugging Face's order, as numbers. [`config_json`], [`tokenizer_json`] and [`tokenizer_config_json`] give
//! what a folder has in files of those names. [`Export`] writes a file that llama.cpp loads.
//!
//! It knows the names, keys and conventions of four architectures (llama, which includes Mixtral; qwen2moe; qwen3;
//! qwen3moe) and not what they compute. It refuses big-endian files, split files and arrays of arrays.
//! Tests: `cargo test -p kanana-checkpoint gguf` and `cargo test -p kanana-checkpoint --test gguf`.

mod coding;
mod config;
mod dequantize;
mod describe;
mod error;
mod export;
mod header;
mod metadata;
mod names;
mod quantize;
mod rope_factors;
mod tokenizer;
mod types;
mod vocabulary;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

pub(crate) use coding::{Coding, Encoded, decoded_dtype};
pub use config::config_json;
pub use error::GgufError;
pub use export::{Export, GgufFormat, Tokenizing};
pub use header::{GgufHeader, GgufTensor, parse_gguf_header};
pub use metadata::{Metadata, MetadataValue};
pub(crate) use names::{Naming, Piece};
pub(crate) use rope_factors::ROPE_FACTORS;
pub use tokenizer::{tokenizer_config_json, tokenizer_json};
pub use types::GgmlType;
pub use write::{GgufSpec, save_gguf};

use crate::Result;
use crate::checkpoint::map_file;

/// An open GGUF file, checked when it was opened.
pub struct GgufFile {
    path: PathBuf,
    map: Arc<Mmap>,
    header: GgufHeader,
}

impl GgufFile {
    /// Maps a file and checks its header.
    ///
    /// Errors: those of [`parse_gguf_header`], [`GgufError::Split`], and files that cannot be read.
    /// Cost: reads the header only.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let map = map_file(path)?;
        let header = parse_gguf_header(path, &map, map.len() as u64)?;
        let file = GgufFile { path: path.into(), map: Arc::new(map), header };
        match file.metadata().integer("split.count")? {
            Some(parts) if parts > 1 => Err(file.metadata().wrong(GgufError::Split(parts))),
            _ => Ok(file),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the header says.
    pub fn header(&self) -> &GgufHeader {
        &self.header
    }

    /// The metadata: what the model is, and its tokenizer.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata { file: &self.path, bytes: &self.map, values: &self.header.metadata }
    }

    pub(crate) fn map(&self) -> &Arc<Mmap> {
        &self.map
    }

    /// The elements of a tensor as f32, by its name in the file and in the file's order of rows.
    pub(crate) fn values(&self, name: &str, tensor: &GgufTensor) -> Result<Vec<f32>> {
        let coding = Coding { ggml_type: tensor.ggml_type, heads: None };
        let data = &self.map[tensor.bytes.clone()];
        let decoded =
            coding.decode(&Encoded { file: &self.path, tensor: name, shape: &tensor.shape, data })?;
        decoded
            .to_f32_vec()
            .map_err(|source| self.metadata().wrong(GgufError::Tensor { tensor: name.to_owned(), source }))
    }
}
