//! From a conversation and its options to what the engine is asked: the part that every chat-like request shares.

use std::sync::{Arc, LazyLock};

use kanana_engine::{Constraint, EngineError, Grammar};
use kanana_tokenizer::tools::{ToolChoice, ToolFormat, ToolSpec};
use kanana_tokenizer::{ChatRequest, Ending, Message};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use utoipa::ToSchema;

use crate::error::{ApiError, ApiResult};
use crate::generation::Plan;
use crate::models::Model;
use crate::sampling::Sampling;

/// Log-probabilities that may be asked for beside each token.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// What form the answer has.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    /// Any text.
    Text {},
    /// A JSON object.
    JsonObject {},
    /// JSON of a schema.
    JsonSchema {
        /// The schema and its name.
        json_schema: NamedSchema,
    },
}

/// A schema by name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedSchema {
    /// Letters, digits, `_` and `-`, 64 at most.
    pub name: String,
    /// What it is for: a note for people.
    #[serde(rename = "description")]
    pub _description: Option<String>,
    /// A JSON Schema; without one any object.
    pub schema: Option<Value>,
    /// The answer follows the schema either way.
    #[serde(rename = "strict")]
    pub _strict: Option<bool>,
}

/// Which tools may be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
pub enum ToolChoiceField {
    /// `none`, `auto` or `required`.
    Mode(ToolMode),
    /// One of them.
    Named(NamedTool),
}

/// Whether tools are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolMode {
    /// No.
    None,
    /// If the model wants to.
    Auto,
    /// At least one.
    Required,
}

/// A tool that must be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedTool {
    /// `function`.
    #[serde(rename = "type")]
    pub _kind: FunctionKind,
    /// Its name, as chat completions have it.
    pub function: Option<FunctionName>,
    /// Its name, as responses have it.
    pub name: Option<String>,
}

/// The only kind of tool there is.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FunctionKind {
    /// A function of the caller's.
    Function,
}

/// A function by name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionName {
    /// Its name.
    pub name: String,
}

/// A conversation to be answered, whichever request it came in.
pub struct Conversation {
    pub messages: Vec<Value>,
    pub tools: Vec<Value>,
    pub tool_choice: Option<ToolChoiceField>,
    pub parallel_tool_calls: bool,
    pub response_format: Option<ResponseFormat>,
    /// Likeliest tokens to report, where log-probabilities are wanted.
    pub top_logprobs: Option<usize>,
    pub max_tokens: Option<usize>,
    pub ending: Ending,
    pub variables: Map<String, Value>,
    pub sampling: Sampling,
}

impl Conversation {
    /// Renders, tokenises and checks everything; slow for long conversations, so not for a thread of the runtime.
    ///
    /// Errors: what of the request is wrong, by field.
    pub fn plan(mut self, model: &Model) -> ApiResult<Plan> {
        let tools = self.tools.iter().enumerate().map(|(index, tool)| {
            ToolSpec::from_openai(tool)
                .map_err(|error| ApiError::invalid("tools", format!("tools[{index}]: {error}")))
        });
        let tools = tools.collect::<ApiResult<Vec<ToolSpec>>>()?;
        let choice = self.choice(&tools)?;
        let format = model.tool_format.unwrap_or(ToolFormat::Kanana);
        let request = ChatRequest {
            messages: messages_of(std::mem::take(&mut self.messages))?,
            tools: choice.is_some().then(|| std::mem::take(&mut self.tools)),
            documents: None,
            ending: self.ending,
            variables: std::mem::take(&mut self.variables),
            now: None,
        };
        if request.messages.is_empty() {
            return Err(ApiError::invalid("messages", "messages: at least one message is needed"));
        }
        let rendered = model.template.render(&request)?;
        if request.tools.is_some()
            && rendered == model.template.render(&ChatRequest { tools: None, ..request })?
        {
            return Err(ApiError::invalid(
                "tools",
                format!(
                    "tools: the chat template of {} does not show them to the model; start the server with \
                     --chat-template FILE, or leave them out",
                    model.id
                ),
            ));
        }
        let prompt = model.tokenizer.encode_rendered(&rendered)?;
        let mut params = self.sampling.params(&model.defaults)?;
        params.max_tokens = within_context(self.max_tokens, prompt.len(), model, params.max_tokens)?;
        params.logprobs = top_logprobs("top_logprobs", self.top_logprobs)?;
        params.validate(model.vocab_size)?; // the engine would, when a stream has begun
        let grammar = self.grammar(choice.as_ref(), format, &tools)?;
        Ok(Plan {
            prompt,
            params,
            stops: self.sampling.stops()?,
            include_stop: self.sampling.include_stop_str_in_output.unwrap_or(false),
            constraint: compile(model, grammar)?,
            tools: choice.map(|_| (format, tools.into_iter().map(|tool| tool.name).collect())),
            n: self.sampling.n()?,
        })
    }

