//! The direction of Muon: momentum whose singular values are all brought near one.

use kanana_kernels::{Format, Kernels};
use kanana_tensor::Tensor;

use super::moment::{Chance, Moment};
use crate::Result;

/// Coefficients of the quintic iteration. Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers".
const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;

/// Updates the momentum and gives the step's direction, with Nesterov's look ahead.
///
/// Shapes: all `[rows, columns]`. Cost: 5 iterations of 2·r²·(2·c + r) FLOPs, r the smaller extent and c the larger.
pub(super) fn direction<M: Moment>(
    kernels: &dyn Kernels,
    gradient: &Tensor,
    momentum: &mut Tensor,
    (scale, beta): (f32, f32),
    chance: Chance,
) -> Result<Tensor> {
    let (rows, columns) = (gradient.rows(), gradient.row_len());
    let mut ahead = Vec::with_capacity(gradient.len());
    let sums = momentum.as_mut_slice::<M>()?.iter_mut().enumerate();
    for ((i, sum), g) in sums.zip(gradient.as_slice::<f32>()?) {
        let g = g * scale;
        let exact = beta * sum.widen() + g;
        ahead.push(g + beta * exact);
        *sum = M::round(exact, chance.at(i)[0]);
    }
    let norm = ahead.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32;
    ahead.iter_mut().for_each(|x| *x /= norm + 1e-7);
    let mut x = kernels.upload(&Tensor::from_slice(&[rows, columns], &ahead)?)?;
    let tall = rows > columns;
    if tall {
        x = kernels.transpose(&x)?;
    }
    let [a, b, c] = QUINTIC;
    for _ in 0..ITERATIONS {
        let gram = kernels.linear(&x, &kernels.pack(&x, Format::F32)?)?;
        // Symmetric: its product with its transpose is its square.
        let square = kernels.linear(&gram, &kernels.pack(&gram, Format::F32)?)?;
        let polynomial = kernels.add(&kernels.scale(&gram, b)?, &kernels.scale(&square, c)?)?;
        let bent = kernels.linear(&polynomial, &kernels.pack_transposed(&x, Format::F32)?)?;
        x = kernels.add(&kernels.scale(&x, a)?, &bent)?;
    }
    if tall {
        x = kernels.transpose(&x)?;
    }
    let factor = (rows as f32 / columns as f32).max(1.0).sqrt();
    Ok(kernels.download(&kernels.scale(&x, factor)?)?)
}
