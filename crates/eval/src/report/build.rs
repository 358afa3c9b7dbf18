//! What a report says, in blocks that every format can write.

use serde_json::{Value, json};

use super::compare::{Difference, Entry, other_data};
use super::published::{Figure, Kind, family, figures, published, score};
use super::{Run, TaskReport, chart, number};
use crate::{Metric, Result};

/// A piece of a report.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Of what follows.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// What a reader must not overlook.
    Warning(String),
    /// Points.
    List(Vec<String>),
    /// A table.
    Grid(Grid),
    /// What only some readers want to see.
    Fold(String, Vec<Block>),
    /// An SVG, for formats that have pictures.
    Chart(String),
}

/// How a column is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Words.
    Text,
    /// Names of things.
    Code,
    /// To the right.
    Number,
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grid {
    /// Columns with their headings.
    pub columns: Vec<(String, Column)>,
    /// A cell for each column.
    pub rows: Vec<Vec<String>>,
    /// The first so many rows are what the report is about, the rest stands beside it.
    pub own: usize,
}

impl Grid {
    fn new<T: Into<String>>(columns: impl IntoIterator<Item = (T, Column)>) -> Self {
        let columns = columns.into_iter().map(|(name, column)| (name.into(), column)).collect();
        Grid { columns, ..Grid::default() }
    }

    fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

/// One run or several.
#[derive(Clone, Debug)]
pub struct Report {
    /// The first is the one that the others are compared with.
    pub entries: Vec<Entry>,
    /// Whether the published tables stand beside them.
    pub published: bool,
    /// Charts that a caller adds: heading and SVG.
    pub charts: Vec<(String, String)>,
    differences: Vec<Difference>,
}

impl Report {
    /// Compares every run with the first one. Runs of the same name get a number.
    ///
    /// Errors: samples that cannot be read.
    pub fn new(mut entries: Vec<Entry>, published: bool) -> Result<Self> {
        for index in 1..entries.len() {
            let taken =
                |name: &str, entries: &[Entry]| entries[..index].iter().any(|entry| entry.name == name);
            let plain = entries[index].name.clone();
            let mut number = 2;
            while taken(&entries[index].name, &entries) {
                entries[index].name = format!("{plain} ({number})");
                number += 1;
            }
        }
        let mut report = Report { entries, published, charts: Vec::new(), differences: Vec::new() };
        for task in report.tasks() {
            for other in report.entries.iter().skip(1) {
                report.differences.extend(Difference::between(&report.entries[0], other, &task)?);
            }
        }
        Ok(report)
    }

    /// One run, without its samples, beside the published tables.
    pub fn of(run: &Run) -> Self {
        let entry = Entry { name: run.model.clone(), run: run.clone(), folder: None };
        Report { entries: vec![entry], published: true, charts: Vec::new(), differences: Vec::new() }
    }

    /// How every other run differs from the first one.
    pub fn differences(&self) -> &[Difference] {
        &self.differences
    }

    /// Above all.
    pub fn title(&self) -> String {
        match self.entries.as_slice() {
            [one] => one.run.model.clone(),
            several => several.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(" · "),
        }
    }

    /// The names of all tasks, in the order in which they ran.
    pub(super) fn tasks(&self) -> Vec<String> {
        let mut tasks: Vec<String> = Vec::new();
        for task in self.entries.iter().flat_map(|entry| &entry.run.tasks) {
            if !tasks.contains(&task.task) {
                tasks.push(task.task.clone());
            }
        }
        tasks
    }

    /// What keeps scores from being compared with one another or with the published ones.
    pub fn warnings(&self) -> Vec<String> {
        let mut alike: Vec<(&str, &str, Vec<&str>)> = Vec::new();
        for difference in &self.differences {
            let Some(reason) = &difference.reason else { continue };
            match alike.iter_mut().find(|(to, why, _)| *to == difference.to && why == reason) {
                Some((.., tasks)) => tasks.push(&difference.task),
                None => alike.push((&difference.to, reason, vec![&difference.task])),
            }
        }
        let first = self.entries.first().map_or("", |entry| entry.name.as_str());
        let say = |(to, reason, tasks): (&str, &str, Vec<&str>)| {
            format!("{to} cannot be compared with {first} in {}: {reason}", tasks.join(", "))
        };
        let mut warnings: Vec<String> = alike.into_iter().map(say).collect();
        for other in self.entries.iter().skip(1) {
            let files = other_data(&self.entries[0], other);
            if let Some(first) = files.first() {
                let more =
                    if files.len() > 1 { format!(" and {} more", files.len() - 1) } else { String::new() };
                warnings.push(format!(
                    "{} and {} read different data ({first}{more}): no difference between them is marked",
                    self.entries[0].name, other.name
                ));
            }
        }
        for entry in &self.entries {
            if let Some(limit) = entry.run.settings.get("limit") {
                warnings.push(format!(
                    "{}: only the first {limit} questions of each task or subject were asked; published scores are over all of them",
                    entry.name
                ));
            }
        }
        warnings
    }

