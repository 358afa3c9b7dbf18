//! The steps of CI, in the order in which they fail soonest.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Runs every step in the workspace at `root`; stops at the first that fails.
///
/// Errors: a step that fails or cannot be started.
pub fn run(root: &Path) -> Result<()> {
    step(root, &["fmt", "--all", "--check"])?;
    step(root, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    step(root, &["deny", "--locked", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"])?;
    advisories(root)?;
    step(root, &["test", "--workspace", "--locked"])?;
    step(root, &["build", "--package", "kanana", "--locked"])?;
    clients(root)
}

/// The server by the clients that people use. What a package registry that is out of reach would bring is skipped.
fn clients(root: &Path) -> Result<()> {
    let line = "crates/serve/tests/clients/run.sh";
    let mut command = Command::new(root.join(line));
    command.arg(std::env::current_exe()?.with_file_name("kanana")); // cargo puts it beside this program
    watched(line, command)
}

/// Known vulnerabilities of dependencies. The database lies on another host than the packages: where it cannot be
/// fetched this says so, and an advisory never hides behind that.
fn advisories(root: &Path) -> Result<()> {
    if quietly(root, &["deny", "--locked", "fetch", "db"]) {
        return step(root, &["deny", "--locked", "check", "--hide-inclusion-graph", "advisories"]);
    }
    eprintln!("advisories: skipped, database not reachable");
    Ok(())
}

fn step(root: &Path, arguments: &[&str]) -> Result<()> {
    watched(&format!("cargo {}", arguments.join(" ")), cargo(root, arguments))
}

/// Runs a command under a name, and tells how long it took.
fn watched(line: &str, mut command: Command) -> Result<()> {
    eprintln!("\n== {line}");
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start `{line}`; is it installed?"))?;
    ensure!(status.success(), "`{line}` failed; run it alone to work on it");
    eprintln!("== {line}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn quietly(root: &Path, arguments: &[&str]) -> bool {
    cargo(root, arguments).output().is_ok_and(|output| output.status.success())
}

fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root);
    command
}
