//! One run, seen from the harness: starts the launcher, feeds and drains its pipes, ends it in time.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::stage::{NOT_STARTED, Outcome, Plan, Stage};
use super::{ENTRY, Finished, Program, Sandbox, Status, problem};
use crate::Result;

/// How often a process is asked whether it has ended, where its pipes do not tell.
const TICK: Duration = Duration::from_millis(20);
/// What the kernel needs at most to clear away what was killed.
const GRACE: Duration = Duration::from_secs(10);

pub(super) fn run(sandbox: &Sandbox, program: &Program) -> Result<Finished> {
    let number = sandbox.runs.fetch_add(1, Ordering::Relaxed);
    let files = Files::new(sandbox.scratch.path(), number)?;
    let plan = Plan {
        stage: if sandbox.confined { Stage::Outer } else { Stage::Unconfined },
        place: files.place.clone(),
        outcome: files.outcome.clone(),
        source_bytes: program.source.len(),
        interpreter: sandbox.interpreter.clone(),
        #[cfg(target_os = "linux")]
        loader: sandbox.interpreter.loader(),
        #[cfg(not(target_os = "linux"))]
        loader: None,
        launcher: sandbox.launcher.clone(),
        limits: program.limits.clone(),
    };
    let plan = serde_json::to_string(&plan).map_err(|error| problem(error.to_string()))?;
    let start = Instant::now();
    let spawned = Command::new(&sandbox.launcher)
        .args([ENTRY, &plan])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let child =
        spawned.map_err(|error| problem(format!("launcher {}: {error}", sandbox.launcher.display())))?;
    // An unconfined program can leave processes behind that hold the pipes for good.
    let grace = if sandbox.confined { GRACE } else { TICK * 5 };
    let mut running = Running { child: Some(child) };
    let ended =
        watch(&mut running, program, start, grace).map_err(|error| problem(format!("pipes: {error}")))?;
    let seconds = start.elapsed().as_secs_f64();
    let status = match ended.by {
        By::Itself(status) if sandbox.confined => confined_status(&files.outcome, status, &ended.stderr)?,
        By::Itself(status) if status.code() == Some(NOT_STARTED) => {
            return Err(problem(String::from_utf8_lossy(&ended.stderr).trim()));
        }
        By::Itself(status) => match status.code() {
            Some(code) => Status::Exit(code),
            None => Status::Signal(status.signal().unwrap_or_default()),
        },
        By::Time => Status::TimedOut,
        By::Output => Status::OutputLimit,
    };
    if sandbox.confined && !ended.silent {
        return Err(problem("a program lives on after it was killed; stop the evaluation and look for it"));
    }
    Ok(Finished { status, stdout: ended.stdout, stderr: ended.stderr, seconds })
}

/// The files of a run, which go with it.
struct Files {
    place: PathBuf,
    outcome: PathBuf,
}

impl Files {
    fn new(scratch: &Path, number: u64) -> Result<Self> {
        let place = scratch.join(format!("run-{number}"));
        fs::create_dir(&place).map_err(crate::error::io(&place))?;
        Ok(Files { place, outcome: scratch.join(format!("run-{number}.json")) })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.place);
        let _ = fs::remove_file(&self.outcome);
    }
}

fn confined_status(outcome: &Path, status: ExitStatus, stderr: &[u8]) -> Result<Status> {
    let text = fs::read_to_string(outcome).unwrap_or_default();
    match serde_json::from_str(&text) {
        Ok(Outcome::Exit(code)) => Ok(Status::Exit(code)),
        Ok(Outcome::Signal(signal)) => Ok(Status::Signal(signal)),
        Ok(Outcome::Setup(setup)) => Err(problem(setup)),
        Err(_) => Err(problem(format!(
            "the launcher ended without an outcome ({status}): does its main begin with enter_if_launched? {}",
            String::from_utf8_lossy(stderr).trim()
        ))),
    }
}

