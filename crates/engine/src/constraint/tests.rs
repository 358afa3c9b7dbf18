use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

const EOS: u32 = 256;

/// All bytes, the end, a control token, an id that stands for nothing, and a few longer tokens.
fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<Option<Vec<u8>>> = (0..=255).map(|byte| Some(vec![byte])).collect();
    tokens.extend([Some(b"</s>".to_vec()), Some(b"<|tool|>".to_vec()), None]);
    let longer = ["{\"", "\":", ", ", "true", "false", "ab", "aaaa", "가나", "\"}", "123", "\n\n", "  "];
    tokens.extend(longer.iter().map(|text| Some(text.as_bytes().to_vec())));
    Vocabulary::new(&tokens, &[(257, "<|tool|>".to_owned())], &[EOS]).unwrap()
}

/// What random tokens that are allowed make: the text, and whether it came to an end.
fn walk(constraint: &mut Constraint, seed: u64, tokens: usize) -> Result<(Vec<u8>, bool), SequenceError> {
    let mut state = seed | 1;
    let mut text = Vec::new();
    for _ in 0..tokens {
        let allowed = constraint.allowed().map_err(failed)?;
        let choices: Vec<u32> = (0..400).filter(|&id| allowed.contains(id as usize)).collect();
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let token = choices[(state >> 33) as usize % choices.len()];
        if token == EOS {
            return Ok((text, true));
        }
        text.extend_from_slice(constraint.compiled.factory.tok_env().tok_trie().token(token));
        constraint.accept(token)?;
        if constraint.is_finished() {
            return Ok((text, true));
        }
    }
    Ok((text, false))
}

fn schema(schema: Value) -> Grammar {
    Grammar::JsonSchema(schema)
}

fn regex(regex: &str) -> Grammar {
    Grammar::Regex(regex.to_owned())
}

fn lark(lark: &str) -> Grammar {
    Grammar::Lark(lark.to_owned())
}

/// What may come after `text`, a byte at a time: `expected`, `$` for the end.
fn check_next(grammar: &Grammar, text: &str, expected: &str) {
    let mut constraint = vocabulary().compile(grammar).unwrap();
    text.bytes().for_each(|byte| constraint.accept(byte.into()).unwrap());
    let allowed = constraint.allowed().unwrap();
    let shown = |id: usize| if id == EOS as usize { '$' } else { id as u8 as char };
    let got: String = (0..=EOS as usize).rev().filter(|&id| allowed.contains(id)).map(shown).collect();
    assert_eq!(got, expected, "after {text:?} in {grammar:?}");
    assert_eq!(allowed.only_end, expected == "$");
}

#[test]
fn what_may_come_next() {
    check_next(&regex("[ab]{2}c*"), "", "ba");
    check_next(&regex("[ab]{2}c*"), "ab", "$c");
    check_next(&regex("a/b|a\\/c"), "a/", "cb");
    check_next(&regex(""), "", "$");
    let choice = Grammar::Choice(vec!["a/b".to_owned(), "a".to_owned(), "$\\\n\"".to_owned()]);
    check_next(&choice, "", "a$");
    check_next(&choice, "a", "$/");
    check_next(&choice, "$\\", "\n");
    check_next(&schema(json!({"enum": ["x", 17]})), "", "1\"");
    check_next(&schema(json!({"type": "array", "items": {"const": 1}})), "[1", "],");
    check_next(&schema(json!({"type": "array", "items": {"const": 1}})), "[1,", "1 ");
    check_next(&schema(json!({"type": "array", "items": {"const": 1}})), "[1, ", "1");
    check_next(&lark("start: \"a\" start | \"b\""), "aa", "ba");
}

/// What has no bytes, is behind the vocabulary, or is the name of the end is never allowed.
#[test]
fn only_text_is_allowed() {
    let mut constraint = vocabulary().compile(&regex("(?s).*")).unwrap();
    let allowed = constraint.allowed().unwrap();
    let not: Vec<usize> = (128..400).filter(|&id| !allowed.contains(id)).collect();
    assert!(allowed.contains(b'<'.into()) && allowed.contains(EOS as usize) && allowed.contains(270));
    assert_eq!(not[..3], [128, 129, 130], "bytes that begin no character");
    assert!([255, 257, 258, 271, 399].iter().all(|id| not.contains(id)), "{not:?}");
    let tool = vocabulary().compile(&lark("start: <|tool|> \"x\"")).unwrap().allowed().unwrap();
    assert!(tool.contains(257) && !tool.contains(b'<'.into()));
}

