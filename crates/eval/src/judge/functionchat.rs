//! FunctionChat-Bench: does a model call the right function in Korean conversations, ask for what is missing, tell what came back.
//!
//! Source: Lee et al. (2024), FunctionChat-Bench; kakao/FunctionChat-Bench cb32af37 (2.0.0) and its state of December 2024, which
//! the published scores of Kanana 1.5 precede 2.0.0 by. What is not in the protocol is inferred: `{query}` of a rubric is the
//! conversation as the model got it.

use std::io;

use kanana_data::read::Row;
use kanana_tokenizer::Message;
use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Serializer, Value, json};

use super::fill;
use crate::EvalError;
use crate::lm::{GenerateRequest, Generation, Prompt, ToolCall};

/// Of answers and of verdicts.
const TEMPERATURE: f64 = 0.1;

/// Tokens of an answer and of a verdict: the reference sets no limit.
const MAX_TOKENS: usize = 2048;

/// Which comparison of arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// An argument must equal the expected one or an acceptable one.
    December2024,
    /// As 2.0.0 has it: where the acceptable value is a number, anything passes, a missing argument too.
    Version2,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// 200 turns of 45 dialogs.
    Dialog,
    /// 100 requests, each with 5 lists of functions.
    SingleCall,
    /// 606 conversations.
    CallDecision,
}

impl Set {
    /// All, in the order of the reports.
    pub const ALL: [Set; 3] = [Set::Dialog, Set::SingleCall, Set::CallDecision];

    /// Its metric.
    pub fn name(self) -> &'static str {
        match self {
            Set::Dialog => "dialog",
            Set::SingleCall => "single_call",
            Set::CallDecision => "call_decision",
        }
    }

    /// Below the folder of data.
    pub fn file(self) -> &'static str {
        match self {
            Set::Dialog => "functionchat/FunctionChat-Dialog.jsonl",
            Set::SingleCall => "functionchat/FunctionChat-Singlecall.jsonl",
            Set::CallDecision => "functionchat/FunctionChat-CallDecision.jsonl",
        }
    }

    /// The turns of a row; those without a system message of their own get `system`.
    ///
    /// Errors, in words: a field is missing or not what it should be.
    pub fn turns(self, row: &Row, system: &str) -> Result<Vec<Turn>, String> {
        match self {
            Set::Dialog => list(row, "turns")?.iter().map(|turn| dialog_turn(row, turn, system)).collect(),
            Set::SingleCall => single_call_turns(row, system),
            Set::CallDecision => Ok(vec![Turn {
                set: self,
                id: format!("call_decision/{}", number(row, "serial_num")?),
                group: text(row, "category")?.to_owned(),
                kind: text(row, "type_of_output")?.to_owned(),
                messages: messages(list(row, "input_messages")?)?,
                tools: list(row, "input_tools")?.to_vec(),
                truth: without_ids(row.get("ground_truth").unwrap_or(&Value::Null)),
                acceptable: row.get("acceptable_arguments").cloned().unwrap_or(Value::Null),
            }]),
        }
    }
}

/// Something the model is asked.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Its part.
    pub set: Set,
    /// Unique.
    pub id: String,
    /// The kind of answer, the list of functions, the category.
    pub group: String,
    /// `call`, `completion`, `slot`, `relevance`: which rubric.
    pub kind: String,
    /// The conversation.
    pub messages: Vec<Message>,
    /// What may be called.
    pub tools: Vec<Value>,
    /// What should be answered.
    pub truth: Value,
    /// Other arguments that are right: an object, or a string with one, or words, or null.
    pub acceptable: Value,
}

fn list<'r>(row: &'r Map<String, Value>, name: &str) -> Result<&'r [Value], String> {
    row.get(name)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .ok_or_else(|| format!("expected a list in {name:?}"))
}

fn text<'r>(row: &'r Map<String, Value>, name: &str) -> Result<&'r str, String> {
    row.get(name).and_then(Value::as_str).ok_or_else(|| format!("expected a string in {name:?}"))
}

fn number(row: &Map<String, Value>, name: &str) -> Result<u64, String> {
    row.get(name).and_then(Value::as_u64).ok_or_else(|| format!("expected a number in {name:?}"))
}

fn object(value: &Value) -> Result<&Map<String, Value>, String> {
    value.as_object().ok_or_else(|| format!("expected an object, got {value}"))
}

fn messages(values: &[Value]) -> Result<Vec<Message>, String> {
    values.iter().map(|value| Message::from_value(value.clone()).map_err(|error| error.to_string())).collect()
}

