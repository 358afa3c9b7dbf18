//! Charts, as SVG text and as PNG.
//!
//! A chart is drawn as SVG, and a PNG is that SVG in pixels, so that both show the same. Text is left to the fonts of the
//! reader, or of this machine: families with Hangul are named first. It knows nothing of models.
//! Tests: `cargo test -p kanana-plot`.

mod axis;
mod draw;
mod heat_map;
mod lines;
mod png;
mod scatter;

pub use axis::{Axis, ticks};
pub use draw::{escape, width as text_width};
pub use heat_map::HeatMap;
pub use lines::{LineChart, Panel, Series};
pub use png::{Picture, PlotError, png};
pub use scatter::{Group, Point, ScatterChart};
