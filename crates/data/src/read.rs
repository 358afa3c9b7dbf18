//! Rows of a corpus: JSON objects, one after the other, from files that are never whole in memory.
//!
//! It knows the forms of files and nothing of what their fields mean. A Parquet file that was cut short is an error; one whose
//! metadata were altered may end the program within the library that reads it.
//! Tests: `cargo test -p kanana-data read`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use serde_json::{Map, Value, json};

use crate::error::io;
use crate::{DataError, Result};

/// A row: fields by name.
pub type Row = Map<String, Value>;

/// The rows of one file, with their numbers.
pub struct Rows {
    path: PathBuf,
    form: Form,
    row: u64,
    /// Nothing follows: the end, or what cannot be read.
    done: bool,
}

enum Form {
    /// An object a line.
    Json(Lines),
    /// The whole file is one row with a `text`.
    Text(Lines),
    Parquet(Box<RowIter<'static>>),
}

type Lines = BufReader<Box<dyn Read + Send>>;

/// Opens a file by its name: `.jsonl` (or `.json`, `.ndjson`), an object a line; `.txt` (or `.md`), one document; both with
/// `.zst` or `.gz` behind where they are compressed. `.parquet`, compressed inside by Snappy, Zstandard or gzip.
///
/// Errors: a name of another form, a file that cannot be read or that is no Parquet file.
pub fn open(path: &Path) -> Result<Rows> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let file = File::open(path).map_err(io(path))?;
    let rows = |form| Ok(Rows { path: path.to_owned(), form, row: 0, done: false });
    if name.ends_with(".parquet") {
        let reader = SerializedFileReader::new(file)
            .map_err(|error| DataError::Parquet { path: path.to_owned(), problem: error.to_string() })?;
        return rows(Form::Parquet(Box::new(reader.into_iter())));
    }
    let (name, bytes): (&str, Box<dyn Read + Send>) = match name.rsplit_once('.') {
        Some((name, "zst")) => {
            let mut decoder = zstd::Decoder::new(file).map_err(io(path))?;
            // Corpora are packed with long windows.
            decoder.window_log_max(31).map_err(io(path))?;
            (name, Box::new(decoder))
        }
        Some((name, "gz")) => (name, Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file)))),
        _ => (&name, Box::new(file)),
    };
    let lines = BufReader::with_capacity(1 << 16, bytes);
    match name.rsplit_once('.') {
        Some((_, "jsonl" | "json" | "ndjson")) => rows(Form::Json(lines)),
        Some((_, "txt" | "md")) => rows(Form::Text(lines)),
        _ => Err(DataError::UnknownForm { path: path.to_owned() }),
    }
}

impl Rows {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn problem(&self, problem: impl Into<String>) -> DataError {
        DataError::Row { path: self.path.clone(), row: self.row, problem: problem.into() }
    }

    fn next_row(&mut self) -> Result<Option<Row>> {
        loop {
            self.row += 1;
            let mut bytes = Vec::new();
            let count = match &mut self.form {
                Form::Json(lines) => lines.read_until(b'\n', &mut bytes),
                Form::Text(lines) => lines.read_to_end(&mut bytes),
                Form::Parquet(rows) => {
                    let row = rows.next().transpose().map_err(|error| self.broken(error))?;
                    let Some(Value::Object(row)) = row.map(|row| row.to_json_value()) else {
                        self.done = true;
                        return Ok(None);
                    };
                    return Ok(Some(row));
                }
            };
            if count.map_err(|error| self.broken(error))? == 0 {
                self.done = true;
                return Ok(None);
            }
            let text = match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => {
                    let at = error.utf8_error().valid_up_to();
                    return Err(self.problem(format!("not UTF-8, first bad byte at {at}")));
                }
            };
            if text.trim().is_empty() {
                continue;
            }
            if let Form::Text(_) = self.form {
                return Ok(json!({ "text": text }).as_object().cloned());
            }
            return match serde_json::from_str(&text) {
                Ok(Value::Object(row)) => Ok(Some(row)),
                Ok(_) => Err(self.problem("expected a JSON object")),
                Err(error) => Err(self.problem(format!("not JSON, an object a line: {error}"))),
            };
        }
    }

    /// What cannot be read any further.
    fn broken(&mut self, error: impl std::fmt::Display) -> DataError {
        self.done = true;
        self.problem(error.to_string())
    }
}

impl Iterator for Rows {
    type Item = Result<(u64, Row)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        self.next_row().map(|row| row.map(|row| (self.row, row))).transpose()
    }
}

