//! HumanEval+ and MBPP+: the canonical solution says what is right, on many inputs.
//!
//! The solution and the candidate run in processes of their own and write what they return as JSON (`objects.py`); the comparison
//! is made here (`oracle.rs`), so that no object can claim to be equal and no candidate can see what is expected. Otherwise the
//! rules are EvalPlus's: an exception fails, time is limited for each input by the canonical solution's own, memory to 4 GiB.
//! Source: evalplus 0.3.1 and 26d6d00b, `evalplus/evaluate.py`, `evalplus/eval/__init__.py`.
//!
//! What remains possible: a candidate that disables the timer has the limit of the whole half. EvalPlus also takes away `open`,
//! `os.remove` and more; here the sandbox answers those, and a program that uses its folder may pass.
//!
//! Of the canonical solutions of MBPP+ v0.2.0, Mbpp/255 fails, as there: one input has more combinations than 4 GiB hold. Mbpp/392
//! and Mbpp/599 need half a minute and more; on a slow or busy machine they outlast the limit of their half.

mod object;
mod oracle;
mod rows;

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use object::{Int, Object};
use oracle::{Oracle, Shape};

use super::START;
use crate::error::io;
use crate::sandbox::{Limits, Program, Sandbox, Status};
use crate::{EvalError, Result, Source};

/// What a candidate's outputs, or all of a reference's, may come to. Units: bytes.
const OUTPUT: usize = 256 << 20;
/// The canonical solutions of one task together; the slowest takes a minute and a half.
const REFERENCE: Duration = Duration::from_secs(600);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dataset {
    /// HumanEval+, 164 tasks.
    HumanEval,
    /// MBPP+, 378 tasks.
    Mbpp,
}

impl Dataset {
    /// Where its file may lie, relative to the folder of data.
    pub fn candidates(self) -> &'static [&'static str] {
        match self {
            Dataset::HumanEval => &[
                "humaneval_plus/HumanEvalPlus.jsonl.gz",
                "humaneval_plus/HumanEvalPlus.jsonl",
                "HumanEvalPlus-v0.1.10.jsonl",
            ],
            Dataset::Mbpp => {
                &["mbpp_plus/MbppPlus.jsonl.gz", "mbpp_plus/MbppPlus.jsonl", "MbppPlus-v0.2.0.jsonl"]
            }
        }
    }
}

/// A task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problem {
    /// `HumanEval/0`, `Mbpp/2`.
    pub task_id: String,
    /// What a model is shown.
    pub prompt: String,
    /// The function that is called.
    pub entry_point: String,
    /// Follows the prompt.
    pub canonical_solution: String,
    /// The absolute tolerance; 0 where values must be equal.
    pub atol: f64,
    /// Lists of arguments, as the file has them: JSON of Python's kind.
    pub base_input: String,
    /// More of them.
    pub plus_input: String,
}

/// What a reader of scores must know beside the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// A limit for each input is no shorter than this: 4 in EvalPlus's repository (26d6d00b), 1 in 0.3.1 of PyPI. Units: seconds.
    pub min_time_limit: f64,
    /// Nor than so many times what the canonical solution took.
    pub time_limit_factor: f64,
    /// All inputs of a half together, one second more. Units: seconds.
    pub half_time_limit: f64,
    /// Units: bytes.
    pub memory: u64,
    /// Leave out the plus inputs.
    pub base_only: bool,
    /// Never pass HumanEval/32, as 0.3.1 of PyPI does not (repaired in its repository by 6eb1e19): scores that were published
    /// with it can reach 99.39 at most.
    pub find_zero_fails: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            min_time_limit: 4.0,
            time_limit_factor: 4.0,
            half_time_limit: 60.0,
            memory: 4 << 30,
            base_only: false,
            find_zero_fails: false,
        }
    }
}

/// EvalPlus's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlusStatus {
    /// Right on every input.
    Pass,
    /// Wrong, raised, or too slow on one.
    Fail,
    /// Killed: too slow over all, or beyond its own timer.
    Timeout,
}

