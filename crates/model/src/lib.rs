//! The one transformer: every member of the family is a [`Config`] of it.
//!
//! [`Transformer`] speaks to the machine through `kanana_kernels::Kernels` only, on packed tokens with no batch axis; a
//! [`Batch`] says which rows belong to which sequence. It knows no text, no sampling and no HTTP.
//! Tests: `cargo test -p kanana-model`.
//!
//! Legend of all files: T packed tokens, D hidden, N query heads, K kv heads, H head_dim, F ffn, V vocabulary,
//! X experts, L layers, S sequences.

mod attention;
mod batch;
mod config;
pub mod cost;
mod error;
mod feed_forward;
mod kv_cache;
mod linear;
mod load;
mod names;
mod presets;
mod random;
mod rope;
mod stored;
mod transformer;

pub use batch::{Batch, Step};
pub use config::{Config, Family, GenerationDefaults, Mixture, RopeScaling};
pub use error::{ModelError, Result};
pub use kv_cache::KvCache;
pub use linear::LowRank;
pub use load::{LoadOptions, Parameter, Source};
pub use names::{TensorReport, compare_tensors, expected_tensors, optional_tensors, weight_format};
pub use presets::{Evidence, Preset, preset, presets};
pub use random::{Random, random_tensor};
pub use rope::{inverse_frequencies, rope_table};
pub use stored::{check_stored, numbers};
pub use transformer::Transformer;
