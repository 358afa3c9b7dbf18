//! A conversation to the one string the model was trained on.
//!
//! Templates are rendered as transformers renders them (`render_jinja_template`, version in `tests/goldens/make.py`);
//! `render.rs` holds the environment and its limits, `python.rs` what Python prints, `messages.rs` what is done to messages
//! for templates that would not understand them.
//! Tests: `cargo test -p kanana-tokenizer template`.
//!
//! # The built-in Kanana format (`kanana.jinja`)
//!
//! Used where a checkpoint has no template. **Confirmed** by the vendor's published tool template: the frame
//! `<|start_header_id|>ROLE<|end_header_id|>`, two newlines, content, `<|eot_id|>`; tool results under the role
//! `ipython`; a system turn of its own before the conversation that lists the tools ("You have access to the following
//! functions", one `Use the function 'NAME' to 'DESCRIPTION'` line and the JSON of each); calls as
//! `<function=NAME>{JSON}</function>`, Python code behind `<|python_tag|>`, such turns closed by `<|eom_id|>`; no date.
//! **Inferred**: without tools, plain turns with nothing before them (the models' default template is not published),
//! and contents are trimmed (Llama 3 does). **Our own words**: the instructions below the list of tools, so a prompt
//! with tools is not byte-equal to the vendor's.

mod messages;
mod python;
mod render;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::error::{read_json, read_text};
use crate::tokenizer::{read_special_tokens, special_tokens_of};
use crate::{Message, Result, TokenizerError};

/// The system prompt on Kanana's model cards. No template adds it: the caller decides.
pub const DEFAULT_SYSTEM_PROMPT: &str = "You are a helpful AI assistant developed by Kakao.";

const KANANA: &str = include_str!("kanana.jinja");
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Where a template came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file of its own: `chat_template.jinja`, or one that the user named.
    File(PathBuf),
    /// The field `chat_template` of `tokenizer_config.json`.
    TokenizerConfig(PathBuf),
    /// Text given by the caller, under a name for errors.
    Given(String),
    /// The Kanana format of this crate.
    BuiltIn,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::TokenizerConfig(path) => write!(f, "{} (chat_template)", path.display()),
            Self::Given(name) => f.write_str(name),
            Self::BuiltIn => f.write_str("built-in Kanana format"),
        }
    }
}

/// How the rendered text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// With the header of the assistant's turn: the model answers (`add_generation_prompt`).
    #[default]
    GenerationPrompt,
    /// Within the last message, whose turn is left open: the model goes on (`continue_final_message`).
    ContinueFinal,
    /// With the last message's turn closed: a whole conversation, as in training.
    Closed,
}

/// What is to be rendered.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Functions the model may call, as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// Documents with `title` and `text`.
    pub documents: Option<Vec<Value>>,
    /// How the text ends.
    pub ending: Ending,
    /// Further variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Value>,
    /// The clock of `strftime_now`; `None` is the system's.
    pub now: Option<SystemTime>,
}

impl ChatRequest {
    /// A conversation to be answered.
    pub fn new(messages: impl IntoIterator<Item = Message>) -> Self {
        Self { messages: messages.into_iter().collect(), ..Self::default() }
    }
}

