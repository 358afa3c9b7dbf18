//! Fields of OpenAI's that ask for what this server does not have: taken where they ask for nothing, refused else.

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::error::{ApiError, ApiResult};

/// Fields that only neutral values can have.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct Neutral {
    /// Not supported.
    pub audio: Option<Value>,
    /// Not supported: use `tool_choice`.
    pub function_call: Option<Value>,
    /// Not supported: use `tools`.
    pub functions: Option<Value>,
    /// Nothing is stored: only an empty object.
    pub metadata: Option<Value>,
    /// Only `["text"]`.
    pub modalities: Option<Value>,
    /// Not supported.
    pub prediction: Option<Value>,
    /// Nothing is kept longer or shorter on request.
    pub prompt_cache_retention: Option<Value>,
    /// Only `none`: these models do not think aloud.
    pub reasoning_effort: Option<Value>,
    /// Only `auto` and `default`.
    pub service_tier: Option<Value>,
    /// Only false: nothing is stored.
    pub store: Option<Value>,
    /// Only `medium`.
    pub verbosity: Option<Value>,
    /// Not supported.
    pub web_search_options: Option<Value>,
}

impl Neutral {
    /// Errors: a field asks for something.
    pub fn check(&self) -> ApiResult<()> {
        check(&[
            ("audio", &self.audio, &[], "this server speaks text only"),
            ("function_call", &self.function_call, &[], "use tool_choice"),
            ("functions", &self.functions, &[], "use tools"),
            ("metadata", &self.metadata, &[json!({})], "nothing is stored here"),
            ("modalities", &self.modalities, &[json!(["text"])], "this server speaks text only"),
            ("prediction", &self.prediction, &[], "start the server with --speculate lookup"),
            (
                "prompt_cache_retention",
                &self.prompt_cache_retention,
                &[],
                "the prefix cache keeps what memory allows",
            ),
            (
                "reasoning_effort",
                &self.reasoning_effort,
                &[json!("none")],
                "these models do not reason apart",
            ),
            ("service_tier", &self.service_tier, &[json!("auto"), json!("default")], "there is one tier"),
            ("store", &self.store, &[json!(false)], "nothing is stored here"),
            (
                "verbosity",
                &self.verbosity,
                &[json!("medium")],
                "say in the system prompt how long answers are",
            ),
            ("web_search_options", &self.web_search_options, &[], "give the model a tool that searches"),
        ])
    }
}

/// A field, its value, the values that ask for nothing, and what to do instead.
pub type Field<'a> = (&'a str, &'a Option<Value>, &'a [Value], &'a str);

/// Errors: a field asks for something.
pub fn check(fields: &[Field<'_>]) -> ApiResult<()> {
    let asks =
        |(_, value, neutral, _): &&Field<'_>| value.as_ref().is_some_and(|value| !neutral.contains(value));
    match fields.iter().find(asks) {
        None => Ok(()),
        Some((name, _, _, instead)) => Err(ApiError::unsupported(name, instead)),
    }
}
