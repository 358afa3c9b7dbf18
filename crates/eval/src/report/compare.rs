//! Two runs of one task: how far apart they are, and whether that may be chance.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::number::Z95;
use super::{Run, TaskReport};
use crate::error::io;
use crate::metrics;
use crate::{EvalError, Metric, Result};

/// A run with its name and its folder.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Unique among those that are compared.
    pub name: String,
    /// What was found.
    pub run: Run,
    /// Where `samples/TASK.jsonl` lie; none where there is only the report.
    pub folder: Option<PathBuf>,
}

impl Entry {
    /// Reads a folder that an evaluation wrote, or its `report.json`. The name is that of the folder.
    ///
    /// Errors: a file that cannot be read or is no report ([`EvalError::Journal`]).
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
        let text = std::fs::read_to_string(&file).map_err(io(&file))?;
        let damaged = |problem: String| EvalError::Journal { path: file.clone(), problem };
        let run: Run = serde_json::from_str(&text)
            .map_err(|error| damaged(format!("not a report of a run: {error}")))?;
        if run.version != 1 {
            return Err(damaged(format!("expected a report of version 1, got version {}", run.version)));
        }
        let folder = file.parent().map(Path::to_owned).unwrap_or_default();
        let name = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        let name =
            name.file_name().map_or_else(|| run.model.clone(), |name| name.to_string_lossy().into_owned());
        Ok(Entry { name, run, folder: Some(folder) })
    }

    /// The report of a task.
    pub fn task(&self, name: &str) -> Option<&TaskReport> {
        self.run.tasks.iter().find(|task| task.task == name)
    }

    /// What each question counts by one metric, by its id; None where the folder has no samples with it.
    fn scores(&self, task: &str, metric: &str) -> Result<Option<BTreeMap<String, f64>>> {
        /// A [`crate::Sample`], without what makes it long.
        #[derive(Deserialize)]
        struct Line {
            id: String,
            scores: Vec<(String, f64)>,
        }
        // The name comes out of a file: it shall not lead elsewhere.
        let plain = task.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let Some(folder) = self.folder.as_ref().filter(|_| plain) else { return Ok(None) };
        let path = folder.join("samples").join(format!("{task}.jsonl"));
        if !path.is_file() {
            return Ok(None);
        }
        let mut scores = BTreeMap::new();
        for (row, line) in BufReader::new(File::open(&path).map_err(io(&path))?).lines().enumerate() {
            let line = line.map_err(io(&path))?;
            let sample: Line = serde_json::from_str(&line).map_err(|error| EvalError::Row {
                path: path.clone(),
                row: row as u64 + 1,
                problem: format!("expected a sample, got {error}"),
            })?;
            let Some((_, score)) = sample.scores.into_iter().find(|(name, _)| name == metric) else {
                return Ok(None);
            };
            scores.insert(sample.id, score);
        }
        Ok(Some(scores))
    }
}

/// How one run's headline differs from the first one's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The task.
    pub task: String,
    /// The first run.
    pub from: String,
    /// The other.
    pub to: String,
    /// Other minus first; None where the two cannot be compared.
    pub value: Option<f64>,
    /// Half of the 95 % interval as if the runs had nothing in common: 1.96·√(sa² + sb²).
    pub margin: Option<f64>,
    /// Question by question, where both runs have the same ones and the headline is their mean.
    pub paired: Option<Paired>,
    /// Why they cannot be compared.
    pub reason: Option<String>,
}

/// The same questions, asked twice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Half of the 95 % interval of the mean difference, in the units of the headline.
    pub margin: f64,
    /// Questions that the other run has better.
    pub gained: usize,
    /// Questions that it has worse.
    pub lost: usize,
    /// How likely gains and losses are at least so uneven if both were as likely: McNemar's exact test where scores are 0 and
    /// 1, else the sign test.
    pub p: f64,
}

impl Difference {
    /// Whether it is more than chance explains, at 95 %: by the paired interval where there is one.
    pub fn is_significant(&self) -> bool {
        let margin = self.paired.map(|paired| paired.margin).or(self.margin);
        self.value.zip(margin).is_some_and(|(value, margin)| value.abs() > margin)
    }

