//! Programs: HumanEval (0-shot) and MBPP (3-shot) as base models are asked, HumanEval+ and MBPP+ as instruct models are.
//!
//! Sources: `lm_eval/tasks/{humaneval,mbpp}` of lm-evaluation-harness 0.4.13; Chen et al. 2021, Austin et al. 2021; evalplus
//! 26d6d00b (`evalplus/codegen.py`, `evalplus/provider`), Liu et al. 2023.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kanana_data::read::Row;
use serde_json::{Value, json};

use super::gsm8k::outcome;
use crate::code::plus::{Dataset, Options, PlusStatus, PlusVerdict, Problem, Suite};
use crate::code::{self, Checked, TIMEOUT, Verdict};
use crate::lm::{GenerateRequest, Generation, Prompt};
use crate::sandbox::Sandbox;
use crate::source::field;
use crate::{Bench, EvalError, Invalid, Outcome, Protocol, Result, Sample, Source, Task};

/// HumanEval, 164 tasks.
pub struct HumanEval;

impl Task for HumanEval {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: "humaneval",
            id: "humaneval/0-shot/pass@1/v1",
            column: Some("HumanEval"),
            source: "lm-evaluation-harness 0.4.13, lm_eval/tasks/humaneval; human-eval 6d43fb98",
        }
    }

    fn needs_sandbox(&self) -> bool {
        true
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let task = self.protocol().task;
        let path = bench.source.find(
            task,
            &[
                "humaneval/HumanEval.jsonl.gz",
                "humaneval/HumanEval.jsonl",
                "humaneval/openai_humaneval/test-00000-of-00001.parquet",
                "humaneval/test-00000-of-00001.parquet",
            ],
        )?;
        let rows = bench.limited(bench.source.rows(&path)?);
        let text = |index: usize, row, name| field(&path, index, row, name).map(str::to_owned);
        let mut requests = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let prompt = Prompt::Text(text(index, row, "prompt")?);
            requests.push(
                GenerateRequest::greedy(prompt, 1024).until(&["\nclass", "\ndef", "\n#", "\nif", "\nprint"]),
            );
        }
        let answers = bench.generate(&requests)?;
        let mut programs = Vec::new();
        for (index, (row, answer)) in rows.iter().zip(&answers).enumerate() {
            let [prompt, test, entry] =
                ["prompt", "test", "entry_point"].map(|name| field(&path, index, row, name));
            programs.push(code::human_eval_program(prompt?, &answer.text, test?, entry?));
        }
        let ids = rows.iter().enumerate().map(|(index, row)| text(index, row, "task_id"));
        checked(bench, task, ids.collect::<Result<_>>()?, &answers, programs)
    }
}

/// MBPP, the 500 tasks of the test split.
pub struct Mbpp;

/// A row of MBPP.
struct MbppRow {
    id: u64,
    text: String,
    code: String,
    tests: Vec<String>,
}

impl MbppRow {
    fn read(path: &Path, index: usize, row: &Row) -> Result<Self> {
        let text = |name| field(path, index, row, name).map(str::to_owned);
        let tests = row.get("test_list").and_then(Value::as_array);
        let tests =
            tests.and_then(|tests| tests.iter().map(|test| test.as_str().map(str::to_owned)).collect());
        match (row.get("task_id").and_then(Value::as_u64), tests) {
            (Some(id), Some(tests)) => Ok(MbppRow { id, text: text("text")?, code: text("code")?, tests }),
            _ => Err(EvalError::Row {
                path: path.to_owned(),
                row: index as u64 + 1,
                problem: "expected a number in \"task_id\" and a list of strings in \"test_list\"".into(),
            }),
        }
    }

    fn question(&self) -> String {
        format!(
            "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:\n\n{}\n[BEGIN]\n",
            self.text,
            self.tests.iter().take(3).map(String::as_str).collect::<Vec<_>>().join("\n")
        )
    }
}

/// The rows by number: one file of all (974), or the Hub's splits of `full`.
fn mbpp_rows(source: &Source, task: &str) -> Result<BTreeMap<u64, MbppRow>> {
    let first = source.find(task, &["mbpp/mbpp.jsonl", "mbpp/full/test-00000-of-00001.parquet"])?;
    let mut files = vec![first.clone()];
    if first.extension().is_some_and(|kind| kind == "parquet") {
        files.push(source.find(task, &["mbpp/full/prompt-00000-of-00001.parquet"])?);
    }
    let mut rows = BTreeMap::new();
    for path in files {
        for (index, row) in source.rows(&path)?.iter().enumerate() {
            let row = MbppRow::read(&path, index, row)?;
            rows.insert(row.id, row);
        }
    }
    match [2, 3, 4].iter().find(|id| !rows.contains_key(id)) {
        None => Ok(rows),
        Some(id) => Err(EvalError::Row {
            path: first,
            row: 0,
            problem: format!("task {id} is missing, which is one of the three examples"),
        }),
    }
}

