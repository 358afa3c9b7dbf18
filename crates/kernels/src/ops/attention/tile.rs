//! A tile of keys or values: from the cache to rows, from rows to panels.

use kanana_tensor::{Element, bf16};

use super::{Arguments, Positions, TILE};
use crate::ops::linear::pack::PANEL;
use crate::runtime::simd::{LANES, Lanes, bf16_rounded};

/// An element of packed keys and values, as products take it.
pub(super) trait Panel: Element {
    /// Elements of 32 bits, which lie side by side in a panel.
    const GROUP: usize;
    const ZERO: Self;

    /// Whether all of them are finite numbers.
    fn all_finite(x: &[Self]) -> bool;

    /// Sixteen columns of [`Panel::GROUP`] rows, group by group.
    fn interleave<L: Lanes>(rows: &[Self], width: usize, to: &mut [Self]);
}

impl Panel for f32 {
    const GROUP: usize = 1;
    const ZERO: f32 = 0.0;

    #[inline(always)]
    fn all_finite(x: &[f32]) -> bool {
        x.iter().fold(true, |all, x| all & x.is_finite())
    }

    #[inline(always)]
    fn interleave<L: Lanes>(rows: &[f32], _width: usize, to: &mut [f32]) {
        to.copy_from_slice(&rows[..PANEL]);
    }
}

impl Panel for bf16 {
    const GROUP: usize = 2;
    const ZERO: bf16 = bf16::ZERO;

    #[inline(always)]
    fn all_finite(x: &[bf16]) -> bool {
        x.iter().fold(true, |all, x| all & (x.to_bits() & 0x7f80 != 0x7f80))
    }

    #[inline(always)]
    fn interleave<L: Lanes>(rows: &[bf16], width: usize, to: &mut [bf16]) {
        let rows = (rows.first_chunk(), rows[width..].first_chunk(), to.first_chunk_mut());
        if let (Some(first), Some(second), Some(to)) = rows {
            L::interleave(first, second, to);
        }
    }
}

/// An element of stored keys and values: one of the formats of a cache.
pub(super) trait Stored: Element {
    type Panel: Panel;

    /// One position of one head.
    fn load_row(from: &[Self], to: &mut [Self::Panel]);
}

impl Stored for f32 {
    type Panel = f32;

    #[inline(always)]
    fn load_row(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Stored for bf16 {
    type Panel = bf16;

    /// Denormal numbers become zeros, as the matrix unit takes them.
    #[inline(always)]
    fn load_row(from: &[bf16], to: &mut [bf16]) {
        for (to, from) in to.iter_mut().zip(from) {
            let bits = from.to_bits();
            *to = bf16::from_bits(if bits & 0x7f80 == 0 { 0 } else { bits });
        }
    }
}

impl Stored for u8 {
    type Panel = bf16;

    #[inline(always)]
    fn load_row(from: &[u8], to: &mut [bf16]) {
        let Some((codes, &scale)) = from.split_last_chunk() else { return };
        let scale = f32::from_le_bytes(scale);
        for (to, &code) in to.iter_mut().zip(codes) {
            let x = bf16_rounded(f32::from(code as i8) * scale);
            let x = if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x };
            *to = bf16::from_bits((x.to_bits() >> 16) as u16);
        }
    }
}

/// Loads positions as rows of `width` elements, and zeros behind the last.
#[inline(always)]
pub(super) fn load_rows<S: Stored>(
    args: &Arguments<'_>,
    from: &[S],
    positions: Positions,
    width: usize,
    to: &mut [S::Panel],
) {
    let mut done = 0;
    while done < positions.count {
        let run = args.run(positions, done);
        for i in 0..run.count {
            let from = &from[run.start + i * run.stride..][..args.row_len];
            let to = &mut to[(done + i) * width..][..width];
            S::load_row(from, &mut to[..args.head_dim]);
            to[args.head_dim..].fill(S::Panel::ZERO);
        }
        done += run.count;
    }
    to[done * width..TILE * width].fill(S::Panel::ZERO);
}

/// Asks for positions that will be loaded next: they lie in pages that the processor does not foresee.
#[inline(always)]
pub(super) fn prefetch<L: Lanes, S: Stored>(args: &Arguments<'_>, from: &[S], positions: Positions) {
    const LINE: usize = 64;
    let mut done = 0;
    while done < positions.count {
        let run = args.run(positions, done);
        for i in 0..run.count {
            let row: &[u8] = bytemuck::cast_slice(&from[run.start + i * run.stride..][..args.row_len]);
            for line in row.chunks(LINE) {
                L::prefetch(line.as_ptr());
            }
        }
        done += run.count;
    }
}

/// Keys as panels of sixteen keys, `[TILE/16][width/G][16 keys][G]`: blocks of sixteen words, turned over.
#[inline(always)]
pub(super) fn pack_keys<L: Lanes, E: Panel>(rows: &[E], width: usize, to: &mut [E]) {
    let words = width / E::GROUP;
    let rows: &[[f32; LANES]] = bytemuck::cast_slice::<E, f32>(rows).as_chunks().0;
    let to: &mut [[f32; LANES]] = bytemuck::cast_slice_mut::<E, f32>(to).as_chunks_mut().0;
    let per_row = words / LANES;
    for panel in 0..TILE / PANEL {
        for block in 0..per_row {
            let mut square = [L::splat(0.0); LANES];
            for (i, row) in square.iter_mut().enumerate() {
                *row = L::load(&rows[(panel * PANEL + i) * per_row + block]);
            }
            let square = L::transpose(square);
            let to = &mut to[(panel * per_row + block) * LANES..][..LANES];
            for (to, row) in to.iter_mut().zip(square) {
                row.store(to);
            }
        }
    }
}

/// Values as panels of sixteen elements, `[panels][TILE/G][16][G]`: rows of a group side by side.
#[inline(always)]
pub(super) fn pack_values<L: Lanes, E: Panel>(rows: &[E], width: usize, to: &mut [E]) {
    for (panel, to) in to.chunks_exact_mut(TILE * PANEL).enumerate() {
        for (group, to) in to.chunks_exact_mut(E::GROUP * PANEL).enumerate() {
            E::interleave::<L>(&rows[group * E::GROUP * width + panel * PANEL..], width, to);
        }
    }
}
