//! Attention as two products around a softmax, over tiles of 64 keys.
//!
//! A task is one kv head and some queries of one sequence with all the query heads that read it, over some stretches of
//! keys. A tile of keys and values is packed as if it were a weight, once for all of them; then each block of rows meets
//! it: scores, weights, weighted sums. Tiles and stretches start at fixed positions of the sequence, every row has its
//! own running maximum and sums, and stretches are merged in their order, so a result does not depend on which rows or
//! stretches share its task.

use std::cell::RefCell;
use std::ops::Range;

use kanana_tensor::{DType, Tensor, bf16};

use super::tile::{Ahead, Panel, Stored, load_rows, pack_keys, pack_values};
use super::unit::{Fma, Operands, Unit};
use super::{Arguments, KeyValues, Positions, STRETCH, Spans, TILE, check_attention};
use crate::Result;
use crate::ops::check;
use crate::ops::linear::cpu::{Bf16Tiles, F32Panels};
use crate::ops::linear::pack::PANEL;
use crate::runtime::Machine;
use crate::runtime::simd::{Isa, Kernel, LANES, Lanes, dispatch};
use crate::runtime::threads::SharedMut;

/// Rows (queries times heads of a group) of a task, at most: with 128 elements to a head, half a mebibyte of sums and
/// queries.
const ROWS: usize = 384;
/// Tasks for every thread that even out their ends.
const TASKS: usize = 4;
/// Panels of scores.
const SCORES: usize = TILE / PANEL;

pub(crate) fn attention(
    machine: Machine<'_>,
    q: &Tensor,
    kv: KeyValues<'_>,
    spans: &Spans,
    scale: f32,
) -> Result<Tensor> {
    let args = check_attention(q, &kv, spans)?;
    let (k, v) = match kv {
        KeyValues::Packed { k, v } | KeyValues::Paged { k, v, .. } => (k, v),
    };
    let mut out = machine.pool.tensor(q.shape(), DType::F32);
    let y = SharedMut::new(check::slice_mut::<f32>("attention", &mut out)?);
    let call = Call { args: &args, q: check::slice::<f32>("attention", q)?, scale, y: &y };
    match k.dtype() {
        DType::F32 => {
            let stored = check::slice::<f32>("attention", k)?;
            run::<Fma<F32Panels>, f32>(machine, &call, stored, check::slice("attention", v)?);
        }
        DType::BF16 => {
            let stored = check::slice::<bf16>("attention", k)?;
            run_bf16(machine, &call, stored, check::slice("attention", v)?);
        }
        _ => {
            let stored = check::slice::<u8>("attention", k)?;
            run_bf16(machine, &call, stored, check::slice("attention", v)?);
        }
    }
    Ok(out)
}

#[derive(Clone, Copy)]
struct Call<'a> {
    args: &'a Arguments<'a>,
    q: &'a [f32],
    scale: f32,
    y: &'a SharedMut<'a, f32>,
}

fn run_bf16<S: Stored<Panel = bf16>>(machine: Machine<'_>, call: &Call<'_>, k: &[S], v: &[S]) {
    match machine.isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => run::<super::unit::Tiles, S>(machine, call, k, v),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => run::<super::unit::Pairs, S>(machine, call, k, v),
        _ => run::<Fma<Bf16Tiles>, S>(machine, call, k, v),
    }
}

/// Queries of a sequence and a kv head.
struct Work {
    sequence: usize,
    queries: Range<usize>,
    kv_head: usize,
    /// Stretches of keys that the last query sees.
    stretches: usize,
    /// Where its rows start among the parts, for the rows of one stretch after the other, if it is shared out.
    parts: Option<usize>,
}

