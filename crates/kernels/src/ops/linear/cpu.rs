//! `x · wᵀ` over panels of 16 outputs.
//!
//! A block of rows of `x` that fits in the second-level cache meets every panel; within, `R` rows by `P` panels are
//! summed in registers. One row takes four panels at once and streams the weights; many rows take one panel and use it
//! from the cache. The sums of an output are the same in every case, so the bits do not depend on the case.

use kanana_tensor::{DType, Element, Tensor, bf16};

use super::pack::{PANEL, TILE_K, panel_len};
use super::shares::{Share, Sizes, share_out};
use super::{Format, Layout, Weight, check_linear};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Isa, Kernel, LANES, Lanes, bf16_rounded, dispatch};
use crate::runtime::threads::SharedMut;

/// Bytes of activations that a task keeps in the second-level cache.
const CACHED_ROWS: usize = 1 << 20;
/// Bytes ahead of the reader that are asked for.
const PREFETCH: usize = 2048;

/// Rows from which the matrix unit is faster, where there is one.
#[cfg(target_arch = "x86_64")]
const MATRIX_ROWS: usize = 2;

/// The product of one input with several weights, all panels of all of them shared out at once.
pub(crate) fn linears(machine: Machine<'_>, x: &Tensor, weights: &[&Weight]) -> Result<Vec<Tensor>> {
    let Some(format) = weights.first().map(|w| w.format) else { return Ok(Vec::new()) };
    if weights.iter().any(|w| w.format != format) {
        return weights.iter().map(|w| Ok(linears(machine, x, &[w])?.swap_remove(0))).collect();
    }
    if format.is_quantised() {
        return super::quant_cpu::linears(machine, x, weights);
    }
    #[cfg(target_arch = "x86_64")]
    match (format, machine.isa) {
        (Format::BF16, Isa::Amx) if x.rows() >= MATRIX_ROWS => {
            return super::amx::linears(machine, x, weights);
        }
        (Format::BF16, Isa::Avx512Bf16) => return super::bf16_dot::linears(machine, x, weights),
        _ => {}
    }
    let (tokens, mut outputs) = checked_outputs(machine, x, weights)?;
    if tokens == 0 {
        return Ok(outputs);
    }
    let rounded = if format == Format::BF16 { Some(rounded_to_bf16(machine, x)?) } else { None };
    let x = rounded.as_ref().unwrap_or(x);
    let mut products = Vec::with_capacity(weights.len());
    for (w, y) in weights.iter().zip(&mut outputs) {
        products.push(Product {
            x: check::slice::<f32>("linear", x)?,
            x_stride: x.row_len(),
            w,
            y: SharedMut::new(check::slice_mut::<f32>("linear", y)?),
        });
    }
    let row_bytes = x.row_len().max(1) * size_of::<f32>();
    let rows_per_block = (CACHED_ROWS / row_bytes).clamp(12, 240) / 12 * 12;
    let panels = if tokens == 1 { 8 } else { 4 };
    let sizes = Sizes { rows: rows_per_block, row_step: 12, panels, panel_step: 1 };
    let widths: Vec<usize> = weights.iter().map(|w| w.out_features).collect();
    let shares = share_out(machine.threads.count(), tokens, &widths, sizes);
    machine.threads.run(shares.len(), &|i| {
        let Share { product, rows, panels } = &shares[i];
        let block = Block { product: &products[*product], rows: rows.clone(), panels: panels.clone() };
        dispatch(machine.isa, block);
    });
    drop(products);
    Ok(outputs)
}

/// T, and room for every product, once the input fits all of the weights and they are panels.
pub(crate) fn checked_outputs(
    machine: Machine<'_>,
    x: &Tensor,
    weights: &[&Weight],
) -> Result<(usize, Vec<Tensor>)> {
    let mut tokens = 0;
    for w in weights {
        tokens = check_linear(x, w)?;
        w.check_layout("linear", Layout::Panels)?;
    }
    let output = |w: &&Weight| machine.pool.tensor(&[tokens, w.out_features], DType::F32);
    Ok((tokens, weights.iter().map(output).collect()))
}

/// `x` rounded to bf16 and widened again, each row padded with zeros to whole tiles.
fn rounded_to_bf16(machine: Machine<'_>, x: &Tensor) -> Result<Tensor> {
    let (inputs, padded) = (x.row_len(), x.row_len().next_multiple_of(TILE_K));
    let values = check::slice::<f32>("linear", x)?;
    let mut rounded = machine.pool.tensor(&[x.rows(), padded], DType::F32);
    machine.threads.rows_mut(check::slice_mut::<f32>("linear", &mut rounded)?, padded, |t, row| {
        dispatch(machine.isa, Round { from: &values[t * inputs..][..inputs], to: row });
    });
    Ok(rounded)
}

