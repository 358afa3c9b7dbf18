//! A value for each pair of two things, as the colour of a cell: needles in haystacks, by length and depth.

use std::fmt::Write;

use crate::draw::{self, LABEL, SUBTITLE, TICK, TITLE, line, text, upward, width};
use crate::{Axis, ticks};

/// From the lowest value to the highest.
const SCALE: [[u8; 3]; 5] = [[214, 64, 69], [239, 138, 76], [246, 212, 88], [136, 199, 108], [38, 160, 105]];
/// Cells that have no value are of this colour, and crossed out.
const NOTHING: &str = "#f1f1f1";

/// Cells in rows and columns.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// Above all.
    pub title: String,
    /// Below the title, smaller; may be empty.
    pub subtitle: String,
    /// What the columns are, with their unit.
    pub x_label: String,
    /// What the rows are, with their unit.
    pub y_label: String,
    /// From left to right. Where they are too many for their names, some go without.
    pub columns: Vec<String>,
    /// From top to bottom.
    pub rows: Vec<String>,
    /// By row, then by column. What is absent or not finite has no colour.
    pub values: Vec<Vec<Option<f64>>>,
    /// What the first and the last colour stand for; values beyond take these.
    pub range: (f64, f64),
    /// What the colours stand for, with its unit.
    pub colour_label: String,
    /// Write the values into the cells, where there is room.
    pub show_values: bool,
}

impl Default for HeatMap {
    fn default() -> Self {
        HeatMap {
            title: String::new(),
            subtitle: String::new(),
            x_label: String::new(),
            y_label: String::new(),
            columns: Vec::new(),
            rows: Vec::new(),
            values: Vec::new(),
            range: (0.0, 10.0),
            colour_label: String::new(),
            show_values: false,
        }
    }
}

impl HeatMap {
    /// The chart as SVG text.
    pub fn svg(&self) -> String {
        let cell = (
            (720.0 / self.columns.len().max(1) as f64).clamp(6.0, 84.0),
            (420.0 / self.rows.len().max(1) as f64).clamp(6.0, 44.0),
        );
        let grid = (cell.0 * self.columns.len() as f64, cell.1 * self.rows.len() as f64);
        let widest = |names: &[String]| names.iter().map(|name| width(name, 12.0)).fold(0.0, f64::max);
        let left = 52.0 + widest(&self.rows);
        let top = if self.subtitle.is_empty() { 50.0 } else { 72.0 };
        // Names of columns stand upright only where all of them fit.
        let slanted = widest(&self.columns) > cell.0 - 6.0;
        let below = if slanted { 16.0 + 0.72 * widest(&self.columns) } else { 20.0 };
        let right = left + grid.0 + 104.0;
        let titles = width(&self.title, 17.0).max(width(&self.subtitle, 13.0));
        let size = (right.max(left + titles + 20.0), top + grid.1 + below + 34.0);

        let mut svg = draw::begin(size, &self.title);
        text(&mut svg, (left, 30.0), "start", TITLE, &self.title);
        if !self.subtitle.is_empty() {
            text(&mut svg, (left, 53.0), "start", SUBTITLE, &self.subtitle);
        }
        self.cells(&mut svg, (left, top), cell);
        let every = every(18.0, cell.1);
        for (i, name) in self.rows.iter().enumerate().step_by(every) {
            let y = top + (i as f64 + 0.5) * cell.1 + 4.0;
            text(&mut svg, (left - 9.0, y), "end", TICK, name);
        }
        let every = if slanted { self::every(18.0, cell.0) } else { 1 };
        for (i, name) in self.columns.iter().enumerate().step_by(every) {
            let (x, y) = (left + (i as f64 + 0.5) * cell.0, top + grid.1 + 18.0);
            if slanted {
                let turn = format!("{TICK} transform=\"rotate(-45 {:.1} {:.1})\"", x + 4.0, y - 2.0);
                text(&mut svg, (x + 4.0, y - 2.0), "end", &turn, name);
            } else {
                text(&mut svg, (x, y), "middle", TICK, name);
            }
        }
        text(&mut svg, (left + grid.0 / 2.0, top + grid.1 + below + 18.0), "middle", LABEL, &self.x_label);
        upward(&mut svg, (22.0, top + grid.1 / 2.0), &self.y_label);
        self.scale(&mut svg, (left + grid.0 + 26.0, top), grid.1.max(60.0));
        svg + "</svg>\n"
    }