/// What became of half of the inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Half {
    /// The verdict.
    pub status: PlusStatus,
    /// How many inputs were right before the first that was not.
    pub right: usize,
    /// How many there are.
    pub total: usize,
    /// Why not, where it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What became of a solution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlusVerdict {
    /// On the inputs of HumanEval or MBPP.
    pub base: Half,
    /// On EvalPlus's own; none with [`Options::base_only`].
    pub plus: Option<Half>,
}

impl PlusVerdict {
    /// What the score of the base tests counts.
    pub fn base_passes(&self) -> bool {
        self.base.status == PlusStatus::Pass
    }

    /// What the plus score counts: both halves.
    pub fn plus_passes(&self) -> bool {
        self.base_passes() && self.plus.as_ref().is_some_and(|plus| plus.status == PlusStatus::Pass)
    }
}

/// What the canonical solution did with half of the inputs.
#[derive(Debug, Default)]
struct Expected {
    /// A list of lists of arguments, as `objects.py` writes it.
    inputs: String,
    /// For each input.
    outputs: Vec<Line>,
}

/// What either solution wrote about an input. Outputs stay text: some tasks return a hundred megabytes.
#[derive(Debug)]
enum Line {
    Output { seconds: f64, object: String },
    Error(String),
}

/// The tasks of a data set, with what their canonical solutions return.
#[derive(Debug)]
pub struct Suite {
    dataset: Dataset,
    problems: Vec<Problem>,
    /// What the reference wrote, compressed, by the digest of what it ran.
    known: Mutex<HashMap<String, Arc<Vec<u8>>>>,
    folder: Option<PathBuf>,
}

impl Suite {
    /// Reads the authors' file.
    ///
    /// Errors: it is not there, or a line is not a task.
    pub fn load(source: &Source, task: &str, dataset: Dataset) -> Result<Self> {
        let path = source.find(task, dataset.candidates())?;
        let lines = source.lines(&path)?;
        let lines = lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let problems = lines.map(|(index, line)| rows::problem(&path, index, line)).collect::<Result<_>>()?;
        Ok(Suite::new(dataset, problems))
    }

    /// Tasks from elsewhere.
    pub fn new(dataset: Dataset, problems: Vec<Problem>) -> Self {
        Suite { dataset, problems, known: Mutex::default(), folder: None }
    }

    /// Keeps what the canonical solutions return in a folder, too. It takes minutes to compute. The times that they took go with
    /// it and set limits: a folder belongs to one machine.
    pub fn cached_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// In the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Runs a solution (a whole program, the prompt included where it needs it) on the inputs of a problem.
    ///
    /// Errors: the sandbox fails, the canonical solution does not run, the cache cannot be read or written.
    pub fn evaluate(
        &self,
        sandbox: &Sandbox,
        problem: &Problem,
        solution: &str,
        options: &Options,
    ) -> Result<PlusVerdict> {
        let [base, plus] = self.expected(sandbox, problem)?;
        let half = |expected: &Expected| self.half(sandbox, problem, solution, expected, options);
        Ok(PlusVerdict {
            base: half(&base)?,
            plus: if options.base_only { None } else { Some(half(&plus)?) },
        })
    }

