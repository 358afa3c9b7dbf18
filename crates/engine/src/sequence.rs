//! One sequence on its way: its tokens, how many of them are in the KV cache, and when it ends.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::block_pool::{BlockId, PrefixId};
use crate::pace::Pace;
use crate::{Constraint, Logprobs, Request, SamplingParams};

/// Names a sequence for as long as the engine lives; later ones have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SequenceId(pub u64);

impl std::fmt::Display for SequenceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The last token is an end-of-sequence token or one of `stop_token_ids`, or completes what the grammar allows.
    Stop,
    /// `max_tokens` were generated, or the context is full.
    Length,
    /// Its tokens could not be chosen; the other sequences are not affected.
    Error(SequenceError),
}

/// What can go wrong with one sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum SequenceError {
    /// The model's output is no distribution.
    #[error(
        "the logits after position {position} are not finite: the weights are damaged, or overflow in their dtype"
    )]
    NonFiniteLogits {
        /// The last position that the logits depend on.
        position: usize,
    },
    /// `min_tokens` forbids every token of the vocabulary, or all that the grammar allows.
    #[error("no token is left to choose: stop_token_ids covers all and min_tokens forbids to stop")]
    NothingToChoose,
    /// The grammar could not be followed further.
    #[error("the grammar cannot be followed further: {reason}")]
    Grammar {
        /// What happened.
        reason: String,
    },
}

/// One token of a sequence, or its end. Speculation may bring several in one step, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepOutput {
    /// Whose it is.
    pub id: SequenceId,
    /// The new token; none when the sequence failed, or only scored its prompt.
    pub token: Option<u32>,
    /// What the model believed about the new token, if `logprobs` asked for it.
    pub logprobs: Option<Logprobs>,
    /// One entry for every token of the prompt, None for the first and for those before `prompt_logprobs_start`; comes once, with the first output.
    pub prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    /// Tokens of the prompt that were in the prefix cache when the sequence was given a place; comes once, with the first
    /// output.
    pub cached_tokens: usize,
    /// Set in the sequence's last output.
    pub finished: Option<FinishReason>,
}

/// What the model and the sampler say about one position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prediction {
    /// The next token is in the prompt already.
    Prompt(Logprobs),
    /// The next token is new.
    Token { token: u32, logprobs: Option<Logprobs> },
    /// The prompt ends here and nothing is to be generated.
    End,
    /// Neither could be said.
    Failed(SequenceError),
}

/// A sequence's limits that its request leaves to the engine.
pub(crate) struct Resolved {
    pub seed: u64,
    pub max_tokens: usize,
    pub eos_token_ids: Vec<u32>,
}

pub(crate) struct Sequence {
    pub id: SequenceId,
    pub params: SamplingParams,
    pub seed: u64,
    pub max_tokens: usize,
    /// The tokens that end it: `stop_token_ids` and, unless ignored, the model's own; with a grammar, those of its end.
    pub stop_ids: Vec<u32>,
    /// Where what was generated stands in its grammar. Locked by whoever looks ahead, one at a time.
    constraint: Option<Mutex<Constraint>>,
    /// The prompt, then what was generated.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// How often each of `tokens` was generated: 0 for those only in the prompt.
    pub generated_counts: HashMap<u32, usize>,
    /// The first position whose logits are still wanted: those from here on are, those before are not.
    pub next_row: usize,
    prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    pub finished: Option<FinishReason>,
    /// Tokens of the prompt that were found in the prefix cache, until that was told.
    pub cached_tokens: usize,
    /// How far ahead to propose.
    pub pace: Pace,

