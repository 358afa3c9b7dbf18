//! A row at a time, in the memory of its logits.

use kanana_tensor::{DType, Tensor};

use super::{CrossEntropy, check_cross_entropy};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, LANES, Lanes, dispatch};
use crate::runtime::threads::SharedMut;

pub(crate) fn cross_entropy(
    machine: Machine<'_>,
    mut logits: Tensor,
    targets: &Tensor,
    options: CrossEntropy,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "cross_entropy";
    let (vocabulary, targets) = check_cross_entropy(&logits, targets)?;
    if logits.as_mut_slice::<f32>().is_err() {
        logits = check::in_op(OP, Tensor::from_slice(logits.shape(), check::slice::<f32>(OP, &logits)?))?;
    }
    let mut losses = machine.pool.tensor(&[targets.len()], DType::F32);
    let shared = SharedMut::new(check::slice_mut::<f32>(OP, &mut losses)?);
    machine.threads.rows_mut(check::slice_mut::<f32>(OP, &mut logits)?, vocabulary, |t, row| {
        let loss = match targets[t] {
            CrossEntropy::IGNORED => {
                row.fill(0.0);
                0.0
            }
            target => dispatch(machine.isa, Row { row, target: target as usize, options }),
        };
        // SAFETY: each row has a loss of its own.
        #[allow(unsafe_code)]
        let to = unsafe { shared.range(t, 1) };
        to[0] = loss;
    });
    Ok((losses, logits))
}

struct Row<'a> {
    row: &'a mut [f32],
    target: usize,
    options: CrossEntropy,
}

impl Kernel for Row<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let CrossEntropy { scale, label_smoothing, z_loss } = self.options;
        let vocabulary = self.row.len();
        let wanted = self.row[self.target];
        let (full, tail) = self.row.as_chunks_mut::<LANES>();
        let last = L::load_partial(tail, f32::NEG_INFINITY);
        let mut largest = last;
        for z in full.iter() {
            largest = L::load(z).max(largest);
        }
        let largest = L::splat(largest.largest());
        let mut total = L::load_partial(tail, 0.0);
        let mut exps = last.sub(largest).exp();
        for z in full.iter() {
            let z = L::load(z);
            total = total.add(z);
            exps = exps.add(z.sub(largest).exp());
        }
        let (largest, spread) = (largest.largest(), label_smoothing / vocabulary as f32);
        let lse = largest + exps.sum().ln();
        let expected = (1.0 - label_smoothing) * wanted + spread * total.sum();
        let shift = L::splat(lse);
        let factor = L::splat(scale * (1.0 + 2.0 * z_loss * lse));
        let less = L::splat(-scale * spread);
        for z in full.iter_mut() {
            less.fma(L::load(z).sub(shift).exp(), factor).store(z);
        }
        if !tail.is_empty() {
            less.fma(last.sub(shift).exp(), factor).store_partial(tail);
        }
        self.row[self.target] -= scale * (1.0 - label_smoothing);
        lse - expected + z_loss * lse * lse
    }
}
