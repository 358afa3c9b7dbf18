//! `kanana plot`: the curves of one run or of several.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kanana_plot::{LineChart, Panel, Series, png};
use serde_json::Value;

use crate::hints::failure;
use crate::output;

/// Draw the curves of training runs as PNG and SVG.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana plot runs/pico
  kanana plot runs/a runs/b --metric loss,grad_norm --smooth 0.95 --out compare.png
  kanana plot runs/pico --metric eval.ko.bits_per_byte,eval.en.bits_per_byte --x tokens

A metric is a number of metrics.jsonl; dots go into what is measured on the evaluation texts. Several runs are laid over
one another; metrics of eval that differ only in the name of the text share a panel.")]
pub struct PlotArgs {
    /// Folders that hold a metrics.jsonl, or such files
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// What to draw, one panel each
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "loss")]
    metric: Vec<String>,

    /// What to draw it over
    #[arg(long, value_enum, default_value_t = Over::Step)]
    x: Over,

    /// Smooth the curves of single steps: the share of the past in each point
    #[arg(long, value_name = "0..1", default_value_t = 0.9, value_parser = share)]
    smooth: f64,

    /// Draw upwards in equal ratios
    #[arg(long)]
    log_y: bool,

    /// The heading
    #[arg(long, value_name = "TEXT", default_value = "")]
    title: String,

    /// A file that ends in .png or .svg, or the start of the names of both
    #[arg(long, value_name = "FILE", default_value = "curves")]
    out: PathBuf,
}

/// `--x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Over {
    Step,
    Tokens,
    Seconds,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to below 1".to_owned()),
    }
}

/// The lines of one run that are of steps.
struct Run {
    name: String,
    lines: Vec<Value>,
}

pub fn run(args: &PlotArgs) -> Result<()> {
    let runs: Vec<Run> = args.runs.iter().map(|path| read(path)).collect::<Result<_>>()?;
    let (field, x_label) = match args.x {
        Over::Step => ("step", "step"),
        Over::Tokens => ("tokens", "tokens"),
        Over::Seconds => ("seconds", "seconds"),
    };
    let mut panels: Vec<Panel> = Vec::new();
    for metric in &args.metric {
        let series: Vec<Series> = runs.iter().map(|run| run.series(metric, field, runs.len() > 1)).collect();
        if series.iter().all(|series| series.points.is_empty()) {
            return Err(unknown(metric, &runs));
        }
        let label = label(metric);
        match panels.iter_mut().find(|panel| panel.label == label && metric.starts_with("eval.")) {
            Some(panel) => panel.series.extend(series),
            None => {
                // A schedule is no measurement: nothing of it is noise.
                let smooth = if metric == "lr" { 0.0 } else { args.smooth };
                panels.push(Panel { label, series, log: args.log_y, smooth });
            }
        }
    }
    let chart = LineChart { title: args.title.clone(), x_label: x_label.to_owned(), panels };
    save(&chart.svg(), &args.out)?.iter().try_for_each(|path| output::println(path.display()))
}

/// Writes a chart to a file that ends in .png or .svg, or to both. Returns where.
pub fn save(svg: &str, out: &Path) -> Result<Vec<PathBuf>> {
    let extension = out.extension().and_then(|extension| extension.to_str());
    let mut written = Vec::new();
    if extension != Some("png") {
        let path = if extension == Some("svg") { out.to_owned() } else { with(out, "svg") };
        std::fs::write(&path, svg).with_context(|| path.display().to_string())?;
        written.push(path);
    }
    if extension != Some("svg") {
        let picture = png(svg, 2.0)?;
        if !picture.has_hangul && svg.chars().any(|c| ('가'..='힣').contains(&c)) {
            output::note(
                "no font of this machine has Hangul: install one (fonts-nanum, say), or take the SVG",
            );
        }
        let path = if extension == Some("png") { out.to_owned() } else { with(out, "png") };
        std::fs::write(&path, picture.bytes).with_context(|| path.display().to_string())?;
        written.push(path);
    }
    Ok(written)
}

fn with(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{extension}"));
    name.into()
}

fn read(path: &Path) -> Result<Run> {
    let file = if path.is_dir() { path.join("metrics.jsonl") } else { path.to_owned() };
    let text = std::fs::read_to_string(&file).map_err(|error| {
        failure(
            format!("{}: {error}", file.display()),
            "give a folder that `kanana train` wrote to, or a metrics file",
        )
    })?;
    let count = text.lines().count();
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate() {
        match serde_json::from_str::<Value>(line) {
            Ok(value) => lines.push(value),
            // A run that was killed, or is being written to.
            Err(_) if i + 1 == count => {
                output::note(format!("{}: the last line is torn, and left out", file.display()))
            }
            Err(error) => {
                let message = format!("{}: line {}: not JSON: {error}", file.display(), i + 1);
                return Err(failure(message, "a metrics file has one JSON object a line"));
            }
        }
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let name =
        folder.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned());
    Ok(Run { name, lines })
}

impl Run {
    fn series(&self, metric: &str, over: &str, named: bool) -> Series {
        let at = |line: &Value, path: &str| {
            path.split('.').try_fold(line.clone(), |value, key| value.get(key).cloned())
        };
        let points = self.lines.iter().filter_map(|line| {
            let y = at(line, metric)?;
            // What is not finite is null in JSON: it breaks the curve.
            let y = if y.is_null() { f64::NAN } else { y.as_f64()? };
            Some((line[over].as_f64()?, y))
        });
        let points: Vec<(f64, f64)> = points.collect();
        let sparse = metric.starts_with("eval.");
        let text = metric.split('.').nth(1).filter(|_| sparse).unwrap_or("");
        let name = match (named, text) {
            (true, "") => self.name.clone(),
            (true, text) => format!("{} {text}", self.name),
            (false, "") => metric.to_owned(),
            (false, text) => text.to_owned(),
        };
        Series { name, points, sparse }
    }
}

/// What stands beside a panel.
fn label(metric: &str) -> String {
    let name = metric.rsplit('.').next().unwrap_or(metric);
    let unit = match name {
        "loss" => ", nats",
        "tokens_per_second" => ", 1/s",
        "memory_bytes" => ", bytes",
        _ => "",
    };
    format!("{}{unit}", name.replace('_', " "))
}

fn unknown(metric: &str, runs: &[Run]) -> anyhow::Error {
    let mut known = std::collections::BTreeSet::new();
    for line in runs.iter().flat_map(|run| &run.lines) {
        numbers(line, "", &mut known);
    }
    let nearest = known.iter().min_by_key(|name| strsim::levenshtein(name, metric));
    let hint = match nearest {
        Some(name) => format!(
            "did you mean {name}? There are: {}",
            known.iter().cloned().collect::<Vec<_>>().join(", ")
        ),
        None => "the runs have no metrics yet".to_owned(),
    };
    failure(format!("no run has a metric {metric:?}"), hint)
}

fn numbers(value: &Value, path: &str, to: &mut std::collections::BTreeSet<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            Value::Number(_) => {
                to.insert(path);
            }
            _ => numbers(value, &path, to),
        }
    }
}
