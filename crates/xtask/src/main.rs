//! `cargo xtask layout` checks the laws of the tree; `cargo xtask ci` runs everything that CI runs.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use xtask::{ci, layout};

const USAGE: &str = "usage: cargo xtask <command>

  layout   check arrows between crates, paths in Markdown, file sizes and where `unsafe` lives
  ci       formatting, lints, licences and advisories of dependencies, all tests";

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("xtask lies two folders below the root: this is a bug");
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("layout") => layout(root),
        Some("ci") => ci::run(root),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn layout(root: &Path) -> Result<()> {
    let violations = layout::check(root)?;
    violations.iter().for_each(|violation| eprintln!("{violation}"));
    ensure!(violations.is_empty(), "{} violations of the layout", violations.len());
    Ok(())
}
