//! The functions a model may call, and which of them it must.

use serde_json::{Map, Value, json};

use crate::{Result, TokenizerError};

/// A function that a model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments, an object; empty for a function without parameters.
    pub parameters: Value,
    /// Whether a schema that a grammar cannot hold the model to is refused, instead of held to in part.
    pub strict: bool,
}

/// Whether the model must call functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// Text, then calls, or either.
    Auto,
    /// At least one call.
    Required,
    /// One call of this function.
    Named(String),
}

impl ToolSpec {
    /// A tool as OpenAI's chat API has it: `{"type": "function", "function": {"name", "description", "parameters",
    /// "strict"}}`, of which only the name is required.
    ///
    /// Errors: another type; a name that is not 1 to 64 of `a-zA-Z0-9_-`; fields of the wrong type; parameters whose
    /// own `type` is not `object`.
    pub fn from_openai(tool: &Value) -> Result<Self> {
        match tool.get("type") {
            Some(Value::String(kind)) if kind == "function" => {}
            other => return Err(wrong("type", "\"function\"", other)),
        }
        let Some(Value::Object(function)) = tool.get("function") else {
            return Err(wrong("function", "an object", tool.get("function")));
        };
        let name = match function.get("name") {
            Some(Value::String(name)) if is_name(name) => name.clone(),
            other => return Err(wrong("function.name", "1 to 64 of a-z, A-Z, 0-9, _ and -", other)),
        };
        let description = match function.get("description") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            other => return Err(wrong("function.description", "a string", other)),
        };
        let parameters = match function.get("parameters") {
            None | Some(Value::Null) => json!({}),
            Some(Value::Object(schema)) if schema.get("type").is_none_or(|kind| kind == "object") => {
                schema.clone().into()
            }
            Some(Value::Object(schema)) => {
                return Err(wrong("function.parameters.type", "\"object\"", schema.get("type")));
            }
            other => return Err(wrong("function.parameters", "a JSON schema (an object)", other)),
        };
        let strict = match function.get("strict") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(strict)) => *strict,
            other => return Err(wrong("function.strict", "true or false", other)),
        };
        Ok(Self { name, description, parameters, strict })
    }

    /// The schema for llguidance: an object, written as Python's `json.dumps` writes it, with which models have been
    /// trained, or without the blanks behind `,` and `:`. No other white space, so that no model loses itself in it.
    pub(super) fn schema(&self) -> Value {
        let mut schema: Map<String, Value> = self.parameters.as_object().cloned().unwrap_or_default();
        if schema.is_empty() {
            schema.insert("additionalProperties".into(), json!(false));
        }
        if !schema.contains_key("$ref") {
            schema.insert("type".into(), json!("object")); // llguidance refuses keys beside a circular reference
        }
        let options = json!({
            "whitespace_flexible": false,
            "item_separator": ", ?",
            "key_separator": ": ?",
            "lenient": !self.strict,
        });
        schema.insert("x-guidance".into(), options);
        schema.into()
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn wrong(field: &str, expected: &str, got: Option<&Value>) -> TokenizerError {
    let got = got.map_or("nothing".into(), Value::to_string);
    TokenizerError::Tool { field: field.into(), problem: format!("expected {expected}, got {got}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tool: Value, problem: &str) {
        let error = ToolSpec::from_openai(&tool).unwrap_err().to_string();
        assert_eq!(error, format!("tools: {problem}"));
    }

    fn check_function(field: &str, value: Value, problem: &str) {
        let mut function = json!({ "name": "f" });
        function[field] = value;
        check(json!({ "type": "function", "function": function }), problem);
    }

    #[test]
    fn broken_tools_name_the_field() {
        check(json!(3), "type: expected \"function\", got nothing");
        check(json!({ "type": "code_interpreter" }), "type: expected \"function\", got \"code_interpreter\"");
        check(json!({ "type": "function" }), "function: expected an object, got nothing");
        let name = "function.name: expected 1 to 64 of a-z, A-Z, 0-9, _ and -";
        for bad in [json!(""), json!("날씨"), json!("a b"), json!("x".repeat(65)), json!(null)] {
            check_function("name", bad.clone(), &format!("{name}, got {bad}"));
        }
        check_function("description", json!(3), "function.description: expected a string, got 3");
        check_function(
            "parameters",
            json!([]),
            "function.parameters: expected a JSON schema (an object), got []",
        );
        let array = json!({ "type": "array" });
        check_function("parameters", array, "function.parameters.type: expected \"object\", got \"array\"");
        check_function("strict", json!("yes"), "function.strict: expected true or false, got \"yes\"");
    }

    #[test]
    fn good_tools_are_read() {
        let schema = json!({ "type": "object", "properties": { "도시": { "type": "string" } } });
        let tool = json!({ "type": "function", "function": {
            "name": "get-weather_2", "description": "날씨", "parameters": schema, "strict": true } });
        let expected = ToolSpec {
            name: "get-weather_2".into(),
            description: Some("날씨".into()),
            parameters: schema,
            strict: true,
        };
        assert_eq!(ToolSpec::from_openai(&tool).unwrap(), expected);
        let least = json!({ "type": "function", "function": { "name": "f", "parameters": null } });
        let expected = ToolSpec { name: "f".into(), description: None, parameters: json!({}), strict: false };
        assert_eq!(ToolSpec::from_openai(&least).unwrap(), expected);
    }
}