    /// Whether a difference is to be marked.
    fn is_marked(&self, difference: &Difference) -> bool {
        let other = self.entries.iter().find(|entry| entry.name == difference.to);
        difference.is_significant()
            && other.is_some_and(|other| other_data(&self.entries[0], other).is_empty())
    }

    /// The tables, for a terminal.
    pub fn summary(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = self.warnings().into_iter().map(Block::Warning).collect();
        blocks.extend([Block::Heading("Scores".into()), Block::Grid(self.scores())]);
        blocks.extend(self.compared());
        for kind in Kind::ALL {
            blocks.extend(self.beside(kind));
        }
        blocks
    }

    /// Everything.
    pub(super) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = self.warnings().into_iter().map(Block::Warning).collect();
        blocks.extend([Block::Heading("Scores".into()), Block::Grid(self.scores())]);
        blocks.push(Block::Text(
            "± and brackets are 95 % confidence intervals: 1.96 standard errors, or Wilson's interval for shares near 0 or 100 %. \
             Invalid answers count as the protocol says, mostly as wrong; they are never left out."
                .into(),
        ));
        blocks.extend(self.compared());
        for kind in Kind::ALL {
            let chart = chart::scores(self, kind).map(Block::Chart);
            let mut beside = self.beside(kind).into_iter();
            let heading = Block::Heading(format!("Scores of {} tasks", kind.name()));
            blocks.extend(chart.as_ref().map(|_| beside.next().unwrap_or(heading)));
            blocks.extend(chart.into_iter().chain(beside));
        }
        for (heading, svg) in &self.charts {
            blocks.extend([Block::Heading(heading.clone()), Block::Chart(svg.clone())]);
        }
        for entry in &self.entries {
            let heading = if self.entries.len() > 1 { entry.name.clone() } else { "Details".into() };
            blocks.push(Block::Heading(heading));
            blocks.extend(details(&entry.run, self.entries.len() > 1));
        }
        blocks
    }

    fn scores(&self) -> Grid {
        if let [entry] = self.entries.as_slice() {
            return work(&entry.run);
        }
        let names = self.entries.iter().map(|entry| (entry.name.as_str(), Column::Number));
        let head = [("task", Column::Code), ("metric", Column::Code), ("n", Column::Number)];
        let mut grid = Grid::new(head.into_iter().chain(names));
        for task in self.tasks() {
            let headline = |entry: &Entry| entry.task(&task).and_then(|task| task.metrics.first().cloned());
            let all: Vec<Option<Metric>> = self.entries.iter().map(headline).collect();
            let first = all.iter().flatten().next();
            let cells = all.iter().map(|metric| metric.as_ref().map_or_else(|| "–".into(), number::score));
            let (metric, n) =
                first.map_or_else(Default::default, |metric| (metric.name.clone(), count(metric.n)));
            grid.row([task.clone(), metric, n].into_iter().chain(cells));
        }
        grid.own = grid.rows.len();
        grid
    }

    /// How runs differ.
    fn compared(&self) -> Vec<Block> {
        if self.differences.is_empty() {
            return Vec::new();
        }
        let pairs = self.differences.iter().any(|difference| difference.paired.is_some());
        let mut columns = vec![
            ("task", Column::Code),
            ("run", Column::Text),
            ("difference", Column::Number),
            ("± 95 %", Column::Number),
        ];
        if pairs {
            columns.extend(["± paired", "better", "worse", "p"].map(|name| (name, Column::Number)));
        }
        columns.push(("", Column::Text));
        let mut grid = Grid::new(columns);
        for difference in &self.differences {
            let value = difference.value.map_or_else(|| "–".into(), number::signed);
            let mut cells =
                vec![difference.task.clone(), difference.to.clone(), value, margin(difference.margin)];
            match difference.paired {
                _ if !pairs => {}
                None => cells.extend(["–", "–", "–", "–"].map(String::from)),
                Some(paired) => cells.extend([
                    margin(Some(paired.margin)),
                    count(paired.gained),
                    count(paired.lost),
                    probability(paired.p),
                ]),
            }
            cells.push(
                match (difference.value, self.is_marked(difference)) {
                    (None, _) => "not comparable",
                    (Some(value), true) if value > 0.0 => "▲ higher",
                    (Some(_), true) => "▼ lower",
                    (Some(_), false) => "",
                }
                .into(),
            );
            grid.row(cells);
        }
        grid.own = grid.rows.len();
        let mut says = format!(
            "Each run minus {}. ▲ and ▼ mark what differs by more than its 95 % interval, 1.96·√(sa² + sb²)",
            self.entries[0].name
        );
        says += if pairs {
            "; where both runs have samples of the same questions, by more than that of the paired difference. Better and worse \
             count questions; p is McNemar's exact test."
        } else {
            "."
        };
        vec![Block::Heading("Differences".into()), Block::Grid(grid), Block::Text(says)]
    }

