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

pub(crate) fn rms_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "rms_norm_backward";
    let width = check_rms_norm(x, weight)?;
    check::shape(OP, "dy", dy, x.shape())?;
    let wide = |tensor| -> Result<Vec<f64>> {
        Ok(check::slice::<f32>(OP, tensor)?.iter().map(|&x| f64::from(x)).collect())
    };
    let (xs, w, dys) = (wide(x)?, wide(weight)?, wide(dy)?);
    let (mut dx, mut dw) = (vec![0f32; xs.len()], vec![0f64; width]);
    for start in (0..xs.len()).step_by(width.max(1)) {
        let (x, dy) = (&xs[start..][..width], &dys[start..][..width]);
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + f64::from(eps)).sqrt();
        let mean = (0..width).map(|i| w[i] * dy[i] * x[i]).sum::<f64>() / width as f64;
        for i in 0..width {
            dx[start + i] = (r * (w[i] * dy[i] - x[i] * r * r * mean)) as f32;
            dw[i] += dy[i] * x[i] * r;
        }
    }
    let dw: Vec<f32> = dw.into_iter().map(|x| x as f32).collect();
    let dx = check::in_op(OP, Tensor::from_slice(x.shape(), &dx))?;
    Ok((dx, check::in_op(OP, Tensor::from_slice(&[width], &dw))?))
}
