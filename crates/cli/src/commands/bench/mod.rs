//! `kanana bench`: how fast a model runs here, what share of the machine that is, and how fast a server is under load.

mod interruption;
mod limits;
mod llama_bench;
mod load;
mod machine;
mod measure;
mod peers;
mod report;
mod subject;

use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Subcommand};
use kanana_kernels::runtime::Isa;
use kanana_kernels::{Cpu, CpuOptions, Format};
use kanana_model::{Config, Transformer};

use self::interruption::Interruption;
use self::machine::Machine;
use self::measure::{Bench, Case, Figures, Setup};
use self::peers::{PeerRates, Peers};
use self::report::{Report, Run};
use self::subject::{Subject, SubjectArgs};
use crate::args::{MemoryArgs, OutputArgs, RopeArgs, available_threads, positive, thread_count};
use crate::budget::{self, BLOCK_SIZE, Budget, Demand};
use crate::hints::failure;
use crate::{memory, output};

/// Measure prefill and decode.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  kanana bench --random nano-2.1b --dtype bf16 --threads 2 --prefill 512 --decode 32 --json
  kanana bench --model ./checkpoint --batch 1,4,16
  kanana bench --random 1.5-15.7b-a3b --threads 1,2,4,8
  kanana bench --random 1.5-2.1b --yarn --dtype q4 --depth 0,8192,65536 --fill-depth --repeat 1
  kanana bench --random nano-2.1b --dtype q4 --compare llama-bench
  kanana bench limits
  kanana bench load http://127.0.0.1:8000

Every figure is the median of --repeat runs. Decoding is compared with the read bandwidth measured
here, in this process, on as many threads; prefill with the measured rate of the unit that
multiplies with weights of this format: bf16 on tiles (AMX) or in vectors (AVX512_BF16) where there
are such, else in f32; quantised weights in 8-bit integers. With --compare, llama-bench gets a GGUF
file of the same weights in the nearest type and runs in turns with us; the file is temporary,
unless --model is one."
)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,

    #[command(flatten)]
    subject: SubjectArgs,

    /// Tokens of a prompt
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "512", value_parser = positive)]
    prefill: Vec<usize>,

    /// Tokens to decode after it
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    decode: usize,

    /// Tokens of context before the prompt, computed before the clock starts; rounded up to whole blocks of 16
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "0", value_parser = whole_blocks)]
    depth: Vec<usize>,

    /// Fill the cache of --depth with random keys and values instead of computing them, which would take hours for a
    /// hundred thousand tokens: the same work follows, on other numbers
    #[arg(long, requires = "depth")]
    fill_depth: bool,

    /// Sequences at once
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1", value_parser = positive)]
    batch: Vec<usize>,

    /// Threads to compute with [default: all available cores]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = thread_count)]
    threads: Vec<usize>,

    /// How often to measure
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    repeat: usize,

    /// The random weights and prompts follow from it
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Measure llama.cpp on the same weights too: the path of its llama-bench, or the name of it on $PATH
    #[arg(long, value_name = "PROGRAM")]
    compare: Option<String>,

    #[command(flatten)]
    rope: RopeArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand)]
enum BenchCommand {
    Limits(limits::LimitsArgs),
    Load(Box<load::LoadArgs>),
}

