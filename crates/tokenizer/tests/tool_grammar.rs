//! Grammars of function calls, compiled by llguidance over a vocabulary of bytes: what they accept, the parser reads.

#![allow(clippy::unwrap_used)] // tests

use kanana_tokenizer::tools::{ToolChoice, ToolFormat, ToolSpec, parse};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use ToolFormat::{Hermes, Kanana, Llama3Json};

fn tools(strict: bool) -> Vec<ToolSpec> {
    let tool = |name: &str, parameters: Value| {
        let function = json!({ "name": name, "parameters": parameters, "strict": strict });
        ToolSpec::from_openai(&json!({ "type": "function", "function": function })).unwrap()
    };
    let weather = json!({
        "type": "object",
        "properties": { "city": { "type": "string" }, "days": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["city"],
        "additionalProperties": false,
    });
    vec![tool("weather", weather), tool("weather_now", json!({})), tool("any", json!({ "type": "object" }))]
}

fn compile(grammar: &str) -> Result<Matcher, String> {
    let mut factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
    factory.quiet();
    let parser = factory.create_parser(TopLevelGrammar::from_lark(grammar.into()));
    parser.map(|parser| Matcher::new(Ok(parser))).map_err(|error| error.to_string())
}

/// Whether the grammar accepts the whole answer.
fn accepts(grammar: &str, answer: &str) -> bool {
    let mut matcher = compile(grammar).unwrap();
    let bytes: Vec<u32> = answer.bytes().map(u32::from).collect();
    matcher.try_consume_tokens(&bytes).unwrap() == bytes.len() && matcher.is_accepting().unwrap()
}

/// Answers that the grammar accepts, with the number of calls that the parser finds in each, and ones it does not.
fn check(format: ToolFormat, choice: &ToolChoice, parallel: bool, good: &[(&str, usize)], bad: &[&str]) {
    let tools = tools(true);
    let grammar = format.grammar(&tools, choice, parallel).unwrap();
    for (answer, calls) in good {
        assert!(accepts(&grammar, answer), "{format} {choice:?} refuses {answer:?} by\n{grammar}");
        let parsed = parse(format, tools.iter().map(|tool| &*tool.name), answer);
        assert_eq!((parsed.calls.len(), parsed.unclosed), (*calls, false), "{answer:?}");
        for call in parsed.calls {
            assert!(serde_json::from_str::<Value>(&call.arguments).unwrap().is_object());
        }
    }
    for answer in bad {
        assert!(!accepts(&grammar, answer), "{format} {choice:?} accepts {answer:?} by\n{grammar}");
    }
}

const KANANA: &str = "<function=weather>{\"city\": \"서울 </function> 😀\", \"days\": 3}</function>";
const KANANA_NOW: &str = "<function=weather_now>{}</function>";
const LLAMA: &str = "{\"name\": \"weather\", \"parameters\": {\"city\":\"서울\",\"days\":3}}";
const LLAMA_ANY: &str = "{\"name\": \"any\", \"parameters\": {\"a\": [1, {}]}}";
const HERMES: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"서울\"}}\n</tool_call>";

#[test]
fn required_is_calls_only() {
    let two = [KANANA, KANANA_NOW].concat();
    let bad = [
        "",
        "text",
        "<function=weather>{}</function>",
        "<function=weather>{\"city\": 3}</function>",
        "<function=weather>{\"city\": \"a\", \"days\": 10}</function>",
        "<function=weather>{\"city\":  \"a\"}</function>",
        "<function=weather>{\"city\": \"a\"} </function>",
        "<function=weather_now>{\"a\": 1}</function>",
        "<function=other>{}</function>",
        "<function=weather_now>{}</function> and text",
    ];
    check(Kanana, &ToolChoice::Required, true, &[(KANANA, 1), (&two, 2)], &bad);
    check(Kanana, &ToolChoice::Required, false, &[(KANANA, 1)], &[&two]);
    let two = [LLAMA, LLAMA_ANY].join("; ");
    let bad = ["{}", "text", "{\"name\": \"weather\", \"parameters\": {}}", "{\"name\": \"weather\"}"];
    check(Llama3Json, &ToolChoice::Required, true, &[(LLAMA, 1), (&two, 2)], &bad);
    check(Llama3Json, &ToolChoice::Required, false, &[(LLAMA_ANY, 1)], &[&two]);
    let two = [HERMES, HERMES].join("\n");
    let bad = [
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>",
        "text",
        HERMES.trim_end_matches('>'),
    ];
    check(Hermes, &ToolChoice::Required, true, &[(HERMES, 1), (&two, 2)], &bad);
    check(Hermes, &ToolChoice::Required, false, &[(HERMES, 1)], &[&two]);
}

#[test]
fn named_is_one_call_of_that_function() {
    let named = |name: &str| ToolChoice::Named(name.into());
    let two = [KANANA, KANANA].concat();
    check(Kanana, &named("weather"), true, &[(KANANA, 1)], &[KANANA_NOW, &two, ""]);
    check(Kanana, &named("weather_now"), true, &[(KANANA_NOW, 1)], &[KANANA]);
    check(Llama3Json, &named("any"), true, &[(LLAMA_ANY, 1)], &[LLAMA]);
    check(Hermes, &named("weather"), true, &[(HERMES, 1)], &["text"]);
}

#[test]
fn auto_is_text_then_calls() {
    let auto = ToolChoice::Auto;
    let texts = ["", "안녕 {\"a\": 1} <b>", "a < b <fun", "줄\n바꿈\n"];
    let good: Vec<(&str, usize)> = texts.iter().map(|text| (*text, 0)).collect();
    for (format, call) in [(Kanana, KANANA), (Llama3Json, LLAMA), (Hermes, HERMES)] {
        check(format, &auto, true, &good, &[]);
        check(format, &auto, true, &[(call, 1)], &[&call[..call.len() - 1], &format!("{call} text")]);
    }
    let (one, two) = (format!("그래요. {KANANA}"), format!("< {KANANA}{KANANA_NOW}"));
    let bad = ["<function=weather>{\"city\": 3}</function>", "a <function=other>{}</function>", "<function="];
    check(Kanana, &auto, true, &[(&one, 1), (&two, 2)], &bad);
    check(Kanana, &auto, false, &[(&one, 1)], &[&two]);
    let (one, two) = (format!("그래요.\n{HERMES}"), format!("{HERMES}\n{HERMES}"));
    let bad = ["<tool_call>", "a <tool_call>{\"name\": \"weather\", \"arguments\": {}}</tool_call>"];
    check(Hermes, &auto, true, &[(&one, 1), (&two, 2)], &bad);
    check(Hermes, &auto, false, &[(&one, 1)], &[&two]);
    let two = [LLAMA, LLAMA_ANY].join("; ");
    let bad = ["{\"name\": 1}", " {}", "[{\"name\": \"weather\", \"parameters\": {}}]", "\n[ {", "{"];
    check(Llama3Json, &auto, true, &[("[링크](x)", 0), (" text", 0), ("[[", 0), (&two, 2)], &bad);
    check(Llama3Json, &auto, false, &[(LLAMA, 1)], &[&two]);
}

/// What llguidance cannot enforce is ignored, unless the tool is strict.
#[test]
fn lenient_unless_strict() {
    let schema = json!({ "type": "object", "properties": { "a": { "not": { "type": "string" } } } });
    for format in ToolFormat::ALL {
        for strict in [false, true] {
            let tool = ToolSpec { name: "f".into(), description: None, parameters: schema.clone(), strict };
            let grammar = format.grammar(&[tool], &ToolChoice::Required, true).unwrap();
            assert_eq!(compile(&grammar).err().is_some(), strict, "{format} {strict}");
        }
    }
}

/// References point into the tool's own schema, also circular ones; arguments are objects.
#[test]
fn schemas_stand_for_themselves() {
    let city = |within: &str| {
        json!({ "type": "object", "properties": { "in": { "$ref": within }, "city": { "enum": ["서울"] } },
            "required": ["city"], "additionalProperties": false })
    };
    let aliased = json!({ "$defs": { "x": city("#/$defs/x") }, "$ref": "#/$defs/x" });
    let either = json!({ "anyOf": [{ "properties": { "a": { "const": 1 } }, "required": ["a"] }, {}] });
    let tools: Vec<ToolSpec> = [("f", city("#")), ("g", aliased), ("h", either)]
        .map(|(name, parameters)| ToolSpec { name: name.into(), description: None, parameters, strict: true })
        .into();
    let grammar = Kanana.grammar(&tools, &ToolChoice::Required, true).unwrap();
    let check =
        |call: &str, expected: bool| assert_eq!(accepts(&grammar, call), expected, "{call}\n{grammar}");
    check("<function=f>{\"in\": {\"city\": \"서울\"}, \"city\": \"서울\"}</function>", true);
    check("<function=f>{\"in\": 3, \"city\": \"서울\"}</function>", false);
    check("<function=g>{\"city\": \"서울\"}</function>", true);
    check("<function=g>{\"city\": \"부산\"}</function>", false);
    check("<function=h>{\"a\": 1}</function>", true);
    check("<function=g>{\"in\": {}, \"city\": \"서울\"}</function>", false);
    check("<function=h>{\"b\": 2}</function>", true);
    check("<function=h>3</function>", false);
}

#[test]
fn choices_that_cannot_be() {
    let check = |tools: &[ToolSpec], choice: ToolChoice, problem: &str| {
        let error = Kanana.grammar(tools, &choice, true).unwrap_err().to_string();
        assert_eq!(error, format!("tools: tool_choice: {problem}"));
    };
    check(&tools(true), ToolChoice::Named("x".into()), "\"x\" is none of the tools");
    check(&[], ToolChoice::Required, "there are no tools to call");
}
