//! What a task is: rows in, an outcome out.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lm::{Ended, GenerateRequest, Generation, LanguageModel, LogLikelihood, LogLikelihoodRequest};
use crate::sandbox::Sandbox;
use crate::{EvalError, Result, Source};

/// What fixes a score: two scores with the same id were made the same way. A change of a prompt, a regex, a stop string or
/// an aggregation is a new id.
#[derive(Clone, Debug, PartialEq)]
pub struct Protocol {
    /// The task's name on the command line: `gsm8k`.
    pub task: &'static str,
    /// `gsm8k/5-shot/strict-match/v1`.
    pub id: &'static str,
    /// The column of the published tables that it reproduces, if any: `GSM8K`.
    pub column: Option<&'static str>,
    /// Where the prompt and the metric come from: file or page, and revision.
    pub source: &'static str,
}

/// A family of questions with one way to ask and to score.
pub trait Task: Sync {
    /// What fixes the score.
    fn protocol(&self) -> Protocol;

    /// Whether programs that the model writes are run.
    fn needs_sandbox(&self) -> bool {
        false
    }

    /// Asks everything and scores the answers.
    ///
    /// Errors: data that are missing or broken, a model that fails, something the bench does not have ([`EvalError::Needs`]).
    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome>;
}

/// What a task works with.
pub struct Bench<'a> {
    /// Who is examined.
    pub model: &'a mut dyn LanguageModel,
    /// Who judges, where answers need it.
    pub judge: Option<&'a mut dyn LanguageModel>,
    /// Where programs run.
    pub sandbox: Option<&'a Sandbox>,
    /// Rows.
    pub source: &'a Source,
    /// Only the first so many questions (of each subject, where there are subjects).
    pub limit: Option<usize>,
}

impl Bench<'_> {
    /// All answers, in the order of the requests.
    pub fn generate(&mut self, requests: &[GenerateRequest]) -> Result<Vec<Generation>> {
        let mut answers = vec![None; requests.len()];
        self.model.generate(requests, &mut |index, answer| {
            answers[index] = Some(answer);
            Ok(())
        })?;
        whole(answers, self.model.name())
    }

    /// All log-likelihoods, in the order of the requests.
    pub fn log_likelihoods(&mut self, requests: &[LogLikelihoodRequest]) -> Result<Vec<LogLikelihood>> {
        let mut answers = vec![None; requests.len()];
        self.model.log_likelihoods(requests, &mut |index, answer| {
            answers[index] = Some(answer);
            Ok(())
        })?;
        whole(answers, self.model.name())
    }

    /// All verdicts, in the order of the requests.
    ///
    /// Errors: no judge, which `task` needs.
    pub fn judge(&mut self, task: &str, requests: &[GenerateRequest]) -> Result<Vec<Generation>> {
        let needs =
            || EvalError::Needs { task: task.into(), needs: "a judge: --judge-url and --judge-model".into() };
        let judge = self.judge.as_deref_mut().ok_or_else(needs)?;
        let mut answers = vec![None; requests.len()];
        judge.generate(requests, &mut |index, answer| {
            answers[index] = Some(answer);
            Ok(())
        })?;
        whole(answers, judge.name())
    }

    /// `rows`, no more than the limit allows.
    pub fn limited<T>(&self, mut rows: Vec<T>) -> Vec<T> {
        rows.truncate(self.limit.unwrap_or(usize::MAX));
        rows
    }
}

fn whole<A>(answers: Vec<Option<A>>, model: &str) -> Result<Vec<A>> {
    let missing = answers.iter().filter(|answer| answer.is_none()).count();
    let problem =
        || EvalError::Model { model: model.into(), problem: format!("{missing} requests got no answer") };
    answers.into_iter().collect::<Option<Vec<A>>>().ok_or_else(problem)
}

/// Why a sample could not be read as the task wants it. Counted beside the score, which takes it as wrong (or as the reference
/// takes it); never dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invalid {
    /// The answer is there, but the wanted part is not found in it.
    Unparsed,
    /// Nothing came.
    Empty,
    /// It was cut at its limit of tokens.
    Truncated,
    /// The model's server refused.
    Refused,
    /// The prompt did not fit the context of the model's server.
    TooLong,
    /// The judge's answer gave no verdict.
    Unjudged,
    /// A program ran out of time or memory.
    OutOfTime,
}

impl Invalid {
    /// What can be said of an answer before it is read; it may have a score all the same.
    pub fn of(answer: &Generation) -> Option<Self> {
        match answer.ended {
            Ended::Refused => Some(Invalid::Refused),
            Ended::TooLong => Some(Invalid::TooLong),
            _ if answer.text.trim().is_empty() && answer.tool_calls.is_empty() => Some(Invalid::Empty),
            Ended::Length => Some(Invalid::Truncated),
            Ended::Stop => None,
        }
    }
}

/// One question with what became of it: a line of the file that an auditor reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Unique within the task.
    pub id: String,
    /// The subject, category or kind, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What it counts, by the name of the metric: 0 or 1 where it is right or wrong.
    pub scores: Vec<(String, f64)>,
    /// What could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<Invalid>,
    /// Question, answer, what was extracted, what was expected: whatever explains the score.
    pub detail: Value,
}

/// A number of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// `acc`, `exact_match,strict-match`, `pass@1`, …
    pub name: String,
    /// In the units of the published tables: mostly per cent.
    pub value: f64,
    /// Its standard error, in the same units, where the samples give one.
    pub stderr: Option<f64>,
    /// Over so many samples.
    pub n: usize,
}

/// What a task found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The headline first: the one that the published tables have.
    pub metrics: Vec<Metric>,
    /// The same for each subject, category or kind, by name.
    pub groups: Vec<(String, Vec<Metric>)>,
    /// Every question.
    pub samples: Vec<Sample>,
    /// What a reader must know: a part that was left out, a rule that was chosen.
    pub notes: Vec<String>,
}
