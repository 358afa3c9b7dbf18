//! Ops that look at one element at a time: `silu_mul`, `add`, `add_bias`, `scale`, `sigmoid_gate`, `cast`.
//! Contracts: [`crate::Kernels`].

pub(crate) mod cpu;
pub(crate) mod reference;

use kanana_tensor::Tensor;

use crate::Result;
use crate::ops::check;

/// Two tensors of one shape.
pub(crate) fn check_pair(op: &'static str, x: &Tensor, y: &Tensor) -> Result<()> {
    check::shape(op, "second argument", y, x.shape())
}

/// `[T, D]` with a vector of D: D.
pub(crate) fn check_bias(x: &Tensor, bias: &Tensor) -> Result<usize> {
    let [_, width] = check::dims("add_bias", "x", x)?;
    check::shape("add_bias", "bias", bias, &[width])?;
    Ok(width)
}

/// `[T, D]` with `[T, 1]`: D.
pub(crate) fn check_gate(x: &Tensor, gate: &Tensor) -> Result<usize> {
    let [tokens, width] = check::dims("sigmoid_gate", "x", x)?;
    check::shape("sigmoid_gate", "gate", gate, &[tokens, 1])?;
    Ok(width)
}
