//! The integer sums of quantised products on the matrix unit: 16 rows by 16 outputs by the 64 inputs of a group to an
//! instruction.
//!
//! The codes of a block are a tile of the unit as they stand (8 bits) or after splitting their halves (4 bits). A pair of
//! panels meets all rows of the task group by group; each group's sums are scaled into the running f32 sums at once.

#![allow(unsafe_code)]

use std::arch::asm;

use super::Format;
use super::pack::{PANEL, TILE_ROWS};
use super::quant::{GROUP, block_len, codes_len};
use super::quant_cpu::{Block, parameters_of};
use crate::runtime::amx::Tiles;
use crate::runtime::simd::{BYTES, Kernel, LANES, Lanes};

/// Bytes of a tile of inputs or codes.
const TILE: usize = TILE_ROWS * GROUP;
/// Sums of a tile.
const SUMS: usize = TILE_ROWS * PANEL;

/// Sums of 32 rows by 32 outputs: tiles in the order (rows 0, outputs 0), (0, 1), (1, 0), (1, 1).
/// All on cache lines: see `amx.rs`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Square<T>([[T; SUMS]; 4]);

/// Room for the codes of two blocks as bytes.
#[repr(C, align(64))]
struct Expanded([[u8; TILE]; 2]);

/// A [`Block`] on the matrix unit.
pub(crate) struct OnMatrixUnit<'a>(pub(crate) &'a Block<'a>);

impl Kernel for OnMatrixUnit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Block { product, rows, panels } = self.0;
        let tiles = Tiles::configure();
        let pairs = rows.len().div_ceil(2 * TILE_ROWS);
        let mut sums = vec![Square([[0.0; SUMS]; 4]); pairs];
        for panel in panels.clone().step_by(2) {
            // The last panel may be alone: it is multiplied twice, and stored once.
            let pair = [panel, (panel + 1).min(panels.end - 1)];
            sums.fill(Square([[0.0; SUMS]; 4]));
            for g in 0..product.inputs.per_row {
                let mut expanded = Expanded([[0; TILE]; 2]);
                let [(codes_0, parameters_0), (codes_1, parameters_1)] = pair.map(|panel| {
                    let at = panel * product.panel_bytes + g * block_len(product.format);
                    product.w[at..][..block_len(product.format)].split_at(codes_len(product.format))
                });
                let [room_0, room_1] = &mut expanded.0;
                let weights = [
                    tile_of::<L>(product.format, codes_0, room_0),
                    tile_of::<L>(product.format, codes_1, room_1),
                ];
                let parameters = [parameters_of::<L>(parameters_0), parameters_of::<L>(parameters_1)];
                for (p, sums) in sums.iter_mut().enumerate() {
                    let first = rows.start + p * 2 * TILE_ROWS;
                    let inputs = [0, 1].map(|i| product.inputs.tile(first / TILE_ROWS + i, g));
                    let mut ints = Square([[0; SUMS]; 4]);
                    multiply(&tiles, &mut ints, inputs, weights);
                    for (i, (sums, ints)) in sums.0.iter_mut().zip(&ints.0).enumerate() {
                        let (scales, mins) = parameters[i % 2];
                        let row = first + i / 2 * TILE_ROWS;
                        let sums = sums.as_chunks_mut::<LANES>().0.iter_mut();
                        for (r, (sum, ints)) in sums.zip(ints.as_chunks::<LANES>().0).enumerate() {
                            let group = product.inputs.parameters(row + r, g);
                            let (scale, codes) = (L::splat(group.scale), L::splat(group.sum));
                            let scaled = scales.mul(L::from_ints(L::load_ints(ints))).fma(mins, codes);
                            L::load(sum).fma(scaled, scale).store(sum);
                        }
                    }
                }
            }
            for (p, square) in sums.iter().enumerate() {
                for (i, sums) in square.0.iter().enumerate() {
                    let panel = panel + i % 2;
                    let first = rows.start + p * 2 * TILE_ROWS + i / 2 * TILE_ROWS;
                    if panel < panels.end {
                        let sums = sums.as_chunks::<LANES>().0;
                        for (row, sum) in (first..rows.end).zip(sums) {
                            self.0.store(row, panel, [L::load(sum)]);
                        }
                    }
                }
            }
        }
    }
}

/// The codes of a block as bytes: where they lie, or split into `room`.
#[inline(always)]
fn tile_of<'a, L: Lanes>(format: Format, codes: &'a [u8], room: &'a mut [u8; TILE]) -> &'a [u8] {
    if format == Format::Q8 {
        return codes;
    }
    let (low, high) = room.split_at_mut(TILE / 2);
    let halves = low.as_chunks_mut::<BYTES>().0.iter_mut().zip(high.as_chunks_mut::<BYTES>().0);
    for (codes, (low, high)) in codes.as_chunks::<BYTES>().0.iter().zip(halves) {
        let (low_nibbles, high_nibbles) = L::nibbles(L::load_bytes(codes));
        L::store_bytes(low_nibbles, low);
        L::store_bytes(high_nibbles, high);
    }
    room
}

/// Two tiles of signed inputs by two tiles of unsigned codes.
#[inline(always)]
fn multiply(_: &Tiles, sums: &mut Square<i32>, inputs: [&[i8]; 2], weights: [&[u8]; 2]) {
    assert!(inputs.iter().all(|tile| tile.len() == TILE) && weights.iter().all(|tile| tile.len() == TILE));
    // SAFETY: the tile registers are set up (`Tiles`); every load reads 1 KiB of a slice checked above, every store
    // writes 1 KiB of `sums`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tileloadd tmm4, [{a0} + {stride}]",
            "tileloadd tmm6, [{b0} + {stride}]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {stride}]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {stride}]",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "tilestored [{sums} + {stride}], tmm0",
            "tilestored [{sums} + {stride} + 1024], tmm1",
            "tilestored [{sums} + {stride} + 2048], tmm2",
            "tilestored [{sums} + {stride} + 3072], tmm3",
            sums = in(reg) sums.0.as_mut_ptr(),
            stride = in(reg) 64usize,
            a0 = in(reg) inputs[0].as_ptr(),
            a1 = in(reg) inputs[1].as_ptr(),
            b0 = in(reg) weights[0].as_ptr(),
            b1 = in(reg) weights[1].as_ptr(),
            options(nostack, preserves_flags),
        );
    }
}
