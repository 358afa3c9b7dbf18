//! One task rotates the heads of some tokens; the loops are plain because the compiler vectorises them.

use kanana_tensor::{DType, Tensor};

use super::{RopeTable, check_rope};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, Lanes, dispatch};

pub(crate) fn rope(
    machine: Machine<'_>,
    x: &Tensor,
    table: &RopeTable,
    positions: &Tensor,
) -> Result<Tensor> {
    let ([_, heads, width], positions) = check_rope(x, table, positions)?;
    let (cos, sin) = (check::slice::<f32>("rope", &table.cos)?, check::slice::<f32>("rope", &table.sin)?);
    let from = check::slice::<f32>("rope", x)?;
    let mut y = machine.pool.tensor(x.shape(), DType::F32);
    let (half, row_len) = (width / 2, heads * width);
    machine.threads.rows_mut(check::slice_mut::<f32>("rope", &mut y)?, row_len, |t, to| {
        let row = positions[t] as usize * half;
        let (cos, sin) = (&cos[row..][..half], &sin[row..][..half]);
        dispatch(machine.isa, Rotate { from: &from[t * row_len..][..row_len], to, cos, sin });
    });
    Ok(y)
}

struct Rotate<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let half = self.cos.len();
        for (from, to) in self.from.chunks_exact(2 * half).zip(self.to.chunks_exact_mut(2 * half)) {
            let ((a, b), (to_a, to_b)) = (from.split_at(half), to.split_at_mut(half));
            for i in 0..half {
                to_a[i] = a[i] * self.cos[i] - b[i] * self.sin[i];
                to_b[i] = b[i] * self.cos[i] + a[i] * self.sin[i];
            }
        }
    }
}