fn run<U: Unit, S: Stored<Panel = U::Panel>>(machine: Machine<'_>, call: &Call<'_>, k: &[S], v: &[S]) {
    let args = call.args;
    let group = args.heads / args.kv_heads;
    let enough = TASKS * machine.threads.count();
    let mut works = share_out(args, enough);
    let shared_out = works.len() < enough;
    let chunks = args.head_dim.div_ceil(LANES) + 1;
    let (mut tasks, mut part_rows) = (Vec::new(), 0);
    for (w, work) in works.iter_mut().enumerate() {
        let rows = work.queries.len() * group;
        if shared_out && work.stretches > 1 && rows <= U::ROWS {
            work.parts = Some(part_rows);
            part_rows += work.stretches * rows;
            tasks.extend((0..work.stretches).map(|stretch| (w, stretch..stretch + 1)));
        } else {
            tasks.push((w, 0..work.stretches));
        }
    }
    let mut parts = vec![[0.0; LANES]; part_rows * chunks];
    let shared_parts = SharedMut::new(&mut parts);
    // The last queries of a causal sequence see the most keys: longest tasks first.
    machine.threads.run(tasks.len(), &|task| {
        let (work, stretches) = &tasks[tasks.len() - 1 - task];
        let work = &works[*work];
        let stretches = stretches.clone();
        let task = Task { call, k, v, work, stretches, parts: &shared_parts, unit: U::start() };
        dispatch(machine.isa, task);
    });
    let parts = &parts[..];
    let shared: Vec<&Work> = works.iter().filter(|work| work.parts.is_some()).collect();
    machine.threads.run(shared.len(), &|i| dispatch(machine.isa, Merge { call, work: shared[i], parts }));
}

/// All queries, in pieces of [`ROWS`] rows, or fewer where there would not be enough of them for the threads.
fn share_out(args: &Arguments<'_>, enough: usize) -> Vec<Work> {
    const LEAST: usize = ROWS / 4;
    let group = args.heads / args.kv_heads;
    let total = args.tokens * group * args.kv_heads;
    let rows = (total / enough.max(1)).clamp(LEAST, ROWS);
    let piece = (rows / group).max(1);
    let mut works = Vec::new();
    for sequence in 0..args.sequences() {
        let queries = (args.query_starts[sequence + 1] - args.query_starts[sequence]) as usize;
        for first in (0..queries).step_by(piece) {
            let queries = first..queries.min(first + piece);
            let stretches = args.visible(sequence, queries.end - 1).div_ceil(STRETCH);
            let of_head =
                |kv_head| Work { sequence, queries: queries.clone(), kv_head, stretches, parts: None };
            works.extend((0..args.kv_heads).map(of_head));
        }
    }
    works
}

struct Task<'a, U, S> {
    call: &'a Call<'a>,
    k: &'a [S],
    v: &'a [S],
    work: &'a Work,
    stretches: Range<usize>,
    parts: &'a SharedMut<'a, [f32; LANES]>,
    unit: U,
}

/// The running softmax of one row.
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    total: f32,
}

impl Running {
    const EMPTY: Running = Running { largest: f32::NEG_INFINITY, total: 0.0 };
}

thread_local! {
    /// Memory of the task at hand: of this size, what is new for each task would be mapped and faulted in each time.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Cuts the next elements off, as many words as they need.
fn cut<'a, E: kanana_tensor::Element>(room: &mut &'a mut [f32], elements: usize) -> &'a mut [E] {
    let words = (elements * size_of::<E>()).div_ceil(size_of::<f32>()).next_multiple_of(LANES);
    let (piece, rest) = std::mem::take(room).split_at_mut(words);
    *room = rest;
    &mut bytemuck::cast_slice_mut(piece)[..elements]
}

impl<U: Unit, S: Stored<Panel = U::Panel>> Kernel for Task<'_, U, S> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let queries = self.work.queries.clone();
        let (mut first, mut count) = (queries.start, queries.len());
        while first < queries.end {
            match self.pass::<L>(first..first + count) {
                true => first += count,
                false => count = 1,
            }
        }
    }
}

/// Sizes of a pass.
struct Sizes {
    /// Query heads of the kv head.
    group: usize,
    rows: usize,
    blocks: usize,
    /// Elements of a padded query or key.
    width: usize,
    /// Panels of values.
    panels: usize,
}

