//! Scores of programs that a model wrote: HumanEval and MBPP by their asserts, EvalPlus by comparing values.
//!
//! - [`check_program`]: one program with its asserts, as human-eval runs it.
//! - [`plus`]: HumanEval+ and MBPP+. Values come back, and are compared outside.
//! - [`sanitize`]: the code in an answer.
//!
//! It refuses to know prompts and models. Tests: `cargo test -p kanana-eval code`, and with Python in the sandbox
//! `cargo test -p kanana-eval --test code_scoring`; the whole of EvalPlus with `-- --ignored`.

pub mod plus;
mod sanitize;

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use sanitize::sanitize;

use crate::Result;
use crate::sandbox::{Limits, Program, Sandbox, Status};

/// What human-eval gives a program, and what lm-evaluation-harness takes from it. Source: human-eval 6d43fb98, `evaluation.py`.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// What a slow machine needs to start an interpreter.
const START: Duration = Duration::from_secs(3);

/// What became of a program with asserts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It came to its end.
    Passed,
    /// An assert failed, or something else went wrong.
    Failed,
    /// It was still running.
    TimedOut,
}

/// A verdict with its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// What a score counts.
    pub verdict: Verdict,
    /// `passed`, `timed out` or `failed: ` and what Python raised.
    pub message: String,
    /// Wall-clock time, the interpreter's start included. Units: seconds.
    pub seconds: f64,
}

/// The program of a HumanEval task. Source: human-eval 6d43fb98, `check_correctness`.
pub fn human_eval_program(prompt: &str, completion: &str, test: &str, entry_point: &str) -> String {
    format!("{prompt}{completion}\n{test}\ncheck({entry_point})")
}

/// The program of an MBPP task: setup code and challenge tests are not used. Source: lm-evaluation-harness 4e7e0d47, `mbpp.yaml`.
pub fn mbpp_program(prediction: &str, asserts: &[impl AsRef<str>]) -> String {
    let asserts: Vec<&str> = asserts.iter().map(AsRef::as_ref).collect();
    format!("{prediction}\n{}", asserts.join("\n"))
}

/// Runs a program to see whether it comes to its end within `timeout` (for HumanEval and MBPP, [`TIMEOUT`]).
///
/// That the end was reached is proved by a number that waits unread in a pipe until then: leaving early (`sys.exit(0)`,
/// `os._exit`), printing, or patching what a harness might call proves nothing. Asserts and answer share a process, as in the
/// reference, so two things remain possible: a value whose `==` says yes to everything passes an assert, and a program that was
/// written against this very harness can find the pipe. EvalPlus is closed to the first, and to the second by comparing outside.
///
/// Errors: the sandbox fails; never what the program does.
pub fn check_program(sandbox: &Sandbox, program: &str, timeout: Duration) -> Result<Checked> {
    let random = RandomState::new();
    let nonce = format!("{:016x}{:016x}", random.hash_one("first"), random.hash_one("second"));
    // A string of JSON is one of Python.
    let source =
        format!("{}\nmain({}, {})\n", include_str!("check.py"), Value::from(program), timeout.as_secs_f64());
    let limits = Limits { wall: timeout + START, ..Limits::default() };
    let finished = sandbox.run(&Program { source, stdin: nonce.clone().into_bytes(), limits })?;
    let said = String::from_utf8_lossy(&finished.stdout);
    let (verdict, message) = match &*said {
        said if said == nonce => (Verdict::Passed, "passed".into()),
        "timed out" => (Verdict::TimedOut, "timed out".into()),
        _ if finished.status == Status::TimedOut => (Verdict::TimedOut, "timed out".into()),
        said if said.starts_with("failed: ") => (Verdict::Failed, said.into()),
        _ => (Verdict::Failed, format!("failed: ended before its end ({:?})", finished.status)),
    };
    Ok(Checked { verdict, message, seconds: finished.seconds })
}
