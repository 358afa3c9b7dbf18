//! Bytes to named tensors and back: Hugging Face folders of safetensors files, and GGUF files.
//!
//! [`Checkpoint`] reads either through memory maps and never trusts it: every offset is checked before a tensor is
//! handed out. [`save`] writes a folder and [`gguf`] a file, streaming and atomically. It refuses to know what an
//! architecture computes (of some it knows what GGUF calls their tensors), text, and formats that run code when they
//! are loaded (pickle). Matrices packed by the kernels are bytes with a line of [`Packing`] here.
//! Tests: `cargo test -p kanana-checkpoint`.
//!
//! Out of scope: a file that somebody truncates or rewrites in place while it is mapped. The operating system answers
//! a read beyond the new end with SIGBUS, and no check made at opening time can prevent that. Replacing a file by
//! renaming another over it, as [`save`] and the Hub's tools do, is safe: the map keeps the old one.
#![allow(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!(
    "safetensors and GGUF are little-endian, and tensors are mapped as they are: big-endian machines need a port"
);

mod checkpoint;
mod error;
pub mod gguf;
mod header;
mod index;
mod packing;
mod save;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use error::{CheckpointError, Result};
pub use header::{Entry, Header, MAX_HEADER_BYTES, parse_header};
pub use packing::Packing;
pub use save::{SaveOptions, TensorSpec, save};