    fn expected(&self, sandbox: &Sandbox, problem: &Problem) -> Result<[Expected; 2]> {
        let program =
            concat!(include_str!("objects.py"), include_str!("inputs.py"), include_str!("reference.py"));
        // The arguments are JSON that only Python reads.
        let request = format!(
            "{{\"task\":{},\"entry_point\":{},\"solution\":{},\"shape\":{},\"base_input\":{},\"plus_input\":{}}}",
            Value::from(&*problem.task_id),
            Value::from(&*problem.entry_point),
            Value::from(format!("{}{}", problem.prompt, problem.canonical_solution)),
            Value::from(Shape::of(self.dataset, &problem.entry_point).name()),
            problem.base_input,
            problem.plus_input
        );
        let version = &sandbox.interpreter().version;
        let key = Sha256::digest([program, version, &request].join("\0").as_bytes());
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let file = self.folder.as_ref().map(|folder| folder.join(format!("{key}.gz")));
        let packed = match (known, &file) {
            (Some(packed), _) => packed,
            (None, Some(file)) if file.exists() => Arc::new(fs::read(file).map_err(io(file))?),
            _ => {
                let limits = Limits { wall: REFERENCE, output: OUTPUT, ..Limits::default() };
                let program = Program { source: program.into(), stdin: request.into_bytes(), limits };
                let finished = sandbox.run(&program)?;
                let complete =
                    matches!(finished.status, Status::OutputLimit | Status::TimedOut | Status::Exit(0));
                if !complete || !finished.stdout.starts_with(b"I") {
                    let stderr = String::from_utf8_lossy(&finished.stderr);
                    return Err(broken(problem, format!("{:?}, {}", finished.status, stderr.trim())));
                }
                let packed = pack(&finished.stdout).map_err(|error| broken(problem, error.to_string()))?;
                if let Some(file) = &file {
                    store(file, &packed)?;
                }
                Arc::new(packed)
            }
        };
        let mut text = String::new();
        let read = GzDecoder::new(&packed[..]).read_to_string(&mut text);
        read.map_err(|error| broken(problem, format!("damaged, remove it from the cache: {error}")))?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, packed);
        Ok(halves(&text))
    }

    fn half(
        &self,
        sandbox: &Sandbox,
        problem: &Problem,
        solution: &str,
        expected: &Expected,
        options: &Options,
    ) -> Result<Half> {
        let limit = |line: &Line| {
            let reference = if let Line::Output { seconds, .. } = line { *seconds } else { 0.0 };
            options.min_time_limit.max(options.time_limit_factor * reference)
        };
        if expected.inputs.is_empty() {
            let reason = Some("the canonical solution did not come so far".into());
            return Ok(Half { status: PlusStatus::Fail, right: 0, total: 0, reason });
        }
        let arguments = arguments(&expected.inputs);
        let total = arguments.len();
        let limits: Vec<f64> =
            (0..total).map(|at| expected.outputs.get(at).map_or(options.min_time_limit, limit)).collect();
        let wall = limits.iter().sum::<f64>().min(options.half_time_limit) + 1.0;
        let head = json!({
            "entry_point": problem.entry_point,
            "solution": solution,
            "shape": Shape::of(self.dataset, &problem.entry_point).name(),
            "limits": limits,
        });
        let head = head.to_string();
        let open = head.strip_suffix('}').unwrap_or(&head);
        let stdin = format!("{open},\"inputs\":{}}}", expected.inputs).into_bytes();
        let source = concat!(include_str!("objects.py"), include_str!("candidate.py")).into();
        let wall = Duration::from_secs_f64(wall) + START;
        let limits = Limits { wall, memory: options.memory, output: OUTPUT, ..Limits::default() };
        let finished = sandbox.run(&Program { source, stdin, limits })?;
        let text = String::from_utf8_lossy(&finished.stdout);
        let mut got = lines(&text);

        let mut oracle = Oracle::new(self.dataset, problem);
        let bug = options.find_zero_fails && problem.task_id == "HumanEval/32";
        let none = Line::Error("the canonical solution gives nothing within the limits".into());
        for (at, arguments) in arguments.iter().enumerate() {
            let wanted = expected.outputs.get(at).unwrap_or(&none);
            let (status, reason) = match (got.next(), wanted) {
                (Some(Line::Output { object, .. }), Line::Output { object: wanted, .. }) => {
                    if !bug && is_right(&mut oracle, arguments, &object, wanted) {
                        continue;
                    }
                    (PlusStatus::Fail, format!("returned {}, expected {}", short(&object), short(wanted)))
                }
                (Some(Line::Error(error)), _) => (PlusStatus::Fail, error),
                (None, _) if finished.status == Status::TimedOut => (
                    PlusStatus::Timeout,
                    format!("{:.1} s for all inputs were not enough", wall.as_secs_f64()),
                ),
                (None, _) => (PlusStatus::Fail, format!("ended early: {:?}", finished.status)),
                (Some(_), Line::Error(error)) => {
                    (PlusStatus::Fail, format!("nothing to compare with: {error}"))
                }
            };
            return Ok(Half { status, right: at, total, reason: Some(reason) });
        }
        match got.next() {
            // With no inputs, or after the last: it could not even be loaded, or claims more than it was asked.
            Some(Line::Error(error)) => {
                Ok(Half { status: PlusStatus::Fail, right: total, total, reason: Some(error) })
            }
            _ => Ok(Half { status: PlusStatus::Pass, right: total, total, reason: None }),
        }
    }
}

