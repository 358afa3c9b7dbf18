//! Small random models, what is asked of them, and the means to run them.

#![allow(dead_code, reason = "each test binary uses its part of this")]

pub mod dice;

use std::collections::BTreeMap;
use std::sync::Arc;

use kanana_checkpoint::{Checkpoint, CheckpointError, SaveOptions, TensorSpec, save};
use kanana_engine::{Engine, EngineOptions, FinishReason, Logprobs, Request, SamplingParams, SequenceId};
use kanana_kernels::{Cpu, CpuOptions, Format, Kernels, KvFormat};
use kanana_model::{Config, LoadOptions, Transformer, expected_tensors};
use kanana_tensor::{DType, Tensor};

/// One model on one machine, with keys and values stored in one way.
pub struct World {
    pub name: &'static str,
    pub model: Arc<Transformer>,
    pub kernels: Arc<dyn Kernels>,
    pub kv_format: KvFormat,
}

/// The token that [`World::poisoned`] cannot bear.
pub const POISON: u32 = 7;

/// What the weights of all worlds are drawn from.
pub const SEED: u64 = 11;

const MAX_CONTEXT: usize = 96;

const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 52, "vocab_size": 61, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128, "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2}"#;

const MIXTURE: &str = r#"{"model_type": "mixtral", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24, "vocab_size": 61, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128, "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu",
    "num_local_experts": 5, "num_experts_per_tok": 2, "bos_token_id": 1, "eos_token_id": 2}"#;

fn world(name: &'static str, config: &str, weights: DType, kv_format: KvFormat) -> World {
    let kernels: Arc<dyn Kernels> =
        Arc::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }));
    let config = Config::from_json_str(config, name).unwrap();
    let model = Transformer::random(&config, &*kernels, &load_options(weights), SEED).unwrap();
    let model = model.with_kv_format(kv_format);
    World { name, model: Arc::new(model), kernels, kv_format }
}

fn cpu(threads: usize) -> Arc<dyn Kernels> {
    Arc::new(Cpu::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }))
}

pub fn load_options(dtype: DType) -> LoadOptions {
    let format = if dtype == DType::F32 { Format::F32 } else { Format::BF16 };
    LoadOptions { format, max_positions: MAX_CONTEXT }
}

/// Dense in f32, dense in bf16, the same with a cache of 8 bits, and a mixture of experts.
pub fn worlds() -> Vec<World> {
    vec![
        world("llama f32", LLAMA, DType::F32, KvFormat::F32),
        world("llama bf16", LLAMA, DType::BF16, KvFormat::BF16),
        world("llama bf16, cache q8", LLAMA, DType::BF16, KvFormat::Q8),
        world("mixture f32", MIXTURE, DType::F32, KvFormat::F32),
    ]
}

/// `n` token ids that look random, none of them a special one.
pub fn prompt(seed: u64, n: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        8 + (state >> 33) as u32 % 53
    };
    (0..n).map(|_| next()).collect()
}

