//! Standard output is data, standard error is the rest. Writing never panics: a closed pipe ends the program quietly,
//! a full disk is an error like any other.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use unicode_width::UnicodeWidthStr;

/// Standard output could not be written.
#[derive(Debug)]
pub struct OutputError(pub io::Error);

impl Display for OutputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for OutputError {}

/// Writes text to standard output and flushes it, so that a pipe sees tokens as they come.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    Ok(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(OutputError)?)
}

/// Writes a line to standard output.
pub fn println(text: impl Display) -> Result<()> {
    print(&format!("{text}\n"))
}

/// Writes a value to standard output as one line of JSON.
pub fn print_json(value: &serde_json::Value) -> Result<()> {
    println(format_args!("{value}"))
}

/// Says something to the person at the terminal; nobody to hear it is no error.
pub fn note(text: impl Display) {
    let style = Style::stderr();
    let _ = writeln!(io::stderr(), "{}{text}{}", style.dim(), style.reset());
}

/// ANSI styles, empty where they are not wanted.
#[derive(Clone, Copy)]
pub struct Style {
    enabled: bool,
}

impl Style {
    /// Styles for standard output.
    pub fn stdout() -> Self {
        Style { enabled: io::stdout().is_terminal() && colours_wanted() }
    }

    /// Styles for standard error.
    pub fn stderr() -> Self {
        Style { enabled: io::stderr().is_terminal() && colours_wanted() }
    }

    fn code(self, code: &'static str) -> &'static str {
        if self.enabled { code } else { "" }
    }

    pub fn bold(self) -> &'static str {
        self.code("\x1b[1m")
    }

    pub fn dim(self) -> &'static str {
        self.code("\x1b[2m")
    }

    pub fn red(self) -> &'static str {
        self.code("\x1b[1;31m")
    }

    pub fn cyan(self) -> &'static str {
        self.code("\x1b[36m")
    }

    pub fn reset(self) -> &'static str {
        self.code("\x1b[0m")
    }
}

/// Whether the environment allows colours: <https://no-color.org>.
fn colours_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// On which side a column is padded.
#[derive(Clone, Copy, PartialEq)]
pub enum Align {
    Left,
    Right,
}

/// Rows whose columns line up, Hangul counted as two cells wide.
pub struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table of these columns.
    pub fn new(align: &[Align]) -> Self {
        Table { align: align.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The lines, each indented by two spaces, columns two spaces apart, nothing trailing.
    pub fn render(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.align.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), align) in row.iter().zip(&widths).zip(&self.align) {
                let padding = " ".repeat(width - cell.width());
                line += "  ";
                match align {
                    Align::Left => line = line + cell + &padding,
                    Align::Right => line = line + &padding + cell,
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// `1536` → `1.50 KiB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.2} {}", units[unit]) }
}

/// `2087000000` → `2.087 B`, as parameters and FLOPs are counted.
pub fn count(n: u64) -> String {
    match n {
        0..1_000 => format!("{n}"),
        1_000..1_000_000 => format!("{:.1} K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.3} B", n as f64 / 1e9),
        _ => format!("{:.3} T", n as f64 / 1e12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_counts_hangul_as_two_cells() {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
        table.row(["한글", "1", "a"]);
        table.row(["ab", "12", ""]);
        assert_eq!(table.render(), "  한글   1  a\n  ab    12\n");
    }

    #[test]
    fn sizes_and_counts() {
        let check = |n, expected: &str| assert_eq!(bytes(n), expected);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1536, "1.50 KiB");
        check(4 << 30, "4.00 GiB");
        let check = |n, expected: &str| assert_eq!(count(n), expected);
        check(999, "999");
        check(260_032, "260.0 K");
        check(2_087_000_000, "2.087 B");
        check(4_000_000_000_000, "4.000 T");
    }
}
