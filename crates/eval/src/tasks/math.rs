//! MATH: 5,000 problems, no shots, step by step; our own verifier, with Hendrycks' equality of strings beside it.
//! Sources: Hendrycks et al. 2021; the sentence before the question as published for the family.

use std::path::Path;

use kanana_data::read::Row;
use serde_json::json;

use super::gsm8k::{BOXED, invalid, outcome};
use crate::lm::{GenerateRequest, Generation, Prompt};
use crate::math::{self, hendrycks};
use crate::source::field;
use crate::{Bench, EvalError, Outcome, Protocol, Result, Sample, Source, Task};

/// The task.
pub struct Math;

/// The folders of EleutherAI/hendrycks_math.
const SUBJECTS: [&str; 7] = [
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
];

struct Problem {
    problem: String,
    gold: String,
    level: Option<String>,
    subject: Option<String>,
}

/// Columns `problem`, and `answer` or a `solution` with a box; perhaps `level` and `type` or `subject`.
fn read(path: &Path, index: usize, row: &Row) -> Result<Problem> {
    let text = |name: &str| row.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let boxed = || {
        let solution = field(path, index, row, "solution")?;
        let boxed = hendrycks::last_boxed(solution).and_then(hendrycks::remove_boxed);
        boxed.map(str::to_owned).ok_or_else(|| EvalError::Row {
            path: path.to_owned(),
            row: index as u64 + 1,
            problem: "expected an answer, or a solution with a \\boxed{…}".into(),
        })
    };
    Ok(Problem {
        problem: field(path, index, row, "problem")?.to_owned(),
        gold: text("answer").map_or_else(boxed, Ok)?,
        level: text("level"),
        subject: text("type").or_else(|| text("subject")),
    })
}

fn problems(source: &Source) -> Result<Vec<Problem>> {
    let whole = ["math/test.jsonl", "math/test.parquet", "math/test-00000-of-00001.parquet"];
    let by_subject = SUBJECTS.map(|subject| format!("math/{subject}/test-00000-of-00001.parquet"));
    let candidates: Vec<&str> = whole.into_iter().chain(by_subject.iter().map(String::as_str)).collect();
    let mut files = vec![source.find("math", &candidates)?];
    if by_subject.iter().any(|file| files[0].ends_with(file)) {
        files = by_subject.iter().map(|file| source.find("math", &[file])).collect::<Result<_>>()?;
    }
    let mut problems = Vec::new();
    for path in files {
        for (index, row) in source.rows(&path)?.iter().enumerate() {
            problems.push(read(&path, index, row)?);
        }
    }
    Ok(problems)
}

impl Task for Math {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: "math",
            id: "math/0-shot/boxed/v1",
            column: Some("MATH"),
            source: "the published sentence before the question; own verifier",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let problems = bench.limited(problems(bench.source)?);
        let request =
            |row: &Problem| GenerateRequest::greedy(Prompt::user(format!("{BOXED}\n{}", row.problem)), 2048);
        let answers = bench.generate(&problems.iter().map(request).collect::<Vec<_>>())?;
        let sample = |(index, (row, answer)): (usize, (&Problem, &Generation))| {
            let extracted = math::extract(&answer.text);
            let verdict = extracted.as_deref().map(|text| math::equal(&row.gold, text));
            let boxed = hendrycks::last_boxed(&answer.text).and_then(hendrycks::remove_boxed);
            let same = boxed.is_some_and(|text| hendrycks::is_equiv(text, &row.gold));
            let verified = verdict.as_ref().is_some_and(|verdict| verdict.equal);
            Sample {
                id: index.to_string(),
                group: row.subject.clone(),
                scores: vec![
                    ("verified".into(), f64::from(verified)),
                    ("hendrycks_is_equiv".into(), f64::from(same)),
                ],
                invalid: invalid(answer, extracted.is_some()),
                detail: json!({ "problem": row.problem, "level": row.level, "answer": row.gold,
                    "response": answer.text, "extracted": extracted, "rule": verdict.map(|verdict| verdict.rule) }),
            }
        };
        let samples: Vec<Sample> = problems.iter().zip(&answers).enumerate().map(sample).collect();
        let mut outcome = outcome(samples);
        outcome.groups = super::groups(&outcome.samples);
        Ok(outcome)
    }
}