/// The prompts of the test split with its rows: three examples, always the same.
fn mbpp_prompts(rows: &BTreeMap<u64, MbppRow>, limit: Option<usize>) -> Vec<(String, &MbppRow)> {
    let shots = [2, 3, 4].map(|id| &rows[&id]);
    let shots: String =
        shots.iter().map(|shot| format!("{}{}\n[DONE]\n\n", shot.question(), shot.code)).collect();
    let test = rows.range(11..=510).map(|(_, row)| row).take(limit.unwrap_or(usize::MAX));
    test.map(|row| (format!("{shots}{}", row.question()), row)).collect()
}

impl Task for Mbpp {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: "mbpp",
            id: "mbpp/3-shot/pass@1/v1",
            column: Some("MBPP"),
            source: "lm-evaluation-harness 0.4.13, lm_eval/tasks/mbpp",
        }
    }

    fn needs_sandbox(&self) -> bool {
        true
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let task = self.protocol().task;
        let rows = mbpp_rows(bench.source, task)?;
        let prompts = mbpp_prompts(&rows, bench.limit);
        let request = |(prompt, _): &(String, &MbppRow)| {
            GenerateRequest::greedy(Prompt::Text(prompt.clone()), 256).until(&["[DONE]"])
        };
        let answers = bench.generate(&prompts.iter().map(request).collect::<Vec<_>>())?;
        let program = |((_, row), answer): (&(String, &MbppRow), &Generation)| {
            code::mbpp_program(&answer.text, &row.tests[..row.tests.len().min(3)])
        };
        let programs = prompts.iter().zip(&answers).map(program).collect();
        let ids = prompts.iter().map(|(_, row)| row.id.to_string()).collect();
        checked(bench, task, ids, &answers, programs)
    }
}

/// Runs programs and counts those that come to their end. One that ran out of time is run once more, alone: a busy machine must
/// not make a score.
fn checked(
    bench: &Bench<'_>,
    task: &str,
    ids: Vec<String>,
    answers: &[Generation],
    programs: Vec<String>,
) -> Result<Outcome> {
    let sandbox = sandbox(bench, task)?;
    let mut verdicts = in_parallel(&programs, |program| code::check_program(sandbox, program, TIMEOUT))?;
    for (program, checked) in programs.iter().zip(&mut verdicts) {
        if checked.verdict == Verdict::TimedOut {
            *checked = code::check_program(sandbox, program, TIMEOUT)?;
        }
    }
    let sample = |(((id, answer), program), checked): (((String, &Generation), &String), &Checked)| Sample {
        id,
        group: None,
        scores: vec![("pass@1".into(), f64::from(checked.verdict == Verdict::Passed))],
        invalid: match checked.verdict {
            Verdict::Passed => None,
            Verdict::TimedOut => Some(Invalid::OutOfTime),
            Verdict::Failed => Invalid::of(answer),
        },
        detail: json!({ "response": answer.text, "program": program, "verdict": checked }),
    };
    let samples = ids.into_iter().zip(answers).zip(&programs).zip(&verdicts).map(sample).collect();
    Ok(with_sandbox_note(outcome(samples), sandbox))
}

/// HumanEval+ and MBPP+: the code in an answer runs on many more inputs, and its results are compared outside.
pub struct Plus(pub Dataset);

/// Stop strings of EvalPlus for chat models. Source: `evalplus/provider/utility.py` (26d6d00b).
const STOPS: [&str; 7] =
    ["<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(", "\n```\n"];

/// What the answer is made to begin with.
const PREFILL: &str = "Below is a Python script with a self-contained function that solves the problem and passes \
    corresponding tests:\n```python\n";

impl Task for Plus {
    fn protocol(&self) -> Protocol {
        let (task, id, column) = match self.0 {
            Dataset::HumanEval => {
                ("humaneval_plus", "humaneval_plus/0-shot/prefilled/v0.1.10/v1", "HumanEval+")
            }
            Dataset::Mbpp => ("mbpp_plus", "mbpp_plus/0-shot/prefilled/v0.2.0/v1", "MBPP+"),
        };
        Protocol { task, id, column: Some(column), source: "evalplus 26d6d00b, prompts of its vLLM provider" }
    }

