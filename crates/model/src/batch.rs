//! What one forward pass computes: tokens of several sequences, one after another.

use kanana_kernels::{Kernels, KvFormat, Spans};
use kanana_tensor::Tensor;

use crate::Result;

/// Packed tokens and where each sequence's keys are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[T]`.
    pub token_ids: Vec<u32>,
    /// `[T]`, counted from 0 in each sequence.
    pub positions: Vec<u32>,
    /// `[S + 1]`: the new tokens of sequence s are `query_starts[s]..query_starts[s + 1]`.
    pub query_starts: Vec<u32>,
    /// `[S]`: keys of sequence s, the new tokens' own included.
    pub context_lens: Vec<u32>,
    /// `[T]`: where the new keys go, block·P + offset. Used with a cache only.
    pub slot_mapping: Vec<u32>,
    /// `[S][..]`: the blocks of each sequence in order. Used with a cache only.
    pub block_tables: Vec<Vec<u32>>,
    /// A token sees no later token.
    pub causal: bool,
}

impl Batch {
    /// Whole sequences without a cache: training, embedding, scoring. Positions start at 0 in each.
    pub fn packed(sequences: &[&[u32]], causal: bool) -> Self {
        let mut batch = Batch { query_starts: vec![0], causal, ..Batch::default() };
        for sequence in sequences {
            batch.token_ids.extend_from_slice(sequence);
            batch.positions.extend(0..sequence.len() as u32);
            batch.query_starts.push(batch.token_ids.len() as u32);
            batch.context_lens.push(sequence.len() as u32);
        }
        batch
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }
}

/// The index data of a batch in the device's memory, for the length of one forward pass.
#[derive(Clone)]
pub struct Step<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    /// What keys and values are rounded to where no cache does it.
    pub(crate) kv_format: KvFormat,
    pub(crate) token_ids: Tensor,            // [T] u32
    pub(crate) positions: Tensor,            // [T] u32
    pub(crate) spans: Spans,                 // [S + 1], [S]
    pub(crate) slot_mapping: Option<Tensor>, // [T] u32, with a cache
    pub(crate) block_table: Option<Tensor>,  // [S, M] u32, with a cache
}

impl<'a> Step<'a> {
    pub(crate) fn new(
        kernels: &'a dyn Kernels,
        batch: &Batch,
        kv_format: KvFormat,
        with_cache: bool,
    ) -> Result<Self> {
        let upload = |shape: &[usize], values: &[u32]| -> Result<Tensor> {
            Ok(kernels.upload(&Tensor::from_slice(shape, values)?)?)
        };
        let tokens = batch.tokens();
        let sequences = batch.context_lens.len();
        let mut step = Step {
            kernels,
            kv_format,
            token_ids: upload(&[tokens], &batch.token_ids)?,
            positions: upload(&[tokens], &batch.positions)?,
            spans: Spans {
                query_starts: upload(&[sequences + 1], &batch.query_starts)?,
                context_lens: upload(&[sequences], &batch.context_lens)?,
                causal: batch.causal,
            },
            slot_mapping: None,
            block_table: None,
        };
        if with_cache {
            let entries = batch.block_tables.iter().map(Vec::len).max().unwrap_or(0);
            let padded = |table: &Vec<u32>| -> Vec<u32> {
                let padding = entries - table.len();
                table.iter().copied().chain(std::iter::repeat_n(0, padding)).collect()
            };
            let table: Vec<u32> = batch.block_tables.iter().flat_map(padded).collect();
            step.slot_mapping = Some(upload(&[tokens], &batch.slot_mapping)?);
            step.block_table = Some(upload(&[sequences, entries], &table)?);
        }
        Ok(step)
    }

    /// The same step, computed by other kernels of the same device: those that record it, say.
    pub fn on<'b>(&self, kernels: &'b dyn Kernels) -> Step<'b> {
        Step { kernels, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_sequences_follow_one_another() {
        let batch = Batch::packed(&[&[7, 8, 9], &[5]], true);
        assert_eq!(batch.token_ids, [7, 8, 9, 5]);
        assert_eq!(batch.positions, [0, 1, 2, 0]);
        assert_eq!(batch.query_starts, [0, 3, 4]);
        assert_eq!(batch.context_lens, [3, 1]);
    }
}
