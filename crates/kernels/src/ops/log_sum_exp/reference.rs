//! The oracle, in f64.

use kanana_tensor::Tensor;

use crate::Result;
use crate::ops::check;

pub(crate) fn log_sum_exp(logits: &Tensor) -> Result<Tensor> {
    let [rows, width] = check::dims("log_sum_exp", "logits", logits)?;
    let values = check::slice::<f32>("log_sum_exp", logits)?;
    let sums: Vec<f32> = (0..rows)
        .map(|r| {
            let row = &values[r * width..][..width];
            let largest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            (largest + row.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln()) as f32
        })
        .collect();
    check::in_op("log_sum_exp", Tensor::from_slice(&[rows], &sums))
}
