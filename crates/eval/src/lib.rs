//! The family's evaluation protocol: what is asked, how answers are read, how scores are made.
//!
//! - [`lm`]: one interface to whatever answers (log-likelihoods, generation), the engine in this process or an
//!   OpenAI-compatible server, and a journal that lets a killed run go on.
//! - [`tasks`]: one file for each family of tasks. A task turns rows into requests, and answers into an [`Outcome`].
//! - [`sandbox`]: programs that a model wrote run there and nowhere else.
//! - [`math`], [`ifeval`], [`judge`]: readers of answers.
//! - [`long_context`], [`embedding`]: needles in haystacks, RULER; similarity and retrieval.
//! - [`run`]: tasks to a folder of answers; [`report`]: what a run found, beside the published tables.
//!
//! It refuses to know how tokens are made. Where answers must be read the way a reference implementation reads them, its faults
//! included, the place says so. Tests: `cargo test -p kanana-eval`; those on real data need `../shared` and say when it is absent.

pub mod code;
pub mod datasets;
pub mod embedding;
mod error;
pub mod extract;
pub mod ifeval;
pub mod judge;
pub mod lm;
pub mod long_context;
pub mod math;
pub mod metrics;
pub mod random;
pub mod report;
pub mod run;
pub mod sandbox;
pub mod source;
mod task;
pub mod tasks;
#[cfg(test)]
mod test_data;

pub use error::{EvalError, Result};
pub use source::{FileRecord, Source};
pub use task::{Bench, Invalid, Metric, Outcome, Protocol, Sample, Task};
