//! `kanana niah`: a needle in a haystack, at every length of context and every depth, and the picture of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use clap::Args;
use kanana_eval::long_context::Language;
use kanana_eval::long_context::niah::{self, Form, Niah, Row};
use kanana_eval::report::Run;
use kanana_eval::run::{About, Examined, Plan};
use kanana_eval::{EvalError, Sample, Source, Task};
use kanana_plot::{HeatMap, png};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::eval::Screen;
use crate::args::{OutputArgs, positive};
use crate::examinee::{ExamineeArgs, JudgeArgs, hardware};
use crate::hints::{failure, failure_of};
use crate::output::{self, Align, Table};
use crate::signals::EXIT_INTERRUPTED;

/// Hide a needle in a haystack of every length and at every depth, and see where the model finds it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana niah --model ./base --grid 32k --out runs/niah-32k
  kanana niah --model ./instruct --form question --language ko --grid 128k --yarn --out runs/niah-128k
  kanana niah --model ./base --lengths 1000,4000,16000 --depths 0,50,100 --haystack novel.txt --out runs/niah-quick

The folder gets results.jsonl, heatmap.svg, heatmap.png and report.json. Every answer is written as it comes: the same command
after Ctrl-C or a crash goes on where it was. The score, 0 to 10, is ten times the part of the needle's words that the answer
has, or a judge's rating. A grid of 128k is long work on a processor: 225 prompts, 14.5 million tokens.")]
pub struct NiahArgs {
    /// How the needle is asked for: retrieval (its sentence is begun; base models) or question (instruct models)
    #[arg(long, value_name = "FORM", default_value_t = Form::Retrieval)]
    form: Form,

    /// Language of haystack and needle: en or ko
    #[arg(long, value_name = "en|ko", default_value_t = Language::En)]
    language: Language,

    /// The lengths of a published plot: 32k (32 of them) or 128k (15)
    #[arg(long, value_name = "NAME", value_parser = ["32k", "128k"])]
    grid: Option<String>,

    /// Lengths in tokens, separated by commas
    #[arg(
        long, value_name = "N,…", value_delimiter = ',', value_parser = positive,
        conflicts_with = "grid", required_unless_present = "grid"
    )]
    lengths: Vec<usize>,

    /// Depths of the needle in per cent [default: 15, as published]
    #[arg(long, value_name = "P,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(..=100))]
    depths: Vec<u32>,

    /// Text files for the haystack, instead of generated sentences (repeatable)
    #[arg(long, value_name = "FILE")]
    haystack: Vec<PathBuf>,

    /// Hide another needle in every cell, rather than the well-known one
    #[arg(long)]
    drawn: bool,

    /// Sentences like the needle in the haystack, of which one is asked for
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    needles: usize,

    /// Of the haystack, and of needles that are drawn
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,

    /// Only the first N cells, a length after the other
    #[arg(long, value_name = "N", value_parser = positive)]
    limit: Option<usize>,

    /// The folder for answers, pictures and the report
    #[arg(long, value_name = "DIR", default_value = "niah-out")]
    out: PathBuf,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    examinee: ExamineeArgs,

    #[command(flatten)]
    judge: JudgeArgs,
}

