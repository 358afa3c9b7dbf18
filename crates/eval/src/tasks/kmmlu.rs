//! KMMLU: 45 subjects, 5 shots whose order is drawn for each question. Source: `lm_eval/tasks/kmmlu` of lm-evaluation-harness
//! 0.4.13; data HAERAE-HUB/KMMLU (CC-BY-ND-4.0).

use std::collections::BTreeMap;
use std::path::Path;

use kanana_data::read::Row;
use serde_json::Value;

use super::choice::{self, Doc, Shots, Subject};
use super::mmlu::{BySubject, LETTERS, Question};
use crate::source::field;
use crate::{Bench, EvalError, Outcome, Protocol, Result, Source, Task};

/// 5-shot, log-likelihood.
pub struct Kmmlu;

impl Task for Kmmlu {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: "kmmlu",
            id: "kmmlu/5-shot/log-likelihood/v1",
            column: Some("KMMLU"),
            source: "lm-evaluation-harness 0.4.13, lm_eval/tasks/kmmlu",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let subjects: Vec<Subject> =
            rows_by_subject(bench.source, "kmmlu")?.into_iter().map(subject).collect();
        choice::run(bench, &subjects)
    }
}

fn subject((name, dev, test): (String, Vec<Question>, Vec<Question>)) -> Subject {
    Subject {
        name,
        description: String::new(),
        shots: Shots::Random(dev.iter().map(doc).collect()),
        docs: test.iter().map(doc).collect(),
    }
}

fn doc(row: &Question) -> Doc {
    let mut question = row.question.trim().to_owned();
    for (letter, choice) in LETTERS.iter().zip(&row.choices) {
        question += &format!("\n{letter}. {choice}");
    }
    // the colon is full-width
    let question = question + "\n정답：";
    Doc { question, choices: LETTERS.map(str::to_owned).to_vec(), answer: row.answer }
}

/// Columns `question`, `A` to `D`, `answer` from 1 to 4.
fn read(path: &Path, index: usize, row: &Row) -> Result<Question> {
    let question = field(path, index, row, "question")?.to_owned();
    let text = |name: &&str| match row.get(*name) {
        // a JSONL file may have choices that are numbers
        Some(Value::Number(number)) => Ok(number.to_string()),
        _ => field(path, index, row, name).map(str::to_owned),
    };
    let choices = LETTERS.iter().map(text).collect::<Result<_>>()?;
    let given = row.get("answer").unwrap_or(&Value::Null);
    let answer = given.as_u64().or_else(|| given.as_str()?.parse().ok());
    match answer {
        Some(answer @ 1..=4) => Ok(Question { question, choices, answer: answer as usize - 1 }),
        _ => Err(EvalError::Row {
            path: path.to_owned(),
            row: index as u64 + 1,
            problem: format!("expected an answer from 1 to 4, got {given}"),
        }),
    }
}

/// Subject, rows of `dev`, rows of `test`, in alphabetical order: `kmmlu/SUBJECT-test.csv` or `.jsonl`, or `kmmlu/data/…`, as the
/// Hub has them.
pub fn rows_by_subject(source: &Source, task: &str) -> Result<BySubject> {
    let folder = source.find(task, &["kmmlu/data", "kmmlu"])?;
    let mut subjects = BTreeMap::new();
    for suffix in [".csv", ".jsonl", ".parquet"] {
        for path in source.folder(&folder, &format!("-test{suffix}"))? {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let name = file.strip_suffix(&format!("-test{suffix}")).unwrap_or(&file).to_owned();
            let dev = folder.join(format!("{name}-dev{suffix}"));
            let [dev, test] = [&dev, &path].map(|path| {
                let rows = source.rows(path)?;
                rows.iter().enumerate().map(|(index, row)| read(path, index, row)).collect::<Result<Vec<_>>>()
            });
            subjects.insert(name, (dev?, test?));
        }
    }
    if subjects.is_empty() {
        return Err(EvalError::NoData {
            task: task.into(),
            folder,
            expected: vec!["SUBJECT-test.csv with SUBJECT-dev.csv".into()],
        });
    }
    Ok(subjects.into_iter().map(|(name, (dev, test))| (name, dev, test)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden rows are synthetic; they are made again from the prompts.
    #[test]
    fn prompts_are_those_of_the_reference() {
        let path = "golden_lm_eval/g_kmmlu_synth.5shot.jsonl";
        let Some(rows) = crate::test_data::golden_rows(path) else { return };
        let (mut dev, mut test) = (BTreeMap::new(), Vec::new());
        for row in rows.iter().step_by(4) {
            let context = row["context"].as_str().unwrap();
            for block in context.split("\n\n") {
                let lines: Vec<&str> = block.lines().collect();
                let choices = lines[1..5].iter().map(|line| line[3..].to_owned()).collect();
                let letter = lines[5].strip_prefix("정답：").unwrap().trim();
                let answer = LETTERS.iter().position(|name| *name == letter);
                let question = Question { question: lines[0].into(), choices, answer: answer.unwrap_or(0) };
                match answer {
                    Some(_) => drop(dev.insert(question.choices[0].clone(), question)),
                    None => test.push(question),
                }
            }
        }
        assert_eq!((dev.len(), test.len()), (5, 40));
        let subject = subject(("synth".into(), dev.into_values().collect(), test));
        choice::tests::check_golden(path, &subject);
    }

    #[test]
    fn rows_come_from_files_as_published() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("kmmlu");
        std::fs::create_dir(&data).unwrap();
        for split in ["dev", "test"] {
            let rows = "question,answer,A,B,C,D,Category,Human Accuracy\n\"물음, 하나\",4,1,2,3,4,x,0.5\n";
            std::fs::write(data.join(format!("Law-{split}.csv")), rows).unwrap();
        }
        let source = Source::new(folder.path());
        let [(name, _, test)] = &rows_by_subject(&source, "kmmlu").unwrap()[..] else { panic!() };
        assert_eq!((name.as_str(), test[0].question.as_str(), test[0].answer), ("Law", "물음, 하나", 3));
        std::fs::write(data.join("Law-test.csv"), "question,answer,A,B,C,D\nx,0,1,2,3,4\n").unwrap();
        let error = rows_by_subject(&source, "kmmlu").unwrap_err().to_string();
        assert!(error.ends_with("Law-test.csv: row 1: expected an answer from 1 to 4, got \"0\""), "{error}");
    }
}
