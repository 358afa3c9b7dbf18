//! `kanana report`: what evaluations found, side by side and beside the published tables.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kanana_eval::report::{Block, Column, Entry, Grid, Report, flops};
use kanana_eval::{EvalError, Metric};

use super::plot;
use crate::hints::{failure, failure_of};
use crate::output::{self, Align, Style, Table};

/// Compare evaluations with one another and with the published tables.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana report runs/base
  kanana report runs/before runs/after --html compare.html
  kanana report runs/a runs/b runs/c --against none --json
  kanana report runs/base --flops base=6e21 --plot flops.png
  kanana report runs/base --tokens base=3e12 --plot flops.svg --markdown report.md

Every run is compared with the first one: task by task, and question by question where both have samples of the same
questions. Scores that were not made the same way (protocol, questions, judge, data) are named and not compared.")]
pub struct ReportArgs {
    /// Folders that `kanana eval` wrote, or their report.json
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// What stands beside the runs
    #[arg(long, value_enum, default_value_t = Against::Published)]
    against: Against,

    /// Write everything as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// Write everything as a page of HTML that needs no other file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Print everything as JSON
    #[arg(long)]
    json: bool,

    /// Floating-point operations of a run's training, for the chart (repeatable); NAME is the run's folder or model
    #[arg(long, value_name = "NAME=N", value_parser = amount)]
    flops: Vec<(String, f64)>,

    /// Tokens of a run's training, for the chart: 6 operations for each token and parameter (repeatable)
    #[arg(long, value_name = "NAME=N", value_parser = amount)]
    tokens: Vec<(String, f64)>,

    /// Draw training compute against MMLU: a file that ends in .png or .svg, or the start of the names of both
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// `--against`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    /// The tables of the family's authors
    Published,
    /// Nothing
    None,
}

/// `NAME=6e21`.
fn amount(text: &str) -> Result<(String, f64), String> {
    // A name may have an equals sign in it.
    let (name, number) = text.rsplit_once('=').ok_or("expected NAME=NUMBER, such as base=6e21")?;
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 && !name.is_empty() => Ok((name.to_owned(), value)),
        _ => Err("expected NAME=NUMBER with a number above 0, such as base=6e21".to_owned()),
    }
}

/// Runs the command.
pub fn run(args: &ReportArgs) -> Result<()> {
    let entries: Vec<Entry> = args.runs.iter().map(|path| open(path)).collect::<Result<_>>()?;
    let mut report = Report::new(entries, args.against == Against::Published).map_err(|error| {
        failure_of(
            error.into(),
            "the runs cannot be compared",
            "move the broken file away: scores can be compared without it",
        )
    })?;
    let mut written = Vec::new();
    if let Some(svg) = args.chart(&report)? {
        if let Some(path) = &args.plot {
            written.extend(plot::save(&svg, path)?);
        }
        report.charts.push(("Training compute".into(), svg));
    }
    if let Some(path) = &args.markdown {
        std::fs::write(path, report.markdown()).with_context(|| path.display().to_string())?;
        written.push(path.clone());
    }
    if let Some(path) = &args.html {
        std::fs::write(path, report.html()).with_context(|| path.display().to_string())?;
        written.push(path.clone());
    }
    if args.json {
        written.iter().for_each(|path| output::note(path.display()));
        return output::print_json(&report.json());
    }
    if written.is_empty() {
        return output::print(&render(&report.summary()));
    }
    written.iter().try_for_each(|path| output::println(path.display()))
}

fn open(path: &Path) -> Result<Entry> {
    Entry::open(path).map_err(|error| {
        let hint = match &error {
            EvalError::Io { source, .. } if source.kind() != std::io::ErrorKind::NotFound => {
                "check the file's permissions"
            }
            _ => "give a folder that `kanana eval --out` wrote, or the report.json in it",
        };
        failure(error, hint)
    })
}

