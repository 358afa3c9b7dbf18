//! Online softmax over tiles of 64 keys.
//!
//! A task is one kv head and some queries of one sequence with all the query heads that read it. A tile of keys and
//! values is widened to f32 once for all of them. The tiles start at fixed positions of the sequence and every query
//! has its own running maximum, sum and output, so its result does not depend on which queries share its task.

use kanana_tensor::{DType, Element, Tensor, bf16};

use super::{Arguments, KeyValues, Spans, TILE, check_attention};
use crate::Result;
use crate::ops::check;
use crate::runtime::Machine;
use crate::runtime::simd::{Kernel, LANES, Lanes, dispatch};
use crate::runtime::threads::SharedMut;

/// Queries of a task.
const QUERIES: usize = 32;

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
    let call = Call { args: &args, q: check::slice::<f32>("attention", q)?, scale };
    let y = SharedMut::new(check::slice_mut::<f32>("attention", &mut out)?);
    match k.dtype() {
        DType::BF16 => {
            run(machine, call, check::slice::<bf16>("attention", k)?, check::slice("attention", v)?, &y)
        }
        _ => run(machine, call, check::slice::<f32>("attention", k)?, check::slice("attention", v)?, &y),
    }
    Ok(out)
}

#[derive(Clone, Copy)]
struct Call<'a> {
    args: &'a Arguments<'a>,
    q: &'a [f32],
    scale: f32,
}

fn run<E: Widen>(machine: Machine<'_>, call: Call<'_>, k: &[E], v: &[E], out: &SharedMut<'_, f32>) {
    let args = call.args;
    let mut tasks = Vec::new();
    for s in 0..args.sequences() {
        let queries = (args.query_starts[s + 1] - args.query_starts[s]) as usize;
        for first in (0..queries).step_by(QUERIES) {
            for kv_head in 0..args.kv_heads {
                tasks.push((s, first..queries.min(first + QUERIES), kv_head));
            }
        }
    }
    // The last queries of a causal sequence see the most keys: longest tasks first.
    machine.threads.run(tasks.len(), &|task| {
        let (sequence, queries, kv_head) = tasks[tasks.len() - 1 - task].clone();
        dispatch(machine.isa, Task { call, k, v, out, sequence, queries, kv_head });
    });
}

