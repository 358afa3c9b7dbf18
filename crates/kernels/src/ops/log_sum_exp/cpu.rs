//! The largest logit, then sixteen running sums of exponentials; the last partial vector is padded with minus infinity.

use kanana_tensor::{DType, Tensor};

use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, LANES, Lanes, dispatch};

pub(crate) fn log_sum_exp(machine: Machine<'_>, logits: &Tensor) -> Result<Tensor> {
    let [rows, width] = check::dims("log_sum_exp", "logits", logits)?;
    let values = check::slice::<f32>("log_sum_exp", logits)?;
    let mut sums = machine.pool.tensor(&[rows], DType::F32);
    machine.threads.chunks_mut(check::slice_mut::<f32>("log_sum_exp", &mut sums)?, 1, |r, sum| {
        sum[0] = dispatch(machine.isa, LogSumExp(&values[r * width..][..width]));
    });
    Ok(sums)
}

struct LogSumExp<'a>(&'a [f32]);

impl Kernel for LogSumExp<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let (full, tail) = self.0.as_chunks::<LANES>();
        let tail = L::load_partial(tail, f32::NEG_INFINITY);
        let mut largest = tail;
        for x in full {
            largest = L::load(x).max(largest);
        }
        let largest = largest.largest();
        let shift = L::splat(largest);
        let mut sum = tail.sub(shift).exp();
        for x in full {
            sum = sum.add(L::load(x).sub(shift).exp());
        }
        largest + sum.sum().ln()
    }
}
