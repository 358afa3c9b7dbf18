//! Speculative decoding: several tokens of a sequence from one forward pass.
//!
//! Reading the weights is what a decoding step costs, and it costs the same for one row as for a few. So something
//! cheap proposes the tokens that may come next, the model computes them all at once as if they were there, and the
//! ordinary sampler chooses after each. A proposal has come true if it is what the sampler chose before it; after the
//! first that has not, nothing counts: the rest is dropped, and its places in the cache are written over.
//!
//! What is chosen is therefore what would have been chosen without proposals, token for token and log-probability for
//! log-probability, with every sampling parameter: the logits of a row do not depend on its neighbours, the random
//! number depends on seed and position alone, and a row's history is the accepted tokens and the proposals up to it,
//! which are the same thing wherever the row counts. A proposer can be wrong, or broken, and only cost time.
//!
//! The trade-off: Leviathan, Kalman and Matias (2023, "Fast inference from transformers via speculative decoding",
//! algorithm 1) accept more when sampling hot, with a probability of one less the total variation distance of draft and
//! target, but keep the distribution only: the tokens of a seed would depend on the speculation, and a residual
//! distribution would have to pass through every sampling parameter. Here the draft model answers the request itself,
//! with the same sampler and the same random number at each position, so that a draft that agrees with the model chooses
//! the same; prompt lookup comes true as often as the model gives that token.
//!
//! A sequence with a grammar is proposed only what its grammar allows.
//!
//! Proposals take what nobody else wants: the rest of a step's budget, and free blocks. Each sequence is proposed as much
//! as its own past warrants (`pace`). It knows no text. Tests: `cargo test -p kanana-engine --test speculation`.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use kanana_kernels::Kernels;
use kanana_model::{KvCache, Transformer};

use crate::prompt_lookup::continuation;
use crate::runner::Runner;
use crate::scheduler::Chunk;
use crate::sequence::Sequence;
use crate::{EngineError, EngineOptions, Result};

/// Who proposes tokens ahead of the model. The tokens that come out are the same for all of them.
///
/// `proposals` bounds how many are proposed to a sequence in one step; between the bounds, the share of the sequence's
/// recent proposals that came true decides. A lower bound of 0 lets a sequence that cannot be foreseen go without.
#[derive(Clone, Default)]
pub enum Speculation {
    /// Nobody.
    #[default]
    Off,
    /// The sequence itself: what followed when its last tokens occurred before. Costs next to nothing, and pays where
    /// text repeats: summaries, code edits, answers that quote.
    ///
    /// Source: Saxena (2023), "Prompt lookup decoding", <https://github.com/apoorvumang/prompt-lookup-decoding>.
    PromptLookup {
        /// How many of the last tokens to look for; fewer are taken where so many did not occur.
        ngram: usize,
        /// How many tokens to propose.
        proposals: RangeInclusive<usize>,
    },
    /// A smaller model of the same tokenizer. It runs over everything that the model runs over, and has a cache of as
    /// many blocks, which [`KvCache::bytes_per_block`] of its configuration sizes.
    ///
    /// Source: Leviathan, Kalman and Matias (2023), <https://arxiv.org/abs/2211.17192>.
    Draft {
        /// The smaller model.
        model: Arc<Transformer>,
        /// How many tokens to propose: each costs a forward pass of the smaller model.
        proposals: RangeInclusive<usize>,
    },
}

impl Speculation {
    /// Prompt lookup as published: up to 10 tokens, after the last 3.
    pub fn prompt_lookup() -> Self {
        Speculation::PromptLookup { ngram: 3, proposals: 0..=10 }
    }

    /// A draft model that proposes up to 5 tokens.
    pub fn draft(model: Arc<Transformer>) -> Self {
        Speculation::Draft { model, proposals: 0..=5 }
    }

    /// How many tokens may be proposed to a sequence in a step.
    pub(crate) fn proposals(&self) -> RangeInclusive<usize> {
        match self {
            Speculation::Off => 0..=0,
            Speculation::PromptLookup { proposals, .. } | Speculation::Draft { proposals, .. } => {
                proposals.clone()
            }
        }
    }
}

/// A model is too long to print.
impl fmt::Debug for Speculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Speculation::Off => f.write_str("Off"),
            Speculation::PromptLookup { ngram, proposals } => {
                f.debug_struct("PromptLookup").field("ngram", ngram).field("proposals", proposals).finish()
            }
            Speculation::Draft { model, proposals } => f
                .debug_struct("Draft")
                .field("model", &model.config.family)
                .field("proposals", proposals)
                .finish(),
        }
    }
}

