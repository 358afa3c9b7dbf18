//! One file per command: its flags and what it does.

pub mod bench;
pub mod chat;
pub mod completions;
pub mod convert;
pub mod data;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod niah;
pub mod plot;
pub mod pull;
pub mod quantize;
pub mod report;
pub mod score;
pub mod serve;
pub mod tokenize;
pub mod train;
