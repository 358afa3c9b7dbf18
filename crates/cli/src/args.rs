//! The command line: one struct per group of flags that several commands share, so that a flag means the same
//! everywhere. The flags of one command alone stand in that command's file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kanana_kernels::{Format, KvFormat};
use kanana_tensor::DType;

use crate::commands::{
    bench, chat, completions, convert, data, eval, generate, inspect, niah, plot, pull, quantize, report,
    score, serve, tokenize, train,
};

/// Runs the Kanana family of language models on this machine.
#[derive(Parser)]
#[command(
    name = "kanana",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  kanana chat --model kakaocorp/kanana-1.5-2.1b-instruct-2505
  kanana generate --model ./checkpoint --prompt \"옛날 옛적에\" --max-tokens 64
  kanana inspect nano-2.1b

Data goes to standard output, everything else to standard error. NO_COLOR is honoured.
KANANA_LOG=debug shows what the libraries do. KANANA_ISA=portable, avx2, avx512, avx512bf16 or amx
lowers the instruction set, to measure or to find a fault: `kanana bench limits` lists them. This program is independent of Kakao."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Subcommand)]
pub enum Command {
    Chat(Box<chat::ChatArgs>),
    Generate(Box<generate::GenerateArgs>),
    Serve(Box<serve::ServeArgs>),
    Inspect(inspect::InspectArgs),
    Tokenize(tokenize::TokenizeArgs),
    Pull(pull::PullArgs),
    Bench(bench::BenchArgs),
    Report(report::ReportArgs),
    Eval(Box<eval::EvalArgs>),
    Perplexity(score::PerplexityArgs),
    Compare(score::CompareArgs),
    Convert(convert::ConvertArgs),
    Quantize(quantize::QuantizeArgs),
    Train(train::TrainArgs),
    Niah(Box<niah::NiahArgs>),
    Plot(plot::PlotArgs),
    Data(data::DataArgs),
    Tokenizer(data::TokenizerArgs),
    Completions(completions::CompletionsArgs),
}

/// Which model.
#[derive(Args, Clone)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A checkpoint folder, or a Hub id OWNER/NAME[@REVISION] (downloaded once, then read from the cache), or one of the
    /// very small models that the program carries: pico, pico-base
    #[arg(short, long, value_name = "FOLDER|ID", default_value = crate::embedded::DEFAULT)]
    pub model: String,
}

/// How the rotary positions are stretched beyond the context the model was published with.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Context")]
pub struct RopeArgs {
    /// Use the published 128K setting: YaRN, factor 4.4 over 32768 positions, beta_fast 64, beta_slow 2
    #[arg(long, conflicts_with = "rope_scaling")]
    pub yarn: bool,

    /// Use the rope_scaling object of this JSON file instead of the checkpoint's
    #[arg(long, value_name = "FILE")]
    pub rope_scaling: Option<PathBuf>,
}

/// How many tokens the model sees.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Context")]
pub struct ContextArgs {
    #[command(flatten)]
    pub rope: RopeArgs,

    /// Tokens of prompt and answer together [default: what the model was made for, as far as memory goes]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_context: Option<usize>,
}

/// How much memory the run may use, and for what.
#[derive(Args, Clone)]
#[command(next_help_heading = "Machine")]
pub struct MemoryArgs {
    /// How weights are stored: auto follows the checkpoint (bf16 unless it is f32, or made by `kanana quantize`); q8 and
    /// q4 quantise them while they are loaded, to 8.06 and 4.31 bits
    #[arg(long, value_enum, default_value_t = DTypeChoice::Auto)]
    pub dtype: DTypeChoice,

    /// How cached keys and values are stored: auto is f32 beside f32 weights, else bf16; q8 takes half the memory of bf16
    #[arg(long, value_enum, default_value_t = KvDTypeChoice::Auto)]
    pub kv_dtype: KvDTypeChoice,

    /// Memory for cached keys and values, such as 2GiB [default: what the request needs]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub kv_memory: Option<u64>,

    /// Refuse to start when more memory than this would be needed [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory_limit: Option<u64>,
}

