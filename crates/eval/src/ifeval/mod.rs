//! IFEval: instructions that a program can check.
//!
//! Source: Zhou et al. (2023), Instruction-Following Evaluation for Large Language Models; the checkers behave as
//! `lm_eval/tasks/ifeval/instructions.py` of lm-evaluation-harness 0.4.13 does, with two exceptions. Where a row demands a
//! number of `#` or `!`, that character is counted (the reference counts a letter that it draws at random), and the language of
//! an answer is told by [`language`]. Tests: `cargo test -p kanana-eval ifeval`.

mod instruction;
mod json;
pub mod language;
mod punkt;
mod text;
mod words;

#[cfg(test)]
mod golden;

use std::path::Path;

use kanana_data::read::Row;
use serde_json::Value;

pub use instruction::Instruction;
pub use punkt::Punkt;

use crate::extract::strip;
use crate::source::field;
use crate::{EvalError, Result, Source};

/// A row: what is asked, and what the answer must do.
#[derive(Debug)]
pub struct Prompt {
    /// Unique in the file.
    pub key: String,
    /// What the person says.
    pub prompt: String,
    /// What is demanded in it.
    pub instructions: Vec<Instruction>,
}

/// What an answer did, for each instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The answer as it is.
    pub strict: Vec<bool>,
    /// Without its asterisks, first line or last line, whatever is kindest.
    pub loose: Vec<bool>,
}

impl Prompt {
    /// Row `index` (from 0) of a file: `key`, `prompt`, `instruction_id_list`, `kwargs`.
    ///
    /// Errors: a field is missing, or an instruction or a value of it is not what it should be; the error names it.
    pub fn read(path: &Path, index: usize, row: &Row) -> Result<Self> {
        let wrong =
            |problem: String| EvalError::Row { path: path.to_owned(), row: index as u64 + 1, problem };
        let list = |name: &str| {
            let list = row.get(name).and_then(Value::as_array);
            list.ok_or_else(|| {
                wrong(format!("expected a list in {name:?}, got {}", row.get(name).unwrap_or(&Value::Null)))
            })
        };
        let (ids, values) = (list("instruction_id_list")?, list("kwargs")?);
        if ids.len() != values.len() {
            return Err(wrong(format!(
                "expected one of \"kwargs\" for each of {} instructions, got {}",
                ids.len(),
                values.len()
            )));
        }
        let instruction = |(id, values): (&Value, &Value)| {
            let (Some(id), Some(values)) = (id.as_str(), values.as_object()) else {
                return Err(wrong(format!(
                    "expected a string and an object for an instruction, got {id} and {values}"
                )));
            };
            Instruction::read(id, values).map_err(wrong)
        };
        let key = match row.get("key") {
            Some(Value::String(key)) => key.clone(),
            Some(Value::Number(key)) => key.to_string(),
            other => return Err(wrong(format!("expected a number in \"key\", got {other:?}"))),
        };
        Ok(Prompt {
            key,
            prompt: field(path, index, row, "prompt")?.to_owned(),
            instructions: ids.iter().zip(values).map(instruction).collect::<Result<_>>()?,
        })
    }

    /// Instructions on which the reference's verdict is drawn at random.
    pub fn random_in_reference(&self) -> impl Iterator<Item = &Instruction> {
        self.instructions.iter().filter(|instruction| instruction.random_in_reference())
    }
}

/// Reads answers.
#[derive(Debug)]
pub struct Checker {
    punkt: Punkt,
}

impl Checker {
    /// With a given splitter of sentences.
    pub fn new(punkt: Punkt) -> Self {
        Checker { punkt }
    }

    /// With the parameters of Punkt in `ifeval/punkt_tab_english` (NLTK's `punkt_tab/english`) of the data; where that folder is
    /// absent, without, and with a note that says so.
    pub fn load(source: &Source) -> Result<(Self, Option<String>)> {
        let folder = "ifeval/punkt_tab_english";
        if source.root().join(folder).is_dir() {
            return Ok((Checker::new(Punkt::load(source, folder)?), None));
        }
        let note = format!(
            "sentences were split without Punkt's trained parameters ({folder} is absent): counts of sentences and of words in \
             capitals can differ from the reference's"
        );
        Ok((Checker::new(Punkt::without_training()), Some(note)))
    }

    /// What an answer did. A keyword whose regular expression takes too many steps on it counts as not found.
    pub fn check(&self, row: &Prompt, response: &str) -> Verdict {
        let variants = variants(response);
        let mut verdict = Verdict { strict: Vec::new(), loose: Vec::new() };
        for instruction in &row.instructions {
            let followed = |text: &str| !strip(text).is_empty() && instruction.is_followed(&self.punkt, text);
            let strict = followed(response);
            let loose = strict || variants.iter().any(|variant| followed(variant));
            verdict.strict.push(strict);
            verdict.loose.push(loose);
        }
        verdict
    }
}

/// An answer without its asterisks; without its first line, its last, both, and these without asterisks.
fn variants(response: &str) -> Vec<String> {
    let lines: Vec<&str> = response.split('\n').collect();
    let inner = if lines.len() > 2 { &lines[1..lines.len() - 1] } else { &[] };
    let parts =
        [&lines[1..], &lines[..lines.len() - 1], inner].map(|part| strip(&part.join("\n")).to_owned());
    let bare = |text: &str| text.replace('*', "");
    let mut variants = vec![bare(response)];
    for part in parts {
        variants.push(bare(&part));
        variants.push(part);
    }
    variants.sort();
    variants.dedup();
    variants
}
