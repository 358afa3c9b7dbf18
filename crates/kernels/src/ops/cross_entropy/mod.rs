//! The loss of next-token prediction with its gradient. Contract: [`crate::Kernels::cross_entropy`].

pub(crate) mod cpu;
pub(crate) mod reference;

use kanana_tensor::Tensor;

use crate::ops::check;
use crate::{KernelError, Result};

/// How logits `z` and a target `y` become a loss: `lse - Σ q·z + z_loss · lse²`, where `lse = log Σ exp(z)` and q gives
/// `label_smoothing / V` to every token and the rest to `y`. The gradient is `p (1 + 2 z_loss lse) - q`, times `scale`.
///
/// Source: Szegedy et al. 2016, arXiv 1512.00567 (smoothing); Chowdhery et al. 2022, arXiv 2204.02311, section 5 (z-loss).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Multiplies the gradient, not the losses: one over the number of targets.
    pub scale: f32,
    /// The share of probability spread over the whole vocabulary.
    pub label_smoothing: f32,
    /// The factor of `lse²`, which keeps logits from drifting.
    pub z_loss: f32,
}

impl CrossEntropy {
    /// The target of a row that is not learnt from.
    pub const IGNORED: u32 = u32::MAX;
}

/// `[T, V]` and targets below V or ignored: V and the targets.
pub(crate) fn check_cross_entropy<'a>(logits: &Tensor, targets: &'a Tensor) -> Result<(usize, &'a [u32])> {
    const OP: &str = "cross_entropy";
    let [tokens, vocabulary] = check::dims(OP, "logits", logits)?;
    check::shape(OP, "targets", targets, &[tokens])?;
    let targets = check::slice::<u32>(OP, targets)?;
    match targets.iter().find(|&&y| y != CrossEntropy::IGNORED && y as usize >= vocabulary) {
        Some(&index) => Err(KernelError::Index { op: OP, index: index as usize, limit: vocabulary }),
        None => Ok((vocabulary, targets)),
    }
}