fn broken(problem: &Problem, what: String) -> EvalError {
    EvalError::Sandbox { problem: format!("the canonical solution of {}: {what}", problem.task_id) }
}

fn pack(text: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text)?;
    encoder.finish()
}

/// Whole or not at all: others may be writing the same.
fn store(file: &PathBuf, packed: &[u8]) -> Result<()> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder).map_err(io(folder))?;
    let mut new = tempfile::NamedTempFile::new_in(folder).map_err(io(folder))?;
    new.write_all(packed).map_err(io(file))?;
    new.persist(file).map_err(|error| io(file)(error.error))?;
    Ok(())
}

/// The lines of `reference.py`. A part that was not reached is empty.
fn halves(text: &str) -> [Expected; 2] {
    let mut halves = [Expected::default(), Expected::default()];
    let mut at = usize::MAX;
    for line in text.split_inclusive('\n') {
        if let Some(inputs) = line.strip_prefix('I') {
            at = at.wrapping_add(1);
            if let Some(half) = halves.get_mut(at) {
                half.inputs = inputs.trim_end().into();
            }
        } else if let Some(half) = halves.get_mut(at) {
            half.outputs.extend(lines(line));
        }
    }
    halves
}

/// Lines of outputs, up to the first that is not whole.
fn lines(text: &str) -> impl Iterator<Item = Line> + '_ {
    text.split_inclusive('\n').map_while(|line| {
        let line = line.strip_suffix('\n')?;
        if let Some(error) = line.strip_prefix('E') {
            return Some(Line::Error(serde_json::from_str(error).unwrap_or_else(|_| error.to_owned())));
        }
        let (seconds, object) = line.strip_prefix("O[")?.strip_suffix(']')?.split_once(',')?;
        Some(Line::Output { seconds: seconds.parse().ok()?, object: object.to_owned() })
    })
}

fn read(text: &str) -> Option<Object> {
    Object::read(&serde_json::from_str(text).ok()?)
}

/// The arguments of each input.
fn arguments(inputs: &str) -> Vec<Object> {
    match read(inputs) {
        Some(Object::List(inputs)) => inputs,
        _ => Vec::new(),
    }
}

fn is_right(oracle: &mut Oracle, arguments: &Object, out: &str, expected: &str) -> bool {
    // The same text is the same value, unless something in it equals nothing: most outputs, and all of the large ones, need not
    // be read.
    let exact = |text: &str| ["[\"f\",\"nan", "[\"c\",", "[\"o\","].iter().all(|kind| !text.contains(kind));
    if oracle.is_plain() && out == expected && exact(out) {
        if oracle.heeds(expected)
            && let Some(expected) = read(expected)
        {
            oracle.heed(&expected);
        }
        return true;
    }
    let (Some(out), Some(expected)) = (read(out), read(expected)) else { return false };
    oracle.is_right(arguments.sequence().unwrap_or_default(), &out, &expected)
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(200).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
