//! The oracle, in f64.

use kanana_tensor::Tensor;

use super::{CrossEntropy, check_cross_entropy};
use crate::Result;
use crate::ops::check;

pub(crate) fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    options: CrossEntropy,
) -> Result<(Tensor, Tensor)> {
    let (vocabulary, targets) = check_cross_entropy(logits, targets)?;
    let values = check::slice::<f32>("cross_entropy", logits)?;
    let (smoothing, z_loss) = (f64::from(options.label_smoothing), f64::from(options.z_loss));
    let spread = smoothing / vocabulary as f64;
    let mut losses = vec![0.0; targets.len()];
    let mut gradient = vec![0.0; values.len()];
    for (t, &y) in targets.iter().enumerate().filter(|&(_, &y)| y != CrossEntropy::IGNORED) {
        let row: Vec<f64> = values[t * vocabulary..][..vocabulary].iter().map(|&z| f64::from(z)).collect();
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = largest + row.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
        let wanted = |v: usize| spread + if v == y as usize { 1.0 - smoothing } else { 0.0 };
        let expected: f64 = row.iter().enumerate().map(|(v, z)| wanted(v) * z).sum();
        losses[t] = (lse - expected + z_loss * lse * lse) as f32;
        for (v, z) in row.iter().enumerate() {
            let d = (z - lse).exp() * (1.0 + 2.0 * z_loss * lse) - wanted(v);
            gradient[t * vocabulary + v] = (d * f64::from(options.scale)) as f32;
        }
    }
    let losses = check::in_op("cross_entropy", Tensor::from_slice(&[targets.len()], &losses))?;
    Ok((losses, check::in_op("cross_entropy", Tensor::from_slice(logits.shape(), &gradient))?))
}
