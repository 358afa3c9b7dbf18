//! JSON of a schema: whatever the server answers with is valid, and what it cannot hold an answer to it refuses.
//! `KANANA_SCHEMAS` says how many random schemas are tried. Run: `cargo test -p kanana-serve --test schemas`.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::dice::Dice;
use common::http::Reply;
use common::{Server, count, in_threads};
use serde_json::{Value, json};

/// The model is random: ends of strings, lists and objects are made likelier, so that it comes to one.
fn ask(server: &Server, schema: &Value, seed: usize, max_tokens: usize) -> Reply {
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "random", "strict": true, "schema": schema}});
    let bias = json!({"34": 4, "93": 3, "125": 3}); // " ] }
    server.post(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": "JSON!"}], "seed": seed, "max_tokens": max_tokens,
                "response_format": format, "logit_bias": bias}),
    )
}

/// Whether the answer is whole; it is valid if it is.
#[track_caller]
fn complete(schema: &Value, reply: &Reply) -> bool {
    assert_eq!(reply.status, 200, "{schema}: {}", reply.text());
    let choice = &reply.json()["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    if choice["finish_reason"] != "stop" {
        assert_eq!(choice["finish_reason"], "length", "{schema}: {text}");
        return false;
    }
    let value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{schema}: {text}: {error}"));
    let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
    // Which years have a 29th of February, and which minutes a 60th second, a grammar does not know.
    // Nor does it know how long a name of a mailbox or a host may be.
    let excused = text.contains("-02-29") || text.contains(":60") || text.len() > 64;
    assert!(excused || validator.is_valid(&value), "{schema}: {text}");
    true
}

#[test]
fn random_schemas_are_obeyed() {
    let server = Server::start(|_| ());
    let schemas = count("KANANA_SCHEMAS", 200);
    let (mut dice, whole) = (Dice(5), AtomicUsize::new(0));
    let schemas: Vec<Value> = (0..schemas).map(|_| dice.schema(3)).collect();
    in_threads(8, schemas.len(), |i| {
        let reply = ask(&server, &schemas[i], i, 400);
        whole.fetch_add(complete(&schemas[i], &reply).into(), Ordering::SeqCst);
    });
    let whole = whole.into_inner();
    println!("{whole} of {} answers came to an end", schemas.len());
    assert!(whole * 10 >= schemas.len() * 9, "only {whole} of {} came to an end", schemas.len());
    server.rests();
}

/// One schema for each feature of JSON Schema that is supported.
fn features() -> Vec<Value> {
    let formats = ["date", "time", "date-time", "duration", "uuid", "email", "hostname", "ipv4", "ipv6"];
    let mut features: Vec<Value> =
        formats.iter().map(|format| json!({"type": "string", "format": format})).collect();
    features.extend([
        json!({"type": "null"}),
        json!({"type": "boolean"}),
        json!({"type": "integer"}),
        json!({"type": "number", "minimum": 0, "maximum": 9}),
        json!({"type": "string"}),
        json!({"type": "array", "maxItems": 3, "items": {"type": "null"}}),
        json!({"type": ["integer", "null"]}),
        json!({"enum": ["하나", 2, null, {"drei": [3]}]}),
        json!({"const": {"나": [1, "둘"]}}),
        json!({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}},
               "required": ["b"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"],
               "additionalProperties": {"type": "boolean"}, "maxProperties": 2}),
        json!({"type": "object", "patternProperties": {"^x[0-9]$": {"type": "null"}},
               "additionalProperties": false, "maxProperties": 2}),
        json!({"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": false}),
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}),
        json!({"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]}),
        json!({"oneOf": [{"type": "null"}, {"type": "integer", "minimum": 5, "maximum": 50}]}),
        json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]}),
        json!({"$ref": "#/$defs/pair", "$defs": {"pair": {"type": "array", "items": {"$ref": "#/$defs/bit"},
               "minItems": 2, "maxItems": 2}, "bit": {"enum": [0, 1]}}}),
        json!({"$ref": "#/$defs/list", "$defs": {"list": {"anyOf": [{"type": "null"}, {"type": "object",
               "properties": {"rest": {"$ref": "#/$defs/list"}}, "required": ["rest"],
               "additionalProperties": false}]}}}),
        json!({"type": "string", "pattern": "^[가-힣]{2,4}$"}),
        json!({"type": "string", "minLength": 3, "maxLength": 5}),
        json!({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3}),
        json!({"type": "number", "exclusiveMinimum": 0, "maximum": 2.5}),
        json!({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 999}),
        json!({"title": "T", "description": "D", "default": 1, "examples": [true], "type": "boolean"}),
    ]);
    features
}

#[test]
fn every_feature_is_obeyed() {
    let server = Server::start(|_| ());
    let features = features();
    let whole: Vec<AtomicUsize> = features.iter().map(|_| AtomicUsize::new(0)).collect();
    const SEEDS: usize = 6;
    in_threads(8, features.len() * SEEDS, |i| {
        let (which, seed) = (i / SEEDS, i % SEEDS);
        let reply = ask(&server, &features[which], seed, 200);
        whole[which].fetch_add(complete(&features[which], &reply).into(), Ordering::SeqCst);
    });
    for (schema, whole) in features.iter().zip(whole) {
        assert!(whole.into_inner() > 0, "{schema}: none of {SEEDS} answers came to an end");
    }
}

#[test]
fn what_cannot_be_obeyed_is_refused_with_the_reason() {
    let server = Server::start(|_| ());
    let check = |schema: Value, reason: &str| {
        let reply = ask(&server, &schema, 0, 10);
        assert_eq!(reply.status, 400, "{schema}: {}", reply.text());
        let error = reply.json()["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(reason) && !message.contains("panic"), "{schema}: {message}");
        assert_eq!(error["type"], "invalid_request_error", "{schema}: {message}");
        assert!(error["param"] == "response_format" || message.contains("not JSON"), "{schema}: {error}");
    };
    let mut deep = json!({"type": "null"});
    (0..150).for_each(|_| deep = json!({"type": "array", "items": deep}));
    check(deep, "recursion limit"); // of the JSON reader
    check(json!(false), "nothing fits");
    check(json!([]), "object or a boolean");
    check(json!({"type": "objekt"}), "objekt");
    check(json!({"type": "array", "uniqueItems": true}), "uniqueItems");
    check(json!({"not": {"type": "null"}}), "not");
    check(json!({"if": {"type": "null"}, "then": false}), "if");
    check(json!({"type": "string", "format": "rhyme"}), "rhyme");
    check(json!({"type": "string", "pattern": "(?=a)b"}), "");
    check(json!({"type": "string", "pattern": "("}), "");
    check(json!({"type": "integer", "minimum": 5, "maximum": 4}), "");
    check(json!({"$ref": "#/$defs/nowhere"}), "");
    check(json!({"$ref": "https://example.org/schema"}), "");
    check(json!({"type": "string", "minLength": -1}), "minLength");
    check(json!({"type": "number", "multipleOf": 1e-12}), "multipleOf");
    // Longer than the hundred bytes that messages show, and cut in the middle of a character.
    for shift in 0..3 {
        check(
            json!({"type": "string", "minLength": format!("{}{}", "x".repeat(shift), "가".repeat(60))}),
            "",
        );
        check(json!({"type": format!("{}{}", "x".repeat(shift), "가".repeat(60))}), "");
    }
    server.rests();
}
