//! One forward pass over a step's chunks, and what it predicts. Owns a model and the memory of its KV cache.
//!
//! Legend: T packed tokens, D hidden, R rows whose logits are wanted, V vocabulary, S sequences.

use std::ops::Range;
use std::sync::Arc;

use kanana_kernels::Kernels;
use kanana_model::{Batch, KvCache, Transformer};
use kanana_tensor::Tensor;

use crate::block_pool::BlockId;
use crate::constraint::Allowed;
use crate::sampler::{self, History};
use crate::scheduler::Chunk;
use crate::sequence::{Prediction, Sequence};
use crate::{EmbeddingInput, Logprobs, Pooling, Result, SamplingParams, SequenceError, embedding};

/// Rows whose logits exist at once: prompt log-probabilities want a row for every token of a chunk, and 512 rows of a
/// vocabulary of 128,256 would be 263 MB.
const LOGIT_ROWS: usize = 128;

/// Sequences whose grammars one thread asks during a forward pass.
const SEQUENCES_PER_THREAD: usize = 16;

pub(crate) struct Runner {
    model: Arc<Transformer>,
    kernels: Arc<dyn Kernels>,
    cache: KvCache,
}

/// A position whose logits are wanted.
struct Row {
    /// Index of its chunk.
    chunk: usize,
    position: usize,
    /// Its row in the packed batch.
    packed: u32,
    /// What the sequence's grammar says about a token to be generated here.
    allowed: Option<std::result::Result<Allowed, SequenceError>>,
}

impl Runner {
    pub(crate) fn new(model: Arc<Transformer>, kernels: Arc<dyn Kernels>, cache: KvCache) -> Self {
        Runner { model, kernels, cache }
    }

    /// Computes the chunks, in the order of `chunks`, and predicts after every position whose logits are wanted, as far
    /// as what was proposed comes true.
    ///
    /// Returns pairs of an index into `sequences` and a prediction, each sequence's in the order of positions.
    /// Cost: one forward pass over all chunks, and the output projection of the wanted rows.
    pub(crate) fn run(
        &mut self,
        chunks: &[Chunk],
        sequences: &[Sequence],
    ) -> Result<Vec<(usize, Prediction)>> {
        let wanted = |chunk: &Chunk| sequences[chunk.sequence].rows(&chunk.positions);
        let (hidden_td, rows) = self.forward(chunks, sequences, wanted)?;
        // Where the certain tokens of each chunk end: its sequence's own, and the proposals that came true so far.
        let mut certain: Vec<usize> = chunks.iter().map(Chunk::own_end).collect();
        let mut predictions = Vec::new();
        for rows in rows.chunks(LOGIT_ROWS) {
            let logits_rv = self.logits(&hidden_td, rows)?;
            let params = rows.iter().map(|row| &sequences[chunks[row.chunk].sequence].params);
            let log_sum_exp_r = self.log_sum_exp(&logits_rv, params)?;
            let logits_rv = self.kernels.download(&logits_rv)?;
            let by_row = logits_rv.as_slice::<f32>()?.chunks_exact(logits_rv.row_len());
            for ((row, logits_v), log_sum_exp) in rows.iter().zip(by_row).zip(log_sum_exp_r) {
                let (chunk, certain) = (&chunks[row.chunk], &mut certain[row.chunk]);
                if row.position >= *certain {
                    continue; // it builds on a proposal that was wrong
                }
                let sequence = &sequences[chunk.sequence];
                let proposed = chunk.proposed_up_to(row.position);
                let prediction = predict(sequence, proposed, row, (logits_v, log_sum_exp));
                if let Prediction::Token { token, .. } = prediction {
                    *certain += usize::from(chunk.proposed.get(proposed.len()) == Some(&token));
                }
                predictions.push((chunk.sequence, prediction));
            }
        }
        Ok(predictions)
    }

