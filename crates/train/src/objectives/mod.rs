//! What is optimised: one file for each loss.
//!
//! A loss sees the logits a chunk of rows at a time, so that they are never all in memory, and answers with their
//! gradient. It divides by a number that it is told: the targets of the whole optimiser step.

mod next_token;

use std::ops::Range;

use kanana_kernels::Kernels;
use kanana_tensor::Tensor;

pub use next_token::NextToken;

use crate::Result;

/// A loss over rows of logits.
pub trait Objective {
    /// The rows of the batch whose logits it sees, rising.
    fn rows(&self) -> &[u32];

    /// Takes the logits `[R, V]` of some of its rows, in their order, and gives the gradient of its value, `[R, V]`.
    fn chunk(&mut self, kernels: &dyn Kernels, logits: Tensor, rows: Range<usize>) -> Result<Tensor>;
}