#[test]
fn ignoring_the_end_defers_it() {
    let allowed = |text: &str| {
        let mut constraint = vocabulary().compile(&regex("a{1,2}")).unwrap().ignoring_eos(true);
        text.bytes().for_each(|byte| constraint.accept(byte.into()).unwrap());
        (constraint.is_finished(), constraint.allowed().unwrap())
    };
    let (finished, after_one) = allowed("a");
    assert!(!finished && after_one.contains(b'a'.into()) && !after_one.contains(EOS as usize));
    let (finished, after_two) = allowed("aa");
    assert!(finished && after_two.only_end);
}

/// Looking ahead says what going there says, and leaves no trace; so does a failure on the way.
#[test]
fn looking_ahead_is_going_there() {
    let grammar =
        schema(json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}));
    let mut constraint = vocabulary().compile(&grammar).unwrap();
    let text: Vec<u32> = "{\"a\": 12, \"b\": [\"x\", {}]}".bytes().map(u32::from).collect();
    let set = |allowed: &Allowed| (0..400).filter(|&id| allowed.contains(id)).collect::<Vec<_>>();
    for at in 0..text.len() {
        let rest = &text[at..];
        let ahead = constraint.ahead(rest, 0..rest.len());
        let mut going = constraint.clone();
        for (token, ahead) in rest.iter().zip(&ahead) {
            assert_eq!(set(ahead.as_ref().unwrap()), set(&going.allowed().unwrap()));
            going.accept(*token).unwrap();
        }
        assert!(going.is_finished());
        assert_eq!(constraint.count_allowed(rest), rest.len());
        let wrong = [&rest[..rest.len().min(1)], &[258, EOS]].concat();
        assert_eq!(constraint.count_allowed(&wrong), 1);
        let ahead = constraint.ahead(&[EOS, 1], 0..3);
        assert!(ahead[0].is_ok() && ahead[1].is_err() && ahead[2].is_err());
        let mut broken = constraint.clone();
        assert!(broken.accept(258).is_err());
        broken.rollback(0).unwrap();
        assert_eq!(set(&broken.allowed().unwrap()), set(&constraint.allowed().unwrap()));
        constraint.accept(text[at]).unwrap();
    }
    constraint.rollback(text.len()).unwrap();
    assert_eq!(constraint.count_allowed(&text), text.len());
}