/// A chat template that has been parsed.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    default: String,
    tool_use: Option<String>,
    origin: Origin,
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// The template of a checkpoint folder: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`
    /// (a string, or a list of named templates), else the built-in one.
    ///
    /// Errors: unreadable or broken files, a list without `default`, templates that do not parse.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let (file, config) = (dir.join("chat_template.jinja"), dir.join("tokenizer_config.json"));
        let template = if file.exists() {
            Self::from_file(file)?
        } else if config.exists() {
            Self::from_config(&config, read_json(&config)?.get("chat_template").unwrap_or(&Value::Null))?
        } else {
            Self::built_in()
        };
        Ok(template.with_special_tokens(read_special_tokens(dir)?))
    }

    /// The template of a `tokenizer_config.json` that lies elsewhere, as in a GGUF file; `path` stands in errors.
    ///
    /// Errors: a list without `default`, templates that do not parse.
    pub fn from_config_json(path: impl AsRef<Path>, config: &Value) -> Result<Self> {
        let path = path.as_ref();
        let template = Self::from_config(path, config.get("chat_template").unwrap_or(&Value::Null))?;
        Ok(template.with_special_tokens(special_tokens_of(path, config)?))
    }

    /// A template in a file of its own.
    ///
    /// Errors: unreadable, not UTF-8, does not parse.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(read_text(path)?, None, Origin::File(path.into()))
    }

    /// A template given as text; `name` stands in errors.
    ///
    /// Errors: does not parse.
    pub fn from_source(name: &str, source: impl Into<String>) -> Result<Self> {
        Self::new(source.into(), None, Origin::Given(name.into()))
    }

    /// The Kanana format (see the module's page for what of it is confirmed).
    pub fn built_in() -> Self {
        Self { default: KANANA.into(), tool_use: None, origin: Origin::BuiltIn, special_tokens: Map::new() }
    }

    fn from_config(path: &Path, template: &Value) -> Result<Self> {
        let origin = Origin::TokenizerConfig(path.into());
        let invalid = |problem: &str| TokenizerError::Invalid {
            path: path.into(),
            field: "chat_template".into(),
            problem: problem.into(),
        };
        let named = match template {
            Value::Null => return Ok(Self::built_in()),
            Value::String(source) => return Self::new(source.clone(), None, origin),
            Value::Array(named) => named,
            _ => return Err(invalid("expected a string or a list")),
        };
        let entry = |entry: &Value| {
            Some((entry["name"].as_str()?.to_string(), entry["template"].as_str()?.to_string()))
        };
        let named: Option<Vec<(String, String)>> = named.iter().map(entry).collect();
        let named = named.ok_or_else(|| invalid("expected objects with name and template"))?;
        let find = |name: &str| named.iter().find(|(n, _)| n == name).map(|(_, source)| source.clone());
        let default = find("default").ok_or_else(|| TokenizerError::NoDefaultTemplate {
            names: named.iter().map(|(name, _)| name.clone()).collect(),
        })?;
        Self::new(default, find("tool_use"), origin)
    }

    fn new(default: String, tool_use: Option<String>, origin: Origin) -> Result<Self> {
        for source in std::iter::once(&default).chain(&tool_use) {
            render::check_syntax(&origin.to_string(), source)?;
        }
        Ok(Self { default, tool_use, origin, special_tokens: Map::new() })
    }

    /// Replaces `bos_token`, `eos_token` and the like that the template sees.
    pub fn with_special_tokens(mut self, special_tokens: Map<String, Value>) -> Self {
        self.special_tokens = special_tokens;
        self
    }

    /// Where the template came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The template's text, without or with tools.
    pub fn source(&self, with_tools: bool) -> &str {
        self.tool_use.as_ref().filter(|_| with_tools).unwrap_or(&self.default)
    }

    /// Renders a conversation. Encode the result with [`Tokenizer::encode_rendered`](crate::Tokenizer::encode_rendered):
    /// the template has written the control tokens already.
    ///
    /// Errors: the template raises, fails or exceeds its limits; the final message cannot be continued.
    ///
    /// Source: transformers, `utils/chat_template_utils.py`, `render_jinja_template`.
    pub fn render(&self, request: &ChatRequest) -> Result<String> {
        let mut messages = self.adapted(request);
        let open = match request.ending {
            Ending::ContinueFinal => Some(tag_final_message(&mut messages)?),
            _ => None,
        };
        let text = self.run(request, messages)?;
        match open {
            Some(text_to_continue) => cut_at_tag(text, &text_to_continue),
            None => Ok(text),
        }
    }

    /// The messages as this template understands them; see `messages.rs`.
    fn adapted(&self, request: &ChatRequest) -> Vec<Map<String, Value>> {
        let mut messages: Vec<_> = request.messages.iter().map(|message| message.fields().clone()).collect();
        messages::alias_reasoning(&mut messages);
        messages::name_results(&mut messages);
        if messages::knows_only_ipython(self.source(request.tools.is_some())) {
            messages::rename_tool_role(&mut messages);
        }
        if messages.iter().any(messages::has_text_parts) {
            let sample = self.run(request, vec![messages::sample_of_parts()]);
            if !sample.is_ok_and(|text| messages::reads_parts(&text)) {
                messages::join_text_parts(&mut messages);
            }
        }
        messages
    }

    fn run(&self, request: &ChatRequest, messages: Vec<Map<String, Value>>) -> Result<String> {
        let mut variables = self.special_tokens.clone();
        variables.extend(request.variables.clone());
        variables.insert("messages".into(), messages.into());
        variables.insert("tools".into(), json!(request.tools));
        variables.insert("documents".into(), json!(request.documents));
        variables.insert("add_generation_prompt".into(), json!(request.ending == Ending::GenerationPrompt));
        let job = render::Job {
            name: self.origin.to_string(),
            source: self.source(request.tools.is_some()).to_string(),
            variables,
            now: request.now.unwrap_or_else(SystemTime::now),
        };
        job.run()
    }
}

