//! The oracle: rows of weights as given, one sum after another.

use kanana_tensor::{Tensor, bf16};

use super::quant::{GROUP, Group, SMALLEST};
use super::{Format, Layout, Weight, check_linear};
use crate::Result;
use crate::ops::check;
use crate::runtime::Isa;

/// Keeps the rows; quantised weights become the values of their codes.
pub(crate) fn pack(matrix: &Tensor, format: Format) -> Result<Weight> {
    let [out_features, in_features] = check::dims("pack", "matrix", matrix)?;
    let mut values = check::in_op("pack", matrix.to_f32_vec())?;
    if format.is_quantised() {
        for row in values.chunks_mut(in_features.max(1)) {
            for weights in row.chunks_mut(GROUP) {
                let group = Group::quantise(Isa::Portable, weights, format);
                weights.iter_mut().enumerate().for_each(|(i, w)| *w = group.value(format, i));
            }
        }
    }
    let data = match format {
        Format::BF16 => {
            Tensor::from_slice(matrix.shape(), &values.into_iter().map(bf16::from_f32).collect::<Vec<_>>())
        }
        _ => Tensor::from_slice(matrix.shape(), &values),
    };
    Ok(Weight { out_features, in_features, format, layout: Layout::Rows, data: check::in_op("pack", data)? })
}

pub(crate) fn linear(x: &Tensor, w: &Weight) -> Result<Tensor> {
    let tokens = check_linear(x, w)?;
    w.check_layout("linear", Layout::Rows)?;
    let (inputs, outputs) = (w.in_features, w.out_features);
    let weights = check::in_op("linear", w.data.to_f32_vec())?;
    let mut x = check::slice::<f32>("linear", x)?.to_vec();
    match w.format {
        Format::F32 => {}
        Format::BF16 => x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        Format::Q8 | Format::Q4 => x.chunks_mut(inputs.max(1)).for_each(round_groups),
    }
    let mut y = vec![0.0; tokens * outputs];
    for t in 0..tokens {
        for n in 0..outputs {
            y[t * outputs + n] = (0..inputs).map(|k| x[t * inputs + k] * weights[n * inputs + k]).sum();
        }
    }
    check::in_op("linear", Tensor::from_slice(&[tokens, outputs], &y))
}

/// Rounds each group of a row to the 127 steps up to its largest element.
fn round_groups(row: &mut [f32]) {
    for group in row.chunks_mut(GROUP) {
        let largest = group.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        if largest < SMALLEST && !group.iter().any(|x| x.is_nan()) {
            group.fill(0.0);
        } else if group.iter().all(|x| x.is_finite()) {
            let steps = 127.0 / largest;
            group.iter_mut().for_each(|x| *x = (*x * steps).round_ties_even() * (largest / 127.0));
        } else {
            group.fill(f32::NAN);
        }
    }
}