fn check_refused(grammar: Grammar, expected: &str) {
    let start = Instant::now();
    let error = vocabulary().compile(&grammar).map(|_| ()).expect_err(expected).to_string();
    assert!(error.starts_with(&format!("{} is refused: ", grammar.field())), "{error}");
    assert!(error.contains(expected) && !error.contains("panic"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{error}: {:?}", start.elapsed());
}

#[test]
fn what_cannot_be_followed_is_refused_with_a_reason() {
    check_refused(schema(json!(17)), "a schema is an object or a boolean, not 17");
    check_refused(schema(json!(false)), "nothing fits");
    check_refused(schema(json!({"not": {"type": "string"}})), "not");
    check_refused(schema(json!({"type": "strin"})), "strin");
    check_refused(schema(json!({"pattern": "("})), "unclosed group");
    check_refused(schema(json!({"minimum": "가".repeat(33)})), "minimum");
    check_refused(schema(json!({"minimum": format!("x{}", "가".repeat(60))})), "of the right type");
    check_refused(schema(json!({"$ref": "https://example.com/schema.json"})), "$ref");
    check_refused(schema(json!({"$ref": "#"})), "no token");
    check_refused(
        schema(json!({"properties": {"a": false}, "required": ["a"], "type": "object"})),
        "unsatisfiable",
    );
    check_refused(schema(json!({"multipleOf": 1_000_003})), "multipleOf is 1000003");
    check_refused(schema(json!({"multipleOf": 1e-9})), "multipleOf is");
    check_refused(schema(json!({"enum": "x".repeat(300_000)})), "262144");
    check_refused(regex("("), "unclosed group");
    check_refused(regex("(?=a)b"), "look-around");
    check_refused(regex("[^\\s\\S]"), "no token");
    check_refused(Grammar::Choice(vec![]), "nothing to choose");
    check_refused(lark("start: nowhere"), "nowhere");
    check_refused(lark("start: start"), "no token");
    check_refused(lark("start: %json {\"multipleOf\": 1000003}"), "multipleOf");
    check_refused(lark("start: %json"), "no schema");
    check_refused(lark("start: %json {\"a\": }"), "no schema");
    check_refused(lark(""), "");
}

#[test]
fn vocabularies_are_checked() {
    let tokens = [Some(vec![b'a']), None];
    assert!(Vocabulary::new(&tokens, &[], &[1]).is_ok());
    let refused = |specials: &[(u32, String)], eos: &[u32]| {
        Vocabulary::new(&tokens, specials, eos).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(&[], &[]).starts_with("eos_token_ids"));
    assert!(refused(&[], &[2]).starts_with("eos_token_ids names token 2"));
    assert!(refused(&[(7, "<|x|>".to_owned())], &[1]).starts_with("specials names token 7"));
    assert!(Vocabulary::new(&[], &[], &[0]).is_err());
    let long = Vocabulary::new(&[Some(vec![b'a'; 5000]), Some(vec![b'a']), None], &[], &[2]).unwrap();
    let allowed = long.compile(&regex("a*")).unwrap().allowed().unwrap();
    assert!(!allowed.contains(0) && allowed.contains(1), "a token that is too long is left out");
}

/// A grammar that explodes is refused, fails, or works; within two seconds for all of compiling and 200 tokens.
fn check_bounded(name: &str, grammar: Grammar) {
    let vocabulary = vocabulary();
    let start = Instant::now();
    let outcome = match vocabulary.compile(&grammar) {
        Err(error) => error.to_string(),
        Ok(mut constraint) => match (walk(&mut constraint, 5, 200), &grammar) {
            (Err(error), _) => error.to_string(),
            (Ok((text, true)), Grammar::JsonSchema(schema)) => {
                let value: Value = serde_json::from_slice(&text).unwrap();
                // The validator itself explodes on some.
                let checked = schema.get("$defs").is_none();
                assert!(!checked || jsonschema::is_valid(schema, &value), "{name}: {value}");
                "valid".to_owned()
            }
            (Ok(_), _) => "under way".to_owned(),
        },
    };
    assert!(!outcome.contains("panic"), "{name}: {outcome}");
    assert!(start.elapsed() < Duration::from_secs(2), "{name}: {outcome}, {:?}", start.elapsed());
}

#[test]
fn exploding_schemas_are_bounded() {
    let nested = |n: usize| {
        (0..n).fold(
            json!({"type": "integer"}),
            |a, _| json!({"type": "object", "properties": {"a": a}, "required": ["a"]}),
        )
    };
    let doubled = |key: &str| {
        let link = |i: usize| json!({"$ref": format!("#/$defs/d{i}")});
        let mut defs: BTreeMap<String, Value> =
            (0..40).map(|i| (format!("d{i}"), json!({key: [link(i + 1), link(i + 1)]}))).collect();
        defs.insert("d40".to_owned(), json!({"type": "integer"}));
        json!({"$defs": defs, "$ref": "#/$defs/d0"})
    };
    let properties = |n: usize| {
        let map: BTreeMap<String, Value> =
            (0..n).map(|i| (format!("p{i}"), json!({"type": "integer"}))).collect();
        json!({"type": "object", "properties": map})
    };
    let arrays = json!({"type": "array", "minItems": 1000, "maxItems": 1000, "items": {
        "type": "array", "minItems": 1000, "maxItems": 1000, "items": {"type": "array", "minItems": 1000}}});
    let all_any = |keyword: &str| -> Value {
        let one = |i: usize| json!({"anyOf": [{keyword: i}, {keyword: 100 - i}]});
        json!({"allOf": (0..20).map(one).collect::<Vec<_>>()})
    };
    for (name, grammar) in [
        ("nested 60", nested(60)),
        ("nested 1,000", nested(1000)),
        ("minItems", json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000})),
        ("maxItems", json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000_000})),
        ("arrays", arrays),
        ("enum", json!({"enum": (0..15_000).map(|i| format!("e{i}")).collect::<Vec<_>>()})),
        ("pattern", json!({"type": "string", "pattern": "(a{1000}){1000}"})),
        ("anchored pattern", json!({"type": "string", "pattern": "^(((a|b){100}c?){100}d?){100}$"})),
        ("exponential pattern", json!({"type": "string", "pattern": "^(.*a.{200})$"})),
        ("minLength", json!({"type": "string", "minLength": 4_000_000_000u64})),
        ("recursive", json!({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]})),
        (
            "circular",
            json!({"$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}, "$ref": "#/$defs/n"}),
        ),
        ("circular allOf", json!({"$defs": {"n": {"allOf": [{"$ref": "#/$defs/n"}]}}, "$ref": "#/$defs/n"})),
        ("doubled allOf", doubled("allOf")),
        ("doubled anyOf", doubled("anyOf")),
        ("allOf of anyOf", all_any("minimum")),
        ("properties", properties(256)),
        ("too many properties", properties(257)),
        ("minProperties", json!({"type": "object", "minProperties": 100_000})),
        ("divisor", json!({"type": "integer", "multipleOf": 1999})),
        ("range", json!({"type": "number", "minimum": 1e-300, "maximum": 1e300})),
        ("blanks", json!({"type": "object", "x-guidance": {"whitespace_pattern": "(a{1000}){1000}"}})),
    ] {
        check_bounded(name, schema(grammar));
    }
}

