//! One forward pass over a step's chunks, and what it predicts. Owns the memory of the KV cache.
//!
//! Legend: T packed tokens, D hidden, R rows whose logits are wanted, V vocabulary, S sequences.

use std::sync::Arc;

use kanana_kernels::Kernels;
use kanana_model::{Batch, KvCache, Transformer};
use kanana_tensor::Tensor;

use crate::block_pool::BlockId;
use crate::sampler::{self, History};
use crate::scheduler::Chunk;
use crate::sequence::{Prediction, Sequence};
use crate::{Logprobs, Result, SequenceError};

/// Rows whose logits exist at once: prompt log-probabilities want a row for every token of a chunk, and 512 rows of a
/// vocabulary of 128,256 would be 263 MB.
const LOGIT_ROWS: usize = 128;

pub(crate) struct Runner {
    model: Arc<Transformer>,
    kernels: Arc<dyn Kernels>,
    cache: KvCache,
}

/// A position whose logits are wanted.
struct Row {
    sequence: usize,
    position: usize,
    /// Its row in the packed batch.
    packed: u32,
}

impl Runner {
    pub(crate) fn new(model: Arc<Transformer>, kernels: Arc<dyn Kernels>, cache: KvCache) -> Self {
        Runner { model, kernels, cache }
    }

    /// Computes the chunks, in the order of `chunks`, and predicts after every position whose logits are wanted.
    ///
    /// Returns pairs of an index into `sequences` and a prediction, each sequence's in the order of positions.
    /// Cost: one forward pass over all chunks, and the output projection of the wanted rows.
    pub(crate) fn run(
        &mut self,
        chunks: &[Chunk],
        sequences: &[Sequence],
    ) -> Result<Vec<(usize, Prediction)>> {
        let batch = batch(chunks, sequences, self.cache.block_size());
        let hidden_td = self.model.forward(&*self.kernels, &batch, Some(&mut self.cache))?;
        let mut predictions = Vec::new();
        for rows in rows(chunks, sequences, &batch).chunks(LOGIT_ROWS) {
            let logits_rv = self.logits(&hidden_td, rows)?;
            let log_sum_exp_r = self.log_sum_exp(&logits_rv, rows, sequences)?;
            let logits_rv = self.kernels.download(&logits_rv)?;
            let by_row = logits_rv.as_slice::<f32>()?.chunks_exact(logits_rv.row_len());
            for ((row, logits_v), log_sum_exp) in rows.iter().zip(by_row).zip(log_sum_exp_r) {
                let prediction = predict(&sequences[row.sequence], row.position, logits_v, log_sum_exp);
                predictions.push((row.sequence, prediction));
            }
        }
        Ok(predictions)
    }

    fn logits(&self, hidden_td: &Tensor, rows: &[Row]) -> Result<Tensor> {
        let packed: Vec<u32> = rows.iter().map(|row| row.packed).collect();
        let indices = self.kernels.upload(&Tensor::from_slice(&[packed.len()], &packed)?)?;
        let hidden_rd = self.kernels.gather_rows(hidden_td, &indices)?;
        Ok(self.model.logits(&*self.kernels, &hidden_rd)?)
    }

    /// One number a row if any of the rows reports log-probabilities, else nothing worth computing.
    fn log_sum_exp(&self, logits_rv: &Tensor, rows: &[Row], sequences: &[Sequence]) -> Result<Vec<f32>> {
        let params = rows.iter().map(|row| &sequences[row.sequence].params);
        if params.into_iter().all(|p| p.logprobs.is_none() && p.prompt_logprobs.is_none()) {
            return Ok(vec![f32::NAN; rows.len()]);
        }
        let log_sum_exp_r = self.kernels.log_sum_exp(logits_rv)?;
        Ok(self.kernels.download(&log_sum_exp_r)?.to_f32_vec()?)
    }
}

/// What comes after `position` of the sequence. Shapes: `logits_v [V]`.
fn predict(sequence: &Sequence, position: usize, logits_v: &[f32], log_sum_exp: f32) -> Prediction {
    if !logits_v.iter().all(|x| x.is_finite()) {
        return Prediction::Failed(SequenceError::NonFiniteLogits { position });
    }
    let params = &sequence.params;
    if let Some(&token) = sequence.tokens.get(position + 1) {
        let top = params.prompt_logprobs.unwrap_or(0);
        return Prediction::Prompt(Logprobs::new(logits_v, log_sum_exp, token, top));
    }
    if sequence.max_tokens == 0 {
        return Prediction::End;
    }
    let may_stop = sequence.generated() >= params.min_tokens;
    let history = History {
        generated_counts: &sequence.generated_counts,
        forbidden: if may_stop { &[] } else { &sequence.stop_ids },
    };
    match sampler::sample(logits_v, params, &history, sampler::uniform(sequence.seed, position)) {
        Err(error) => Prediction::Failed(error),
        Ok(token) => {
            let logprobs = params.logprobs.map(|top| Logprobs::new(logits_v, log_sum_exp, token, top));
            Prediction::Token { token, logprobs }
        }
    }
}

/// Lays the chunks end to end.
fn batch(chunks: &[Chunk], sequences: &[Sequence], block_size: usize) -> Batch {
    let mut batch = Batch { query_starts: vec![0], causal: true, ..Batch::default() };
    for Chunk { sequence, positions } in chunks {
        let Sequence { tokens, block_table, .. } = &sequences[*sequence];
        batch.token_ids.extend(&tokens[positions.clone()]);
        for position in positions.clone() {
            let slot = block_table[position / block_size] as usize * block_size + position % block_size;
            batch.positions.push(position as u32);
            batch.slot_mapping.push(slot as u32);
        }
        batch.query_starts.push(batch.token_ids.len() as u32);
        batch.context_lens.push(positions.end as u32);
        let used: &[BlockId] = &block_table[..positions.end.div_ceil(block_size)];
        batch.block_tables.push(used.to_vec());
    }
    batch
}

/// The wanted rows of a batch, in its order.
fn rows(chunks: &[Chunk], sequences: &[Sequence], batch: &Batch) -> Vec<Row> {
    let mut rows = Vec::new();
    for (chunk, &start) in chunks.iter().zip(&batch.query_starts) {
        let wanted = sequences[chunk.sequence].rows(&chunk.positions);
        rows.extend(wanted.map(|position| Row {
            sequence: chunk.sequence,
            position,
            packed: start + (position - chunk.positions.start) as u32,
        }));
    }
    rows
}
