//! Bars of scores with their intervals, published figures as marks below: an SVG that takes its colours and fonts from the page.

use std::fmt::Write;

use kanana_plot::{escape, text_width};

use super::published::{Figure, Kind, figures};
use super::{Report, number};
use crate::Metric;

const WIDTH: f64 = 800.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 780.0;
const BAR: f64 = 16.0;
/// Of the names of published models.
const NAME: f64 = 10.5;
const LANE: f64 = 13.0;
const LANES: usize = 3;

/// A row for each task of a kind; None without any.
pub fn scores(report: &Report, kind: Kind) -> Option<String> {
    let tasks = report.tasks().into_iter().filter(|task| Kind::of_task(task) == kind);
    let rows: Vec<Row> = tasks.filter_map(|task| Row::of(report, task, kind)).collect();
    if rows.is_empty() {
        return None;
    }
    let mut body = String::new();
    let mut y = 8.0;
    if report.entries.len() > 1 {
        let mut x = LEFT;
        for (index, entry) in report.entries.iter().enumerate() {
            let wide = 26.0 + text_width(&entry.name, 12.0);
            if index > 0 && x + wide > RIGHT {
                (x, y) = (LEFT, y + 18.0);
            }
            let _ = writeln!(
                body,
                "<rect class=\"r{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"11\" height=\"11\"/>",
                index % 6
            );
            words(&mut body, (x + 16.0, y + 10.0), "start", "name", &entry.name);
            x += wide + 12.0;
        }
        y += 24.0;
    }
    let mut scale = 0.0;
    for row in &rows {
        let shown = (row.top - scale).abs() > f64::EPSILON;
        scale = row.top;
        y = row.draw(&mut body, y, shown);
    }
    let label = format!("Scores of {} beside the published {} models", report.title(), kind.name());
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"scores\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {WIDTH} {y:.0}\">\n{body}</svg>\n",
        escape(&label)
    ))
}

/// One task.
struct Row {
    name: String,
    /// Each with the place of its run among all.
    scores: Vec<(usize, Metric)>,
    figures: Vec<Figure>,
    /// The end of the scale.
    top: f64,
}

impl Row {
    fn of(report: &Report, name: String, kind: Kind) -> Option<Self> {
        let metric = |(index, entry): (usize, &super::Entry)| {
            let metric = entry.task(&name)?.metrics.first()?.clone();
            metric.value.is_finite().then_some((index, metric))
        };
        let scores: Vec<(usize, Metric)> = report.entries.iter().enumerate().filter_map(metric).collect();
        let column = report.entries.iter().find_map(|entry| entry.task(&name)?.column.clone());
        let figures = match column {
            Some(column) if report.published => figures(kind, &column),
            _ => Vec::new(),
        };
        let values =
            scores.iter().map(|(_, metric)| metric.value).chain(figures.iter().map(|figure| figure.value));
        let largest = values.fold(0.0, f64::max);
        // Judges give up to ten points; everything else is in per cent. Where nothing is published there is no telling.
        let points = !figures.is_empty() && largest <= 10.0;
        (!scores.is_empty()).then(|| Row {
            name,
            scores,
            figures,
            top: if points { 10.0 } else { largest.max(100.0) },
        })
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (value / self.top).clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    /// Returns where the next one begins.
    fn draw(&self, svg: &mut String, top: f64, with_scale: bool) -> f64 {
        let y = if with_scale { top + 18.0 } else { top };
        let bottom = y + self.scores.len() as f64 * (BAR + 4.0) + 6.0;
        for quarter in 0..=4 {
            let value = self.top * f64::from(quarter) / 4.0;
            let x = self.x(value);
            let _ = writeln!(
                svg,
                "<line class=\"rule\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>"
            );
            if with_scale {
                words(svg, (x, top + 10.0), "middle", "tick", &format!("{value}"));
            }
        }
        let middle = (y + bottom - 6.0) / 2.0;
        words(svg, (LEFT - 12.0, middle + 3.0), "end", "name", &self.name);
        for (row, (index, metric)) in self.scores.iter().enumerate() {
            self.bar(svg, y + row as f64 * (BAR + 4.0), index % 6, metric);
        }
        let lanes = self.marks(svg, bottom);
        bottom + lanes as f64 * LANE + 22.0
    }

    fn bar(&self, svg: &mut String, y: f64, colour: usize, metric: &Metric) {
        let end = self.x(metric.value);
        let _ = writeln!(
            svg,
            "<rect class=\"r{colour}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\"><title>{}</title></rect>",
            (end - LEFT).max(1.0),
            escape(&number::score(metric))
        );
        let mut right = end;
        if let Some((low, high)) = number::interval(metric) {
            let (low, high, y) = (self.x(low), self.x(high), y + BAR / 2.0);
            let _ = writeln!(
                svg,
                "<path class=\"whisker\" d=\"M{low:.1} {y:.1}H{high:.1}M{low:.1} {0:.1}V{1:.1}M{high:.1} {0:.1}V{1:.1}\"/>",
                y - 4.0,
                y + 4.0
            );
            right = high;
        }
        let value = format!("{:.2}", metric.value);
        let y = y + BAR / 2.0 + 4.0;
        if right + 8.0 + text_width(&value, 12.0) < RIGHT {
            words(svg, (right + 8.0, y), "start", "value", &value);
        } else {
            words(svg, (LEFT + 8.0, y), "start", "value inside", &value);
        }
    }

    /// Marks of what was published, and names as far as there is room, those nearest to the first run's score before others: the
    /// table has them all. Returns the number of lanes that the names take.
    fn marks(&self, svg: &mut String, y: f64) -> usize {
        let own = self.scores.first().map_or(0.0, |(_, metric)| metric.value);
        let mut figures: Vec<&Figure> = self.figures.iter().collect();
        figures.sort_by(|a, b| (a.value - own).abs().total_cmp(&(b.value - own).abs()));
        // From where to where each lane is taken.
        let mut lanes: [Vec<(f64, f64)>; LANES] = Default::default();
        let mut names = String::new();
        for figure in figures {
            let x = self.x(figure.value);
            let title = escape(&format!("{}{} {:.2}", figure.model, figure.mark, figure.value));
            let _ = writeln!(
                svg,
                "<path class=\"mark\" d=\"M{x:.1} {:.1}V{:.1}\"><title>{title}</title></path>",
                y - 6.0,
                y + 4.0
            );
            let name = figure.model.strip_prefix("Kanana-").unwrap_or(figure.model).to_owned() + figure.mark;
            let wide = text_width(&name, NAME);
            let left = (x - wide / 2.0).clamp(LEFT - 20.0, RIGHT + 10.0 - wide);
            let free = |lane: &Vec<(f64, f64)>| {
                lane.iter().all(|&(from, to)| to + 4.0 <= left || left + wide + 4.0 <= from)
            };
            let Some(lane) = lanes.iter().position(free) else { continue };
            lanes[lane].push((left, left + wide));
            let below = y + 7.0 + lane as f64 * LANE;
            let _ = writeln!(svg, "<path class=\"lead\" d=\"M{x:.1} {:.1}V{:.1}\"/>", y + 4.0, below + 1.0);
            let at = (left + wide / 2.0, below + 9.0);
            words(&mut names, at, "middle", "model", &name);
        }
        svg.push_str(&names);
        lanes.iter().take_while(|lane| !lane.is_empty()).count()
    }
}

fn words(svg: &mut String, (x, y): (f64, f64), anchor: &str, class: &str, content: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(content)
    );
}