#[test]
fn exploding_texts_are_bounded() {
    let words = |separator: &str| (0..5000).map(|i| format!("w{i}x*")).collect::<Vec<_>>().join(separator);
    let parentheses = format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000));
    for text in ["(a{1000}){1000}", "((a{100}){100}){100}", "(a*)*b", ".*a.{300}b", "(\\p{L}{1,200}){1,200}"]
    {
        check_bounded(text, regex(text));
    }
    check_bounded("alternatives", regex(&words("|")));
    check_bounded("sequence", regex(&words("")));
    check_bounded("parentheses", regex(&parentheses));
    check_bounded("choices", Grammar::Choice((0..10_000).map(|i| format!("choice {i}")).collect()));
    for text in [
        "start: s\ns: s s | \"a\" |",
        "start: (\"a\"{1000}){1000}",
        "start: x{1000000}\nx: \"a\" | \"b\"",
        "start: %json {\"type\": \"object\", \"x-guidance\": {\"whitespace_pattern\": \"(a{1000}){1000}\"}}",
    ] {
        check_bounded(text, lark(text));
    }
    check_bounded("nested groups", lark(&format!("start: {}", parentheses.replace('a', "\"a\""))));
}

#[test]
fn grammars_round_trip_as_json() {
    let grammar: Grammar = serde_json::from_value(json!({"json_schema": {"type": "null"}})).unwrap();
    assert_eq!(grammar, schema(json!({"type": "null"})));
    for grammar in [grammar, Grammar::JsonObject, regex("a"), Grammar::Choice(vec![]), lark("start: \"a\"")] {
        let json = serde_json::to_string(&grammar).unwrap();
        assert_eq!(serde_json::from_str::<Grammar>(&json).unwrap(), grammar);
    }
}

/// Chains as long as the limits let them be: the library recurses along them, and a stack that overflows takes the
/// program with it.
#[test]
fn long_chains_do_not_overflow_the_stack() {
    let mut definitions = serde_json::Map::new();
    for i in 0..5000 {
        definitions.insert(format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}));
    }
    definitions.insert("d5000".to_owned(), json!({"type": "integer"}));
    let all = vec![json!({"type": "integer"}); 3000];
    let rules: String = (0..1000).map(|i| format!("a{i}: a{}\n", i + 1)).collect();
    let terminals: String = (0..9000).map(|i| format!("A{i}: A{}\n", i + 1)).collect();
    for grammar in [
        schema(json!({"$ref": "#/$defs/d0", "$defs": definitions})),
        schema(json!({"allOf": all})),
        lark(&format!("start: a0\n{rules}a1000: \"x\"\n")),
        lark(&format!("start: A0\n{terminals}A9000: \"x\"\n")),
    ] {
        if let Ok(mut constraint) = vocabulary().compile(&grammar) {
            walk(&mut constraint, 1, 8).ok();
        }
    }
}
