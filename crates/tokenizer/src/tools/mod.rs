//! Function calls in a model's answer: what they look like, how they are read, and how a model is held to them.
//!
//! - [`ToolFormat`]: how a family of models writes calls; [`ToolFormat::detect`] tells it from the chat template.
//! - [`ToolParser`]: streaming text in, text and calls out ([`parse`] for an answer that is whole).
//! - [`ToolFormat::grammar`]: the grammar that makes calls valid, for llguidance, which this crate does not use itself.
//!
//! It does not know what functions do, nor what an HTTP answer looks like.
//! Tests: `cargo test -p kanana-tokenizer tool`.
//!
//! # Formats
//!
//! | format | a call | several |
//! |---|---|---|
//! | `kanana` | `<function=NAME>{JSON}</function>`; `<\|python_tag\|>` and the rest of the answer: one call of `python` | one after the other |
//! | `llama3_json` | the answer is `{"name": NAME, "parameters": {JSON}}`, perhaps behind `<\|python_tag\|>` | joined by `;` or white space, or a JSON array |
//! | `hermes` | `<tool_call>{"name": NAME, "arguments": {JSON}}</tool_call>` | one after the other |
//!
//! Sources: functionary's v3-llama3.1 format, of which Kanana's is a reduction; vLLM's parsers of the same names.

mod grammar;
mod json;
mod parser;
mod spec;

use std::fmt;
use std::str::FromStr;

pub use parser::{ToolEvent, ToolParser};
pub use spec::{ToolChoice, ToolSpec};

use crate::TokenizerError;

/// How a family of models writes function calls. The names are vLLM's where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `kanana`: `<function=NAME>{JSON}</function>` (functionary v3-llama3.1).
    Kanana,
    /// `llama3_json`: `{"name": NAME, "parameters": {JSON}}`.
    Llama3Json,
    /// `hermes`: `<tool_call>{"name": NAME, "arguments": {JSON}}</tool_call>`.
    Hermes,
}

impl ToolFormat {
    /// The control token that calls may stand behind, where the format has one.
    pub const PYTHON_TAG: &str = "<|python_tag|>";

    /// All formats.
    pub const ALL: [Self; 3] = [Self::Kanana, Self::Llama3Json, Self::Hermes];

    /// The format that a chat template teaches its model; `None` where it teaches none of these.
    ///
    /// Told by what the template contains: `<function=`, `<tool_call>`, or the keys `"name": ` and `"parameters": ` of
    /// Llama 3. Arguments written as `<parameter=…>` (Qwen3-Coder) are another format.
    pub fn detect(chat_template: &str) -> Option<Self> {
        let template = chat_template.replace('\\', ""); // quotes may be escaped
        let has = |what: &str| template.contains(what);
        match () {
            () if has("<parameter=") => None,
            () if has("<function=") => Some(Self::Kanana),
            () if has("<tool_call>") => Some(Self::Hermes),
            () if has("\"name\": ") && has("\"parameters\": ") => Some(Self::Llama3Json),
            () => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kanana => "kanana",
            Self::Llama3Json => "llama3_json",
            Self::Hermes => "hermes",
        }
    }
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ToolFormat {
    type Err = TokenizerError;

    fn from_str(name: &str) -> Result<Self, TokenizerError> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| TokenizerError::Tool {
            field: "format".into(),
            problem: format!("expected {}, got {name:?}", Self::ALL.map(Self::name).join(", ")),
        })
    }
}

/// A whole answer, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parsed {
    /// What is not part of a call.
    pub text: String,
    /// The calls, in order.
    pub calls: Vec<ParsedCall>,
    /// The answer ended within the last call, whose arguments may be cut: `finish_reason` is `length`.
    pub unclosed: bool,
}

/// One function call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedCall {
    /// Name of the function.
    pub name: String,
    /// What the model wrote as arguments: a JSON object, if the model made no mistake; never checked.
    pub arguments: String,
}

/// Takes a whole answer apart; `tools` are the functions there are (none: any name will do).
///
/// The rules are [`ToolParser`]'s.
pub fn parse<S: Into<String>>(
    format: ToolFormat,
    tools: impl IntoIterator<Item = S>,
    answer: &str,
) -> Parsed {
    let mut parser = ToolParser::new(format, tools);
    let mut parsed = Parsed::default();
    for event in parser.push(answer).into_iter().chain(parser.finish()) {
        match event {
            ToolEvent::Text(text) => parsed.text += &text,
            ToolEvent::Call { name, .. } => parsed.calls.push(ParsedCall { name, arguments: String::new() }),
            ToolEvent::Arguments { index, delta } => parsed.calls[index].arguments += &delta,
        }
    }
    parsed.unclosed = parser.unclosed();
    parsed
}
