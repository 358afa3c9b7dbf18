//! The oracle, with the mean in f64.

use kanana_tensor::Tensor;

use super::check_rms_norm;
use crate::Result;
use crate::ops::check;

pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let width = check_rms_norm(x, weight)?;
    let weight = check::slice::<f32>("rms_norm", weight)?;
    let mut y = check::slice::<f32>("rms_norm", x)?.to_vec();
    for row in y.chunks_mut(width.max(1)) {
        let mean = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / width as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        row.iter_mut().zip(weight).for_each(|(x, w)| *x = (f64::from(*x) * scale) as f32 * w);
    }
    check::in_op("rms_norm", Tensor::from_slice(x.shape(), &y))
}
