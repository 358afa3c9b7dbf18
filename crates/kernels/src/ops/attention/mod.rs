//! Attention over packed sequences and its paged cache. Contract: [`crate::Kernels::attention`], [`crate::Kernels::write_kv`].

pub(crate) mod backward;
pub(crate) mod backward_cpu;
pub(crate) mod cpu;
mod kv_format;
pub(crate) mod reference;
mod tile;
mod unit;
pub(crate) mod write;

use kanana_tensor::Tensor;

pub use self::backward::AttentionCall;
pub use self::kv_format::KvFormat;

use crate::ops::check;
use crate::{KernelError, Kernels, Result};

/// Key positions visited at once; tiles start at multiples of this, counted from the start of the sequence.
pub const TILE: usize = 64;
/// Keys whose softmax runs on its own before it is merged, likewise counted: what threads share of a long sequence.
pub const STRETCH: usize = 512;

/// Where the keys and values are, both in one [`KvFormat`], whose W is the length of a row.
#[derive(Clone, Copy)]
pub enum KeyValues<'a> {
    /// Beside the queries, row for row: `[T, K, W]`. Training and embedding.
    Packed {
        /// Keys `[T, K, W]`.
        k: &'a Tensor,
        /// Values `[T, K, W]`.
        v: &'a Tensor,
    },
    /// In the blocks of a cache: position `p` of sequence `s` is at offset `p % P` of block `block_table[s][p / P]`.
    Paged {
        /// Key blocks `[B, K, P, W]`.
        k: &'a Tensor,
        /// Value blocks `[B, K, P, W]`.
        v: &'a Tensor,
        /// `[S, M] u32`; entries beyond a sequence's last block are not read.
        block_table: &'a Tensor,
    },
}

/// Which rows belong to which sequence, and how many keys each has.
#[derive(Clone, Debug)]
pub struct Spans {
    /// `[S + 1] u32`: the queries of sequence `s` are rows `query_starts[s]..query_starts[s + 1]`.
    pub query_starts: Tensor,
    /// `[S] u32`: keys of sequence `s`, the queries' own included; equal to its query count when packed.
    pub context_lens: Tensor,
    /// A query sees no later key; `false` lets it see all of its sequence.
    pub causal: bool,
}

/// The checked arguments of one call, as plain numbers and slices.
pub(crate) struct Arguments<'a> {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// W: elements of a stored key or value.
    pub(crate) row_len: usize,
    pub(crate) query_starts: &'a [u32],
    pub(crate) context_lens: &'a [u32],
    pub(crate) causal: bool,
    pub(crate) place: Place<'a>,
}

/// How a key's place is found.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// Row `start of the sequence + position`.
    Packed,
    /// Through the table, `entries` to a sequence.
    Paged { block_table: &'a [u32], entries: usize, block_size: usize },
}

/// Some positions of one head of one sequence.
#[derive(Clone, Copy)]
pub(crate) struct Positions {
    pub(crate) sequence: usize,
    pub(crate) kv_head: usize,
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// The elements at which `count` keys or values start: `start`, `start + stride`, …
#[derive(Clone, Copy)]
struct Run {
    start: usize,
    stride: usize,
    count: usize,
}

impl Arguments<'_> {
    pub(crate) fn sequences(&self) -> usize {
        self.context_lens.len()
    }

    /// The keys or values of some positions from the `skip`-th on that lie at even distances.
    #[inline(always)]
    fn run(&self, positions: Positions, skip: usize) -> Run {
        let Positions { sequence, kv_head, first, count } = positions;
        let (position, left) = (first + skip, count - skip);
        match self.place {
            Place::Packed => {
                let row = self.query_starts[sequence] as usize + position;
                let start = (row * self.kv_heads + kv_head) * self.row_len;
                Run { start, stride: self.kv_heads * self.row_len, count: left }
            }
            Place::Paged { block_table, entries, block_size } => {
                let block = block_table[sequence * entries + position / block_size] as usize;
                let offset = position % block_size;
                let start = ((block * self.kv_heads + kv_head) * block_size + offset) * self.row_len;
                Run { start, stride: self.row_len, count: left.min(block_size - offset) }
            }
        }
    }

    /// How many keys query `query` (counted within its sequence) sees.
    pub(crate) fn visible(&self, sequence: usize, query: usize) -> usize {
        let queries = (self.query_starts[sequence + 1] - self.query_starts[sequence]) as usize;
        let context = self.context_lens[sequence] as usize;
        if self.causal { context - queries + query + 1 } else { context }
    }
}

