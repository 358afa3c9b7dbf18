//! GSM8K: as base models are asked (5 shots, strict match) and as instruct models are (no shots, step by step).
//! Sources: `lm_eval/tasks/gsm8k/gsm8k.yaml` of lm-evaluation-harness 0.4.13; Cobbe et al. 2021.

use serde_json::json;

use super::percent_of;
use crate::lm::{GenerateRequest, Generation, Prompt};
use crate::math;
use crate::math::gsm8k::{exact_match, flexible, strict};
use crate::random::PythonRandom;
use crate::source::field;
use crate::{Bench, Invalid, Outcome, Protocol, Result, Sample, Source, Task};

/// A row.
struct Problem {
    question: String,
    answer: String,
}

fn problems(source: &Source, task: &str, split: &str) -> Result<Vec<Problem>> {
    let candidates = [
        format!("gsm8k/{split}.jsonl"),
        format!("gsm8k/main/{split}-00000-of-00001.parquet"),
        format!("gsm8k/{split}-00000-of-00001.parquet"),
    ];
    let path = source.find(task, &candidates.each_ref().map(String::as_str))?;
    let rows = source.rows(&path)?;
    let problem = |(index, row)| {
        let text = |name| field(&path, index, row, name).map(str::to_owned);
        Ok(Problem { question: text("question")?, answer: text("answer")? })
    };
    rows.iter().enumerate().map(problem).collect()
}

/// 5-shot, strict match.
pub struct Base;

/// The prompts of all questions, in their order: five problems of `train`, drawn for each.
fn contexts(train: &[Problem], test: &[Problem]) -> Vec<String> {
    let mut random = PythonRandom::new(1234);
    let question = |problem: &Problem| format!("Question: {}\nAnswer:", problem.question);
    let context = |problem: &Problem| {
        let shots = random.sample(train.len(), 5.min(train.len())).into_iter();
        let shots: String =
            shots.map(|n| format!("{} {}\n\n", question(&train[n]), train[n].answer)).collect();
        shots + &question(problem)
    };
    test.iter().map(context).collect()
}

impl Task for Base {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: "gsm8k",
            id: "gsm8k/5-shot/strict-match/v1",
            column: Some("GSM8K"),
            source: "lm-evaluation-harness 0.4.13, lm_eval/tasks/gsm8k/gsm8k.yaml",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let task = self.protocol().task;
        let (train, test) = (problems(bench.source, task, "train")?, problems(bench.source, task, "test")?);
        let test = bench.limited(test);
        let request = |context| {
            GenerateRequest::greedy(Prompt::Text(context), 256).until(&["Question:", "</s>", "<|im_end|>"])
        };
        let requests: Vec<_> = contexts(&train, &test).into_iter().map(request).collect();
        let answers = bench.generate(&requests)?;
        let sample = |(index, (problem, answer)): (usize, (&Problem, &Generation))| {
            let right = |extracted: &Option<String>| {
                extracted.as_deref().is_some_and(|text| exact_match(text, &problem.answer))
            };
            let (strict, flexible) = (strict(&answer.text), flexible(&answer.text));
            let scores = [("exact_match,strict-match", &strict), ("exact_match,flexible-extract", &flexible)];
            Sample {
                id: index.to_string(),
                group: None,
                scores: scores.map(|(name, e)| (name.into(), f64::from(right(e)))).to_vec(),
                invalid: invalid(answer, strict.is_some()),
                detail: json!({ "question": problem.question, "answer": problem.answer, "response": answer.text,
                    "strict": strict, "flexible": flexible }),
            }
        };
        let samples: Vec<Sample> = test.iter().zip(&answers).enumerate().map(sample).collect();
        Ok(outcome(samples))
    }
}

/// No shots, step by step, through the chat template; the answer in a box, compared by the verifier of MATH.
pub struct Cot;

/// What stands before a question. Source: SEED (facts of the family's evaluation), which publishes this sentence.
pub const BOXED: &str = "Put your final answer within \\boxed{}.";

impl Task for Cot {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: "gsm8k_cot",
            id: "gsm8k_cot/0-shot/boxed/v1",
            column: Some("GSM8K"),
            source: "the published sentence before the question; own verifier",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let test = bench.limited(problems(bench.source, self.protocol().task, "test")?);
        let request = |problem: &Problem| {
            GenerateRequest::greedy(Prompt::user(format!("{BOXED}\n{}", problem.question)), 2048)
        };
        let requests: Vec<_> = test.iter().map(request).collect();
        let answers = bench.generate(&requests)?;
        let sample = |(index, (problem, answer)): (usize, (&Problem, &Generation))| {
            let gold = problem.answer.rsplit("####").next().unwrap_or_default().trim();
            let extracted = math::extract(&answer.text);
            let verified = extracted.as_deref().is_some_and(|text| math::equal(gold, text).equal);
            let last = flexible(&answer.text);
            let flexible = last.as_deref().is_some_and(|text| exact_match(text, &problem.answer));
            let scores = [("verified", verified), ("exact_match,flexible-extract", flexible)];
            Sample {
                id: index.to_string(),
                group: None,
                scores: scores.map(|(name, right)| (name.into(), f64::from(right))).to_vec(),
                invalid: invalid(answer, extracted.is_some()),
                detail: json!({ "question": problem.question, "answer": gold, "response": answer.text,
                    "extracted": extracted }),
            }
        };
        let samples: Vec<Sample> = test.iter().zip(&answers).enumerate().map(sample).collect();
        Ok(outcome(samples))
    }
}

/// Why an answer could not be read, where its wanted part was not found.
pub fn invalid(answer: &Generation, found: bool) -> Option<Invalid> {
    if found { None } else { Some(Invalid::of(answer).unwrap_or(Invalid::Unparsed)) }
}

/// The mean of every score, the first of them the headline.
pub fn outcome(samples: Vec<Sample>) -> Outcome {
    let names: Vec<String> =
        samples.first().map(|s| s.scores.iter().map(|(name, _)| name.clone()).collect()).unwrap_or_default();
    let of = |(n, name): (usize, &String)| percent_of(name, samples.iter().map(|sample| sample.scores[n].1));
    let metrics = names.iter().enumerate().filter_map(of).collect();
    Outcome { metrics, groups: Vec::new(), samples, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_those_of_the_reference() {
        let Some(rows) = crate::test_data::golden_rows("golden_lm_eval/g_gsm8k.5shot.jsonl") else { return };
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data");
        let source = Source::new(root);
        let train = problems(&source, "gsm8k", "train").unwrap();
        let mut test = problems(&source, "gsm8k", "test").unwrap();
        test.truncate(rows.len());
        for (context, row) in contexts(&train, &test).iter().zip(&rows) {
            assert_eq!(row["context"], context.as_str());
            assert_eq!(row["gen_kwargs"]["until"], json!(["Question:", "</s>", "<|im_end|>"]));
        }
    }
}
