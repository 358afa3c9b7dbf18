//! The gradient of the norm: of rows in blocks of a fixed size, whose shares of the weight's gradient are added in order.

use kanana_tensor::{DType, Tensor};

use super::check_rms_norm;
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, LANES, Lanes, dispatch};
use crate::runtime::threads::SharedMut;

/// Elements of the rows of a task.
const BLOCK: usize = 32 << 10;

pub(crate) fn rms_norm_backward(
    machine: Machine<'_>,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "rms_norm_backward";
    let width = check_rms_norm(x, weight)?;
    check::shape(OP, "dy", dy, x.shape())?;
    let (from, dys) = (check::slice::<f32>(OP, x)?, check::slice::<f32>(OP, dy)?);
    let weight = check::slice::<f32>(OP, weight)?;
    let block = (BLOCK / width.max(1)).max(1) * width.max(1);
    let mut dx = machine.pool.tensor(x.shape(), DType::F32);
    let mut parts = vec![0.0; from.len().div_ceil(block) * width];
    let shared = SharedMut::new(&mut parts);
    machine.threads.chunks_mut(check::slice_mut::<f32>(OP, &mut dx)?, block, |i, dx| {
        let rows = i * block..i * block + dx.len();
        // SAFETY: each task has a part of its own.
        #[allow(unsafe_code)]
        let dweight = unsafe { shared.range(i * width, width) };
        dispatch(machine.isa, Rows { x: &from[rows.clone()], weight, eps, dy: &dys[rows], dx, dweight });
    });
    let mut dweight = vec![0.0; width];
    for part in parts.chunks_exact(width.max(1)) {
        dweight.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    Ok((dx, check::in_op(OP, Tensor::from_slice(&[width], &dweight))?))
}

struct Rows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    dy: &'a [f32],
    dx: &'a mut [f32],
    dweight: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let width = self.weight.len();
        for start in (0..self.x.len()).step_by(width) {
            let (x, dy) = (&self.x[start..][..width], &self.dy[start..][..width]);
            let ((xs, x_tail), (dys, dy_tail)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
            let (ws, w_tail) = self.weight.as_chunks::<LANES>();
            let mut squares = L::splat(0.0);
            let mut dots = L::splat(0.0);
            for i in 0..xs.len() {
                let x = L::load(&xs[i]);
                squares = squares.fma(x, x);
                dots = dots.fma(x, L::load(&dys[i]).mul(L::load(&ws[i])));
            }
            let x_last = L::load_partial(x_tail, 0.0);
            let dy_last = L::load_partial(dy_tail, 0.0);
            squares = squares.fma(x_last, x_last);
            dots = dots.fma(x_last, dy_last.mul(L::load_partial(w_tail, 0.0)));
            let r = 1.0 / (squares.sum() / width as f32 + self.eps).sqrt();
            let pull = r * r * dots.sum() / width as f32;
            let dx = &mut self.dx[start..][..width];
            for i in 0..width {
                dx[i] = r * (self.weight[i] * dy[i] - x[i] * pull);
                self.dweight[i] += dy[i] * x[i] * r;
            }
        }
    }
}
