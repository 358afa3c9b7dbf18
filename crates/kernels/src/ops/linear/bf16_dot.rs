//! `x · wᵀ` in bf16 by dot products of pairs (`vdpbf16ps`): one instruction adds two products to each of 16 outputs.
//!
//! A weight panel is read as it is stored: a vector is a pair of inputs of 16 outputs. `R` rows by `P` panels of sums stay
//! in registers over a stretch of inputs whose weights fit in the first-level cache, while a block of rows over that
//! stretch stays in the second-level cache. An output is summed in the order of its pairs whatever the case, so a row has
//! the same bits in every batch. They are not the bits of the other levels: the instruction rounds after each product of
//! a pair and takes denormal numbers for zeros.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // Registers are named by row and panel.

use std::arch::x86_64::*;

use kanana_tensor::{DType, Tensor, bf16};

use super::Weight;
use super::cpu::{Target, checked_outputs};
use super::pack::{PANEL, TILE_K, panel_len};
use super::shares::{Share, Sizes, share_out};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, Lanes, dispatch, to_bf16};
use crate::runtime::threads::SharedMut;

/// Rows whose sums are in registers at once.
const ROWS: usize = 6;
/// Panels whose sums are in registers at once.
pub(crate) const PANELS: usize = 4;
/// Pairs of inputs of a stretch: [`PANELS`] panels of them are 32 KiB.
const STRETCH: usize = 128;
/// Rows of a task, at most: 256 KiB over a stretch.
const BLOCK_ROWS: usize = 84 * ROWS;
/// Bytes ahead of the reader that are asked for when weights come from memory.
const PREFETCH: usize = 8192;

/// The products of one input with several bf16 weights.
pub(crate) fn linears(machine: Machine<'_>, x: &Tensor, weights: &[&Weight]) -> Result<Vec<Tensor>> {
    let (tokens, mut outputs) = checked_outputs(machine, x, weights)?;
    let rounded = rounded(machine, x)?;
    let mut products = Vec::with_capacity(weights.len());
    for (w, y) in weights.iter().zip(&mut outputs) {
        products.push(Product {
            x: check::slice::<bf16>("linear", &rounded)?,
            w: check::slice::<bf16>("linear", &w.data)?,
            pairs: rounded.row_len() / 2,
            outputs: w.out_features,
            y: SharedMut::new(check::slice_mut::<f32>("linear", y)?),
        });
    }
    // A single row streams the weights: more panels to a task, so that claiming tasks costs little.
    let panels = if tokens == 1 { 2 * PANELS } else { PANELS };
    let sizes = Sizes { rows: BLOCK_ROWS, row_step: ROWS, panels, panel_step: 1 };
    let widths: Vec<usize> = weights.iter().map(|w| w.out_features).collect();
    let shares = share_out(machine.threads.count(), tokens, &widths, sizes);
    machine.threads.run(shares.len(), &|i| {
        let Share { product, rows, panels } = &shares[i];
        Block { product: &products[*product], rows: rows.clone(), panels: panels.clone() }.run();
    });
    drop(products);
    Ok(outputs)
}

/// `x` rounded to bf16, each row padded with zeros to whole tiles: `[T, K/32 · 32]`.
fn rounded(machine: Machine<'_>, x: &Tensor) -> Result<Tensor> {
    let (inputs, padded) = (x.row_len(), x.row_len().next_multiple_of(TILE_K));
    let values = check::slice::<f32>("linear", x)?;
    let mut rounded = machine.pool.tensor(&[x.rows(), padded], DType::BF16);
    machine.threads.rows_mut(check::slice_mut::<bf16>("linear", &mut rounded)?, padded, |t, row| {
        dispatch(machine.isa, Round { from: &values[t * inputs..][..inputs], to: row });
    });
    Ok(rounded)
}

/// Rounds a row to bf16, the rest of the target to zero.
struct Round<'a> {
    from: &'a [f32],
    to: &'a mut [bf16],
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (to, &from) in self.to.iter_mut().zip(self.from) {
            *to = to_bf16(from);
        }
        self.to[self.from.len()..].fill(bf16::ZERO);
    }
}

struct Product<'a> {
    x: &'a [bf16],
    w: &'a [bf16],
    pairs: usize,
    outputs: usize,
    y: SharedMut<'a, f32>,
}

/// Some rows against some panels.
struct Block<'a> {
    product: &'a Product<'a>,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

impl Block<'_> {
    fn run(&self) {
        let product = self.product;
        let (x_stride, w_stride) = (2 * product.pairs, panel_len(2 * product.pairs, DType::BF16));
        // With few rows nothing is used often enough to pay for coming back to it; one row reads panel after panel, so
        // that memory is one long stream.
        let stretch = if self.rows.len() <= ROWS { product.pairs.max(1) } else { STRETCH };
        let at_once = if self.rows.len() == 1 { 1 } else { PANELS };
        for panel in self.panels.clone().step_by(at_once) {
            let panels = at_once.min(self.panels.end - panel);
            for first in (0..product.pairs.max(1)).step_by(stretch) {
                let rectangle = Rectangle {
                    x: &product.x[self.rows.start * x_stride..],
                    x_stride,
                    rows: self.rows.len(),
                    w: &product.w[panel * w_stride..],
                    w_stride,
                    panels,
                    pairs: first..product.pairs.min(first + stretch),
                };
                let outputs = (panels * PANEL).min(product.outputs - panel * PANEL);
                let start = self.rows.start * product.outputs + panel * PANEL;
                let to = Target { y: &product.y, start, stride: product.outputs, outputs };
                // SAFETY: each (row, panel) belongs to one task.
                unsafe { rectangle.multiply(&to, first > 0) };
            }
        }
    }
}

