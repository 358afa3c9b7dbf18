//! Named points in a plane: what a thing costs against how good it is.

use std::fmt::Write;

use crate::draw::{self, COLOURS, LABEL, SUBTITLE, TICK, TITLE, line, text, upward, width};
use crate::{Axis, ticks};

/// Points of one kind, drawn alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Its name in the legend.
    pub name: String,
    /// In any order.
    pub points: Vec<Point>,
}

/// A point with its name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// To the right.
    pub x: f64,
    /// Upwards.
    pub y: f64,
    /// Beside it.
    pub name: String,
    /// From where to where y may lie.
    pub interval: Option<(f64, f64)>,
}

/// Points over two axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScatterChart {
    /// Above all.
    pub title: String,
    /// Below the title, smaller; may be empty.
    pub subtitle: String,
    /// What is drawn to the right, with its unit.
    pub x_label: String,
    /// What is drawn upwards, with its unit.
    pub y_label: String,
    /// Whether equal distances to the right are equal ratios.
    pub log_x: bool,
    /// In the order of the legend. Points without a place are left out.
    pub groups: Vec<Group>,
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 24.0;
/// Of a mark, half its size.
const MARK: f64 = 5.0;
/// Of names beside points.
const NAME: f64 = 12.0;

/// A rectangle: left, top, right, bottom.
type Box = [f64; 4];

impl ScatterChart {
    /// The chart as SVG text.
    pub fn svg(&self) -> String {
        let takes =
            |point: &&Point| point.y.is_finite() && point.x.is_finite() && (!self.log_x || point.x > 0.0);
        let points = || self.groups.iter().flat_map(|group| &group.points).filter(takes);
        let x_axis = room(Axis::over(points().map(|point| point.x), self.log_x), 0.07);
        let ends = |point: &Point| {
            let (low, high) = point.interval.unwrap_or((point.y, point.y));
            [point.y, low, high]
        };
        let y_axis = room(Axis::over(points().flat_map(ends), false), 0.08);
        let top = if self.subtitle.is_empty() { 42.0 } else { 64.0 } + 26.0;
        let area = [LEFT, top, WIDTH - RIGHT, top + HEIGHT];
        let place = |x: f64, y: f64| {
            (LEFT + x_axis.place(x) * (WIDTH - LEFT - RIGHT), top + HEIGHT * (1.0 - y_axis.place(y)))
        };

        let mut svg = draw::begin((WIDTH, top + HEIGHT + 62.0), &self.title);
        text(&mut svg, (LEFT, 30.0), "start", TITLE, &self.title);
        if !self.subtitle.is_empty() {
            text(&mut svg, (LEFT, 53.0), "start", SUBTITLE, &self.subtitle);
        }
        self.legend(&mut svg, top - 14.0);
        for (value, label) in ticks(&y_axis, 8) {
            let (_, y) = place(x_axis.from, value);
            line(&mut svg, (LEFT, y), (WIDTH - RIGHT, y), "#e6e6e6", 1.0);
            text(&mut svg, (LEFT - 8.0, y + 4.0), "end", TICK, &label);
        }
        for (value, label) in ticks(&x_axis, 8) {
            let (x, _) = place(value, y_axis.from);
            line(&mut svg, (x, top), (x, top + HEIGHT), "#f0f0f0", 1.0);
            text(&mut svg, (x, top + HEIGHT + 19.0), "middle", TICK, &label);
        }
        line(&mut svg, (LEFT, top + HEIGHT), (WIDTH - RIGHT, top + HEIGHT), "#888888", 1.0);
        line(&mut svg, (LEFT, top), (LEFT, top + HEIGHT), "#888888", 1.0);
        text(&mut svg, ((LEFT + WIDTH - RIGHT) / 2.0, top + HEIGHT + 45.0), "middle", LABEL, &self.x_label);
        upward(&mut svg, (22.0, top + HEIGHT / 2.0), &self.y_label);

        let (mut names, mut whiskers) = (Vec::new(), Vec::new());
        for (index, group) in self.groups.iter().enumerate() {
            for point in group.points.iter().filter(takes) {
                let at = place(point.x, point.y);
                if let Some((low, high)) = point.interval.filter(|(low, high)| (low + high).is_finite()) {
                    let ends = [low, high].map(|y| (at.0, place(point.x, y).1));
                    whiskers.push([at.0 - 4.0, ends[1].1, at.0 + 4.0, ends[0].1]);
                    line(&mut svg, ends[0], ends[1], COLOURS[index % COLOURS.len()], 1.6);
                    for (x, y) in ends {
                        line(&mut svg, (x - 4.0, y), (x + 4.0, y), COLOURS[index % COLOURS.len()], 1.6);
                    }
                }
                mark(&mut svg, at, index);
                names.push((at, point.name.as_str(), index));
            }
        }
        labels(&mut svg, &names, whiskers, area);
        svg + "</svg>\n"
    }