impl<U: Unit, S: Stored<Panel = U::Panel>> Task<'_, U, S> {
    /// Some of the queries. False, and nothing done, where a value that is not finite meets queries that do not all see
    /// it: a weight of zero would not keep it out, so each query must go alone.
    #[inline(always)]
    fn pass<L: Lanes>(&self, queries: Range<usize>) -> bool {
        let (args, work) = (self.call.args, self.work);
        let group = args.heads / args.kv_heads;
        let rows = queries.len() * group;
        let sizes = Sizes {
            group,
            rows,
            blocks: rows.div_ceil(U::ROWS),
            width: args.head_dim.next_multiple_of(LANES * U::Panel::GROUP),
            panels: args.head_dim.div_ceil(PANEL),
        };
        let Sizes { blocks, width, panels, .. } = sizes;
        let block_sums = U::ROWS * panels.next_multiple_of(2) * PANEL;
        let words = TILE * (2 * width + panels * PANEL)
            + U::ROWS * (blocks * width + 2 * TILE)
            + blocks * block_sums
            + (rows + 1) * (panels + 1) * LANES
            + 16 * LANES;
        let mut memory = ROOM.take();
        memory.resize(memory.len().max(words + LANES), 0.0);
        let aligned = memory.as_ptr().align_offset(64).min(LANES);
        let mut room = &mut memory[aligned..];
        let loaded = cut::<U::Panel>(&mut room, TILE * width);
        let keys = cut::<U::Panel>(&mut room, TILE * width);
        let values = cut::<U::Panel>(&mut room, TILE * panels * PANEL);
        let query_rows = cut::<U::Row>(&mut room, blocks * U::ROWS * width);
        let weights = cut::<U::Row>(&mut room, U::ROWS * TILE);
        let scores = cut::<f32>(&mut room, U::ROWS * TILE);
        let sums = cut::<f32>(&mut room, blocks * block_sums);
        let one = cut::<f32>(&mut room, (panels + 1) * LANES).as_chunks_mut::<LANES>().0;
        let merged = cut::<f32>(&mut room, rows * (panels + 1) * LANES).as_chunks_mut::<LANES>().0;

        self.load_queries::<L>(&sizes, queries.start, query_rows);
        empty(merged, panels + 1);
        let mut running = vec![Running::EMPTY; rows];
        let mut apart = false;
        let end = args.visible(work.sequence, queries.end - 1);
        'stretches: for stretch in self.stretches.clone() {
            sums.fill(0.0);
            running.fill(Running::EMPTY);
            let stretch_end = end.min((stretch + 1) * STRETCH);
            for tile in (stretch * STRETCH..stretch_end).step_by(TILE) {
                let positions = Positions {
                    sequence: work.sequence,
                    kv_head: work.kv_head,
                    first: tile,
                    count: TILE.min(stretch_end - tile),
                };
                let next = Positions {
                    first: tile + TILE,
                    count: TILE.min(end.saturating_sub(tile + TILE)),
                    ..positions
                };
                let loaded_keys = load_rows(args, self.k, positions, width, loaded);
                pack_keys::<L, S>(&loaded_keys, keys, &Ahead { args, from: self.k, positions: next });
                let loaded_values = load_rows(args, self.v, positions, width, loaded);
                pack_values::<L, S>(&loaded_values, values, &Ahead { args, from: self.v, positions: next });
                let cuts = args.visible(work.sequence, queries.start) < tile + positions.count;
                let all_finite = || loaded_values.iter().all(|row| U::Panel::all_finite(row));
                if cuts && queries.len() > 1 && !all_finite() {
                    apart = true;
                    break 'stretches;
                }
                for block in 0..blocks {
                    let first = block * U::ROWS;
                    let count = U::ROWS.min(rows - first);
                    let visible = |row: usize| {
                        let query = queries.start + row / group;
                        args.visible(work.sequence, query).saturating_sub(tile).min(positions.count)
                    };
                    if visible(first + count - 1) == 0 {
                        continue;
                    }
                    U::clear(scores, count, SCORES);
                    let block_rows = &query_rows[first * width..][..U::ROWS * width];
                    let operands = Operands { rows: block_rows, count, inputs: width, panels: keys };
                    self.unit.add_products::<L>(operands, scores);
                    let sums = &mut sums[block * block_sums..][..block_sums];
                    for row in 0..count {
                        let running = &mut running[first + row];
                        let visible = visible(first + row);
                        let fade = weigh::<U, L>(scores, row, (visible, self.call.scale), running, weights);
                        if fade != 1.0 {
                            for panel in 0..panels {
                                let sums = sums_of::<U>(sums, row, panel, panels);
                                L::load(sums).mul(L::splat(fade)).store(sums);
                            }
                        }
                    }
                    let operands = Operands { rows: weights, count, inputs: TILE, panels: values };
                    self.unit.add_products::<L>(operands, sums);
                }
            }
            for (row, merged) in merged.chunks_exact_mut(panels + 1).enumerate() {
                if args.visible(work.sequence, queries.start + row / group) > stretch * STRETCH {
                    let (block, in_block) = (row / U::ROWS, row % U::ROWS);
                    let sums = &mut sums[block * block_sums..][..block_sums];
                    for (panel, one) in one[..panels].iter_mut().enumerate() {
                        *one = *sums_of::<U>(sums, in_block, panel, panels);
                    }
                    one[panels] = [0.0; LANES];
                    (one[panels][0], one[panels][1]) = (running[row].largest, running[row].total);
                    merge::<L>(merged, one);
                }
            }
        }
        if !apart {
            self.hand_over(&queries, merged, panels + 1);
        }
        ROOM.set(memory);
        !apart
    }

    /// The queries as rows of blocks, rounded as the unit takes them and padded with zeros.
    #[inline(always)]
    fn load_queries<L: Lanes>(&self, sizes: &Sizes, first: usize, to: &mut [U::Row]) {
        let head_dim = self.call.args.head_dim;
        for row in 0..sizes.rows {
            let start = self.call.place(self.work, first + row / sizes.group, row % sizes.group);
            let query = &self.call.q[start..][..head_dim];
            let to = &mut to[row / U::ROWS * U::ROWS * sizes.width..][..U::ROWS * sizes.width];
            for k in (0..sizes.width).step_by(LANES) {
                let x = L::load_partial(&query[k.min(head_dim)..(k + LANES).min(head_dim)], 0.0);
                let at = U::row_at(row % U::ROWS, k, sizes.width);
                if let Some(to) = to[at..].first_chunk_mut() {
                    U::store(x, to);
                }
            }
        }
    }

    /// The merged rows, to the output or to the parts of the work.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn hand_over(&self, queries: &Range<usize>, merged: &[[f32; LANES]], chunks: usize) {
        let group = self.call.args.heads / self.call.args.kv_heads;
        let work = self.work;
        for (row, merged) in merged.chunks_exact(chunks).enumerate() {
            let (query, head) = (queries.start + row / group, row % group);
            match work.parts {
                None => self.call.finish(work, (query, head), merged),
                Some(parts) => {
                    let rows = work.queries.len() * group;
                    let row = (query - work.queries.start) * group + head;
                    let place = (parts + self.stretches.start * rows + row) * chunks;
                    // SAFETY: each (work, stretch, row) belongs to one task.
                    unsafe { self.parts.range(place, chunks) }.copy_from_slice(merged);
                }
            }
        }
    }
}