    /// Tokens whose keys and values are in the cache: a prefix of `tokens`.
    pub computed: usize,
    /// The cache's blocks that hold them, or will.
    pub block_table: Vec<BlockId>,
    /// How many blocks are published, and the prefix they hold.
    pub published: usize,
    pub prefix: PrefixId,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, request: Request, resolved: Resolved) -> Self {
        let Request { prompt, params } = request;
        let mut stop_ids = params.stop_token_ids.clone();
        if !params.ignore_eos {
            stop_ids.extend(resolved.eos_token_ids);
        }
        let last = prompt.len() - 1;
        let scored_from = params.prompt_logprobs.map(|_| params.prompt_logprobs_start.clamp(1, prompt.len()));
        Sequence {
            id,
            seed: resolved.seed,
            max_tokens: resolved.max_tokens,
            stop_ids,
            constraint: None,
            prompt_len: prompt.len(),
            generated_counts: prompt.iter().map(|&token| (token, 0)).collect(),
            next_row: scored_from.map_or(last, |token| token - 1),
            prompt_logprobs: scored_from.map(|token| vec![None; token]),
            tokens: prompt,
            params,
            finished: None,
            cached_tokens: 0,
            pace: Pace::new(),
            computed: 0,
            block_table: Vec::new(),
            published: 0,
            prefix: PrefixId::ROOT,
        }
    }

    /// The same sequence, which generates what the constraint allows.
    pub(crate) fn constrained(mut self, constraint: Constraint) -> Self {
        self.stop_ids.extend(constraint.eos_token_ids());
        self.constraint = Some(Mutex::new(constraint.ignoring_eos(self.params.ignore_eos)));
        self
    }

    /// Tokens generated so far.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens that are not computed: one where the sequence generates.
    pub(crate) fn lag(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The positions of a chunk whose logits are wanted.
    pub(crate) fn rows(&self, chunk: &Range<usize>) -> Range<usize> {
        self.next_row.max(chunk.start)..chunk.end
    }

    /// Moves the constraint on by a new token, and says whether that is the last one.
    fn ends_with(&mut self, token: u32) -> Result<bool, SequenceError> {
        if self.stop_ids.contains(&token) {
            return Ok(true);
        }
        let Some(constraint) = &mut self.constraint else { return Ok(false) };
        let constraint = constraint.get_mut().unwrap_or_else(PoisonError::into_inner);
        constraint.accept(token)?;
        Ok(constraint.is_finished())
    }

    /// Whether a grammar says what may be generated.
    pub(crate) fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// The constraint, for a look ahead.
    pub(crate) fn lock_constraint(&self) -> Option<MutexGuard<'_, Constraint>> {
        self.constraint.as_ref().map(|constraint| constraint.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what was predicted after position `next_row`; the output, unless that was inside the prompt.
    pub(crate) fn accept(&mut self, prediction: Prediction) -> Option<StepOutput> {
        if self.finished.is_some() {
            return None; // it ended at an earlier row of the same step
        }
        self.next_row += 1;
        let (mut new_token, mut new_logprobs) = (None, None);
        match prediction {
            Prediction::Prompt(logprobs) => {
                self.prompt_logprobs.get_or_insert_default().push(Some(logprobs));
                return None;
            }
            Prediction::Token { token, logprobs } => {
                let ends = self.ends_with(token);
                if ends.is_ok() {
                    self.tokens.push(token);
                    *self.generated_counts.entry(token).or_insert(0) += 1;
                    (new_token, new_logprobs) = (Some(token), logprobs);
                }
                self.finished = match ends {
                    Err(error) => Some(FinishReason::Error(error)),
                    Ok(true) => Some(FinishReason::Stop),
                    Ok(false) if self.generated() >= self.max_tokens => Some(FinishReason::Length),
                    Ok(false) => None,
                };
            }
            Prediction::End => self.finished = Some(FinishReason::Length),
            Prediction::Failed(error) => self.finished = Some(FinishReason::Error(error)),
        }
        Some(StepOutput {
            id: self.id,
            token: new_token,
            logprobs: new_logprobs,
            prompt_logprobs: self.prompt_logprobs.take(),
            cached_tokens: std::mem::take(&mut self.cached_tokens),
            finished: self.finished.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenLogprob;

    fn sequence(prompt: &[u32], params: SamplingParams) -> Sequence {
        let resolved =
            Resolved { seed: 0, max_tokens: params.max_tokens.unwrap_or(9), eos_token_ids: vec![2] };
        Sequence::new(SequenceId(0), Request { prompt: prompt.to_vec(), params }, resolved)
    }

    /// The sequence `[5, 6]` is given `tokens` one by one and ends after all of them, for the reason `expected`.
    fn check(params: SamplingParams, tokens: &[u32], expected: Option<FinishReason>) {
        let mut sequence = sequence(&[5, 6], params);
        for (i, &token) in tokens.iter().enumerate() {
            let output = sequence.accept(Prediction::Token { token, logprobs: None }).unwrap();
            assert_eq!(output.token, Some(token));
            let last = i + 1 == tokens.len();
            assert_eq!(
                output.finished,
                if last { expected.clone() } else { None },
                "after {:?}",
                &tokens[..=i]
            );
        }
    }

    #[test]
    fn sequences_end_at_stop_tokens_and_at_their_length() {
        let with = |json: &str| serde_json::from_str::<SamplingParams>(json).unwrap();
        check(with("{}"), &[7, 8, 2], Some(FinishReason::Stop));
        check(with(r#"{"ignore_eos": true}"#), &[7, 2, 8], None);
        check(with(r#"{"stop_token_ids": [8]}"#), &[7, 8], Some(FinishReason::Stop));
        check(with(r#"{"stop_token_ids": [8], "ignore_eos": true}"#), &[2, 8], Some(FinishReason::Stop));
        check(with(r#"{"max_tokens": 3}"#), &[7, 7, 7], Some(FinishReason::Length));
        check(with(r#"{"max_tokens": 2}"#), &[7, 2], Some(FinishReason::Stop));
    }

    #[test]
    fn prompt_logprobs_come_with_the_first_output() {
        let of =
            |token| Logprobs { chosen: TokenLogprob { token, logprob: -1.0 }, top: vec![], asked: vec![] };
        let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::default() };
        let mut sequence = sequence(&[5, 6, 7], params);
        assert_eq!(sequence.rows(&(0..3)), 0..3);
        assert_eq!(sequence.accept(Prediction::Prompt(of(6))), None);
        assert_eq!(sequence.rows(&(0..3)), 1..3, "what was reported is not wanted again");
        assert_eq!(sequence.accept(Prediction::Prompt(of(7))), None);
        let first = sequence.accept(Prediction::Token { token: 9, logprobs: None }).unwrap();
        assert_eq!(first.prompt_logprobs, Some(vec![None, Some(of(6)), Some(of(7))]));
        let second = sequence.accept(Prediction::Token { token: 9, logprobs: None }).unwrap();
        assert_eq!(second.prompt_logprobs, None);
    }

    #[test]
    fn prompt_logprobs_begin_where_they_are_wanted() {
        let check = |prompt_logprobs_start: usize, rows: Range<usize>, none: usize| {
            let params =
                SamplingParams { prompt_logprobs: Some(0), prompt_logprobs_start, ..Default::default() };
            let mut sequence = sequence(&[5, 6, 7], params);
            assert_eq!(sequence.rows(&(0..3)), rows);
            let output = sequence.accept(Prediction::End).unwrap();
            assert_eq!(output.prompt_logprobs.map(|logprobs| logprobs.len()), Some(none));
        };
        check(0, 0..3, 1);
        check(1, 0..3, 1);
        check(2, 1..3, 2);
        check(3, 2..3, 3);
        check(9, 2..3, 3);
    }

    #[test]
    fn nothing_comes_after_the_end() {
        let mut sequence = sequence(&[5, 6], SamplingParams::default());
        assert!(sequence.accept(Prediction::Token { token: 2, logprobs: None }).is_some());
        assert_eq!(sequence.accept(Prediction::Token { token: 7, logprobs: None }), None);
        assert_eq!(sequence.tokens, [5, 6, 2]);
    }

    #[test]
    fn a_failure_is_the_last_word() {
        let error = SequenceError::NonFiniteLogits { position: 1 };
        let mut sequence = sequence(&[5, 6], SamplingParams::default());
        let output = sequence.accept(Prediction::Failed(error.clone())).unwrap();
        assert_eq!((output.token, output.finished), (None, Some(FinishReason::Error(error))));
        assert_eq!(sequence.accept(Prediction::Token { token: 1, logprobs: None }), None);
    }
}
