//! The vocabulary: every operation the transformer is made of, and the machines that speak it.
//!
//! [`Kernels`] is the whole of it. [`Reference`] is the oracle, naive f32 loops; [`Cpu`] is the fast one; both are
//! compared op by op in `tests/ops.rs`. Every op has one folder under `ops/` with its contract, its reference and its
//! CPU implementation side by side. This crate knows no architecture and no file.
//! Tests: `cargo test -p kanana-kernels`.

mod cpu;
mod error;
mod ops;
mod reference;
pub mod runtime;
mod vocabulary;

pub use cpu::{Cpu, CpuOptions};
pub use error::{KernelError, Result};
pub use ops::attention::{AttentionCall, KeyValues, KvFormat, Spans};
pub use ops::cross_entropy::CrossEntropy;
pub use ops::experts::Expert;
pub use ops::linear::packed::Packed;
pub use ops::linear::{Format, Weight};
pub use ops::rope::RopeTable;
pub use ops::route::{Gate, RouterLosses, RouterOptions, Routing};
pub use reference::Reference;
pub use vocabulary::Kernels;