fn dialog_turn(row: &Row, turn: &Value, system: &str) -> Result<Turn, String> {
    let turn = object(turn)?;
    let kind = text(turn, "type_of_output")?.to_owned();
    let mut conversation = vec![Message::system(system)];
    conversation.extend(messages(list(turn, "query")?)?);
    Ok(Turn {
        set: Set::Dialog,
        id: format!("dialog/{}", number(turn, "serial_num")?),
        group: kind.clone(),
        kind,
        messages: conversation,
        tools: list(row, "tools")?.to_vec(),
        truth: without_ids(turn.get("ground_truth").unwrap_or(&Value::Null)),
        acceptable: turn.get("acceptable_arguments").cloned().unwrap_or(Value::Null),
    })
}

fn single_call_turns(row: &Row, system: &str) -> Result<Vec<Turn>, String> {
    let (truths, acceptable) = (list(row, "ground_truth")?, list(row, "acceptable_arguments")?);
    let mut turns = Vec::new();
    for tools in list(row, "tools")? {
        let tools = object(tools)?;
        let group = text(tools, "type")?;
        for (index, query) in list(row, "query")?.iter().enumerate() {
            let query = object(query)?;
            let truth = truths.get(index).and_then(|truth| truth.get("content")?.as_str());
            let truth = truth.and_then(|truth| serde_json::from_str(truth).ok());
            turns.push(Turn {
                set: Set::SingleCall,
                id: format!("single_call/{}/{group}", number(query, "serial_num")?),
                group: group.to_owned(),
                kind: "call".into(),
                messages: vec![Message::system(system), Message::user(text(query, "content")?)],
                tools: list(tools, "content")?.to_vec(),
                truth: truth.ok_or_else(|| format!("expected JSON in \"ground_truth\"[{index}]"))?,
                acceptable: acceptable
                    .get(index)
                    .and_then(|one| one.get("content"))
                    .cloned()
                    .unwrap_or(Value::Null),
            });
        }
    }
    Ok(turns)
}

/// The expected answer as a judge sees it.
fn without_ids(truth: &Value) -> Value {
    let mut truth = truth.clone();
    if let Some(calls) = truth.get_mut("tool_calls").and_then(Value::as_array_mut) {
        calls.iter_mut().filter_map(Value::as_object_mut).for_each(|call| {
            call.shift_remove("id");
        });
    }
    truth
}

impl Turn {
    /// What the model is asked.
    pub fn request(&self) -> GenerateRequest {
        let prompt =
            Prompt::Chat { messages: self.messages.clone(), tools: self.tools.clone(), prefill: None };
        GenerateRequest { temperature: TEMPERATURE, ..GenerateRequest::greedy(prompt, MAX_TOKENS) }
    }

    /// The answer's first call is the expected one. Only calls can be compared.
    pub fn is_exact(&self, answer: &Generation, rule: Rule) -> bool {
        let call = answer.tool_calls.first();
        self.kind == "call" && call.is_some_and(|call| exact_match(&self.truth, &self.acceptable, call, rule))
    }

    /// What the judge is asked about an answer that is not exactly the expected one.
    pub fn question(&self, rubric: &str, answer: &Generation) -> GenerateRequest {
        let calls: Vec<Value> = answer
            .tool_calls
            .iter()
            .map(|call| json!({"type": "function", "function": {"name": call.name, "arguments": call.arguments}}))
            .collect();
        let content = if answer.text.is_empty() { Value::Null } else { Value::from(answer.text.as_str()) };
        let calls = if calls.is_empty() { Value::Null } else { Value::from(calls) };
        let response = json!({"role": "assistant", "content": content, "tool_calls": calls});
        let query = Value::from(
            self.messages.iter().map(|message| Value::Object(message.fields().clone())).collect::<Vec<_>>(),
        );
        let acceptable = match &self.acceptable {
            Value::String(text) => text.clone(),
            other => python_json(other),
        };
        let values = [
            ("{tools}", python_json(&Value::from(self.tools.clone()))),
            ("{query}", python_json(&query)),
            ("{ground_truth}", python_json(&self.truth)),
            ("{acceptable_arguments}", acceptable),
            ("{response}", python_json(&response)),
        ];
        let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
        GenerateRequest {
            temperature: TEMPERATURE,
            ..GenerateRequest::greedy(Prompt::user(fill(rubric, &values)), MAX_TOKENS)
        }
    }
}

/// The expected call and the given one agree: the name; no argument too many; every expected argument equal, spaces and case of
/// strings aside, or acceptable.
pub fn exact_match(truth: &Value, acceptable: &Value, call: &ToolCall, rule: Rule) -> bool {
    let function = truth.pointer("/tool_calls/0/function").unwrap_or(truth);
    let expected = match function.get("arguments") {
        Some(Value::String(arguments)) => serde_json::from_str(arguments).unwrap_or(Value::Null),
        other => other.cloned().unwrap_or(Value::Null),
    };
    let acceptable = match acceptable {
        Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
        other => other.clone(),
    };
    let (Some(expected), Ok(Value::Object(given))) =
        (expected.as_object(), serde_json::from_str(&call.arguments))
    else {
        return false;
    };
    function.get("name").and_then(Value::as_str) == Some(&call.name)
        && given.keys().all(|key| expected.contains_key(key))
        && expected.iter().all(|(key, expected)| {
            let given = given.get(key);
            given.is_some_and(|given| equal(expected, given))
                || match acceptable.get(key) {
                    None => false,
                    Some(Value::Array(all)) => {
                        given.is_some_and(|given| all.iter().any(|one| equal(one, given)))
                    }
                    Some(Value::String(one)) => given.is_some_and(|given| equal(&one.as_str().into(), given)),
                    Some(_) => rule == Rule::Version2,
                }
        })
}

