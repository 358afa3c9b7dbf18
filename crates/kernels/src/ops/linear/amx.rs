//! `x · wᵀ` in bf16 on the matrix unit (AMX): 16 rows by 16 outputs by 32 inputs to an instruction.
//!
//! A weight tile is exactly what [`super::Layout::Panels`] stores; a tile of `x` is 16 rows of 32 rounded values. Two by
//! two tiles of sums stay in registers over a stretch of inputs whose weights fit in the first-level cache, while a
//! block of rows over that stretch stays in the second-level cache and meets a group of panels. (Goto and van de Geijn
//! 2008, one level fewer because the weights are already packed.)
//!
//! `tdpbf16ps` adds the even and the odd products of a tile apart and then together (Intel SDM), and stretches are
//! summed in the order of k: the order of the vector kernel, so a row has the same bits from either. The unit takes
//! denormal numbers for zeros; so, for their sake, do [`super::pack`] and the vector kernel with weights and inputs.
//! (Sums of normal numbers that are denormal, below 1.2e-38, are the one thing that differs.)

#![allow(unsafe_code)]

use std::arch::asm;
use std::cell::RefCell;

use kanana_tensor::{DType, Tensor, bf16};

use super::Weight;
use super::cpu::checked_outputs;
use super::pack::{PANEL, TILE_K, TILE_ROWS, panel_len};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::amx::Tiles;
use crate::runtime::simd::{Kernel, Lanes, dispatch, to_bf16};
use crate::runtime::threads::SharedMut;

/// Elements of a tile of `x` or of weights: 1 KiB.
const TILE: usize = TILE_ROWS * TILE_K;
/// Sums of a tile.
pub(crate) const SUMS: usize = TILE_ROWS * PANEL;
/// Tiles along k whose two columns of weights, beside a pair of row tiles, stay in the first-level cache: 16 KiB each.
const STRETCH: usize = 8;
/// Rows of `x` in a task, in pairs of tiles: over a stretch, 256 KiB of the second-level cache.
const PAIRS: usize = 16;
/// Panels in a task, at most: with [`PAIRS`], 256 KiB of sums.
const PANELS: usize = 8;

/// Sums of 32 rows by 32 outputs: tiles in the order (rows 0, outputs 0), (0, 1), (1, 0), (1, 1).
///
/// On cache lines, as all that tile loads and stores touch: one that straddles two lines in every row takes twice as long.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Square([[f32; SUMS]; 4]);

/// Adds two row tiles by two weight columns over some tiles along k, to sums that lie as in a [`Square`].
///
/// Each of the four slices holds `tiles` tiles of 1 KiB, one after another.
#[inline]
pub(crate) fn multiply(_: &Tiles, sums: &mut [[f32; SUMS]; 4], rows: [&[bf16]; 2], weights: [&[bf16]; 2]) {
    let tiles = rows[0].len() / TILE;
    assert!([rows[0], rows[1], weights[0], weights[1]].iter().all(|s| s.len() == tiles * TILE) && tiles > 0);
    // SAFETY: the tile registers are set up (`Tiles`); every load reads 1 KiB inside of a slice checked above, every
    // store writes 1 KiB of `sums`.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {stride}]",
            "tileloadd tmm1, [{sums} + {stride} + 1024]",
            "tileloadd tmm2, [{sums} + {stride} + 2048]",
            "tileloadd tmm3, [{sums} + {stride} + 3072]",
            "2:",
            "tileloadd tmm4, [{a0} + {stride}]",
            "tileloadd tmm6, [{b0} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {stride}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{sums} + {stride}], tmm0",
            "tilestored [{sums} + {stride} + 1024], tmm1",
            "tilestored [{sums} + {stride} + 2048], tmm2",
            "tilestored [{sums} + {stride} + 3072], tmm3",
            sums = in(reg) sums.as_mut_ptr(),
            stride = in(reg) 64usize,
            a0 = inout(reg) rows[0].as_ptr() => _,
            a1 = inout(reg) rows[1].as_ptr() => _,
            b0 = inout(reg) weights[0].as_ptr() => _,
            b1 = inout(reg) weights[1].as_ptr() => _,
            tiles = inout(reg) tiles => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Asks for part `part` of `parts` of a slice, into the second-level cache.
#[inline]
fn prefetch(slice: &[bf16], part: usize, parts: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    const LINE: usize = 32;
    let lines = slice.len() / LINE;
    for line in slice.chunks_exact(LINE).take(lines * (part + 1) / parts).skip(lines * part / parts) {
        // SAFETY: SSE is part of x86-64, and a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

/// The products of one input with several bf16 weights.
pub(crate) fn linears(machine: Machine<'_>, x: &Tensor, weights: &[&Weight]) -> Result<Vec<Tensor>> {
    let (tokens, mut outputs) = checked_outputs(machine, x, weights)?;
    let packed = pack_rows(machine, x)?;
    let packed = check::slice::<bf16>("linear", &packed)?;
    let mut products = Vec::with_capacity(weights.len());
    for (w, y) in weights.iter().zip(&mut outputs) {
        products.push(Product {
            x: packed,
            w: check::slice::<bf16>("linear", &w.data)?,
            tiles: w.in_features.div_ceil(TILE_K),
            tokens,
            outputs: w.out_features,
            y: SharedMut::new(check::slice_mut::<f32>("linear", y)?),
        });
    }
    let pairs = tokens.div_ceil(2 * TILE_ROWS);
    let panels: usize = weights.iter().map(|w| w.out_features.div_ceil(PANEL)).sum();
    // Four tasks to a thread even out their ends; two panels are the least.
    let group = (panels * pairs.div_ceil(PAIRS) / (4 * machine.threads.count())).clamp(2, PANELS) / 2 * 2;
    let mut tasks = Vec::new();
    for first in (0..pairs).step_by(PAIRS) {
        for product in &products {
            let panels = product.outputs.div_ceil(PANEL);
            tasks.extend((0..panels).step_by(group).map(|panel| Block {
                product,
                pairs: first..pairs.min(first + PAIRS),
                panels: panel..panels.min(panel + group),
            }));
        }
    }
    machine.threads.run(tasks.len(), &|task| tasks[task].run());
    drop(tasks);
    drop(products);
    Ok(outputs)
}

/// `x` rounded to bf16 in tiles `[T/32 · 2][K/32][16 rows][32]`, padded with zeros.
fn pack_rows(machine: Machine<'_>, x: &Tensor) -> Result<Tensor> {
    let (tokens, inputs) = (x.rows(), x.row_len());
    let tiles = inputs.div_ceil(TILE_K);
    let values = check::slice::<f32>("linear", x)?;
    let mut packed =
        machine.pool.tensor(&[tokens.next_multiple_of(2 * TILE_ROWS), tiles * TILE_K], DType::BF16);
    let row_tiles = check::slice_mut::<bf16>("linear", &mut packed)?;
    machine.threads.chunks_mut(row_tiles, tiles * TILE, |tile, to| {
        let rows = (tile * TILE_ROWS).min(tokens)..((tile + 1) * TILE_ROWS).min(tokens);
        dispatch(machine.isa, PackRows { from: &values[rows.start * inputs..rows.end * inputs], inputs, to });
    });
    Ok(packed)
}

struct PackRows<'a> {
    from: &'a [f32],
    inputs: usize,
    to: &'a mut [bf16],
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let held = self.from.len() / self.inputs.max(1);
        if held < TILE_ROWS || !self.inputs.is_multiple_of(TILE_K) {
            self.to.fill(bf16::ZERO);
        }
        for (r, row) in self.from.chunks_exact(self.inputs.max(1)).enumerate() {
            for (tile, values) in row.chunks(TILE_K).enumerate() {
                let to = &mut self.to[tile * TILE + r * TILE_K..][..TILE_K];
                for (to, &x) in to.iter_mut().zip(values) {
                    *to = to_bf16(x);
                }
            }
        }
    }
}

struct Product<'a> {
    x: &'a [bf16],
    w: &'a [bf16],
    /// Tiles along k.
    tiles: usize,
    tokens: usize,
    outputs: usize,
    y: SharedMut<'a, f32>,
}

