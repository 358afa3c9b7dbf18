//! Multiple choice by log-likelihood, as lm-evaluation-harness does it: few-shot examples, a question, and the choice that is
//! the likeliest continuation.
//!
//! Source: `ConfigurableTask.fewshot_context`, `ContextSampler` and `MultipleChoiceTask` of `lm_eval/api` (0.4.13).

use serde_json::json;

use super::percent;
use crate::lm::{LogLikelihood, LogLikelihoodRequest};
use crate::metrics::{self, Mean};
use crate::random::PythonRandom;
use crate::{Bench, Metric, Outcome, Result, Sample};

/// Examples before a question.
pub const SHOTS: usize = 5;

/// A row of a data set as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Doc {
    /// Everything up to the answer.
    pub question: String,
    /// What may follow.
    pub choices: Vec<String>,
    /// Which of them is right.
    pub answer: usize,
}

/// Where the examples come from.
pub enum Shots {
    /// The first rows of a split of their own, for every question.
    First(Vec<Doc>),
    /// Rows of a split of their own, drawn for each question.
    Random(Vec<Doc>),
    /// Other rows of the questions' own split, drawn for each question.
    Others,
}

/// Questions that share a description and a stream of random numbers.
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Before everything.
    pub description: String,
    /// Examples.
    pub shots: Shots,
    /// Questions.
    pub docs: Vec<Doc>,
}

impl Subject {
    /// The context of every question, in their order: description, examples, question.
    pub fn contexts(&self, limit: Option<usize>) -> Vec<String> {
        let mut random = PythonRandom::new(1234);
        let context = |doc: &Doc| {
            let examples: Vec<&Doc> = match &self.shots {
                Shots::First(rows) => rows.iter().take(SHOTS).collect(),
                Shots::Random(rows) => draw(&mut random, rows, SHOTS),
                Shots::Others => {
                    let drawn = draw(&mut random, &self.docs, SHOTS + 1);
                    drawn.into_iter().filter(|&other| other != doc).take(SHOTS).collect()
                }
            };
            let mut text = self.description.clone();
            for Doc { question, choices, answer } in examples {
                text += &format!("{question} {}\n\n", choices[*answer]);
            }
            text + &doc.question
        };
        self.docs.iter().take(limit.unwrap_or(usize::MAX)).map(context).collect()
    }
}

fn draw<'d>(random: &mut PythonRandom, rows: &'d [Doc], count: usize) -> Vec<&'d Doc> {
    random.sample(rows.len(), count.min(rows.len())).into_iter().map(|index| &rows[index]).collect()
}

/// Asks for the likelihood of every choice of every question and scores them: `acc` over all (micro), beside `acc_norm`.
pub fn run(bench: &mut Bench<'_>, subjects: &[Subject]) -> Result<Outcome> {
    let mut requests = Vec::new();
    let mut docs = Vec::new();
    for subject in subjects {
        for (index, context) in subject.contexts(bench.limit).into_iter().enumerate() {
            docs.push((subject, index));
            requests.extend(subject.docs[index].choices.iter().map(|choice| LogLikelihoodRequest {
                context: context.clone(),
                continuation: format!(" {choice}"),
            }));
        }
    }
    let answers = bench.log_likelihoods(&requests)?;
    let mut answers = answers.as_slice();
    let mut samples = Vec::new();
    for (subject, index) in docs {
        let doc = &subject.docs[index];
        let (scores, rest) = answers.split_at(doc.choices.len());
        answers = rest;
        samples.push(sample(subject, index, doc, scores));
    }
    Ok(outcome(subjects, samples))
}

fn sample(subject: &Subject, index: usize, doc: &Doc, scores: &[LogLikelihood]) -> Sample {
    let characters = |choice: &String| choice.chars().count().max(1) as f64;
    let raw = first_max(scores.iter().map(|score| score.sum));
    let normalised = first_max(scores.iter().zip(&doc.choices).map(|(s, choice)| s.sum / characters(choice)));
    let right = |chosen| f64::from(chosen == doc.answer);
    Sample {
        id: format!("{}/{index}", subject.name),
        group: Some(subject.name.clone()),
        scores: vec![("acc".into(), right(raw)), ("acc_norm".into(), right(normalised))],
        invalid: None,
        detail: json!({
            "question": doc.question,
            "choices": doc.choices,
            "answer": doc.answer,
            "chosen": raw,
            "log_likelihoods": scores.iter().map(|score| score.sum).collect::<Vec<_>>(),
        }),
    }
}

/// numpy's argmax: the first of equals.
fn first_max(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

fn outcome(subjects: &[Subject], samples: Vec<Sample>) -> Outcome {
    let names = ["acc", "acc_norm"];
    let mean_of = |subject: &Subject, metric: usize| {
        let of_subject = samples.iter().filter(|sample| sample.group.as_deref() == Some(&subject.name));
        metrics::mean(&of_subject.map(|sample| sample.scores[metric].1).collect::<Vec<_>>())
    };
    let means: Vec<Vec<Mean>> = (0..names.len())
        .map(|metric| subjects.iter().filter_map(|subject| mean_of(subject, metric)).collect())
        .collect();
    let over_all = |(metric, name): (usize, &&str)| Some(percent(name, metrics::micro_mean(&means[metric])?));
    let mut all: Vec<Metric> = names.iter().enumerate().filter_map(over_all).collect();
    all.extend(metrics::macro_mean(&means[0]).map(|mean| percent("acc,macro", mean)));
    let group = |subject: &Subject| {
        let of = |(metric, name): (usize, &&str)| Some(percent(name, mean_of(subject, metric)?));
        (subject.name.clone(), names.iter().enumerate().filter_map(of).collect())
    };
    Outcome { metrics: all, groups: subjects.iter().map(group).collect(), samples, notes: Vec::new() }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A golden file of prompts: the context and continuation of every request, in order.
    #[track_caller]
    pub fn check_golden(path: &str, subject: &Subject) {
        let Some(rows) = crate::test_data::golden_rows(path) else { return };
        let docs = rows.len() / subject.docs[0].choices.len();
        let contexts = subject.contexts(Some(docs));
        let mut expected = rows.iter();
        for (index, context) in contexts.iter().enumerate() {
            for choice in &subject.docs[index].choices {
                let row = expected.next().unwrap();
                assert_eq!(row["context"], context.as_str(), "{path}: question {index}");
                assert_eq!(row["continuation"], format!(" {choice}"), "{path}: question {index}");
            }
        }
        assert!(expected.next().is_none());
    }

    #[test]
    fn ties_go_to_the_first() {
        assert_eq!(first_max([-2.0, -1.0, -1.0].into_iter()), 1);
        assert_eq!(first_max([f64::NEG_INFINITY; 2].into_iter()), 0);
    }
}
