//! Lines of EvalPlus's files. Their JSON is Python's: integers of any size, `NaN` and `Infinity`. So a line is cut at its fields,
//! and the arguments stay text until Python reads them.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::Problem;
use crate::{EvalError, Result};

/// The problem in line `index` (from 0) of a file.
///
/// Errors: the line is no object, or lacks a field; the error names it.
pub(super) fn problem(path: &Path, index: usize, line: &str) -> Result<Problem> {
    let error = |problem: String| EvalError::Row { path: path.to_owned(), row: index as u64 + 1, problem };
    let fields = fields(line).ok_or_else(|| error("expected an object in one line".into()))?;
    let raw = |name: &str| {
        let found = fields.iter().find(|(field, _)| field == name).map(|&(_, value)| value);
        found.ok_or_else(|| error(format!("expected a field {name:?}")))
    };
    fn parsed<T: DeserializeOwned>(name: &str, raw: &str) -> std::result::Result<T, String> {
        serde_json::from_str(raw).map_err(|error| format!("{name:?}: {error}"))
    }
    let text = |name: &str| parsed::<String>(name, raw(name)?).map_err(error);
    Ok(Problem {
        task_id: text("task_id")?,
        prompt: text("prompt")?,
        entry_point: text("entry_point")?,
        canonical_solution: text("canonical_solution")?,
        atol: parsed("atol", raw("atol")?).map_err(error)?,
        base_input: raw("base_input")?.to_owned(),
        plus_input: raw("plus_input")?.to_owned(),
    })
}

/// The fields of an object with the text of their values.
fn fields(line: &str) -> Option<Vec<(String, &str)>> {
    let mut rest = line.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let name = value(rest);
        let after = rest[name.len()..].trim_start().strip_prefix(':')?.trim_start();
        let found = value(after);
        fields.push((serde_json::from_str(name.trim()).ok()?, found.trim_end()));
        rest = after[found.len()..].trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some(fields)
}

/// What stands before the next comma or colon that is in no string and in no brackets.
fn value(text: &str) -> &str {
    let (mut depth, mut string, mut escaped) = (0usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if string => escaped = true,
            b'"' => string = !string,
            _ if string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' if depth == 0 => return &text[..at],
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let got = match problem(Path::new("f"), 0, line) {
            Ok(problem) => {
                format!("{} {} {} {}", problem.task_id, problem.atol, problem.base_input, problem.plus_input)
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn lines_are_cut_at_their_fields() {
        let head = r#""task_id":"T/1","prompt":"a\"},{:","entry_point":"f","canonical_solution":"\n","#;
        check(
            &format!(
                r#"{{{head} "atol": 1e-06, "base_input": [[NaN, {{"a": [1, 2]}}], ["]"]] , "plus_input":[[-Infinity]]}}"#
            ),
            r#"T/1 0.000001 [[NaN, {"a": [1, 2]}], ["]"]] [[-Infinity]]"#,
        );
        check(
            &format!(r#"{{{head}"atol":"x"}}"#),
            "f: row 1: \"atol\": invalid type: string \"x\", expected f64 at line 1 column 3",
        );
        check(&format!(r#"{{{head}"atol":0}}"#), "f: row 1: expected a field \"base_input\"");
        check("[1]", "f: row 1: expected an object in one line");
        check("{\"a\"}", "f: row 1: expected an object in one line");
        check("", "f: row 1: expected an object in one line");
    }
}
