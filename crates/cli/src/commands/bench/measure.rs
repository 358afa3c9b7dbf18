//! One run through the engine with a stopwatch.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use kanana_engine::{Engine, EngineOptions, Request, SamplingParams};
use kanana_kernels::{Kernels, KvFormat};
use kanana_model::Transformer;

use crate::budget::BLOCK_SIZE;

/// Tokens in one step of the engine.
const STEP_TOKENS: usize = 512;

/// A shape of work.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub prefill: usize, // tokens of every prompt
    pub decode: usize,  // steps after every prompt is through
    pub batch: usize,   // sequences
}

impl Case {
    /// Tokens of the longest sequence: the first to be through its prompt decodes while the others are not.
    pub fn context(&self) -> usize {
        self.prefill
            + self.decode
            + (self.prefill * self.batch).div_ceil(STEP_TOKENS - self.batch.min(STEP_TOKENS / 2))
            + 1
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "batch {}, prefill {}, decode {}", self.batch, self.prefill, self.decode)
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Until every sequence had its first token.
    pub prefill_s: f64,
    /// Until a sequence had its first token, mean over the sequences.
    pub first_token_s: f64,
    /// One step in which every sequence got a token.
    pub step_s: f64,
}

impl Figures {
    /// The median of each figure.
    pub fn median(runs: Vec<Figures>) -> Self {
        let of = |field: fn(&Figures) -> f64| median(runs.iter().map(field).collect());
        Figures {
            prefill_s: of(|run| run.prefill_s),
            first_token_s: of(|run| run.first_token_s),
            step_s: of(|run| run.step_s),
        }
    }
}

/// The middle value; the mean of the two middle ones of an even number.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n => (values[(n - 1) / 2] + values[n / 2]) / 2.0,
    }
}

/// A case and what it is run on.
pub struct Setup {
    pub case: Case,
    pub kv_format: KvFormat,
    pub seed: u64,
}

/// Runs a case once, on prompts that no cache has seen.
pub fn measure(model: &Arc<Transformer>, kernels: Arc<dyn Kernels>, setup: Setup) -> Result<Figures> {
    let Setup { case, kv_format, seed } = setup;
    let context = case.context();
    let vocab_size = model.config.vocab_size as u64;
    let options = EngineOptions {
        num_blocks: context.div_ceil(BLOCK_SIZE) * case.batch,
        max_batched_tokens: STEP_TOKENS,
        max_sequences: case.batch,
        prefix_cache: false,
        ..EngineOptions::for_context(context, kv_format)
    };
    let mut engine = Engine::new(Arc::clone(model), kernels, options)?;
    let mut state = seed;
    let mut token = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % vocab_size) as u32
    };
    let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy() };
    for _ in 0..case.batch {
        let prompt = (0..case.prefill).map(|_| token()).collect();
        engine.add(Request { prompt, params: params.clone() })?;
    }

    let start = Instant::now();
    let (mut first_tokens, mut first_token_sum) = (HashSet::new(), 0.0);
    while first_tokens.len() < case.batch {
        let outputs = engine.step()?;
        let elapsed = start.elapsed().as_secs_f64();
        let new = outputs.iter().filter(|output| first_tokens.insert(output.id)).count();
        first_token_sum += elapsed * new as f64;
    }
    let prefill_s = start.elapsed().as_secs_f64();

    let mut steps = Vec::with_capacity(case.decode);
    for _ in 0..case.decode {
        let start = Instant::now();
        engine.step()?;
        steps.push(start.elapsed().as_secs_f64());
    }
    Ok(Figures { prefill_s, first_token_s: first_token_sum / case.batch as f64, step_s: median(steps) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![]), 0.0);
    }
}
