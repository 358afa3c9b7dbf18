//! Where programs that a model wrote run: Python, with nothing in reach but an interpreter and an empty folder.
//!
//! A program gets new user, mount, pid, net, ipc and uts namespaces; a root of read-only binds of the interpreter and the
//! system's libraries (no home, no `/proc`, no data); a small tmpfs as its only writable place; Landlock over all of that; a
//! seccomp list of the system calls that CPython needs, every other being `ENOSYS`; limits of memory, time, threads, files and
//! output; an environment of its own and no descriptors but three pipes. When it ends or is ended, everything it started ends.
//!
//! Nothing here is `unsafe`: the sandbox starts *this same program* again ([`enter_if_launched`]), which confines itself before
//! it becomes Python. One run is
//!
//! ```text
//! harness ── spawn ──▶ outer stage: namespaces, mounts, waits ── spawn ──▶ inner stage: limits, Landlock, seccomp ── exec ──▶ Python
//! ```
//!
//! What a program leaves behind in [`Finished`] is its claim, not a fact: a scorer must think about who wrote it (see `code`).
//! It refuses to know what is run. What remains possible: using the CPU until the limit, reading `/usr`, attacking the kernel
//! through the allowed calls. Tests: `cargo test -p kanana-eval --test sandbox_attacks`.

#[cfg(target_os = "linux")]
mod confine;
mod interpreter;
#[cfg(unix)]
mod run;
#[cfg(target_os = "linux")]
mod seccomp;
#[cfg(unix)]
mod stage;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use interpreter::Interpreter;

use crate::{EvalError, Result};

/// The first argument with which the launcher is started. It is no command of anybody's.
pub const ENTRY: &str = "__sandbox";

/// What a program may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// From the start of the process; the interpreter's own start (some 50 ms) is in it.
    pub wall: Duration,
    /// Address space (`RLIMIT_AS`). Units: bytes.
    pub memory: u64,
    /// What it may write to stdout, and as much to stderr. Units: bytes.
    pub output: usize,
    /// The size of its folder, and of any file in it. It counts apart from `memory`. Units: bytes.
    pub files: u64,
    /// Threads, the first among them. Other processes it may not start at all.
    pub threads: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            wall: Duration::from_secs(10),
            memory: 4 << 30,
            output: 1 << 20,
            files: 64 << 20,
            threads: 32,
        }
    }
}

/// A Python program with what it reads.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Runs as `__main__`, from the file `main.py` of its folder.
    pub source: String,
    /// Its standard input.
    pub stdin: Vec<u8>,
    /// What it may use.
    pub limits: Limits,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// By itself, with this code.
    Exit(i32),
    /// By this signal, which the harness did not send.
    Signal(i32),
    /// It reached the limit of wall-clock time and was killed.
    TimedOut,
    /// It wrote more than it may and was killed.
    OutputLimit,
}

/// What a program left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: Status,
    /// No longer than the limit.
    pub stdout: Vec<u8>,
    /// No longer than the limit.
    pub stderr: Vec<u8>,
    /// Wall-clock time, the start of the process included. Units: seconds.
    pub seconds: f64,
}

/// A place that a program cannot leave. Many threads may run programs in it at once.
#[derive(Debug)]
pub struct Sandbox {
    launcher: PathBuf,
    interpreter: Interpreter,
    confined: bool,
    /// Mount points and outcomes of the runs.
    scratch: TempDir,
    runs: AtomicU64,
}

/// How a [`Sandbox`] is made.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    launcher: Option<PathBuf>,
    python: Option<PathBuf>,
    unconfined: bool,
}

impl Builder {
    /// The program that is started to confine itself: its `main` begins with [`enter_if_launched`]. This program by default.
    pub fn launcher(mut self, launcher: impl Into<PathBuf>) -> Self {
        self.launcher = Some(launcher.into());
        self
    }

