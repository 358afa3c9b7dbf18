//! `/v1/responses`: the same conversations in OpenAI's newer shape. Nothing is stored: the whole input comes every time.
//!
//! `responses_stream.rs` holds the events of a streamed answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use kanana_tokenizer::Ending;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::responses_stream;
use crate::app::App;
use crate::body::{Api, Body, Rest};
use crate::error::{ApiError, ApiResult, ErrorResponse};
use crate::generation::{self, Call, Finish, Whole};
use crate::ids::{RequestId, fresh_id, now};
use crate::prepare::{Conversation, NamedSchema, ResponseFormat, ToolChoiceField, aside};
use crate::sampling::Sampling;
use crate::usage::Usage;

/// An input to be answered.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ResponsesRequest {
    /// A name from `/v1/models`; the first of them when left out.
    pub model: Option<String>,
    /// A text, or items: messages, `function_call`, `function_call_output`.
    pub input: Input,
    /// A system prompt.
    pub instructions: Option<String>,
    /// Tokens of the answer at most.
    pub max_output_tokens: Option<usize>,
    /// Functions the model may call: `{"type": "function", "name", "description", "parameters", "strict"}`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// Whether it does.
    pub tool_choice: Option<ToolChoiceField>,
    /// Whether it may call several at once.
    pub parallel_tool_calls: Option<bool>,
    /// What form the answer has.
    pub text: Option<TextOptions>,
    /// Send the answer as events.
    pub stream: Option<bool>,
    /// Sent back with the answer.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Only `disabled`: an input that is too long is an error.
    pub truncation: Option<String>,
    /// How tokens are chosen.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Fields that are taken where they ask for nothing.
    #[serde(flatten)]
    pub neutral: NeutralResponses,
    /// What is left over.
    #[serde(flatten)]
    #[schema(ignore)]
    pub rest: Rest,
}

impl Api for ResponsesRequest {
    fn rest(&self) -> &Rest {
        &self.rest
    }
}

/// What is put in.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of items")]
pub enum Input {
    /// What the user says.
    Text(String),
    /// A conversation.
    #[schema(value_type = Vec<Object>)]
    Items(Vec<Value>),
}

/// What form the answer has.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextOptions {
    /// `{"type": "text"}`, `{"type": "json_object"}` or `{"type": "json_schema", "name", "schema", "strict"}`.
    pub format: Option<TextFormat>,
    /// Only `medium`.
    pub verbosity: Option<String>,
}

/// A form, as responses have it: the schema's fields stand beside its type.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TextFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema(NamedSchema),
}

/// Fields that only neutral values can have.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct NeutralResponses {
    /// Only false.
    pub background: Option<Value>,
    /// Not supported: nothing is stored.
    pub conversation: Option<Value>,
    /// Only an empty list.
    pub include: Option<Value>,
    /// Not supported.
    pub max_tool_calls: Option<Value>,
    /// Not supported: nothing is stored.
    pub previous_response_id: Option<Value>,
    /// Not supported: prompts are not kept here.
    pub prompt: Option<Value>,
    /// Only `{"effort": "none"}`.
    pub reasoning: Option<Value>,
    /// Only `auto` and `default`.
    pub service_tier: Option<Value>,
    /// Only false.
    pub store: Option<Value>,
    /// Not supported.
    pub stream_options: Option<Value>,
    /// Not supported here: chat completions report log-probabilities.
    pub top_logprobs: Option<Value>,
}

impl NeutralResponses {
    fn check(&self) -> ApiResult<()> {
        let no_store = "nothing is stored here: send the whole conversation as input";
        crate::neutral::check(&[
            ("background", &self.background, &[json!(false)], "answers come in the foreground"),
            ("conversation", &self.conversation, &[], no_store),
            ("include", &self.include, &[json!([])], "there is nothing more to include"),
            ("max_tool_calls", &self.max_tool_calls, &[], "set parallel_tool_calls to false for one call"),
            ("previous_response_id", &self.previous_response_id, &[], no_store),
            ("prompt", &self.prompt, &[], no_store),
            (
                "reasoning",
                &self.reasoning,
                &[json!({}), json!({"effort": "none"}), json!({"effort": null})],
                "these models do not reason apart",
            ),
            ("service_tier", &self.service_tier, &[json!("auto"), json!("default")], "there is one tier"),
            ("store", &self.store, &[json!(false)], "nothing is stored here; send store: false"),
            ("stream_options", &self.stream_options, &[json!({})], "the counts are in the last event"),
            ("top_logprobs", &self.top_logprobs, &[json!(0)], "use /v1/chat/completions"),
        ])
    }
}

/// What all parts of one response say.
#[derive(Clone)]
pub(super) struct Frame {
    pub(super) id: String,
    created_at: u64,
    model: String,
    /// What of the request is sent back.
    echoed: Map<String, Value>,
}