struct Round<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (to, &from) in self.to.iter_mut().zip(self.from) {
            let x = bf16_rounded(from);
            // As the matrix unit takes it.
            *to = if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x };
        }
        self.to[self.from.len()..].fill(0.0);
    }
}

struct Product<'a> {
    x: &'a [f32],
    x_stride: usize,
    w: &'a Weight,
    y: SharedMut<'a, f32>,
}

/// Some rows against some panels.
struct Block<'a> {
    product: &'a Product<'a>,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

impl Kernel for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        match self.product.w.format {
            Format::BF16 => self.multiply::<L, Bf16Tiles>(),
            _ => self.multiply::<L, F32Panels>(),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    #[allow(unsafe_code)]
    fn multiply<L: Lanes, W: Panels>(&self) {
        let Product { x, x_stride, w, y } = self.product;
        let w_stride = panel_len(w.in_features, W::Element::DTYPE);
        let Ok(weights) = w.data.as_slice::<W::Element>() else {
            unreachable!("packed weights are in host memory: this is a bug")
        };
        let rectangle = Rectangle {
            x: &x[self.rows.start * x_stride..],
            x_stride: *x_stride,
            inputs: *x_stride,
            rows: self.rows.len(),
            w: &weights[self.panels.start * w_stride..],
            w_stride,
            panels: self.panels.len(),
        };
        let first = self.panels.start * PANEL;
        let outputs = (self.panels.len() * PANEL).min(w.out_features - first);
        let start = self.rows.start * w.out_features + first;
        let to = Target { y, start, stride: w.out_features, outputs };
        // SAFETY: each (row, panel) belongs to one task.
        unsafe { rectangle.multiply::<L, W>(&to, false) };
    }
}

/// Where sums of rows by panels go: row r to `start + r · stride ..` of `y`, `outputs` of each.
pub(crate) struct Target<'a> {
    pub(crate) y: &'a SharedMut<'a, f32>,
    pub(crate) start: usize,
    pub(crate) stride: usize,
    pub(crate) outputs: usize,
}

/// Rows of inputs and panels of one dtype, all along k.
pub(crate) struct Rectangle<'a, E> {
    pub(crate) x: &'a [f32], // [rows][x_stride]
    pub(crate) x_stride: usize,
    /// How many of a row's and a panel's inputs are summed over.
    pub(crate) inputs: usize,
    pub(crate) rows: usize,
    pub(crate) w: &'a [E], // [panels][w_stride], a panel as `Layout::Panels` has it
    pub(crate) w_stride: usize,
    pub(crate) panels: usize,
}

impl<E> Rectangle<'_, E> {
    /// Writes the sums, or adds to what is there.
    ///
    /// # Safety
    /// Nobody else uses the target's places meanwhile.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(crate) unsafe fn multiply<L: Lanes, W: Panels<Element = E>>(&self, to: &Target<'_>, add: bool) {
        // SAFETY: the caller's promise holds for each part.
        unsafe {
            if self.rows < 4 {
                // Memory-bound: every weight is used a few times at most, so read several streams of them.
                let mut panel = 0;
                while panel + 4 <= self.panels {
                    for row in 0..self.rows {
                        self.part::<L, W, 1, 4>(row, panel, to, add);
                    }
                    panel += 4;
                }
                for panel in panel..self.panels {
                    for row in 0..self.rows {
                        self.part::<L, W, 1, 1>(row, panel, to, add);
                    }
                }
                return;
            }
            // As many rows as leave room for the weights and an input in the registers.
            match L::HELD / W::SUMS {
                8 => self.walk::<L, W, 6, 3>(to, add),
                4 => self.walk::<L, W, 3, 2>(to, add),
                _ => self.walk::<L, W, 12, 4>(to, add),
            }
        }
    }

    /// Panel after panel, `R` rows at once while there are so many, then `S`, then one by one.
    ///
    /// # Safety
    /// As for [`Rectangle::multiply`].
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn walk<L: Lanes, W: Panels<Element = E>, const R: usize, const S: usize>(
        &self,
        to: &Target<'_>,
        add: bool,
    ) {
        for panel in 0..self.panels {
            let mut row = 0;
            // SAFETY: the caller's promise holds for each part.
            unsafe {
                while row + R <= self.rows {
                    self.part::<L, W, R, 1>(row, panel, to, add);
                    row += R;
                }
                while row + S <= self.rows {
                    self.part::<L, W, S, 1>(row, panel, to, add);
                    row += S;
                }
                for row in row..self.rows {
                    self.part::<L, W, 1, 1>(row, panel, to, add);
                }
            }
        }
    }

    /// `R` rows from `row` on by `P` panels from `panel` on.
    ///
    /// # Safety
    /// As for [`Rectangle::multiply`].
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn part<L: Lanes, W: Panels<Element = E>, const R: usize, const P: usize>(
        &self,
        row: usize,
        panel: usize,
        to: &Target<'_>,
        add: bool,
    ) {
        let x = std::array::from_fn(|r| &self.x[(row + r) * self.x_stride..][..self.inputs]);
        let w = std::array::from_fn(|p| &self.w[(panel + p) * self.w_stride..][..self.inputs * PANEL]);
        let place = |r: usize, p: usize| {
            let n = (panel + p) * PANEL;
            // SAFETY: no other task uses these places, and no two ranges are held at once.
            unsafe { to.y.range(to.start + (row + r) * to.stride + n, PANEL.min(to.outputs - n)) }
        };
        let mut sums = [[L::splat(0.0); P]; R];
        if add {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (p, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load_partial(place(r, p), 0.0);
                }
            }
        }
        for (r, sums) in W::sums::<L, R, P>(sums, x, w).into_iter().enumerate() {
            for (p, sum) in sums.into_iter().enumerate() {
                let to = place(r, p);
                match to.try_into() {
                    Ok(full) => sum.store(full),
                    Err(_) => sum.store_partial(to),
                }
            }
        }
    }
}

