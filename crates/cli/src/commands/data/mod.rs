//! `kanana data`, `kanana tokenizer`: from corpora to what training reads.

mod shard;
mod tokenizer;

use anyhow::Result;
use clap::{Args, Subcommand};

pub use tokenizer::TokenizerArgs;

/// Prepare corpora for training.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana data shard --tokenizer tokenizer --input ko.jsonl.zst --out shards/ko")]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    Shard(shard::ShardArgs),
}

/// `kanana data`.
pub fn run(args: &DataArgs) -> Result<()> {
    match &args.command {
        DataCommand::Shard(args) => shard::run(args),
    }
}

/// `kanana tokenizer`.
pub fn run_tokenizer(args: &TokenizerArgs) -> Result<()> {
    tokenizer::run(args)
}
