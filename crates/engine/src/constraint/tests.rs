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

#[test]
fn probe() {
    let vocabulary = vocabulary();
    let nest = |n: usize| (0..n).fold(json!({"type": "integer"}), |inner, _| {
        json!({"type": "object", "properties": {"a": inner}, "required": ["a"], "additionalProperties": false})
    });
    let mut expo = serde_json::Map::new();
    for i in 0..40 {
        expo.insert(format!("d{i}"), json!({"allOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"$ref": format!("#/$defs/d{}", i + 1)}]}));
    }
    expo.insert("d40".into(), json!({"type": "integer"}));
    let mut expo2 = serde_json::Map::new();
    for i in 0..40 {
        expo2.insert(format!("d{i}"), json!({"anyOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"$ref": format!("#/$defs/d{}", i + 1)}]}));
    }
    expo2.insert("d40".into(), json!({"type": "integer"}));
    let any_any = (0..16).fold(json!({"type":"integer"}), |inner, i| json!({"anyOf": [{"type":"object","properties":{format!("a{i}"): inner}}, {"type":"array","items": inner}]}));
    let all_any = json!({"allOf": (0..20).map(|i| json!({"anyOf": [{"required": [format!("a{i}")]}, {"required": [format!("b{i}")]}]})).collect::<Vec<_>>()});
    let all_any2 = json!({"allOf": (0..20).map(|i| json!({"anyOf": [{"minimum": i}, {"maximum": -i}]})).collect::<Vec<_>>()});
    let one_of = json!({"oneOf": (0..2000).map(|i| json!({"properties": {"t": {"const": i}}, "required": ["t"]})).collect::<Vec<_>>()});
    let schemas: Vec<(&str, Value)> = vec![
        ("nest 60", nest(60)),
        ("nest 1000", nest(1000)),
        ("minItems", json!({"type": "array", "items": {"type": "integer"}, "minItems": 1000000})),
        ("maxItems", json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1000000000u64})),
        ("minItems nested", json!({"type": "array", "minItems": 1000, "maxItems": 1000, "items": {"type":"array", "minItems": 1000, "maxItems": 1000, "items": {"type":"array", "minItems": 1000, "maxItems": 1000, "items": {"type":"integer"}}}})),
        ("enum", json!({"enum": (0..20000).map(|i| format!("e{i}")).collect::<Vec<_>>()})),
        ("enum ints", json!({"enum": (0..30000).collect::<Vec<_>>()})),
        ("pattern", json!({"type": "string", "pattern": "(a{1000}){1000}"})),
        ("pattern2", json!({"type": "string", "pattern": "^(((a|b){100}c?){100}d?){100}$"})),
        ("pattern3", json!({"type": "string", "pattern": "^(.*a.{200})$"})),
        ("pattern4", json!({"type": "string", "pattern": "^(\\w{1,50}\\s?){1,50}$"})),
        ("minLength", json!({"type": "string", "minLength": 1000000})),
        ("minLength huge", json!({"type": "string", "minLength": 4000000000u64})),
        ("maxLength", json!({"type": "string", "maxLength": 1000000})),
        ("recursive", json!({"$ref": "#"})),
        ("recursive2", json!({"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}}, "$ref": "#/$defs/n"})),
        ("recursive3", json!({"$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type":"integer"}]}}, "$ref": "#/$defs/n"})),
        ("recursive allOf", json!({"$defs": {"n": {"allOf": [{"$ref": "#/$defs/n"}, {"type":"integer"}]}}, "$ref": "#/$defs/n"})),
        ("mutual", json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        ("expo allOf", json!({"$defs": expo, "$ref": "#/$defs/d0"})),
        ("expo anyOf", json!({"$defs": expo2, "$ref": "#/$defs/d0"})),
        ("anyOf tree", any_any),
        ("all_any", all_any), ("all_any2", all_any2), ("oneOf", one_of),
        ("optional props", json!({"type":"object","properties": (0..2000).map(|i| (format!("p{i}"), json!({"type":"integer"}))).collect::<serde_json::Map<_,_>>()})),
        ("minProperties", json!({"type":"object","additionalProperties": {"type":"integer"}, "minProperties": 100000})),
        ("patternProperties", json!({"type":"object","patternProperties": (0..100).map(|i| (format!("^a{{{i}}}.*b"), json!({"type":"integer"}))).collect::<serde_json::Map<_,_>>()})),
        ("multipleOf", json!({"type":"integer","multipleOf": 1000003})),
        ("multipleOf small", json!({"type":"number","multipleOf": 1e-9})),
        ("range", json!({"type":"number","minimum": 1e-300, "maximum": 1e300})),
        ("range int", json!({"type":"integer","minimum": -1e18, "maximum": 1e19})),
        ("korean", json!({"minimum": "가".repeat(200)})),
        ("x-guidance", json!({"type":"object","x-guidance": {"whitespace_pattern": "(a{1000}){1000}"}})),
        ("deep x-guidance", json!({"type":"object","properties": {"a": {"x-guidance": {"whitespace_pattern": "[ ]*"}}}})),
        ("external", json!({"$ref": "http://example.com/a.json"})),
        ("format", json!({"type":"string","format":"email","minLength": 300})),
        ("not", json!({"not": {"type":"string"}})),
        ("false prop", json!({"type":"object","properties":{"a": false},"required":["a"]})),
    ];
    let mut all: Vec<(&str, Grammar)> = schemas.into_iter().map(|(n, s)| (n, Grammar::JsonSchema(s))).collect();
    let rx = |n: &'static str, s: &str| (n, Grammar::Regex(s.to_owned()));
    all.extend([
        rx("rx bomb", "(a{1000}){1000}"), rx("rx bomb 2", "((a{100}){100}){100}"), rx("rx open", "("), rx("rx empty", ""), rx("rx look", "(?=a)b"),
        rx("rx backtrack", "(a*)*b"), rx("rx exp", ".*a.{30}"), rx("rx exp2", "(.*a.{300}b)"), rx("rx none", "[^\\s\\S]"), rx("rx anchor", "^abc$"), rx("rx kor", "[가-힣]{2,5}"), rx("rx bound", "\\bfoo\\b"),
        rx("rx and", "(?i)hello/World\\/\\d+"), rx("rx unicode", "(\\p{L}{1,200}){1,200}"), rx("rx alt", &(0..5000).map(|i| format!("w{i}x*")).collect::<Vec<_>>().join("|")),
        ("choice empty", Grammar::Choice(vec![])), ("choice emptystr", Grammar::Choice(vec!["".into()])), ("choice", Grammar::Choice(vec!["a/b".into(), "a\\b".into(), "\n\"x\"".into(), "가 나".into()])),
        ("choice many", Grammar::Choice((0..20000).map(|i| format!("choice number {i}")).collect())),
        ("lark", Grammar::Lark("start: \"a\" start | \"b\"".into())), ("lark bad", Grammar::Lark("start: foo".into())), ("lark ambiguous", Grammar::Lark("start: s\ns: s s | \"a\" | ".into())),
        ("lark special", Grammar::Lark("start: <|tool|> \"x\"".into())), ("lark special unknown", Grammar::Lark("start: <|nope|> \"x\"".into())), ("lark loop", Grammar::Lark("start: start".into())),
        ("lark x-guid", Grammar::Lark("start: %json {\"type\":\"object\",\"x-guidance\":{\"whitespace_pattern\":\"(a{1000}){1000}\"}}".into())),
        ("lark rep", Grammar::Lark("start: (\"a\"{1000}){1000}".into())),
        ("lark rep2", Grammar::Lark("start: x{1000000}\nx: \"a\" | \"b\"".into())),
        ("lark nest", Grammar::Lark(format!("start: {}\"a\"{}", "(".repeat(20000), ")".repeat(20000)))),
        ("rx nest", Grammar::Regex(format!("{}a{}", "(".repeat(20000), ")".repeat(20000)))),
        ("object", Grammar::JsonObject),
    ]);
    for (name, grammar) in all {
        eprint!("{name:24} ");
        let start = Instant::now();
        let compiled = vocabulary.compile(&grammar);
        let t1 = start.elapsed();
        match compiled {
            Err(e) => eprintln!("{t1:>10.1?} refused {:?}", e.to_string().chars().take(200).collect::<String>()),
            Ok(mut c) => {
                let start = Instant::now();
                let Ok((text, end)) = walk(&mut c, 5, 200).inspect_err(|e| eprintln!("{t1:?} WALK {:?} {e}", start.elapsed())) else { continue };
                eprintln!("{t1:>10.1?} ok, 200 tokens {:.1?} {end} {:?}", start.elapsed(), String::from_utf8_lossy(&text).chars().take(60).collect::<String>());
            }
        }
        let _ = Duration::ZERO;
    }
}
