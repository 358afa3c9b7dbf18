//! The grammar that holds a model to valid calls.

use serde_json::json;

use super::{ToolChoice, ToolFormat, ToolSpec};
use crate::{Result, TokenizerError};

/// How a format writes a call: `open`, `head`, the function's name, `middle`, the arguments, `close`.
struct Frame {
    /// What makes the parser expect a call.
    open: &'static str,
    head: &'static str,
    middle: &'static str,
    close: &'static str,
    /// What stands between two calls.
    separator: &'static str,
}

impl ToolFormat {
    /// The grammar of the answers that `choice` allows, in llguidance's dialect of Lark.
    ///
    /// `Required` is one or more calls, `Named` is one call of that function, and `Auto` is text, calls, or text and
    /// then calls (in Llama 3's format: text or calls; text begins with no `{`). At most one call unless `parallel`.
    /// Arguments obey the schemas; what llguidance cannot enforce is refused when the grammar is compiled if the tool
    /// is strict, and ignored otherwise. A function without parameters is called with `{}`.
    ///
    /// Control tokens, and so calls behind `<|python_tag|>`, are outside of the grammar.
    ///
    /// Errors: no tools; `Named` is none of them.
    ///
    /// Source: llguidance, `docs/syntax.md` and `docs/json_schema.md`.
    pub fn grammar(&self, tools: &[ToolSpec], choice: &ToolChoice, parallel: bool) -> Result<String> {
        let frame = self.frame();
        let tools: Vec<&ToolSpec> = match choice {
            ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
            _ => tools.iter().collect(),
        };
        if tools.is_empty() {
            let problem = match choice {
                ToolChoice::Named(name) => format!("{name:?} is none of the tools"),
                _ => "there are no tools to call".into(),
            };
            return Err(TokenizerError::Tool { field: "tool_choice".into(), problem });
        }
        let more = match choice {
            ToolChoice::Named(_) => "",
            _ if !parallel => "",
            _ => " (separator call)*",
        };
        let mut grammar = match (choice, self) {
            (ToolChoice::Auto, Self::Llama3Json) => {
                // Neither a `{` behind white space, nor one behind a `[`: such answers are calls to the parser.
                let text = r"[ \t\r\n]*([^ \t\r\n{\[](.|\n)*|\[[ \t\r\n]*([^ \t\r\n{](.|\n)*)?)?";
                format!("start: TEXT | call{more}\nTEXT: /{text}/\n")
            }
            (ToolChoice::Auto, _) => {
                let open = literal(frame.open);
                format!("start: TEXT | opening body{more}\nopening[lazy]: TEXT {open}\nTEXT: /(.|\\n)*/\n")
            }
            _ => format!("start: call{more}\n"),
        };
        if !more.is_empty() {
            grammar += &format!("separator: {}\n", literal(frame.separator));
        }
        grammar += &format!("call: {} body\n", literal(frame.open));
        let bodies: Vec<String> = (0..tools.len()).map(|i| format!("body_{i}")).collect();
        grammar += &format!("body: {}\n", bodies.join(" | "));
        for (body, tool) in bodies.iter().zip(tools) {
            let name = literal(&format!("{}{}{}", frame.head, tool.name, frame.middle));
            grammar += &format!("{body}: {name} %json {} {}\n", tool.schema(), literal(frame.close));
        }
        Ok(grammar)
    }

    fn frame(self) -> Frame {
        match self {
            Self::Kanana => {
                Frame { open: "<function=", head: "", middle: ">", close: "</function>", separator: "" }
            }
            Self::Llama3Json => Frame {
                open: "{",
                head: "\"name\": \"",
                middle: "\", \"parameters\": ",
                close: "}",
                separator: "; ",
            },
            Self::Hermes => Frame {
                open: "<tool_call>",
                head: "\n{\"name\": \"",
                middle: "\", \"arguments\": ",
                close: "}\n</tool_call>",
                separator: "\n",
            },
        }
    }
}

/// A string of Lark, which is one of JSON.
fn literal(text: &str) -> String {
    json!(text).to_string()
}
