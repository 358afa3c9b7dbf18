//! The products of gradients on the CPU: operands are laid out for them without a transposed copy where they can be.

use kanana_tensor::{DType, Tensor, bf16};

use super::backward::{transposed_format, unpacked};
use super::cpu::{F32Panels, Rectangle, Target};
use super::pack::{PANEL, panel_len};
use super::shares::{Sizes, share_out};
use super::{Format, Layout, Weight};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Isa, Kernel, LANES, Lanes, dispatch};
use crate::runtime::threads::SharedMut;

/// Tokens whose products are summed before others': their panel of inputs stays in the second-level cache.
const DEPTH: usize = 1024;

/// Sixteen columns of `x` to a panel: neighbours in a row are neighbours there. For f32.
pub(crate) fn pack_transposed_f32(machine: Machine<'_>, matrix: &Tensor) -> Result<Weight> {
    let [rows, columns] = check::dims("pack_transposed", "matrix", matrix)?;
    let from = check::slice::<f32>("pack_transposed", matrix)?;
    let mut data = machine.pool.tensor(&[columns.div_ceil(PANEL) * rows * PANEL], DType::F32);
    let to = check::slice_mut::<f32>("pack_transposed", &mut data)?;
    machine.threads.chunks_mut(to, (rows * PANEL).max(1), |panel, to| {
        let first = panel * PANEL;
        let width = PANEL.min(columns - first);
        for (to, row) in to.as_chunks_mut::<PANEL>().0.iter_mut().zip(from.chunks_exact(columns)) {
            to[..width].copy_from_slice(&row[first..][..width]);
            to[width..].fill(0.0);
        }
    });
    Ok(Weight { out_features: columns, in_features: rows, format: Format::F32, layout: Layout::Panels, data })
}

/// Whether products of bf16 are faster than those of f32, of which gradients are made else.
pub(crate) fn bf16_pays(isa: Isa) -> bool {
    matches!(isa, Isa::Avx512Bf16 | Isa::Amx)
}

/// [`crate::Kernels::transposed`].
pub(crate) fn transposed(machine: Machine<'_>, w: &Weight) -> Result<Weight> {
    let format = if bf16_pays(machine.isa) { transposed_format(w.format) } else { Format::F32 };
    match (w.format, w.layout) {
        (Format::F32, Layout::Panels) => {
            let (n, k) = (w.out_features, w.in_features);
            let from = check::slice::<f32>("transposed", &w.data)?;
            let mut data = machine.pool.tensor(&[k.div_ceil(PANEL) * n * PANEL], DType::F32);
            let to = check::slice_mut::<f32>("transposed", &mut data)?;
            machine.threads.chunks_mut(to, (n * PANEL).max(1), |panel, to| {
                let first = panel * PANEL;
                let width = PANEL.min(k - first);
                for (source, to) in from.chunks_exact(k * PANEL).zip(to.chunks_mut(PANEL * PANEL)) {
                    dispatch(machine.isa, Turn { from: &source[first * PANEL..][..width * PANEL], to });
                }
            });
            Ok(Weight { out_features: k, in_features: n, format, layout: Layout::Panels, data })
        }
        (Format::BF16, Layout::Panels) if format == Format::F32 => {
            let (n, k) = (w.out_features, w.in_features);
            let source_len = panel_len(k, DType::BF16);
            let from = check::slice::<bf16>("transposed", &w.data)?;
            let mut data = machine.pool.tensor(&[k.div_ceil(PANEL) * n * PANEL], DType::F32);
            let to = check::slice_mut::<f32>("transposed", &mut data)?;
            machine.threads.chunks_mut(to, (n * PANEL).max(1), |panel, to| {
                for (source, to) in from.chunks_exact(source_len.max(1)).zip(to.chunks_mut(PANEL * PANEL)) {
                    // Two inputs lie side by side, so that sixteen of them start where they would one by one.
                    let pairs = &source[panel * PANEL * PANEL..][..PANEL * PANEL];
                    dispatch(machine.isa, TurnPairs { from: pairs, to });
                }
            });
            Ok(Weight { out_features: k, in_features: n, format, layout: Layout::Panels, data })
        }
        _ if format == Format::F32 => pack_transposed_f32(machine, &unpacked(w)?),
        _ => {
            let turned = transpose(machine, &unpacked(w)?)?;
            super::pack::pack(machine.threads, machine.isa, &turned, format)
        }
    }
}

/// Up to sixteen vectors to as many, the rest zeros.
struct Turn<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut vectors = [L::splat(0.0); LANES];
        let from = self.from.as_chunks::<LANES>().0;
        for i in 0..from.len() {
            vectors[i] = L::load(&from[i]);
        }
        let turned = L::transpose(vectors);
        let to = self.to.as_chunks_mut::<LANES>().0;
        for i in 0..to.len() {
            turned[i].store(&mut to[i]);
        }
    }
}

/// Sixteen inputs of sixteen outputs, in pairs of bf16, to as many vectors of f32.
struct TurnPairs<'a> {
    from: &'a [bf16],
    to: &'a mut [f32],
}