    /// The published columns that the runs have something for, each with its task.
    pub(super) fn columns(&self, kind: Kind) -> Vec<(String, String)> {
        let of = |name: &String| {
            let task = self.entries.iter().find_map(|entry| entry.task(name))?;
            let column = task.column.clone()?;
            (Kind::of_task(name) == kind && !task.metrics.is_empty()).then(|| (name.clone(), column))
        };
        self.tasks().iter().filter_map(of).collect()
    }

    /// Runs above the family's models, as in the published tables.
    fn beside(&self, kind: Kind) -> Vec<Block> {
        let columns = self.columns(kind);
        if columns.is_empty() || !self.published {
            return Vec::new();
        }
        let names = columns.iter().map(|(_, column)| (column.as_str(), Column::Number));
        let mut grid = Grid::new([("model", Column::Text)].into_iter().chain(names));
        for entry in &self.entries {
            let value = |(task, _): &(String, String)| {
                let metric = entry.task(task).and_then(|task| task.metrics.first());
                metric.map_or_else(|| "–".into(), |metric| format!("{:.2}", metric.value))
            };
            grid.row([entry.name.clone()].into_iter().chain(columns.iter().map(value)));
        }
        grid.own = grid.rows.len();
        let mut marks = Vec::new();
        for (model, mark) in family(kind) {
            let value = |(_, column): &(String, String)| {
                score(kind, model, column).map_or_else(|| "–".into(), |value| format!("{value:.2}"))
            };
            grid.row([format!("{model}{mark}")].into_iter().chain(columns.iter().map(value)));
            if !mark.is_empty() && !marks.contains(&mark) {
                marks.push(mark);
            }
        }
        let marks =
            marks.iter().filter_map(|&mark| Some(format!(" {mark} {}.", published().marks.get(mark)?)));
        let says = format!(
            "Published by the authors: {}. –: not published.{}",
            published().source,
            marks.collect::<String>()
        );
        vec![
            Block::Heading(format!("Beside the published {} models", kind.name())),
            Block::Grid(grid),
            Block::Text(says),
        ]
    }

    /// Everything for machines: runs, differences, warnings, published figures.
    pub fn json(&self) -> Value {
        let of_task = |name: &String| {
            let task = self.entries.iter().find_map(|entry| entry.task(name));
            let column = task.and_then(|task| task.column.clone());
            let kind = Kind::of_task(name);
            let figures: Vec<Figure> = match &column {
                Some(column) if self.published => figures(kind, column),
                _ => Vec::new(),
            };
            let scores = self.entries.iter().filter_map(|entry| {
                let task = entry.task(name)?;
                let metric = task.metrics.first()?;
                Some(json!({
                    "run": entry.name, "protocol": task.protocol, "metric": metric.name, "value": metric.value,
                    "stderr": metric.stderr, "interval": number::interval(metric), "n": metric.n, "invalid": task.invalid,
                }))
            });
            json!({
                "task": name, "column": column, "tables": kind, "scores": scores.collect::<Vec<_>>(), "published": figures,
            })
        };
        let differences = self.differences.iter().map(|difference| {
            let mut value = json!(difference);
            value["marked"] = json!(self.is_marked(difference));
            value
        });
        json!({
            "tasks": self.tasks().iter().map(of_task).collect::<Vec<_>>(),
            "differences": differences.collect::<Vec<_>>(),
            "warnings": self.warnings(),
            "runs": self.entries.iter().map(|entry| json!({"name": entry.name, "report": entry.run})).collect::<Vec<_>>(),
        })
    }
}

