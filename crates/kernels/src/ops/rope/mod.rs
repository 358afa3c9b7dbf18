//! Rotary position embedding. Contract: [`crate::Kernels::rope`].

pub(crate) mod cpu;
pub(crate) mod reference;

use kanana_tensor::Tensor;

use crate::Result;
use crate::ops::check;

/// Cosines and sines by position, any attention factor already multiplied in.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[P, H/2] f32`.
    pub cos: Tensor,
    /// `[P, H/2] f32`.
    pub sin: Tensor,
}

/// `[T, N, H]` and the positions, which the table has.
pub(crate) fn check_rope<'a>(
    x: &Tensor,
    table: &RopeTable,
    positions: &'a Tensor,
) -> Result<([usize; 3], &'a [u32])> {
    let dims @ [tokens, _, width] = check::dims("rope", "x", x)?;
    let [rows, half] = check::dims("rope", "cos", &table.cos)?;
    check::shape("rope", "sin", &table.sin, &[rows, half])?;
    check::shape("rope", "positions", positions, &[tokens])?;
    if width != 2 * half {
        return Err(check::shape_error("rope", "x", x, format!("[T, N, {}]", 2 * half)));
    }
    Ok((dims, check::indices("rope", positions, rows)?))
}