enum By {
    Itself(ExitStatus),
    Time,
    Output,
}

struct Ended {
    by: By,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Nobody holds the pipes any more.
    silent: bool,
}

/// A process that does not outlive its value.
struct Running {
    child: Option<Child>,
}

impl Running {
    /// Kills the group. In a sandbox, the first process of the namespace dies with its parent, and all others with it.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn watch(running: &mut Running, program: &Program, start: Instant, grace: Duration) -> io::Result<Ended> {
    let Some(child) = running.child.as_mut() else { return Err(ErrorKind::NotFound.into()) };
    let bytes = [program.source.as_bytes(), &program.stdin].concat();
    let mut input = Input { pipe: child.stdin.take(), bytes, sent: 0 };
    let limit = program.limits.output;
    let mut stdout = Output { pipe: child.stdout.take(), bytes: Vec::new(), limit };
    let mut stderr = Output { pipe: child.stderr.take(), bytes: Vec::new(), limit };
    input.pipe.as_ref().map_or(Ok(()), nonblocking)?;
    stdout.pipe.as_ref().map_or(Ok(()), nonblocking)?;
    stderr.pipe.as_ref().map_or(Ok(()), nonblocking)?;

    let mut by = None;
    let mut deadline = start + program.limits.wall;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Both pipes end when a confined program does.
        let silent = stdout.pipe.is_none() && stderr.pipe.is_none();
        wait(&input, &stdout, &stderr, left.min(if silent { TICK / 20 } else { TICK }))?;
        input.feed();
        let within = stdout.drain()? & stderr.drain()?;
        if by.is_none() {
            by = match running.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                Some(status) => Some(By::Itself(status)),
                None if !within => Some(By::Output),
                None if left.is_zero() => Some(By::Time),
                None => None,
            };
            if by.is_some() {
                // Also after an end of its own: an unconfined program may have left others.
                running.kill();
                input.pipe = None;
                deadline = Instant::now() + grace;
            }
            continue;
        }
        let silent = stdout.pipe.is_none() && stderr.pipe.is_none();
        if let Some(by) = by.take_if(|_| silent || left.is_zero()) {
            return Ok(Ended { by, stdout: stdout.bytes, stderr: stderr.bytes, silent });
        }
    }
}

/// Until something can be read or written, or the time is over.
fn wait<O: AsFd, E: AsFd>(
    input: &Input,
    stdout: &Output<O>,
    stderr: &Output<E>,
    limit: Duration,
) -> io::Result<()> {
    let mut pipes = Vec::new();
    pipes.extend(input.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
    pipes.extend(stdout.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
    pipes.extend(stderr.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    match poll(&mut pipes, limit) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn nonblocking(pipe: impl AsFd) -> io::Result<()> {
    let pipe: BorrowedFd<'_> = pipe.as_fd();
    let flags = OFlag::from_bits_truncate(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

struct Input {
    pipe: Option<ChildStdin>,
    bytes: Vec<u8>,
    sent: usize,
}

impl Input {
    /// Writes what fits. A program that does not read its input is no error.
    fn feed(&mut self) {
        while let Some(pipe) = &mut self.pipe {
            match pipe.write(&self.bytes[self.sent..]) {
                Ok(0) => self.pipe = None,
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }
}

struct Output<P> {
    pipe: Option<P>,
    bytes: Vec<u8>,
    limit: usize,
}

impl<P: Read> Output<P> {
    /// Reads what is there, up to the limit; what follows is thrown away. False: it wrote more than it may.
    fn drain(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 1 << 16];
        let mut within = true;
        // A program that writes without end must not keep its judge here.
        for _ in 0..64 {
            let Some(pipe) = &mut self.pipe else { break };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    let kept = count.min(self.limit - self.bytes.len());
                    self.bytes.extend_from_slice(&buffer[..kept]);
                    within &= kept == count;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(within)
    }
}
