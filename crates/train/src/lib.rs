//! Training: the transformer of the engine on the kernels of the engine, recorded and replayed backwards.
//!
//! [`Tape`] wraps any implementation of `kanana_kernels::Kernels`; [`Pass`] runs a batch forward and backward, block by
//! block; an [`Objective`] turns logits into a loss; optimisers turn gradients into steps. It knows no text and no HTTP.
//! Tests: `cargo test -p kanana-train`.
//!
//! Legend of all files: T packed tokens, D hidden, V vocabulary, N outputs and K inputs of a matrix, R rows.

mod error;
mod gradients;
mod objectives;
mod optimizer;
mod parameters;
mod pass;
pub mod recipe;
mod router_bias;
mod schedule;
mod state;
mod tape;
mod trainer;

pub use error::{Result, TrainError};
pub use gradients::Gradients;
pub use objectives::{NextToken, Objective};
pub use optimizer::{Algorithm, MomentFormat, Optimizer, OptimizerOptions, Outcome};
pub use parameters::{Built, LoraOptions, Parameters};
pub use pass::Pass;
pub use recipe::Recipe;
pub use schedule::{Schedule, Shape};
pub use state::checkpoints;
pub use tape::Tape;
pub use trainer::{Evaluation, StepReport, Trainer};