/// Rows of bf16 inputs and panels of weights over the same stretch of pairs along k.
pub(crate) struct Rectangle<'a> {
    pub(crate) x: &'a [bf16], // [rows][x_stride]
    pub(crate) x_stride: usize,
    pub(crate) rows: usize,
    pub(crate) w: &'a [bf16], // [panels][w_stride], a panel as `Layout::Panels` has it
    pub(crate) w_stride: usize,
    pub(crate) panels: usize, // at most PANELS
    pub(crate) pairs: std::ops::Range<usize>,
}

impl Rectangle<'_> {
    /// Writes the sums, or adds to what is there. Needs AVX512_BF16, as all of this file.
    ///
    /// # Safety
    /// Nobody else uses the target's places meanwhile.
    #[inline]
    pub(crate) unsafe fn multiply(&self, to: &Target<'_>, accumulate: bool) {
        assert!(self.rows == 0 || self.x.len() >= (self.rows - 1) * self.x_stride + 2 * self.pairs.end);
        assert!(self.panels <= PANELS && to.outputs <= self.panels * PANEL);
        let last_panel = self.panels.saturating_sub(1) * self.w_stride;
        assert!(self.panels == 0 || self.w.len() >= last_panel + 2 * PANEL * self.pairs.end);
        // SAFETY: `Isa::Avx512Bf16` is chosen only where the processor has the instructions; the slices hold all that the
        // rows and panels reach, as was just checked.
        unsafe {
            match self.panels {
                4 => self.all_rows::<4>(to, accumulate),
                3 => self.all_rows::<3>(to, accumulate),
                2 => self.all_rows::<2>(to, accumulate),
                1 => self.all_rows::<1>(to, accumulate),
                _ => {}
            }
        }
    }

    /// # Safety
    /// As for [`Rectangle::multiply`], which checked that the slices hold what is read.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn all_rows<const P: usize>(&self, to: &Target<'_>, accumulate: bool) {
        let mut row = 0;
        // SAFETY: as in `multiply`, for each of these blocks of rows.
        unsafe {
            while row + ROWS <= self.rows {
                self.some_rows::<ROWS, P>(row, to, accumulate);
                row += ROWS;
            }
            match self.rows - row {
                5 => self.some_rows::<5, P>(row, to, accumulate),
                4 => self.some_rows::<4, P>(row, to, accumulate),
                3 => self.some_rows::<3, P>(row, to, accumulate),
                2 => self.some_rows::<2, P>(row, to, accumulate),
                1 => self.some_rows::<1, P>(row, to, accumulate),
                _ => {}
            }
        }
    }

    /// `R` rows from row `first`.
    ///
    /// # Safety
    /// As for [`Rectangle::all_rows`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn some_rows<const R: usize, const P: usize>(
        &self,
        first: usize,
        to: &Target<'_>,
        accumulate: bool,
    ) {
        let lanes = |p: usize| {
            let lanes = to.outputs.saturating_sub(p * PANEL).min(PANEL);
            ((1u32 << lanes) - 1) as __mmask16
        };
        // SAFETY: reads of `x` and `w` stay in the rows and panels that `multiply` checked; `range` checks the target.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); P]; R];
            if accumulate {
                for r in 0..R {
                    let y = to.y.range(to.start + (first + r) * to.stride, to.outputs).as_ptr();
                    for p in 0..P {
                        sums[r][p] = _mm512_maskz_loadu_ps(lanes(p), y.wrapping_add(p * PANEL));
                    }
                }
            }
            let x = self.x.as_ptr().add(first * self.x_stride);
            for pair in self.pairs.clone() {
                let mut weights = [_mm512_setzero_si512(); P];
                for p in 0..P {
                    let w = self.w.as_ptr().add(p * self.w_stride + pair * 2 * PANEL);
                    if R == 1 {
                        _mm_prefetch::<_MM_HINT_T0>(w.cast::<i8>().wrapping_add(PREFETCH));
                    }
                    weights[p] = _mm512_loadu_si512(w.cast());
                }
                for r in 0..R {
                    let x = x.add(r * self.x_stride + 2 * pair).cast::<i32>().read_unaligned();
                    let x = _mm512_set1_epi32(x);
                    for p in 0..P {
                        sums[r][p] = _mm512_dpbf16_ps(sums[r][p], bf16s(weights[p]), bf16s(x));
                    }
                }
            }
            for r in 0..R {
                let y = to.y.range(to.start + (first + r) * to.stride, to.outputs).as_mut_ptr();
                for p in 0..P {
                    _mm512_mask_storeu_ps(y.wrapping_add(p * PANEL), lanes(p), sums[r][p]);
                }
            }
        }
    }
}

/// The same bits as bf16 values.
#[target_feature(enable = "avx512f")]
#[inline]
fn bf16s(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(x) }
}