    fn cells(&self, svg: &mut String, (left, top): (f64, f64), cell: (f64, f64)) {
        // A hairline of white between cells, where they are large enough to be counted.
        let gap = if cell.0.min(cell.1) >= 14.0 { 1.0 } else { 0.0 };
        for row in 0..self.rows.len() {
            for column in 0..self.columns.len() {
                let value = self.values.get(row).and_then(|row| *row.get(column)?).filter(|v| v.is_finite());
                let (x, y) = (left + column as f64 * cell.0, top + row as f64 * cell.1);
                let (right, bottom) = (x + cell.0 - gap, y + cell.1 - gap);
                let fill = value.map_or_else(|| NOTHING.to_owned(), |value| hex(self.colour(value)));
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{:.2}\" fill=\"{fill}\"/>",
                    right - x,
                    bottom - y
                );
                match value {
                    None => line(svg, (x, bottom), (right, y), "#c8c8c8", 1.0),
                    Some(value) if self.show_values => {
                        let number = short(value);
                        let at = (x + (cell.0 - gap) / 2.0, y + (cell.1 - gap) / 2.0 + 4.0);
                        if width(&number, 11.0) <= cell.0 - 4.0 && cell.1 >= 15.0 {
                            let ink = format!("font-size=\"11\" fill=\"{}\"", ink(self.colour(value)));
                            text(svg, at, "middle", &ink, &number);
                        }
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// The bar that says what the colours stand for.
    fn scale(&self, svg: &mut String, (left, top): (f64, f64), height: f64) {
        svg.push_str("<defs><linearGradient id=\"heat\" x1=\"0\" y1=\"1\" x2=\"0\" y2=\"0\">");
        for (i, colour) in SCALE.iter().enumerate() {
            let offset = i as f64 / (SCALE.len() - 1) as f64;
            let _ = write!(svg, "<stop offset=\"{offset}\" stop-color=\"{}\"/>", hex(*colour));
        }
        let _ = writeln!(
            svg,
            "</linearGradient></defs>\n<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"16\" height=\"{height:.1}\" \
             fill=\"url(#heat)\"/>"
        );
        let axis = Axis { from: self.range.0, to: self.range.1, log: false };
        if self.range.1 > self.range.0 {
            for (value, label) in ticks(&axis, 5) {
                let y = top + height * (1.0 - axis.place(value));
                line(svg, (left + 16.0, y), (left + 20.0, y), "#888888", 1.0);
                text(svg, (left + 25.0, y + 4.0), "start", TICK, &label);
            }
        }
        upward(svg, (left + 64.0, top + height / 2.0), &self.colour_label);
    }

    /// The colour of a value.
    fn colour(&self, value: f64) -> [u8; 3] {
        let (from, to) = self.range;
        let share = if to > from { ((value - from) / (to - from)).clamp(0.0, 1.0) } else { 0.5 };
        let at = share * (SCALE.len() - 1) as f64;
        let low = (at.floor() as usize).min(SCALE.len() - 2);
        let part = at - low as f64;
        let mix = |i: usize| {
            f64::from(SCALE[low][i]).mul_add(1.0 - part, f64::from(SCALE[low + 1][i]) * part).round() as u8
        };
        [mix(0), mix(1), mix(2)]
    }
}

/// Of names that need `room` each, one of so many fits where they lie `step` apart.
fn every(room: f64, step: f64) -> usize {
    ((room / step).ceil() as usize).max(1)
}

fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Black or white, whichever is read better on a colour. Source: relative luminance of WCAG 2.2.
fn ink(colour: [u8; 3]) -> &'static str {
    let linear = |channel: u8| match f64::from(channel) / 255.0 {
        c if c <= 0.04045 => c / 12.92,
        c => ((c + 0.055) / 1.055).powf(2.4),
    };
    let [red, green, blue] = colour.map(linear);
    let luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) { "#1a1a1a" } else { "#ffffff" }
}

/// At most one decimal, and none that says nothing.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn map(columns: usize, rows: usize) -> HeatMap {
        HeatMap {
            title: "바늘 <찾기>".to_owned(),
            columns: (0..columns).map(|i| format!("{}k", i + 1)).collect(),
            rows: (0..rows).map(|i| format!("{i}")).collect(),
            values: (0..rows).map(|row| (0..columns).map(|c| Some((row * c) as f64)).collect()).collect(),
            show_values: true,
            ..HeatMap::default()
        }
    }

    #[test]
    fn cells_have_colours_and_values() {
        let check =
            |value: f64, expected: &str| assert_eq!(hex(map(1, 1).colour(value)), expected, "{value}");
        check(0.0, "#d64045");
        check(-3.0, "#d64045");
        check(5.0, "#f6d458");
        check(10.0, "#26a069");
        check(99.0, "#26a069");
        let svg = map(3, 2).svg();
        assert!(svg.contains("바늘 &lt;찾기&gt;"));
        // The page, the bar and six cells.
        assert_eq!(svg.matches("<rect").count(), 8);
        assert_eq!(svg.matches(">2</text>").count(), 2, "a value, and a tick of the bar");
    }

    #[test]
    fn what_is_missing_is_crossed_out() {
        let mut map = map(3, 2);
        map.values = vec![vec![Some(f64::NAN), None]];
        assert_eq!(map.svg().matches(NOTHING).count(), 6);
    }

    #[test]
    fn ink_is_read_on_every_colour() {
        for (colour, expected) in [([0; 3], "#ffffff"), ([255; 3], "#1a1a1a"), (SCALE[2], "#1a1a1a")] {
            assert_eq!(ink(colour), expected);
        }
    }

    #[test]
    fn any_size_is_a_chart() {
        for map in [HeatMap::default(), map(1, 1), map(400, 300), HeatMap { range: (1.0, 1.0), ..map(2, 2) }]
        {
            let svg = map.svg();
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
            resvg::usvg::Tree::from_str(&svg, &resvg::usvg::Options::default()).unwrap();
        }
    }
}
