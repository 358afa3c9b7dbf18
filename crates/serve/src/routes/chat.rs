//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use kanana_tokenizer::Ending;
use kanana_tokenizer::tools::ToolEvent;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::app::App;
use crate::body::{Api, Body, Rest};
use crate::error::{ApiError, ApiResult, ErrorResponse};
use crate::generation::{self, Call, Delta, Finish, Whole};
use crate::ids::{RequestId, fresh_id, now};
use crate::logprobs::{self, ChatLogprobs};
use crate::models::Model;
use crate::neutral::Neutral;
use crate::prepare::{Conversation, ResponseFormat, ToolChoiceField, aside};
use crate::sampling::Sampling;
use crate::sse;
use crate::usage::{StreamOptions, Usage};

/// A conversation to be answered.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ChatCompletionRequest {
    /// A name from `/v1/models`; the first of them when left out.
    pub model: Option<String>,
    /// The conversation: `role` with `content` (text, or text parts), `tool_calls`, `tool_call_id`.
    #[schema(value_type = Vec<Object>)]
    pub messages: Vec<Value>,
    /// Send the answer as it comes, as server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
    /// With `stream`: `include_usage` sends a last chunk with the counts.
    pub stream_options: Option<StreamOptions>,
    /// Tokens of the answer at most.
    pub max_tokens: Option<usize>,
    /// The same, by its newer name.
    pub max_completion_tokens: Option<usize>,
    /// Report how likely the tokens of the answer were.
    pub logprobs: Option<bool>,
    /// And this many likeliest ones at each place. From 0 to 20.
    pub top_logprobs: Option<usize>,
    /// Functions the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// Whether it does.
    pub tool_choice: Option<ToolChoiceField>,
    /// Whether it may call several at once.
    pub parallel_tool_calls: Option<bool>,
    /// What form the answer has.
    pub response_format: Option<ResponseFormat>,
    /// End the prompt with the header of the assistant's turn. The default.
    pub add_generation_prompt: Option<bool>,
    /// Go on with the last message instead of answering it.
    pub continue_final_message: Option<bool>,
    /// Further variables for the model's template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// How tokens are chosen.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Fields that are taken where they change nothing.
    #[serde(flatten)]
    pub neutral: Neutral,
    /// What is left over.
    #[serde(flatten)]
    #[schema(ignore)]
    pub rest: Rest,
}

impl Api for ChatCompletionRequest {
    fn rest(&self) -> &Rest {
        &self.rest
    }
}

impl ChatCompletionRequest {
    fn conversation(self) -> ApiResult<Conversation> {
        let max_tokens = match (self.max_completion_tokens, self.max_tokens) {
            (Some(a), Some(b)) if a != b => {
                let message = "max_tokens and max_completion_tokens mean the same and differ here";
                return Err(ApiError::invalid("max_tokens", message));
            }
            (a, b) => a.or(b),
        };
        if max_tokens == Some(0) {
            return Err(ApiError::invalid("max_tokens", "max_tokens is 0, but must be at least 1"));
        }
        let top_logprobs = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, Some(1..)) => {
                return Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs: true"));
            }
            (false, _) => None,
        };
        let ending = match (self.add_generation_prompt, self.continue_final_message.unwrap_or(false)) {
            (Some(true), true) => {
                let message = "the last message cannot be continued behind the header of a new turn; \
                               set add_generation_prompt to false";
                return Err(ApiError::invalid("continue_final_message", message));
            }
            (_, true) => Ending::ContinueFinal,
            (Some(false), false) => Ending::Closed,
            (_, false) => Ending::GenerationPrompt,
        };
        Ok(Conversation {
            messages: self.messages,
            tools: self.tools.unwrap_or_default(),
            tool_choice: self.tool_choice,
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            response_format: self.response_format,
            top_logprobs,
            max_tokens,
            ending,
            variables: self.chat_template_kwargs.unwrap_or_default(),
            sampling: self.sampling,
        })
    }
}

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// Of this answer.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Who answered.
    pub model: String,
    /// As many as `n`.
    pub choices: Vec<ChatChoice>,
    /// Tokens read and written.
    pub usage: Usage,
}

