//! Tokens read and written.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::{ApiError, ApiResult};
use crate::generation::Whole;

/// Tokens of a request.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Of the prompt.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What of the prompt was known.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Tokens that were in the prefix cache.
    pub cached_tokens: usize,
}

impl Usage {
    /// Of prompts and their answers, `n` of each. Every prompt counts once, as the first of its answers found it.
    pub fn of(prompt_tokens: usize, answers: &[Whole], n: usize) -> Self {
        let completion_tokens = answers.iter().map(|answer| answer.tokens.len()).sum();
        let cached_tokens = answers.iter().step_by(n).map(|answer| answer.cached_tokens).sum();
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// What a stream tells beside the answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Send the counts in a last chunk.
    pub include_usage: Option<bool>,
    /// Only false: events are not padded.
    #[schema(value_type = Option<bool>)]
    pub include_obfuscation: Option<Value>,
}

/// Whether the counts are to be sent.
///
/// Errors: options without a stream, padding.
pub fn include_usage(streamed: bool, options: Option<&StreamOptions>) -> ApiResult<bool> {
    let Some(options) = options else { return Ok(false) };
    if !streamed {
        return Err(ApiError::invalid("stream_options", "stream_options needs stream: true"));
    }
    if options.include_obfuscation.as_ref().is_some_and(|value| *value != Value::Bool(false)) {
        return Err(ApiError::unsupported("stream_options.include_obfuscation", "events are not padded"));
    }
    Ok(options.include_usage.unwrap_or(false))
}
