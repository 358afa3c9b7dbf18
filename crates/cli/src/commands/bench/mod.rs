//! `kanana bench`: how fast a model runs here, and what share of the machine that is.

mod measure;
mod report;

use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use kanana_kernels::runtime::limits;
use kanana_kernels::{Cpu, CpuOptions, Format, Kernels};
use kanana_model::{Config, LoadOptions, Preset, Transformer, preset};

use self::measure::{Case, Figures, Setup, measure};
use self::report::{Report, Run};
use crate::args::{DTypeChoice, MemoryArgs, OutputArgs, RopeArgs, available_threads, positive, thread_count};
use crate::budget::{self, Budget, Demand};
use crate::load::{self, Source};
use crate::{memory, output};

/// Read to measure the bandwidth: larger than any cache.
const BANDWIDTH_BYTES: u64 = 1 << 30;

/// Measure prefill and decode.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana bench --random nano-2.1b --dtype bf16 --threads 2 --prefill 512 --decode 32 --json
  kanana bench --model ./checkpoint --batch 1,4,16
  kanana bench --random 1.5-15.7b-a3b --threads 1,2,4,8

Every figure is the median of --repeat runs. The speed of decoding is compared with the read bandwidth measured here, in
this process, on as many threads; the speed of prefill with the measured rate of products of numbers at hand: bf16 on the
matrix unit where there is one, else f32 multiply-adds.")]
pub struct BenchArgs {
    #[command(flatten)]
    subject: SubjectArgs,

    /// Tokens of a prompt
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "512", value_parser = positive)]
    prefill: Vec<usize>,

    /// Tokens to decode after it
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    decode: usize,

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

    #[command(flatten)]
    rope: RopeArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// What is measured.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct SubjectArgs {
    /// A checkpoint folder or a Hub id
    #[arg(short, long, value_name = "FOLDER|ID")]
    model: Option<String>,

    /// Random weights of a published shape; `kanana inspect` lists them
    #[arg(long, value_name = "PRESET")]
    random: Option<String>,
}

enum Subject {
    Checkpoint(Box<Source>),
    Random(Box<Preset>),
}

impl Subject {
    fn open(args: &BenchArgs) -> Result<Self> {
        if let Some(model) = &args.subject.model {
            return Ok(Subject::Checkpoint(Box::new(Source::open(model, &args.rope)?)));
        }
        let mut preset = preset(args.subject.random.as_deref().unwrap_or_default())?;
        preset.config = load::apply_rope(&preset.config, &args.rope)?;
        Ok(Subject::Random(Box::new(preset)))
    }

    fn name(&self) -> &str {
        match self {
            Subject::Checkpoint(source) => &source.name,
            Subject::Random(preset) => preset.name,
        }
    }

    fn config(&self) -> &Config {
        match self {
            Subject::Checkpoint(source) => &source.config,
            Subject::Random(preset) => &preset.config,
        }
    }

    fn format(&self, dtype: DTypeChoice) -> Result<Format> {
        match self {
            Subject::Checkpoint(source) => source.format(dtype),
            Subject::Random(preset) => Ok(dtype.resolve(preset.config.torch_dtype)),
        }
    }

    fn load(&self, kernels: &dyn Kernels, budget: &Budget, seed: u64) -> Result<Transformer> {
        match self {
            Subject::Checkpoint(source) => source.load(kernels, budget),
            Subject::Random(preset) => {
                let options = LoadOptions { format: budget.format, max_positions: budget.positions };
                Ok(Transformer::random(&preset.config, kernels, &options, seed)?)
            }
        }
    }
}