/// Renders any text as a template over a fixed conversation with tools: what fuzzing calls, and a way to try a
/// template before trusting it. Never panics, and ends within the limits of [`ChatTemplate::render`].
///
/// Errors: as [`ChatTemplate::render`].
pub fn render_sample(source: &str) -> Result<String> {
    let call = Message::assistant("").with_tool_call("날씨", json!({ "도시": "서울", "일": 3 }));
    let messages = [
        Message::system(DEFAULT_SYSTEM_PROMPT),
        Message::user("서울 날씨 어때? 😀"),
        call,
        Message::tool("{\"기온\": 21.5}"),
        Message::assistant("  맑고 21.5도입니다.\n"),
        Message::user("Thanks!"),
    ];
    let tool = json!({ "type": "function", "function": {
        "name": "날씨", "description": "한 도시의 날씨",
        "parameters": { "type": "object", "properties": { "도시": { "type": "string" } }, "required": ["도시"] },
    } });
    let request = ChatRequest {
        tools: Some(vec![tool]),
        now: Some(SystemTime::UNIX_EPOCH),
        ..ChatRequest::new(messages)
    };
    ChatTemplate::from_source("sample", source)?.render(&request)
}

/// Marks the end of the final message's text and returns that text.
fn tag_final_message(messages: &mut [Map<String, Value>]) -> Result<String> {
    let nothing = |problem: &str| TokenizerError::CannotContinue { problem: problem.into() };
    let message = messages.last_mut().ok_or_else(|| nothing("the conversation is empty"))?;
    let text = match message.get_mut("content") {
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        content => content,
    };
    let Some(Value::String(text)) = text else {
        return Err(nothing("the final message has no text"));
    };
    let original = text.clone();
    text.push_str(CONTINUE_TAG);
    Ok(original)
}

/// Cuts rendered text where the final message's text ends.
fn cut_at_tag(mut text: String, to_continue: &str) -> Result<String> {
    let lost = || TokenizerError::CannotContinue {
        problem: "the template does not show the final message's text".into(),
    };
    let at = text.rfind(CONTINUE_TAG.trim_end()).ok_or_else(lost)?;
    if !text.contains(to_continue.trim()) {
        return Err(lost());
    }
    let spacing_kept = text[at..].starts_with(CONTINUE_TAG);
    text.truncate(at);
    if !spacing_kept {
        text.truncate(text.trim_end().len()); // the template trims: so would it have trimmed the text itself
    }
    Ok(text)
}
