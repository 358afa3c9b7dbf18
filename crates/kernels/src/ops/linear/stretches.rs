//! Sums of rows by panels where the registers hold those of six rows: with AVX2, and without vectors.
//!
//! A stretch of inputs of one panel stays in the first-level cache, widened to f32 if it is bf16, while all rows meet it.
//! Sums wait in memory between stretches, and an output is summed in the order in which [`super::cpu`] sums it with many
//! registers or few rows, so the bits are the same.

use std::ops::Range;

use kanana_tensor::{Element, bf16};

use super::cpu::{Panels, Rectangle, Target};
use super::pack::{PANEL, TILE_K};
use crate::runtime::simd::{Isa, LANES, Lanes};

/// Inputs that all rows are summed over before the next ones: 16 KiB of a panel in f32. Whole bf16 tiles.
pub(crate) const DEPTH: usize = 256;
/// Rows from which inputs are laid out in stretches: fewer do not compete for the same places of the caches.
const LAID_OUT_ROWS: usize = 24;
/// Rows of a task, at most: 240 KiB of a stretch of inputs, in the second-level cache.
pub(crate) const TASK_ROWS: usize = 240;
/// Rows whose sums are in registers at once.
const ROWS: usize = 6;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Whether it pays to lay the rounded inputs of so many rows out in stretches, as [`Rectangle::multiply`] reads them. (A
/// copy of f32 inputs for this alone does not pay.)
pub(crate) fn pay(isa: Isa, rows: usize) -> bool {
    isa < Isa::Avx512 && rows >= LAID_OUT_ROWS
}

/// The weights of some inputs of a panel in f32.
#[derive(Clone, Copy)]
pub(crate) struct Stretch<'a> {
    w: &'a [f32],
    /// What is read after them, to be asked for.
    next: &'a [u8],
}

impl Stretch<'_> {
    /// Asks for part `i` of what is next.
    #[inline(always)]
    fn prefetch<L: Lanes, const BYTES: usize>(&self, i: usize) {
        if let Some(part) = self.next.as_chunks::<BYTES>().0.get(i) {
            for line in part.chunks(LINE) {
                L::prefetch(line.as_ptr());
            }
        }
    }
}

/// Room for a stretch of a panel in f32.
#[repr(align(64))]
pub(crate) struct Room([f32; DEPTH * PANEL]);

impl<'a, E: Element> Rectangle<'a, E> {
    /// Stretch after stretch, panel after panel.
    ///
    /// # Safety
    /// As for [`Rectangle::multiply`].
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(super) unsafe fn multiply_in_stretches<L: Lanes, W: Panels<Element = E>>(
        &self,
        to: &Target<'_>,
        add: bool,
    ) {
        let mut room = Room([0.0; DEPTH * PANEL]);
        let mut start = 0;
        loop {
            let inputs = start..self.inputs.min(start + DEPTH);
            for panel in 0..self.panels {
                let w = W::widened::<L>(self.stretch(panel, &inputs), &mut room);
                let next = match panel + 1 < self.panels {
                    true => self.stretch(panel + 1, &inputs),
                    false => self.stretch(0, &(inputs.end..self.inputs.min(inputs.end + DEPTH))),
                };
                // SAFETY: the caller's promise holds for each part.
                unsafe { self.all_rows::<L, W>((panel, &inputs), (w, next), to, add || start > 0) };
            }
            start += DEPTH;
            if start >= self.inputs {
                return;
            }
        }
    }

    /// The weights of some inputs of a panel.
    #[inline(always)]
    fn stretch(&self, panel: usize, inputs: &Range<usize>) -> &'a [E] {
        &self.w[panel * self.w_stride + inputs.start * PANEL..][..inputs.len() * PANEL]
    }

    /// All rows by a stretch of a panel. The first rows ask for the weights that come next.
    ///
    /// # Safety
    /// As for [`Rectangle::multiply`].
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn all_rows<L: Lanes, W: Panels<Element = E>>(
        &self,
        (panel, inputs): (usize, &Range<usize>),
        (w, next): (&[f32], &[E]),
        to: &Target<'_>,
        add: bool,
    ) {
        let mut w = Stretch { w, next: bytemuck::cast_slice(next) };
        let mut row = 0;
        while row < self.rows {
            // Two groups share what is left, so that neither has so few sums that they wait for each other.
            let rows = match self.rows - row {
                left @ ..=ROWS => left,
                left @ ..12 => left.div_ceil(2),
                _ => ROWS,
            };
            let at = (row, panel);
            // SAFETY: the caller's promise holds for each part.
            unsafe {
                match rows {
                    6 => self.some_rows::<L, W, 6>(at, inputs, w, to, add),
                    5 => self.some_rows::<L, W, 5>(at, inputs, w, to, add),
                    4 => self.some_rows::<L, W, 4>(at, inputs, w, to, add),
                    3 => self.some_rows::<L, W, 3>(at, inputs, w, to, add),
                    2 => self.some_rows::<L, W, 2>(at, inputs, w, to, add),
                    _ => self.some_rows::<L, W, 1>(at, inputs, w, to, add),
                }
            }
            row += rows;
            w.next = &[];
        }
    }

    /// `R` rows from a row on by the weights `w` of some inputs of a panel.
    ///
    /// # Safety
    /// As for [`Rectangle::multiply`].
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn some_rows<L: Lanes, W: Panels<Element = E>, const R: usize>(
        &self,
        (row, panel): (usize, usize),
        inputs: &Range<usize>,
        w: Stretch<'_>,
        to: &Target<'_>,
        add: bool,
    ) {
        let mut x: [&[f32]; R] = [&[]; R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = &self.x[(row + r) * self.x_stride..][inputs.clone()];
        }
        let n = panel * PANEL;
        // SAFETY: no other task uses these places, and no two ranges are held at once.
        let place =
            |r| unsafe { to.y.range(to.start + (row + r) * to.stride + n, PANEL.min(to.outputs - n)) };
        let mut sums = [L::splat(0.0); R];
        if add {
            for (r, sum) in sums.iter_mut().enumerate() {
                let from = &*place(r);
                *sum = match from.first_chunk() {
                    Some(full) => L::load(full),
                    None => L::load_partial(from, 0.0),
                };
            }
        }
        for (r, sum) in W::sums_widened(sums, x, w).into_iter().enumerate() {
            let to = place(r);
            match to.first_chunk_mut() {
                Some(full) => sum.store(full),
                None => sum.store_partial(to),
            }
        }
    }
}

