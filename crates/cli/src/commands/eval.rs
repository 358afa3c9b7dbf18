//! `kanana eval`: the published evaluation protocol.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use clap::Args;
use kanana_eval::lm::{LanguageModel, Show};
use kanana_eval::run::{About, Event, Examined, Plan};
use kanana_eval::sandbox::Sandbox;
use kanana_eval::{Bench, EvalError, Source, Task, datasets, tasks};

use crate::args::{OutputArgs, positive};
use crate::examinee::{ExamineeArgs, JudgeArgs, hardware};
use crate::hints::{failure, failure_of};
use crate::hub::{self, Hub};
use crate::output::{self, Align, Table};
use crate::progress::Progress;
use crate::signals::EXIT_INTERRUPTED;

/// Run the published evaluation protocol on a model.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana eval --list
  kanana eval --tasks mmlu,gsm8k --data DIR --limit 20 --out runs/pico
  kanana eval --suite base --model ./checkpoint --data DIR --out runs/base
  kanana eval --tasks gsm8k --data DIR --show 2
  kanana eval --tasks mmlu,gsm8k --data DIR --hub --dataset mmlu=cais/mmlu@COMMIT
  kanana eval --suite instruct --url http://127.0.0.1:8000/v1 --served-model pico --data DIR \\
      --judge-url https://api.openai.com/v1 --judge-model gpt-4o-2024-08-06 --out runs/instruct

Every answer is written to --out as it comes: the same command after Ctrl-C or a crash goes on where it was. Nothing is
fetched from a network but answers of servers that are named. Programs that a model writes run in a sandbox.")]
pub struct EvalArgs {
    /// Tasks, separated by commas (--list shows them)
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required_unless_present_any = ["suite", "list"])]
    tasks: Vec<String>,

    /// The tasks of the published tables: base or instruct; those whose data or judge are missing are left out
    #[arg(long, value_name = "NAME", value_parser = ["base", "instruct"])]
    suite: Option<String>,

    /// List tasks with their protocols, and stop
    #[arg(long)]
    list: bool,

    /// The folder of data sets, in the formats in which they are published
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    data: Option<PathBuf>,

    /// Fetch the data sets that --data lacks from the Hugging Face Hub, into the cache that the Python tools use
    #[arg(long)]
    hub: bool,

    /// With --hub: where a data set comes from, such as mmlu=cais/mmlu@COMMIT (repeatable)
    #[arg(long, value_name = "NAME=OWNER/NAME[@REVISION]", value_parser = dataset, requires = "hub")]
    dataset: Vec<(String, String)>,

    /// Only the first N questions of each task, or of each subject where a task has subjects
    #[arg(long, value_name = "N", value_parser = positive)]
    limit: Option<usize>,

    /// The folder for answers, samples and reports [default: eval-out]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print the first N prompts of each task with their tokens, and stop
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "replay")]
    show: Option<usize>,

    /// Ask nobody: answer from the journal in --out alone
    #[arg(long)]
    replay: bool,

    /// Run programs that the model writes without confinement, where the sandbox cannot be set up
    #[arg(long)]
    unsafe_code: bool,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    examinee: ExamineeArgs,

    #[command(flatten)]
    judge: JudgeArgs,
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    if args.list {
        return list().map(|()| ExitCode::SUCCESS);
    }
    let chosen = args.chosen()?;
    let data = args.data.as_ref().context("--data is required: this is a bug")?;
    if !data.is_dir() {
        let message = format!("--data {} is no folder", data.display());
        return Err(failure(message, "give the folder in which the folders mmlu, gsm8k, … lie"));
    }
    let (source, fetched) = args.source(data, &chosen)?;
    let stop = Arc::new(AtomicBool::new(false));
    if let Some(most) = args.show {
        return args.show(most, &chosen, &source).map(|()| ExitCode::SUCCESS);
    }
    let out = args.out.clone().unwrap_or_else(|| "eval-out".into());
    let sandbox = if chosen.iter().any(|task| task.needs_sandbox()) { args.sandbox()? } else { None };
    let examinee = args.examinee.open(&stop)?;
    let judge = args.judge.open(args.examinee.concurrency, &stop);
    // From here on Ctrl-C ends the run between two steps.
    signal_hook::flag::register_conditional_default(signal_hook::consts::SIGINT, Arc::clone(&stop))?;
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&stop))?;

    let about = About {
        date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        program: format!("kanana {}", env!("CARGO_PKG_VERSION")),
        hardware: hardware(args.examinee.machine.threads()),
        settings: args.settings(examinee.parameters, sandbox.as_ref(), fetched),
    };
    let plan = Plan {
        tasks: &chosen,
        skip_missing: args.suite.is_some(),
        model: args.asked(examinee.model),
        judge: judge.map(|judge| args.asked(Box::new(judge))),
        sandbox: sandbox.as_ref(),
        source: &source,
        limit: args.limit,
        out: &out,
    };
    let mut screen = Screen::default();
    let outcome = kanana_eval::run::run(plan, &about, &mut |event| screen.show(event));
    screen.clear();
    let run = match outcome {
        Ok(run) => run,
        Err(EvalError::Stopped) => {
            output::note(format_args!(
                "stopped; the answers so far are in {}, and the same command goes on there",
                out.display()
            ));
            return Ok(ExitCode::from(EXIT_INTERRUPTED));
        }
        Err(error) => {
            let hint = hint(&error);
            return Err(failure_of(error.into(), "the evaluation ended", hint));
        }
    };
    if run.tasks.is_empty() {
        let message = "no task could be run";
        return Err(failure(message, "the lines above say what each task needs; --list shows all tasks"));
    }
    if args.output.json {
        return output::print_json(&serde_json::to_value(&run)?).map(|()| ExitCode::SUCCESS);
    }
    output::print(&table(&run))?;
    output::note(format_args!("answers, samples and the report are in {}", out.display()));
    Ok(ExitCode::SUCCESS)
}