/// What of this machine the run may use.
#[derive(Args, Clone)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Threads to compute with; the results do not depend on it [default: all available cores]
    #[arg(long, value_name = "N", value_parser = thread_count)]
    pub threads: Option<usize>,
}

impl MachineArgs {
    /// The thread count asked for, else the number of cores this process may run on.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(available_threads)
    }
}

/// The number of cores this process may run on.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DTypeChoice {
    Auto,
    F32,
    Bf16,
    Q8,
    Q4,
}

impl DTypeChoice {
    /// The format to store weights in, given the checkpoint's own dtype.
    pub fn resolve(self, stored: Option<DType>) -> Format {
        match (self, stored) {
            (DTypeChoice::F32, _) | (DTypeChoice::Auto, Some(DType::F32)) => Format::F32,
            (DTypeChoice::Bf16 | DTypeChoice::Auto, _) => Format::BF16,
            (DTypeChoice::Q8, _) => Format::Q8,
            (DTypeChoice::Q4, _) => Format::Q4,
        }
    }
}

/// `--kv-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvDTypeChoice {
    Auto,
    F32,
    Bf16,
    Q8,
}

impl KvDTypeChoice {
    /// The format to store keys and values in, given that of the weights.
    pub fn resolve(self, weights: Format) -> KvFormat {
        match self {
            KvDTypeChoice::Auto => weights.kv_format(),
            KvDTypeChoice::F32 => KvFormat::F32,
            KvDTypeChoice::Bf16 => KvFormat::BF16,
            KvDTypeChoice::Q8 => KvFormat::Q8,
        }
    }
}

/// Tokens that are proposed ahead of the model and checked by it.
#[derive(Args, Clone)]
#[command(next_help_heading = "Speed")]
pub struct SpeculationArgs {
    /// Propose tokens ahead of the model, which changes the speed and nothing else: off; lookup, what followed earlier
    /// in the text, at most N tokens; draft:MODEL, a smaller model of the same tokenizer
    #[arg(long, value_name = "off|lookup[:N]|draft:MODEL", default_value = "off", value_parser = parse_speculate)]
    pub speculate: Speculate,
}

/// `--speculate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speculate {
    Off,
    /// With at most so many tokens, else the engine's default.
    Lookup(Option<usize>),
    Draft(String),
}

fn parse_speculate(text: &str) -> Result<Speculate, String> {
    match text.split_once(':') {
        None if text == "off" => Ok(Speculate::Off),
        None if text == "lookup" => Ok(Speculate::Lookup(None)),
        Some(("lookup", n)) => match n.parse() {
            Ok(n) if n > 0 => Ok(Speculate::Lookup(Some(n))),
            _ => Err(format!("lookup:{n} must name a number of tokens, at least 1")),
        },
        Some(("draft", model)) if !model.is_empty() => Ok(Speculate::Draft(model.to_string())),
        _ => Err("must be off, lookup, lookup:N or draft:MODEL".to_string()),
    }
}

/// How the next token is chosen. Where a flag is absent, the checkpoint's generation_config.json decides; where that is
/// silent too, the choice is greedy and nothing is filtered.
#[derive(Args, Clone)]
#[command(next_help_heading = "Sampling (absent flags: generation_config.json, else greedy)")]
pub struct SamplingArgs {
    /// Divide the logits by this; 0 takes the likeliest token every time
    #[arg(long, value_name = "T", value_parser = non_negative)]
    pub temperature: Option<f32>,

    /// Keep the N likeliest tokens
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,

    /// Keep the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", value_parser = probability)]
    pub top_p: Option<f32>,

    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P", value_parser = probability)]
    pub min_p: Option<f32>,

    /// Divide positive (multiply negative) logits of tokens seen so far; 1 is off
    #[arg(long, value_name = "X", value_parser = non_negative)]
    pub repetition_penalty: Option<f32>,

    /// Subtract this from the logit of every token generated so far
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,

    /// Subtract this from a token's logit for every time it was generated
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,

    /// Add V to the logit of token ID (repeatable)
    #[arg(long, value_name = "ID=V", value_parser = parse_bias, allow_hyphen_values = true)]
    pub logit_bias: Vec<(u32, f32)>,