    /// Computes the chunks, and chooses what may come after each that wants more; None after the others, and where
    /// nothing could be chosen.
    ///
    /// Cost: one forward pass over all chunks, and the output projection of a row for each.
    pub(crate) fn guess(&mut self, chunks: &[Chunk], sequences: &[Sequence]) -> Result<Vec<Option<u32>>> {
        let wanted = |chunk: &Chunk| match chunk.wants_more(&sequences[chunk.sequence]) {
            true => chunk.positions.end - 1..chunk.positions.end,
            false => 0..0,
        };
        let (hidden_td, rows) = self.forward(chunks, sequences, wanted)?;
        let mut guesses = vec![None; chunks.len()];
        for rows in rows.chunks(LOGIT_ROWS) {
            let logits_rv = self.kernels.download(&self.logits(&hidden_td, rows)?)?;
            let by_row = logits_rv.as_slice::<f32>()?.chunks_exact(logits_rv.row_len());
            for (row, logits_v) in rows.iter().zip(by_row) {
                let chunk = &chunks[row.chunk];
                guesses[row.chunk] = choose(&sequences[chunk.sequence], &chunk.proposed, row, logits_v).ok();
            }
        }
        Ok(guesses)
    }

    /// See [`embedding::embed`].
    pub(crate) fn embed(&self, inputs: &[EmbeddingInput], pooling: Pooling) -> Result<Vec<Vec<f32>>> {
        embedding::embed(&self.model, &*self.kernels, inputs, pooling)
    }

    /// Writes random keys and values into whole blocks.
    pub(crate) fn fill_random(&mut self, blocks: &[BlockId], seed: u64) -> Result<()> {
        let block_size = self.cache.block_size() as u32;
        let slots: Vec<u32> =
            blocks.iter().flat_map(|block| block * block_size..(block + 1) * block_size).collect();
        Ok(self.cache.fill_random(&*self.kernels, &slots, seed)?)
    }

    /// Runs the chunks, and meanwhile asks the grammars of their sequences what may come after the `wanted` positions.
    fn forward(
        &mut self,
        chunks: &[Chunk],
        sequences: &[Sequence],
        wanted: impl Fn(&Chunk) -> Range<usize>,
    ) -> Result<(Tensor, Vec<Row>)> {
        let batch = batch(chunks, sequences, self.cache.block_size());
        let mut rows = rows(chunks, &batch, wanted);
        let mut constrained: Vec<_> = rows
            .chunk_by_mut(|a, b| a.chunk == b.chunk)
            .map(|rows| (&chunks[rows[0].chunk], rows))
            .map(|(chunk, rows)| (&sequences[chunk.sequence], chunk, rows))
            .filter(|(sequence, ..)| sequence.is_constrained())
            .collect();
        let hidden_td = std::thread::scope(|scope| {
            for share in constrained.chunks_mut(SEQUENCES_PER_THREAD) {
                scope.spawn(|| {
                    share.iter_mut().for_each(|(sequence, chunk, rows)| look_ahead(sequence, chunk, rows))
                });
            }
            self.model.forward(&*self.kernels, &batch, Some(&mut self.cache))
        })?;
        Ok((hidden_td, rows))
    }

    fn logits(&self, hidden_td: &Tensor, rows: &[Row]) -> Result<Tensor> {
        let packed: Vec<u32> = rows.iter().map(|row| row.packed).collect();
        let indices = self.kernels.upload(&Tensor::from_slice(&[packed.len()], &packed)?)?;
        let hidden_rd = self.kernels.gather_rows(hidden_td, &indices)?;
        Ok(self.model.logits(&*self.kernels, &hidden_rd)?)
    }

    /// One number a row if any of the rows reports log-probabilities, else nothing worth computing.
    fn log_sum_exp<'a>(
        &self,
        logits_rv: &Tensor,
        mut params: impl Iterator<Item = &'a SamplingParams>,
    ) -> Result<Vec<f32>> {
        if params.all(|p| p.logprobs.is_none() && p.prompt_logprobs.is_none()) {
            return Ok(vec![f32::NAN; logits_rv.rows()]);
        }
        let log_sum_exp_r = self.kernels.log_sum_exp(logits_rv)?;
        Ok(self.kernels.download(&log_sum_exp_r)?.to_f32_vec()?)
    }
}

