//! Generation for many sequences at once: token ids in, token ids out.
//!
//! [`Engine::add`] queues a [`Request`]; every [`Engine::step`] runs the transformer once over a mixed batch of prompt
//! chunks and newest tokens and hands back what each sequence got. One way through the files: `engine` → `scheduler`
//! (which tokens run; on `block_pool`, the paged KV cache's book-keeping) → `runner` (one forward pass) → `sampler` →
//! `sequence`. Before the pass `speculation` may propose tokens to compute on trial (`prompt_lookup`, or a draft model;
//! `pace` says how many). A request may come with a `constraint`, a grammar that its answer must fit
//! ([`Engine::add_constrained`]); the masks of allowed tokens are computed while the pass runs.
//!
//! It refuses to know text beyond the bytes of tokens, HTTP and files: stop strings are the caller's, who calls [`Engine::cancel`], and
//! so are several samples of one prompt, which are several requests that share their prefix through the cache.
//!
//! What a sequence gets never depends on its neighbours, on chunking, on the prefix cache, on preemption or on
//! speculation, to the last bit: `tests/laws.rs`, `tests/speculation.rs`, `tests/constraints.rs`. Tests: `cargo test -p kanana-engine`.

mod block_pool;
mod constraint;
mod embedding;
mod engine;
mod error;
mod logprobs;
mod pace;
mod prompt_lookup;
mod request;
mod runner;
mod sampler;
mod scheduler;
mod scoring;
mod sequence;
mod speculation;

pub use constraint::{Constraint, Grammar, Vocabulary};
pub use embedding::{EmbeddingInput, Pooling};
pub use engine::{Engine, EngineOptions, Stats};
pub use error::{EngineError, Result};
pub use logprobs::{Logprobs, TokenLogprob};
pub use request::{Request, SamplingParams};
pub use scoring::{Divergence, DivergenceSummary, divergences, log_likelihoods, perplexity, rolling_windows};
pub use sequence::{FinishReason, SequenceError, SequenceId, StepOutput};
pub use speculation::Speculation;
