//! What multiplies a block of rows by the panels of a tile: the micro-kernels of [`crate::Kernels::linear`], each with
//! the layouts in which it takes rows and keeps sums.

#![allow(unsafe_code)]

use std::marker::PhantomData;

use kanana_tensor::{Element, bf16};

use super::tile::Panel;
use crate::ops::linear::cpu::{Bf16Tiles, F32Panels, Panels, Rectangle, Target};
use crate::ops::linear::pack::PANEL;
use crate::runtime::simd::{LANES, Lanes, bf16_rounded, to_bf16};
use crate::runtime::threads::SharedMut;

/// Some rows of a block against panels: both as long as `inputs`, padded with zeros.
pub(super) struct Operands<'a, U: Unit> {
    /// Element k of row r is at [`Unit::row_at`].
    pub(super) rows: &'a [U::Row],
    pub(super) count: usize,
    pub(super) inputs: usize,
    /// `[inputs / G][16][G]` each, one behind the other.
    pub(super) panels: &'a [U::Panel],
}

impl<U: Unit> Operands<'_, U> {
    fn panel_count(&self) -> usize {
        self.panels.len() / (self.inputs * PANEL)
    }
}

/// One way to multiply.
pub(super) trait Unit: Sized {
    /// What keys and values are packed as.
    type Panel: Panel;
    /// What queries and weights are stored as.
    type Row: Element;
    /// Rows of a block, at most.
    const ROWS: usize;

    /// Takes hold of the unit for this thread. Only on a processor that has it.
    fn start() -> Self;

    /// Rounds sixteen elements of a row as the unit takes them.
    fn store<L: Lanes>(x: L, to: &mut [Self::Row; LANES]);

    /// Where sixteen elements of a row from `k` on are, in a block of rows of `inputs` elements.
    #[inline(always)]
    fn row_at(row: usize, k: usize, inputs: usize) -> usize {
        row * inputs + k
    }

    /// Where a row's sums with a panel are, in a block of sums with `panels` panels.
    #[inline(always)]
    fn sums_at(row: usize, panel: usize, panels: usize) -> usize {
        (row * panels + panel) * PANEL
    }

    /// Clears the sums of some rows of a block.
    #[inline(always)]
    fn clear(sums: &mut [f32], count: usize, panels: usize) {
        sums[..count * panels * PANEL].fill(0.0);
    }

    /// Adds the products of rows and panels to their sums. (Each block has room for an even number of panels.)
    fn add_products<L: Lanes>(&self, operands: Operands<'_, Self>, sums: &mut [f32]);
}

/// Multiply-adds of f32 vectors, over panels of f32 or of bf16.
pub(super) struct Fma<W>(PhantomData<W>);

/// Panels of one dtype, and how a row is rounded beside them.
pub(super) trait FmaPanels: Panels {
    fn rounded(x: f32) -> f32;
}

impl FmaPanels for F32Panels {
    #[inline(always)]
    fn rounded(x: f32) -> f32 {
        x
    }
}

impl FmaPanels for Bf16Tiles {
    /// Denormal numbers are zeros, as the matrix unit takes them.
    #[inline(always)]
    fn rounded(x: f32) -> f32 {
        let x = bf16_rounded(x);
        if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
    }
}

impl<W: FmaPanels<Element: Panel>> Unit for Fma<W> {
    type Panel = W::Element;
    type Row = f32;
    const ROWS: usize = 48;

    fn start() -> Self {
        Fma(PhantomData)
    }

    #[inline(always)]
    fn store<L: Lanes>(x: L, to: &mut [f32; LANES]) {
        x.store(to);
        for x in to {
            *x = W::rounded(*x);
        }
    }

