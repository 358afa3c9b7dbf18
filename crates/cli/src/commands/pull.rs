//! `kanana pull`: a model from the Hub into the cache.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::args::OutputArgs;
use crate::hub::{Hub, Progress};
use crate::output;

/// Download a model from the Hugging Face Hub, or go on with a download that was cut.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana pull kakaocorp/kanana-1.5-2.1b-instruct-2505
  kanana pull OWNER/NAME@main --include \"*.json\"
  HF_ENDPOINT=https://mirror.example kanana pull OWNER/NAME

The cache is the one that the Python tools use: HF_HOME (by default ~/.cache/huggingface). HF_TOKEN opens gated models.
Prints the folder. Each model's own licence applies to its weights.")]
pub struct PullArgs {
    /// The model, at a branch, tag or commit if not at main
    #[arg(value_name = "OWNER/NAME[@REVISION]")]
    id: String,

    /// Fetch only files like this; * and ? are wildcards (repeatable) [default: all that this program reads]
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,

    #[command(flatten)]
    output: OutputArgs,
}

/// Downloads and prints the folder.
pub fn run(args: &PullArgs) -> Result<()> {
    let dir = Hub::from_env()?.pull(&args.id, &args.include, &Progress::on_stderr())?;
    match args.output.json {
        true => output::print_json(&json!({"model": args.id, "folder": dir})),
        false => output::println(dir.display()),
    }
}
