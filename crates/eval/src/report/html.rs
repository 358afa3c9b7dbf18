//! A report as one page of HTML: no scripts, no other files, light and dark, wide and narrow.

use std::fmt::Write;

use kanana_plot::escape;

use super::{Block, Column, Grid, Report};

const STYLE: &str = include_str!("page.css");

impl Report {
    /// The whole report.
    pub fn html(&self) -> String {
        let title = escape(&self.title());
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        );
        if let [entry] = self.entries.as_slice() {
            let about = [&entry.run.date, &entry.run.program, &entry.run.hardware].map(|text| escape(text));
            let _ = writeln!(page, "<p class=\"about\">{}</p>", about.join(" · "));
        }
        write_blocks(&mut page, &self.blocks());
        page + "</main>\n</body>\n</html>\n"
    }
}

fn write_blocks(page: &mut String, blocks: &[Block]) {
    for block in blocks {
        let _ = match block {
            Block::Heading(heading) => writeln!(page, "<h2>{}</h2>", escape(heading)),
            Block::Text(paragraph) => writeln!(page, "<p>{}</p>", escape(paragraph)),
            Block::Warning(warning) => writeln!(page, "<p class=\"warning\">{}</p>", escape(warning)),
            Block::List(points) => {
                let points: String =
                    points.iter().map(|point| format!("<li>{}</li>\n", escape(point))).collect();
                writeln!(page, "<ul>\n{points}</ul>")
            }
            Block::Grid(grid) => {
                write_grid(page, grid);
                Ok(())
            }
            Block::Fold(summary, inner) => {
                let _ = writeln!(page, "<details>\n<summary>{}</summary>", escape(summary));
                write_blocks(page, inner);
                writeln!(page, "</details>")
            }
            Block::Chart(svg) => writeln!(page, "<figure tabindex=\"0\">\n{svg}</figure>"),
        };
    }
}

fn write_grid(page: &mut String, grid: &Grid) {
    page.push_str("<div class=\"table\" tabindex=\"0\"><table>\n<thead><tr>");
    for (name, column) in &grid.columns {
        let _ = write!(page, "<th scope=\"col\"{}>{}</th>", class(*column), escape(name));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for (index, row) in grid.rows.iter().enumerate() {
        let own = index < grid.own && grid.own < grid.rows.len();
        page.push_str(if own { "<tr class=\"own\">" } else { "<tr>" });
        for (cell, (_, column)) in row.iter().zip(&grid.columns) {
            let text = escape(cell);
            let text = if *column == Column::Code && !text.is_empty() { code(&text) } else { text };
            let _ = write!(page, "<td{}>{text}</td>", class(*column));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

fn class(column: Column) -> &'static str {
    match column {
        Column::Number => " class=\"number\"",
        Column::Text => " class=\"text\"",
        Column::Code => "",
    }
}

/// A name that may be broken where its parts end. `text` is escaped.
fn code(text: &str) -> String {
    format!("<code>{}</code>", text.replace('/', "/<wbr>").replace(',', ",<wbr>"))
}
