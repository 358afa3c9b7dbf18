//! What to continue: one prompt from the command line, a file or standard input, or many from a JSONL file.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use kanana_tokenizer::Message;
use serde_json::Value;

use crate::hints::failure;

/// Where the prompt comes from.
#[derive(Args)]
#[command(next_help_heading = "Prompt (one of these; else standard input)")]
#[group(multiple = false)]
pub struct PromptArgs {
    /// Continue this text ("-" reads standard input)
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,

    /// Continue the text of this file ("-" is standard input)
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Continue these token ids, separated by commas or spaces; no tokenizer is needed
    #[arg(long, value_name = "IDS")]
    prompt_ids: Option<String>,

    /// Continue every line of this JSONL file, many at once: {"prompt": TEXT}, {"prompt_ids": [..]},
    /// {"messages": [..]} or "TEXT", with an optional "id" that is passed through
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
}

/// One thing to continue.
#[derive(Debug, PartialEq)]
pub struct Prompt {
    /// Its file and line, for errors, where there is more than one.
    pub origin: Option<String>,
    /// The caller's name for it.
    pub id: Option<Value>,
    pub input: Input,
}

impl Prompt {
    /// Adds to an error where the prompt stands.
    pub fn locate<T>(&self, result: Result<T>) -> Result<T> {
        match &self.origin {
            Some(origin) => result.with_context(|| origin.clone()),
            None => result,
        }
    }
}

/// In which form a prompt is given.
#[derive(Debug, PartialEq)]
pub enum Input {
    Text(String),
    Ids(Vec<u32>),
    Messages(Vec<Message>),
}

/// The prompts of a run.
#[derive(Debug)]
pub enum Prompts {
    One(Prompt),
    Many(Vec<Prompt>),
}

impl Prompts {
    /// Every prompt in order.
    pub fn iter(&self) -> impl Iterator<Item = &Prompt> {
        self.as_slice().iter()
    }

    /// The prompt at a place.
    pub fn get(&self, index: usize) -> &Prompt {
        &self.as_slice()[index]
    }

    fn as_slice(&self) -> &[Prompt] {
        match self {
            Prompts::One(prompt) => std::slice::from_ref(prompt),
            Prompts::Many(prompts) => prompts,
        }
    }
}

impl PromptArgs {
    /// Reads what the flags name.
    pub fn read(&self) -> Result<Prompts> {
        let one = |input| Ok(Prompts::One(Prompt { origin: None, id: None, input }));
        if let Some(path) = &self.prompts {
            return Ok(Prompts::Many(parse_lines(&read_text(path)?, &name_of(path))?));
        }
        if let Some(ids) = &self.prompt_ids {
            return one(Input::Ids(parse_ids(ids)?));
        }
        if let Some(path) = &self.file {
            return one(Input::Text(read_text(path)?));
        }
        match self.prompt.as_deref() {
            Some(text) if text != "-" => one(Input::Text(text.to_string())),
            None if io::stdin().is_terminal() => Err(failure(
                "nothing to continue",
                "give --prompt TEXT, --file FILE, --prompt-ids IDS or --prompts FILE, or pipe a text in",
            )),
            _ => one(Input::Text(read_text(Path::new("-"))?)),
        }
    }
}

/// The text of a file, or of standard input for `-`.
pub fn read_text(path: &Path) -> Result<String> {
    let name = name_of(path);
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    String::from_utf8(bytes.with_context(|| format!("cannot read {name}"))?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        failure(
            format_args!("{name} is not UTF-8: byte {at} begins no character"),
            "convert it first, for example with `iconv -f CP949 -t UTF-8`",
        )
    })
}

fn name_of(path: &Path) -> String {
    if path == Path::new("-") { "standard input".into() } else { path.display().to_string() }
}

/// `1,2 3` → `[1, 2, 3]`.
pub fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            part.parse().map_err(|_| {
                failure(
                    format_args!("{part:?} is not a token id"),
                    "token ids are whole numbers separated by commas or spaces, such as 1,15043",
                )
            })
        })
        .collect()
}

