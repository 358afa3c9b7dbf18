//! What can be asked for, and how the library hears of it.

use std::fmt::Write;

use llguidance::JsonCompileOptions;
use llguidance::api::TopLevelGrammar;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Bytes of a grammar, a schema as JSON.
const MOST_BYTES: usize = 1 << 18;
/// Values within values of a schema: parsers of JSON and of the library recurse.
const DEEPEST: usize = 128;

/// The texts that may be generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grammar {
    /// JSON that fits a schema (draft 2020-12 and before), properties in the order in which the schema names them. A
    /// keyword that cannot be enforced is refused, and so is `oneOf` where two of its schemas may both fit.
    ///
    /// It is written in one line, with at most one space after each comma and each colon: nothing allows a model to emit
    /// blanks for ever.
    JsonSchema(Value),
    /// Any JSON object, written in the same way.
    JsonObject,
    /// Texts that match a regular expression as a whole, in the syntax of the crate `regex`, without look-around.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A context-free grammar in the library's variant of Lark.
    ///
    /// Source: <https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>.
    Lark(String),
}

impl Grammar {
    /// What errors call it.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Grammar::JsonSchema(_) => "json_schema",
            Grammar::JsonObject => "json_object",
            Grammar::Regex(_) => "regex",
            Grammar::Choice(_) => "choice",
            Grammar::Lark(_) => "lark",
        }
    }

    /// The grammar as the library takes it. Errors: why it is not even worth a try.
    pub(crate) fn translate(&self) -> Result<TopLevelGrammar, String> {
        match self {
            Grammar::JsonSchema(schema) => json_schema(schema),
            Grammar::JsonObject => json_schema(&json!({"type": "object"})),
            Grammar::Regex(regex) => {
                check_size(regex.len())?;
                Ok(TopLevelGrammar::from_regex(regex))
            }
            Grammar::Choice(choices) => {
                check_size(choices.iter().map(String::len).sum())?;
                match choices.is_empty() {
                    true => Err("there is nothing to choose from".to_owned()),
                    false => Ok(TopLevelGrammar::from_regex(&one_of(choices))),
                }
            }
            Grammar::Lark(lark) => {
                check_size(lark.len())?;
                Ok(TopLevelGrammar::from_lark(lark.clone()))
            }
        }
    }
}

fn json_schema(schema: &Value) -> Result<TopLevelGrammar, String> {
    check_depth(schema)?;
    check_size(schema.to_string().len())?;
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err("nothing fits the schema false".to_owned()),
        _ => return Err(format!("a schema is an object or a boolean, not {schema}")),
    };
    // This replaces what a schema may say about whitespace in the key "x-guidance", which the library obeys.
    let options = JsonCompileOptions {
        item_separator: ",\\x20?".to_owned(),
        key_separator: ":\\x20?".to_owned(),
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// A regular expression for a choice between texts.
fn one_of(choices: &[String]) -> String {
    let mut regex = String::new();
    for (i, choice) in choices.iter().enumerate() {
        regex.push_str(if i == 0 { "" } else { "|" });
        for c in choice.chars() {
            match c.is_ascii() && !c.is_ascii_alphanumeric() {
                true => write!(regex, "\\x{{{:x}}}", c as u32).expect("strings take all: this is a bug"),
                false => regex.push(c),
            }
        }
    }
    regex
}

fn check_size(bytes: usize) -> Result<(), String> {
    match bytes <= MOST_BYTES {
        true => Ok(()),
        false => Err(format!("it is {bytes} bytes long, but no more than {MOST_BYTES} are taken")),
    }
}

/// Without recursion: what comes here may be deep.
fn check_depth(value: &Value) -> Result<(), String> {
    let mut left = vec![(value, 1)];
    while let Some((value, depth)) = left.pop() {
        if depth > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} levels deep"));
        }
        match value {
            Value::Array(values) => left.extend(values.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => left.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}