/// One of the answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Which.
    pub index: usize,
    /// What was said.
    pub message: AssistantMessage,
    /// Where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// What the model said.
#[derive(Debug, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// Null where it only calls tools.
    pub content: Option<String>,
    /// The calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a function.
#[derive(Debug, Serialize, ToSchema)]
pub struct ToolCall {
    /// By which its result is sent back.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is called.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct FunctionCall {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// JSON, or a piece of it.
    pub arguments: String,
}

/// A piece of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletionChunk {
    /// Of the answer.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Who answers.
    pub model: String,
    /// Empty in the chunk with the counts.
    pub choices: Vec<ChunkChoice>,
    /// With `include_usage`: null but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// What is new of one answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// Which.
    pub index: usize,
    /// What is new.
    pub delta: ChunkDelta,
    /// Of the tokens that are new.
    pub logprobs: Option<ChatLogprobs>,
    /// In the last.
    pub finish_reason: Option<&'static str>,
}

/// What is new of a message.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ChunkDelta {
    /// In the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Calls that begin, and more of their arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// A piece of a call.
#[derive(Debug, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which call of the message.
    pub index: usize,
    /// In the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In the first piece: `function`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// The name in the first piece; more of the arguments.
    pub function: FunctionCall,
}

/// Answers a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", request_body = ChatCompletionRequest,
    responses(
        (status = 200, description = "The answer; with stream, chat.completion.chunk events and [DONE]", body = ChatCompletion),
        (status = 400, description = "A field is wrong", body = ErrorResponse),
        (status = 429, description = "The queue is full", body = ErrorResponse),
    )
)]
pub async fn handle(
    State(app): State<Arc<App>>,
    request_id: RequestId,
    Body(request): Body<ChatCompletionRequest>,
) -> ApiResult<Response> {
    request.neutral.check()?;
    let model = app.models.get(request.model.as_deref()).await?;
    let streamed = request.stream.unwrap_or(false);
    let include_usage = crate::usage::include_usage(streamed, request.stream_options.as_ref())?;
    request_id.note_user(request.sampling.user());
    let scored = request.logprobs.unwrap_or(false);
    let n = request.sampling.n()?;
    let conversation = request.conversation()?;
    model.handle.check_room(n)?;
    let plan = aside(&model, |model| conversation.plan(model)).await?;
    let prompt_tokens = plan.prompt.len();
    let deltas = generation::start(&model, vec![plan], &app.terms(request_id))?;
    let frame = Frame { id: fresh_id("chatcmpl-"), created: now(), model, scored };
    if streamed {
        let stream = Chunks::new(frame, prompt_tokens, n, include_usage).stream(deltas);
        return Ok(sse::response(stream));
    }
    let answers = generation::collect(deltas, n).await?;
    Ok(Json(frame.whole(answers, prompt_tokens)).into_response())
}

/// What all parts of one answer say.
struct Frame {
    id: String,
    created: u64,
    model: Arc<Model>,
    scored: bool,
}

impl Frame {
    fn logprobs(&self, of: &[kanana_engine::Logprobs]) -> Option<ChatLogprobs> {
        self.scored.then(|| logprobs::of_chat(&self.model.tokenizer, of))
    }

    fn whole(&self, answers: Vec<Whole>, prompt_tokens: usize) -> ChatCompletion {
        let usage = Usage::of(prompt_tokens, &answers, answers.len());
        let choices = answers.into_iter().enumerate().map(|(index, answer)| ChatChoice {
            index,
            logprobs: self.logprobs(&answer.logprobs),
            finish_reason: answer.finish.unwrap_or(Finish::Length).name(),
            message: AssistantMessage {
                role: "assistant",
                content: (!answer.text.is_empty() || answer.calls.is_empty()).then_some(answer.text),
                tool_calls: answer.calls.into_iter().map(ToolCall::of).collect(),
            },
        });
        ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.model.id.clone(),
            choices: choices.collect(),
            usage,
        }
    }
}

