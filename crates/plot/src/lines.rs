//! Curves over a common axis, one panel for each quantity, below one another.

use std::fmt::Write;

use crate::draw::{self, COLOURS, line, text};
use crate::{Axis, ticks};

/// A curve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Where it passes, by rising x; a point that is not finite breaks it.
    pub points: Vec<(f64, f64)>,
    /// Points that are far apart: they are marked, and never smoothed.
    pub sparse: bool,
}

impl Series {
    /// Each y is `share` of the one before it, smoothed likewise, and the rest its own. 0 changes nothing.
    pub fn smoothed(&self, share: f64) -> Series {
        let (mut mean, mut weight) = (0.0, 0.0);
        let smooth = |&(x, y): &(f64, f64)| {
            if !y.is_finite() {
                return (x, y);
            }
            mean = share * mean + (1.0 - share) * y;
            weight = share * weight + (1.0 - share);
            (x, mean / weight)
        };
        Series { points: self.points.iter().map(smooth).collect(), ..self.clone() }
    }
}

/// A quantity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Panel {
    /// What is drawn upwards, with its unit.
    pub label: String,
    /// The curves.
    pub series: Vec<Series>,
    /// Whether it is logarithmic.
    pub log: bool,
    /// How much curves that are not sparse are smoothed, 0 to 1; the raw ones stay, pale.
    pub smooth: f64,
}

/// Panels over one axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LineChart {
    /// Above all.
    pub title: String,
    /// What is drawn to the right, with its unit.
    pub x_label: String,
    /// From top to bottom. Curves of the same name have the same colour in all.
    pub panels: Vec<Panel>,
}

const WIDTH: f64 = 900.0;
const PANEL: f64 = 300.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 24.0;
const GAP: f64 = 26.0;

impl LineChart {
    /// The chart as SVG text.
    pub fn svg(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for series in self.panels.iter().flat_map(|panel| &panel.series) {
            if !names.contains(&series.name.as_str()) {
                names.push(&series.name);
            }
        }
        let all = self.panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points);
        let x_axis = Axis::over(all.map(|point| point.0), false);
        let top = 46.0 + 22.0 * names.len().div_ceil(3) as f64;
        let height = top + self.panels.len() as f64 * (PANEL + GAP) + 34.0;
        let mut svg = draw::begin((WIDTH, height), &self.title);
        text(&mut svg, (LEFT, 28.0), "start", draw::TITLE, &self.title);
        for (i, name) in names.iter().enumerate() {
            let (x, y) = (LEFT + (i % 3) as f64 * 270.0, 52.0 + 22.0 * (i / 3) as f64);
            line(&mut svg, (x, y - 4.0), (x + 22.0, y - 4.0), COLOURS[i % COLOURS.len()], 2.5);
            text(&mut svg, (x + 29.0, y), "start", "fill=\"#333333\"", name);
        }
        for (i, panel) in self.panels.iter().enumerate() {
            let y = top + i as f64 * (PANEL + GAP);
            draw(&mut svg, panel, &x_axis, y, &names);
        }
        let bottom = top + self.panels.len() as f64 * (PANEL + GAP) - GAP;
        for (value, label) in ticks(&x_axis, 8) {
            let x = LEFT + x_axis.place(value) * (WIDTH - LEFT - RIGHT);
            text(&mut svg, (x, bottom + 18.0), "middle", "fill=\"#555555\" font-size=\"12\"", &label);
        }
        text(
            &mut svg,
            ((LEFT + WIDTH - RIGHT) / 2.0, bottom + 40.0),
            "middle",
            "fill=\"#333333\"",
            &self.x_label,
        );
        svg + "</svg>\n"
    }
}

