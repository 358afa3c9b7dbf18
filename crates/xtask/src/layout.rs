//! The layout check: the laws of ARCHITECTURE.md that a program can verify.
//!
//! Every rule is a function from text to [`Violation`]s, so that its tests need no files; [`check`] reads the tree
//! and hands each file to the rules that concern it. Hidden folders and those that `.gitignore` names are not read.
//! Tests: `cargo test -p xtask`.

mod arrows;
mod paths;
mod rust;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

/// Hidden folders that belong to the tree; all others (`.git`, virtual environments) are not read.
const OURS_THOUGH_HIDDEN: [&str; 2] = [".cargo", ".ci"];

/// One broken law: where, which, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path from the root of the workspace, with `/`.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// The law that is broken, with the offender's name.
    pub law: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}\n  hint: {}", self.file, self.line, self.law, self.hint)
    }
}

/// All violations in the workspace at `root`, in the order of the files.
///
/// Errors: a folder or file that cannot be read, a Cargo.toml that is not TOML.
pub fn check(root: &Path) -> Result<Vec<Violation>> {
    let ignored = std::fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
    let mut tree = Vec::new();
    walk(root, "", &ignored, &mut tree)?;
    tree.sort();
    let mut violations = Vec::new();
    for file in tree.iter().filter(|path| !path.ends_with('/')) {
        let read = || std::fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"));
        match file.rsplit_once('.').map(|(_, extension)| extension) {
            Some("md") => {
                let text = read()?;
                violations.extend(paths::check(file, &text, &tree));
                if file == "ARCHITECTURE.md" {
                    violations.extend(arrows::check_map(file, &text, &tree));
                }
            }
            Some("rs") => {
                let text = read()?;
                violations.extend(rust::check_length(file, &text));
                violations.extend(rust::check_unsafe(file, &text));
            }
            Some("py" | "cu") => violations.extend(rust::check_length(file, &read()?)),
            _ if is_manifest_of_crate(file) => violations.extend(arrows::check(file, &read()?)?),
            _ => {}
        }
    }
    Ok(violations)
}

fn is_manifest_of_crate(file: &str) -> bool {
    let parts: Vec<&str> = file.split('/').collect();
    matches!(parts[..], ["crates", _, "Cargo.toml"])
}

/// Appends the paths below `folder`, relative to the root; folders end with `/`. Of `ignored`, the text of .gitignore,
/// it understands lines such as `/fuzz/target` and `__pycache__`.
fn walk(root: &Path, folder: &str, ignored: &str, tree: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(root.join(folder)).with_context(|| format!("cannot list {folder:?}"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            let path = format!("{folder}{name}/");
            let is_hidden = name.starts_with('.') && !OURS_THOUGH_HIDDEN.contains(&name.as_str());
            let is_named = |line: &str| line == name || format!("{line}/") == format!("/{path}");
            if is_hidden || ignored.lines().any(is_named) {
                continue;
            }
            walk(root, &path, ignored, tree)?;
            tree.push(path);
        } else {
            tree.push(format!("{folder}{name}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The laws broken by a workspace of these files, as `file:line`.
    fn check_files(files: &[(&str, &str)]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        check(root.path()).unwrap().iter().map(|v| format!("{}:{}", v.file, v.line)).collect()
    }

    #[test]
    fn every_rule_reaches_its_files() {
        let long = "\n".repeat(801);
        let broken = check_files(&[
            ("ARCHITECTURE.md", "| crate | may use |\n| `tensor` | `model` |\n"),
            ("README.md", "see\n`crates/gone`\n"),
            ("crates/tensor/Cargo.toml", "[dependencies]\nkanana-model = { path = \"../model\" }\n"),
            ("crates/tensor/src/lib.rs", "fn f() {\n    unsafe { g() }\n}\n"),
            ("scripts/long.py", &long),
            ("scripts/long.cu", &long),
        ]);
        let expected = [
            "ARCHITECTURE.md:2",
            "README.md:2",
            "crates/tensor/Cargo.toml:2",
            "crates/tensor/src/lib.rs:2",
            "scripts/long.cu:801",
            "scripts/long.py:801",
        ];
        assert_eq!(broken, expected);
    }

    #[test]
    fn ignored_and_hidden_folders_are_not_read() {
        let broken = check_files(&[
            (".gitignore", "/target\n/fuzz/corpus\n__pycache__\n"),
            (".venv/b.md", "`gone.rs`"),
            ("a/__pycache__/b.md", "`gone.rs`"),
            ("crates/data/src/corpus/ours.md", "`gone.rs`"),
            ("fuzz/corpus/b.md", "`gone.rs`"),
            ("target/doc/b.md", "`gone.rs`"),
        ]);
        assert_eq!(broken, ["crates/data/src/corpus/ours.md:1"]);
    }

    #[test]
    fn a_violation_says_where_which_and_what_to_do() {
        let violation = Violation {
            file: "crates/tensor/src/lib.rs".into(),
            line: 7,
            law: "the law".into(),
            hint: "do this".into(),
        };
        assert_eq!(violation.to_string(), "crates/tensor/src/lib.rs:7: the law\n  hint: do this");
    }
}
