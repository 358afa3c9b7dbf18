//! Root-mean-square norm. Contract: [`crate::Kernels::rms_norm`].

pub(crate) mod cpu;
pub(crate) mod reference;

use kanana_tensor::Tensor;

use crate::Result;
use crate::ops::check;

/// The width of a normed row.
pub(crate) fn check_rms_norm(x: &Tensor, weight: &Tensor) -> Result<usize> {
    let width = x.shape().last().copied().unwrap_or(0);
    check::shape("rms_norm", "weight", weight, &[width])?;
    Ok(width)
}
