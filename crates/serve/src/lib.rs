//! An OpenAI-compatible server: HTTP in, tokens through an engine, HTTP out.
//!
//! One way through the files: `server` (sockets, TLS, signals) → `app` (keys, limits, the log) → `routes/` (one file for
//! each path) → `body` (JSON to a type, nothing dropped) → `prepare` and `sampling` (a type to a plan) → `generation`
//! (a plan to text and tool calls) → `worker` (the thread that owns the engine) → `sse`. `models` loads and lets go.
//!
//! It refuses to know kernels, files of models and flags: loaders come from outside. It alone knows tokio; the engine's
//! thread is an ordinary one. Tests: `cargo test -p kanana-serve`.

mod app;
mod auth;
mod body;
mod error;
mod generation;
mod ids;
mod logprobs;
mod metrics;
mod models;
mod neutral;
mod pace;
mod prepare;
mod routes;
mod sampling;
mod server;
mod sse;
mod usage;
mod worker;

pub use app::AppOptions;
pub use error::ServeError;
pub use models::{Capacity, Loaded, Loader, ModelSpec};
pub use server::{ServeOptions, serve, serve_until};
