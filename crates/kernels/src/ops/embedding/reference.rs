//! The oracle: copy rows.

use kanana_tensor::Tensor;

use crate::Result;
use crate::ops::check;
use crate::ops::linear::{Layout, Weight};

pub(crate) fn embedding(ids: &Tensor, table: &Weight) -> Result<Tensor> {
    table.check_layout("embedding", Layout::Rows)?;
    let ids = check::indices("embedding", ids, table.out_features)?;
    let width = table.in_features;
    let rows = check::in_op("embedding", table.data.to_f32_vec())?;
    let out: Vec<f32> =
        ids.iter().flat_map(|&id| rows[id as usize * width..][..width].iter().copied()).collect();
    check::in_op("embedding", Tensor::from_slice(&[ids.len(), width], &out))
}
