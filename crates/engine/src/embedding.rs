//! Texts as vectors: the hidden states of whole prompts, pooled. No cache, no scheduler.
//!
//! Legend: T packed tokens, D hidden.

use kanana_kernels::Kernels;
use kanana_model::{Batch, Transformer};
use serde::{Deserialize, Serialize};

use crate::request::check_token;
use crate::{EngineError, Result};

/// How the hidden states of a prompt become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Every token sees the whole prompt; the mean of all of them but an instruction's. Source: Kanana2Vec, after
    /// LLM2Vec (arXiv 2404.05961).
    BidirectionalMean,
    /// The mean of the tokens of a model that sees only what is before.
    Mean,
    /// The last token, which alone has seen everything: of models that were not trained to embed.
    Last,
}

/// A prompt to embed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingInput {
    /// Token ids, at least one.
    pub tokens: Vec<u32>,
    /// Tokens of an instruction at the beginning, which are read and not pooled; fewer than there are tokens.
    pub instruction: usize,
}

/// One vector `[D]` for every prompt, not normalised.
///
/// Errors: [`EngineError::EmptyPrompt`] where nothing is left to pool, [`EngineError::TokenOutOfRange`],
/// [`EngineError::PromptTooLong`], and what the model says.
/// Cost: one forward pass over all prompts at once.
pub(crate) fn embed(
    model: &Transformer,
    kernels: &dyn Kernels,
    inputs: &[EmbeddingInput],
    pooling: Pooling,
) -> Result<Vec<Vec<f32>>> {
    for input in inputs {
        let (prompt, context) = (input.tokens.len(), model.max_positions());
        if prompt <= input.instruction {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt > context {
            return Err(EngineError::PromptTooLong { prompt, generated: 0, context });
        }
        input.tokens.iter().try_for_each(|&token| check_token("input", token, model.config.vocab_size))?;
    }
    let sequences: Vec<&[u32]> = inputs.iter().map(|input| input.tokens.as_slice()).collect();
    let batch = Batch::packed(&sequences, pooling != Pooling::BidirectionalMean);
    let hidden_td = kernels.download(&model.forward(kernels, &batch, None)?)?;
    let (hidden, width) = (hidden_td.to_f32_vec()?, hidden_td.row_len());
    let bounds = batch.query_starts.windows(2).map(|pair| pair[0] as usize * width..pair[1] as usize * width);
    let pool = |(rows, input): (std::ops::Range<usize>, &EmbeddingInput)| {
        let rows: Vec<&[f32]> = hidden[rows].chunks_exact(width).collect();
        match pooling {
            Pooling::Last => rows[rows.len() - 1].to_vec(),
            Pooling::Mean | Pooling::BidirectionalMean => mean(&rows[input.instruction..]),
        }
    };
    Ok(bounds.zip(inputs).map(pool).collect())
}

/// Shapes: T x `[D]` to `[D]`.
fn mean(rows: &[&[f32]]) -> Vec<f32> {
    let column = |d: usize| rows.iter().map(|row| f64::from(row[d])).sum::<f64>() / rows.len() as f64;
    (0..rows[0].len()).map(|d| column(d) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_of_each_column() {
        assert_eq!(mean(&[&[1.0, 2.0], &[3.0, -2.0]]), [2.0, 0.0]);
    }
}