    /// The interpreter: a name on `PATH` or a path. `python3` by default.
    pub fn python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = Some(python.into());
        self
    }

    /// Nothing but limits, a folder and a process group of its own: the program can read and write what this process can.
    pub fn unconfined(mut self) -> Self {
        self.unconfined = true;
        self
    }

    /// Finds the interpreter and runs a first program.
    ///
    /// Errors: [`EvalError::Sandbox`], naming the part that this system does not give, and what to do.
    pub fn build(self) -> Result<Sandbox> {
        if !self.unconfined && !cfg!(target_os = "linux") {
            return Err(problem(format!(
                "programs can be confined on Linux only, this is {}: {UNSAFE_CODE}",
                std::env::consts::OS
            )));
        }
        let current = || std::env::current_exe().map_err(|error| problem(format!("own program: {error}")));
        let launcher = self.launcher.map_or_else(current, Ok)?;
        let interpreter = Interpreter::find(&self.python.unwrap_or_else(|| "python3".into()))?;
        let scratch = tempfile::Builder::new().prefix("kanana-sandbox-").tempdir();
        let scratch = scratch.map_err(|error| problem(format!("temporary folder: {error}")))?;
        let confined = !self.unconfined;
        let sandbox = Sandbox { launcher, interpreter, confined, scratch, runs: AtomicU64::new(0) };
        let first = sandbox.run(&Program { source: "print(6 * 7)".into(), ..Program::default() })?;
        if first.status != Status::Exit(0) || first.stdout != b"42\n" {
            return Err(problem(format!(
                "{} does not work inside: {:?}, {}",
                sandbox.interpreter.executable.display(),
                first.status,
                String::from_utf8_lossy(&first.stderr).trim()
            )));
        }
        Ok(sandbox)
    }
}

impl Sandbox {
    /// With this program as the launcher (its `main` must begin with [`enter_if_launched`]) and `python3` of `PATH`.
    ///
    /// Errors: as [`Builder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// For those who know what they do (`--unsafe-code`): limits of time, memory and output, but no confinement.
    ///
    /// Errors: no interpreter; a system that is no Unix.
    pub fn unconfined() -> Result<Self> {
        Self::builder().unconfined().build()
    }

    /// Another launcher or interpreter.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The interpreter that runs programs: a part of what makes a score.
    pub fn interpreter(&self) -> &Interpreter {
        &self.interpreter
    }

    /// Programs cannot leave it.
    pub fn is_confined(&self) -> bool {
        self.confined
    }

    /// Runs a program to its end, and ends what it started.
    ///
    /// Errors: [`EvalError::Sandbox`] where the program could not be started, never for what it does.
    #[cfg(unix)]
    pub fn run(&self, program: &Program) -> Result<Finished> {
        run::run(self, program)
    }

    /// Runs a program to its end, and ends what it started.
    ///
    /// Errors: always; this is no Unix.
    #[cfg(not(unix))]
    pub fn run(&self, _program: &Program) -> Result<Finished> {
        let _ = (&self.launcher, &self.scratch, &self.runs);
        Err(problem("programs run on Linux and other Unix systems only"))
    }
}

/// Where the arguments begin with [`ENTRY`], becomes the sandbox and never returns. The first line of a launcher's `main`, while
/// the process has one thread.
pub fn enter_if_launched() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_none_or(|word| word != ENTRY) {
        return;
    }
    #[cfg(unix)]
    stage::enter(args.next());
    #[cfg(not(unix))]
    std::process::exit(1);
}

/// The end of every message about something that is missing.
const UNSAFE_CODE: &str =
    "run where that is given, or accept that programs are not confined with --unsafe-code";

fn problem(problem: impl Into<String>) -> EvalError {
    EvalError::Sandbox { problem: problem.into() }
}

/// One of `paths` contains `path`.
fn within(path: &Path, paths: &[PathBuf]) -> bool {
    paths.iter().any(|outer| path.starts_with(outer))
}
