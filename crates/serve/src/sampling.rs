//! The fields that choose tokens, the same in every request that generates, and what they mean to the engine.

use std::collections::BTreeMap;

use kanana_engine::{Grammar, SamplingParams};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::{ApiError, ApiResult};

/// Sequences that one request may ask for.
pub const MAX_SEQUENCES: usize = 128;
/// Tokens that may end one answer.
const MAX_STOP_TOKENS: usize = 1024;
/// Bytes of all stop strings of a request.
const MAX_STOP_BYTES: usize = 64 * 1024;
/// Stop strings that one request may give.
const MAX_STOPS: usize = 64;

/// One string, or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    fn to_vec(&self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one.clone()],
            OneOrMany::Many(many) => many.clone(),
        }
    }
}

/// How tokens are chosen: OpenAI's fields, and those people know from vLLM. What a request leaves out, the model's
/// generation_config.json says.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct Sampling {
    /// 0 takes the likeliest token every time; 1 samples from the model's own distribution. From 0 to 2.
    pub temperature: Option<f32>,
    /// Sample from the smallest set of likeliest tokens that reaches this probability. From 0 to 1.
    pub top_p: Option<f32>,
    /// Sample from the k likeliest tokens; 0 or -1: from all.
    pub top_k: Option<i64>,
    /// Sample from the tokens at least this likely relative to the likeliest. From 0 to 1.
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens that were there before.
    pub repetition_penalty: Option<f32>,
    /// Taken from the logit of every token that was generated. From -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Taken for each time that it was. From -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Token ids to what is added to their logits. From -100 to 100.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// The same request with the same seed gets the same answer, whatever runs beside it.
    pub seed: Option<i64>,
    /// The answer ends before the first of these.
    pub stop: Option<OneOrMany>,
    /// Tokens that end the answer, beside the model's own.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Leave the stop string in the answer.
    pub include_stop_str_in_output: Option<bool>,
    /// Go on past the model's end of turn.
    pub ignore_eos: Option<bool>,
    /// Tokens that are generated at least.
    pub min_tokens: Option<usize>,
    /// How many answers. From 1 to 128.
    pub n: Option<usize>,
    /// The answer is JSON of this schema.
    pub guided_json: Option<Value>,
    /// The answer matches this regular expression.
    pub guided_regex: Option<String>,
    /// The answer is one of these.
    pub guided_choice: Option<Vec<String>>,
    /// The answer is of this grammar, in Lark's notation as llguidance reads it.
    pub guided_grammar: Option<String>,
    /// Names the end user in the log.
    pub user: Option<String>,
    /// The same, by its newer name.
    pub safety_identifier: Option<String>,
    /// Accepted, and needed for nothing: prompts share what they have in common by content.
    #[serde(rename = "prompt_cache_key")]
    pub _prompt_cache_key: Option<String>,
}

impl Sampling {
    /// What the engine is asked; `max_tokens` and log-probabilities are the request's own.
    ///
    /// Errors: a value out of its range.
    pub fn params(&self, defaults: &SamplingParams) -> ApiResult<SamplingParams> {
        let within = |name: &'static str, value: Option<f32>, low: f32, high: f32| match value {
            Some(x) if !(low..=high).contains(&x) => {
                Err(ApiError::invalid(name, format!("{name} is {x}, but must be from {low} to {high}")))
            }
            value => Ok(value),
        };
        let top_k = match self.top_k {
            Some(k) if k < -1 => {
                return Err(ApiError::invalid(
                    "top_k",
                    format!("top_k is {k}, but must be at least 1, or 0 for all"),
                ));
            }
            k => k.map(|k| k.max(0) as usize),
        };
        if self.stop_token_ids.as_ref().is_some_and(|ids| ids.len() > MAX_STOP_TOKENS) {
            let message = format!("stop_token_ids: more than the {MAX_STOP_TOKENS} that are allowed");
            return Err(ApiError::invalid("stop_token_ids", message));
        }
        let defaults = defaults.clone();
        let params = SamplingParams {
            temperature: within("temperature", self.temperature, 0.0, 2.0)?.unwrap_or(defaults.temperature),
            top_k: top_k.unwrap_or(defaults.top_k),
            top_p: within("top_p", self.top_p, 0.0, 1.0)?.unwrap_or(defaults.top_p),
            min_p: within("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: within("presence_penalty", self.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?.unwrap_or(0.0),
            logit_bias: self.bias()?,
            seed: self.seed.map(|seed| seed as u64),
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            min_tokens: self.min_tokens.unwrap_or(0),
            ..defaults
        };
        Ok(params)
    }

    fn bias(&self) -> ApiResult<BTreeMap<u32, f32>> {
        let given = self.logit_bias.iter().flatten();
        let entry = |(token, &bias): (&String, &f32)| {
            let wrong = |problem: String| ApiError::invalid("logit_bias", format!("logit_bias: {problem}"));
            let id =
                token.parse().map_err(|_| wrong(format!("expected a token id as key, got {token:?}")))?;
            match (-100.0..=100.0).contains(&bias) {
                true => Ok((id, bias)),
                false => {
                    Err(wrong(format!("the bias of token {id} is {bias}, but must be from -100 to 100")))
                }
            }
        };
        given.map(entry).collect()
    }

