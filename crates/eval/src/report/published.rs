//! The tables that the family's authors published, as data (`published.json`, which names its source).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::tasks::SUITES;

/// All tables.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Published {
    /// Where they stand.
    pub source: String,
    /// What the marks behind names of models say.
    pub marks: BTreeMap<String, String>,
    /// The newest first.
    pub tables: Vec<Table>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Table {
    /// The headings above it, from the outermost.
    pub section: Vec<String>,
    /// Benchmarks, as they are written there.
    pub columns: Vec<String>,
    /// Models.
    pub rows: Vec<Row>,
}

/// A model's line.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Row {
    /// As it is written there.
    pub model: String,
    /// One of [`Published::marks`].
    pub mark: Option<String>,
    /// By column; null where nothing was published.
    pub scores: BTreeMap<String, Option<f64>>,
}

/// What was examined: tables of the two kinds are not to be mixed, their prompts differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// After pre-training.
    Base,
    /// After post-training.
    Instruct,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Base, Kind::Instruct];

    /// The tables that a task belongs to: those of base models where it is in the suite `base`.
    pub fn of_task(task: &str) -> Self {
        let base = SUITES.iter().any(|(suite, tasks)| *suite == "base" && tasks.contains(&task));
        if base { Kind::Base } else { Kind::Instruct }
    }

    /// How it is called in a heading.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Base => "base",
            Kind::Instruct => "instruct",
        }
    }
}

impl Table {
    fn kind(&self) -> Option<Kind> {
        let under = |heading: &str| self.section.iter().any(|part| part == heading);
        match () {
            () if under("Base Model Evaluation") => Some(Kind::Base),
            () if under("Instruct Model Evaluation") => Some(Kind::Instruct),
            () => None,
        }
    }
}

/// A published score, in per cent where the benchmark has shares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// As it is written in the newest table.
    pub model: &'static str,
    /// `*`, `†` or nothing.
    pub mark: &'static str,
    /// The score.
    pub value: f64,
}

/// The tables.
pub fn published() -> &'static Published {
    static TABLES: LazyLock<Published> = LazyLock::new(|| {
        serde_json::from_str(include_str!("published.json"))
            .expect("published.json is part of the program: this is a bug")
    });
    &TABLES
}

/// The models of the family in all tables of a kind, in their order, with their marks.
pub fn family(kind: Kind) -> Vec<(&'static str, &'static str)> {
    let mut models: Vec<(&str, &str)> = Vec::new();
    for row in rows(kind).filter(|row| row.model.starts_with("Kanana")) {
        if !models.iter().any(|(model, _)| model.eq_ignore_ascii_case(&row.model)) {
            models.push((&row.model, row.mark.as_deref().unwrap_or_default()));
        }
    }
    models
}

/// What was published of the family for a column of the tables of a kind, in the order of [`family`]. Of a model that stands in
/// several tables, the newest figure.
pub fn figures(kind: Kind, column: &str) -> Vec<Figure> {
    let of = |(model, mark)| score(kind, model, column).map(|value| Figure { model, mark, value });
    family(kind).into_iter().filter_map(of).collect()
}

/// What was published of one model, of this family or not.
pub fn score(kind: Kind, model: &str, column: &str) -> Option<f64> {
    let wanted = plain(column);
    let of = |row: &Row| {
        let found = row.scores.iter().find(|(name, value)| plain(name) == wanted && value.is_some());
        found.and_then(|(_, value)| *value)
    };
    let value = rows(kind).filter(|row| row.model.eq_ignore_ascii_case(model)).find_map(of)?;
    // The tables of Kanana 1.0 have shares of 1 there, the newer ones per cent.
    Some(if wanted == "IFEVAL" && value <= 1.0 { 100.0 * value } else { value })
}

fn rows(kind: Kind) -> impl Iterator<Item = &'static Row> {
    published().tables.iter().filter(move |table| table.kind() == Some(kind)).flat_map(|table| &table.rows)
}

/// A column's name without what tables write differently: `HAE-RAE` and `HAERAE`, `MMLU (0-shot, CoT)` and `MMLU`.
fn plain(column: &str) -> String {
    let name = column.split('(').next().unwrap_or_default();
    name.chars().filter(|c| c.is_alphanumeric() || *c == '+').flat_map(char::to_uppercase).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tasks;

    #[test]
    fn the_copy_is_whole() {
        let original =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kanana/published_scores.json");
        let Ok(original) = std::fs::read_to_string(original) else {
            return println!("skipped: no shared data");
        };
        let [original, copy] = [&original, include_str!("published.json")]
            .map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap());
        assert_eq!(original, copy);
    }

    #[test]
    fn every_table_is_read() {
        let check = |kind: Option<Kind>, tables: usize, rows: usize| {
            let of: Vec<&Table> = published().tables.iter().filter(|table| table.kind() == kind).collect();
            assert_eq!(
                (of.len(), of.iter().map(|table| table.rows.len()).sum::<usize>()),
                (tables, rows),
                "{kind:?}"
            );
        };
        check(Some(Kind::Base), 3, 29);
        check(Some(Kind::Instruct), 4, 47);
        check(None, 1, 3);
        for table in &published().tables {
            for row in &table.rows {
                assert!(row.scores.keys().all(|column| table.columns.contains(column)), "{}", row.model);
            }
        }
    }

    #[test]
    fn a_task_finds_its_figures_and_no_others() {
        let check = |task: &str, column: &str, model: &str, expected: Option<f64>| {
            let figures = figures(Kind::of_task(task), column);
            let found = figures.iter().find(|figure| figure.model == model).map(|figure| figure.value);
            assert_eq!(found, expected, "{task} {model}");
        };
        check("mmlu", "MMLU", "Kanana-1.5-8B", Some(64.24));
        check("mmlu_cot", "MMLU", "Kanana-1.5-8B", Some(68.82));
        check("haerae", "HAERAE", "Kanana-8B", Some(83.41));
        check("haerae_cot", "HAE-RAE", "Kanana-Nano-2.1B", Some(33.52));
        check("haerae_cot", "HAE-RAE", "Kanana-1.5-8B", None);
        check("gsm8k", "GSM8K", "Kanana-Flag-32.5B", Some(70.05));
        // The table of 1.5 says 91.66, that of 1.0 says 90.83.
        check("gsm8k_cot", "GSM8K", "Kanana-Flag-32.5B", Some(91.66));
        check("humaneval_plus", "HumanEval+", "Kanana-1.5-2.1B", Some(68.9));
        check("humaneval", "HumanEval", "Kanana-1.5-2.1B", Some(52.44));
        check("functionchat", "FunctionChatBench", "Kanana-1.5-15.7B-A3B", None);
        check("wildbench", "WildBench", "Kanana-Nano-2.1B", Some(25.41));
        assert_eq!(score(Kind::Base, "Llama-3.1-8B", "MMLU"), Some(65.18));
        assert_eq!(score(Kind::Instruct, "Qwen2.5-7b", "IFEval"), Some(76.0));
        assert_eq!(family(Kind::Base).len(), 10);
        assert_eq!(family(Kind::Instruct).len(), 10);
    }

    #[test]
    fn every_column_of_a_task_is_published() {
        for task in tasks::all() {
            let protocol = task.protocol();
            if let Some(column) = protocol.column {
                assert!(!figures(Kind::of_task(protocol.task), column).is_empty(), "{}", protocol.task);
            }
        }
    }
}
