//! Generation for many sequences at once: token ids in, token ids out.
//!
//! [`Engine::add`] queues a [`Request`]; every [`Engine::step`] runs the transformer once over a mixed batch of prompt
//! chunks and newest tokens and hands back what each sequence got. One way through the files: `engine` → `scheduler`
//! (which tokens run; on `block_pool`, the paged KV cache's book-keeping) → `runner` (one forward pass) → `sampler` →
//! `sequence`.
//!
//! It refuses to know text, HTTP, files and threads: stop strings are the caller's, who calls [`Engine::cancel`], and
//! so are several samples of one prompt, which are several requests that share their prefix through the cache.
//!
//! What a sequence gets never depends on its neighbours, on chunking, on the prefix cache or on preemption, to the
//! last bit: `tests/laws.rs`. Tests: `cargo test -p kanana-engine`.

mod block_pool;
mod engine;
mod error;
mod logprobs;
mod request;
mod runner;
mod sampler;
mod scheduler;
mod sequence;

pub use engine::{Engine, EngineOptions, Stats};
pub use error::{EngineError, Result};
pub use logprobs::{Logprobs, TokenLogprob};
pub use request::{Request, SamplingParams};
pub use sequence::{FinishReason, SequenceError, SequenceId, StepOutput};