/// Finds out what a sequence's grammar allows after each of the chunk's rows at which a token is to be generated.
fn look_ahead(sequence: &Sequence, chunk: &Chunk, rows: &mut [Row]) {
    let given = rows.partition_point(|row| row.position + 1 < sequence.tokens.len());
    let generating = &mut rows[given..];
    let (Some(mut constraint), [first, ..]) = (sequence.lock_constraint(), &*generating) else { return };
    let first = chunk.proposed_up_to(first.position).len();
    let allowed = constraint.ahead(&chunk.proposed, first..first + generating.len());
    generating.iter_mut().zip(allowed).for_each(|(row, allowed)| row.allowed = Some(allowed));
}

/// What comes after a row, where the tokens `proposed` follow the sequence's own up to there. Shapes: logits `[V]`,
/// with their log-sum-exp.
fn predict(
    sequence: &Sequence,
    proposed: &[u32],
    row: &Row,
    (logits_v, log_sum_exp): (&[f32], f32),
) -> Prediction {
    let position = row.position;
    if !logits_v.iter().all(|x| x.is_finite()) {
        return Prediction::Failed(SequenceError::NonFiniteLogits { position });
    }
    let params = &sequence.params;
    if let Some(&token) = sequence.tokens.get(position + 1) {
        let top = params.prompt_logprobs.unwrap_or(0);
        return Prediction::Prompt(Logprobs::new(logits_v, log_sum_exp, token, top, &[]));
    }
    if sequence.max_tokens == 0 {
        return Prediction::End;
    }
    match choose(sequence, proposed, row, logits_v) {
        Err(error) => Prediction::Failed(error),
        Ok(token) => {
            let asked = &params.logprob_token_ids;
            let logprobs = params.logprobs.map(|top| Logprobs::new(logits_v, log_sum_exp, token, top, asked));
            Prediction::Token { token, logprobs }
        }
    }
}

/// The sequence's next token after its own and those proposed. Shapes: `logits_v [V]`.
fn choose(
    sequence: &Sequence,
    proposed: &[u32],
    row: &Row,
    logits_v: &[f32],
) -> std::result::Result<u32, SequenceError> {
    let params = &sequence.params;
    let allowed = match &row.allowed {
        None => None,
        Some(Ok(allowed)) => Some(allowed),
        Some(Err(error)) => return Err(error.clone()),
    };
    let must_stop = allowed.is_some_and(|allowed| allowed.only_end);
    let may_stop = must_stop || sequence.generated() + proposed.len() >= params.min_tokens;
    let history = History {
        generated_counts: &sequence.generated_counts,
        proposed,
        forbidden: if may_stop { &[] } else { &sequence.stop_ids },
        allowed,
    };
    let position = sequence.tokens.len() + proposed.len() - 1;
    sampler::sample(logits_v, params, &history, sampler::uniform(sequence.seed, position))
}

/// Lays the chunks end to end.
fn batch(chunks: &[Chunk], sequences: &[Sequence], block_size: usize) -> Batch {
    let mut batch = Batch { query_starts: vec![0], causal: true, ..Batch::default() };
    for chunk in chunks {
        let sequence = &sequences[chunk.sequence];
        for position in chunk.positions.clone() {
            let block = sequence.block_table[position / block_size] as usize;
            batch.token_ids.push(chunk.token(sequence, position));
            batch.positions.push(position as u32);
            batch.slot_mapping.push((block * block_size + position % block_size) as u32);
        }
        batch.query_starts.push(batch.token_ids.len() as u32);
        batch.context_lens.push(chunk.positions.end as u32);
        let used: &[BlockId] = &sequence.block_table[..chunk.positions.end.div_ceil(block_size)];
        batch.block_tables.push(used.to_vec());
    }
    batch
}

/// Those positions of the chunks that `wanted` says, in the order of the batch.
fn rows(chunks: &[Chunk], batch: &Batch, wanted: impl Fn(&Chunk) -> Range<usize>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (index, (chunk, &start)) in chunks.iter().zip(&batch.query_starts).enumerate() {
        rows.extend(wanted(chunk).map(|position| Row {
            chunk: index,
            position,
            packed: start + (position - chunk.positions.start) as u32,
            allowed: None,
        }));
    }
    rows
}