/// Runs the command.
pub fn run(args: &NiahArgs) -> Result<ExitCode> {
    if args.examinee.url.is_some() {
        let message = "lengths are counted in the model's tokens, which a server does not tell";
        return Err(failure(message, "give the model with --model"));
    }
    if let Some(file) = args.haystack.iter().find(|file| !file.is_file()) {
        let hint = "--haystack takes text files; without it, sentences are generated";
        return Err(failure(format_args!("{}: no such file", file.display()), hint));
    }
    let niah = args.niah();
    let longest = niah.lengths.iter().copied().max().unwrap_or(0);
    let stop = Arc::new(AtomicBool::new(false));
    let examinee = args.examinee.open_for(Some(longest + 1), &stop)?;
    let judge = args.judge.open(args.examinee.concurrency, &stop);
    flag::register_conditional_default(SIGINT, Arc::clone(&stop))?;
    flag::register(SIGINT, Arc::clone(&stop))?;

    let about = About {
        date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        program: format!("kanana {}", env!("CARGO_PKG_VERSION")),
        hardware: hardware(args.examinee.machine.threads()),
        settings: args.settings(&niah, examinee.parameters),
    };
    let tasks: [Box<dyn Task>; 1] = [Box::new(niah.clone())];
    let source = Source::new(".");
    let plan = Plan {
        tasks: &tasks,
        skip_missing: false,
        model: Examined::Asked(examinee.model),
        judge: judge.map(|judge| Examined::Asked(Box::new(judge))),
        sandbox: None,
        source: &source,
        limit: args.limit,
        out: &args.out,
    };
    let mut screen = Screen::default();
    let outcome = kanana_eval::run::run(plan, &about, &mut |event| screen.show(event));
    screen.clear();
    let run = match outcome {
        Ok(run) => run,
        Err(EvalError::Stopped) => {
            let out = args.out.display();
            output::note(format_args!("stopped; the same command goes on with what is in {out}"));
            return Ok(ExitCode::from(EXIT_INTERRUPTED));
        }
        Err(error) => {
            let hint = match error {
                EvalError::TooShort { .. } => "give longer --lengths",
                EvalError::Journal { .. } => "another --out begins anew",
                _ => "answers that came are kept: the same command goes on from there",
            };
            return Err(failure_of(error.into(), "the test ended", hint));
        }
    };
    let rows = args.write(&niah, &run)?;
    if args.output.json {
        output::print_json(&serde_json::to_value(&run)?)?;
    } else {
        output::print(&table(&niah, &rows))?;
    }
    output::note(format_args!("results.jsonl, heatmap.svg and .png, report.json: {}", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

impl NiahArgs {
    fn niah(&self) -> Niah {
        let mut lengths = self.grid.as_deref().and_then(niah::grid).unwrap_or_else(|| self.lengths.clone());
        let mut depths = if self.depths.is_empty() { niah::depths() } else { self.depths.clone() };
        lengths.sort_unstable();
        lengths.dedup();
        depths.sort_unstable();
        depths.dedup();
        Niah {
            language: self.language,
            form: self.form,
            lengths,
            depths,
            needles: self.needles,
            drawn: self.drawn,
            seed: self.seed,
            haystack: self.haystack.clone(),
        }
    }

    fn settings(&self, niah: &Niah, parameters: Option<u64>) -> BTreeMap<String, String> {
        let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let depths: Vec<usize> = niah.depths.iter().map(|&depth| depth as usize).collect();
        let mut settings = BTreeMap::from([
            ("form", niah.form.to_string()),
            ("language", niah.language.to_string()),
            ("lengths", list(&niah.lengths)),
            ("depths", list(&depths)),
            ("needles", niah.needles.to_string()),
            ("needle", if niah.drawn { "drawn" } else { "well-known" }.to_owned()),
            ("seed", niah.seed.to_string()),
        ]);
        settings.extend(self.limit.map(|limit| ("limit", limit.to_string())));
        settings.extend(parameters.map(|count| ("parameters", count.to_string())));
        settings.extend(self.judge.judge_url.clone().map(|url| ("judge_url", url)));
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Writes the rows and the pictures, made of the samples that the run wrote.
    fn write(&self, niah: &Niah, run: &Run) -> Result<Vec<Row>> {
        let samples = self.out.join("samples/niah.jsonl");
        let unreadable = || samples.display().to_string();
        let text = fs::read_to_string(&samples).with_context(unreadable)?;
        let row = |line: &str| -> Result<Row> {
            let sample: Sample = serde_json::from_str(line).with_context(unreadable)?;
            serde_json::from_value(sample.detail).with_context(unreadable)
        };
        let rows: Vec<Row> = text.lines().map(row).collect::<Result<_>>()?;
        let mut lines = String::new();
        for row in &rows {
            lines += &(serde_json::to_string(row)? + "\n");
        }
        write(&self.out.join("results.jsonl"), lines.as_bytes())?;
        let svg = heat_map(niah, &rows, run).svg();
        write(&self.out.join("heatmap.svg"), svg.as_bytes())?;
        write(&self.out.join("heatmap.png"), &png(&svg, 2.0)?.bytes)?;
        Ok(rows)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// The mean of the scores of some rows.
fn mean<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<f64> {
    let scores: Vec<f64> = rows.map(|row| row.score).collect();
    (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
}

fn heat_map(niah: &Niah, rows: &[Row], run: &Run) -> HeatMap {
    let value = |depth: u32, length: usize| {
        mean(rows.iter().filter(|row| row.length == length && row.depth == depth))
    };
    let all = mean(rows.iter()).unwrap_or_default();
    let needle = if niah.drawn { ", drawn needles" } else { "" };
    HeatMap {
        title: "Needle in a haystack".into(),
        subtitle: format!("{} · {} ({}){needle} · mean {all:.2}", run.model, niah.form, niah.language),
        x_label: "token limit".into(),
        y_label: "depth of the needle, %".into(),
        columns: niah.lengths.iter().map(|&length| niah::label(length)).collect(),
        rows: niah.depths.iter().map(u32::to_string).collect(),
        values: niah
            .depths
            .iter()
            .map(|&depth| niah.lengths.iter().map(|&length| value(depth, length)).collect())
            .collect(),
        range: (0.0, 10.0),
        colour_label: if run.judge.is_some() { "judge's rating" } else { "words found, × 10" }.into(),
        show_values: niah.lengths.len() <= 16,
    }
}

/// A line for each length.
fn table(niah: &Niah, rows: &[Row]) -> String {
    let mut table = Table::new(&[Align::Right, Align::Right, Align::Right, Align::Right]);
    table.row(["tokens", "score", "whole", "cells"]);
    for &length in &niah.lengths {
        let of_length = || rows.iter().filter(move |row| row.length == length);
        let Some(score) = mean(of_length()) else { continue };
        let whole = of_length().filter(|row| row.contained).count();
        table.row([
            length.to_string(),
            format!("{score:.2}"),
            whole.to_string(),
            of_length().count().to_string(),
        ]);
    }
    table.render()
}
