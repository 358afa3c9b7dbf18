//! The gradients of a product are products. Contracts: [`Kernels::transposed`], [`Kernels::linear_backward_weight`].

use kanana_tensor::{Tensor, bf16};

use super::pack::position;
use super::{Format, Layout, Weight};
use crate::ops::check;
use crate::{Kernels, Result};

/// [`Kernels::linear_backward_weight`] of other ops: the tokens are what is summed over.
pub(crate) fn backward_weight<K: Kernels + ?Sized>(
    kernels: &K,
    base: Tensor,
    dy: &Tensor,
    x: &Tensor,
    format: Format,
) -> Result<Tensor> {
    let x = kernels.pack_transposed(x, format)?;
    kernels.add(&base, &kernels.linear(&kernels.transpose(dy)?, &x)?)
}

/// The matrix `[N, K]` that was packed, in f32.
pub(crate) fn unpacked(w: &Weight) -> Result<Tensor> {
    const OP: &str = "transposed";
    let (n, k) = (w.out_features, w.in_features);
    let dtype = w.data.dtype();
    let place = |at: usize| match w.layout {
        Layout::Rows => at,
        Layout::Panels => position(k, dtype, at / k, at % k),
    };
    if let Some(packed) = w.packed() {
        return Ok(super::packed::adopt_as_rows(&packed)?.data);
    }
    let values: Vec<f32> = match w.format {
        Format::BF16 => {
            let packed = check::slice::<bf16>(OP, &w.data)?;
            (0..n * k).map(|at| packed[place(at)].to_f32()).collect()
        }
        _ => {
            let packed = check::slice::<f32>(OP, &w.data)?;
            (0..n * k).map(|at| packed[place(at)]).collect()
        }
    };
    check::in_op(OP, Tensor::from_slice(&[n, k], &values))
}

/// What a transposed weight is stored as.
pub(crate) fn transposed_format(format: Format) -> Format {
    if format.is_quantised() { Format::BF16 } else { format }
}