/// A stored dtype, widened sixteen at a time.
trait Widen: Element {
    fn widen<L: Lanes>(x: &[Self; LANES]) -> L;
    fn to_f32(self) -> f32;
}
impl Widen for f32 {
    #[inline(always)]
    fn widen<L: Lanes>(x: &[f32; LANES]) -> L {
        L::load(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}
impl Widen for bf16 {
    #[inline(always)]
    fn widen<L: Lanes>(x: &[bf16; LANES]) -> L {
        L::load_bf16(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

struct Task<'a, E> {
    call: Call<'a>,
    k: &'a [E],
    v: &'a [E],
    out: &'a SharedMut<'a, f32>,
    sequence: usize,
    queries: std::ops::Range<usize>,
    kv_head: usize,
}

/// The running softmax of one query and head.
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    total: f32,
}

impl<E: Widen> Kernel for Task<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let args = self.call.args;
        let group = args.heads / args.kv_heads;
        let width = args.head_dim.next_multiple_of(LANES);
        let rows = self.queries.len() * group;
        let mut keys = vec![0.0; TILE * width];
        let mut values = vec![0.0; TILE * width];
        let mut sums = vec![0.0; rows * width];
        let mut query = vec![0.0; width];
        let mut running = vec![Running { largest: f32::NEG_INFINITY, total: 0.0 }; rows];
        let last_visible = args.visible(self.sequence, self.queries.end - 1);
        for tile in (0..last_visible).step_by(TILE) {
            let held = TILE.min(last_visible - tile);
            self.widen_tile::<L>(self.k, tile, held, &mut keys);
            self.widen_tile::<L>(self.v, tile, held, &mut values);
            for (i, q) in self.queries.clone().enumerate() {
                let visible = args.visible(self.sequence, q).saturating_sub(tile).min(held);
                if visible == 0 {
                    continue;
                }
                for g in 0..group {
                    let row = i * group + g;
                    query[..args.head_dim].copy_from_slice(&self.call.q[self.place(q, g)..][..args.head_dim]);
                    let mut scores = [f32::NEG_INFINITY; TILE];
                    dots::<L>(&query, &keys, &mut scores[..visible]);
                    let sum = &mut sums[row * width..][..width];
                    running[row] =
                        accumulate::<L>(running[row], self.call.scale, &mut scores, visible, &values, sum);
                }
            }
        }
        for (i, q) in self.queries.clone().enumerate() {
            for g in 0..group {
                let row = i * group + g;
                self.store(self.place(q, g), &sums[row * width..][..args.head_dim], running[row].total);
            }
        }
    }
}

impl<E: Widen> Task<'_, E> {
    /// Where the query, and the output, of a head of the group starts.
    #[inline(always)]
    fn place(&self, query: usize, in_group: usize) -> usize {
        let args = self.call.args;
        let row = args.query_starts[self.sequence] as usize + query;
        let head = self.kv_head * (args.heads / args.kv_heads) + in_group;
        (row * args.heads + head) * args.head_dim
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn store(&self, start: usize, sum: &[f32], total: f32) {
        // SAFETY: each (query, head) belongs to one task.
        let to = unsafe { self.out.range(start, sum.len()) };
        to.iter_mut().zip(sum).for_each(|(to, x)| *to = x / total);
    }

    #[inline(always)]
    fn widen_tile<L: Lanes>(&self, from: &[E], tile: usize, held: usize, to: &mut [f32]) {
        let args = self.call.args;
        let width = args.head_dim.next_multiple_of(LANES);
        for (j, to) in to.chunks_exact_mut(width).take(held).enumerate() {
            let start = args.key_start(self.sequence, tile + j, self.kv_head);
            let (full, tail) = from[start..][..args.head_dim].as_chunks::<LANES>();
            let (to_full, _) = to.as_chunks_mut::<LANES>();
            for (x, to) in full.iter().zip(to_full) {
                E::widen::<L>(x).store(to);
            }
            to[full.len() * LANES..].iter_mut().zip(tail).for_each(|(to, x)| *to = x.to_f32());
        }
    }
}

/// The products of a query with the first keys of a tile.
#[inline(always)]
fn dots<L: Lanes>(query: &[f32], keys: &[f32], scores: &mut [f32]) {
    let query = query.as_chunks::<LANES>().0;
    let width = query.len() * LANES;
    let (full, rest) = scores.as_chunks_mut::<LANES>();
    let (full_keys, rest_keys) = keys.split_at(full.len() * LANES * width);
    for (scores, keys) in full.iter_mut().zip(full_keys.chunks_exact(LANES * width)) {
        let mut products = [L::splat(0.0); LANES];
        for (product, key) in products.iter_mut().zip(keys.chunks_exact(width)) {
            *product = dot::<L>(query, key);
        }
        L::sums(products).store(scores);
    }
    for (score, key) in rest.iter_mut().zip(rest_keys.chunks_exact(width)) {
        *score = dot::<L>(query, key).sum();
    }
}

#[inline(always)]
fn dot<L: Lanes>(query: &[[f32; LANES]], key: &[f32]) -> L {
    let mut product = L::splat(0.0);
    for (q, k) in query.iter().zip(key.as_chunks::<LANES>().0) {
        product = product.fma(L::load(q), L::load(k));
    }
    product
}

/// Takes one tile's scores into the running softmax; those beyond `visible` are minus infinity.
#[inline(always)]
fn accumulate<L: Lanes>(
    before: Running,
    scale: f32,
    scores: &mut [f32; TILE],
    visible: usize,
    values: &[f32],
    sum: &mut [f32],
) -> Running {
    let chunks = scores.as_chunks_mut::<LANES>().0;
    let mut largest = L::splat(before.largest);
    for chunk in chunks.iter_mut() {
        let scaled = L::load(chunk).mul(L::splat(scale));
        scaled.store(chunk);
        largest = scaled.max(largest);
    }
    let largest = largest.largest();
    let mut total = L::splat(0.0);
    for chunk in chunks.iter_mut() {
        let weights = L::load(chunk).sub(L::splat(largest)).exp();
        weights.store(chunk);
        total = total.add(weights);
    }
    let mut fade = [0.0; LANES];
    L::splat(before.largest - largest).exp().store(&mut fade);
    let (eights, ones) = sum.as_chunks_mut::<LANES>().0.as_chunks_mut::<8>();
    for (c, sums) in eights.iter_mut().enumerate() {
        add_weighted::<L, 8>(sums, fade[0], &scores[..visible], values, 8 * c);
    }
    let first = 8 * eights.len();
    for (c, sums) in ones.iter_mut().enumerate() {
        add_weighted::<L, 1>(std::array::from_mut(sums), fade[0], &scores[..visible], values, first + c);
    }
    Running { largest, total: before.total * fade[0] + total.sum() }
}

/// `sums · fade + Σ weight · value` over `C` vectors of the output, the first of them vector `first` of a value.
#[inline(always)]
fn add_weighted<L: Lanes, const C: usize>(
    sums: &mut [[f32; LANES]; C],
    fade: f32,
    weights: &[f32],
    values: &[f32],
    first: usize,
) {
    let mut lanes = [L::splat(0.0); C];
    for c in 0..C {
        lanes[c] = L::load(&sums[c]).mul(L::splat(fade));
    }
    for (&weight, value) in weights.iter().zip(values.chunks_exact(width_of(values))) {
        let value = &value.as_chunks::<LANES>().0[first..first + C];
        for c in 0..C {
            lanes[c] = lanes[c].fma(L::splat(weight), L::load(&value[c]));
        }
    }
    for c in 0..C {
        lanes[c].store(&mut sums[c]);
    }
}

#[inline(always)]
fn width_of(tile: &[f32]) -> usize {
    tile.len() / TILE
}