    /// Which tools the model sees; None: none of them.
    fn choice(&self, tools: &[ToolSpec]) -> ApiResult<Option<ToolChoice>> {
        let wrong = |message: String| Err(ApiError::invalid("tool_choice", message));
        match &self.tool_choice {
            Some(ToolChoiceField::Mode(ToolMode::None)) => Ok(None),
            None | Some(ToolChoiceField::Mode(ToolMode::Auto)) if tools.is_empty() => Ok(None),
            Some(_) if tools.is_empty() => wrong("tool_choice needs tools".to_owned()),
            None | Some(ToolChoiceField::Mode(ToolMode::Auto)) => Ok(Some(ToolChoice::Auto)),
            Some(ToolChoiceField::Mode(ToolMode::Required)) => Ok(Some(ToolChoice::Required)),
            Some(ToolChoiceField::Named(named)) => {
                let name = named.function.as_ref().map(|function| &function.name).or(named.name.as_ref());
                let Some(name) = name else { return wrong("tool_choice names no function".to_owned()) };
                match tools.iter().any(|tool| &tool.name == name) {
                    true => Ok(Some(ToolChoice::Named(name.clone()))),
                    false => wrong(format!("tool_choice names {name:?}, which is not among the tools")),
                }
            }
        }
    }

    /// What the answer must look like, if anything, and the field that says so.
    fn grammar(
        &self,
        choice: Option<&ToolChoice>,
        format: ToolFormat,
        tools: &[ToolSpec],
    ) -> ApiResult<Option<(&'static str, Grammar)>> {
        if let Some(ResponseFormat::JsonSchema { json_schema }) = &self.response_format {
            check_name(&json_schema.name)?;
        }
        let form = match &self.response_format {
            None | Some(ResponseFormat::Text {}) => None,
            Some(ResponseFormat::JsonObject {}) => Some(Grammar::JsonObject),
            Some(ResponseFormat::JsonSchema { json_schema: NamedSchema { schema: None, .. } }) => {
                Some(Grammar::JsonObject)
            }
            Some(ResponseFormat::JsonSchema { json_schema: NamedSchema { schema: Some(schema), .. } }) => {
                Some(Grammar::JsonSchema(schema.clone()))
            }
        };
        let form = form.map(|form| ("response_format", form));
        let guided = self.sampling.grammar()?;
        let strict = tools.iter().any(|tool| tool.strict);
        let calls =
            choice.filter(|choice| **choice != ToolChoice::Auto || strict || !self.parallel_tool_calls);
        if form.is_some() && guided.is_some() {
            let message = "response_format and the guided_ fields both say what the answer is";
            return Err(ApiError::invalid("response_format", message));
        }
        match (form.or(guided), calls) {
            (Some(_), Some(choice)) if *choice != ToolChoice::Auto => Err(ApiError::invalid(
                "tool_choice",
                "a call that is required cannot also be text of a given form",
            )),
            (Some(form), _) => Ok(Some(form)),
            (None, Some(choice)) => {
                let grammar = format.grammar(tools, choice, self.parallel_tool_calls)?;
                Ok(Some(("tools", Grammar::Lark(grammar))))
            }
            (None, None) => Ok(None),
        }
    }
}