/// `==` of Python, strings without spaces and in lower case.
fn equal(a: &Value, b: &Value) -> bool {
    let normal = |text: &str| text.replace(' ', "").to_lowercase();
    match (a, b) {
        (Value::String(a), Value::String(b)) => normal(a) == normal(b),
        _ => same(a, b),
    }
}

/// `==` of Python: 1, 1.0 and True are equal.
fn same(a: &Value, b: &Value) -> bool {
    let number = |value: &Value| value.as_f64().or_else(|| value.as_bool().map(f64::from));
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b || (number(a).is_some() && number(a) == number(b)),
    }
}

/// Whether a judge says pass; None where it says neither.
///
/// It is looked for in the last two lines, and in the last four where those only end a sentence (`입니다.`).
pub fn verdict(judgement: &str) -> Option<bool> {
    let lines: Vec<&str> = judgement.split('\n').collect();
    let last = |count: usize| lines[lines.len().saturating_sub(count)..].concat().to_lowercase();
    let said = |text: &str| match (text.contains("pass"), text.contains("fail")) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    };
    let end = last(2);
    let korean =
        || ["패스", "패쓰", "통과", "합격", "성공"].iter().any(|word| end.contains(word)).then_some(true);
    let before = || if end.contains("입니다.") { said(&last(4)) } else { None };
    said(&end).or_else(korean).or_else(before)
}

/// `json.dumps(value, ensure_ascii=False)`.
fn python_json(value: &Value) -> String {
    struct Spaced;
    impl Formatter for Spaced {
        fn begin_array_value<W: io::Write + ?Sized>(
            &mut self,
            writer: &mut W,
            first: bool,
        ) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
            writer.write_all(b": ")
        }
    }
    let mut text = Vec::new();
    match value.serialize(&mut Serializer::with_formatter(&mut text, Spaced)) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => value.to_string(),
    }
}

/// Names the file and the row (from 0) in what [`Set::turns`] says.
pub fn located(path: &std::path::Path, index: usize) -> impl FnOnce(String) -> EvalError {
    let path = path.to_owned();
    move |problem| EvalError::Row { path, row: index as u64 + 1, problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::golden_rows;

    #[test]
    fn comparisons_are_those_of_the_reference() {
        let Some(rows) = golden_rows("golden_misc/functionchat_exact_match.jsonl") else { return };
        let mut stricter = 0;
        for row in &rows {
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            let call = ToolCall { name: text("name"), arguments: text("arguments") };
            let expected = row["exact_match"].as_bool().unwrap();
            let [new, old] = [Rule::Version2, Rule::December2024]
                .map(|rule| exact_match(&row["ground_truth"], &row["acceptable_arguments"], &call, rule));
            assert_eq!(new, expected, "{row:?}");
            if old != expected {
                assert_eq!((row["variant"].as_str(), old), (Some("dropped_key"), false), "{row:?}");
                stricter += 1;
            }
        }
        assert_eq!((rows.len(), stricter), (1270, 20));
    }

    #[test]
    fn verdicts_are_those_of_the_reference() {
        let Some(rows) = golden_rows("golden_misc/judge_parse.jsonl") else { return };
        let rows: Vec<_> = rows.iter().filter(|row| row["bench"] == "functionchat").collect();
        for row in &rows {
            let expected = match row["verdict"].as_str().unwrap() {
                "pass" => Some(true),
                "fail" => Some(false),
                _ => None,
            };
            assert_eq!(verdict(row["judgment"].as_str().unwrap()), expected, "{row:?}");
        }
        assert_eq!(rows.len(), 11);
    }

    #[test]
    fn all_turns_are_read() {
        for (set, expected) in Set::ALL.into_iter().zip([200, 500, 606]) {
            let Some(rows) = golden_rows(set.file()) else { return };
            let turns: Vec<Turn> = rows.iter().flat_map(|row| set.turns(row, "s").unwrap()).collect();
            assert_eq!(turns.len(), expected);
            assert!(
                turns
                    .iter()
                    .all(|turn| ["call", "completion", "slot", "relevance"].contains(&turn.kind.as_str()))
            );
        }
    }

    #[test]
    fn json_is_pythons() {
        assert_eq!(
            python_json(&json!({"가": [1, 2.0, null], "b": {}})),
            r#"{"가": [1, 2.0, null], "b": {}}"#
        );
    }
}