    #[inline(always)]
    fn add_products<L: Lanes>(&self, operands: Operands<'_, Self>, sums: &mut [f32]) {
        let (inputs, panels) = (operands.inputs, operands.panel_count());
        let rectangle = Rectangle {
            x: operands.rows,
            x_stride: inputs,
            inputs,
            rows: operands.count,
            w: operands.panels,
            w_stride: inputs * PANEL,
            panels,
        };
        let outputs = panels * PANEL;
        let to = Target { y: &SharedMut::new(sums), start: 0, stride: outputs, outputs };
        // SAFETY: the sums are borrowed for this call alone.
        unsafe { rectangle.multiply::<L, W>(&to, true) };
    }
}

#[inline(always)]
fn store_bf16<L: Lanes>(x: L, to: &mut [bf16; LANES]) {
    let mut full = [0.0; LANES];
    x.store(&mut full);
    for (to, x) in to.iter_mut().zip(full) {
        *to = to_bf16(x);
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Pairs, Tiles};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::ops::linear::pack::{TILE_K, TILE_ROWS};
    use crate::ops::linear::{amx, bf16_dot};
    use crate::runtime;

    /// Dot products of pairs of bf16 values (`vdpbf16ps`).
    pub(in super::super) struct Pairs;

    impl Unit for Pairs {
        type Panel = bf16;
        type Row = bf16;
        const ROWS: usize = 48;

        fn start() -> Self {
            Pairs
        }

        #[inline(always)]
        fn store<L: Lanes>(x: L, to: &mut [bf16; LANES]) {
            store_bf16(x, to);
        }

        #[inline(always)]
        fn add_products<L: Lanes>(&self, operands: Operands<'_, Self>, sums: &mut [f32]) {
            let (inputs, all) = (operands.inputs, operands.panel_count());
            let y = SharedMut::new(sums);
            for first in (0..all).step_by(bf16_dot::PANELS) {
                let panels = bf16_dot::PANELS.min(all - first);
                let rectangle = bf16_dot::Rectangle {
                    x: operands.rows,
                    x_stride: inputs,
                    rows: operands.count,
                    w: &operands.panels[first * inputs * PANEL..],
                    w_stride: inputs * PANEL,
                    panels,
                    pairs: 0..inputs / 2,
                };
                let to = Target { y: &y, start: first * PANEL, stride: all * PANEL, outputs: panels * PANEL };
                // SAFETY: the sums are borrowed for this call alone.
                unsafe { rectangle.multiply(&to, true) };
            }
        }
    }

    /// The matrix unit. Rows are tiles `[2][inputs/32][16][32]`, sums squares of two by two tiles.
    pub(in super::super) struct Tiles(runtime::amx::Tiles);

    impl Unit for Tiles {
        type Panel = bf16;
        type Row = bf16;
        const ROWS: usize = 2 * TILE_ROWS;

        fn start() -> Self {
            Tiles(runtime::amx::Tiles::configure())
        }

        #[inline(always)]
        fn store<L: Lanes>(x: L, to: &mut [bf16; LANES]) {
            store_bf16(x, to);
        }

        #[inline(always)]
        fn row_at(row: usize, k: usize, inputs: usize) -> usize {
            let tile = row / TILE_ROWS * (inputs / TILE_K) + k / TILE_K;
            (tile * TILE_ROWS + row % TILE_ROWS) * TILE_K + k % TILE_K
        }

        #[inline(always)]
        fn clear(sums: &mut [f32], _count: usize, _panels: usize) {
            sums.fill(0.0);
        }

        #[inline(always)]
        fn sums_at(row: usize, panel: usize, _panels: usize) -> usize {
            let tile = panel / 2 * 4 + row / TILE_ROWS * 2 + panel % 2;
            (tile * TILE_ROWS + row % TILE_ROWS) * PANEL
        }

        #[inline(always)]
        fn add_products<L: Lanes>(&self, operands: Operands<'_, Self>, sums: &mut [f32]) {
            let (inputs, panels) = (operands.inputs, operands.panel_count());
            let rows = [0, 1].map(|i| &operands.rows[i * TILE_ROWS * inputs..][..TILE_ROWS * inputs]);
            let squares = sums.as_chunks_mut::<{ amx::SUMS }>().0.as_chunks_mut::<4>().0;
            for (pair, square) in squares.iter_mut().enumerate().take(panels.div_ceil(2)) {
                // The last panel may be alone: it is then multiplied twice, and its sums are read once.
                let columns = [2 * pair, (2 * pair + 1).min(panels - 1)]
                    .map(|panel| &operands.panels[panel * inputs * PANEL..][..inputs * PANEL]);
                amx::multiply(&self.0, square, rows, columns);
            }
        }
    }
}