/// How one dtype's panels are summed: `R` rows by `P` panels at once, onto what was summed before.
pub(crate) trait Panels {
    type Element: Element;
    /// Sums that run at once for each output.
    const SUMS: usize;
    fn sums<L: Lanes, const R: usize, const P: usize>(
        sums: [[L; P]; R],
        x: [&[f32]; R],
        w: [&[Self::Element]; P],
    ) -> [[L; P]; R];
}

pub(crate) struct F32Panels;

impl Panels for F32Panels {
    type Element = f32;
    const SUMS: usize = 1;

    /// In the order of k.
    #[inline(always)]
    fn sums<L: Lanes, const R: usize, const P: usize>(
        mut sums: [[L; P]; R],
        x: [&[f32]; R],
        w: [&[f32]; P],
    ) -> [[L; P]; R] {
        let w = w.map(|w| w.as_chunks::<LANES>().0);
        for k in 0..w[0].len() {
            for p in 0..P {
                L::prefetch(w[p].as_ptr().wrapping_add(k).cast::<u8>().wrapping_add(PREFETCH));
                let weights = L::load(&w[p][k]);
                for r in 0..R {
                    sums[r][p] = sums[r][p].fma(weights, L::splat(x[r][k]));
                }
            }
        }
        sums
    }
}

pub(crate) struct Bf16Tiles;

impl Panels for Bf16Tiles {
    type Element = bf16;
    const SUMS: usize = 2;

    /// Over each tile of 32 k, even and odd products apart, then their sum onto the accumulator.
    #[inline(always)]
    fn sums<L: Lanes, const R: usize, const P: usize>(
        mut sums: [[L; P]; R],
        x: [&[f32]; R],
        w: [&[bf16]; P],
    ) -> [[L; P]; R] {
        let w = w.map(|w| w.as_chunks::<{ 2 * LANES }>().0.as_chunks::<{ TILE_K / 2 }>().0);
        let x = x.map(|x| x.as_chunks::<TILE_K>().0);
        for k in 0..w[0].len() {
            let mut even = [[L::splat(0.0); P]; R];
            let mut odd = [[L::splat(0.0); P]; R];
            for pair in 0..TILE_K / 2 {
                for p in 0..P {
                    let address = w[p][k][pair].as_ptr().cast::<u8>();
                    L::prefetch(address.wrapping_add(PREFETCH));
                    let (w_even, w_odd) = L::load_bf16_pairs(&w[p][k][pair]);
                    for r in 0..R {
                        even[r][p] = even[r][p].fma(w_even, L::splat(x[r][k][2 * pair]));
                        odd[r][p] = odd[r][p].fma(w_odd, L::splat(x[r][k][2 * pair + 1]));
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    sums[r][p] = sums[r][p].add(even[r][p].add(odd[r][p]));
                }
            }
        }
        sums
    }
}