impl EvalArgs {
    fn chosen(&self) -> Result<Vec<Box<dyn Task>>> {
        let mut names = self.tasks.clone();
        let suite =
            self.suite.iter().flat_map(|suite| tasks::SUITES.iter().filter(move |(name, _)| name == suite));
        names.extend(suite.flat_map(|(_, tasks)| tasks.iter().map(|&task| task.to_owned())));
        tasks::find(&names).map_err(|error| failure(error, "`kanana eval --list` shows the tasks"))
    }

    fn asked<'a>(&self, model: Box<dyn LanguageModel + 'a>) -> Examined<'a> {
        if self.replay { Examined::Replayed(model.name().to_owned()) } else { Examined::Asked(model) }
    }

    /// The sandbox; none where it cannot be set up and the tasks of a suite can be left out.
    fn sandbox(&self) -> Result<Option<Sandbox>> {
        let sandbox = if self.unsafe_code { Sandbox::unconfined() } else { Sandbox::new() };
        match sandbox {
            Ok(sandbox) => Ok(Some(sandbox)),
            Err(error) if self.suite.is_some() => {
                output::note(error);
                Ok(None)
            }
            Err(error) => Err(failure(
                error,
                "programs that a model writes are run only in a sandbox; --unsafe-code runs them without, at your risk",
            )),
        }
    }

    /// The rows: below --data, and with --hub what that folder lacks. Where each fetched data set came from is told, too.
    fn source(&self, data: &Path, chosen: &[Box<dyn Task>]) -> Result<(Source, BTreeMap<String, String>)> {
        let (mut source, mut fetched) = (Source::new(data), BTreeMap::new());
        if !self.hub {
            return Ok((source, fetched));
        }
        let hub = Hub::from_env()?;
        for set in datasets::of(chosen) {
            if data.join(set.name).exists() {
                continue;
            }
            let other = self.dataset.iter().find(|(name, _)| name == set.name);
            let id = other.map_or(set.repository, |(_, id)| id);
            let files: Vec<String> = set.files.iter().map(|&file| file.to_owned()).collect();
            let folder = hub.pull(&format!("datasets/{id}"), &files, &hub::Progress::on_stderr())?;
            let commit = folder.file_name().unwrap_or_default().to_string_lossy();
            let repository = id.split('@').next().unwrap_or(id);
            fetched.insert(format!("dataset {}", set.name), format!("{repository}@{commit}"));
            source = source.with(set.name, folder);
        }
        Ok((source, fetched))
    }

    fn settings(
        &self,
        parameters: Option<u64>,
        sandbox: Option<&Sandbox>,
        mut settings: BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                settings.insert(name.to_owned(), value);
            }
        };
        set("limit", self.limit.map(|limit| limit.to_string()));
        set("parameters", parameters.map(|count| count.to_string()));
        set("url", self.examinee.url.clone());
        set("max_context", self.examinee.context.max_context.map(|tokens| tokens.to_string()));
        set("judge_url", self.judge.judge_url.clone());
        set(
            "sandbox",
            sandbox.map(|sandbox| if sandbox.is_confined() { "confined" } else { "none" }.to_owned()),
        );
        settings
    }

    /// Prints what would be asked.
    fn show(&self, most: usize, chosen: &[Box<dyn Task>], source: &Source) -> Result<()> {
        let examinee = self.examinee.open(&Arc::default())?;
        for task in chosen {
            let mut shown = Show::new(&*examinee.model, most);
            let mut bench =
                Bench { model: &mut shown, judge: None, sandbox: None, source, limit: self.limit };
            match task.run(&mut bench) {
                Ok(_) | Err(EvalError::Stopped) => {}
                Err(error) if self.suite.is_some() => output::note(error),
                Err(error) => return Err(failure(&error, hint(&error))),
            }
            for (index, request) in shown.shown.iter().enumerate() {
                output::println(format_args!("=== {} {index}", task.protocol().id))?;
                output::println(&request.text)?;
                if let Some(continuation) = &request.continuation {
                    output::println(format_args!("--- scored: {continuation:?}"))?;
                }
                if let Some(settings) = &request.settings {
                    output::println(format_args!("--- {settings}"))?;
                }
                if let Some(tokens) = &request.tokens {
                    output::println(format_args!("--- {} tokens: {tokens:?}", tokens.len()))?;
                }
            }
        }
        Ok(())
    }
}

