//! A report as Markdown that GitHub shows: tables, and parts that unfold.

use std::fmt::Write;

use super::{Block, Column, Grid, Report};

impl Report {
    /// The whole report.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n", escape(&self.title()));
        write_blocks(&mut text, &self.blocks());
        text
    }
}

fn write_blocks(text: &mut String, blocks: &[Block]) {
    for block in blocks {
        text.push('\n');
        let _ = match block {
            Block::Heading(heading) => writeln!(text, "## {}", escape(heading)),
            Block::Text(paragraph) => writeln!(text, "{}", escape(paragraph)),
            Block::Warning(warning) => writeln!(text, "> **Warning**: {}", escape(warning)),
            Block::List(points) => points.iter().try_for_each(|point| writeln!(text, "- {}", escape(point))),
            Block::Grid(grid) => writeln!(text, "{}", table(grid)),
            Block::Fold(summary, inner) => {
                let _ = writeln!(text, "<details><summary>{}</summary>", kanana_plot::escape(summary));
                write_blocks(text, inner);
                writeln!(text, "\n</details>")
            }
            // Markdown has no place for the text of an SVG.
            Block::Chart(_) => {
                text.pop();
                Ok(())
            }
        };
    }
}

fn table(grid: &Grid) -> String {
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let mut lines = vec![line(grid.columns.iter().map(|(name, _)| escape(name)).collect())];
    let rule =
        |(_, column): &(String, Column)| if *column == Column::Number { "---:" } else { "---" }.to_owned();
    lines.push(line(grid.columns.iter().map(rule).collect()));
    for (index, row) in grid.rows.iter().enumerate() {
        // Where other rows follow, the own ones stand out.
        let strong = index < grid.own && grid.own < grid.rows.len();
        let cells = row.iter().zip(&grid.columns).map(|(cell, (_, column))| match column {
            _ if cell.is_empty() => String::new(),
            Column::Code => code(cell),
            _ if strong => format!("**{}**", escape(cell)),
            _ => escape(cell),
        });
        lines.push(line(cells.collect()));
    }
    lines.join("\n")
}

/// Text that means nothing but itself, on one line.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut before = ' ';
    let mut chars = text.trim().chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied().unwrap_or(' ');
        let within_word = before.is_alphanumeric() && next.is_alphanumeric();
        match c {
            '\n' | '\r' | '\t' => escaped.push(' '),
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            '_' if within_word => escaped.push(c),
            // What would begin a heading, a list or a quotation.
            '#' | '>' if escaped.is_empty() => escaped.extend(['\\', c]),
            '+' | '-' if escaped.is_empty() && next.is_whitespace() => escaped.extend(['\\', c]),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' => escaped.extend(['\\', c]),
            c if c.is_control() => {}
            c => escaped.push(c),
        }
        before = c;
    }
    escaped
}

/// A name, in the type of programs.
fn code(text: &str) -> String {
    let plain = text.replace('`', "'").replace('|', "\\|").replace(['\n', '\r', '\t'], " ");
    format!("`{plain}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        let check = |text: &str, expected: &str| assert_eq!(escape(text), expected);
        check("mmlu_cot", "mmlu_cot");
        check("_a_ *b* `c` [d](e) <f> a|b", "\\_a\\_ \\*b\\* \\`c\\` \\[d\\](e) &lt;f> a\\|b");
        check("# one\ntwo", "\\# one two");
        check("+1.20", "+1.20");
        check("- a", "\\- a");
        assert_eq!(code("a|b`c"), "`a\\|b'c`");
    }
}