/// Prompts of awkward lengths, some with a common beginning, under awkward sampling parameters; log-probabilities of
/// every token are part of what is compared.
pub fn requests() -> Vec<Request> {
    let params = |json: &str| SamplingParams { logprobs: Some(3), ..serde_json::from_str(json).unwrap() };
    let common = prompt(1, 37);
    let beginning = |n: usize, seed| [&common[..n], &prompt(seed, 5)[..]].concat();
    vec![
        Request { prompt: prompt(2, 1), params: params(r#"{"temperature": 0, "max_tokens": 20}"#) },
        Request { prompt: common.clone(), params: params(r#"{"seed": 5, "max_tokens": 17}"#) },
        Request { prompt: beginning(32, 3), params: params(r#"{"seed": 6, "top_p": 0.9, "max_tokens": 9}"#) },
        Request {
            prompt: beginning(33, 4),
            params: params(r#"{"seed": 7, "temperature": 2.5, "repetition_penalty": 1.3, "max_tokens": 25}"#),
        },
        Request {
            prompt: prompt(5, 16),
            params: params(
                r#"{"temperature": 0, "frequency_penalty": 0.1, "max_tokens": 12, "prompt_logprobs": 2}"#,
            ),
        },
        Request { prompt: common, params: params(r#"{"seed": 5, "max_tokens": 17, "prompt_logprobs": 1}"#) },
        Request {
            prompt: prompt(6, 50),
            params: params(r#"{"seed": 8, "min_p": 0.2, "top_k": 30, "max_tokens": 3}"#),
        },
    ]
}

/// Every request by itself, in an engine of its own that knows no prefix.
pub fn alone(world: &World) -> Vec<Answer> {
    let options = EngineOptions { prefix_cache: false, ..world.options() };
    requests().into_iter().map(|request| world.engine(options.clone()).answer(request)).collect()
}

impl World {
    /// Room for everything that the tests ask for at once.
    pub fn options(&self) -> EngineOptions {
        EngineOptions { num_blocks: 64, ..EngineOptions::for_context(MAX_CONTEXT, self.kv_format) }
    }

    /// The same model on that many threads.
    pub fn with_threads(&self, threads: usize) -> World {
        World { model: self.model.clone(), kernels: cpu(threads), ..*self }
    }

    /// A random model of the same shape; with the seed [`SEED`] and the same weights it is the same model.
    pub fn draft(&self, weights: DType, seed: u64) -> Arc<Transformer> {
        let model = Transformer::random(&self.model.config, &*self.kernels, &load_options(weights), seed);
        Arc::new(model.unwrap())
    }

    /// A model of the same shape that has NaN for the embedding of [`POISON`], loaded from a damaged checkpoint.
    pub fn poisoned(self) -> World {
        let config = &self.model.config;
        let spec = |(name, shape)| TensorSpec { name, shape, dtype: DType::F32 };
        let specs: Vec<TensorSpec> = expected_tensors(config).into_iter().map(spec).collect();
        let fetch = |name: &str| {
            let spec = specs.iter().find(|spec| spec.name == name).unwrap();
            let mut values: Vec<f32> = prompt(name.len() as u64, spec.shape.iter().product())
                .into_iter()
                .map(|id| (id as f32 - 34.0) / 60.0)
                .collect();
            if name == "model.embed_tokens.weight" {
                values[POISON as usize * spec.shape[1]..][..spec.shape[1]].fill(f32::NAN);
            }
            Ok::<_, CheckpointError>(Tensor::from_slice(&spec.shape, &values).unwrap())
        };
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &specs, fetch, &SaveOptions::default()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let model =
            Transformer::load(&checkpoint, config, &*self.kernels, &load_options(DType::F32)).unwrap();
        World { model: Arc::new(model), ..self }
    }

    pub fn engine(&self, options: EngineOptions) -> Running {
        let engine = Engine::new(self.model.clone(), self.kernels.clone(), options).unwrap();
        Running { engine, answers: BTreeMap::new() }
    }
}

/// All that a sequence got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<Logprobs>,
    pub prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    pub finished: Option<FinishReason>,
}

/// An engine and what it has said.
pub struct Running {
    pub engine: Engine,
    pub answers: BTreeMap<SequenceId, Answer>,
}

impl Running {
    pub fn step(&mut self) {
        for output in self.engine.step().unwrap() {
            let answer = self.answers.entry(output.id).or_default();
            assert_eq!(answer.finished, None, "an output after the last one");
            answer.tokens.extend(output.token);
            answer.logprobs.extend(output.logprobs);
            answer.prompt_logprobs = answer.prompt_logprobs.take().or(output.prompt_logprobs);
            answer.finished = output.finished;
        }
    }

    /// Steps until nothing is left, which must come, and leave no block behind.
    pub fn finish(&mut self) {
        for _ in 0..5_000 {
            if self.engine.is_idle() {
                let stats = self.engine.stats();
                assert_eq!((stats.running, stats.waiting, stats.free_blocks), (0, 0, stats.num_blocks));
                return;
            }
            self.step();
        }
        panic!("not finished after 5,000 steps: {:?}", self.engine.stats());
    }

    pub fn answers(&mut self, requests: Vec<Request>) -> Vec<Answer> {
        let ids: Vec<_> = requests.into_iter().map(|request| self.engine.add(request).unwrap()).collect();
        self.finish();
        ids.into_iter().map(|id| self.answers.remove(&id).unwrap()).collect()
    }

    pub fn answer(&mut self, request: Request) -> Answer {
        self.answers(vec![request]).remove(0)
    }
}