/// Measures and prints.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.command {
        Some(BenchCommand::Limits(args)) => return limits::run(args),
        Some(BenchCommand::Load(args)) => return load::run(args),
        None => {}
    }
    let subject = Subject::open(&args.subject, &args.rope)?;
    let format = subject.format(args.memory.dtype)?;
    let threads = if args.threads.is_empty() { vec![available_threads()] } else { args.threads.clone() };
    let cases = cases(args);
    let budget = plan(subject.config(), format, &cases, &args.memory)?;
    let isa = Isa::chosen()?;
    let (mut peers, interruption) = match &args.compare {
        Some(program) if args.batch == [1] => {
            let interruption = Interruption::noted()?;
            (Some(Peers::prepare(program, &subject, format, args.seed, &interruption)?), interruption)
        }
        Some(_) => return Err(failure("llama-bench runs one sequence", "leave out --batch, or --compare")),
        None => (None, Interruption::none()),
    };

    output::note("measuring the limits of the machine");
    let mut machine: Vec<Machine> =
        threads.iter().map(|&threads| Machine::measure(threads, isa, format)).collect();
    memory::reset_peak();
    output::note(format_args!("preparing {} in {format}", subject.name()));
    let most = threads.iter().copied().max();
    let loading = Cpu::new(CpuOptions { threads: most, isa: None });
    let model = Arc::new(subject.load(&loading, &budget, args.seed)?);
    drop(loading);

    let mut runs = Vec::new();
    for limits in &machine {
        for &case in &cases {
            output::note(format_args!("{} threads, {case}", limits.threads));
            let (kv_format, seed, fill_depth) = (budget.kv_format, args.seed, args.fill_depth);
            let setup = Setup { case, kv_format, seed, fill_depth, interruption: &interruption };
            runs.push(run_case(&model, limits.threads, setup, (args.repeat, peers.as_mut()))?);
        }
    }
    let peak_memory = memory::peak();
    drop(model);
    // Once more: what else ran on this machine meanwhile may have ended, and the limit is the best that was seen.
    machine.iter_mut().for_each(|machine| machine.measure_again(isa));

    let report = Report {
        model: subject.name().to_string(),
        config: subject.config(),
        format,
        kv_format: budget.kv_format,
        isa: isa.name(),
        repeat: args.repeat,
        fill_depth: args.fill_depth,
        peak_memory,
        machine,
        runs,
        peers,
    };
    match args.output.json {
        true => output::print_json(&report.to_json()),
        false => output::print(&report.to_text()),
    }
}

/// Runs a case so many times, in turns with the peers.
fn run_case(
    model: &Arc<Transformer>,
    threads: usize,
    setup: Setup<'_>,
    (repeat, mut peers): (usize, Option<&mut Peers>),
) -> Result<Run> {
    let Setup { case, seed, interruption, .. } = setup;
    let kernels = Arc::new(Cpu::new(CpuOptions { threads: Some(threads), isa: None }));
    let mut bench = Bench::prepare(model, kernels, setup)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=repeat as u64 {
        ours.push(bench.round(seed.wrapping_add(round))?);
        if let Some(peers) = peers.as_deref_mut() {
            theirs.push(peers.round(threads, &case, interruption)?);
        }
    }
    let files = theirs.first().map_or(0, Vec::len);
    let of_file = |i| PeerRates::median(&theirs.iter().map(|round| round[i]).collect::<Vec<_>>());
    Ok(Run { threads, case, figures: Figures::median(&ours), peers: (0..files).map(of_file).collect() })
}

fn cases(args: &BenchArgs) -> Vec<Case> {
    let mut cases = Vec::new();
    for &depth in &args.depth {
        for &prefill in &args.prefill {
            cases.extend(args.batch.iter().map(|&batch| Case { depth, prefill, decode: args.decode, batch }));
        }
    }
    cases
}

/// A number of tokens, rounded up to whole blocks of the cache.
fn whole_blocks(text: &str) -> Result<usize, String> {
    let tokens: u32 = text.parse().map_err(|e: std::num::ParseIntError| e.to_string())?;
    Ok((tokens as usize).next_multiple_of(BLOCK_SIZE))
}

/// Checks that the largest case fits in memory.
fn plan(config: &Config, format: Format, cases: &[Case], args: &MemoryArgs) -> Result<Budget> {
    let most = |of: fn(&Case) -> usize| cases.iter().map(of).max().unwrap_or(1);
    let context = most(Case::context);
    let sequences = most(|case| case.batch);
    if context > config.context_length() {
        return Err(failure(
            format_args!(
                "the longest case needs {context} tokens, the model was made for {}",
                config.context_length()
            ),
            "lower --depth, --prefill or --decode, or stretch the context with --yarn",
        ));
    }
    let demand = Demand { context, least: context, sequences, positions: context };
    let budget = budget::plan(config, format, demand, args)?;
    let needed = most(|case| case.context().div_ceil(BLOCK_SIZE) * case.batch);
    if budget.num_blocks < needed {
        return Err(failure(
            format_args!(
                "memory holds {} blocks of keys and values, the largest case needs {needed}",
                budget.num_blocks
            ),
            "lower --batch, --depth or --prefill",
        ));
    }
    Ok(budget)
}