    /// Compares the headlines of a task.
    ///
    /// Errors: files of samples that are there and cannot be read.
    pub fn between(first: &Entry, other: &Entry, task: &str) -> Result<Option<Self>> {
        let Some((a, b)) = first.task(task).zip(other.task(task)) else { return Ok(None) };
        let mut difference = Difference {
            task: task.to_owned(),
            from: first.name.clone(),
            to: other.name.clone(),
            value: None,
            margin: None,
            paired: None,
            reason: incomparable(first, other, (a, b)),
        };
        let (Some(before), Some(after), None) = (a.metrics.first(), b.metrics.first(), &difference.reason)
        else {
            return Ok(Some(difference));
        };
        difference.value = Some(after.value - before.value);
        difference.margin = before.stderr.zip(after.stderr).map(|(a, b)| Z95 * a.hypot(b));
        let scores = (first.scores(task, &before.name)?, other.scores(task, &after.name)?);
        if let (Some(one), Some(two)) = scores {
            difference.paired = paired((&one, before), (&two, after));
        }
        Ok(Some(difference))
    }
}

/// Why a difference would say nothing.
fn incomparable(first: &Entry, other: &Entry, (a, b): (&TaskReport, &TaskReport)) -> Option<String> {
    if a.protocol != b.protocol {
        return Some(format!("protocols differ: {} and {}", a.protocol, b.protocol));
    }
    let judged = a.judge_usage.prompt_tokens + b.judge_usage.prompt_tokens > 0;
    if judged && first.run.judge != other.run.judge {
        let name = |entry: &Entry| entry.run.judge.clone().unwrap_or_else(|| "none".into());
        return Some(format!("judges differ: {} and {}", name(first), name(other)));
    }
    let limit = |entry: &Entry| entry.run.settings.get("limit").cloned().unwrap_or_else(|| "none".into());
    if limit(first) != limit(other) {
        return Some(format!("limits differ: {} and {}", limit(first), limit(other)));
    }
    if a.samples != b.samples {
        return Some(format!("numbers of questions differ: {} and {}", a.samples, b.samples));
    }
    let (Some(before), Some(after)) = (a.metrics.first(), b.metrics.first()) else {
        return Some("there is no metric".into());
    };
    (before.name != after.name).then(|| format!("metrics differ: {} and {}", before.name, after.name))
}

/// Files that two runs have in common by name and not by content: what rests on them cannot be compared.
pub fn other_data(first: &Entry, other: &Entry) -> Vec<String> {
    let differs = |path: &str, sha256: &str| {
        other.run.data.iter().any(|file| file.path == path && file.sha256 != sha256)
    };
    first
        .run
        .data
        .iter()
        .filter(|file| differs(&file.path, &file.sha256))
        .map(|file| file.path.clone())
        .collect()
}

type Scored<'a> = (&'a BTreeMap<String, f64>, &'a Metric);

fn paired((one, before): Scored<'_>, (two, after): Scored<'_>) -> Option<Paired> {
    if one.len() < 2 || !one.keys().eq(two.keys()) {
        return None;
    }
    let scale = scale(one, before)?;
    if Some(scale) != self::scale(two, after) {
        return None;
    }
    let steps: Vec<f64> = one.values().zip(two.values()).map(|(a, b)| b - a).collect();
    let gained = steps.iter().filter(|step| **step > 0.0).count();
    let lost = steps.iter().filter(|step| **step < 0.0).count();
    let stderr = metrics::mean(&steps)?.stderr?;
    Some(Paired { margin: Z95 * scale * stderr, gained, lost, p: sign_test(gained, lost) })
}

/// What a sample's score is to be multiplied by so that the mean is the metric; None where it is no mean of samples.
fn scale(scores: &BTreeMap<String, f64>, metric: &Metric) -> Option<f64> {
    let mean = scores.values().sum::<f64>() / scores.len() as f64;
    [100.0, 1.0].into_iter().find(|scale| (scale * mean - metric.value).abs() < 1e-6)
}

/// How likely two counts are at least so uneven, on either side, if either outcome were as likely: the exact binomial test.
/// Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions"; its exact form.
pub fn sign_test(gained: usize, lost: usize) -> f64 {
    let n = gained + lost;
    let mut ln_choose = 0.0;
    let mut sum = 0.0;
    for k in 0..=gained.min(lost) {
        if k > 0 {
            ln_choose += ((n - k + 1) as f64 / k as f64).ln();
        }
        sum += (ln_choose - n as f64 * std::f64::consts::LN_2).exp();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
