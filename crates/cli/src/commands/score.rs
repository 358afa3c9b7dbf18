//! `kanana perplexity` and `kanana compare`: how well a model predicts a text, and what another storage of its weights
//! costs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use kanana_engine::{DivergenceSummary, divergences, log_likelihoods, rolling_windows};
use kanana_kernels::{Cpu, CpuOptions};
use kanana_model::Transformer;
use serde_json::json;

use super::generate::{parse_ids, read_text};
use crate::args::{DTypeChoice, MachineArgs, ModelArgs, OutputArgs, RopeArgs, positive};
use crate::budget::{self, Demand};
use crate::hints::failure;
use crate::load::Source;
use crate::output::{self, Align, Table};
use crate::progress::Progress;
use crate::text::{Text, no_tokenizer};

/// Measure how well a model predicts a text.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana perplexity --model ./checkpoint --file article.txt
  kanana perplexity --model ./checkpoint --file article.txt --dtype q4 --json

The text is cut into windows; each token is predicted once, from the tokens before it in its window. Bits per byte compare
models with different tokenizers.")]
pub struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Compare the predictions of two models, or of two storage formats of one.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana compare ./checkpoint --dtype-b q4 --file article.txt
  kanana compare ./checkpoint ./finetuned --file article.txt --json

KL is the divergence of B's next-token distribution from A's, at every position of the text.")]
pub struct CompareArgs {
    /// The model to compare with: a folder or a Hub id
    #[arg(value_name = "A")]
    a: String,

    /// The other model [default: A]
    #[arg(value_name = "B")]
    b: Option<String>,

    /// How B's weights are stored; --dtype is for A
    #[arg(long, value_enum, default_value_t = DTypeChoice::Auto)]
    dtype_b: DTypeChoice,

    #[command(flatten)]
    common: CommonArgs,
}

/// What both commands ask for.
#[derive(Args)]
struct CommonArgs {
    #[command(flatten)]
    input: InputArgs,

    #[command(flatten)]
    rope: RopeArgs,

    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// The text to predict.
#[derive(Args)]
#[command(next_help_heading = "Input")]
struct InputArgs {
    /// A text file ("-" is standard input)
    #[arg(short, long, value_name = "FILE", required_unless_present = "ids", conflicts_with = "ids")]
    file: Option<PathBuf>,

    /// A file of token ids, separated by commas or spaces, for models without a tokenizer
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,

    /// Tokens to predict in a window [default: 1024, or what the context holds]
    #[arg(long, value_name = "N", value_parser = positive)]
    window: Option<usize>,
}

/// The tokens of the input in windows, and how many bytes of text they stand for.
struct Input {
    windows: Vec<Vec<u32>>,
    tokens: usize,
    bytes: Option<usize>,
}

impl InputArgs {
    fn read(&self, source: &Source) -> Result<Input> {
        let context = source.config.context_length();
        let length = self.window.unwrap_or(1024.min(context - 1));
        if length >= context {
            return Err(failure(
                format_args!("--window {length} and the token before it do not fit a context of {context}"),
                "lower --window, or stretch the context with --yarn",
            ));
        }
        let text = Text::open(&source.dir, source.config.vocab_size, None)?;
        let (tokens, bytes) = match (&self.ids, &self.file) {
            (Some(path), _) => (parse_ids(&read_text(path)?)?, None),
            (None, path) => {
                let text = text.as_ref().ok_or_else(|| no_tokenizer(&source.dir))?;
                let content = read_text(path.as_deref().unwrap_or(Path::new("-")))?;
                (text.tokenizer.encode_plain(&content)?, Some(content.len()))
            }
        };
        if tokens.is_empty() {
            return Err(failure("the text is empty", "give a text of at least one token"));
        }
        let vocab_size = source.config.vocab_size;
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(failure(
                format_args!("token {id} is beyond the model's vocabulary of {vocab_size}"),
                "token ids of another tokenizer mean nothing to this model",
            ));
        }
        let begin = text.as_ref().and_then(|text| text.tokenizer.special_token_id("bos_token"));
        let prefix = begin.or(source.config.bos_token_id).or(source.config.eos_token_ids.first().copied());
        let prefix =
            prefix.context("neither config.json nor the tokenizer names a token that begins a text")?;
        Ok(Input { windows: rolling_windows(&tokens, prefix, length), tokens: tokens.len(), bytes })
    }
}

impl Input {
    fn longest(&self) -> usize {
        self.windows.iter().map(Vec::len).max().unwrap_or(1)
    }

