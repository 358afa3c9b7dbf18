//! From rows to panels: once, at load. See [`Layout::Panels`].

use kanana_tensor::{DType, Tensor, bf16, f16};

use super::{Layout, Weight};
use crate::Result;
use crate::ops::check;
use crate::runtime::memory::advise_huge_pages;
use crate::runtime::threads::Threads;

/// Outputs in a panel.
pub(crate) const PANEL: usize = 16;
/// Inputs in a bf16 tile.
pub(crate) const TILE_K: usize = 32;

/// Elements of one panel, padding included.
pub(crate) fn panel_len(in_features: usize, dtype: DType) -> usize {
    match dtype {
        DType::BF16 => in_features.next_multiple_of(TILE_K) * PANEL,
        _ => in_features * PANEL,
    }
}

/// Where element `(n, k)` of a weight lies.
pub(crate) fn position(in_features: usize, dtype: DType, n: usize, k: usize) -> usize {
    let (panel, lane) = (n / PANEL, n % PANEL);
    let within = match dtype {
        DType::BF16 => (k / 2) * 2 * PANEL + 2 * lane + k % 2,
        _ => k * PANEL + lane,
    };
    panel * panel_len(in_features, dtype) + within
}

pub(crate) fn pack(threads: &Threads, matrix: &Tensor, dtype: DType) -> Result<Weight> {
    let [out_features, in_features] = check::dims("pack", "matrix", matrix)?;
    check::storable("pack", "dtype", dtype)?;
    let panel_len = panel_len(in_features, dtype);
    let mut data = Tensor::zeros(&[out_features.div_ceil(PANEL) * panel_len], dtype);
    let source = Source { matrix, out_features, in_features };
    match dtype {
        DType::BF16 => {
            let packed = check::slice_mut::<bf16>("pack", &mut data)?;
            advise_huge_pages(bytes_mut(packed));
            match matrix.dtype() {
                DType::BF16 => source.panels(threads, packed, panel_len, |x: bf16| x)?,
                DType::F16 => {
                    source.panels(threads, packed, panel_len, |x: f16| bf16::from_f32(x.to_f32()))?
                }
                _ => source.panels(threads, packed, panel_len, bf16::from_f32)?,
            }
        }
        _ => {
            let packed = check::slice_mut::<f32>("pack", &mut data)?;
            advise_huge_pages(bytes_mut(packed));
            match matrix.dtype() {
                DType::BF16 => source.panels(threads, packed, panel_len, bf16::to_f32)?,
                DType::F16 => source.panels(threads, packed, panel_len, f16::to_f32)?,
                _ => source.panels(threads, packed, panel_len, |x: f32| x)?,
            }
        }
    }
    Ok(Weight { out_features, in_features, layout: Layout::Panels, data })
}

fn bytes_mut<E: kanana_tensor::Element>(elements: &mut [E]) -> &mut [u8] {
    bytemuck::cast_slice_mut(elements)
}

struct Source<'a> {
    matrix: &'a Tensor,
    out_features: usize,
    in_features: usize,
}

impl Source<'_> {
    fn panels<From: kanana_tensor::Element, To: kanana_tensor::Element>(
        &self,
        threads: &Threads,
        packed: &mut [To],
        panel_len: usize,
        convert: impl Fn(From) -> To + Sync,
    ) -> Result<()> {
        let rows = check::slice::<From>("pack", self.matrix)?;
        let (inputs, outputs) = (self.in_features, self.out_features);
        // Inputs that lie side by side in a panel, for each of its outputs: pairs for bf16, one for f32.
        let group = if To::DTYPE == DType::BF16 { 2 } else { 1 };
        threads.chunks_mut(packed, panel_len, |panel, out| {
            let first = panel * PANEL;
            for lane in 0..PANEL.min(outputs - first) {
                let row = &rows[(first + lane) * inputs..][..inputs];
                let targets = out.chunks_exact_mut(group * PANEL);
                for (target, values) in targets.zip(row.chunks(group)) {
                    for (j, &value) in values.iter().enumerate() {
                        target[lane * group + j] = convert(value);
                    }
                }
            }
        });
        Ok(())
    }
}
