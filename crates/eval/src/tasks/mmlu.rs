//! MMLU: 57 subjects, 5 shots. Source: `lm_eval/tasks/mmlu/default` of lm-evaluation-harness 0.4.13; Hendrycks et al. 2021.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::choice::{self, Doc, Shots, Subject};
use super::percent;
use crate::metrics;
use crate::source::field;
use crate::{Bench, EvalError, Outcome, Protocol, Result, Source, Task};
use kanana_data::read::Row;

/// The categories of the reference, each with its subjects.
const CATEGORIES: [(&str, &[&str]); 4] = [
    (
        "stem",
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        "other",
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
    (
        "social_sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
];

/// 5-shot, log-likelihood.
pub struct Mmlu;

impl Task for Mmlu {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: "mmlu",
            id: "mmlu/5-shot/log-likelihood/v1",
            column: Some("MMLU"),
            source: "lm-evaluation-harness 0.4.13, lm_eval/tasks/mmlu/default",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let subjects = subjects(bench.source)?;
        let mut outcome = choice::run(bench, &subjects)?;
        for (category, members) in CATEGORIES {
            let of = |metric: &str| {
                let groups = outcome.groups.iter().filter(|(name, _)| members.contains(&name.as_str()));
                let means: Vec<metrics::Mean> = groups
                    .filter_map(|(_, metrics)| metrics.iter().find(|m| m.name == metric))
                    .map(|m| metrics::Mean {
                        value: m.value / 100.0,
                        stderr: m.stderr.map(|e| e / 100.0),
                        n: m.n,
                    })
                    .collect();
                Some(percent(metric, metrics::micro_mean(&means)?))
            };
            let metrics: Vec<_> = ["acc", "acc_norm"].into_iter().filter_map(of).collect();
            if !metrics.is_empty() {
                outcome.groups.push((category.to_owned(), metrics));
            }
        }
        Ok(outcome)
    }
}

/// The subjects in alphabetical order: a file each (`mmlu/test/SUBJECT_test.csv`), or the Hub's Parquet of all (`cais/mmlu`).
fn subjects(source: &Source) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for (name, dev, test) in rows_by_subject(source, "mmlu")? {
        let description = format!(
            "The following are multiple choice questions (with answers) about {}.\n\n",
            name.replace('_', " ")
        );
        let shots = Shots::First(dev.iter().map(Question::doc).collect());
        subjects.push(Subject { name, description, shots, docs: test.iter().map(Question::doc).collect() });
    }
    Ok(subjects)
}

/// A row, whatever form it came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// As it stands in the row.
    pub question: String,
    /// Four.
    pub choices: Vec<String>,
    /// From 0.
    pub answer: usize,
}

impl Question {
    fn doc(&self) -> Doc {
        let mut question = self.question.trim().to_owned();
        for (letter, choice) in LETTERS.iter().zip(&self.choices) {
            question += &format!("\n{letter}. {choice}");
        }
        Doc {
            question: question + "\nAnswer:",
            choices: LETTERS.map(str::to_owned).to_vec(),
            answer: self.answer,
        }
    }

    /// Columns `question`, `choices` (or `choice0` to `choice3`), `answer` (0 to 3, or a letter).
    fn read(path: &Path, index: usize, row: &Row) -> Result<Self> {
        let question = field(path, index, row, "question")?.to_owned();
        let choices: Vec<String> = match row.get("choices").and_then(Value::as_array) {
            Some(choices) => choices.iter().filter_map(|c| c.as_str().map(str::to_owned)).collect(),
            None => (0..4)
                .map(|n| field(path, index, row, &format!("choice{n}")).map(str::to_owned))
                .collect::<Result<_>>()?,
        };
        let given = row.get("answer").unwrap_or(&Value::Null);
        let text = given.as_str().map_or_else(|| given.to_string(), str::to_owned);
        let answer = LETTERS.iter().position(|letter| *letter == text).or_else(|| text.parse().ok());
        match answer {
            Some(answer) if answer < 4 && choices.len() == 4 => Ok(Question { question, choices, answer }),
            _ => Err(EvalError::Row {
                path: path.to_owned(),
                row: index as u64 + 1,
                problem: format!(
                    "expected four choices and an answer from 0 to 3, got {} and {text}",
                    choices.len()
                ),
            }),
        }
    }
}

/// The names of four choices.
pub const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Subject, rows of `dev`, rows of `test`.
pub type BySubject = Vec<(String, Vec<Question>, Vec<Question>)>;

/// All rows, by subject in alphabetical order.
pub fn rows_by_subject(source: &Source, task: &str) -> Result<BySubject> {
    let hub = ["mmlu/all/test-00000-of-00001.parquet", "mmlu/all/dev-00000-of-00001.parquet"];
    let test = source.find(task, &["mmlu/test", hub[0]])?;
    let mut subjects = Vec::new();
    if test.is_dir() {
        let dev = source.find(task, &["mmlu/dev"])?;
        for path in source.folder(&test, "_test.csv")? {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let name = file.strip_suffix("_test.csv").unwrap_or(&file).to_owned();
            let dev = dev.join(format!("{name}_dev.csv"));
            let [dev, test] = [&dev, &path].map(|path| {
                let rows = source.rows(path)?;
                rows.iter()
                    .enumerate()
                    .map(|(i, row)| Question::read(path, i, row))
                    .collect::<Result<Vec<_>>>()
            });
            subjects.push((name, dev?, test?));
        }
    } else {
        let dev = source.find(task, &[hub[1]])?;
        let mut all: BTreeMap<String, [Vec<Question>; 2]> = BTreeMap::new();
        for (split, path) in [&dev, &test].into_iter().enumerate() {
            for (index, row) in source.rows(path)?.iter().enumerate() {
                let subject = field(path, index, row, "subject")?;
                all.entry(subject.to_owned()).or_default()[split].push(Question::read(path, index, row)?);
            }
        }
        subjects.extend(all.into_iter().map(|(name, [dev, test])| (name, dev, test)));
    }
    Ok(subjects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_those_of_the_reference() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data");
        if !root.exists() {
            return println!("skipped: no shared data");
        }
        let subjects = subjects(&Source::new(root)).unwrap();
        assert_eq!(subjects.len(), 57);
        assert_eq!(subjects.iter().map(|subject| subject.docs.len()).sum::<usize>(), 14_042);
        for name in ["abstract_algebra", "high_school_us_history"] {
            let subject = subjects.iter().find(|subject| subject.name == name).unwrap();
            choice::tests::check_golden(&format!("golden_lm_eval/g_mmlu_{name}.5shot.jsonl"), subject);
        }
        for subject in &subjects {
            let of = CATEGORIES.iter().filter(|(_, members)| members.contains(&subject.name.as_str()));
            assert_eq!(of.count(), 1, "{}", subject.name);
        }
    }

    #[test]
    fn rows_that_are_no_questions_are_refused() {
        let check = |row: &str, expected: &str| {
            let row: Row = serde_json::from_str(row).unwrap();
            let error = Question::read(Path::new("f.csv"), 2, &row).unwrap_err().to_string();
            assert!(error.starts_with("f.csv: row 3: ") && error.contains(expected), "{error}");
        };
        check(r#"{"q": "x"}"#, "a string in \"question\"");
        check(r#"{"question": "x", "choices": ["a", "b", "c", "d"], "answer": 4}"#, "0 to 3, got 4 and 4");
        check(r#"{"question": "x", "choices": ["a", "b"], "answer": "A"}"#, "got 2 and A");
    }
}
