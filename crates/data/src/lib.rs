//! Corpora, from files to batches of tokens.
//!
//! - [`read`]: rows of JSONL, text and Parquet files, plain or compressed.
//! - [`Document`]: a text, or a conversation of which the assistant's tokens are learnt.
//! - [`ShardWriter`], [`Shards`]: tokens on disk, with an index and checksums.
//! - [`Mixture`]: what a stage of training reads, in an order that follows from a seed, from any position on.
//!
//! It knows nothing of tensors and models. Tests: `cargo test -p kanana-data`.

mod document;
mod error;
mod mixture;
pub mod read;
mod shards;

pub use document::{Document, Encoder, Fields, IGNORED, Template, Tokens};
pub use error::{DataError, Result};
pub use mixture::{Mixture, MixtureState, Piece, Source};
pub use shards::{ShardInfo, ShardWriter, Shards};