impl Call<'_> {
    /// Where the query, and the output, of a head of the group starts.
    #[inline(always)]
    fn place(&self, work: &Work, query: usize, in_group: usize) -> usize {
        let args = self.args;
        let row = args.query_starts[work.sequence] as usize + query;
        let head = work.kv_head * (args.heads / args.kv_heads) + in_group;
        (row * args.heads + head) * args.head_dim
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn finish(&self, work: &Work, (query, in_group): (usize, usize), row: &[[f32; LANES]]) {
        let Some((state, sums)) = row.split_last() else { return };
        // SAFETY: each (query, head) belongs to one task.
        let to = unsafe { self.y.range(self.place(work, query, in_group), self.args.head_dim) };
        to.iter_mut().zip(sums.as_flattened()).for_each(|(to, x)| *to = x / state[1]);
    }
}

/// The parts of a work, put together in the order of the stretches.
struct Merge<'a> {
    call: &'a Call<'a>,
    work: &'a Work,
    parts: &'a [[f32; LANES]],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (args, work) = (self.call.args, self.work);
        let Some(parts) = work.parts else { return };
        let group = args.heads / args.kv_heads;
        let chunks = args.head_dim.div_ceil(PANEL) + 1;
        let rows = work.queries.len() * group;
        let mut merged = vec![[0.0; LANES]; chunks];
        for row in 0..rows {
            let query = work.queries.start + row / group;
            empty(&mut merged, chunks);
            for stretch in 0..args.visible(work.sequence, query).div_ceil(STRETCH) {
                merge::<L>(&mut merged, &self.parts[(parts + stretch * rows + row) * chunks..][..chunks]);
            }
            self.call.finish(work, (query, row % group), &merged);
        }
    }
}