    fn legend(&self, svg: &mut String, y: f64) {
        let mut x = LEFT + MARK;
        for (index, group) in self.groups.iter().enumerate().filter(|(_, group)| !group.points.is_empty()) {
            mark(svg, (x, y - 4.5), index);
            text(svg, (x + 11.0, y), "start", LABEL, &group.name);
            x += 34.0 + width(&group.name, 13.0);
        }
    }
}

/// An axis that is longer by a share at both ends.
fn room(axis: Axis, share: f64) -> Axis {
    if axis.log {
        let factor = (axis.to / axis.from).powf(share);
        return Axis { from: axis.from / factor, to: axis.to * factor, ..axis };
    }
    let more = share * (axis.to - axis.from);
    Axis { from: axis.from - more, to: axis.to + more, ..axis }
}

/// A circle, a square, a diamond or a triangle: groups differ in more than colour.
fn mark(svg: &mut String, (x, y): (f64, f64), index: usize) {
    let style =
        format!("fill=\"{}\" stroke=\"#ffffff\" stroke-width=\"1.2\"", COLOURS[index % COLOURS.len()]);
    let path = match index % 4 {
        0 => {
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{}\" {style}/>", MARK + 0.5);
            return;
        }
        1 => [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)].as_slice(),
        2 => &[(0.0, -1.35), (1.35, 0.0), (0.0, 1.35), (-1.35, 0.0)],
        _ => &[(0.0, -1.3), (1.25, 1.0), (-1.25, 1.0)],
    };
    let corner = |(dx, dy): &(f64, f64)| format!("{:.1},{:.1}", x + MARK * dx, y + MARK * dy);
    let corners: Vec<String> = path.iter().map(corner).collect();
    let _ = writeln!(svg, "<polygon points=\"{}\" {style}/>", corners.join(" "));
}

/// Writes every name where it covers no mark, no other name and no edge, as near to its point as that allows; a thin line
/// leads to those that had to go far.
fn labels(svg: &mut String, points: &[((f64, f64), &str, usize)], whiskers: Vec<Box>, area: Box) {
    let around = |(x, y): (f64, f64)| [x - MARK - 2.0, y - MARK - 2.0, x + MARK + 2.0, y + MARK + 2.0];
    let mut taken: Vec<Box> = points.iter().map(|point| around(point.0)).collect();
    taken.extend(whiskers);
    for (own, &(at, name, index)) in points.iter().enumerate() {
        let size = (width(name, NAME), NAME + 2.0);
        let cost = |rect: &Box| {
            let others = taken.iter().enumerate().filter(|(i, _)| *i != own);
            let covered: f64 = others.map(|(_, other)| overlap(rect, other)).sum();
            let inside = overlap(rect, &area);
            4.0 * (size.0 * size.1 - inside) + covered
        };
        let mut best = (f64::INFINITY, [0.0; 4], 0.0);
        for distance in [0.0, 8.0, 18.0, 30.0, 44.0, 60.0, 80.0] {
            for (dx, dy) in [(1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)] {
                let rect = beside(at, size, (dx, dy), MARK + 4.0 + distance);
                let cost = cost(&rect);
                if cost + 0.01 < best.0 {
                    best = (cost, rect, distance);
                }
            }
            if best.0 < 0.01 {
                break;
            }
        }
        let (_, rect, distance) = best;
        if distance > 0.0 {
            let end = (at.0.clamp(rect[0], rect[2]), at.1.clamp(rect[1] + 2.0, rect[3] - 2.0));
            line(svg, at, end, "#b5b5b5", 0.8);
        }
        let style =
            format!("font-size=\"{NAME}\" fill=\"{}\"", if index == 0 { "#222222" } else { "#444444" });
        // The width is a guess: the side towards the point is exact.
        let (x, anchor) = match () {
            () if rect[0] >= at.0 => (rect[0], "start"),
            () if rect[2] <= at.0 => (rect[2], "end"),
            () => ((rect[0] + rect[2]) / 2.0, "middle"),
        };
        text(svg, (x, rect[3] - 4.0), anchor, &style, name);
        taken.push(rect);
    }
}

