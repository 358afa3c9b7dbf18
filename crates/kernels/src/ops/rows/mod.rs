//! Rows picked out and added back: `gather_rows`, `scatter_add_rows`. Contracts: [`crate::Kernels`].
//!
//! One body serves every implementation in host memory: there is nothing here for a vector unit to win.

use kanana_tensor::{DType, Tensor};

use crate::Result;
use crate::ops::check;

pub(crate) fn gather_rows(x: &Tensor, indices: &Tensor, mut y: Tensor) -> Result<Tensor> {
    let indices = check::indices("gather_rows", indices, x.rows())?;
    let width = x.row_len();
    let from = check::slice::<f32>("gather_rows", x)?;
    check::shape("gather_rows", "output", &y, &[indices.len(), width])?;
    let to = check::slice_mut::<f32>("gather_rows", &mut y)?;
    for (&index, to) in indices.iter().zip(to.chunks_exact_mut(width.max(1))) {
        to.copy_from_slice(&from[index as usize * width..][..width]);
    }
    Ok(y)
}

pub(crate) fn scatter_add_rows(
    mut base: Tensor,
    x: &Tensor,
    indices: &Tensor,
    weights: &Tensor,
) -> Result<Tensor> {
    const OP: &str = "scatter_add_rows";
    let indices = check::indices(OP, indices, base.rows())?;
    let width = base.row_len();
    check::shape(OP, "x", x, &[indices.len(), width])?;
    check::shape(OP, "weights", weights, &[indices.len()])?;
    let (from, weights) = (check::slice::<f32>(OP, x)?, check::slice::<f32>(OP, weights)?);
    if base.as_mut_slice::<f32>().is_err() {
        base = check::in_op(OP, Tensor::from_slice(base.shape(), check::slice::<f32>(OP, &base)?))?;
    }
    let to = check::slice_mut::<f32>(OP, &mut base)?;
    for ((&index, from), &weight) in indices.iter().zip(from.chunks_exact(width.max(1))).zip(weights) {
        let to = &mut to[index as usize * width..][..width];
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from * weight);
    }
    Ok(base)
}

/// The shape of what [`gather_rows`] returns.
pub(crate) fn gathered_shape(x: &Tensor, indices: &Tensor) -> Result<[usize; 2]> {
    let [_, width] = check::dims("gather_rows", "x", x)?;
    match indices.dtype() {
        DType::U32 => Ok([indices.len(), width]),
        got => {
            Err(crate::KernelError::DType { op: "gather_rows", argument: "indices", expected: "u32", got })
        }
    }
}

pub(crate) fn sum_rows(x: &Tensor) -> Result<Tensor> {
    let [_, width] = check::dims("sum_rows", "x", x)?;
    let mut sums = vec![0.0; width];
    for row in check::slice::<f32>("sum_rows", x)?.chunks_exact(width.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    check::in_op("sum_rows", Tensor::from_slice(&[width], &sums))
}

pub(crate) fn dot_rows(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    const OP: &str = "dot_rows";
    let [rows, width] = check::dims(OP, "x", x)?;
    check::shape(OP, "y", y, x.shape())?;
    let (x, y) = (check::slice::<f32>(OP, x)?, check::slice::<f32>(OP, y)?);
    let row = |r: usize| r * width..(r + 1) * width;
    let dots: Vec<f32> =
        (0..rows).map(|r| x[row(r)].iter().zip(&y[row(r)]).map(|(x, y)| x * y).sum()).collect();
    check::in_op(OP, Tensor::from_slice(&[rows], &dots))
}

pub(crate) fn transpose(x: &Tensor) -> Result<Tensor> {
    let [rows, columns] = check::dims("transpose", "x", x)?;
    let from = check::slice::<f32>("transpose", x)?;
    let turned: Vec<f32> = (0..columns).flat_map(|c| (0..rows).map(move |r| from[r * columns + c])).collect();
    check::in_op("transpose", Tensor::from_slice(&[columns, rows], &turned))
}