/// Rows of no keys: sums of zero; behind them, the largest score and the total of the weights.
fn empty(rows: &mut [[f32; LANES]], chunks: usize) {
    rows.fill([0.0; LANES]);
    for row in rows.chunks_exact_mut(chunks) {
        row[chunks - 1][0] = f32::NEG_INFINITY;
    }
}

/// Adds the sums of a later stretch of the same row.
#[inline(always)]
fn merge<L: Lanes>(to: &mut [[f32; LANES]], from: &[[f32; LANES]]) {
    let (Some((to_state, to_sums)), Some((from_state, from_sums))) = (to.split_last_mut(), from.split_last())
    else {
        return;
    };
    let largest = to_state[0].max(from_state[0]);
    let mut fades = [0.0; LANES];
    L::load_partial(&[to_state[0] - largest, from_state[0] - largest], 0.0).exp().store(&mut fades);
    for (to, from) in to_sums.iter_mut().zip(from_sums) {
        let faded = L::load(to).mul(L::splat(fades[0]));
        faded.add(L::load(from).mul(L::splat(fades[1]))).store(to);
    }
    (to_state[0], to_state[1]) = (largest, to_state[1] * fades[0] + from_state[1] * fades[1]);
}

/// Turns one row's scores of a tile into weights, and returns what its earlier sums are to be multiplied with.
#[inline(always)]
fn weigh<U: Unit, L: Lanes>(
    scores: &[f32],
    row: usize,
    (visible, scale): (usize, f32),
    running: &mut Running,
    weights: &mut [U::Row],
) -> f32 {
    let mut x = [L::splat(0.0); SCORES];
    for (panel, x) in x.iter_mut().enumerate() {
        let Some(scores) = scores[U::sums_at(row, panel, SCORES)..].first_chunk() else { continue };
        *x = L::load(scores).mul(L::splat(scale));
    }
    if visible < TILE {
        for (panel, x) in x.iter_mut().enumerate() {
            let mut lanes = [0.0; LANES];
            x.store(&mut lanes);
            lanes[visible.saturating_sub(panel * PANEL).min(LANES)..].fill(f32::NEG_INFINITY);
            *x = L::load(&lanes);
        }
    }
    let before = running.largest;
    if visible > 0 {
        let mut largest = L::splat(before);
        for x in x {
            largest = x.max(largest);
        }
        running.largest = largest.largest();
    }
    let mut total = L::splat(0.0);
    for (panel, x) in x.into_iter().enumerate() {
        // A row that sees no key of this tile may have seen none at all: there is nothing to subtract.
        let weight = if visible > 0 { x.sub(L::splat(running.largest)).exp() } else { L::splat(0.0) };
        total = total.add(weight);
        if let Some(to) = weights[U::row_at(row, panel * PANEL, TILE)..].first_chunk_mut() {
            U::store(weight, to);
        }
    }
    let mut fade = [1.0; LANES];
    if running.largest != before {
        L::splat(before - running.largest).exp().store(&mut fade);
    }
    running.total = running.total * fade[0] + total.sum();
    fade[0]
}

#[inline(always)]
fn sums_of<U: Unit>(sums: &mut [f32], row: usize, panel: usize, panels: usize) -> &mut [f32; LANES] {
    match sums[U::sums_at(row, panel, panels)..].first_chunk_mut() {
        Some(sums) => sums,
        None => unreachable!("a block has room for all of its sums: this is a bug"),
    }
}
