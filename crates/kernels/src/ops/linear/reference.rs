//! The oracle: rows of weights as given, one sum after another.

use kanana_tensor::{DType, Tensor, bf16};

use super::{Layout, Weight, check_linear};
use crate::Result;
use crate::ops::check;

/// Keeps the rows; only the dtype may change.
pub(crate) fn pack(matrix: &Tensor, dtype: DType) -> Result<Weight> {
    let [out_features, in_features] = check::dims("pack", "matrix", matrix)?;
    check::storable("pack", "dtype", dtype)?;
    let values = check::in_op("pack", matrix.to_f32_vec())?;
    let data = match dtype {
        DType::BF16 => {
            Tensor::from_slice(matrix.shape(), &values.into_iter().map(bf16::from_f32).collect::<Vec<_>>())
        }
        _ => Tensor::from_slice(matrix.shape(), &values),
    };
    Ok(Weight { out_features, in_features, layout: Layout::Rows, data: check::in_op("pack", data)? })
}

pub(crate) fn linear(x: &Tensor, w: &Weight) -> Result<Tensor> {
    let tokens = check_linear(x, w)?;
    w.check_layout("linear", Layout::Rows)?;
    let (inputs, outputs) = (w.in_features, w.out_features);
    let weights = check::in_op("linear", w.data.to_f32_vec())?;
    let mut x = check::slice::<f32>("linear", x)?.to_vec();
    if w.dtype() == DType::BF16 {
        x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    }
    let mut y = vec![0.0; tokens * outputs];
    for t in 0..tokens {
        for n in 0..outputs {
            y[t * outputs + n] = (0..inputs).map(|k| x[t * inputs + k] * weights[n * inputs + k]).sum();
        }
    }
    check::in_op("linear", Tensor::from_slice(&[tokens, outputs], &y))
}
