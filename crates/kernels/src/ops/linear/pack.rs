//! From rows to panels: once, at load. See [`Layout::Panels`].

use kanana_tensor::{DType, Element, Tensor, bf16, f16};

use super::quant::{GROUP, Group, panel_bytes};
use super::{Format, Layout, Weight};
use crate::Result;
use crate::ops::check;
use crate::runtime::memory::advise_huge_pages;
use crate::runtime::simd::Isa;
use crate::runtime::threads::Threads;

/// Outputs in a panel.
pub(crate) const PANEL: usize = 16;
/// Rows of inputs in a tile of the matrix unit.
pub(crate) const TILE_ROWS: usize = 16;
/// Inputs in a bf16 tile.
pub(crate) const TILE_K: usize = 32;

/// Elements of one panel of f32 or bf16, padding included.
pub(crate) fn panel_len(in_features: usize, dtype: DType) -> usize {
    match dtype {
        DType::BF16 => in_features.next_multiple_of(TILE_K) * PANEL,
        _ => in_features * PANEL,
    }
}

/// Where element `(n, k)` of a weight of f32 or bf16 lies.
pub(crate) fn position(in_features: usize, dtype: DType, n: usize, k: usize) -> usize {
    let (panel, lane) = (n / PANEL, n % PANEL);
    let within = match dtype {
        DType::BF16 => (k / 2) * 2 * PANEL + 2 * lane + k % 2,
        _ => k * PANEL + lane,
    };
    panel * panel_len(in_features, dtype) + within
}

pub(crate) fn pack(threads: &Threads, isa: Isa, matrix: &Tensor, format: Format) -> Result<Weight> {
    let [out_features, in_features] = check::dims("pack", "matrix", matrix)?;
    let source = Source { matrix, out_features, in_features };
    let data = match format {
        Format::F32 => match matrix.dtype() {
            DType::BF16 => source.panels(threads, bf16::to_f32)?,
            DType::F16 => source.panels(threads, f16::to_f32)?,
            _ => source.panels(threads, |x: f32| x)?,
        },
        Format::BF16 => match matrix.dtype() {
            DType::BF16 => source.panels(threads, normal)?,
            DType::F16 => source.panels(threads, |x: f16| normal(bf16::from_f32(x.to_f32())))?,
            _ => source.panels(threads, |x: f32| normal(bf16::from_f32(x)))?,
        },
        Format::Q8 | Format::Q4 => match matrix.dtype() {
            DType::BF16 => source.codes((threads, isa), format, bf16::to_f32)?,
            DType::F16 => source.codes((threads, isa), format, f16::to_f32)?,
            _ => source.codes((threads, isa), format, |x: f32| x)?,
        },
    };
    Ok(Weight { out_features, in_features, format, layout: Layout::Panels, data })
}

/// Zero for a denormal number: the matrix unit takes it for that, and every path gives the same bits.
fn normal(x: bf16) -> bf16 {
    if x.to_f32().abs() < f32::MIN_POSITIVE { bf16::ZERO } else { x }
}

struct Source<'a> {
    matrix: &'a Tensor,
    out_features: usize,
    in_features: usize,
}

impl Source<'_> {
    /// Panels of f32 or bf16.
    fn panels<From: Element, To: Element>(
        &self,
        threads: &Threads,
        convert: impl Fn(From) -> To + Sync,
    ) -> Result<Tensor> {
        let rows = check::slice::<From>("pack", self.matrix)?;
        let panel_len = panel_len(self.in_features, To::DTYPE);
        let mut data = Tensor::zeros(&[self.out_features.div_ceil(PANEL) * panel_len], To::DTYPE);
        let packed = check::slice_mut::<To>("pack", &mut data)?;
        advise_huge_pages(bytemuck::cast_slice_mut(packed));
        // Inputs that lie side by side in a panel, for each of its outputs: pairs for bf16, one for f32.
        let group = if To::DTYPE == DType::BF16 { 2 } else { 1 };
        threads.chunks_mut(packed, panel_len, |panel, out| {
            for (lane, row) in self.rows_of(rows, panel) {
                let targets = out.chunks_exact_mut(group * PANEL);
                for (target, values) in targets.zip(row.chunks(group)) {
                    for (j, &value) in values.iter().enumerate() {
                        target[lane * group + j] = convert(value);
                    }
                }
            }
        });
        Ok(data)
    }

    /// Panels of quantised groups.
    fn codes<From: Element>(
        &self,
        (threads, isa): (&Threads, Isa),
        format: Format,
        widen: impl Fn(From) -> f32 + Sync,
    ) -> Result<Tensor> {
        let rows = check::slice::<From>("pack", self.matrix)?;
        let panel_len = panel_bytes(format, self.in_features);
        let mut data = Tensor::zeros(&[self.out_features.div_ceil(PANEL) * panel_len], DType::U8);
        let packed = check::slice_mut::<u8>("pack", &mut data)?;
        advise_huge_pages(packed);
        threads.chunks_mut(packed, panel_len, |panel, out| {
            for (lane, row) in self.rows_of(rows, panel) {
                for (g, values) in row.chunks(GROUP).enumerate() {
                    let mut weights = [0.0; GROUP];
                    weights.iter_mut().zip(values).for_each(|(w, &value)| *w = widen(value));
                    let group = Group::quantise(isa, &weights[..values.len()], format);
                    group.store(format, self.in_features, (lane, g), out);
                }
            }
        });
        Ok(data)
    }

    /// The rows of a panel with their lanes.
    fn rows_of<'a, E>(&self, rows: &'a [E], panel: usize) -> impl Iterator<Item = (usize, &'a [E])> {
        let (first, inputs) = (panel * PANEL, self.in_features);
        (0..PANEL.min(self.out_features - first))
            .map(move |lane| (lane, &rows[(first + lane) * inputs..][..inputs]))
    }
}
