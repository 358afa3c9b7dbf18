//! The oracle: rotate each pair `(i, i + H/2)`.

use kanana_tensor::Tensor;

use super::{RopeTable, check_rope};
use crate::Result;
use crate::ops::check;

pub(crate) fn rope(x: &Tensor, table: &RopeTable, positions: &Tensor) -> Result<Tensor> {
    let (dims, positions) = check_rope(x, table, positions)?;
    let [tokens, heads, width] = dims;
    let (cos, sin) = (check::slice::<f32>("rope", &table.cos)?, check::slice::<f32>("rope", &table.sin)?);
    let x_values = check::slice::<f32>("rope", x)?;
    let mut y = x_values.to_vec();
    let half = width / 2;
    for t in 0..tokens {
        for n in 0..heads {
            for i in 0..half {
                let (c, s) = (cos[positions[t] as usize * half + i], sin[positions[t] as usize * half + i]);
                let first = (t * heads + n) * width + i;
                let (a, b) = (x_values[first], x_values[first + half]);
                y[first] = a * c - b * s;
                y[first + half] = b * c + a * s;
            }
        }
    }
    check::in_op("rope", Tensor::from_slice(x.shape(), &y))
}
