//! What a task asks, without asking it: `--show`.

use super::{GenerateRequest, Generation, LanguageModel, LogLikelihood, LogLikelihoodRequest, Prompt, Take};
use crate::{EvalError, Result};

/// A request as it would be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// The text that the model reads.
    pub text: String,
    /// Its tokens, where the model is in this process.
    pub tokens: Option<Vec<u32>>,
    /// What is scored, where that is asked.
    pub continuation: Option<String>,
    /// Stop strings, limit of tokens and temperature, where an answer is asked.
    pub settings: Option<String>,
}

/// Notes the first requests and answers none: the run ends with [`EvalError::Stopped`] at the first of them.
pub struct Show<'a> {
    model: &'a dyn LanguageModel,
    most: usize,
    /// What was asked.
    pub shown: Vec<Shown>,
}

impl<'a> Show<'a> {
    /// The first `most` requests of the first stage of a task, rendered by `model`.
    pub fn new(model: &'a dyn LanguageModel, most: usize) -> Self {
        Show { model, most, shown: Vec::new() }
    }

    fn note(&mut self, prompt: &Prompt, continuation: Option<&str>, settings: Option<String>) -> Result<()> {
        let (text, tokens) = match (self.model.render(prompt)?, prompt) {
            (Some((text, tokens)), _) => (text, Some(tokens)),
            (None, Prompt::Text(text)) => (text.clone(), None),
            (None, Prompt::Chat { messages, .. }) => {
                let lines =
                    messages.iter().map(|m| format!("[{}] {}\n", m.role(), m.text().unwrap_or_default()));
                (lines.collect(), None)
            }
        };
        self.shown.push(Shown { text, tokens, continuation: continuation.map(str::to_owned), settings });
        Ok(())
    }
}

impl LanguageModel for Show<'_> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn log_likelihoods(
        &mut self,
        requests: &[LogLikelihoodRequest],
        _: Take<'_, LogLikelihood>,
    ) -> Result<()> {
        for request in requests.iter().take(self.most) {
            self.note(&Prompt::Text(request.context.clone()), Some(&request.continuation), None)?;
        }
        Err(EvalError::Stopped)
    }

    fn rolling_log_likelihoods(&mut self, texts: &[String], _: Take<'_, LogLikelihood>) -> Result<()> {
        texts
            .iter()
            .take(self.most)
            .try_for_each(|text| self.note(&Prompt::Text(text.clone()), None, None))?;
        Err(EvalError::Stopped)
    }

    fn generate(&mut self, requests: &[GenerateRequest], _: Take<'_, Generation>) -> Result<()> {
        for request in requests.iter().take(self.most) {
            let GenerateRequest { stop, max_tokens, temperature, .. } = request;
            let settings = format!("temperature {temperature}, at most {max_tokens} tokens, stops {stop:?}");
            self.note(&request.prompt, None, Some(settings))?;
        }
        Err(EvalError::Stopped)
    }
}
