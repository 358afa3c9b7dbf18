//! The loop: schedule, run, accept.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use kanana_kernels::{Kernels, KvFormat};
use kanana_model::{KvCache, Transformer};
use serde::{Deserialize, Serialize};

use crate::request::check_token;
use crate::runner::Runner;
use crate::scheduler::{Limits, Scheduler};
use crate::sequence::{Prediction, Resolved, Sequence};
use crate::speculation::Proposer;
use crate::{
    Constraint, EmbeddingInput, EngineError, Pooling, Request, Result, SequenceId, Speculation, StepOutput,
};

/// How much memory and how much work at once.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Blocks of the KV cache; [`KvCache::bytes_per_block`] says what one costs.
    pub num_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
    /// Tokens in one step, of all sequences together: longer prompts are cut.
    pub max_batched_tokens: usize,
    /// How many of those may belong to prompts while some sequence generates: what a stream of tokens waits for at most
    /// between two of them.
    pub prefill_beside_decode: usize,
    /// Sequences that run at once; more of them wait.
    pub max_sequences: usize,
    /// Tokens of one sequence, prompt and generated; no more than the model was loaded for.
    pub max_context: usize,
    /// Reuse the keys and values of a prefix that was computed before.
    pub prefix_cache: bool,
    /// How keys and values are stored.
    pub kv_format: KvFormat,
    /// Who proposes tokens ahead of the model, if anybody.
    pub speculation: Speculation,
}

impl EngineOptions {
    /// The usual block size, token budget and number of sequences, with the blocks that one sequence of `max_context`
    /// tokens fills, and no speculation.
    pub fn for_context(max_context: usize, kv_format: KvFormat) -> Self {
        EngineOptions {
            num_blocks: max_context.div_ceil(16),
            block_size: 16,
            max_batched_tokens: 512,
            prefill_beside_decode: usize::MAX,
            max_sequences: 64,
            max_context,
            prefix_cache: true,
            kv_format,
            speculation: Speculation::Off,
        }
    }

    fn validate(&self, max_positions: usize) -> Result<()> {
        let refuse = |field, got: usize, expected: String| {
            Err(EngineError::Parameter { field, got: got.to_string(), expected })
        };
        let fields = [
            ("num_blocks", self.num_blocks),
            ("block_size", self.block_size),
            ("max_batched_tokens", self.max_batched_tokens),
            ("prefill_beside_decode", self.prefill_beside_decode),
            ("max_sequences", self.max_sequences),
            ("max_context", self.max_context),
        ];
        if let Some((field, zero)) = fields.into_iter().find(|&(_, value)| value == 0) {
            return refuse(field, zero, "at least 1".to_owned());
        }
        if self.max_context > max_positions {
            let expected =
                format!("no more than the {max_positions} positions that the model was loaded for");
            return refuse("max_context", self.max_context, expected);
        }
        Ok(())
    }
}

/// Where the engine stands, and what it did since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences that wait for a place.
    pub waiting: usize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Blocks that no sequence holds; their contents may still be found by the prefix cache.
    pub free_blocks: usize,
    /// Tokens of all sequences that were given a place.
    pub looked_up_tokens: u64,
    /// How many of those were in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens that were computed, those of proposals included.
    pub computed_tokens: u64,
    /// How often a sequence had to give up its blocks.
    pub preemptions: u64,
    /// How often a sequence was given tokens on trial.
    pub verifications: u64,
    /// Tokens that were given on trial.
    pub proposed_tokens: u64,
    /// How many of those came true.
    pub accepted_tokens: u64,
}

impl Stats {
    /// Proposed tokens that came true in a verification, on average; the token that every forward pass brings anyway
    /// is not counted. None before the first.
    pub fn accepted_length(&self) -> Option<f64> {
        (self.verifications > 0).then(|| self.accepted_tokens as f64 / self.verifications as f64)
    }
}

/// Runs many sequences at once on one model.
pub struct Engine {
    scheduler: Scheduler,
    proposer: Proposer,
    runner: Runner,
    options: EngineOptions,
    vocab_size: usize,
    eos_token_ids: Vec<u32>,
    next_id: u64,
}

impl Engine {
    /// An engine without sequences.
    ///
    /// Errors: [`EngineError::Parameter`] naming an option, [`EngineError::DraftVocabulary`]; [`EngineError::Model`]
    /// where a cache cannot be made. Cost: allocates the whole KV cache, and the draft model's.
    pub fn new(model: Arc<Transformer>, kernels: Arc<dyn Kernels>, options: EngineOptions) -> Result<Self> {
        options.validate(model.max_positions())?;
        let EngineOptions { num_blocks, block_size, kv_format, .. } = options;
        let proposer = Proposer::new(&model, &kernels, &options)?;
        let cache = KvCache::new(&*kernels, &model.config, num_blocks, block_size, kv_format)?;
        let limits = Limits {
            block_size,
            max_batched_tokens: options.max_batched_tokens,
            prefill_beside_decode: options.prefill_beside_decode,
            max_sequences: options.max_sequences,
            prefix_cache: options.prefix_cache,
            proposals: options.speculation.proposals(),
        };
        Ok(Engine {
            scheduler: Scheduler::new(num_blocks, limits),
            proposer,
            options,
            vocab_size: model.config.vocab_size,
            eos_token_ids: model.config.eos_token_ids.clone(),
            runner: Runner::new(model, kernels, cache),
            next_id: 0,
        })
    }

    /// Queues a request, which then gets its tokens from [`Engine::step`].
    ///
    /// Errors: [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`], [`EngineError::TokenOutOfRange`],
    /// [`EngineError::KvMemory`] when it could never run, [`EngineError::Parameter`] naming a sampling parameter.
    pub fn add(&mut self, request: Request) -> Result<SequenceId> {
        self.queue(request, None)
    }