/// Checks everything that a kernel will index by.
pub(crate) fn check_attention<'a>(q: &Tensor, kv: &KeyValues<'a>, spans: &'a Spans) -> Result<Arguments<'a>> {
    const OP: &str = "attention";
    let [tokens, heads, head_dim] = check::dims(OP, "q", q)?;
    if head_dim == 0 {
        return Err(check::shape_error(OP, "q", q, "[T, N, at least 1]".to_owned()));
    }
    let query_starts = check::slice::<u32>(OP, &spans.query_starts)?;
    let context_lens = check::slice::<u32>(OP, &spans.context_lens)?;
    let rising = query_starts.windows(2).all(|pair| pair[0] <= pair[1]);
    let whole =
        query_starts.first() == Some(&0) && query_starts.last().map(|&end| end as usize) == Some(tokens);
    if !rising || !whole || query_starts.len() != context_lens.len() + 1 {
        let expected = format!("[S + 1 = {}] rising from 0 to T = {tokens}", context_lens.len() + 1);
        return Err(check::shape_error(OP, "query_starts", &spans.query_starts, expected));
    }
    let (k, v) = match kv {
        KeyValues::Packed { k, v } | KeyValues::Paged { k, v, .. } => (*k, *v),
    };
    let row_len = stored_row_len(OP, "k", k, head_dim)?;
    check::shape(OP, "v", v, k.shape())?;
    if v.dtype() != k.dtype() {
        return Err(KernelError::DType { op: OP, argument: "v", expected: "the dtype of k", got: v.dtype() });
    }
    let (kv_heads, place) = match kv {
        KeyValues::Packed { .. } => {
            let [_, kv_heads, _] = check::dims(OP, "k", k)?;
            check::shape(OP, "k", k, &[tokens, kv_heads, row_len])?;
            (kv_heads, Place::Packed)
        }
        KeyValues::Paged { block_table, .. } => {
            let [blocks, kv_heads, block_size, _] = check::dims(OP, "k", k)?;
            check::shape(OP, "k", k, &[blocks, kv_heads, block_size, row_len])?;
            if block_size == 0 {
                return Err(check::shape_error(OP, "k", k, "at least one position in a block".to_owned()));
            }
            let [rows, entries] = check::dims(OP, "block_table", block_table)?;
            check::shape(OP, "block_table", block_table, &[context_lens.len(), entries])?;
            let table = check::slice::<u32>(OP, block_table)?;
            for s in 0..rows {
                let used = (context_lens[s] as usize).div_ceil(block_size);
                if used > entries {
                    return Err(KernelError::Index { op: OP, index: used, limit: entries });
                }
                if let Some(&block) = table[s * entries..][..used].iter().find(|&&b| b as usize >= blocks) {
                    return Err(KernelError::Index { op: OP, index: block as usize, limit: blocks });
                }
            }
            (kv_heads, Place::Paged { block_table: table, entries, block_size })
        }
    };
    if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
        return Err(check::shape_error(OP, "q", q, format!("[T, a multiple of {kv_heads} heads, H]")));
    }
    for (s, &context) in context_lens.iter().enumerate() {
        let queries = query_starts[s + 1] - query_starts[s];
        let fits = if matches!(place, Place::Packed) { context == queries } else { context >= queries };
        if !fits {
            return Err(KernelError::Index { op: OP, index: queries as usize, limit: context as usize });
        }
    }
    let causal = spans.causal;
    Ok(Arguments { tokens, heads, kv_heads, head_dim, row_len, query_starts, context_lens, causal, place })
}

/// [`Kernels::round_kv`] by way of a cache whose blocks hold one position each: its rows are those of a packed tensor.
pub(crate) fn rounded_by_cache<K: Kernels + ?Sized>(
    kernels: &K,
    x: &Tensor,
    format: KvFormat,
) -> Result<Tensor> {
    const OP: &str = "round_kv";
    let [tokens, kv_heads, head_dim] = check::dims(OP, "x", x)?;
    let row_len = format.row_len(head_dim);
    let mut cache = kernels.zeros(&[tokens, kv_heads, 1, row_len], format.dtype())?;
    let slots: Vec<u32> = (0..tokens as u32).collect();
    let slots = kernels.upload(&check::in_op(OP, Tensor::from_slice(&[tokens], &slots))?)?;
    kernels.write_kv(x, &mut cache, &slots)?;
    check::in_op(OP, cache.reshape(&[tokens, kv_heads, row_len]))
}

/// W of a tensor of keys or values, by its dtype.
fn stored_row_len(op: &'static str, argument: &'static str, kv: &Tensor, head_dim: usize) -> Result<usize> {
    let expected = "f32, bf16, or u8 for codes with a scale";
    let unknown = || KernelError::DType { op, argument, expected, got: kv.dtype() };
    Ok(KvFormat::of(kv.dtype()).ok_or_else(unknown)?.row_len(head_dim))
}

/// The slots of [`crate::Kernels::write_kv`], all inside of the cache, with the cache's shape `[B, K, P, W]`.
pub(crate) fn check_write_kv<'a>(
    x: &Tensor,
    cache: &Tensor,
    slots: &'a Tensor,
) -> Result<([usize; 4], &'a [u32])> {
    const OP: &str = "write_kv";
    let [_, _, head_dim] = check::dims(OP, "x", x)?;
    let shape @ [blocks, kv_heads, block_size, _] = check::dims(OP, "cache", cache)?;
    let row_len = stored_row_len(OP, "cache", cache, head_dim)?;
    check::shape(OP, "cache", cache, &[blocks, kv_heads, block_size, row_len])?;
    check::shape(OP, "x", x, &[slots.len(), kv_heads, head_dim])?;
    Ok((shape, check::indices(OP, slots, blocks * block_size)?))
}
