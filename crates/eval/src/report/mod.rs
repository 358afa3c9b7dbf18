//! What a run found: as JSON for machines, as Markdown and HTML for people, beside the published tables.
//!
//! One way through the files: a [`Report`] holds runs ([`compare`] finds out how they differ, [`published`] what to set beside
//! them), `build` makes [`Block`]s of it, and `markdown`, `html` or the caller's terminal write those. [`flops`] is the chart of
//! training compute. Test: `cargo test -p kanana-eval report`.

mod build;
mod chart;
pub mod compare;
pub mod flops;
mod html;
mod markdown;
pub mod number;
pub mod published;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use build::{Block, Column, Grid, Report};
pub use compare::{Difference, Entry, Paired};

use crate::lm::Usage;
use crate::{FileRecord, Invalid, Metric, Outcome, Protocol};

/// A run: one model, some tasks. `report.json` in the folder of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Of this format; 1.
    pub version: u32,
    /// What was examined: name and everything that changes its answers.
    pub model: String,
    /// Who judged, where anybody did.
    pub judge: Option<String>,
    /// When the run ended: RFC 3339, UTC.
    pub date: String,
    /// The program, with its version.
    pub program: String,
    /// Processor, instruction set, threads.
    pub hardware: String,
    /// What was asked for, as flags.
    pub settings: BTreeMap<String, String>,
    /// Files that were read.
    pub data: Vec<FileRecord>,
    /// In the order in which they ran.
    pub tasks: Vec<TaskReport>,
    /// Tasks of a suite that could not be run, each with the reason.
    #[serde(default)]
    pub skipped: Vec<(String, String)>,
}

/// What one task found, without its samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// The task's name.
    pub task: String,
    /// What fixes the score.
    pub protocol: String,
    /// Where prompt and metric come from.
    pub source: String,
    /// The column of the published tables.
    pub column: Option<String>,
    /// The headline first.
    pub metrics: Vec<Metric>,
    /// By subject, category or kind.
    pub groups: Vec<(String, Vec<Metric>)>,
    /// Questions.
    pub samples: usize,
    /// Answers that could not be read, by reason.
    pub invalid: BTreeMap<Invalid, usize>,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// Requests and tokens of the model.
    pub model_usage: Usage,
    /// Requests and tokens of the judge.
    pub judge_usage: Usage,
    /// Of this run's work; answers that were known already took none. Units: seconds.
    pub seconds: f64,
}

impl TaskReport {
    /// The report of an outcome.
    pub fn new(
        protocol: &Protocol,
        outcome: &Outcome,
        (model_usage, judge_usage): (Usage, Usage),
        seconds: f64,
    ) -> Self {
        let mut invalid = BTreeMap::new();
        for reason in outcome.samples.iter().filter_map(|sample| sample.invalid) {
            *invalid.entry(reason).or_default() += 1;
        }
        TaskReport {
            task: protocol.task.into(),
            protocol: protocol.id.into(),
            source: protocol.source.into(),
            column: protocol.column.map(str::to_owned),
            metrics: outcome.metrics.clone(),
            groups: outcome.groups.clone(),
            samples: outcome.samples.len(),
            invalid,
            notes: outcome.notes.clone(),
            model_usage,
            judge_usage,
            seconds,
        }
    }
}

/// One run as Markdown, beside the published tables.
pub fn markdown(run: &Run) -> String {
    Report::of(run).markdown()
}

/// One run as a page of HTML that needs no other file, beside the published tables.
pub fn html(run: &Run) -> String {
    Report::of(run).html()
}

/// One run's tables for a terminal, beside the published ones.
pub fn table(run: &Run) -> Vec<Block> {
    Report::of(run).summary()
}

#[cfg(test)]
mod tests;