    /// Queues a request whose answer follows a grammar: nothing but what the constraint allows is generated, and the
    /// end where it may end. A token that completes the text so that nothing may follow ends the sequence, be it sooner
    /// than `min_tokens`. With `ignore_eos` the end comes only there.
    ///
    /// Errors: those of [`Self::add`].
    pub fn add_constrained(&mut self, request: Request, constraint: Constraint) -> Result<SequenceId> {
        self.queue(request, Some(constraint))
    }

    fn queue(&mut self, request: Request, constraint: Option<Constraint>) -> Result<SequenceId> {
        if request.prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        request.prompt.iter().try_for_each(|&token| check_token("prompt", token, self.vocab_size))?;
        request.params.validate(self.vocab_size)?;
        let resolved = Resolved {
            seed: request.params.seed.unwrap_or_else(fresh_seed),
            max_tokens: self.max_tokens(request.prompt.len(), request.params.max_tokens)?,
            eos_token_ids: self.eos_token_ids.clone(),
        };
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let sequence = Sequence::new(id, request, resolved);
        self.scheduler.add(match constraint {
            Some(constraint) => sequence.constrained(constraint),
            None => sequence,
        });
        Ok(id)
    }

    /// Computes the next tokens of as many sequences as the budget allows, and says what each got; sequences whose
    /// prompt is not through yet get nothing, and with speculation some get several outputs, in their order. A caller
    /// who cancels a sequence because of one of them ignores its others. Empty when there is nothing to do.
    ///
    /// Errors: a failure of the machine below, after which no sequence has moved.
    /// Cost: one forward pass over at most `max_batched_tokens` tokens, and those of the draft model.
    pub fn step(&mut self) -> Result<Vec<StepOutput>> {
        let mut chunks = self.scheduler.schedule();
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        self.proposer.propose(&mut chunks, self.scheduler.running())?;
        let predictions = self.runner.run(&chunks, self.scheduler.running())?;
        let sequences = self.scheduler.running_mut();
        let accept = |(index, prediction): (usize, Prediction)| sequences[index].accept(prediction);
        let outputs = predictions.into_iter().filter_map(accept).collect();
        self.scheduler.mark_computed(&chunks);
        self.scheduler.retire();
        Ok(outputs)
    }

    /// Puts random keys and values into the prefix cache in the place of those of `tokens`, as far as they fill whole
    /// blocks: a request whose prompt begins with them is then as fast as behind a context that was computed, and its
    /// answer means nothing. For measuring what a long context costs.
    ///
    /// Errors: [`EngineError::Parameter`] without a prefix cache, [`EngineError::KvMemory`] where too few blocks are free.
    /// Cost: writes the blocks.
    pub fn fill_prefix(&mut self, tokens: &[u32], seed: u64) -> Result<()> {
        if !self.options.prefix_cache {
            let (got, expected) = ("false".to_owned(), "true to fill a prefix".to_owned());
            return Err(EngineError::Parameter { field: "prefix_cache", got, expected });
        }
        self.scheduler.fill_prefix(tokens, |blocks| self.runner.fill_random(blocks, seed))
    }

    /// One vector for every input, as wide as the model and not normalised, beside whatever else runs: the KV cache and
    /// the sequences are not touched.
    ///
    /// Errors: [`EngineError::EmptyPrompt`] where nothing is left to pool, [`EngineError::PromptTooLong`],
    /// [`EngineError::TokenOutOfRange`]. Cost: one forward pass over all inputs at once, whatever the token budget.
    pub fn embed(&self, inputs: &[EmbeddingInput], pooling: Pooling) -> Result<Vec<Vec<f32>>> {
        self.runner.embed(inputs, pooling)
    }

    /// Changes [`EngineOptions::prefill_beside_decode`] for the steps that follow; 0 is taken as 1. What sequences get does
    /// not depend on it, when they get it does.
    pub fn set_prefill_beside_decode(&mut self, tokens: usize) {
        self.scheduler.set_prefill_beside_decode(tokens.max(1));
    }

    /// Drops a sequence and frees its blocks at once; later steps bring it nothing. False when it has ended already.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        self.scheduler.cancel(id)
    }

    /// Whether no sequence is left.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Where the engine stands.
    pub fn stats(&self) -> Stats {
        self.scheduler.stats()
    }

    /// How many tokens a request may generate: what it asks for, as far as the context goes; and as far as the cache
    /// goes where it does not ask.
    fn max_tokens(&self, prompt: usize, asked: Option<usize>) -> Result<usize> {
        let EngineOptions { num_blocks, block_size, max_context, .. } = self.options;
        let generated = asked.map_or(1, |asked| asked.min(1));
        if prompt + generated > max_context {
            return Err(EngineError::PromptTooLong { prompt, generated, context: max_context });
        }
        // The last token is handed out and never computed, so it needs no place in the cache.
        let cache_room = (num_blocks * block_size + 1).saturating_sub(prompt);
        let max_tokens = asked.unwrap_or(cache_room.max(1)).min(max_context - prompt);
        let needed = (prompt + max_tokens.saturating_sub(1)).div_ceil(block_size);
        match needed <= num_blocks {
            true => Ok(max_tokens),
            false => Err(EngineError::KvMemory { needed, num_blocks, block_size }),
        }
    }
}

/// A seed that no one chose: the standard library's source of random hash keys.
fn fresh_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Servers keep the engine on a thread of its own.
    #[test]
    fn the_engine_can_move_to_another_thread() {
        fn check<T: Send>() {}
        check::<Engine>();
    }
}