/// Answers an input.
#[utoipa::path(
    post, path = "/v1/responses", request_body = ResponsesRequest,
    responses(
        (status = 200, description = "A response object; with stream, its events", body = Object),
        (status = 400, description = "A field is wrong", body = ErrorResponse),
        (status = 429, description = "The queue is full", body = ErrorResponse),
    )
)]
pub async fn handle(
    State(app): State<Arc<App>>,
    request_id: RequestId,
    Body(request): Body<ResponsesRequest>,
) -> ApiResult<Response> {
    request.neutral.check()?;
    if request.truncation.as_deref().is_some_and(|truncation| truncation != "disabled") {
        return Err(ApiError::unsupported("truncation", "shorten the input yourself"));
    }
    if request.sampling.n()? != 1 {
        return Err(ApiError::unsupported("n", "a response is one answer"));
    }
    let model = app.models.get(request.model.as_deref()).await?;
    request_id.note_user(request.sampling.user());
    let streamed = request.stream.unwrap_or(false);
    let echoed = request.echoed();
    let frame = Frame { id: fresh_id("resp_"), created_at: now(), model: model.id.clone(), echoed };
    let conversation = request.conversation()?;
    model.handle.check_room(1)?;
    let plan = aside(&model, |model| conversation.plan(model)).await?;
    let prompt_tokens = plan.prompt.len();
    let deltas = generation::start(&model, vec![plan], &app.terms(request_id))?;
    if streamed {
        return Ok(responses_stream::response(frame, deltas, prompt_tokens));
    }
    let mut answers = generation::collect(deltas, 1).await?;
    let answer = answers.remove(0);
    let mut output = Vec::new();
    if !answer.text.is_empty() || answer.calls.is_empty() {
        output.push(message(&fresh_id("msg_"), "completed", Some(&answer.text)));
    }
    output.extend(answer.calls.iter().map(|call| function_call(&Names::fresh(), "completed", call)));
    if let Some(last) = output.last_mut() {
        last["status"] = json!(status(answer.finish));
    }
    Ok(Json(frame.of(&answer, prompt_tokens, output)).into_response())
}

impl ResponsesRequest {
    fn echoed(&self) -> Map<String, Value> {
        let value = json!({
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata.clone().unwrap_or_default(),
            "parallel_tool_calls": self.parallel_tool_calls.unwrap_or(true),
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "tools": self.tools.clone().unwrap_or_default(),
            "tool_choice": match &self.tool_choice {
                None | Some(ToolChoiceField::Mode(crate::prepare::ToolMode::Auto)) => json!("auto"),
                Some(ToolChoiceField::Mode(crate::prepare::ToolMode::None)) => json!("none"),
                Some(ToolChoiceField::Mode(crate::prepare::ToolMode::Required)) => json!("required"),
                Some(ToolChoiceField::Named(named)) => json!({"type": "function", "name": named.name}),
            },
            "previous_response_id": null,
            "truncation": "disabled",
            "store": false,
        });
        match value {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    fn conversation(self) -> ApiResult<Conversation> {
        let mut messages: Vec<Value> = Vec::new();
        messages.extend(self.instructions.map(|text| json!({"role": "system", "content": text})));
        match self.input {
            Input::Text(text) => messages.push(json!({"role": "user", "content": text})),
            Input::Items(items) => {
                for (index, item) in items.into_iter().enumerate() {
                    add_item(&mut messages, item).map_err(|problem| {
                        ApiError::invalid("input", format!("input[{index}]: {problem}"))
                    })?;
                }
            }
        }
        let options = self.text.unwrap_or(TextOptions { format: None, verbosity: None });
        if options.verbosity.as_deref().is_some_and(|verbosity| verbosity != "medium") {
            return Err(ApiError::unsupported(
                "text.verbosity",
                "say in the instructions how long answers are",
            ));
        }
        let response_format = options.format.map(|format| match format {
            TextFormat::Text => ResponseFormat::Text {},
            TextFormat::JsonObject => ResponseFormat::JsonObject {},
            TextFormat::JsonSchema(json_schema) => ResponseFormat::JsonSchema { json_schema },
        });
        Ok(Conversation {
            messages,
            tools: self.tools.unwrap_or_default().into_iter().map(nested_tool).collect(),
            tool_choice: self.tool_choice,
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            response_format,
            top_logprobs: None,
            max_tokens: self.max_output_tokens,
            ending: Ending::GenerationPrompt,
            variables: Map::new(),
            sampling: self.sampling,
        })
    }
}

/// A tool of responses, `{"type": "function", "name": …}`, as chat completions have it.
fn nested_tool(tool: Value) -> Value {
    match tool {
        Value::Object(mut fields) if fields.get("function").is_none() && fields.contains_key("name") => {
            let kind = fields.remove("type").unwrap_or(Value::Null);
            json!({"type": kind, "function": fields})
        }
        other => other,
    }
}

/// Appends an item of the input to the messages; calls join the assistant's turn before them.
fn add_item(messages: &mut Vec<Value>, item: Value) -> Result<(), String> {
    let kind = item["type"].as_str().unwrap_or("message").to_owned();
    let field = |name: &str| match item[name].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("expected a string as {name}, got {}", item[name])),
    };
    match kind.as_str() {
        "message" => {
            messages.push(json!({"role": field("role")?, "content": content_of(&item["content"])?}));
        }
        "function_call" => {
            let call = json!({
                "id": field("call_id")?, "type": "function",
                "function": {"name": field("name")?, "arguments": field("arguments")?},
            });
            let open = messages.last().is_some_and(|message| message["role"] == "assistant");
            if !open {
                messages.push(json!({"role": "assistant", "content": null}));
            }
            if let Some(Value::Object(message)) = messages.last_mut() {
                let calls = message.entry("tool_calls").or_insert_with(|| json!([]));
                calls.as_array_mut().into_iter().for_each(|calls| calls.push(call.clone()));
            }
        }
        "function_call_output" => {
            let output = match &item["output"] {
                Value::String(text) => text.clone(),
                Value::Array(_) => content_of(&item["output"])?,
                other => return Err(format!("expected a string as output, got {other}")),
            };
            messages.push(json!({"role": "tool", "tool_call_id": field("call_id")?, "content": output}));
        }
        other => return Err(format!("items of the type {other} are not supported here")),
    }
    Ok(())
}

