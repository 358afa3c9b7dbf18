//! The gradient of attention over tiles of 64 keys and 64 queries, in f32 whatever the instruction set.
//!
//! Everything is computed turned: a row for each key, a lane for each query. So the log-sum-exp and the other sums of a
//! query are vectors, weights and their gradients are the rows that `dv` and `dk` are products of, and `dq` comes turned
//! from panels of the same numbers: nothing is transposed inside of the loop over tiles. A task is one kv head of one
//! sequence with all the query heads that read it, one after the other, so the order of sums depends on nothing else.

use kanana_tensor::{DType, Tensor};

use super::backward::AttentionCall;
use super::{Arguments, TILE};
use crate::Result;
use crate::ops::check;
use crate::ops::linear::cpu::{F32Panels, Rectangle, Target};
use crate::ops::linear::pack::PANEL;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, LANES, Lanes, dispatch};
use crate::runtime::threads::SharedMut;

/// Panels of the queries of a tile.
const LANE_PANELS: usize = TILE / PANEL;

pub(crate) fn attention_backward(
    machine: Machine<'_>,
    call: AttentionCall<'_>,
    y: &Tensor,
    dy: &Tensor,
) -> Result<[Tensor; 3]> {
    const OP: &str = "attention_backward";
    let args = call.check(y, dy)?;
    let (k, v) = (check::in_op(OP, call.k.to_f32_vec())?, check::in_op(OP, call.v.to_f32_vec())?);
    let mut dq = machine.pool.tensor(call.q.shape(), DType::F32);
    let mut dk = machine.pool.tensor(call.k.shape(), DType::F32);
    let mut dv = machine.pool.tensor(call.v.shape(), DType::F32);
    let shared = Shared {
        args: &args,
        scale: call.scale,
        q: check::slice::<f32>(OP, call.q)?,
        k: &k,
        v: &v,
        y: check::slice::<f32>(OP, y)?,
        dy: check::slice::<f32>(OP, dy)?,
        dq: SharedMut::new(check::slice_mut::<f32>(OP, &mut dq)?),
        dk: SharedMut::new(check::slice_mut::<f32>(OP, &mut dk)?),
        dv: SharedMut::new(check::slice_mut::<f32>(OP, &mut dv)?),
    };
    machine.threads.run(args.sequences() * args.kv_heads, &|i| {
        let (sequence, kv_head) = (i / args.kv_heads, i % args.kv_heads);
        dispatch(machine.isa, Task { shared: &shared, sequence, kv_head });
    });
    Ok([dq, dk, dv])
}

struct Shared<'a> {
    args: &'a Arguments<'a>,
    scale: f32,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    y: &'a [f32],
    dy: &'a [f32],
    dq: SharedMut<'a, f32>,
    dk: SharedMut<'a, f32>,
    dv: SharedMut<'a, f32>,
}

struct Task<'a> {
    shared: &'a Shared<'a>,
    sequence: usize,
    kv_head: usize,
}

