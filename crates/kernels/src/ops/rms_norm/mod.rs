//! Root-mean-square norm. Contract: [`crate::Kernels::rms_norm`].

pub(crate) mod backward;
pub(crate) mod cpu;
pub(crate) mod reference;

use kanana_tensor::Tensor;

use crate::Result;
use crate::ops::check;

/// The width of a normed row.
pub(crate) fn check_rms_norm(x: &Tensor, weight: &Tensor) -> Result<usize> {
    let Some(&width) = x.shape().last() else {
        return Err(check::shape_error("rms_norm", "x", x, "[.., H]".to_owned()));
    };
    check::shape("rms_norm", "weight", weight, &[width])?;
    Ok(width)
}