/// The rectangle of a text in some direction of a point.
fn beside((x, y): (f64, f64), (w, h): (f64, f64), (dx, dy): (i32, i32), distance: f64) -> Box {
    let part = if dx != 0 && dy != 0 { 0.7 } else { 1.0 };
    let centre = |at: f64, direction: i32, half: f64| at + f64::from(direction) * (half + distance * part);
    let (cx, cy) = (centre(x, dx, w / 2.0), centre(y, dy, h / 2.0));
    [cx - w / 2.0, cy - h / 2.0, cx + w / 2.0, cy + h / 2.0]
}

/// The common area of two rectangles.
fn overlap(a: &Box, b: &Box) -> f64 {
    let along = |low: usize, high: usize| (a[high].min(b[high]) - a[low].max(b[low])).max(0.0);
    along(0, 2) * along(1, 3)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn point(x: f64, y: f64, name: &str) -> Point {
        Point { x, y, name: name.to_owned(), interval: None }
    }

    fn chart(points: Vec<Point>) -> ScatterChart {
        let groups = vec![Group { name: "카나나 & 하나".to_owned(), points }];
        ScatterChart { title: "FLOPs".to_owned(), log_x: true, groups, ..ScatterChart::default() }
    }

    #[test]
    fn a_chart_has_its_parts() {
        let mut points =
            vec![point(1e21, 50.0, "가"), point(1e23, 70.0, "<b>"), point(-1.0, 3.0, "no place")];
        points[0].interval = Some((48.0, 52.0));
        let svg = chart(points).svg();
        assert_eq!(svg.matches("<circle").count(), 3, "two points and the legend");
        assert!(svg.contains(">&lt;b&gt;</text>") && svg.contains("카나나 &amp; 하나"));
        assert!(svg.contains(">10²²</text>"), "{svg}");
        assert!(!svg.contains("no place"));
    }

    #[test]
    fn names_do_not_overlap() {
        let points: Vec<_> =
            (0..8).map(|i| ((300.0 + f64::from(i) * 7.0, 200.0), "Kanana-2.1B", 0)).collect();
        let mut svg = String::new();
        labels(&mut svg, &points, Vec::new(), [0.0, 0.0, 900.0, 500.0]);
        let at = |line: &str, name: &str| -> f64 {
            let from = line.find(name).unwrap() + name.len();
            line[from..].split('"').next().unwrap().parse().unwrap()
        };
        let long = width("Kanana-2.1B", NAME);
        let boxed = |line: &str| -> Box {
            let (x, y) = (at(line, " x=\""), at(line, " y=\""));
            let left = match line {
                line if line.contains("\"start\"") => x,
                line if line.contains("\"end\"") => x - long,
                _ => x - long / 2.0,
            };
            [left, y + 4.0 - NAME - 2.0, left + long, y + 4.0]
        };
        let boxes: Vec<Box> = svg.lines().filter(|line| line.starts_with("<text")).map(boxed).collect();
        assert_eq!(boxes.len(), 8);
        for (i, a) in boxes.iter().enumerate() {
            for b in &boxes[i + 1..] {
                // Places are written with one decimal.
                assert!(overlap(a, b) < 3.0, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn any_points_are_a_chart() {
        for points in [vec![], vec![point(1e22, 50.0, "one")], vec![point(f64::NAN, 1.0, "none")]] {
            let svg = chart(points).svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            resvg::usvg::Tree::from_str(&svg, &resvg::usvg::Options::default()).unwrap();
        }
    }
}