/// Inputs whose weights are asked for at once: a bf16 tile, or as many in f32.
const PART: usize = TILE_K;
/// Inputs that the compiler writes out: more of them, and sums move between registers and memory.
const AT_ONCE: usize = 4;

/// Sums over f32 weights in the order of k.
#[inline(always)]
pub(super) fn sums_in_order<L: Lanes, const R: usize>(
    mut sums: [L; R],
    x: [&[f32]; R],
    stretch: Stretch<'_>,
) -> [L; R] {
    let (parts, rest) = stretch.w.as_chunks::<LANES>().0.as_chunks::<PART>();
    let mut x_parts: [&[[f32; PART]]; R] = [&[]; R];
    let mut x_rest: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        let (full, rest_of_row) = x[r].as_chunks::<PART>();
        (x_parts[r], x_rest[r]) = (&full[..parts.len()], &rest_of_row[..rest.len()]);
    }
    for (i, w) in parts.iter().enumerate() {
        stretch.prefetch::<L, { PART * PANEL * size_of::<f32>() }>(i);
        let mut x = [&[0.0; PART]; R];
        for r in 0..R {
            x[r] = &x_parts[r][i];
        }
        for (i, w) in w.as_chunks::<AT_ONCE>().0.iter().enumerate() {
            for k in 0..AT_ONCE {
                let weights = L::load(&w[k]);
                for r in 0..R {
                    let x = &x[r].as_chunks::<AT_ONCE>().0[i];
                    sums[r] = sums[r].fma(weights, L::splat(x[k]));
                }
            }
        }
    }
    for (k, w) in rest.iter().enumerate() {
        let weights = L::load(w);
        for r in 0..R {
            sums[r] = sums[r].fma(weights, L::splat(x_rest[r][k]));
        }
    }
    sums
}

/// A stretch of bf16 tiles in f32: the even inputs of a tile, then the odd ones.
#[inline(always)]
pub(super) fn widened_tiles<'a, L: Lanes>(w: &[bf16], room: &'a mut Room) -> &'a [f32] {
    const PAIRS: usize = TILE_K / 2;
    let tiles = w.as_chunks::<{ 2 * LANES }>().0.as_chunks::<PAIRS>().0;
    let to = room.0.as_chunks_mut::<LANES>().0.as_chunks_mut::<TILE_K>().0;
    for (tile, to) in tiles.iter().zip(to) {
        let (evens, odds) = to.split_at_mut(PAIRS);
        for pair in 0..PAIRS {
            let (even, odd) = L::load_bf16_pairs(&tile[pair]);
            even.store(&mut evens[pair]);
            odd.store(&mut odds[pair]);
        }
    }
    &room.0[..w.len()]
}

/// Sums over [`widened_tiles`]: of each tile the even products, then the odd ones, then their sum onto the rest. So half
/// as many sums run at once.
#[inline(always)]
pub(super) fn sums_of_tiles<L: Lanes, const R: usize>(
    mut sums: [L; R],
    x: [&[f32]; R],
    stretch: Stretch<'_>,
) -> [L; R] {
    let tiles = stretch.w.as_chunks::<LANES>().0.as_chunks::<{ TILE_K / 2 }>().0.as_chunks::<2>().0;
    let mut x_tiles: [&[[f32; TILE_K]]; R] = [&[]; R];
    for r in 0..R {
        x_tiles[r] = &x[r].as_chunks::<TILE_K>().0[..tiles.len()];
    }
    for (i, [even, odd]) in tiles.iter().enumerate() {
        stretch.prefetch::<L, { TILE_K * PANEL * size_of::<bf16>() }>(i);
        let mut x = [&[0.0; TILE_K]; R];
        for r in 0..R {
            x[r] = &x_tiles[r][i];
        }
        let (even, odd) = (half_of_tile::<L, R, 0>(x, even), half_of_tile::<L, R, 1>(x, odd));
        for r in 0..R {
            sums[r] = sums[r].add(even[r].add(odd[r]));
        }
    }
    sums
}

/// The products of the even (0) or odd (1) inputs of a tile.
#[inline(always)]
fn half_of_tile<L: Lanes, const R: usize, const ODD: usize>(
    x: [&[f32; TILE_K]; R],
    w: &[[f32; LANES]; TILE_K / 2],
) -> [L; R] {
    let mut products = [L::splat(0.0); R];
    for (i, w) in w.as_chunks::<AT_ONCE>().0.iter().enumerate() {
        for j in 0..AT_ONCE {
            let weights = L::load(&w[j]);
            for r in 0..R {
                let x = &x[r].as_chunks::<{ 2 * AT_ONCE }>().0[i];
                products[r] = products[r].fma(weights, L::splat(x[2 * j + ODD]));
            }
        }
    }
    products
}
