//! From tasks to a folder with answers, samples and a report.
//!
//! The folder: `journal/model.jsonl` and `journal/judge.jsonl` (every answer, so that a run that was killed goes on where it
//! was), `samples/TASK.jsonl` (what became of every question), `report.json`, and the same for people as
//! `report.md` and `report.html`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::error::io;
use crate::lm::{Journal, Journaled, LanguageModel, Usage};
use crate::report::{self, Run, TaskReport};
use crate::sandbox::Sandbox;
use crate::{Bench, EvalError, Outcome, Protocol, Result, Source, Task};

/// What happens during a run.
pub enum Event<'a> {
    /// Task `index` of `of` begins.
    Begins {
        /// From 0.
        index: usize,
        /// Tasks in all.
        of: usize,
        /// Which.
        protocol: &'a Protocol,
    },
    /// So many of the requests at hand are answered.
    Answered {
        /// Answers.
        done: usize,
        /// Requests.
        of: usize,
        /// By the judge.
        judge: bool,
    },
    /// A task is done.
    Done(&'a TaskReport),
    /// A task of a suite cannot be run here.
    Skipped {
        /// Which.
        protocol: &'a Protocol,
        /// What is missing.
        reason: &'a EvalError,
    },
}

/// Everything that a run needs.
pub struct Plan<'a> {
    /// In their order.
    pub tasks: &'a [Box<dyn Task>],
    /// Go on without the tasks whose data, judge or sandbox are missing.
    pub skip_missing: bool,
    /// Who is examined; None where only answers of an earlier run are used.
    pub model: Examined<'a>,
    /// Who judges.
    pub judge: Option<Examined<'a>>,
    /// Where programs run.
    pub sandbox: Option<&'a Sandbox>,
    /// Rows.
    pub source: &'a Source,
    /// Questions of each task or subject.
    pub limit: Option<usize>,
    /// The folder; it is made.
    pub out: &'a Path,
}

/// A model that answers, or the name of one whose answers are in the journal.
pub enum Examined<'a> {
    /// It is asked what the journal does not have.
    Asked(Box<dyn LanguageModel + 'a>),
    /// Only the journal answers.
    Replayed(String),
}

impl Examined<'_> {
    /// The model's name.
    pub fn name(&self) -> &str {
        match self {
            Examined::Asked(model) => model.name(),
            Examined::Replayed(name) => name,
        }
    }
}

/// What only the caller knows of a run.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// RFC 3339, UTC.
    pub date: String,
    /// Name and version.
    pub program: String,
    /// Processor, instruction set, threads.
    pub hardware: String,
    /// Flags.
    pub settings: BTreeMap<String, String>,
}

/// Runs every task and writes the folder. `report.json` is written after every task.
///
/// Errors: what a task returns, [`EvalError::Stopped`] where the person asked to stop; everything answered so far is kept.
pub fn run(plan: Plan<'_>, about: &About, on: &mut dyn FnMut(Event<'_>)) -> Result<Run> {
    let Plan { tasks, skip_missing, model, judge, sandbox, source, limit, out } = plan;
    for folder in [out.join("journal"), out.join("samples")] {
        fs::create_dir_all(&folder).map_err(io(&folder))?;
    }
    let mut run = Run {
        version: 1,
        model: model.name().to_owned(),
        judge: judge.as_ref().map(|judge| judge.name().to_owned()),
        date: about.date.clone(),
        program: about.program.clone(),
        hardware: about.hardware.clone(),
        settings: about.settings.clone(),
        data: Vec::new(),
        tasks: Vec::new(),
        skipped: Vec::new(),
    };
    let on = RefCell::new(on);
    let mut answers = Journal::open(&out.join("journal/model.jsonl"))?;
    let mut verdicts = Journal::open(&out.join("journal/judge.jsonl"))?;
    let mut model = journaled(model, &mut answers, |done, of| {
        on.borrow_mut()(Event::Answered { done, of, judge: false });
    });
    let mut judge = judge.map(|judge| {
        journaled(judge, &mut verdicts, |done, of| {
            on.borrow_mut()(Event::Answered { done, of, judge: true });
        })
    });
    for (index, task) in tasks.iter().enumerate() {
        let protocol = task.protocol();
        on.borrow_mut()(Event::Begins { index, of: tasks.len(), protocol: &protocol });
        let started = Instant::now();
        let before = (model.usage(), judge.as_ref().map(Journaled::usage).unwrap_or_default());
        let outcome = task.run(&mut Bench {
            model: &mut model,
            judge: judge.as_mut().map(|judge| judge as &mut dyn LanguageModel),
            sandbox,
            source,
            limit,
        });
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(reason @ (EvalError::NoData { .. } | EvalError::Needs { .. })) if skip_missing => {
                on.borrow_mut()(Event::Skipped { protocol: &protocol, reason: &reason });
                run.skipped.push((protocol.task.into(), reason.to_string()));
                continue;
            }
            Err(error) => return Err(error),
        };
        write_samples(&out.join("samples").join(format!("{}.jsonl", protocol.task)), &outcome)?;
        let usage = (
            model.usage().since(before.0),
            judge.as_ref().map_or_else(Usage::default, |judge| judge.usage().since(before.1)),
        );
        let report = TaskReport::new(&protocol, &outcome, usage, started.elapsed().as_secs_f64());
        on.borrow_mut()(Event::Done(&report));
        run.tasks.push(report);
        run.data = source.manifest();
        let json = serde_json::to_vec_pretty(&run).expect("a plain value: this is a bug");
        write_whole(&out.join("report.json"), &json)?;
        write_whole(&out.join("report.md"), report::markdown(&run).as_bytes())?;
        write_whole(&out.join("report.html"), report::html(&run).as_bytes())?;
    }
    Ok(run)
}

fn journaled<'a>(
    model: Examined<'a>,
    journal: &'a mut Journal,
    progress: impl FnMut(usize, usize) + 'a,
) -> Journaled<'a> {
    match model {
        Examined::Asked(model) => Journaled::new(model, journal, Box::new(progress)),
        Examined::Replayed(name) => Journaled::replay(&name, journal, Box::new(progress)),
    }
}

fn write_samples(path: &Path, outcome: &Outcome) -> Result<()> {
    let mut lines = Vec::new();
    for sample in &outcome.samples {
        serde_json::to_writer(&mut lines, sample).expect("a plain value: this is a bug");
        lines.push(b'\n');
    }
    write_whole(path, &lines)
}

/// Writes a file whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let mut file = fs::File::create(&partial).map_err(io(&partial))?;
    file.write_all(bytes).map_err(io(&partial))?;
    fs::rename(&partial, path).map_err(io(path))
}