impl ToolCall {
    fn of(call: Call) -> Self {
        let function = FunctionCall { name: Some(call.name), arguments: call.arguments };
        ToolCall { id: fresh_id("call_"), kind: "function", function }
    }
}

/// Makes chunks of deltas.
struct Chunks {
    frame: Frame,
    prompt_tokens: usize,
    include_usage: bool,
    totals: Vec<Whole>,
}

impl Chunks {
    fn new(frame: Frame, prompt_tokens: usize, n: usize, include_usage: bool) -> Self {
        let totals = std::iter::repeat_with(Whole::default).take(n).collect();
        Chunks { frame, prompt_tokens, include_usage, totals }
    }

    /// The first chunks say the role; the last, if asked for, the counts.
    fn stream(
        self,
        deltas: generation::Deltas,
    ) -> impl futures_util::Stream<Item = ApiResult<String>> + Send {
        let n = self.totals.len();
        let roles = (0..n).map(|index| {
            let delta =
                ChunkDelta { role: Some("assistant"), content: Some(String::new()), ..ChunkDelta::default() };
            Ok(self.chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None))
        });
        let roles: Vec<ApiResult<String>> = roles.collect();
        let body = futures_util::stream::unfold((self, Some(deltas)), |(mut chunks, deltas)| async move {
            let mut deltas = deltas?;
            loop {
                match deltas.next().await {
                    Some((index, Ok(delta))) => {
                        if let Some(chunk) = chunks.accept(index, delta) {
                            return Some((Ok(chunk), (chunks, Some(deltas))));
                        }
                    }
                    Some((_, Err(error))) => return Some((Err(error), (chunks, None))),
                    None if chunks.include_usage => {
                        let usage = Usage::of(chunks.prompt_tokens, &chunks.totals, chunks.totals.len());
                        return Some((Ok(chunks.chunk(Vec::new(), Some(usage))), (chunks, None)));
                    }
                    None => return None,
                }
            }
        });
        futures_util::stream::iter(roles).chain(body)
    }

    fn accept(&mut self, index: usize, delta: Delta) -> Option<String> {
        let shows = delta.shows();
        let tool_calls = delta.calls.iter().filter_map(Self::call).collect();
        let choice = ChunkChoice {
            index,
            logprobs: if delta.logprobs.is_empty() { None } else { self.frame.logprobs(&delta.logprobs) },
            finish_reason: delta.finish.map(Finish::name),
            delta: ChunkDelta {
                role: None,
                content: (!delta.text.is_empty() || !delta.logprobs.is_empty()).then(|| delta.text.clone()),
                tool_calls,
            },
        };
        let total = &mut self.totals[index];
        total.tokens.extend(&delta.tokens);
        total.cached_tokens += delta.cached_tokens;
        shows.then(|| self.chunk(vec![choice], None))
    }

    fn call(event: &ToolEvent) -> Option<ToolCallDelta> {
        match event {
            ToolEvent::Text(_) => None,
            ToolEvent::Call { index, name } => {
                let function = FunctionCall { name: Some(name.clone()), arguments: String::new() };
                let (id, kind) = (Some(fresh_id("call_")), Some("function"));
                Some(ToolCallDelta { index: *index, id, kind, function })
            }
            ToolEvent::Arguments { index, delta } => {
                let function = FunctionCall { name: None, arguments: delta.clone() };
                Some(ToolCallDelta { index: *index, id: None, kind: None, function })
            }
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> String {
        let chunk = ChatCompletionChunk {
            id: self.frame.id.clone(),
            object: "chat.completion.chunk",
            created: self.frame.created,
            model: self.frame.model.id.clone(),
            choices,
            usage: self.include_usage.then_some(usage),
        };
        serde_json::to_string(&chunk).expect("a chunk is JSON: this is a bug")
    }
}
