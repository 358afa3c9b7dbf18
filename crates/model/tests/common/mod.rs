//! Steps over a paged cache, cut as a test likes: what an engine would do, without the engine.
#![allow(dead_code, reason = "every test file is a program of its own and takes what it needs")]

use kanana_kernels::{Kernels, KvFormat};
use kanana_model::{Batch, KvCache, Transformer};

/// A piece of a sequence that is fed in one step.
pub struct Chunk<'a> {
    /// The tokens of the piece.
    pub token_ids: &'a [u32],
    /// Their rotary positions.
    pub positions: &'a [u32],
    /// How many tokens of the sequence are in the cache already.
    pub start: usize,
    /// The blocks of the whole sequence.
    pub block_table: &'a [u32],
}

/// One causal step over a paged cache of blocks of `block_size` positions.
pub fn paged_batch(chunks: &[Chunk<'_>], block_size: usize) -> Batch {
    let mut batch = Batch {
        token_ids: vec![],
        positions: vec![],
        query_starts: vec![0],
        context_lens: vec![],
        slot_mapping: vec![],
        block_tables: vec![],
        causal: true,
    };
    for chunk in chunks {
        let end = chunk.start + chunk.token_ids.len();
        batch.token_ids.extend(chunk.token_ids);
        batch.positions.extend(chunk.positions);
        batch.query_starts.push(batch.token_ids.len() as u32);
        batch.context_lens.push(end as u32);
        batch.slot_mapping.extend(
            (chunk.start..end)
                .map(|at| chunk.block_table[at / block_size] * block_size as u32 + (at % block_size) as u32),
        );
        batch.block_tables.push(chunk.block_table[..end.div_ceil(block_size)].to_vec());
    }
    batch
}

/// The blocks of sequences of these lengths: in rising order, or scattered over a cache with holes.
///
/// Returns the tables and the number of blocks the cache must have.
pub fn block_tables(lengths: &[usize], block_size: usize, scattered: bool) -> (Vec<Vec<u32>>, usize) {
    let used: usize = lengths.iter().map(|length| length.div_ceil(block_size)).sum();
    // Scattered: every other block, from the last backwards, so that no sequence lies in one piece.
    let num_blocks = if scattered { 2 * used + 1 } else { used };
    let mut blocks = (0..used).map(|i| if scattered { num_blocks - 2 * (i + 1) } else { i } as u32);
    let tables =
        lengths.iter().map(|length| blocks.by_ref().take(length.div_ceil(block_size)).collect()).collect();
    (tables, num_blocks)
}

/// The `count` ids that greedy decoding adds to a prompt, in f32: the prompt in one step, then token by token.
pub fn continue_greedily(
    model: &Transformer,
    kernels: &dyn Kernels,
    prompt: &[u32],
    positions: &[u32],
    count: usize,
) -> Vec<u32> {
    const BLOCK_SIZE: usize = 16;
    let (tables, num_blocks) = block_tables(&[prompt.len() + count], BLOCK_SIZE, true);
    let mut cache = KvCache::new(kernels, &model.config, num_blocks, BLOCK_SIZE, KvFormat::F32).unwrap();

    let (mut token_ids, mut positions, mut start, mut chosen) =
        (prompt.to_vec(), positions.to_vec(), 0, vec![]);
    for _ in 0..count {
        let chunk = Chunk { token_ids: &token_ids, positions: &positions, start, block_table: &tables[0] };
        let hidden = model.forward(kernels, &paged_batch(&[chunk], BLOCK_SIZE), Some(&mut cache)).unwrap();
        let last = hidden.slice_rows(hidden.rows() - 1..hidden.rows()).unwrap();
        let next = argmax(&model.logits(kernels, &last).unwrap().to_f32_vec().unwrap());
        chosen.push(next);
        start += token_ids.len();
        (token_ids, positions) = (vec![next], vec![positions[positions.len() - 1] + 1]);
    }
    chosen
}

/// The index of the largest logit, the first of equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best });
    best.unwrap() as u32
}