/// Measures and prints.
pub fn run(args: &BenchArgs) -> Result<()> {
    let subject = Subject::open(args)?;
    let format = subject.format(args.memory.dtype)?;
    let threads = if args.threads.is_empty() { vec![available_threads()] } else { args.threads.clone() };
    let cases = cases(args);
    let budget = plan(subject.config(), format, &cases, &args.memory)?;

    output::note("measuring the limits of the machine");
    let mut machine: Vec<Machine> =
        threads.iter().map(|&threads| Machine::measure(threads, format)).collect();
    memory::reset_peak();
    output::note(format_args!("preparing {} in {format}", subject.name()));
    let most = threads.iter().copied().max();
    let model =
        Arc::new(subject.load(&Cpu::new(CpuOptions { threads: most, isa: None }), &budget, args.seed)?);

    let mut runs = Vec::new();
    for limits in &machine {
        let kernels = Arc::new(Cpu::new(CpuOptions { threads: Some(limits.threads), isa: None }));
        for &case in &cases {
            output::note(format_args!("{} threads, {case}", limits.threads));
            let figures = (0..args.repeat).map(|round| {
                let seed = args.seed.wrapping_add(round as u64 + 1);
                measure(&model, kernels.clone(), Setup { case, kv_format: budget.kv_format, seed })
            });
            let figures = Figures::median(figures.collect::<Result<_>>()?);
            runs.push(Run { threads: limits.threads, case, figures });
        }
    }
    let peak_memory = memory::peak();
    drop(model);
    // Once more: what else ran on this machine meanwhile may have ended, and the limit is the best that was seen.
    machine.iter_mut().for_each(|machine| machine.measure_again(format));

    let report = Report {
        model: subject.name().to_string(),
        config: subject.config(),
        format,
        kv_format: budget.kv_format,
        isa: Cpu::new(CpuOptions { threads: Some(1), isa: None }).isa().name(),
        repeat: args.repeat,
        peak_memory,
        machine,
        runs,
    };
    match args.output.json {
        true => output::print_json(&report.to_json()),
        false => output::print(&report.to_text()),
    }
}

fn cases(args: &BenchArgs) -> Vec<Case> {
    let decode = args.decode;
    let pairs =
        args.prefill.iter().flat_map(|&prefill| args.batch.iter().map(move |&batch| (prefill, batch)));
    pairs.map(|(prefill, batch)| Case { prefill, decode, batch }).collect()
}

/// Checks that the largest case fits in memory.
fn plan(config: &Config, format: Format, cases: &[Case], args: &MemoryArgs) -> Result<Budget> {
    let most = |of: fn(&Case) -> usize| cases.iter().map(of).max().unwrap_or(1);
    let context = most(Case::context);
    let sequences = most(|case| case.batch);
    if context > config.context_length() {
        return Err(crate::hints::failure(
            format_args!(
                "the longest case needs {context} tokens, the model was made for {}",
                config.context_length()
            ),
            "lower --prefill or --decode, or stretch the context with --yarn",
        ));
    }
    let demand = Demand { context, least: context, sequences, positions: context };
    let budget = budget::plan(config, format, demand, args)?;
    let needed = context.div_ceil(budget::BLOCK_SIZE) * sequences;
    if budget.num_blocks < needed {
        return Err(crate::hints::failure(
            format_args!(
                "memory holds {} blocks of keys and values, the largest case needs {needed}",
                budget.num_blocks
            ),
            "lower --batch or --prefill",
        ));
    }
    Ok(budget)
}

/// What this machine can do at most with so many threads.
pub struct Machine {
    pub threads: usize,
    pub read_bandwidth: f64,  // bytes per second
    pub arithmetic_peak: f64, // FLOP per second, for weights of the format at hand
}

impl Machine {
    fn measure(threads: usize, format: Format) -> Self {
        let arithmetic_peak = limits::arithmetic_peak(threads, format);
        Machine { threads, read_bandwidth: bandwidth(threads), arithmetic_peak }
    }

    fn measure_again(&mut self, format: Format) {
        self.read_bandwidth = self.read_bandwidth.max(bandwidth(self.threads));
        self.arithmetic_peak = self.arithmetic_peak.max(limits::arithmetic_peak(self.threads, format));
    }
}

fn bandwidth(threads: usize) -> f64 {
    let bytes = memory::available().map_or(BANDWIDTH_BYTES, |free| BANDWIDTH_BYTES.min(free / 2));
    limits::read_bandwidth(threads, bytes as usize)
}