/// A [`Speculation`] at work.
pub(crate) enum Proposer {
    None,
    PromptLookup { ngram: usize },
    Draft(Runner),
}

impl Proposer {
    /// Errors: [`EngineError::Parameter`], [`EngineError::DraftVocabulary`]; [`EngineError::Model`] where the draft
    /// model's cache cannot be made.
    pub(crate) fn new(
        target: &Transformer,
        kernels: &Arc<dyn Kernels>,
        options: &EngineOptions,
    ) -> Result<Self> {
        let refuse = |field, got: String, expected: &str| {
            Err(EngineError::Parameter { field, got, expected: expected.to_owned() })
        };
        let proposals = options.speculation.proposals();
        if proposals.is_empty() {
            return refuse("speculation.proposals", format!("{proposals:?}"), "a range that is not empty");
        }
        match &options.speculation {
            Speculation::Off => Ok(Proposer::None),
            Speculation::PromptLookup { ngram: 0, .. } => {
                refuse("speculation.ngram", 0.to_string(), "at least 1")
            }
            Speculation::PromptLookup { ngram, .. } => Ok(Proposer::PromptLookup { ngram: *ngram }),
            Speculation::Draft { model, .. } => {
                let (draft, target) = (model.config.vocab_size, target.config.vocab_size);
                if draft != target {
                    return Err(EngineError::DraftVocabulary { draft, target });
                }
                if options.max_context > model.max_positions() {
                    let positions = model.max_positions();
                    let expected =
                        format!("no more than the {positions} positions that the draft model was loaded for");
                    return refuse("max_context", options.max_context.to_string(), &expected);
                }
                let EngineOptions { num_blocks, block_size, kv_format, .. } = *options;
                let cache = KvCache::new(&**kernels, &model.config, num_blocks, block_size, kv_format)?;
                Ok(Proposer::Draft(Runner::new(model.clone(), kernels.clone(), cache)))
            }
        }
    }

    /// Appends to the chunks what may follow, no more than each has room for, and nothing behind a token that would
    /// end the sequence.
    pub(crate) fn propose(&mut self, chunks: &mut [Chunk], sequences: &[Sequence]) -> Result<()> {
        match self {
            Proposer::None => Ok(()),
            Proposer::PromptLookup { ngram } => {
                chunks.iter_mut().for_each(|chunk| look_up(chunk, &sequences[chunk.sequence], *ngram));
                Ok(())
            }
            Proposer::Draft(runner) => draft(runner, chunks, sequences),
        }
    }
}

fn look_up(chunk: &mut Chunk, sequence: &Sequence, ngram: usize) {
    if !chunk.wants_more(sequence) {
        return;
    }
    let tokens = continuation(&sequence.tokens, ngram, chunk.room);
    let allowed = match sequence.lock_constraint() {
        Some(mut constraint) => constraint.count_allowed(&tokens),
        None => tokens.len(),
    };
    for &token in &tokens[..allowed] {
        chunk.propose(token);
        if !chunk.wants_more(sequence) {
            break;
        }
    }
}

/// Runs the draft model over the chunks, and then over one proposal after another.
///
/// The block tables are the model's: a block's number means a place in both caches. The draft model has computed what
/// the model has, but for the last of the proposals that all came true, which nobody gave it. So it begins one position
/// before each chunk. (Where a sequence ends before that, the place stays stale if nobody begins there. A proposal may be
/// worse for it, no token is.) It runs where nothing is to be proposed too: its cache stays fit for later tokens, and
/// for whoever shares the blocks.
fn draft(runner: &mut Runner, chunks: &mut [Chunk], sequences: &[Sequence]) -> Result<()> {
    let begin_before = |chunk: &Chunk| Chunk {
        positions: chunk.positions.start.saturating_sub(1)..chunk.positions.end,
        ..chunk.clone()
    };
    let mut pass: Vec<(usize, Chunk)> = chunks.iter().map(begin_before).enumerate().collect();
    while !pass.is_empty() {
        let (indices, ahead): (Vec<usize>, Vec<Chunk>) = pass.into_iter().unzip();
        let guesses = runner.guess(&ahead, sequences)?;
        pass = Vec::new();
        for ((index, mut next), guess) in indices.into_iter().zip(ahead).zip(guesses) {
            let Some(token) = guess else { continue };
            next.positions.start = next.positions.end;
            next.propose(token);
            chunks[index].propose(token);
            if next.wants_more(&sequences[next.sequence]) {
                pass.push((index, next));
            }
        }
    }
    Ok(())
}
