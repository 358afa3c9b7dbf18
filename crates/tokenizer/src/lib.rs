//! Text on one side, token ids on the other: tokenizer, chat templates, streaming text.
//!
//! - [`Tokenizer`]: `tokenizer.json` (or the original Llama 3 `tokenizer.model`) to token ids and back.
//! - [`TextStream`]: token ids in, whole characters out, equal to decoding everything at once.
//! - [`StopStrings`]: ends a stream of text at the first stop string, across token boundaries.
//! - [`ChatTemplate`]: a conversation to the one string the model was trained on, as transformers renders it.
//! - [`tools`]: function calls in an answer: read from the stream, and the grammar that makes them valid.
//!
//! It knows nothing of tensors, models, engines or HTTP. Files it reads are untrusted: every broken one is a
//! [`TokenizerError`], and a hostile template runs out of fuel, never out of the caller's patience.
//! Tests: `cargo test -p kanana-tokenizer`.

mod error;
mod message;
mod stop;
mod stream;
mod template;
pub mod tiktoken;
mod tokenizer;
pub mod tools;
pub mod train;

pub use error::{Result, TokenizerError};
pub use message::Message;
pub use stop::{Released, StopStrings};
pub use stream::TextStream;
pub use template::{ChatRequest, ChatTemplate, DEFAULT_SYSTEM_PROMPT, Ending, Origin, render_sample};
pub use tokenizer::{Specials, Tokenizer};
