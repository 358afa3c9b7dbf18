//! Answers as text, as one JSON object, or as JSON lines in the order of the prompts.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::Result;
use kanana_engine::{Logprobs, Request, TokenLogprob};
use kanana_tokenizer::{Specials, Tokenizer};
use serde_json::{Map, Value, json};

use super::prompts::{Prompt, Prompts};
use crate::generation::{Answer, Event, Finish};
use crate::hints::failure;
use crate::output;
use crate::progress::Progress;

/// What is the same for every answer of a run.
pub struct Report {
    pub model: String,
    pub load: Duration,
    pub tokenizer: Option<Tokenizer>,
    /// Whether the seed mattered.
    pub sampled: bool,
}

/// Prints what happens.
pub struct Writer<'a> {
    report: &'a Report,
    prompts: &'a Prompts,
    requests: Vec<Request>,
    mode: Mode,
    failures: usize,
}

enum Mode {
    /// Text, or ids without a tokenizer, as they come.
    Stream { tokens: usize },
    /// One object at the end.
    Json,
    /// A line for every prompt, held until those before it are printed.
    Lines { ready: BTreeMap<usize, Value>, next: usize, progress: Progress },
}

impl<'a> Writer<'a> {
    /// A writer for the answers to these requests.
    pub fn new(report: &'a Report, prompts: &'a Prompts, requests: &[Request], json: bool) -> Self {
        let mode = match prompts {
            Prompts::Many(_) => Mode::Lines {
                ready: BTreeMap::new(),
                next: 0,
                progress: Progress::of_answers(requests.len() as u64),
            },
            Prompts::One(_) if json => Mode::Json,
            Prompts::One(_) => Mode::Stream { tokens: 0 },
        };
        Writer { report, prompts, requests: requests.to_vec(), mode, failures: 0 }
    }

    /// Prints what an event allows to print.
    pub fn take(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Token { id, text } => self.token(id, text),
            Event::Done { index, answer, text } => self.done(index, answer, text),
        }
    }

    fn token(&mut self, id: u32, text: &str) -> Result<()> {
        let Mode::Stream { tokens } = &mut self.mode else { return Ok(()) };
        *tokens += 1;
        match self.report.tokenizer {
            Some(_) => output::print(text),
            None if *tokens == 1 => output::print(&id.to_string()),
            None => output::print(&format!(" {id}")),
        }
    }

    fn done(&mut self, index: usize, answer: &Answer, text: &str) -> Result<()> {
        let single = !matches!(self.mode, Mode::Lines { .. });
        if let (Some(Finish::Failed(error)), true) = (&answer.finish, single) {
            return Err(error.clone().into());
        }
        self.failures += usize::from(matches!(answer.finish, Some(Finish::Failed(_))));
        let prompt = self.prompts.get(index);
        let value = self.to_json(prompt, &self.requests[index], answer);
        match &mut self.mode {
            Mode::Stream { .. } => {
                output::print(&format!("{text}\n"))?;
                if io::stdout().is_terminal() {
                    output::note(format_args!(
                        "{} tokens, {:.1} per second",
                        answer.ids.len(),
                        answer.decode_rate()
                    ));
                }
            }
            Mode::Json => output::print_json(&value)?,
            Mode::Lines { ready, next, progress } => {
                ready.insert(index, value);
                progress.inc();
                while let Some(value) = ready.remove(next) {
                    progress.suspend(|| output::println(value))?;
                    *next += 1;
                }
            }
        }
        Ok(())
    }

    /// Ends the run; an error when an answer of several failed.
    pub fn finish(self) -> Result<()> {
        match self.failures {
            0 => Ok(()),
            n => Err(failure(
                format_args!("{n} of {} answers failed", self.requests.len()),
                "their lines say why in \"error\"",
            )),
        }
    }

    fn to_json(&self, prompt: &Prompt, request: &Request, answer: &Answer) -> Value {
        let mut object = Map::new();
        let mut set = |name: &str, value: Value| drop(object.insert(name.to_string(), value));
        if let Some(id) = &prompt.id {
            set("id", id.clone());
        }
        set("model", json!(self.report.model));
        set("prompt_ids", json!(request.prompt));
        set("ids", json!(answer.ids));
        if self.report.tokenizer.is_some() {
            set("text", json!(answer.text));
        }
        set("finish_reason", json!(answer.finish.as_ref().map(Finish::name)));
        if let Some(Finish::Failed(error)) = &answer.finish {
            set("error", json!(error.to_string()));
        }
        let (prompt_tokens, completion_tokens) = (request.prompt.len(), answer.ids.len());
        set(
            "usage",
            json!({
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            }),
        );
        if self.report.sampled {
            set("seed", json!(request.params.seed));
        }
        if request.params.logprobs.is_some() {
            set("logprobs", answer.logprobs.iter().map(|entry| self.logprobs(entry)).collect());
        }
        if let Some(entries) = &answer.prompt_logprobs {
            let entries =
                entries.iter().map(|entry| entry.as_ref().map_or(Value::Null, |e| self.logprobs(e)));
            set("prompt_logprobs", entries.collect());
        }
        set(
            "timings",
            json!({
                "load_s": self.report.load.as_secs_f64(),
                "ttft_s": (completion_tokens > 0).then_some(answer.first_token.as_secs_f64()),
                "total_s": answer.last_token.as_secs_f64(),
                "decode_tokens_per_s": answer.decode_rate(),
            }),
        );
        Value::Object(object)
    }

    fn logprobs(&self, entry: &Logprobs) -> Value {
        let mut value = self.logprob(&entry.chosen);
        if !entry.top.is_empty() {
            value["top"] = entry.top.iter().map(|top| self.logprob(top)).collect();
        }
        value
    }

    fn logprob(&self, entry: &TokenLogprob) -> Value {
        let mut value = json!({"id": entry.token, "logprob": entry.logprob});
        let text = self.report.tokenizer.as_ref().map(|t| t.decode(&[entry.token], Specials::Keep));
        if let Some(Ok(text)) = text {
            value["text"] = json!(text);
        }
        value
    }
}
