//! The integer sums of quantised products on the matrix unit: 16 rows by 16 outputs by 64 inputs to an instruction.
//!
//! Two panels meet all rows of the task group by group. A group's 8-bit codes, expanded in the first-level cache where
//! they have fewer bits, are up to four tiles; its sums stay in the tile registers until they are whole, so that scaling
//! them in vectors costs less than making them.

#![allow(unsafe_code)]

use std::arch::asm;
use std::cell::RefCell;

use super::Format;
use super::pack::{PANEL, TILE_ROWS};
use super::quant::{GROUPS, STEP, STEP_BYTES, STEPS, zero_code};
use super::quant_cpu::{Block, expanded, scaled};
use crate::runtime::amx::Tiles;
use crate::runtime::simd::{Kernel, LANES, Lanes};

/// Bytes of a tile of inputs or codes.
const TILE: usize = TILE_ROWS * STEP;
/// Sums of a tile.
const SUMS: usize = TILE_ROWS * PANEL;

/// Sums of 32 rows by 32 outputs: tiles in the order (rows 0, outputs 0), (0, 1), (1, 0), (1, 1).
/// All on cache lines: see `amx.rs`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Square<T>([[T; SUMS]; 4]);

/// Room for the codes of a group of two panels as 8-bit numbers.
#[repr(C, align(64))]
struct Expanded([[u8; STEPS * STEP_BYTES]; 2]);

thread_local! {
    /// Sums of the task at hand: see `amx.rs`.
    static SCRATCH: RefCell<Vec<Square<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A [`Block`] on the matrix unit.
pub(crate) struct OnMatrixUnit<'a>(pub(crate) &'a Block<'a>);

impl Kernel for OnMatrixUnit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut sums = SCRATCH.take();
        for panel in self.0.panels.clone().step_by(2) {
            self.two_panels::<L>(panel, &mut sums);
        }
        SCRATCH.set(sums);
    }
}

impl OnMatrixUnit<'_> {
    #[inline(always)]
    fn two_panels<L: Lanes>(&self, panel: usize, sums: &mut Vec<Square<f32>>) {
        let Block { product, rows, panels } = self.0;
        let inputs = product.inputs;
        sums.clear();
        sums.resize(rows.len().div_ceil(2 * TILE_ROWS), Square([[0.0; SUMS]; 4]));
        // The last panel may be alone: it is multiplied twice, and stored once.
        let pair = [panel, (panel + 1).min(panels.end - 1)];
        let mut room = Expanded([[0; STEPS * STEP_BYTES]; 2]);
        let tiles = Tiles::configure();
        for g in 0..inputs.per_row {
            let (steps, in_block) = (inputs.steps_of(g), inputs.steps_in_block(g));
            let views = pair.map(|panel| product.block(panel, g / GROUPS));
            let [room_0, room_1] = &mut room.0;
            let weights = [
                expanded::<L>(product.format, &views[0], in_block.clone(), room_0),
                expanded::<L>(product.format, &views[1], in_block, room_1),
            ];
            let weights = weights.map(|codes| &codes[..steps.len() * TILE]);
            for (p, sums) in sums.iter_mut().enumerate() {
                let first = rows.start + p * 2 * TILE_ROWS;
                let rows_of = |i| inputs.tiles(first / TILE_ROWS + i, steps.clone());
                let mut ints = Square([[0; SUMS]; 4]);
                multiply(&tiles, &mut ints, [rows_of(0), rows_of(1)], weights);
                for (i, (sums, ints)) in sums.0.iter_mut().zip(&ints.0).enumerate() {
                    let scales = &views[i % 2].scales[g % GROUPS];
                    let row = first + i / 2 * TILE_ROWS;
                    let sums = sums.as_chunks_mut::<LANES>().0.iter_mut();
                    for (r, (sum, ints)) in sums.zip(ints.as_chunks::<LANES>().0).enumerate() {
                        let group = inputs.parameters(row + r, g);
                        let offset = L::splat_int(group.minus_sum * zero_code(Format::Q8));
                        let ints = L::add_ints(L::load_ints(ints), offset);
                        scaled(L::load(sum), ints, scales, group.scale).store(sum);
                    }
                }
            }
        }
        drop(tiles);
        for (p, square) in sums.iter().enumerate() {
            for (i, sums) in square.0.iter().enumerate() {
                let panel = panel + i % 2;
                let first = rows.start + p * 2 * TILE_ROWS + i / 2 * TILE_ROWS;
                if panel < panels.end {
                    let sums = sums.as_chunks::<LANES>().0;
                    for (row, sum) in (first..rows.end).zip(sums) {
                        self.0.store(row, panel, L::load(sum));
                    }
                }
            }
        }
    }
}

/// Two row tiles of signed inputs by two columns of unsigned codes, over the steps of a group.
#[inline(always)]
fn multiply(_: &Tiles, sums: &mut Square<i32>, inputs: [&[i8]; 2], weights: [&[u8]; 2]) {
    let steps = inputs[0].len() / TILE;
    assert!(inputs.iter().all(|tiles| tiles.len() == steps * TILE) && steps > 0);
    assert!(weights.iter().all(|tiles| tiles.len() == steps * TILE));
    // SAFETY: the tile registers are set up (`Tiles`); every load reads 1 KiB of a slice checked above, every store
    // writes 1 KiB of `sums`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {stride}]",
            "tileloadd tmm6, [{b0} + {stride}]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {stride}]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {stride}]",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {stride}], tmm0",
            "tilestored [{sums} + {stride} + 1024], tmm1",
            "tilestored [{sums} + {stride} + 2048], tmm2",
            "tilestored [{sums} + {stride} + 3072], tmm3",
            sums = in(reg) sums.0.as_mut_ptr(),
            stride = in(reg) 64usize,
            a0 = inout(reg) inputs[0].as_ptr() => _,
            a1 = inout(reg) inputs[1].as_ptr() => _,
            b0 = inout(reg) weights[0].as_ptr() => _,
            b1 = inout(reg) weights[1].as_ptr() => _,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