/// The messages of a request. A developer's is a system prompt under OpenAI's newer name, which templates do not know.
///
/// Errors: one that is no message, by its index.
pub fn messages_of(values: Vec<Value>) -> ApiResult<Vec<Message>> {
    let messages = values.into_iter().enumerate().map(|(index, mut value)| {
        if let Some(role) = value.get_mut("role").filter(|role| *role == "developer") {
            *role = "system".into();
        }
        let parts = value["content"].as_array().into_iter().flatten();
        if let Some(part) = parts.into_iter().find(|part| !part["text"].is_string()) {
            let kind = part["type"].as_str().unwrap_or("?");
            let message =
                format!("messages[{index}]: content of the type {kind} is not supported: text only");
            return Err(ApiError::invalid("messages", message));
        }
        Message::from_value(value)
            .map_err(|error| ApiError::invalid("messages", format!("messages[{index}]: {error}")))
    });
    messages.collect()
}

/// Errors: no name such as OpenAI takes.
fn check_name(name: &str) -> ApiResult<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    match !name.is_empty() && name.len() <= 64 && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(ApiError::invalid(
            "response_format",
            format!("the schema's name is {name:?}, but must be 1 to 64 letters, digits, _ and -"),
        )),
    }
}

/// The constraint of a grammar, which stands in a field of the request.
///
/// Errors: the grammar is refused, with the reason; 500 for a vocabulary that the library does not take.
pub fn compile(model: &Model, grammar: Option<(&str, Grammar)>) -> ApiResult<Option<Constraint>> {
    let Some((field, grammar)) = grammar else { return Ok(None) };
    let constraint = model.vocabulary()?.compile(&grammar);
    constraint.map(Some).map_err(|error| {
        let mut error = ApiError::from(error);
        error.body.param = Some(field.to_owned());
        error
    })
}

/// Tokens to generate: what is asked for, if prompt and answer fit the context.
///
/// Errors: they do not.
pub fn within_context(
    asked: Option<usize>,
    prompt: usize,
    model: &Model,
    default: Option<usize>,
) -> ApiResult<Option<usize>> {
    let context = model.max_context;
    match asked {
        Some(asked) if prompt.saturating_add(asked) > context => {
            let message = format!(
                "the prompt has {prompt} tokens and max_tokens is {asked}: together more than the {context} of the \
                 context; shorten the prompt or lower max_tokens"
            );
            let mut error = ApiError::invalid("max_tokens", message);
            error.body.code = Some("context_length_exceeded");
            Err(error)
        }
        None if prompt >= context => Err(EngineError::PromptTooLong { prompt, generated: 1, context }.into()),
        asked => Ok(asked.or(default)),
    }
}

/// Log-probabilities to report, if any.
///
/// Errors: too many.
pub fn top_logprobs(field: &'static str, asked: Option<usize>) -> ApiResult<Option<usize>> {
    match asked {
        Some(top) if top > MAX_TOP_LOGPROBS => {
            let message = format!("{field} is {top}, but must be from 0 to {MAX_TOP_LOGPROBS}");
            Err(ApiError::invalid(field, message))
        }
        asked => Ok(asked),
    }
}

/// As many requests as there are cores are read at once: more would only need more memory.
static CORES: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, |cores| cores.get())));

/// Runs work that may be long away from the runtime's own threads.
///
/// Errors: those of the work.
pub async fn aside<T: Send + 'static>(
    model: &Arc<Model>,
    work: impl FnOnce(&Model) -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let _core = CORES.acquire().await.map_err(ApiError::internal)?;
    let model = Arc::clone(model);
    let done = tokio::task::spawn_blocking(move || work(&model)).await;
    done.map_err(|error| ApiError::internal(format!("a request could not be read: {error}")))?
}
