//! Runs through the engine with a stopwatch.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use kanana_engine::{Engine, EngineOptions, Request, SamplingParams};
use kanana_kernels::{Kernels, KvFormat};
use kanana_model::Transformer;

use super::interruption::Interruption;
use crate::budget::BLOCK_SIZE;
use crate::progress::Progress;

/// Tokens in one step of the engine.
const STEP_TOKENS: usize = 512;

/// A shape of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    pub depth: usize, // tokens of every sequence that are in the cache before the clock starts, in whole blocks
    pub prefill: usize, // tokens of every prompt on top of them
    pub decode: usize, // steps after every prompt is through
    pub batch: usize, // sequences
}

impl Case {
    /// Tokens of the longest sequence: the first to be through its prompt decodes while the others are not.
    pub fn context(&self) -> usize {
        self.depth
            + self.prefill
            + self.decode
            + (self.prefill * self.batch).div_ceil(STEP_TOKENS - self.batch.min(STEP_TOKENS / 2))
            + 1
    }

    /// Tokens behind which a step decodes, half-way through.
    pub fn decode_context(&self) -> usize {
        self.depth + self.prefill + self.decode / 2
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { depth, prefill, decode, batch } = self;
        write!(f, "batch {batch}, depth {depth}, prefill {prefill}, decode {decode}")
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
    pub fn median(runs: &[Figures]) -> Self {
        let of = |field: fn(&Figures) -> f64| median(runs.iter().map(field).collect());
        Figures {
            prefill_s: of(|run| run.prefill_s),
            first_token_s: of(|run| run.first_token_s),
            step_s: of(|run| run.step_s),
        }
    }
}

/// The middle value; the mean of the two middle ones of an even number.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n => (values[(n - 1) / 2] + values[n / 2]) / 2.0,
    }
}

/// A case and how it is run.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    pub case: Case,
    pub kv_format: KvFormat,
    pub seed: u64,
    /// The keys and values of the depth are random, not computed.
    pub fill_depth: bool,
    pub interruption: &'a Interruption,
}

/// An engine whose cache holds what is before every prompt of a case.
pub struct Bench<'a> {
    engine: Engine,
    setup: Setup<'a>,
    contexts: Vec<Vec<u32>>, // [batch][depth]
    vocab_size: usize,
}

impl<'a> Bench<'a> {
    /// Makes the engine and its cache. Cost: the prefill of the depth, unless it is filled.
    pub fn prepare(model: &Arc<Transformer>, kernels: Arc<dyn Kernels>, setup: Setup<'a>) -> Result<Self> {
        let Setup { case, kv_format, seed, fill_depth, .. } = setup;
        let context = case.context();
        let options = EngineOptions {
            num_blocks: context.div_ceil(BLOCK_SIZE) * case.batch,
            max_batched_tokens: STEP_TOKENS,
            max_sequences: case.batch,
            prefix_cache: case.depth > 0,
            ..EngineOptions::for_context(context, kv_format)
        };
        let engine = Engine::new(Arc::clone(model), kernels, options)?;
        let vocab_size = model.config.vocab_size;
        let contexts: Vec<Vec<u32>> = (0..case.batch as u64)
            .map(|i| tokens(vocab_size, seed.wrapping_add(i << 32)).take(case.depth).collect())
            .collect();
        let mut bench = Bench { engine, setup, contexts, vocab_size };
        match fill_depth {
            _ if case.depth == 0 => {}
            true => bench.fill_contexts()?,
            false => bench.compute_contexts()?,
        }
        Ok(bench)
    }

    fn fill_contexts(&mut self) -> Result<()> {
        for (context, i) in self.contexts.iter().zip(0..) {
            self.engine.fill_prefix(context, self.setup.seed.wrapping_add(i))?;
        }
        Ok(())
    }

    fn compute_contexts(&mut self) -> Result<()> {
        let tokens: usize = self.contexts.iter().map(Vec::len).sum();
        let progress = (tokens > STEP_TOKENS).then(|| Progress::of_context(tokens as u64));
        let mut computed = 0;
        for context in &self.contexts {
            let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::greedy() };
            self.engine.add(Request { prompt: context.clone(), params })?;
            for chunk in context.chunks(STEP_TOKENS) {
                self.engine.step()?;
                computed += chunk.len() as u64;
                progress.iter().for_each(|progress| progress.set(computed));
                self.setup.interruption.check()?;
            }
        }
        Ok(())
    }

    /// Runs the case once, on prompts that no cache has seen.
    pub fn round(&mut self, seed: u64) -> Result<Figures> {
        let Setup { case, interruption, .. } = self.setup;
        let cached_before = self.engine.stats().cached_tokens;
        let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy() };
        let mut fresh = tokens(self.vocab_size, seed);
        let mut ids = Vec::new();
        for context in &self.contexts {
            let prompt = context.iter().copied().chain(fresh.by_ref().take(case.prefill)).collect();
            ids.push(self.engine.add(Request { prompt, params: params.clone() })?);
        }

        let start = Instant::now();
        let (mut first_tokens, mut first_token_sum) = (HashSet::new(), 0.0);
        while first_tokens.len() < case.batch {
            let outputs = self.engine.step()?;
            let elapsed = start.elapsed().as_secs_f64();
            let new = outputs.iter().filter(|output| first_tokens.insert(output.id)).count();
            first_token_sum += elapsed * new as f64;
            interruption.check()?;
        }
        let prefill_s = start.elapsed().as_secs_f64();
        let cached = self.engine.stats().cached_tokens - cached_before;
        let expected = (case.depth * case.batch) as u64;
        ensure!(cached == expected, "{cached} of {expected} tokens were in the cache: this is a bug");

        let mut steps = Vec::with_capacity(case.decode);
        for _ in 0..case.decode {
            let start = Instant::now();
            self.engine.step()?;
            steps.push(start.elapsed().as_secs_f64());
            interruption.check()?;
        }
        ids.into_iter().for_each(|id| {
            self.engine.cancel(id);
        });
        Ok(Figures { prefill_s, first_token_s: first_token_sum / case.batch as f64, step_s: median(steps) })
    }
}

/// Tokens that look random, without an end.
pub fn tokens(vocab_size: usize, seed: u64) -> impl Iterator<Item = u32> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % vocab_size as u64) as u32
    })
}

#[cfg(test)]
mod tests {
    use kanana_kernels::{Cpu, CpuOptions, Format};
    use kanana_model::{LoadOptions, preset};

    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![]), 0.0);
    }

    /// Every round finds the whole depth in the cache, which has not a block to spare.
    #[test]
    fn rounds_share_the_depth() {
        let kernels = Arc::new(Cpu::new(CpuOptions { threads: Some(1), isa: None }));
        let options = LoadOptions { format: Format::BF16, max_positions: 512 };
        let config = preset("tiny").unwrap().config;
        let model = Arc::new(Transformer::random(&config, &*kernels, &options, 1).unwrap());
        let interruption = Interruption::none();
        for fill_depth in [false, true] {
            let case = Case { depth: 96, prefill: 200, decode: 20, batch: 3 };
            let setup =
                Setup { case, kv_format: KvFormat::BF16, seed: 5, fill_depth, interruption: &interruption };
            let mut bench = Bench::prepare(&model, kernels.clone(), setup).unwrap();
            for round in 0..5 {
                assert!(bench.round(round).unwrap().step_s > 0.0);
            }
        }
    }
}