impl Kernel for TurnPairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut vectors = [L::splat(0.0); LANES];
        let pairs = self.from.as_chunks::<{ 2 * LANES }>().0;
        for i in 0..pairs.len() {
            (vectors[2 * i], vectors[2 * i + 1]) = L::load_bf16_pairs(&pairs[i]);
        }
        let turned = L::transpose(vectors);
        let to = self.to.as_chunks_mut::<LANES>().0;
        for i in 0..to.len() {
            turned[i].store(&mut to[i]);
        }
    }
}

/// [`crate::Kernels::transpose`].
pub(crate) fn transpose(machine: Machine<'_>, x: &Tensor) -> Result<Tensor> {
    let [rows, columns] = check::dims("transpose", "x", x)?;
    let from = check::slice::<f32>("transpose", x)?;
    let mut turned = machine.pool.tensor(&[columns, rows], DType::F32);
    let to = check::slice_mut::<f32>("transpose", &mut turned)?;
    machine.threads.chunks_mut(to, (rows * LANES).max(1), |i, to| {
        dispatch(machine.isa, Columns { from, columns, first: i * LANES, rows, to });
    });
    Ok(turned)
}

/// Sixteen columns become rows.
struct Columns<'a> {
    from: &'a [f32],
    columns: usize,
    first: usize,
    rows: usize,
    to: &'a mut [f32],
}

impl Kernel for Columns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let width = self.to.len() / self.rows.max(1);
        for start in (0..self.rows).step_by(LANES) {
            let count = LANES.min(self.rows - start);
            let mut vectors = [L::splat(0.0); LANES];
            for (i, vector) in vectors.iter_mut().enumerate().take(count) {
                let row = &self.from[(start + i) * self.columns + self.first..][..width];
                *vector = match row.first_chunk::<LANES>() {
                    Some(row) => L::load(row),
                    None => L::load_partial(row, 0.0),
                };
            }
            let turned = L::transpose(vectors);
            for (i, vector) in turned.into_iter().enumerate().take(width) {
                let to = &mut self.to[i * self.rows + start..][..count];
                match to.first_chunk_mut::<LANES>() {
                    Some(to) => vector.store(to),
                    None => vector.store_partial(to),
                }
            }
        }
    }
}

/// [`crate::Kernels::linear_backward_weight`] in f32: onto `base`, in the memory of `base` where this is its only handle.
pub(crate) fn backward_weight_f32(
    machine: Machine<'_>,
    mut base: Tensor,
    dy: &Tensor,
    x: &Tensor,
) -> Result<Tensor> {
    const OP: &str = "linear_backward_weight";
    let [tokens, outputs] = check::dims(OP, "dy", dy)?;
    let [_, inputs] = check::dims(OP, "x", x)?;
    check::shape(OP, "x", x, &[tokens, inputs])?;
    check::shape(OP, "base", &base, &[outputs, inputs])?;
    if base.as_mut_slice::<f32>().is_err() {
        base = check::in_op(OP, Tensor::from_slice(base.shape(), check::slice::<f32>(OP, &base)?))?;
    }
    if tokens == 0 {
        return Ok(base);
    }
    let turned = transpose(machine, dy)?;
    let packed = pack_transposed_f32(machine, x)?;
    let (rows, panels) = (check::slice::<f32>(OP, &turned)?, check::slice::<f32>(OP, &packed.data)?);
    let y = SharedMut::new(check::slice_mut::<f32>(OP, &mut base)?);
    let sizes = Sizes { rows: 96, row_step: 12, panels: 4, panel_step: 1 };
    let shares = share_out(machine.threads.count(), outputs, &[inputs], sizes);
    machine.threads.run(shares.len(), &|i| {
        let share = &shares[i];
        let first = share.panels.start * PANEL;
        let outputs = (share.panels.len() * PANEL).min(inputs - first);
        for start in (0..tokens).step_by(DEPTH) {
            let product = Product {
                x: &rows[share.rows.start * tokens + start..],
                rows: share.rows.len(),
                depth: DEPTH.min(tokens - start),
                tokens,
                w: &panels[(share.panels.start * tokens + start) * PANEL..],
                panels: share.panels.len(),
                to: Target { y: &y, start: share.rows.start * inputs + first, stride: inputs, outputs },
            };
            dispatch(machine.isa, product);
        }
    });
    Ok(base)
}

struct Product<'a> {
    x: &'a [f32],
    rows: usize,
    depth: usize,
    tokens: usize,
    w: &'a [f32],
    panels: usize,
    to: Target<'a>,
}

impl Kernel for Product<'_> {
    type Output = ();
    #[inline(always)]
    #[allow(unsafe_code)]
    fn run<L: Lanes>(self) {
        let rectangle = Rectangle {
            x: self.x,
            x_stride: self.tokens,
            rows: self.rows,
            w: self.w,
            w_stride: self.tokens * PANEL,
            panels: self.panels,
            inputs: self.depth,
        };
        // SAFETY: each (row, panel) belongs to one task.
        unsafe { rectangle.multiply::<L, F32Panels>(&self.to, true) };
    }
}
