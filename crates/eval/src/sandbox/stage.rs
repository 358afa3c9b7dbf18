//! The launched program: from its arguments to Python.
//!
//! The outcome goes into a file that only the outer stage can open, so that no program can claim that the sandbox is broken, or
//! that it ended otherwise than it did.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};

use super::{Interpreter, Limits};

/// What a stage is told, in its second argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub stage: Stage,
    /// A mount point, or the folder of an unconfined program.
    pub place: PathBuf,
    /// Where the outcome is written.
    pub outcome: PathBuf,
    /// Stands at the head of stdin. Units: bytes.
    pub source_bytes: usize,
    pub interpreter: Interpreter,
    /// The dynamic loader.
    pub loader: Option<PathBuf>,
    pub launcher: PathBuf,
    pub limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// Makes namespaces and mounts, then waits for the inner one.
    Outer,
    /// Confines itself and becomes Python. It is the first process of its pid namespace: when it ends, all end.
    Inner,
    /// Only limits, then Python.
    Unconfined,
}

/// How a confined run ended, as the outer stage saw it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Outcome {
    Exit(i32),
    Signal(i32),
    /// It never became Python.
    Setup(String),
}

/// What a stage says when it cannot go on: the part, and what the system says.
pub(super) type Step<T> = std::result::Result<T, String>;

/// Names the part in an error of the system.
pub(super) fn part<E: std::fmt::Display>(part: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("{part}: {error}")
}

/// The code of an unconfined stage that never became Python.
pub(super) const NOT_STARTED: i32 = 121;

/// Runs the stage that the plan names and ends the process.
pub(super) fn enter(plan: Option<OsString>) -> ! {
    let plan = plan.and_then(|plan| serde_json::from_str::<Plan>(&plan.to_string_lossy()).ok());
    let Some(plan) = plan else {
        eprintln!("the sandbox starts this by itself; it is no command");
        std::process::exit(2);
    };
    if let Err(problem) = close_inherited().and_then(|()| stage(plan)) {
        eprintln!("{problem}");
        std::process::exit(NOT_STARTED);
    }
    std::process::exit(0);
}

fn stage(plan: Plan) -> Step<()> {
    match plan.stage {
        #[cfg(target_os = "linux")]
        Stage::Outer => super::confine::outer(plan),
        #[cfg(target_os = "linux")]
        Stage::Inner => super::confine::inner(&plan),
        #[cfg(not(target_os = "linux"))]
        Stage::Outer | Stage::Inner => Err("not Linux".into()),
        Stage::Unconfined => {
            limit(&plan.limits)?;
            let main = receive(&plan, &plan.place)?;
            Err(part("exec")(python(&plan, &plan.place, &main).exec()))
        }
    }
}

/// Descriptors that other libraries of the harness left open would be open in here.
fn close_inherited() -> Step<()> {
    let numbers: Vec<i32> = match fs::read_dir("/dev/fd") {
        Ok(entries) => {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        }
        // The inner stage has no /dev/fd, and the outer one has closed them.
        Err(_) => Vec::new(),
    };
    for number in numbers.into_iter().filter(|&number| number > 2) {
        // The one of the listing itself is closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// Writes the program from the head of stdin into `folder`, and leaves the rest of stdin to it.
pub(super) fn receive(plan: &Plan, folder: &Path) -> Step<PathBuf> {
    // A file has no buffer that would swallow more than the source.
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(part("stdin"))?;
    let mut source = Vec::new();
    File::from(stdin).take(plan.source_bytes as u64).read_to_end(&mut source).map_err(part("stdin"))?;
    let path = folder.join("main.py");
    File::create(&path).and_then(|mut file| file.write_all(&source)).map_err(part(path.display()))?;
    Ok(path)
}

/// The command that a stage becomes.
pub(super) fn python(plan: &Plan, folder: &Path, main: &Path) -> Command {
    let mut command = Command::new(&plan.interpreter.executable);
    command.args(["-s", "-B", "-X", "utf8"]).arg(main).current_dir(folder).env_clear().envs([
        ("LANG", "C.UTF-8"),
        ("PATH", "/usr/bin:/bin"),
        // Iteration over a set of strings is the same in every run.
        ("PYTHONHASHSEED", "0"),
        // Libraries that count cores would start a thread for each.
        ("OMP_NUM_THREADS", "1"),
        ("OPENBLAS_NUM_THREADS", "1"),
    ]);
    command.env("HOME", folder).env("TMPDIR", folder);
    command
}

/// The main thread's stack: deep recursions in C end in an error of Python's before they reach it. Units: bytes.
const STACK: u64 = 64 << 20;

/// Sets the limits of this process and of what it becomes.
pub(super) fn limit(limits: &Limits) -> Step<()> {
    let seconds = limits.wall.as_secs() + 2;
    let set = |name: &str, resource, value| {
        setrlimit(resource, value, value).map_err(part(format!("limit of {name}")))
    };
    set("core files", Resource::RLIMIT_CORE, 0)?;
    // Threads run side by side.
    set("CPU time", Resource::RLIMIT_CPU, seconds * limits.threads.max(1))?;
    set("file size", Resource::RLIMIT_FSIZE, limits.files)?;
    set("open files", Resource::RLIMIT_NOFILE, 64)?;
    // Those that some systems do not know or do not let lower.
    let _ = setrlimit(Resource::RLIMIT_STACK, STACK, STACK);
    #[cfg(target_os = "linux")]
    {
        set("locked memory", Resource::RLIMIT_MEMLOCK, 0)?;
        set("address space", Resource::RLIMIT_AS, limits.memory)?;
    }
    Ok(())
}
