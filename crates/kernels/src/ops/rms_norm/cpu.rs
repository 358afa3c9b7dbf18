//! Sixteen running sums of squares, added by halves; the last partial vector is padded with zeros.

use kanana_tensor::{DType, Tensor};

use super::check_rms_norm;
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, LANES, Lanes, dispatch};

pub(crate) fn rms_norm(machine: Machine<'_>, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let width = check_rms_norm(x, weight)?;
    let weight = check::slice::<f32>("rms_norm", weight)?;
    let from = check::slice::<f32>("rms_norm", x)?;
    let mut y = machine.pool.tensor(x.shape(), DType::F32);
    let rows = check::slice_mut::<f32>("rms_norm", &mut y)?;
    machine.threads.rows_mut(rows, width, |r, to| {
        dispatch(machine.isa, Norm { from: &from[r * width..][..width], weight, eps, to });
    });
    Ok(y)
}

struct Norm<'a> {
    from: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    to: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (full, tail) = self.from.as_chunks::<LANES>();
        let mut squares = L::splat(0.0);
        for x in full {
            let x = L::load(x);
            squares = squares.fma(x, x);
        }
        let x = L::load_partial(tail, 0.0);
        squares = squares.fma(x, x);
        let scale = 1.0 / (squares.sum() / self.from.len() as f32 + self.eps).sqrt();
        for ((to, x), w) in self.to.iter_mut().zip(self.from).zip(self.weight) {
            *to = x * scale * w;
        }
    }
}
