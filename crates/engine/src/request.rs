//! What is asked of the engine. Fields are named and mean what they do in vLLM's `SamplingParams`; the order in which
//! they act is in `sampler.rs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{EngineError, Result};

/// A prompt and how to continue it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How to choose the tokens that follow, and when to stop.
    #[serde(default)]
    pub params: SamplingParams,
}

/// How tokens are chosen and when a sequence ends. The default samples from the model's own distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the likeliest token (greedy; ties: the lower id).
    pub temperature: f32,
    /// Keep the k likeliest tokens, and those as likely as the k-th; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of likeliest tokens that reaches this probability, at least one; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of every token in the prompt or generated; 1 does nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of every generated token, once.
    pub presence_penalty: f32,
    /// Taken from the logit of every generated token, once for each time it was generated.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Makes sampling repeatable: the same request with the same seed gives the same tokens. None: a fresh seed.
    pub seed: Option<u64>,
    /// Tokens that end the sequence, beside the model's own end-of-sequence tokens.
    pub stop_token_ids: Vec<u32>,
    /// Go on past the model's own end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Generate no more than this; the context may end a sequence sooner. None: as far as the context goes.
    /// 0 generates nothing and only computes `prompt_logprobs`.
    pub max_tokens: Option<usize>,
    /// Tokens that would end the sequence cannot be chosen before this many were generated.
    pub min_tokens: usize,
    /// Report the log-probability of every generated token, and of this many likeliest ones beside it.
    pub logprobs: Option<usize>,
    /// Report the same of every token of the prompt but the first, which nothing predicts.
    pub prompt_logprobs: Option<usize>,
    /// `prompt_logprobs` begin with this token of the prompt: those before it may come from the prefix cache.
    pub prompt_logprobs_start: usize,
    /// Where `logprobs` are reported, report those of these tokens too, likely or not.
    pub logprob_token_ids: Vec<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            max_tokens: None,
            min_tokens: 0,
            logprobs: None,
            prompt_logprobs: None,
            prompt_logprobs_start: 0,
            logprob_token_ids: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// The likeliest token every time.
    pub fn greedy() -> Self {
        SamplingParams { temperature: 0.0, ..Self::default() }
    }

    /// Checks every field against its range.
    ///
    /// Errors: [`EngineError::Parameter`], [`EngineError::TokenOutOfRange`], each naming the field.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let at_least = |limit: f32| move |x: f32| x.is_finite() && x >= limit;
        number("temperature", self.temperature, "finite and not negative", at_least(0.0))?;
        number("top_p", self.top_p, "from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        number("min_p", self.min_p, "from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        let positive = |x: f32| x.is_finite() && x > 0.0;
        number("repetition_penalty", self.repetition_penalty, "finite and above 0", positive)?;
        number("presence_penalty", self.presence_penalty, "finite", f32::is_finite)?;
        number("frequency_penalty", self.frequency_penalty, "finite", f32::is_finite)?;
        for (&token, &bias) in &self.logit_bias {
            check_token("logit_bias", token, vocab_size)?;
            number("logit_bias", bias, "finite", f32::is_finite)?;
        }
        let named =
            [("stop_token_ids", &self.stop_token_ids), ("logprob_token_ids", &self.logprob_token_ids)];
        for (field, tokens) in named {
            tokens.iter().try_for_each(|&token| check_token(field, token, vocab_size))?;
        }
        let max_tokens = self.max_tokens.unwrap_or(usize::MAX);
        let anything = max_tokens > 0 || self.prompt_logprobs.is_some();
        count("max_tokens", max_tokens, "at least 1, or 0 with prompt_logprobs", anything)?;
        count("min_tokens", self.min_tokens, "no more than max_tokens", self.min_tokens <= max_tokens)?;
        for (field, top) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            let top = top.unwrap_or(0);
            count(field, top, "no more than the vocabulary", top <= vocab_size)?;
        }
        Ok(())
    }
}

fn number(field: &'static str, got: f32, expected: &str, holds: impl Fn(f32) -> bool) -> Result<()> {
    match holds(got) {
        true => Ok(()),
        false => Err(EngineError::Parameter { field, got: got.to_string(), expected: expected.to_string() }),
    }
}

fn count(field: &'static str, got: usize, expected: &str, holds: bool) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(EngineError::Parameter { field, got: got.to_string(), expected: expected.to_string() }),
    }
}

pub(crate) fn check_token(field: &'static str, token: u32, vocab_size: usize) -> Result<()> {
    match (token as usize) < vocab_size {
        true => Ok(()),
        false => Err(EngineError::TokenOutOfRange { field, token, vocab_size }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parameters in `json` are refused, for a vocabulary of ten, with an error that starts with `field`.
    fn check_refused(json: &str, field: &str) {
        let params: SamplingParams = serde_json::from_str(json).unwrap();
        let error = params.validate(10).expect_err(json).to_string();
        assert!(error.starts_with(field), "{json}: {error}");
    }

    #[test]
    fn every_field_is_checked_and_named() {
        check_refused(r#"{"temperature": -0.1}"#, "temperature");
        check_refused(r#"{"top_p": 1.5}"#, "top_p");
        check_refused(r#"{"min_p": -1}"#, "min_p");
        check_refused(r#"{"repetition_penalty": 0}"#, "repetition_penalty");
        check_refused(r#"{"logit_bias": {"10": 1}}"#, "logit_bias names token 10");
        check_refused(r#"{"stop_token_ids": [3, 11]}"#, "stop_token_ids names token 11");
        check_refused(r#"{"logprob_token_ids": [11]}"#, "logprob_token_ids names token 11");
        check_refused(r#"{"max_tokens": 0}"#, "max_tokens");
        check_refused(r#"{"max_tokens": 2, "min_tokens": 3}"#, "min_tokens");
        check_refused(r#"{"logprobs": 11}"#, "logprobs");
        check_refused(r#"{"prompt_logprobs": 11}"#, "prompt_logprobs");
    }

    #[test]
    fn what_json_cannot_say_is_checked_too() {
        let all = SamplingParams::default;
        for params in [
            SamplingParams { temperature: f32::NAN, ..all() },
            SamplingParams { temperature: f32::INFINITY, ..all() },
            SamplingParams { top_p: f32::NAN, ..all() },
            SamplingParams { min_p: f32::NAN, ..all() },
            SamplingParams { repetition_penalty: f32::INFINITY, ..all() },
            SamplingParams { presence_penalty: f32::NAN, ..all() },
            SamplingParams { frequency_penalty: f32::NEG_INFINITY, ..all() },
            SamplingParams { logit_bias: [(3, f32::NEG_INFINITY)].into(), ..all() },
        ] {
            assert!(params.validate(10).is_err(), "{params:?}");
        }
    }

    #[test]
    fn bounds_are_allowed() {
        let json = r#"{"temperature": 0, "top_k": 10000, "top_p": 0, "min_p": 1, "logit_bias": {"9": -100},
                       "max_tokens": 0, "prompt_logprobs": 10}"#;
        serde_json::from_str::<SamplingParams>(json).unwrap().validate(10).unwrap();
        SamplingParams::default().validate(1).unwrap();
    }

    #[test]
    fn unknown_fields_are_refused_and_json_round_trips() {
        assert!(serde_json::from_str::<SamplingParams>(r#"{"temprature": 1}"#).is_err());
        let params =
            SamplingParams { logit_bias: [(3, -1.5)].into(), seed: Some(7), ..SamplingParams::greedy() };
        let json = serde_json::to_string(&params).unwrap();
        assert_eq!(serde_json::from_str::<SamplingParams>(&json).unwrap(), params);
    }
}
