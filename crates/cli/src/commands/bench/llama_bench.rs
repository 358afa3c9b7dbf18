//! The benchmark of llama.cpp, run as a program of its own.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::interruption::Interruption;
use crate::hints::{failure, failure_of};
use crate::memory;

/// Between two looks at the memory of the program.
const INTERVAL: Duration = Duration::from_millis(20);

const HOW_TO_GET_IT: &str = "build llama.cpp (`cmake --build build --target llama-bench`) and give the path: \
                             --compare build/bin/llama-bench";

/// A llama-bench that starts.
pub struct LlamaBench {
    program: PathBuf,
}

/// One measurement: a prompt, or tokens one by one, behind a context.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    pub threads: usize,
    pub prompt: usize,
    pub generate: usize,
    pub depth: usize,
}

/// What llama-bench said of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub tokens_per_s: f64,
    /// Commit and number.
    pub build: String,
    pub peak_memory: Option<u64>, // bytes
}

impl LlamaBench {
    /// Finds a program by its path, or by its name on `$PATH`, and sees that it starts.
    pub fn find(program: &str) -> Result<Self> {
        let program = match program.contains(std::path::MAIN_SEPARATOR) {
            true => Some(PathBuf::from(program)),
            false => on_path(program),
        }
        .filter(|path| path.is_file())
        .ok_or_else(|| failure(format_args!("{program}: no such program"), HOW_TO_GET_IT))?;
        let found = LlamaBench { program };
        found.run(&["--help"], &Interruption::none())?;
        Ok(found)
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Measures once, after the warm-up that llama-bench makes.
    pub fn measure(&self, model: &Path, test: Test, interruption: &Interruption) -> Result<Sample> {
        let Test { threads, prompt, generate, depth } = test;
        let numbers = [threads, prompt, generate, depth].map(|n| n.to_string());
        let model = model.to_string_lossy();
        let mut args = vec!["-m", &model, "-t", &numbers[0], "-p", &numbers[1], "-n", &numbers[2]];
        if depth > 0 {
            args.extend(["-d", &numbers[3]]);
        }
        args.extend(["-r", "1", "-o", "json"]);
        let (text, peak_memory) = self.run(&args, interruption)?;
        let (tokens_per_s, build) = parse(&text, test).ok_or_else(|| {
            let start: String = text.chars().take(200).collect();
            let message = format!("{} printed what kanana does not understand: {start:?}", self.name());
            failure(message, "take a llama.cpp of 2025 or later: its `-o json` must say n_depth and avg_ts")
        })?;
        Ok(Sample { tokens_per_s, build, peak_memory })
    }

    fn name(&self) -> std::path::Display<'_> {
        self.program.display()
    }

    /// What it prints, and its peak memory.
    fn run(&self, args: &[&str], interruption: &Interruption) -> Result<(String, Option<u64>)> {
        let mut child = Command::new(&self.program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| {
                failure_of(error.into(), format_args!("cannot start {}", self.name()), HOW_TO_GET_IT)
            })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (status, peak, stdout, stderr) = thread::scope(|scope| {
            let stdout = scope.spawn(|| read(stdout));
            let stderr = scope.spawn(|| read(stderr));
            let ended = watch(&mut child, interruption);
            if ended.is_err() {
                // It may be gone already; waiting keeps it from staying behind as a zombie.
                let _ = child.kill().and_then(|()| child.wait());
            }
            let (status, peak) = ended?;
            Ok::<_, anyhow::Error>((status, peak, joined(stdout), joined(stderr)))
        })?;
        if status.success() {
            return Ok((stdout, peak));
        }
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        let command = format!("{} {}", self.name(), args.join(" "));
        Err(failure(
            format_args!("{command} failed ({status}): {last}"),
            "run it by hand to see more; a library that is not found may be named by LD_LIBRARY_PATH",
        ))
    }
}

/// The first program of that name.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Waits for the end of a program, and says its peak memory as seen until shortly before.
fn watch(child: &mut Child, interruption: &Interruption) -> Result<(ExitStatus, Option<u64>)> {
    let process = child.id().to_string();
    let mut peak = None;
    loop {
        peak = peak.max(memory::peak_of(&process));
        if let Some(status) = child.try_wait().context("cannot wait for llama-bench")? {
            return Ok((status, peak));
        }
        interruption.check()?;
        thread::sleep(INTERVAL);
    }
}

/// All that comes; what is not text is replaced.
fn read(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What a program that died did not write is missed by who reads it.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn joined(reader: thread::ScopedJoinHandle<'_, String>) -> String {
    reader.join().unwrap_or_default()
}

/// Tokens per second and the build.
fn parse(text: &str, test: Test) -> Option<(f64, String)> {
    let results: Vec<Value> = serde_json::from_str(text).ok()?;
    let is_test = |result: &&Value| {
        let expected = [("n_prompt", test.prompt), ("n_gen", test.generate), ("n_depth", test.depth)];
        // The depth is missing where llama-bench knows none.
        expected.iter().all(|&(field, n)| result[field].as_u64().unwrap_or(0) == n as u64)
    };
    let result = results.iter().find(is_test)?;
    let rate = result["avg_ts"].as_f64().filter(|rate| *rate > 0.0)?;
    let commit = result["build_commit"].as_str().unwrap_or("unknown");
    Some((rate, format!("{commit} ({})", result["build_number"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_found_by_what_was_asked() {
        let test = Test { threads: 2, prompt: 64, generate: 0, depth: 128 };
        let result = r#"{"build_commit": "0c1e570", "build_number": 1, "n_prompt": 64, "n_gen": 0, "n_depth": 128,
                         "avg_ts": 10.5}"#;
        let other = result.replace("128", "0");
        let check = |text: &str, expected: Option<f64>| {
            assert_eq!(parse(text, test).map(|(rate, _)| rate), expected, "{text}");
        };
        check(&format!("[{other}, {result}]"), Some(10.5));
        check(&format!("[{other}]"), None);
        check(&format!("[{}]", result.replace("10.5", "null")), None);
        check("[]", None);
        check("model | t/s", None);
        assert_eq!(parse(&format!("[{result}]"), test).unwrap().1, "0c1e570 (1)");
    }
}
