//! Where rows come from: files below one folder, in the formats that their authors publish.
//!
//! Every file that was read is noted with its checksum, so that a report says what was asked. Nothing here asks a network.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flate2::read::MultiGzDecoder;
use kanana_data::read::{self, Row};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::io;
use crate::{EvalError, Result};

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Relative to the folder of data.
    pub path: String,
    /// Units: bytes.
    pub bytes: u64,
    /// Of the file as it lies there.
    pub sha256: String,
}

/// A folder of data sets.
pub struct Source {
    root: PathBuf,
    /// Data sets that lie elsewhere: their folders, by the first part of their paths here.
    elsewhere: BTreeMap<String, PathBuf>,
    read: Mutex<BTreeMap<String, FileRecord>>,
}

impl Source {
    /// The folder; nothing is read yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Source { root: root.into(), elsewhere: BTreeMap::new(), read: Mutex::default() }
    }

    /// Takes the data set `name`, which the folder does not have, from another folder.
    pub fn with(mut self, name: &str, folder: impl Into<PathBuf>) -> Self {
        self.elsewhere.insert(name.into(), folder.into());
        self
    }

    /// Where a path that begins with a data set's name leads.
    fn resolve(&self, path: &str) -> PathBuf {
        let (name, rest) = path.split_once('/').unwrap_or((path, ""));
        match self.elsewhere.get(name) {
            Some(folder) if !self.root.join(name).exists() => folder.join(rest),
            _ => self.root.join(path),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The first of some paths that exists, whole: `mmlu/test/*.csv` would be several, see [`Source::folder`].
    ///
    /// Errors: [`EvalError::NoData`], naming all of them.
    pub fn find(&self, task: &str, candidates: &[&str]) -> Result<PathBuf> {
        let found = candidates.iter().map(|path| self.resolve(path)).find(|path| path.exists());
        found.ok_or_else(|| EvalError::NoData {
            task: task.into(),
            folder: self.root.clone(),
            expected: candidates.iter().map(|&path| path.to_owned()).collect(),
        })
    }

    /// The files of a folder whose names end so, sorted by name.
    pub fn folder(&self, folder: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(io(folder))? {
            let path = entry.map_err(io(folder))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(suffix)) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// The rows of a file: `.jsonl` (or `.json` with an object a line, or one array), `.csv` and `.tsv` with a line of names,
    /// `.parquet`; JSON also with `.gz` or `.zst` behind. The fields of CSV and TSV are strings.
    pub fn rows(&self, path: &Path) -> Result<Vec<Row>> {
        self.note(path)?;
        let name = path.to_string_lossy();
        if name.ends_with(".csv") || name.ends_with(".tsv") {
            return table(path, if name.ends_with(".csv") { b',' } else { b'\t' });
        }
        if name.ends_with(".json") {
            let text = fs::read_to_string(path).map_err(io(path))?;
            if text.trim_start().starts_with('[') {
                return array(path, &text);
            }
        }
        read::open(path)?.map(|row| row.map(|(_, row)| row).map_err(EvalError::from)).collect()
    }

    /// The lines of a file, `.gz` ones unpacked: for JSON that is only Python's.
    pub fn lines(&self, path: &Path) -> Result<Vec<String>> {
        self.note(path)?;
        let file = fs::File::open(path).map_err(io(path))?;
        let packed = path.extension().is_some_and(|extension| extension == "gz");
        let bytes: Box<dyn Read> = if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        BufReader::new(bytes).lines().collect::<std::io::Result<_>>().map_err(io(path))
    }

    /// A whole file as text.
    pub fn text(&self, path: &Path) -> Result<String> {
        self.note(path)?;
        fs::read_to_string(path).map_err(io(path))
    }

    /// Every file that was read so far, by name.
    pub fn manifest(&self) -> Vec<FileRecord> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn note(&self, path: &Path) -> Result<()> {
        let mounted = |(name, folder): (&String, &PathBuf)| {
            Some(format!("{name}/{}", path.strip_prefix(folder).ok()?.to_string_lossy()))
        };
        let relative = match path.strip_prefix(&self.root) {
            Ok(relative) => relative.to_string_lossy().into_owned(),
            Err(_) => {
                self.elsewhere.iter().find_map(mounted).unwrap_or_else(|| path.to_string_lossy().into_owned())
            }
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(place) = read.entry(relative.clone()) {
            let bytes = fs::read(path).map_err(io(path))?;
            let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            place.insert(FileRecord { path: relative, bytes: bytes.len() as u64, sha256 });
        }
        Ok(())
    }
}

fn table(path: &Path, delimiter: u8) -> Result<Vec<Row>> {
    // A quotation mark within a field of TSV is a mark: those files do not quote.
    let reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter == b',')
        .flexible(delimiter == b'\t')
        .from_path(path);
    let problem = |row: usize, error: csv::Error| EvalError::Row {
        path: path.to_owned(),
        row: row as u64 + 1,
        problem: error.to_string(),
    };
    let mut reader = reader.map_err(|error| problem(0, error))?;
    let names = reader.headers().map_err(|error| problem(0, error))?.clone();
    let row = |(index, record): (usize, csv::Result<csv::StringRecord>)| {
        let record = record.map_err(|error| problem(index + 1, error))?;
        let fields = names.iter().zip(record.iter());
        Ok(fields.map(|(name, field)| (name.to_owned(), Value::from(field))).collect())
    };
    reader.records().enumerate().map(row).collect()
}

fn array(path: &Path, text: &str) -> Result<Vec<Row>> {
    serde_json::from_str(text).map_err(|error| EvalError::Row {
        path: path.to_owned(),
        row: error.line() as u64,
        problem: format!("expected an array of objects: {error}"),
    })
}

/// The text of a field of row `index` (from 0) of a file.
///
/// Errors: the field is missing or no string; the error names it.
pub fn field<'r>(path: &Path, index: usize, row: &'r Row, field: &str) -> Result<&'r str> {
    row.get(field).and_then(Value::as_str).ok_or_else(|| EvalError::Row {
        path: path.to_owned(),
        row: index as u64 + 1,
        problem: format!("expected a string in {field:?}, got {}", row.get(field).unwrap_or(&Value::Null)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, content: &str, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let source = Source::new(folder.path());
        let got = match source.rows(&path) {
            Ok(rows) => serde_json::to_string(&rows).unwrap(),
            Err(error) => error.to_string().replace(&*folder.path().to_string_lossy(), "DIR"),
        };
        assert_eq!(got, expected);
        assert_eq!(source.manifest()[0].path, name);
    }

    #[test]
    fn rows_of_every_form() {
        let two = r#"[{"a":"1","b":"x, \"y\"\nz"},{"a":"가","b":""}]"#;
        check("t.csv", "a,b\n1,\"x, \"\"y\"\"\nz\"\n가,\n", two);
        check("t.tsv", "a\tb\n1\t\"x\n", r#"[{"a":"1","b":"\"x"}]"#);
        check("t.json", "[{\"a\":1},\n{\"a\":2}]", r#"[{"a":1},{"a":2}]"#);
        check("t.jsonl", "{\"a\":1}\n\n{\"a\":2}\n", r#"[{"a":1},{"a":2}]"#);
    }

    #[test]
    fn a_data_set_may_lie_elsewhere() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(there.path().join("main")).unwrap();
        fs::write(there.path().join("main/test.jsonl"), "{}\n").unwrap();
        let source = Source::new(here.path()).with("gsm8k", there.path());
        let path = source.find("t", &["gsm8k/test.jsonl", "gsm8k/main/test.jsonl"]).unwrap();
        assert_eq!(source.rows(&path).unwrap().len(), 1);
        assert_eq!(source.manifest()[0].path, "gsm8k/main/test.jsonl");
        fs::create_dir(here.path().join("gsm8k")).unwrap();
        assert!(source.find("t", &["gsm8k/main/test.jsonl"]).is_err(), "the folder's own comes first");
    }

    #[test]
    fn what_is_broken_is_named() {
        check(
            "t.csv",
            "a,b\n1\n",
            "DIR/t.csv: row 2: CSV error: record 1 (line: 2, byte: 4): found record with 1 fields, but the previous record has 2 fields",
        );
        check(
            "t.json",
            "[1]",
            "DIR/t.json: row 1: expected an array of objects: invalid type: integer `1`, expected a map at line 1 column 2",
        );
    }
}
