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
/// Properties of one object: with more optional ones than this the parser has too many ways to go on.
const MOST_PROPERTIES: usize = 256;
/// `multipleOf` as an integer, after at most so many decimals: its automaton has a state for each remainder, and what
/// building it costs grows with the square.
const LARGEST_DIVISOR: f64 = 2_000.0;
const MOST_DECIMALS: i32 = 4;

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
    /// A context-free grammar in the library's variant of Lark; what it says of schemas behind `%json` is what
    /// [`Grammar::JsonSchema`] says of them.
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
            Grammar::JsonSchema(schema) => Ok(TopLevelGrammar::from_json_schema(prepare(schema)?)),
            Grammar::JsonObject => {
                Ok(TopLevelGrammar::from_json_schema(prepare(&json!({"type": "object"}))?))
            }
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
                Ok(TopLevelGrammar::from_lark(prepare_lark(lark)?))
            }
        }
    }
}

/// A schema that has been checked, and says how its JSON is written.
fn prepare(schema: &Value) -> Result<Value, String> {
    check(schema)?;
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
    Ok(schema)
}

/// The grammar with its schemas prepared.
fn prepare_lark(lark: &str) -> Result<String, String> {
    let mut parts = lark.split("%json");
    let mut prepared = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut values = serde_json::Deserializer::from_str(part).into_iter::<Value>();
        let schema = match values.next() {
            Some(Ok(schema)) => prepare(&schema)?,
            Some(Err(error)) => return Err(format!("no schema follows on %json: {error}")),
            None => return Err("no schema follows on %json".to_owned()),
        };
        write!(prepared, "%json {schema}{}", &part[values.byte_offset()..]).expect(STRINGS_TAKE_ALL);
    }
    Ok(prepared)
}

const STRINGS_TAKE_ALL: &str = "strings take all that is written: this is a bug";

/// A regular expression for a choice between texts.
fn one_of(choices: &[String]) -> String {
    let mut regex = String::new();
    for (i, choice) in choices.iter().enumerate() {
        regex.push_str(if i == 0 { "" } else { "|" });
        for c in choice.chars() {
            match c.is_ascii() && !c.is_ascii_alphanumeric() {
                true => write!(regex, "\\x{{{:x}}}", c as u32).expect(STRINGS_TAKE_ALL),
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

/// What the library's own limits do not catch. Without recursion: what comes here may be deep.
fn check(schema: &Value) -> Result<(), String> {
    let mut left = vec![(schema, 1)];
    while let Some((value, depth)) = left.pop() {
        if depth > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} levels deep"));
        }
        match value {
            Value::Array(values) => left.extend(values.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => {
                check_properties(map.get("properties"))?;
                check_divisor(map.get("multipleOf"))?;
                left.extend(map.values().map(|value| (value, depth + 1)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_properties(properties: Option<&Value>) -> Result<(), String> {
    let n = properties.and_then(Value::as_object).map_or(0, serde_json::Map::len);
    match n <= MOST_PROPERTIES {
        true => Ok(()),
        false => Err(format!("an object has {n} properties, but no more than {MOST_PROPERTIES} are taken")),
    }
}

fn check_divisor(divisor: Option<&Value>) -> Result<(), String> {
    let Some(divisor) = divisor.and_then(Value::as_f64) else { return Ok(()) };
    let scaled = (0..=MOST_DECIMALS).map(|decimals| divisor * 10f64.powi(decimals));
    // A decimal fraction times a power of ten is an integer but for rounding.
    let integer = scaled.into_iter().find(|scaled| (scaled - scaled.round()).abs() < 1e-9 * scaled.abs());
    match integer {
        Some(integer) if integer <= LARGEST_DIVISOR => Ok(()),
        _ => Err(format!(
            "multipleOf is {divisor}, but no more than {LARGEST_DIVISOR} is taken, and {MOST_DECIMALS} decimals"
        )),
    }
}
