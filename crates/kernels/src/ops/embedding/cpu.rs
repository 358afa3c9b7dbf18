//! Gathers rows out of panels: the table of a tied model is also its output projection, so it is laid out as one.

use kanana_tensor::{DType, Tensor, bf16};

use crate::Result;
use crate::ops::check;
use crate::ops::linear::cpu::Machine;
use crate::ops::linear::pack::position;
use crate::ops::linear::{Layout, Weight};

pub(crate) fn embedding(machine: Machine<'_>, ids: &Tensor, table: &Weight) -> Result<Tensor> {
    table.check_layout("embedding", Layout::Panels)?;
    let ids = check::indices("embedding", ids, table.out_features)?;
    let (width, dtype) = (table.in_features, table.dtype());
    let mut out = machine.pool.tensor(&[ids.len(), width], DType::F32);
    let rows = check::slice_mut::<f32>("embedding", &mut out)?;
    let place = |t: usize, k: usize| position(width, dtype, ids[t] as usize, k);
    match dtype {
        DType::BF16 => {
            let table = check::slice::<bf16>("embedding", &table.data)?;
            machine.threads.rows_mut(rows, width, |t, row| {
                row.iter_mut().enumerate().for_each(|(k, x)| *x = table[place(t, k)].to_f32());
            });
        }
        _ => {
            let table = check::slice::<f32>("embedding", &table.data)?;
            machine.threads.rows_mut(rows, width, |t, row| {
                row.iter_mut().enumerate().for_each(|(k, x)| *x = table[place(t, k)]);
            });
        }
    }
    Ok(out)
}
