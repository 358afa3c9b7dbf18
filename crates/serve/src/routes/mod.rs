//! One file per path, or per few that belong together.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod page;
pub mod responses;
mod responses_stream;
pub mod service;
pub mod tokenize;
