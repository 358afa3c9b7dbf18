//! The Python that runs programs, and what it needs to read.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::{problem, within};
use crate::Result;

/// A CPython installation. A shim on `PATH` (pyenv, asdf) is asked what stands behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// `sys.executable`: absolute, perhaps a link in a virtual environment.
    pub executable: PathBuf,
    /// `sys.prefix` and its kin, without those inside another.
    pub prefixes: Vec<PathBuf>,
    /// `3.11.7`.
    pub version: String,
}

const QUESTION: &str = "import json, sys
print(json.dumps([sys.executable, [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix],
                  '.'.join(map(str, sys.version_info[:3]))]))";

impl Interpreter {
    /// Asks an interpreter, by a name on `PATH` or by a path, where it lives.
    ///
    /// Errors: it is not there, is no Python 3, or lives where the user's own files do.
    pub(super) fn find(python: &Path) -> Result<Self> {
        let hint = "install Python 3.8 or newer, or put it on PATH";
        let asked = Command::new(python).args(["-I", "-c", QUESTION]).output();
        let asked = asked.map_err(|error| problem(format!("{}: {error}; {hint}", python.display())))?;
        let answer = serde_json::from_slice::<(PathBuf, Vec<PathBuf>, String)>(&asked.stdout);
        let Ok((executable, mut all, version)) = answer else {
            let stderr = String::from_utf8_lossy(&asked.stderr);
            return Err(problem(format!("{} gives no answer: {}; {hint}", python.display(), stderr.trim())));
        };
        all.sort();
        let mut prefixes: Vec<PathBuf> = Vec::new();
        for prefix in all {
            if !within(&prefix, &prefixes) {
                prefixes.push(prefix);
            }
        }
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let home = home.filter(|home| home.parent().is_some());
        if let Some(prefix) = prefixes.iter().find(|prefix| {
            prefix.parent().is_none() || home.as_ref().is_some_and(|home| home.starts_with(prefix))
        }) {
            return Err(problem(format!(
                "Python's prefix {} holds the user's own files, which programs could read; use another Python",
                prefix.display()
            )));
        }
        Ok(Interpreter { executable, prefixes, version })
    }

    /// The dynamic loader that the executable names (ELF, `PT_INTERP`); none for a static one.
    #[cfg(target_os = "linux")]
    pub(super) fn loader(&self) -> Option<PathBuf> {
        let bytes = std::fs::read(&self.executable).ok()?;
        loader(&bytes).map(PathBuf::from)
    }
}

/// Source: System V ABI, ELF-64 object files, program headers.
#[cfg(target_os = "linux")]
fn loader(elf: &[u8]) -> Option<String> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
    let mut headers = (0..count).map(|index| table.saturating_add(index * size));
    let header = headers.find(|&header| number(header, 4) == Some(PT_INTERP))?;
    let (start, length) = (number(header + 8, 8)? as usize, number(header + 32, 8)? as usize);
    let name = elf.get(start..start.checked_add(length)?)?.strip_suffix(b"\0")?;
    String::from_utf8(name.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_looked_through() {
        let python = Interpreter::find(Path::new("python3")).unwrap();
        assert!(python.executable.is_absolute(), "{python:?}");
        assert!(python.version.starts_with("3."), "{python:?}");
        #[cfg(target_os = "linux")]
        assert!(python.loader().unwrap().exists());
    }

    #[test]
    fn what_is_no_python_is_named() {
        let error = Interpreter::find(Path::new("/no/such/python")).unwrap_err().to_string();
        assert!(error.contains("/no/such/python") && error.contains("install"), "{error}");
        let error = Interpreter::find(Path::new("true")).unwrap_err().to_string();
        assert!(error.contains("gives no answer"), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn broken_headers_have_no_loader() {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        assert_eq!(loader(&elf), None);
        elf.resize(64, 0xff);
        assert_eq!(loader(&elf), None);
    }
}