    /// How many answers.
    ///
    /// Errors: none, or too many.
    pub fn n(&self) -> ApiResult<usize> {
        sequences("n", self.n)
    }

    /// The stop strings.
    ///
    /// Errors: an empty one, too many.
    pub fn stops(&self) -> ApiResult<Vec<String>> {
        let stops = self.stop.as_ref().map_or(Vec::new(), OneOrMany::to_vec);
        if stops.iter().any(String::is_empty) {
            return Err(ApiError::invalid("stop", "stop: an empty string would end every answer"));
        }
        if stops.iter().map(String::len).sum::<usize>() > MAX_STOP_BYTES {
            let message = format!("stop: more than {MAX_STOP_BYTES} bytes");
            return Err(ApiError::invalid("stop", message));
        }
        if stops.len() > MAX_STOPS {
            let message = format!("stop: {} strings, but {MAX_STOPS} at most are allowed", stops.len());
            return Err(ApiError::invalid("stop", message));
        }
        Ok(stops)
    }

    /// The grammar of the `guided_` fields, and its field.
    ///
    /// Errors: two of them.
    pub fn grammar(&self) -> ApiResult<Option<(&'static str, Grammar)>> {
        let json = self.guided_json.clone().map(|schema| match schema {
            Value::String(text) => serde_json::from_str(&text).map(Grammar::JsonSchema).map_err(|error| {
                ApiError::invalid("guided_json", format!("guided_json: the string is not JSON: {error}"))
            }),
            schema => Ok(Grammar::JsonSchema(schema)),
        });
        let given = [
            json.transpose()?.map(|grammar| ("guided_json", grammar)),
            self.guided_regex.clone().map(|regex| ("guided_regex", Grammar::Regex(regex))),
            self.guided_choice.clone().map(|choice| ("guided_choice", Grammar::Choice(choice))),
            self.guided_grammar.clone().map(|lark| ("guided_grammar", Grammar::Lark(lark))),
        ];
        let mut given = given.into_iter().flatten();
        match (given.next(), given.next()) {
            (first, None) => Ok(first),
            _ => Err(ApiError::invalid("guided_json", "only one of the guided_ fields can be given")),
        }
    }

    /// Who asks, for the log.
    pub fn user(&self) -> Option<&str> {
        self.safety_identifier.as_deref().or(self.user.as_deref())
    }
}

/// A number of sequences, 1 where none is given.
///
/// Errors: none, or too many.
pub fn sequences(name: &'static str, asked: Option<usize>) -> ApiResult<usize> {
    match asked.unwrap_or(1) {
        n @ 1..=MAX_SEQUENCES => Ok(n),
        n => Err(ApiError::invalid(name, format!("{name} is {n}, but must be from 1 to {MAX_SEQUENCES}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(json: &str, param: &str) {
        let sampling: Sampling = serde_json::from_str(json).unwrap();
        let outcome = sampling
            .params(&SamplingParams::default())
            .map(drop)
            .and_then(|()| sampling.n().map(drop))
            .and_then(|()| sampling.stops().map(drop))
            .and_then(|()| sampling.grammar().map(drop));
        assert_eq!(outcome.expect_err(json).body.param.as_deref(), Some(param), "{json}");
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        check_refused(r#"{"temperature": 2.5}"#, "temperature");
        check_refused(r#"{"top_p": -0.5}"#, "top_p");
        check_refused(r#"{"top_k": -2}"#, "top_k");
        check_refused(r#"{"presence_penalty": 3}"#, "presence_penalty");
        check_refused(r#"{"frequency_penalty": -3}"#, "frequency_penalty");
        check_refused(r#"{"logit_bias": {"x": 1}}"#, "logit_bias");
        check_refused(r#"{"logit_bias": {"1": 101}}"#, "logit_bias");
        check_refused(r#"{"n": 0}"#, "n");
        check_refused(r#"{"n": 129}"#, "n");
        check_refused(r#"{"stop": ["a", ""]}"#, "stop");
        check_refused(r#"{"guided_regex": "a", "guided_choice": ["a"]}"#, "guided_json");
    }

    #[test]
    fn the_request_wins_over_the_model_and_the_model_over_the_default() {
        let model = SamplingParams { temperature: 0.6, top_p: 0.9, ..SamplingParams::default() };
        let sampling: Sampling =
            serde_json::from_str(r#"{"temperature": 0, "top_k": -1, "seed": -3}"#).unwrap();
        let params = sampling.params(&model).unwrap();
        assert_eq!((params.temperature, params.top_p, params.top_k), (0.0, 0.9, 0));
        assert_eq!(params.seed, Some(-3i64 as u64));
    }
}