/// Some pairs of row tiles against some panels.
struct Block<'a> {
    product: &'a Product<'a>,
    pairs: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

thread_local! {
    /// Sums of the task at hand: memory of this size that is new for each task would be mapped and faulted in each time.
    static SCRATCH: RefCell<Vec<Square>> = const { RefCell::new(Vec::new()) };
}

impl Block<'_> {
    fn run(&self) {
        SCRATCH.with_borrow_mut(|sums| {
            sums.clear();
            sums.resize(self.pairs.len() * self.panels.len().div_ceil(2), Square([[0.0; SUMS]; 4]));
            self.multiply_into(sums);
        });
    }

    fn multiply_into(&self, sums: &mut [Square]) {
        let product = self.product;
        let panel_len = panel_len(product.tiles * TILE_K, DType::BF16);
        let columns = self.panels.len().div_ceil(2);
        // With one pair of row tiles nothing is used twice: read each panel from end to end.
        let stretch = if self.pairs.len() == 1 { product.tiles.max(1) } else { STRETCH };
        let tiles = Tiles::configure();
        let stretches = product.tiles.div_ceil(stretch);
        // What one step multiplies: a stretch of two panels. The last panel may be alone: it is then multiplied twice,
        // and stored once.
        let along = |step: usize| {
            let first = step / columns * stretch;
            first * TILE..product.tiles.min(first + stretch) * TILE
        };
        let weights = |step: usize| {
            let panel = self.panels.start + step % columns * 2;
            [panel, (panel + 1).min(self.panels.end - 1)]
                .map(|panel| &product.w[panel * panel_len..][..panel_len][along(step)])
        };
        for step in 0..stretches * columns {
            let now = weights(step);
            let next = (step + 1 < stretches * columns).then(|| weights(step + 1));
            for (p, pair) in self.pairs.clone().enumerate() {
                // Every pair asks for a part of what the next step reads: from memory that takes longer than a product.
                for column in next.iter().flatten() {
                    prefetch(column, p, self.pairs.len());
                }
                let row = |tile: usize| &product.x[tile * product.tiles * TILE..][along(step)];
                let square = &mut sums[step % columns * self.pairs.len() + p];
                multiply(&tiles, &mut square.0, [row(2 * pair), row(2 * pair + 1)], now);
            }
        }
        drop(tiles);
        for c in 0..columns {
            for (p, pair) in self.pairs.clone().enumerate() {
                self.store(pair, self.panels.start + 2 * c, &sums[c * self.pairs.len() + p]);
            }
        }
    }

    fn store(&self, pair: usize, panel: usize, square: &Square) {
        let product = self.product;
        for (i, sums) in square.0.iter().enumerate() {
            let (first_row, panel) = ((2 * pair + i / 2) * TILE_ROWS, panel + i % 2);
            if panel >= self.panels.end {
                continue;
            }
            let lanes = PANEL.min(product.outputs - panel * PANEL);
            for (r, row) in
                sums.chunks_exact(PANEL).take(product.tokens.saturating_sub(first_row)).enumerate()
            {
                let start = (first_row + r) * product.outputs + panel * PANEL;
                // SAFETY: each (row, panel) belongs to one task.
                unsafe { product.y.range(start, lanes) }.copy_from_slice(&row[..lanes]);
            }
        }
    }
}