impl ReportArgs {
    /// Training compute against MMLU, where it is asked for.
    fn chart(&self, report: &Report) -> Result<Option<String>> {
        let given = !self.flops.is_empty() || !self.tokens.is_empty();
        if given && self.plot.is_none() && self.html.is_none() {
            let message = "--flops and --tokens are for the chart, which is not asked for";
            return Err(failure(message, "add --plot FILE.png, or --html FILE"));
        }
        if !given && self.plot.is_none() {
            return Ok(None);
        }
        let mut points = Vec::new();
        for (name, flops) in &self.flops {
            let entry = find(report, name)?;
            points.push((entry.name.clone(), *flops, mmlu(entry)?));
        }
        for (name, tokens) in &self.tokens {
            let entry = find(report, name)?;
            let parameters = entry.run.settings.get("parameters").and_then(|count| count.parse::<f64>().ok());
            let parameters = parameters.ok_or_else(|| {
                let message = format!("the report of {name} does not say how many parameters the model has");
                failure(
                    message,
                    format!("give operations instead: --flops {name}=N, 6 for each parameter and token"),
                )
            })?;
            points.push((entry.name.clone(), flops::six_nd(parameters, *tokens), mmlu(entry)?));
        }
        Ok(Some(flops::chart(&points).svg()))
    }
}

fn find<'a>(report: &'a Report, name: &str) -> Result<&'a Entry> {
    let mut entries = report.entries.iter();
    entries.find(|entry| entry.name == name || entry.run.model == name).ok_or_else(|| {
        let names: Vec<&str> = report.entries.iter().map(|entry| entry.name.as_str()).collect();
        failure(format!("no run is called {name:?}"), format!("the runs are {}", names.join(", ")))
    })
}

fn mmlu(entry: &Entry) -> Result<Metric> {
    let metric = entry.task("mmlu").and_then(|task| task.metrics.first()).cloned();
    metric.ok_or_else(|| {
        let message = format!("the run {} has no score of mmlu", entry.name);
        failure(
            message,
            "`kanana eval --tasks mmlu` makes one; reasoned answers (mmlu_cot) are another scale",
        )
    })
}

/// Blocks of a report as lines of a terminal.
pub fn render(blocks: &[Block]) -> String {
    let style = Style::stdout();
    let mut text = String::new();
    for block in blocks {
        match block {
            Block::Heading(heading) => text += &format!("\n{}{heading}{}\n", style.bold(), style.reset()),
            Block::Text(paragraph) => text += &format!("  {}{paragraph}{}\n", style.dim(), style.reset()),
            Block::Warning(warning) => {
                text += &format!("{}warning:{} {warning}\n", style.red(), style.reset())
            }
            Block::List(points) => points.iter().for_each(|point| text += &format!("  - {point}\n")),
            Block::Grid(grid) => text += &render_grid(grid),
            Block::Fold(_, inner) => text += &render(inner),
            Block::Chart(_) => {}
        }
    }
    text.trim_start_matches('\n').to_owned()
}

fn render_grid(grid: &Grid) -> String {
    let align = |column: &Column| if *column == Column::Number { Align::Right } else { Align::Left };
    let mut table = Table::new(&grid.columns.iter().map(|(_, column)| align(column)).collect::<Vec<_>>());
    table.row(grid.columns.iter().map(|(name, _)| name.as_str()));
    for row in &grid.rows {
        // What comes out of a file shall not steer the terminal.
        table.row(row.iter().map(|cell| cell.replace(|c: char| c.is_control(), " ")));
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_a_name_and_a_number() {
        let check = |text: &str, expected: Option<(&str, f64)>| {
            let found = amount(text).ok();
            assert_eq!(found.as_ref().map(|(name, value)| (name.as_str(), *value)), expected, "{text}");
        };
        check("base=6e21", Some(("base", 6e21)));
        check("a=b=3000000000000", Some(("a=b", 3e12)));
        check("base", None);
        check("=6e21", None);
        check("base=-1", None);
        check("base=0", None);
        check("base=inf", None);
        check("base=many", None);
    }
}