/// A panel, its axes and its curves.
fn draw(svg: &mut String, panel: &Panel, x_axis: &Axis, top: f64, names: &[&str]) {
    let points = panel.series.iter().flat_map(|series| &series.points).map(|point| point.1);
    let mut y_axis = Axis::over(points, panel.log);
    if !panel.log {
        let room = 0.04 * (y_axis.to - y_axis.from);
        y_axis = Axis { from: y_axis.from - room, to: y_axis.to + room, ..y_axis };
    }
    let place = |(x, y): (f64, f64)| {
        let right = LEFT + x_axis.place(x) * (WIDTH - LEFT - RIGHT);
        (right, top + PANEL * (1.0 - y_axis.place(y)))
    };
    for (value, label) in ticks(&y_axis, 5) {
        let (_, y) = place((x_axis.from, value));
        line(svg, (LEFT, y), (WIDTH - RIGHT, y), "#e6e6e6", 1.0);
        text(svg, (LEFT - 8.0, y + 4.0), "end", "fill=\"#555555\" font-size=\"12\"", &label);
    }
    for (value, _) in ticks(x_axis, 8) {
        let (x, _) = place((value, y_axis.from));
        line(svg, (x, top), (x, top + PANEL), "#f0f0f0", 1.0);
    }
    line(svg, (LEFT, top + PANEL), (WIDTH - RIGHT, top + PANEL), "#888888", 1.0);
    let middle = top + PANEL / 2.0;
    let turn = format!("fill=\"#333333\" transform=\"rotate(-90 20 {middle})\"");
    text(svg, (20.0, middle), "middle", &turn, &panel.label);
    for series in &panel.series {
        let colour = names.iter().position(|name| *name == series.name).unwrap_or(0) % COLOURS.len();
        let colour = COLOURS[colour];
        if series.sparse || panel.smooth == 0.0 {
            curve(svg, series, &y_axis, &place, (colour, 1.0));
        } else {
            curve(svg, series, &y_axis, &place, (colour, 0.22));
            curve(svg, &series.smoothed(panel.smooth), &y_axis, &place, (colour, 1.0));
        }
        for &point in series.points.iter().filter(|point| series.sparse && y_axis.takes(point.1)) {
            let (x, y) = place(point);
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.2\" fill=\"{colour}\"/>");
        }
    }
}

fn curve(
    svg: &mut String,
    series: &Series,
    y_axis: &Axis,
    place: &impl Fn((f64, f64)) -> (f64, f64),
    (colour, opacity): (&str, f64),
) {
    let mut path = String::new();
    let mut pen_up = true;
    for &point in &series.points {
        if !y_axis.takes(point.1) || !point.0.is_finite() {
            pen_up = true;
            continue;
        }
        let (x, y) = place(point);
        let _ = write!(path, "{}{x:.1} {y:.1} ", if pen_up { 'M' } else { 'L' });
        pen_up = false;
    }
    let _ = writeln!(
        svg,
        "<path d=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-opacity=\"{opacity}\" \
         stroke-linejoin=\"round\"/>",
        path.trim_end()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> LineChart {
        let series = |name: &str, sparse| Series {
            name: name.to_owned(),
            points: (0..50)
                .map(|i| (f64::from(i), if i == 20 { f64::NAN } else { 9.0 / f64::from(i + 1) }))
                .collect(),
            sparse,
        };
        LineChart {
            title: "손실 <loss>".to_owned(),
            x_label: "step".to_owned(),
            panels: vec![
                Panel {
                    label: "loss, nats".to_owned(),
                    series: vec![series("하나", false), series("둘", false)],
                    log: true,
                    smooth: 0.9,
                },
                Panel {
                    label: "bits per byte".to_owned(),
                    series: vec![series("하나", true)],
                    log: false,
                    smooth: 0.9,
                },
            ],
        }
    }

    #[test]
    fn a_chart_has_its_parts() {
        let svg = chart().svg();
        assert!(svg.contains("손실 &lt;loss&gt;"));
        // Raw and smoothed of two curves, and one that is sparse; 49 marks; each broken once by what is not a number.
        assert_eq!(svg.matches("<path").count(), 5);
        assert_eq!(svg.matches("<circle").count(), 49);
        assert_eq!(svg.matches(" M").count() + svg.matches("\"M").count(), 10);
        assert_eq!(svg.matches(">하나</text>").count(), 1, "one entry in the legend");
    }

    #[test]
    fn smoothing_keeps_a_constant() {
        let series = Series { points: vec![(0.0, 2.0), (1.0, 2.0), (2.0, 2.0)], ..Series::default() };
        for (got, expected) in series.smoothed(0.9).points.iter().zip(&series.points) {
            assert!((got.1 - expected.1).abs() < 1e-12);
        }
        assert_eq!(series.smoothed(0.0), series);
    }

    #[test]
    fn an_empty_chart_is_a_chart() {
        assert!(
            LineChart { panels: vec![Panel::default()], ..LineChart::default() }.svg().contains("</svg>")
        );
    }
}