/// What each task of a run took and found.
fn work(run: &Run) -> Grid {
    let mut grid = Grid::new([
        ("task", Column::Code),
        ("metric", Column::Code),
        ("score, 95 %", Column::Number),
        ("n", Column::Number),
        ("invalid", Column::Text),
        ("tokens read", Column::Number),
        ("written", Column::Number),
        ("time", Column::Number),
        ("protocol", Column::Code),
    ]);
    for task in &run.tasks {
        let metric = task.metrics.first();
        grid.row([
            task.task.clone(),
            metric.map(|metric| metric.name.clone()).unwrap_or_default(),
            metric.map_or_else(|| "–".into(), number::score),
            metric.map_or_else(String::new, |metric| count(metric.n)),
            number::invalid(&task.invalid, task.samples),
            count(task.model_usage.prompt_tokens),
            count(task.model_usage.completion_tokens),
            number::seconds(task.seconds),
            task.protocol.clone(),
        ]);
    }
    grid.own = grid.rows.len();
    grid
}

/// What one run found, with everything that it took.
fn details(run: &Run, with_work: bool) -> Vec<Block> {
    let mut about = Grid::new([("run", Column::Text), ("", Column::Text)]);
    about.row(["model", &run.model]);
    if let Some(judge) = &run.judge {
        about.row(["judge", judge]);
    }
    for (name, value) in [("ended", &run.date), ("program", &run.program), ("hardware", &run.hardware)] {
        about.row([name, value]);
    }
    for (name, value) in &run.settings {
        about.row([name, value]);
    }
    let mut blocks = vec![Block::Grid(about)];
    if with_work {
        blocks.push(Block::Grid(work(run)));
    }
    if !run.skipped.is_empty() {
        blocks.push(Block::Text("Tasks that could not be run here:".into()));
        blocks.push(Block::List(
            run.skipped.iter().map(|(task, reason)| format!("{task}: {reason}")).collect(),
        ));
    }
    blocks.extend(run.tasks.iter().map(of_task));
    if !run.data.is_empty() {
        let mut data =
            Grid::new([("file", Column::Code), ("bytes", Column::Number), ("SHA-256", Column::Code)]);
        for file in &run.data {
            data.row([file.path.clone(), number::thousands(file.bytes), file.sha256.clone()]);
        }
        let summary = format!("Data: {} files with their checksums", run.data.len());
        blocks.push(Block::Fold(summary, vec![Block::Grid(data)]));
    }
    blocks
}

fn of_task(task: &TaskReport) -> Block {
    let mut lines =
        vec![format!("protocol {}", task.protocol), format!("prompt and metric: {}", task.source)];
    let judge = &task.judge_usage;
    if judge.prompt_tokens > 0 {
        lines.push(format!(
            "the judge read {} and wrote {} tokens",
            count(judge.prompt_tokens),
            count(judge.completion_tokens)
        ));
    }
    if task.model_usage.replayed > 0 {
        lines.push(format!(
            "{} answers came from the journal of an earlier run",
            count(task.model_usage.replayed)
        ));
    }
    lines.extend(task.notes.iter().cloned());
    let mut blocks = vec![Block::List(lines)];
    let mut all =
        Grid::new([("metric", Column::Code), ("value, 95 %", Column::Number), ("n", Column::Number)]);
    for metric in &task.metrics {
        all.row([metric.name.clone(), number::score(metric), count(metric.n)]);
    }
    blocks.push(Block::Grid(all));
    blocks.extend(groups(task).map(Block::Grid));
    let groups =
        if task.groups.is_empty() { String::new() } else { format!(", {} groups", task.groups.len()) };
    Block::Fold(format!("{}: {} metrics{groups}", task.task, task.metrics.len()), blocks)
}

/// A line for each group, a column for each metric.
fn groups(task: &TaskReport) -> Option<Grid> {
    let mut names: Vec<&str> = Vec::new();
    for metric in task.groups.iter().flat_map(|(_, metrics)| metrics) {
        if !names.contains(&metric.name.as_str()) {
            names.push(&metric.name);
        }
    }
    let columns = names.iter().map(|&name| (name, Column::Number));
    let head = [("group", Column::Text), ("n", Column::Number)];
    let mut grid = Grid::new(head.into_iter().chain(columns));
    for (group, metrics) in &task.groups {
        let value = |name: &&str| {
            let metric = metrics.iter().find(|metric| metric.name == *name);
            metric.map_or_else(|| "–".into(), number::score)
        };
        let n = metrics.iter().map(|metric| metric.n).max().unwrap_or(0);
        grid.row([group.clone(), count(n)].into_iter().chain(names.iter().map(value)));
    }
    (!grid.rows.is_empty()).then_some(grid)
}

fn count(n: usize) -> String {
    number::thousands(n as u64)
}

fn probability(p: f64) -> String {
    if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}

fn margin(margin: Option<f64>) -> String {
    margin.map_or_else(|| "–".into(), |margin| format!("{margin:.2}"))
}