    /// The same seed, prompt and flags give the same text [default: a fresh one, reported by --json]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Most tokens to generate [default: generation_config.json's max_new_tokens, else until the context is full]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_tokens: Option<usize>,

    /// Fewest tokens to generate before an end is allowed
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub min_tokens: usize,

    /// End before this text appears (repeatable)
    #[arg(long, value_name = "TEXT", value_parser = not_empty)]
    pub stop: Vec<String>,

    /// End when this token is chosen (repeatable)
    #[arg(long, value_name = "ID")]
    pub stop_token_id: Vec<u32>,

    /// Do not end at the model's own end tokens
    #[arg(long)]
    pub ignore_eos: bool,
}

/// What is printed.
#[derive(Args, Clone, Copy)]
pub struct OutputArgs {
    /// Print JSON to standard output
    #[arg(long)]
    pub json: bool,
}

/// A whole number of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(e) => Err(e.to_string()),
    }
}

/// More threads than this are a slip of the finger, and starting them would fail half-way.
const MAX_THREADS: usize = 1024;

/// A number of threads.
pub fn thread_count(text: &str) -> Result<usize, String> {
    match positive(text)? {
        n if n > MAX_THREADS => {
            Err(format!("at most {MAX_THREADS}; more than the machine has cores slows it down"))
        }
        n => Ok(n),
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("an empty text would end every answer".into()) } else { Ok(text.into()) }
}

fn non_negative(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        Ok(x) => Err(format!("{x} is not a finite number of at least 0")),
        Err(e) => Err(e.to_string()),
    }
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        Ok(x) => Err(format!("{x} is not between 0 and 1")),
        Err(e) => Err(e.to_string()),
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, value) = text.split_once('=').ok_or("expected ID=VALUE, such as 128009=-5")?;
    let id = id.trim().parse().map_err(|e| format!("token id {id:?}: {e}"))?;
    match value.trim().parse::<f32>() {
        Ok(bias) if bias.is_finite() => Ok((id, bias)),
        _ => Err(format!("bias {value:?} is not a finite number")),
    }
}

/// A size in bytes: `1500`, `2GiB`, `2G` (binary as well), `1.5GB` (decimal).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a size such as 2GiB"))?;
    let scale: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        other => return Err(format!("{other:?} is not a unit of size (KiB, MiB, GiB, KB, MB, GB)")),
    };
    Ok((number * scale) as u64)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(|h| h.to_string()).unwrap_or_default();
            assert!(help.contains(&format!("kanana {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn sizes() {
        let check =
            |text: &str, expected: Option<u64>| assert_eq!(parse_bytes(text).ok(), expected, "{text}");
        check("1500", Some(1500));
        check("2GiB", Some(2 << 30));
        check("2g", Some(2 << 30));
        check("1.5 GB", Some(1_500_000_000));
        check("0.5k", Some(512));
        check("", None);
        check("GiB", None);
        check("2 parsecs", None);
        check("-1", None);
    }

    #[test]
    fn threads_and_stops() {
        assert_eq!(thread_count("1024"), Ok(1024));
        for refused in ["0", "1025", "-1", "two"] {
            assert!(thread_count(refused).is_err(), "{refused}");
        }
        assert_eq!(not_empty(" "), Ok(" ".into()));
        assert!(not_empty("").is_err());
    }

    #[test]
    fn biases() {
        assert_eq!(parse_bias("7=-2.5"), Ok((7, -2.5)));
        assert!(parse_bias("7").is_err());
        assert!(parse_bias("x=1").is_err());
        assert!(parse_bias("7=-inf").is_err());
    }

    #[test]
    fn dtype_follows_the_checkpoint() {
        assert_eq!(DTypeChoice::Auto.resolve(Some(DType::F32)), Format::F32);
        assert_eq!(DTypeChoice::Auto.resolve(Some(DType::F16)), Format::BF16);
        assert_eq!(DTypeChoice::Auto.resolve(None), Format::BF16);
        assert_eq!(DTypeChoice::F32.resolve(Some(DType::BF16)), Format::F32);
    }
}