fn dataset(text: &str) -> Result<(String, String), String> {
    let (name, id) = text.split_once('=').ok_or("expected NAME=OWNER/NAME, such as mmlu=cais/mmlu")?;
    let known: Vec<&str> = datasets::ALL.iter().map(|set| set.name).collect();
    if !known.contains(&name) {
        return Err(format!("{name:?} is not one of {}", known.join(", ")));
    }
    Ok((name.to_owned(), id.to_owned()))
}

fn hint(error: &EvalError) -> &'static str {
    match error {
        EvalError::NoData { .. } => {
            "--data names the folder that holds a folder for each data set; --hub fetches what is missing there"
        }
        EvalError::Needs { .. } => "`kanana eval --help` explains the flag",
        EvalError::Model { .. } => "answers that came are kept: the same command goes on from there",
        EvalError::Journal { .. } => "another --out begins anew",
        _ => "`kanana eval --help` has examples",
    }
}

fn list() -> Result<()> {
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Left]);
    table.row(["task", "protocol", "source"]);
    let protocols = tasks::all().into_iter().map(|task| task.protocol());
    for protocol in protocols.chain(kanana_eval::embedding::protocols()) {
        table.row([protocol.task, protocol.id, protocol.source]);
    }
    output::print(&table.render())
}

/// The scores of a run.
fn table(run: &kanana_eval::report::Run) -> String {
    let mut table =
        Table::new(&[Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Right]);
    table.row(["task", "metric", "score", "± 95 %", "n", "invalid"]);
    for task in &run.tasks {
        let invalid: usize = task.invalid.values().sum();
        for (index, metric) in task.metrics.iter().enumerate() {
            let first = index == 0;
            table.row([
                if first { task.task.clone() } else { String::new() },
                metric.name.clone(),
                format!("{:.2}", metric.value),
                metric.stderr.map_or_else(String::new, |stderr| format!("{:.2}", 1.96 * stderr)),
                metric.n.to_string(),
                if first { invalid.to_string() } else { String::new() },
            ]);
        }
    }
    table.render()
}

/// What a person sees while it runs.
#[derive(Default)]
pub struct Screen {
    bar: Option<(Progress, usize, bool)>,
}

impl Screen {
    pub fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Begins { index, of, protocol } => {
                self.clear();
                output::note(format_args!("{}/{of}  {}", index + 1, protocol.id));
            }
            Event::Answered { done, of, judge } => {
                if self.bar.as_ref().is_none_or(|(_, total, by)| (*total, *by) != (of, judge)) {
                    let progress = if judge {
                        Progress::of_verdicts(of as u64)
                    } else {
                        Progress::of_answers(of as u64)
                    };
                    self.bar = Some((progress, of, judge));
                }
                if let Some((bar, ..)) = &self.bar {
                    bar.set(done as u64);
                }
            }
            Event::Done(report) => {
                self.clear();
                if let Some(metric) = report.metrics.first() {
                    output::note(format_args!(
                        "     {} {:.2} over {}, {:.1} s",
                        metric.name, metric.value, metric.n, report.seconds
                    ));
                }
            }
            Event::Skipped { reason, .. } => {
                self.clear();
                output::note(format_args!("     left out: {reason}"));
            }
        }
    }

    pub fn clear(&mut self) {
        self.bar = None;
    }
}
