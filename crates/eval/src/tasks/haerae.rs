//! HAE-RAE Bench 1.1: five subjects of Korean knowledge, 5 shots drawn from the questions themselves. Source:
//! `lm_eval/tasks/haerae` of lm-evaluation-harness 0.4.13; data HAERAE-HUB/HAE_RAE_BENCH_1.1 (CC-BY-NC-ND-4.0).

use std::path::Path;

use kanana_data::read::Row;

use super::choice::{self, Doc, Shots, Subject};
use crate::source::field;
use crate::{Bench, EvalError, Outcome, Protocol, Result, Source, Task};

/// The subjects with their numbers of questions; reading comprehension is not among them (copyright).
pub const SUBJECTS: [(&str, usize); 5] = [
    ("general_knowledge", 176),
    ("history", 188),
    ("loan_words", 169),
    ("rare_words", 405),
    ("standard_nomenclature", 153),
];

/// The choices of every question.
pub const CHOICES: [&str; 5] = ["(A)", "(B)", "(C)", "(D)", "(E)"];

/// 5-shot, log-likelihood.
pub struct HaeRae;

impl Task for HaeRae {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: "haerae",
            id: "haerae/5-shot/log-likelihood/v1",
            column: Some("HAERAE"),
            source: "lm-evaluation-harness 0.4.13, lm_eval/tasks/haerae",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let mut subjects = Vec::new();
        for (name, _) in SUBJECTS {
            subjects.push(Subject {
                name: name.into(),
                description: String::new(),
                shots: Shots::Others,
                docs: docs(bench.source, "haerae", name)?,
            });
        }
        let mut outcome = choice::run(bench, &subjects)?;
        if bench.limit.is_none() {
            for (subject, (name, published)) in subjects.iter().zip(SUBJECTS) {
                if subject.docs.len() != published {
                    let n = subject.docs.len();
                    outcome
                        .notes
                        .push(format!("{name}: {n} questions, where the published set has {published}"));
                }
            }
        }
        Ok(outcome)
    }
}

/// The questions of a subject: `haerae/SUBJECT.csv`, `.jsonl` or `.parquet`, or as the Hub has them.
pub fn docs(source: &Source, task: &str, subject: &str) -> Result<Vec<Doc>> {
    let candidates = [
        format!("haerae/{subject}.csv"),
        format!("haerae/{subject}.jsonl"),
        format!("haerae/{subject}.parquet"),
        format!("haerae/{subject}/test-00000-of-00001.parquet"),
        format!("haerae/data/{subject}/test-00000-of-00001.parquet"),
    ];
    let path = source.find(task, &candidates.each_ref().map(String::as_str))?;
    let rows = source.rows(&path)?;
    rows.iter().enumerate().map(|(index, row)| doc(&path, index, row)).collect()
}

/// Columns `query` and `answer`.
fn doc(path: &Path, index: usize, row: &Row) -> Result<Doc> {
    let given = field(path, index, row, "answer")?;
    let answer = CHOICES.iter().position(|choice| *choice == given.trim());
    let answer = answer.ok_or_else(|| EvalError::Row {
        path: path.to_owned(),
        row: index as u64 + 1,
        problem: format!("expected an answer from (A) to (E), got {given:?}"),
    })?;
    let question = field(path, index, row, "query")?.to_owned();
    Ok(Doc { question, choices: CHOICES.map(str::to_owned).to_vec(), answer })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The golden rows are synthetic; they are made again from the prompts.
    #[test]
    fn prompts_are_those_of_the_reference() {
        let path = "golden_lm_eval/g_haerae_synth.5shot.jsonl";
        let Some(rows) = crate::test_data::golden_rows(path) else { return };
        let mut docs: BTreeMap<usize, Doc> = BTreeMap::new();
        for row in &rows {
            for block in row["context"].as_str().unwrap().split("\n\n") {
                let (query, answer) = block.split_once("정답:").unwrap();
                let number =
                    query.lines().find_map(|line| line.strip_prefix("### 질문: 합성 질문 ")).unwrap();
                let answer = CHOICES.iter().position(|choice| *choice == answer.trim());
                let doc = Doc {
                    question: format!("{query}정답:"),
                    choices: CHOICES.map(str::to_owned).to_vec(),
                    answer: answer.unwrap_or(0),
                };
                if answer.is_some() {
                    docs.insert(number.parse().unwrap(), doc);
                } else {
                    docs.entry(number.parse().unwrap()).or_insert(doc);
                }
            }
        }
        let docs: Vec<Doc> = docs.into_values().collect();
        assert_eq!(docs.len(), 60);
        let shots = Shots::Others;
        choice::tests::check_golden(
            path,
            &Subject { name: "synth".into(), description: String::new(), shots, docs },
        );
    }
}