/// Queries of one head, at most a tile of them.
struct Block {
    /// The first, counted within the sequence.
    first: usize,
    count: usize,
    lanes_q: Vec<f32>,   // [TILE / 16][H][16]: a query for each lane, scaled
    lanes_dy: Vec<f32>,  // [TILE / 16][H][16]
    wide_q: Vec<f32>,    // [H / 16][TILE][16]: a row for each query, scaled
    wide_dy: Vec<f32>,   // [H / 16][TILE][16]
    shared: [f32; TILE], // rowsum(dy · y)
    lse: [f32; TILE],
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(unsafe_code)]
    fn run<L: Lanes>(self) {
        let Shared { args, k, v, .. } = self.shared;
        let (heads, kv_heads, width) = (args.heads, args.kv_heads, args.head_dim);
        let padded = width.next_multiple_of(PANEL);
        let start = args.query_starts[self.sequence] as usize;
        let keys = args.context_lens[self.sequence] as usize;
        // Rows of keys and values, and for every tile of keys its columns: [H][TILE].
        let mut key_rows = vec![0.0; keys * width];
        let mut value_rows = vec![0.0; keys * width];
        let mut key_columns = vec![0.0; keys.div_ceil(TILE) * width * TILE];
        for key in 0..keys {
            let from = ((start + key) * kv_heads + self.kv_head) * width;
            key_rows[key * width..][..width].copy_from_slice(&k[from..][..width]);
            value_rows[key * width..][..width].copy_from_slice(&v[from..][..width]);
            let columns = &mut key_columns[key / TILE * width * TILE..][..width * TILE];
            for h in 0..width {
                columns[h * TILE + key % TILE] = k[from + h];
            }
        }
        let mut dk = vec![0.0; keys * padded];
        let mut dv = vec![0.0; keys * padded];
        let mut scores = vec![0.0; TILE * TILE]; // [keys][queries], then the weights
        let mut ds = vec![0.0; TILE * TILE]; // [keys][queries]
        let mut ds_panels = vec![0.0; TILE * TILE]; // [queries / 16][keys][16]
        let mut dq = vec![0.0; width * TILE]; // [H][queries]
        let group = heads / kv_heads;
        for head in self.kv_head * group..(self.kv_head + 1) * group {
            for first in (0..keys).step_by(TILE) {
                let mut block = self.block(head, first, keys);
                let seen = if args.causal { first + block.count } else { keys };
                self.log_sum_exp::<L>(&mut block, seen, &key_rows, &mut scores);
                dq.fill(0.0);
                for tile in (0..seen).step_by(TILE) {
                    let count = TILE.min(seen - tile);
                    let key_rows = &key_rows[tile * width..][..count * width];
                    let value_rows = &value_rows[tile * width..][..count * width];
                    product::<L>(key_rows, &block.lanes_q, width, &mut scores, false);
                    product::<L>(value_rows, &block.lanes_dy, width, &mut ds, false);
                    for j in 0..count {
                        for panel in 0..LANE_PANELS {
                            let at = j * TILE + panel * LANES;
                            let Some(score) = scores[at..].first_chunk_mut::<LANES>() else { continue };
                            let lanes = lane::<L>(&block.lse, panel);
                            let mut p = L::load(score).sub(lanes).exp();
                            if args.causal && tile + count > first {
                                p = visible::<L>(first + panel * LANES, tile + j).choose(p, L::splat(0.0));
                            }
                            p.store(score);
                            let Some(to) = ds[at..].first_chunk_mut::<LANES>() else { continue };
                            let d = p.mul(L::load(to).sub(lane::<L>(&block.shared, panel)));
                            d.store(to);
                            let at = (panel * TILE + j) * LANES;
                            if let Some(to) = ds_panels[at..].first_chunk_mut::<LANES>() {
                                d.store(to);
                            }
                        }
                    }
                    for panel in 0..LANE_PANELS {
                        ds_panels[(panel * TILE + count) * LANES..(panel + 1) * TILE * LANES].fill(0.0);
                    }
                    let rows = tile * padded..(tile + count) * padded;
                    product::<L>(&scores[..count * TILE], &block.wide_dy, TILE, &mut dv[rows.clone()], true);
                    product::<L>(&ds[..count * TILE], &block.wide_q, TILE, &mut dk[rows], true);
                    let columns = &key_columns[tile / TILE * width * TILE..][..width * TILE];
                    product::<L>(columns, &ds_panels, TILE, &mut dq, true);
                }
                for i in 0..block.count {
                    let at = ((start + first + i) * heads + head) * width;
                    // SAFETY: each query of each head belongs to one task, and each kv head's keys too.
                    let to = unsafe { self.shared.dq.range(at, width) };
                    for h in 0..width {
                        to[h] = dq[h * TILE + i] * self.shared.scale;
                    }
                }
            }
        }
        for key in 0..keys {
            let at = ((start + key) * kv_heads + self.kv_head) * width;
            // SAFETY: as above.
            let (to_k, to_v) = unsafe { (self.shared.dk.range(at, width), self.shared.dv.range(at, width)) };
            to_k.copy_from_slice(&dk[key * padded..][..width]);
            to_v.copy_from_slice(&dv[key * padded..][..width]);
        }
    }
}