/// The text of a message's content.
fn content_of(content: &Value) -> Result<String, String> {
    let part = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("input_text" | "output_text" | "text"), Some(text)) => Ok(text.to_owned()),
        (kind, _) => Err(format!("content of the type {} is not supported here", kind.unwrap_or("?"))),
    };
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect(),
        other => Err(format!("expected text as content, got {other}")),
    }
}

/// What the end of an answer makes of the response and of its last item.
pub(super) fn status(finish: Option<Finish>) -> &'static str {
    if finish == Some(Finish::Length) { "incomplete" } else { "completed" }
}

/// The names of a call of a function.
pub(super) struct Names {
    pub(super) item: String,
    pub(super) call: String,
}

impl Names {
    pub(super) fn fresh() -> Self {
        Names { item: fresh_id("fc_"), call: fresh_id("call_") }
    }
}

/// An output item that is a message; without a text it is one that begins.
pub(super) fn message(id: &str, status: &str, text: Option<&str>) -> Value {
    let content: Vec<Value> = text.map(text_part).into_iter().collect();
    json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": content})
}

/// The text of a message.
pub(super) fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// An output item that is a call.
pub(super) fn function_call(names: &Names, status: &str, call: &Call) -> Value {
    json!({
        "type": "function_call", "id": names.item, "call_id": names.call, "status": status,
        "name": call.name, "arguments": call.arguments,
    })
}

impl Frame {
    /// The response while it is made.
    pub(super) fn begun(&self) -> Value {
        self.with(json!({"status": "in_progress", "output": [], "usage": null, "incomplete_details": null}))
    }

    /// The whole response.
    pub(super) fn of(&self, answer: &Whole, prompt_tokens: usize, output: Vec<Value>) -> Value {
        let usage = Usage::of(prompt_tokens, std::slice::from_ref(answer), 1);
        let cut = answer.finish == Some(Finish::Length);
        self.with(json!({
            "status": status(answer.finish),
            "incomplete_details": if cut { json!({"reason": "max_output_tokens"}) } else { Value::Null },
            "output": output,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                    "cache_write_tokens": 0, // clients want it; here nothing is written on request
                },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            },
        }))
    }

    /// The response after a failure.
    pub(super) fn failed(&self, error: &ApiError) -> Value {
        let mut failed = self.begun();
        failed["status"] = json!("failed");
        failed["error"] =
            json!({"code": error.body.code.unwrap_or("server_error"), "message": error.body.message});
        failed
    }

    fn with(&self, fields: Value) -> Value {
        let mut response = Map::new();
        response.insert("id".into(), json!(self.id));
        response.insert("object".into(), json!("response"));
        response.insert("created_at".into(), json!(self.created_at));
        response.insert("model".into(), json!(self.model));
        response.insert("error".into(), Value::Null);
        response.extend(self.echoed.clone());
        if let Value::Object(fields) = fields {
            response.extend(fields);
        }
        Value::Object(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_join_the_turn_of_the_assistant() {
        let items = [
            json!({"role": "user", "content": [{"type": "input_text", "text": "날씨?"}]}),
            json!({"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}),
            json!({"type": "function_call", "call_id": "b", "name": "g", "arguments": "{\"x\": 1}"}),
            json!({"type": "function_call_output", "call_id": "a", "output": "맑음"}),
        ];
        let mut messages = Vec::new();
        items.into_iter().for_each(|item| add_item(&mut messages, item).unwrap());
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[1]["tool_calls"][1]["function"]["name"], "g");
        assert_eq!(messages[2], json!({"role": "tool", "tool_call_id": "a", "content": "맑음"}));
    }

    #[test]
    fn what_is_not_text_is_refused() {
        let image = json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]});
        assert!(add_item(&mut Vec::new(), image).unwrap_err().contains("input_image"));
        assert!(add_item(&mut Vec::new(), json!({"type": "reasoning"})).unwrap_err().contains("reasoning"));
    }
}