/// The text of a field; a number or a truth value as JSON writes it. The error names the nearest field there is.
pub fn text<'a>(row: &'a Row, field: &str) -> std::result::Result<std::borrow::Cow<'a, str>, String> {
    match row.get(field) {
        Some(Value::String(text)) => Ok(text.into()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string().into()),
        Some(_) => Err(format!("field {field:?} is not a text")),
        None => {
            let distance = |name: &&String| (strsim::levenshtein(name, field), (*name).clone());
            let nearest = row.keys().min_by_key(distance);
            Err(match nearest {
                Some(name) => format!("no field {field:?}; did you mean {name:?}?"),
                None => format!("no field {field:?}: the row is empty"),
            })
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use std::io::Write;
    use std::sync::Arc;

    fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn texts(path: &Path) -> Vec<String> {
        open(path).unwrap().map(|row| text(&row.unwrap().1, "text").unwrap().into_owned()).collect()
    }

    #[test]
    fn plain_and_compressed_files_have_the_same_rows() {
        let lines = "{\"text\": \"가나다\"}\n\n{\"text\": \"b\"}\n".as_bytes();
        let zst = zstd::encode_all(lines, 3).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(lines).unwrap();
        for (name, bytes) in
            [("a.jsonl", lines.to_vec()), ("a.jsonl.zst", zst), ("a.jsonl.gz", gz.finish().unwrap())]
        {
            let (_dir, path) = written(name, &bytes);
            assert_eq!(texts(&path), ["가나다", "b"], "{name}");
        }
        let (_dir, path) = written("a.txt", "한 줄\n두 줄".as_bytes());
        assert_eq!(texts(&path), ["한 줄\n두 줄"]);
    }

    const TEXTS: [&str; 3] = ["가나다", "b", "한 줄\n두 줄"];

    /// Two row groups, each of the texts, a number and two messages a row.
    fn parquet(compression: Compression) -> Vec<u8> {
        let schema = "message schema {
            required binary text (UTF8);
            optional int64 number;
            required group messages (LIST) {
                repeated group list { required group element { required binary role (UTF8); } }
            }
        }";
        let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
        for _ in 0..2 {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let texts: Vec<ByteArray> = TEXTS.iter().map(|&text| text.into()).collect();
            column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&[1, 3], Some(&[1, 0, 1]), None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let roles: Vec<ByteArray> = ["user", "assistant"].repeat(3).into_iter().map(Into::into).collect();
            // The second of each two goes on in the list of the first.
            column
                .typed::<ByteArrayType>()
                .write_batch(&roles, Some(&[1; 6]), Some(&[0, 1].repeat(3)))
                .unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.into_inner().unwrap()
    }

    #[test]
    fn parquet_has_the_rows_of_all_groups() {
        let (gzip, zstd) = (Compression::GZIP(Default::default()), Compression::ZSTD(Default::default()));
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, gzip, zstd] {
            let (_dir, path) = written("a.parquet", &parquet(compression));
            let rows: Vec<(u64, Row)> = open(&path).unwrap().map(Result::unwrap).collect();
            let expected = (0..6).map(|i| {
                let number = [json!(1), Value::Null, json!(3)][i % 3].clone();
                let messages = json!([{"role": "user"}, {"role": "assistant"}]);
                let row = json!({"text": TEXTS[i % 3], "number": number, "messages": messages});
                (i as u64 + 1, row.as_object().cloned().unwrap())
            });
            assert_eq!(rows, expected.collect::<Vec<_>>(), "{compression}");
        }
    }

    /// Reads to the end or to an error, which ends it.
    fn read_all(path: &Path) -> Result<usize> {
        let mut rows = open(path)?;
        let mut count = 0;
        while let Some(row) = rows.next() {
            if let Err(error) = row {
                assert!(rows.next().is_none(), "nothing follows an error");
                return Err(error);
            }
            count += 1;
        }
        Ok(count)
    }

    #[test]
    fn cut_files_are_errors_at_every_length() {
        let lines = "{\"text\": \"가나다\"}\n".repeat(50);
        let zst = zstd::encode_all(lines.as_bytes(), 3).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(lines.as_bytes()).unwrap();
        for (name, bytes) in [
            ("a.jsonl.zst", zst),
            ("a.jsonl.gz", gz.finish().unwrap()),
            ("a.parquet", parquet(Compression::SNAPPY)),
        ] {
            for length in 1..bytes.len() {
                let (_dir, path) = written(name, &bytes[..length]);
                let error = read_all(&path).expect_err(&format!("{name} cut at {length}")).to_string();
                assert!(error.contains(name), "{error}");
            }
        }
    }

    fn check_error(name: &str, bytes: &[u8], expected: &str) {
        let (_dir, path) = written(name, bytes);
        let error = match open(&path) {
            Ok(mut rows) => rows.find_map(|row| row.err()).expect("an error"),
            Err(error) => error,
        };
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn bad_rows_name_file_and_line() {
        check_error("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": ", "a.jsonl: row 2: not JSON");
        check_error("a.jsonl", b"[1]\n", "row 1: expected a JSON object");
        check_error("a.jsonl", b"{\"text\": \"\xff\"}\n", "row 1: not UTF-8");
        check_error("a.csv", b"", "expected .jsonl");
        check_error("a.parquet.zst", b"", "expected .jsonl");
        check_error("a.parquet", b"PAR1", "a.parquet: expected a whole Parquet file");
        check_error("a.json", b"[\n{\"text\": \"a\"}\n]\n", "row 1: not JSON, an object a line");
        check_error("a.jsonl.zst", b"no frame", "row 1");
        check_error("a.jsonl.gz", b"no frame", "row 1");
    }

    #[test]
    fn a_missing_field_names_the_nearest() {
        let row = json!({"tekst": "a", "number": 5}).as_object().cloned().unwrap();
        assert!(text(&row, "text").unwrap_err().contains("did you mean \"tekst\""));
        assert_eq!(text(&row, "number").unwrap(), "5");
    }
}
