//! What is done to messages for templates that would not understand them as the OpenAI API has them.
//!
//! - Reasoning gets every name that templates read it under.
//! - A result of a function gets the function's `name` from the call with its `tool_call_id`.
//! - The role `tool` becomes `ipython` for a template that mentions `ipython` and never the string `tool`: Llama 3's name
//!   of the role. Templates that know both, as functionary's, do that themselves.
//! - Content given as a list of text parts becomes one string for a template that would print the list. Which templates
//!   do is found by rendering a sample. transformers prints the list.

use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

const SAMPLE: &str = "TEXT_OF_A_CONTENT_PART";

/// Gives reasoning every name that templates read it under.
pub(super) fn alias_reasoning(messages: &mut [Fields]) {
    let names = ["reasoning_content", "thinking", "reasoning"];
    for message in messages {
        let found = names.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null()));
        if let Some(reasoning) = found.cloned() {
            let mut aliased = Map::new();
            aliased.insert("thinking".into(), reasoning.clone());
            aliased.append(message);
            aliased.insert("reasoning_content".into(), reasoning);
            *message = aliased;
        }
    }
}

/// Names the function whose result a message is.
pub(super) fn name_results(messages: &mut [Fields]) {
    let mut names = Map::new(); // of the functions, by the calls' ids
    for message in messages {
        for call in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            if let (Some(id), Some(name)) = (call["id"].as_str(), call["function"].get("name")) {
                names.insert(id.into(), name.clone());
            }
        }
        let id = message.get("tool_call_id").and_then(Value::as_str);
        let name = id.and_then(|id| names.get(id)).cloned();
        if let Some(name) = name.filter(|_| message.get("name").is_none_or(Value::is_null)) {
            message.insert("name".into(), name);
        }
    }
}

/// Whether a template has a role `ipython` and none called `tool`.
pub(super) fn knows_only_ipython(source: &str) -> bool {
    source.contains("ipython") && !source.contains("'tool'") && !source.contains("\"tool\"")
}

pub(super) fn rename_tool_role(messages: &mut [Fields]) {
    for role in messages.iter_mut().filter_map(|message| message.get_mut("role")) {
        if role == "tool" {
            *role = json!("ipython");
        }
    }
}

/// A message whose content is a list of text parts.
pub(super) fn sample_of_parts() -> Fields {
    let part = json!({ "type": "text", "text": SAMPLE });
    Map::from_iter([("role".into(), json!("user")), ("content".into(), json!([part]))])
}

/// Whether the rendered sample shows that the template looks into lists of parts: the text, and not as a list's quoted
/// element.
pub(super) fn reads_parts(rendered: &str) -> bool {
    let quoted = |quote: char| rendered.contains(&format!("{quote}{SAMPLE}{quote}"));
    rendered.contains(SAMPLE) && !quoted('\'') && !quoted('"')
}

/// Whether the content is a list of nothing but text.
pub(super) fn has_text_parts(message: &Fields) -> bool {
    joined(message).is_some()
}

/// Makes one string of contents that are lists of nothing but text.
pub(super) fn join_text_parts(messages: &mut [Fields]) {
    for message in messages {
        if let Some(text) = joined(message) {
            message.insert("content".into(), text.into());
        }
    }
}

fn joined(message: &Fields) -> Option<String> {
    let text = |part: &Value| match part {
        Value::String(text) => Some(text.clone()),
        _ if part["type"] == "text" => part["text"].as_str().map(Into::into),
        _ => None,
    };
    message.get("content")?.as_array()?.iter().map(text).collect()
}
