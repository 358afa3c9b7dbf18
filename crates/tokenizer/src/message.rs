//! One message of a conversation, checked when it is made.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Result, TokenizerError};

/// A message as chat templates read it: a JSON object with a `role`, usually `content`, sometimes `tool_calls`.
///
/// Unknown fields are kept, since templates may read them. Arguments of tool calls that arrive as a JSON string (as
/// the OpenAI API has them) are parsed to an object: templates write them with `tojson`, which would quote them again.
/// Arguments that are missing, null or an empty string are an empty object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message with text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let fields = [("role", role.into()), ("content", content.into())];
        Self(fields.into_iter().map(|(name, value)| (name.to_string(), value.into())).collect())
    }

    /// Instructions that stand before the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model says.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// What a function returned.
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new("tool", content)
    }

    /// Adds a function call to a message of the assistant.
    pub fn with_tool_call(mut self, name: &str, arguments: Value) -> Self {
        let call = json!({ "type": "function", "function": { "name": name, "arguments": arguments } });
        match self.0.get_mut("tool_calls").and_then(Value::as_array_mut) {
            Some(calls) => calls.push(call),
            None => {
                self.0.insert("tool_calls".into(), json!([call]));
            }
        }
        self
    }

    /// Checks a message given as JSON.
    ///
    /// Errors: not an object; `role` missing or no string; `content` neither string, null nor a list of parts, or a text
    /// part without text; `name` or `tool_call_id` no string; `tool_calls` no list of calls with a function name.
    pub fn from_value(value: Value) -> Result<Self> {
        let Value::Object(mut fields) = value else {
            return Err(wrong("message", "an object", &value));
        };
        match fields.get("role") {
            Some(Value::String(role)) if !role.is_empty() => {}
            other => return Err(wrong("role", "a non-empty string", other.unwrap_or(&Value::Null))),
        }
        match fields.get("content") {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(Value::Array(parts)) => parts.iter().try_for_each(check_part)?,
            Some(other) => return Err(wrong("content", "a string, null or a list of parts", other)),
        }
        for name in ["name", "tool_call_id"] {
            match fields.get(name) {
                None | Some(Value::Null | Value::String(_)) => {}
                Some(other) => return Err(wrong(name, "a string", other)),
            }
        }
        match fields.get_mut("tool_calls") {
            None | Some(Value::Null) => {}
            Some(Value::Array(calls)) => calls.iter_mut().try_for_each(check_call)?,
            Some(other) => return Err(wrong("tool_calls", "a list", other)),
        }
        Ok(Self(fields))
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text, if the content is a plain string.
    pub fn text(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// All fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl TryFrom<Value> for Message {
    type Error = TokenizerError;

    fn try_from(value: Value) -> Result<Self> {
        Self::from_value(value)
    }
}

impl From<Message> for Value {
    fn from(message: Message) -> Value {
        Value::Object(message.0)
    }
}

fn check_part(part: &Value) -> Result<()> {
    match part {
        Value::String(_) => Ok(()),
        Value::Object(part) if part.get("type").is_some_and(|kind| kind == "text") => {
            match part.get("text") {
                Some(Value::String(_)) => Ok(()),
                other => Err(wrong("content[].text", "a string", other.unwrap_or(&Value::Null))),
            }
        }
        Value::Object(_) => Ok(()),
        other => Err(wrong("content[]", "a part (an object) or a string", other)),
    }
}

/// Checks one tool call and parses its arguments. Arguments that are no JSON object stay the string they are: a model
/// may well have written them.
fn check_call(call: &mut Value) -> Result<()> {
    let function = match call.get("function") {
        Some(_) => &mut call["function"],
        None => call,
    };
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(wrong(
            "tool_calls[].function.name",
            "a string",
            function.get("name").unwrap_or(&Value::Null),
        ));
    }
    match function.get("arguments") {
        Some(Value::String(text)) if !text.trim().is_empty() => {
            if let Ok(object @ Value::Object(_)) = serde_json::from_str(text) {
                function["arguments"] = object;
            }
        }
        None | Some(Value::Null | Value::String(_)) => function["arguments"] = json!({}),
        Some(_) => {}
    }
    Ok(())
}

fn wrong(field: &str, expected: &str, got: &Value) -> TokenizerError {
    TokenizerError::Message { field: field.into(), problem: format!("expected {expected}, got {got}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: Value, problem: &str) {
        let error = Message::from_value(message).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }

    #[test]
    fn broken_messages_name_the_field() {
        check(json!("hi"), "message: expected an object");
        check(json!({ "content": "hi" }), "role: expected a non-empty string, got null");
        check(json!({ "role": "user", "content": 3 }), "content: expected a string");
        check(json!({ "role": "user", "content": [3] }), "content[]: expected a part");
        check(
            json!({ "role": "user", "content": [{ "type": "text" }] }),
            "content[].text: expected a string, got null",
        );
        check(json!({ "role": "tool", "tool_call_id": 3 }), "tool_call_id: expected a string, got 3");
        check(json!({ "role": "assistant", "tool_calls": {} }), "tool_calls: expected a list");
        check(json!({ "role": "assistant", "tool_calls": [{ "function": {} }] }), "name: expected a string");
    }

    #[test]
    fn arguments_become_an_object_once() {
        let parse = |arguments: Value| {
            let call = json!({ "function": { "name": "f", "arguments": arguments } });
            let message = Message::from_value(json!({ "role": "assistant", "tool_calls": [call] })).unwrap();
            message.fields()["tool_calls"][0]["function"]["arguments"].clone()
        };
        assert_eq!(parse(json!("{\"도시\": \"서울\"}")), json!({ "도시": "서울" }));
        assert_eq!(parse(json!({ "a": 1 })), json!({ "a": 1 }));
        assert_eq!(parse(json!("{broken")), json!("{broken"));
        assert_eq!(parse(json!("[1]")), json!("[1]"));
        assert_eq!((parse(json!("")), parse(json!(null))), (json!({}), json!({})));
    }

    #[test]
    fn builders_and_serde_agree() {
        let built = Message::assistant("").with_tool_call("f", json!({})).with_tool_call("g", json!({}));
        let read: Message = serde_json::from_str(&serde_json::to_string(&built).unwrap()).unwrap();
        assert_eq!(read, built);
        assert_eq!(built.fields()["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!((Message::user("안녕").role(), Message::user("안녕").text()), ("user", Some("안녕")));
    }
}