/// One prompt a line; blank lines are skipped.
fn parse_lines(text: &str, name: &str) -> Result<Vec<Prompt>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<Prompt> = lines
        .map(|(index, line)| {
            let origin = format!("{name}:{}", index + 1);
            let (id, input) = parse_line(line).map_err(|reason| {
                failure(
                    format_args!("{origin}: {reason}"),
                    r#"a line is {"prompt": "…"}, {"prompt_ids": [1, 2]}, {"messages": [{"role": "user", "content": "…"}]} or "…""#,
                )
            })?;
            Ok(Prompt { origin: Some(origin), id, input })
        })
        .collect::<Result<_>>()?;
    if prompts.is_empty() {
        return Err(failure(format_args!("{name} holds no prompt"), "give at least one line"));
    }
    Ok(prompts)
}

fn parse_line(line: &str) -> Result<(Option<Value>, Input), String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    let mut object = match value {
        Value::String(text) => return Ok((None, Input::Text(text))),
        Value::Object(object) => object,
        _ => return Err("neither an object nor a string".into()),
    };
    let id = object.shift_remove("id");
    let mut fields = object.into_iter();
    let (Some((name, value)), None) = (fields.next(), fields.next()) else {
        return Err(
            "expected one of \"prompt\", \"prompt_ids\" and \"messages\", beside an optional \"id\"".into()
        );
    };
    let input = match (name.as_str(), value) {
        ("prompt", Value::String(text)) => Input::Text(text),
        ("prompt_ids", ids) => {
            Input::Ids(serde_json::from_value(ids).map_err(|error| format!("\"prompt_ids\": {error}"))?)
        }
        ("messages", Value::Array(messages)) if !messages.is_empty() => {
            let messages = messages.into_iter().map(Message::from_value);
            Input::Messages(messages.collect::<Result<_, _>>().map_err(|error| error.to_string())?)
        }
        ("prompt", _) => return Err("\"prompt\" is not a string".into()),
        ("messages", _) => return Err("\"messages\" is not a list of messages".into()),
        (other, _) => return Err(format!("unknown field {other:?}")),
    };
    Ok((id, input))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids() {
        assert_eq!(parse_ids("1").unwrap(), [1]);
        assert_eq!(parse_ids(" 1, 2 3,,4 ").unwrap(), [1, 2, 3, 4]);
        assert_eq!(parse_ids("").unwrap(), [0u32; 0]);
        assert!(parse_ids("1,x").is_err());
        assert!(parse_ids("-1").is_err());
        assert!(parse_ids("4294967296").is_err());
    }

    #[test]
    fn every_form_of_a_line() {
        let text = r#"{"prompt": "옛날"}

{"id": 7, "prompt_ids": [1, 2]}
"그냥"
{"messages": [{"role": "user", "content": "안녕"}], "id": "m"}"#;
        let expected = [
            (1, None, Input::Text("옛날".into())),
            (3, Some(json!(7)), Input::Ids(vec![1, 2])),
            (4, None, Input::Text("그냥".into())),
            (5, Some(json!("m")), Input::Messages(vec![Message::user("안녕")])),
        ];
        let expected =
            expected.map(|(line, id, input)| Prompt { origin: Some(format!("x:{line}")), id, input });
        assert_eq!(parse_lines(text, "x").unwrap(), expected);
    }

    fn check_refused(line: &str, reason: &str) {
        let error = parse_lines(&format!("\"good\"\n{line}\n"), "p.jsonl").unwrap_err().to_string();
        assert!(error.starts_with("p.jsonl:2: ") && error.contains(reason), "{error}");
    }

    #[test]
    fn a_bad_line_is_named() {
        check_refused("{", "not JSON");
        check_refused("3", "neither");
        check_refused("{}", "expected one of");
        check_refused(r#"{"prompt": "a", "prompt_ids": [1]}"#, "expected one of");
        check_refused(r#"{"prompt": 3}"#, "not a string");
        check_refused(r#"{"prompt_ids": ["a"]}"#, "prompt_ids");
        check_refused(r#"{"prompt_ids": [-1]}"#, "prompt_ids");
        check_refused(r#"{"messages": []}"#, "not a list");
        check_refused(r#"{"messages": [{"content": "a"}]}"#, "role");
        check_refused(r#"{"text": "a"}"#, "unknown field");
        assert!(parse_lines("\n\n", "p.jsonl").is_err());
    }
}