    /// Calls `score` for every window, with a bar.
    fn each<T>(&self, mut score: impl FnMut(&[u32]) -> kanana_engine::Result<Vec<T>>) -> Result<Vec<T>> {
        let progress = Progress::of_windows(self.windows.len() as u64);
        let mut scores = Vec::with_capacity(self.tokens);
        for window in &self.windows {
            scores.extend(score(window)?);
            progress.inc();
        }
        Ok(scores)
    }
}

/// Loads a model for windows of a length.
fn load(
    source: &Source,
    kernels: &Cpu,
    dtype: DTypeChoice,
    length: usize,
    args: &MachineArgs,
) -> Result<Transformer> {
    let demand = Demand { context: length, least: length, sequences: 1, positions: length };
    let budget = budget::plan(&source.config, source.format(dtype)?, demand, &args.memory)?;
    source.load(kernels, &budget)
}

fn kernels(args: &MachineArgs) -> Arc<Cpu> {
    Arc::new(Cpu::new(CpuOptions { threads: Some(args.threads()), isa: None }))
}

/// Prints the score of a text.
pub fn perplexity(args: &PerplexityArgs) -> Result<()> {
    let source = Source::open(&args.model.model, &args.common.rope)?;
    let input = args.common.input.read(&source)?;
    let kernels = kernels(&args.common.machine);
    let model =
        load(&source, &kernels, args.common.machine.memory.dtype, input.longest(), &args.common.machine)?;
    let scores = input.each(|window| log_likelihoods(&model, &*kernels, window))?;

    let perplexity = kanana_engine::perplexity(scores.iter().copied());
    let per_token = perplexity.ln();
    let nats = per_token * input.tokens as f64;
    let bits_per_byte = input.bytes.map(|bytes| nats / std::f64::consts::LN_2 / bytes as f64);
    if args.common.output.json {
        return output::print_json(&json!({
            "model": source.name, "tokens": input.tokens, "bytes": input.bytes, "windows": input.windows.len(),
            "nats": nats, "nats_per_token": per_token, "perplexity": perplexity,
            "bits_per_byte": bits_per_byte,
        }));
    }
    let mut rows = vec![
        ("tokens", input.tokens.to_string()),
        ("nats per token", format!("{per_token:.4}")),
        ("perplexity", format!("{perplexity:.4}")),
    ];
    if let (Some(bytes), Some(bits)) = (input.bytes, bits_per_byte) {
        rows.insert(1, ("bytes", bytes.to_string()));
        rows.push(("bits per byte", format!("{bits:.4}")));
    }
    print_rows(rows)
}

/// Prints how far B's predictions are from A's.
pub fn compare(args: &CompareArgs) -> Result<()> {
    let a = Source::open(&args.a, &args.common.rope)?;
    let b = Source::open(args.b.as_ref().unwrap_or(&args.a), &args.common.rope)?;
    let input = args.common.input.read(&a)?;
    let kernels = kernels(&args.common.machine);
    let length = input.longest();
    let model_a = load(&a, &kernels, args.common.machine.memory.dtype, length, &args.common.machine)?;
    let model_b = load(&b, &kernels, args.dtype_b, length, &args.common.machine)?;
    let divergences = input.each(|window| divergences([&model_a, &model_b], &*kernels, window))?;

    let summary = DivergenceSummary::of(&divergences);
    let [perplexity_a, perplexity_b] = summary.perplexities;
    let ratio = perplexity_b / perplexity_a;
    if args.common.output.json {
        return output::print_json(&json!({
            "a": a.name, "b": b.name, "tokens": input.tokens, "kl_mean": summary.kl_mean,
            "kl_p99_9": summary.kl_p99_9, "top1_agreement": summary.top1_agreement,
            "perplexity_a": perplexity_a, "perplexity_b": perplexity_b, "perplexity_ratio": ratio,
        }));
    }
    print_rows([
        ("tokens", input.tokens.to_string()),
        ("KL, mean", format!("{:.3e} nats", summary.kl_mean)),
        ("KL, 99.9th percentile", format!("{:.3e} nats", summary.kl_p99_9)),
        ("same likeliest token", format!("{:.2} %", 100.0 * summary.top1_agreement)),
        ("perplexity of A", format!("{perplexity_a:.4}")),
        ("perplexity of B", format!("{perplexity_b:.4}")),
        ("ratio", format!("{ratio:.5}")),
    ])
}

fn print_rows(rows: impl IntoIterator<Item = (&'static str, String)>) -> Result<()> {
    let mut table = Table::new(&[Align::Left, Align::Right]);
    rows.into_iter().for_each(|(name, value)| table.row([name.to_string(), value]));
    output::print(&table.render())
}