impl Task<'_> {
    /// Lays out some queries. Lanes beyond the last have a log-sum-exp that leaves them no weight.
    #[inline(always)]
    fn block(&self, head: usize, first: usize, queries: usize) -> Block {
        let Shared { args, scale, q, y, dy, .. } = self.shared;
        let width = args.head_dim;
        let padded = width.next_multiple_of(PANEL);
        let count = TILE.min(queries - first);
        let mut block = Block {
            first,
            count,
            lanes_q: vec![0.0; width * TILE],
            lanes_dy: vec![0.0; width * TILE],
            wide_q: vec![0.0; padded * TILE],
            wide_dy: vec![0.0; padded * TILE],
            shared: [0.0; TILE],
            lse: [f32::INFINITY; TILE],
        };
        let start = args.query_starts[self.sequence] as usize;
        for i in 0..count {
            let from = ((start + first + i) * args.heads + head) * width;
            let (q, y, dy) = (&q[from..][..width], &y[from..][..width], &dy[from..][..width]);
            for h in 0..width {
                let lane = (i / LANES * width + h) * LANES + i % LANES;
                let wide = (h / LANES * TILE + i) * LANES + h % LANES;
                block.lanes_q[lane] = q[h] * scale;
                block.wide_q[wide] = q[h] * scale;
                block.lanes_dy[lane] = dy[h];
                block.wide_dy[wide] = dy[h];
                block.shared[i] += y[h] * dy[h];
            }
        }
        block
    }

    /// The log-sum-exp of the scores of every query, tile by tile.
    #[inline(always)]
    fn log_sum_exp<L: Lanes>(&self, block: &mut Block, seen: usize, key_rows: &[f32], scores: &mut [f32]) {
        let (width, causal) = (self.shared.args.head_dim, self.shared.args.causal);
        let lowest = L::splat(-1e30);
        let mut largest = [lowest; LANE_PANELS];
        let mut sums = [L::splat(0.0); LANE_PANELS];
        for tile in (0..seen).step_by(TILE) {
            let count = TILE.min(seen - tile);
            let rows = &key_rows[tile * width..][..count * width];
            product::<L>(rows, &block.lanes_q, width, scores, false);
            for panel in 0..LANE_PANELS {
                let before = largest[panel];
                for j in 0..count {
                    let Some(score) = scores[j * TILE + panel * LANES..].first_chunk_mut::<LANES>() else {
                        continue;
                    };
                    let mut s = L::load(score);
                    if causal && tile + count > block.first {
                        s = visible::<L>(block.first + panel * LANES, tile + j).choose(s, lowest);
                        s.store(score);
                    }
                    largest[panel] = largest[panel].max(s);
                }
                sums[panel] = sums[panel].mul(before.sub(largest[panel]).exp());
                for j in 0..count {
                    if let Some(score) = scores[j * TILE + panel * LANES..].first_chunk::<LANES>() {
                        sums[panel] = sums[panel].add(L::load(score).sub(largest[panel]).exp());
                    }
                }
            }
        }
        for panel in 0..LANE_PANELS {
            let (mut top, mut sum) = ([0.0; LANES], [0.0; LANES]);
            largest[panel].store(&mut top);
            sums[panel].store(&mut sum);
            for i in 0..LANES {
                if panel * LANES + i < block.count {
                    block.lse[panel * LANES + i] = top[i] + sum[i].ln();
                }
            }
        }
    }
}

/// Above zero in the lanes of queries, from `first` on, that see the key.
#[inline(always)]
fn visible<L: Lanes>(first: usize, key: usize) -> L {
    const NUMBERS: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
    L::load(&NUMBERS).add(L::splat(first as f32 - key as f32 + 0.5))
}

/// Sixteen of the numbers that belong to queries.
#[inline(always)]
fn lane<L: Lanes>(of: &[f32; TILE], panel: usize) -> L {
    L::load(&of.as_chunks::<LANES>().0[panel])
}

/// Rows of `inputs` elements by panels `[..][inputs][16]`, into rows of as many outputs as the panels have.
#[inline(always)]
#[allow(unsafe_code)]
fn product<L: Lanes>(rows: &[f32], panels: &[f32], inputs: usize, to: &mut [f32], add: bool) {
    let count = panels.len() / (inputs * PANEL);
    let rectangle = Rectangle {
        x: rows,
        x_stride: inputs,
        inputs,
        rows: rows.len() / inputs,
        w: panels,
        w_stride: inputs * PANEL,
        panels: count,
    };
    let outputs = count * PANEL;
    let to = Target { y: &SharedMut::new(to), start: 0, stride: outputs, outputs };
    // SAFETY: the sums are borrowed for this call alone.
    unsafe { rectangle.multiply::<L, F32Panels>(&to, add) };
}
