//! One interface to whatever answers: three methods, as in lm-evaluation-harness (`lm_eval/api/model.py`).
//!
//! A request is text (or a conversation), never token ids, so that the same request goes to the engine of this process and to a
//! server; it is a plain value that can be written down, so that [`Journaled`] keeps every answer and asks nothing twice.
//! Judges are language models too.

mod journal;
mod local;
mod server;
mod show;

pub use journal::{Journal, Journaled, Progress, Usage};
use kanana_tokenizer::Message;
pub use local::{Local, LocalParts};
use serde::{Deserialize, Serialize};
use serde_json::Value;
pub use server::{Server, ServerOptions};
pub use show::{Show, Shown};

use crate::{EvalError, Result};

/// A continuation to score. Source: `Instance.args` of `loglikelihood` requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLikelihoodRequest {
    /// What stands before; may be empty. Spaces at its end belong to the continuation when tokens are made.
    pub context: String,
    /// What is scored: not empty.
    pub continuation: String,
}

/// How likely a continuation is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLikelihood {
    /// The sum over the continuation's tokens. Units: nats.
    pub sum: f64,
    /// Every token is the likeliest at its place.
    pub is_greedy: bool,
    /// Tokens of the context, after truncation.
    pub context_tokens: usize,
    /// Tokens of the continuation.
    pub continuation_tokens: usize,
}

/// What an answer is asked for with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// To be continued as it is.
    Text(String),
    /// A conversation, through the model's chat template, with the functions that may be called.
    Chat {
        /// Ends with what the model is to answer; where `prefill` is given, the answer begins with it.
        messages: Vec<Message>,
        /// Definitions as the OpenAI API has them (`{"type": "function", "function": {…}}`); may be empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tools: Vec<Value>,
        /// The start of the answer, which the model goes on with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prefill: Option<String>,
    },
}

impl Prompt {
    /// A conversation of one message.
    pub fn user(text: impl Into<String>) -> Self {
        Prompt::chat(vec![Message::user(text)])
    }

    /// A conversation without functions.
    pub fn chat(messages: Vec<Message>) -> Self {
        Prompt::Chat { messages, tools: Vec::new(), prefill: None }
    }
}

/// An answer to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// What is asked.
    pub prompt: Prompt,
    /// The answer ends before the first of these, wherever in a token it begins.
    pub stop: Vec<String>,
    /// No more tokens than this.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Of the choice of tokens; matters where the temperature is not 0.
    pub seed: u64,
    /// The answer must be a JSON object (`response_format: json_object`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}

impl GenerateRequest {
    /// The likeliest answer.
    pub fn greedy(prompt: Prompt, max_tokens: usize) -> Self {
        GenerateRequest { prompt, stop: Vec::new(), max_tokens, temperature: 0.0, seed: 0, json: false }
    }

    /// Ends the answer before the first of these.
    pub fn until(mut self, stop: &[&str]) -> Self {
        self.stop = stop.iter().map(|&text| text.to_owned()).collect();
        self
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Of itself, at a stop string, or after function calls.
    Stop,
    /// At `max_tokens`, or where the context was full: truncated.
    Length,
    /// A filter of the server withheld it.
    Refused,
    /// Before it began: the prompt does not fit the context of the server.
    TooLong,
}

/// A function call in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The function.
    pub name: String,
    /// As the model wrote them: JSON, if it did well.
    pub arguments: String,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Without the stop string and without a `prefill`.
    pub text: String,
    /// Functions called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Why it ended.
    pub ended: Ended,
    /// Tokens read.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub completion_tokens: usize,
}

/// Takes the answer to the request of this index, as soon as it is there: answers come in any order. An error ends the run.
pub type Take<'a, A> = &'a mut dyn FnMut(usize, A) -> Result<()>;

/// What answers.
pub trait LanguageModel {
    /// What is asked, for reports and for the journal's keys: two models of one name are the same model.
    fn name(&self) -> &str;

    /// How likely continuations are. `take` gets every answer once.
    fn log_likelihoods(
        &mut self,
        requests: &[LogLikelihoodRequest],
        take: Take<'_, LogLikelihood>,
    ) -> Result<()>;

    /// How likely whole texts are, every token once, in windows as long as the context
    /// (`get_rolling_token_windows` of lm-evaluation-harness).
    fn rolling_log_likelihoods(&mut self, texts: &[String], take: Take<'_, LogLikelihood>) -> Result<()>;

    /// Answers. `take` gets every one once.
    fn generate(&mut self, requests: &[GenerateRequest], take: Take<'_, Generation>) -> Result<()>;

    /// A vector for each text, all as long. `instruction` says what the texts are for: it is read before each and not pooled.
    ///
    /// Errors: what answers does not embed.
    fn embed(&mut self, _texts: &[String], _instruction: Option<&str>) -> Result<Vec<Vec<f32>>> {
        Err(EvalError::Model { model: self.name().into(), problem: "it does not embed texts".into() })
    }

    /// The text and the token ids that a request becomes, for `--show`; None where only a server knows.
    fn render(&self, _request: &Prompt) -> Result<Option<(String, Vec<u32>)>> {
        Ok(None)
    }
}

impl<M: LanguageModel + ?Sized> LanguageModel for &mut M {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn log_likelihoods(
        &mut self,
        requests: &[LogLikelihoodRequest],
        take: Take<'_, LogLikelihood>,
    ) -> Result<()> {
        (**self).log_likelihoods(requests, take)
    }

    fn rolling_log_likelihoods(&mut self, texts: &[String], take: Take<'_, LogLikelihood>) -> Result<()> {
        (**self).rolling_log_likelihoods(texts, take)
    }

    fn generate(&mut self, requests: &[GenerateRequest], take: Take<'_, Generation>) -> Result<()> {
        (**self).generate(requests, take)
    }

    fn embed(&mut self, texts: &[String], instruction: Option<&str>) -> Result<Vec<Vec<f32>>> {
        (**self).embed(texts, instruction)
    }

    fn render(&self, request: &Prompt) -> Result<Option<(String, Vec<u32>)>> {
        (**self).render(request)
    }
}
