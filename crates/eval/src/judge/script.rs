//! A model of tests, which answers by a function.

use crate::lm::{
    Ended, GenerateRequest, Generation, LanguageModel, LogLikelihood, LogLikelihoodRequest, Prompt, Take,
    ToolCall,
};
use crate::{EvalError, Result};

/// The text of the last message and of all before it, as the function sees them.
pub(crate) struct Script<F> {
    pub(crate) answer: F,
    pub(crate) asked: Vec<GenerateRequest>,
}

impl<F: FnMut(&str) -> Generation> Script<F> {
    pub(crate) fn new(answer: F) -> Self {
        Script { answer, asked: Vec::new() }
    }
}

/// A generation that ended of itself.
pub(crate) fn said(text: &str) -> Generation {
    Generation {
        text: text.into(),
        tool_calls: Vec::new(),
        ended: Ended::Stop,
        prompt_tokens: 1,
        completion_tokens: 1,
    }
}

/// A generation that is a call.
pub(crate) fn called(name: &str, arguments: &str) -> Generation {
    Generation { tool_calls: vec![ToolCall { name: name.into(), arguments: arguments.into() }], ..said("") }
}

/// `role: text` of all messages, a line each.
pub(crate) fn transcript(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Chat { messages, .. } => messages
            .iter()
            .map(|message| format!("{}: {}", message.role(), message.text().unwrap_or("")))
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

impl<F: FnMut(&str) -> Generation> LanguageModel for Script<F> {
    fn name(&self) -> &str {
        "script"
    }

    fn log_likelihoods(&mut self, _: &[LogLikelihoodRequest], _: Take<'_, LogLikelihood>) -> Result<()> {
        Err(EvalError::Stopped)
    }

    fn rolling_log_likelihoods(&mut self, _: &[String], _: Take<'_, LogLikelihood>) -> Result<()> {
        Err(EvalError::Stopped)
    }

    fn generate(&mut self, requests: &[GenerateRequest], take: Take<'_, Generation>) -> Result<()> {
        for (index, request) in requests.iter().enumerate() {
            self.asked.push(request.clone());
            take(index, (self.answer)(&transcript(&request.prompt)))?;
        }
        Ok(())
    }
}
