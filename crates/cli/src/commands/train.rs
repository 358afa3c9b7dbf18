//! `kanana train`: a recipe becomes a model.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use kanana_engine::{Engine, EngineOptions, Request, SamplingParams};
use kanana_kernels::runtime::limits::{self, Unit};
use kanana_kernels::{Cpu, CpuOptions, Format, Kernels};
use kanana_model::cost;
use kanana_tokenizer::{ChatRequest, ChatTemplate, Message, Specials, Tokenizer};
use kanana_train::recipe::{Precision, ReportRecipe};
use kanana_train::{Evaluation, Recipe, StepReport, Trainer, checkpoints};
use serde_json::{Map, Value, json};

use crate::args::{available_threads, thread_count};
use crate::hints::failure;
use crate::output::{self, Style};
use crate::signals::EXIT_INTERRUPTED;
use crate::{disk, memory, progress};

/// Train a model, or adapt one, as a recipe says.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana train recipe.toml
  kanana train recipe.toml --resume
  kanana train recipe.toml --stop-after 100

A recipe is one TOML file; recipes/ has some, and docs/training.md says what each key means. Checkpoints are Hugging Face
folders below the recipe's output, with what is needed to go on beside the weights. Ctrl-C and SIGTERM finish the step and
save; --resume goes on with the same bits. metrics.jsonl holds a line for every step: `kanana plot` draws it.")]
pub struct TrainArgs {
    /// The recipe
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,

    /// Go on from the newest checkpoint of the recipe's output
    #[arg(long)]
    resume: bool,

    /// Save and stop after so many steps of this run
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    stop_after: Option<u64>,

    /// Threads to compute with; the results do not depend on it [default: all available cores]
    #[arg(long, value_name = "N", value_parser = thread_count)]
    threads: Option<usize>,
}

const METRICS: &str = "metrics.jsonl";

