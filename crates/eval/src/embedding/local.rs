//! The engine of this process as an embedder.

use kanana_engine::{EmbeddingInput, Engine, Pooling};
use kanana_tokenizer::Tokenizer;

use crate::{EvalError, Result};

/// Tokens that one forward pass embeds, unless a single text has more.
const TOKENS_AT_ONCE: usize = 2048;

/// A model in this process, as an embedder.
pub(crate) struct LocalEmbedder<'a> {
    /// What the model is called in reports.
    pub(crate) name: &'a str,
    /// Around the model.
    pub(crate) engine: &'a Engine,
    /// Text to tokens.
    pub(crate) tokenizer: &'a Tokenizer,
    /// How tokens become one vector.
    pub(crate) pooling: Pooling,
    /// Tokens of a text with its instruction; longer texts are cut. 512 is the family's embedding model's.
    pub(crate) max_tokens: usize,
    /// Asked between forward passes: whether the person wants to stop.
    pub(crate) interrupted: &'a dyn Fn() -> bool,
}

impl LocalEmbedder<'_> {
    /// Source: `Kanana2VecModel.encode`: the instruction becomes `Instruct: …\nQuery:`, the text follows after a space, and the tokens
    /// of the instruction, the opening one with them, are not pooled.
    fn input(&self, text: &str, instruction: Option<&str>) -> Result<EmbeddingInput> {
        let (mut tokens, skipped) = match instruction.map(str::trim).filter(|text| !text.is_empty()) {
            Some(instruction) => {
                let prefix = format!("Instruct: {instruction}\nQuery:");
                let skipped = self.tokenizer.encode(&prefix)?.len();
                (self.tokenizer.encode(&format!("{prefix} {}", text.trim()))?, skipped)
            }
            None => (self.tokenizer.encode(text)?, 0),
        };
        tokens.truncate(self.max_tokens);
        if tokens.len() <= skipped {
            return Err(self.problem(format!(
                "nothing of a text is left behind {skipped} tokens of instruction: it is empty, or {} tokens are too few",
                self.max_tokens
            )));
        }
        Ok(EmbeddingInput { tokens, instruction: skipped })
    }

    fn problem(&self, problem: impl ToString) -> EvalError {
        EvalError::Model { model: self.name.into(), problem: problem.to_string() }
    }

    /// A vector for each text.
    pub(crate) fn embed(&self, texts: &[String], instruction: Option<&str>) -> Result<Vec<Vec<f32>>> {
        let inputs: Vec<EmbeddingInput> =
            texts.iter().map(|text| self.input(text, instruction)).collect::<Result<_>>()?;
        let mut vectors = Vec::with_capacity(inputs.len());
        let mut from = 0;
        while from < inputs.len() {
            if (self.interrupted)() {
                return Err(EvalError::Stopped);
            }
            let mut tokens = 0;
            let fits = |input: &&EmbeddingInput| {
                tokens += input.tokens.len();
                tokens <= TOKENS_AT_ONCE
            };
            let count = inputs[from..].iter().take_while(fits).count().max(1);
            let part = self.engine.embed(&inputs[from..from + count], self.pooling);
            vectors.extend(part.map_err(|error| self.problem(error))?);
            from += count;
        }
        Ok(vectors)
    }
}
