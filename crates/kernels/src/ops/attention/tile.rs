//! A tile of keys or values: from the cache to rows, from rows to panels.

use kanana_tensor::{Element, bf16};

use super::{Arguments, Positions, TILE};
use crate::ops::linear::pack::PANEL;
use crate::runtime::simd::{LANES, Lanes, to_bf16};

/// An element of packed keys and values, as products take it.
pub(super) trait Panel: Element {
    /// Elements of 32 bits, which lie side by side in a panel.
    const GROUP: usize;
    const ZERO: Self;

    /// Whether all of them are finite numbers.
    fn all_finite(x: &[Self]) -> bool;

    /// Sixteen columns from `column` on of [`Panel::GROUP`] rows, group by group.
    fn interleave<L: Lanes>(rows: &[&[Self]], column: usize, to: &mut [Self]);
}

impl Panel for f32 {
    const GROUP: usize = 1;
    const ZERO: f32 = 0.0;

    #[inline(always)]
    fn all_finite(x: &[f32]) -> bool {
        x.iter().fold(true, |all, x| all & x.is_finite())
    }

    #[inline(always)]
    fn interleave<L: Lanes>(rows: &[&[f32]], column: usize, to: &mut [f32]) {
        to.copy_from_slice(&rows[0][column..column + PANEL]);
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
    fn interleave<L: Lanes>(rows: &[&[bf16]], column: usize, to: &mut [bf16]) {
        let rows = (rows[0][column..].first_chunk(), rows[1][column..].first_chunk(), to.first_chunk_mut());
        if let (Some(first), Some(second), Some(to)) = rows {
            L::interleave(first, second, to);
        }
    }
}

/// An element of stored keys and values: one of the formats of a cache.
pub(super) trait Stored: Element {
    type Panel: Panel;

    /// One position of one head, padded with zeros: in its place where it can be read there, else in `room`.
    fn load_row<'a>(from: &'a [Self], head_dim: usize, room: &'a mut [Self::Panel]) -> &'a [Self::Panel];
}

/// The row itself where it needs no padding, else a padded copy.
#[inline(always)]
fn padded<'a, E: Panel>(from: &'a [E], room: &'a mut [E]) -> &'a [E] {
    if from.len() == room.len() {
        return from;
    }
    let (to, rest) = room.split_at_mut(from.len());
    to.copy_from_slice(from);
    rest.fill(E::ZERO);
    room
}

impl Stored for f32 {
    type Panel = f32;

    #[inline(always)]
    fn load_row<'a>(from: &'a [f32], _head_dim: usize, room: &'a mut [f32]) -> &'a [f32] {
        padded(from, room)
    }
}

impl Stored for bf16 {
    type Panel = bf16;

    #[inline(always)]
    fn load_row<'a>(from: &'a [bf16], _head_dim: usize, room: &'a mut [bf16]) -> &'a [bf16] {
        padded(from, room)
    }
}

impl Stored for u8 {
    type Panel = bf16;

    #[inline(always)]
    fn load_row<'a>(from: &'a [u8], head_dim: usize, room: &'a mut [bf16]) -> &'a [bf16] {
        if let Some((codes, &scale)) = from.split_last_chunk() {
            let scale = f32::from_le_bytes(scale);
            for (to, &code) in room.iter_mut().zip(codes) {
                *to = to_bf16(f32::from(code as i8) * scale);
            }
        }
        room[head_dim..].fill(bf16::ZERO);
        room
    }
}

/// The rows of a tile, padded to `width` elements, and rows of zeros behind the last.
#[inline(always)]
pub(super) fn load_rows<'a, S: Stored>(
    args: &Arguments<'_>,
    from: &'a [S],
    positions: Positions,
    width: usize,
    room: &'a mut [S::Panel],
) -> [&'a [S::Panel]; TILE] {
    let mut rows: [&[S::Panel]; TILE] = [&[]; TILE];
    let mut room = room.chunks_exact_mut(width);
    let mut done = 0;
    while done < positions.count {
        let run = args.run(positions, done);
        for i in 0..run.count {
            let Some(room) = room.next() else { return rows };
            let from = &from[run.start + i * run.stride..][..args.row_len];
            rows[done + i] = S::load_row(from, args.head_dim, room);
        }
        done += run.count;
    }
    for (row, room) in rows[done..].iter_mut().zip(room) {
        room.fill(S::Panel::ZERO);
        *row = room;
    }
    rows
}

/// Positions that will be loaded next. They lie in pages that the processor does not foresee, and asked for all at once they
/// would keep it waiting: so each share of other work asks for a share of them.
pub(super) struct Ahead<'a, S> {
    pub(super) args: &'a Arguments<'a>,
    pub(super) from: &'a [S],
    pub(super) positions: Positions,
}

impl<S: Stored> Ahead<'_, S> {
    /// Asks for share `share` of `shares`.
    #[inline(always)]
    fn ask<L: Lanes>(&self, share: usize, shares: usize) {
        const LINE: usize = 64;
        let count = self.positions.count;
        let (mut done, end) = (count * share / shares, count * (share + 1) / shares);
        while done < end {
            let run = self.args.run(self.positions, done);
            let rows = run.count.min(end - done);
            for i in 0..rows {
                let row = self.from[run.start + i * run.stride..][..self.args.row_len].as_ptr().cast::<u8>();
                let mut at = 0;
                while at < self.args.row_len * size_of::<S>() {
                    L::prefetch(row.wrapping_add(at));
                    at += LINE;
                }
            }
            done += rows;
        }
    }
}

/// Keys as panels of sixteen keys, `[TILE/16][width/G][16 keys][G]`: blocks of sixteen words, turned over.
#[inline(always)]
pub(super) fn pack_keys<L: Lanes, S: Stored>(
    rows: &[&[S::Panel]; TILE],
    to: &mut [S::Panel],
    ahead: &Ahead<'_, S>,
) {
    let block_len = LANES * S::Panel::GROUP;
    let blocks = rows[0].len() / block_len;
    let to: &mut [[f32; LANES]] = bytemuck::cast_slice_mut::<S::Panel, f32>(to).as_chunks_mut().0;
    for (panel, rows) in rows.as_chunks::<PANEL>().0.iter().enumerate() {
        for block in 0..blocks {
            ahead.ask::<L>(panel * blocks + block, TILE / PANEL * blocks);
            let mut square = [L::splat(0.0); LANES];
            for (square, row) in square.iter_mut().zip(rows) {
                let words: &[u8] = bytemuck::cast_slice(&row[block * block_len..][..block_len]);
                *square = L::load(&bytemuck::pod_read_unaligned(words));
            }
            let square = L::transpose(square);
            let to = &mut to[(panel * blocks + block) * LANES..][..LANES];
            for (to, row) in to.iter_mut().zip(square) {
                row.store(to);
            }
        }
    }
}

/// Values as panels of sixteen elements, `[panels][TILE/G][16][G]`: rows of a group side by side.
#[inline(always)]
pub(super) fn pack_values<L: Lanes, S: Stored>(
    rows: &[&[S::Panel]; TILE],
    to: &mut [S::Panel],
    ahead: &Ahead<'_, S>,
) {
    let panel_len = TILE * PANEL;
    let groups = rows.chunks_exact(S::Panel::GROUP);
    let (count, group_len) = (groups.len(), S::Panel::GROUP * PANEL);
    for (group, rows) in groups.enumerate() {
        ahead.ask::<L>(group, count);
        for (panel, to) in to.chunks_exact_mut(panel_len).enumerate() {
            S::Panel::interleave::<L>(rows, panel * PANEL, &mut to[group * group_len..][..group_len]);
        }
    }
}