    fn needs_sandbox(&self) -> bool {
        true
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let task = self.protocol().task;
        let suite = Suite::load(bench.source, task, self.0)?;
        let problems = bench.limited(suite.problems().iter().collect());
        let request = |problem: &&Problem| {
            let text = format!(
                "Please provide a self-contained Python script that solves the following problem in a markdown code \
                 block:\n```\n{}\n```\n",
                problem.prompt.trim()
            );
            let Prompt::Chat { messages, tools, .. } = Prompt::user(text) else {
                unreachable!("a user's message is a conversation: this is a bug")
            };
            let prompt = Prompt::Chat { messages, tools, prefill: Some(PREFILL.into()) };
            GenerateRequest::greedy(prompt, 768).until(&STOPS)
        };
        let answers = bench.generate(&problems.iter().map(request).collect::<Vec<_>>())?;
        let sandbox = sandbox(bench, task)?;
        let solution = |(problem, answer): (&&Problem, &Generation)| {
            code::sanitize(&answer.text.replace('\t', "    "), &problem.entry_point)
        };
        let solutions: Vec<String> = problems.iter().zip(&answers).map(solution).collect();
        let options = Options::default();
        let pairs: Vec<(&Problem, &String)> = problems.iter().copied().zip(&solutions).collect();
        let evaluate =
            |(problem, solution): &(&Problem, &String)| suite.evaluate(sandbox, problem, solution, &options);
        let mut verdicts = in_parallel(&pairs, evaluate)?;
        for (pair, verdict) in pairs.iter().zip(&mut verdicts) {
            if timed_out(verdict) {
                *verdict = evaluate(pair)?; // alone
            }
        }
        let sample = |((problem, answer), (solution, verdict)): (
            (&&Problem, &Generation),
            (&String, &PlusVerdict),
        )| {
            let (plus, base) = (verdict.plus_passes(), verdict.base_passes());
            Sample {
                id: problem.task_id.clone(),
                group: None,
                scores: vec![
                    ("pass@1,plus".into(), f64::from(plus)),
                    ("pass@1,base".into(), f64::from(base)),
                ],
                invalid: match plus {
                    true => None,
                    false if timed_out(verdict) => Some(Invalid::OutOfTime),
                    false => Invalid::of(answer),
                },
                detail: json!({ "response": answer.text, "solution": solution, "verdict": verdict }),
            }
        };
        let samples =
            problems.iter().zip(&answers).zip(solutions.iter().zip(&verdicts)).map(sample).collect();
        Ok(with_sandbox_note(outcome(samples), sandbox))
    }
}

fn timed_out(verdict: &PlusVerdict) -> bool {
    let half = |status: PlusStatus| status == PlusStatus::Timeout;
    half(verdict.base.status) || verdict.plus.as_ref().is_some_and(|plus| half(plus.status))
}

fn sandbox<'a>(bench: &Bench<'a>, task: &str) -> Result<&'a Sandbox> {
    bench.sandbox.ok_or_else(|| EvalError::Needs {
        task: task.into(),
        needs: "a sandbox for the programs that the model writes, or --unsafe-code".into(),
    })
}

fn with_sandbox_note(mut outcome: Outcome, sandbox: &Sandbox) -> Outcome {
    let version = &sandbox.interpreter().version;
    let confined = if sandbox.is_confined() { "in the sandbox" } else { "without confinement" };
    outcome.notes.push(format!(
        "programs ran {confined}, Python {version}; those out of time were run once more, alone"
    ));
    outcome
}

/// Maps items on as many threads as there are cores, in order; the first error ends it.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get()).min(items.len());
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(item);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_of_mbpp_are_those_of_the_reference() {
        let Some(golden) = crate::test_data::golden_rows("golden_lm_eval/g_mbpp.3shot.jsonl") else { return };
        let source = Source::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data"));
        let rows = mbpp_rows(&source, "mbpp").unwrap();
        let prompts = mbpp_prompts(&rows, None);
        assert_eq!(prompts.len(), 500);
        for ((prompt, _), row) in prompts.iter().zip(&golden) {
            assert_eq!(row["context"], prompt.as_str());
            assert_eq!(row["gen_kwargs"]["until"], json!(["[DONE]"]));
        }
    }

    #[test]
    fn results_keep_their_order_and_errors_end() {
        let squares = in_parallel(&[1, 2, 3, 4, 5], |&n| Ok(n * n)).unwrap();
        assert_eq!(squares, [1, 4, 9, 16, 25]);
        let failed = in_parallel(&[1, 2], |&n| if n == 2 { Err(EvalError::Stopped) } else { Ok(n) });
        assert!(matches!(failed, Err(EvalError::Stopped)));
    }
}