pub fn run(args: &TrainArgs) -> Result<ExitCode> {
    let recipe = Recipe::from_file(&args.recipe)?;
    let saved = checkpoints(&recipe.output)?;
    let resume = match (args.resume, saved.last()) {
        (true, Some(newest)) => Some(newest.clone()),
        (true, None) => {
            let message = format!("{} has no checkpoint to resume from", recipe.output.display());
            return Err(failure(message, "leave out --resume to start the run"));
        }
        (false, Some(newest)) => {
            let message = format!("{} is there: the run was begun", newest.display());
            return Err(failure(message, "go on with --resume, or name another output in the recipe"));
        }
        (false, None) => None,
    };
    let threads = args.threads.unwrap_or_else(available_threads);
    let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: None });
    let isa = cpu.isa();
    let kernels: Arc<dyn Kernels> = Arc::new(cpu);
    std::fs::create_dir_all(&recipe.output).with_context(|| recipe.output.display().to_string())?;
    let mut trainer = Trainer::new(recipe.clone(), &*kernels, resume.as_deref())?;
    check_space(&trainer)?;
    let stop = stop_flag()?;
    let mut log = Log::open(&recipe.output.join(METRICS), trainer.steps())?;
    let format = if recipe.model.precision == Precision::F32 { Format::F32 } else { Format::BF16 };
    let peak = limits::peak(threads, isa, Unit::of(isa, format)).reachable();
    let shown = Shown {
        all: recipe.steps(),
        peak,
        // Forward once, backward twice that; of a frozen model the weights have no gradients.
        flops: cost::flops_per_token(trainer.config(), recipe.step.sequence_length / 2) as f64
            * if recipe.lora.is_some() { 2.0 } else { 3.0 },
        bar: progress::Progress::of_steps(recipe.steps()),
        started: Instant::now(),
        first: trainer.steps(),
    };
    shown.begin(&trainer);
    let sampler = Sampler::open(&recipe)?;
    let mut last_saved = trainer.steps();
    while !trainer.is_done() {
        let began = Instant::now();
        let report = trainer.step()?;
        let seconds = began.elapsed().as_secs_f64();
        let step = report.step;
        let due = |every: u64| step % every == 0 || step == recipe.steps();
        let evaluation =
            if due(recipe.report.evaluate_every) { trainer.evaluate()? } else { BTreeMap::new() };
        log.write(&shown.metrics(&report, seconds, &evaluation))?;
        shown.step(&report, seconds, &evaluation);
        if due(recipe.report.sample_every)
            && let Some(sampler) = &sampler
        {
            let samples = sampler.samples(trainer.model()?, &kernels)?;
            shown.samples(&recipe.report, &samples);
            log.write(&json!({"step": step, "samples": samples}))?;
        }
        let stopped = stop.load(Ordering::SeqCst);
        let enough = args.stop_after.is_some_and(|n| step - shown.first >= n);
        if due(recipe.checkpoints.every) || stopped || enough {
            let place = trainer.save()?;
            last_saved = step;
            shown.note(format_args!("saved {}", place.display()));
        }
        if (stopped || enough) && !trainer.is_done() {
            shown.note(format_args!("stopped after step {step}; go on with --resume"));
            return Ok(if stopped { ExitCode::from(EXIT_INTERRUPTED) } else { ExitCode::SUCCESS });
        }
    }
    if last_saved < trainer.steps() {
        trainer.save()?;
    }
    drop(shown);
    if let Some(newest) = checkpoints(&recipe.output)?.last() {
        output::println(newest.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a run whose checkpoints do not fit on the disk: it would end in hours, not now.
fn check_space(trainer: &Trainer<'_>) -> Result<()> {
    let (folder, needed) = (&trainer.recipe().output, trainer.space_needed()?);
    match disk::free_space(folder) {
        Some(free) if free < needed => {
            let message = format!(
                "{}: the checkpoints of this run need {} more, and {} are free",
                folder.display(),
                output::bytes(needed),
                output::bytes(free)
            );
            let hint = "lower checkpoints.keep, name an output on another disk, or free some space; \
                        optimizer.state = \"bf16\" makes every checkpoint smaller";
            Err(failure(message, hint))
        }
        _ => Ok(()),
    }
}

/// Set by Ctrl-C and SIGTERM; a second one ends the program.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// The metrics of a run, a line for every step.
struct Log(File, PathBuf);

impl Log {
    /// Opens it for the steps after `step`; what a killed run wrote beyond its last checkpoint is taken off.
    fn open(path: &Path, step: u64) -> Result<Self> {
        let mut kept = Vec::new();
        if let Ok(file) = File::open(path) {
            for line in BufReader::new(file).lines().map_while(|line| line.ok()) {
                let parsed: Option<Value> = serde_json::from_str(&line).ok();
                if parsed.is_some_and(|value| value["step"].as_u64().is_some_and(|at| at <= step)) {
                    kept.push(line + "\n");
                }
            }
        }
        let told = || path.display().to_string();
        std::fs::write(path, kept.concat()).with_context(told)?;
        Ok(Log(OpenOptions::new().append(true).open(path).with_context(told)?, path.to_owned()))
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes()).with_context(|| self.1.display().to_string())
    }
}

/// What is shown of a run.
struct Shown {
    all: u64,
    /// FLOP/s this machine reaches.
    peak: f64,
    /// FLOPs of a token, forward and backward.
    flops: f64,
    bar: progress::Progress,
    started: Instant,
    /// Steps done before this run.
    first: u64,
}

impl Shown {
    fn begin(&self, trainer: &Trainer<'_>) {
        let stages: Vec<String> = trainer
            .recipe()
            .stages
            .iter()
            .map(|stage| format!("{} ({} steps)", stage.name, stage.steps))
            .collect();
        self.note(format_args!(
            "{} parameters are learnt; stages: {}; this machine reaches {:.0} GFLOP/s",
            output::count(trainer.parameters().count()),
            stages.join(", "),
            self.peak / 1e9
        ));
        if self.first > 0 {
            self.note(format_args!("goes on after step {}", self.first));
        }
    }

    fn note(&self, text: impl std::fmt::Display) {
        self.bar.suspend(|| output::note(text));
    }

    fn metrics(&self, report: &StepReport, seconds: f64, evaluation: &BTreeMap<String, Evaluation>) -> Value {
        let mut line = serde_json::to_value(report).unwrap_or_default();
        let rate = self.rate(report, seconds);
        let more = [
            ("tokens_per_second", json!(rate)),
            ("mfu", json!(rate * self.flops / self.peak)),
            ("seconds", json!(self.started.elapsed().as_secs_f64())),
            ("memory_bytes", json!(memory::peak())),
        ];
        if let Some(fields) = line.as_object_mut() {
            fields.extend(more.map(|(key, value)| (key.to_owned(), value)));
            if !evaluation.is_empty() {
                fields.insert("eval".to_owned(), json!(evaluation));
            }
        }
        line
    }

    fn rate(&self, report: &StepReport, seconds: f64) -> f64 {
        report.batch_tokens as f64 / seconds
    }

    /// One line for a step; on a terminal the bar stays below.
    fn step(&self, report: &StepReport, seconds: f64, evaluation: &BTreeMap<String, Evaluation>) {
        let rate = self.rate(report, seconds);
        let done = report.step - self.first;
        let left = self.started.elapsed().as_secs_f64() / done as f64 * (self.all - report.step) as f64;
        let style = Style::stderr();
        let mut line = format!(
            "{:>width$}/{}  loss {}{:.4}{}  grad {:.2}  lr {:.2e}  {:.0} tok/s  MFU {:.0} %  {}  {} left",
            report.step,
            self.all,
            style.bold(),
            report.loss,
            style.reset(),
            report.grad_norm,
            report.lr,
            rate,
            100.0 * rate * self.flops / self.peak,
            output::bytes(memory::peak().unwrap_or(0)),
            clock(left),
            width = self.all.to_string().len(),
        );
        for (name, evaluation) in evaluation {
            line += &format!(
                "  {}{name} {:.4} bits/byte{}",
                style.cyan(),
                evaluation.bits_per_byte,
                style.reset()
            );
        }
        if report.skipped > 0 {
            line += &format!("  {}{} left out{}", style.red(), report.skipped, style.reset());
        }
        self.bar.set(report.step);
        self.note(line);
    }

    fn samples(&self, report: &ReportRecipe, samples: &Map<String, Value>) {
        let style = Style::stderr();
        for prompt in &report.prompts {
            let answer = samples.get(prompt).and_then(Value::as_str).unwrap_or_default();
            self.note(format_args!(
                "    {}{prompt}{} {}",
                style.dim(),
                style.reset(),
                answer.replace('\n', "⏎")
            ));
        }
    }
}

/// Hours, minutes, seconds.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Lets the model go on from the recipe's prompts.
struct Sampler {
    tokenizer: Tokenizer,
    prompts: Vec<(String, Vec<u32>)>,
    tokens: usize,
    context: usize,
    format: Format,
    stop: Vec<u32>,
}

impl Sampler {
    fn open(recipe: &Recipe) -> Result<Option<Self>> {
        let folder = recipe.model.tokenizer_folder();
        let Some(folder) = folder.filter(|_| !recipe.report.prompts.is_empty()) else { return Ok(None) };
        let tokenizer = Tokenizer::from_dir(folder)?;
        let template = ChatTemplate::from_dir(folder)?;
        let encode = |prompt: &String| -> Result<(String, Vec<u32>)> {
            let ids = match recipe.report.chat {
                true => tokenizer
                    .encode_rendered(&template.render(&ChatRequest::new([Message::user(prompt.clone())]))?)?,
                false => tokenizer.encode(prompt)?,
            };
            Ok((prompt.clone(), ids))
        };
        let stop = ["<|end_of_text|>", "<|eot_id|>"];
        Ok(Some(Sampler {
            prompts: recipe.report.prompts.iter().map(encode).collect::<Result<_>>()?,
            tokens: recipe.report.sample_tokens,
            context: recipe.step.sequence_length,
            format: match recipe.model.precision {
                Precision::F32 => Format::F32,
                _ => Format::BF16,
            },
            stop: stop.iter().filter_map(|token| tokenizer.token_id(token)).collect(),
            tokenizer,
        }))
    }

    /// The likeliest continuation of every prompt.
    fn samples(
        &self,
        model: Arc<kanana_model::Transformer>,
        kernels: &Arc<dyn Kernels>,
    ) -> Result<Map<String, Value>> {
        let blocks = self.prompts.len() * self.context.div_ceil(16);
        let options = EngineOptions {
            num_blocks: blocks,
            ..EngineOptions::for_context(self.context, self.format.kv_format())
        };
        let mut engine = Engine::new(model, Arc::clone(kernels), options)?;
        let mut texts = BTreeMap::new();
        for (prompt, ids) in &self.prompts {
            let params = SamplingParams {
                temperature: 0.0,
                max_tokens: Some(self.tokens),
                stop_token_ids: self.stop.clone(),
                ..SamplingParams::default()
            };
            let id = engine.add(Request { prompt: ids.clone(), params })?;
            texts.insert(id, (prompt.clone(), Vec::new()));
        }
        while !engine.is_idle() {
            for output in engine.step()? {
                if let Some((_, ids)) = texts.get_mut(&output.id)
                    && let Some(token) = output.token
                {
                    ids.push(token);
                }
            }
        }
        let text = |(prompt, ids): (String, Vec<u32>)| -> Result<(String, Value)> {
            Ok((prompt, self.tokenizer.decode(&ids, Specials::Skip)?.into()))
        };
        texts.into_values().map(text).collect()
    }
}
