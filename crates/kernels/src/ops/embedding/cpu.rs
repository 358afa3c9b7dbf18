//! Gathers rows out of panels: the table of a tied model is also its output projection, so it is laid out as one.

use kanana_tensor::{DType, Tensor, bf16};

use crate::Result;
use crate::ops::check;
use crate::ops::linear::pack::{PANEL, position};
use crate::ops::linear::quant::{panel_bytes, value};
use crate::ops::linear::{Format, Layout, Weight};
use crate::runtime::Machine;

pub(crate) fn embedding(machine: Machine<'_>, ids: &Tensor, table: &Weight) -> Result<Tensor> {
    table.check_layout("embedding", Layout::Panels)?;
    let ids = check::indices("embedding", ids, table.out_features)?;
    let (width, format) = (table.in_features, table.format);
    let mut out = machine.pool.tensor(&[ids.len(), width], DType::F32);
    let rows = check::slice_mut::<f32>("embedding", &mut out)?;
    let fill = |rows: &mut [f32], read: &(dyn Fn(usize, usize) -> f32 + Sync)| {
        machine.threads.rows_mut(rows, width, |t, row| {
            row.iter_mut().enumerate().for_each(|(k, x)| *x = read(ids[t] as usize, k));
        });
    };
    match format {
        Format::F32 => {
            let table = check::slice::<f32>("embedding", &table.data)?;
            fill(rows, &|id, k| table[position(width, DType::F32, id, k)]);
        }
        Format::BF16 => {
            let table = check::slice::<bf16>("embedding", &table.data)?;
            fill(rows, &|id, k| table[position(width, DType::BF16, id, k)].to_f32());
        }
        Format::Q8 | Format::Q4 => {
            let table = check::slice::<u8>("embedding", &table.data)?;
            let panel_len = panel_bytes(format, width);
            fill(rows, &|id, k| {
                let panel = &table[id / PANEL * panel_len..][..panel_len];
                value(format, width, panel, (id % PANEL, k))
            });
        }
    }
    Ok(out)
}
