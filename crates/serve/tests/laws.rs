//! The laws of the server, bitwise: an answer does not depend on who else asks, on what was asked before, on how it is
//! sent, or on how often it had to wait. Run: `cargo test -p kanana-serve --test laws`.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::sync::{Mutex, OnceLock};

use common::{CONTEXT, Server, Setup, in_threads};
use serde_json::{Value, json};

/// A request by its path.
type Asked = (&'static str, Value);

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";

/// Prompts of awkward lengths, some with a common beginning, under all kinds of parameters.
fn requests() -> Vec<Asked> {
    let tool = json!({"type": "function", "function": {"name": "weather", "strict": true, "parameters": {
        "type": "object", "properties": {"place": {"type": "string", "maxLength": 5}}, "required": ["place"],
        "additionalProperties": false}}});
    let schema = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 6},
        "n": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4}},
        "required": ["name", "n"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "form", "schema": schema}});
    let chat = |text: String, fields: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": text}]});
        merge(&mut body, fields);
        (CHAT, body)
    };
    let go_on = |text: String, fields: Value| {
        let mut body = json!({"prompt": text});
        merge(&mut body, fields);
        (COMPLETIONS, body)
    };
    let common = "이 글은 모든 요청의 앞에 있습니다. This text stands before all of them. ".to_owned();
    let mut requests = Vec::new();
    for i in 0..4 {
        let text = format!("{common}{}", "나 ab ".repeat(i * 3));
        requests.extend([
            chat(text.clone(), json!({"temperature": 0, "max_tokens": 20 + i})),
            chat(text.clone(), json!({"temperature": 1, "seed": i, "max_tokens": 24, "n": i + 1})),
            chat(format!("안녕 {i}"), json!({"seed": 5 + i, "logprobs": true, "top_logprobs": 3})),
            chat(text.clone(), json!({"seed": i, "response_format": format, "max_tokens": 80})),
            chat(
                text.clone(),
                json!({"seed": i, "tools": [tool], "tool_choice": "required",
                "max_tokens": 90, "parallel_tool_calls": i % 2 == 0}),
            ),
            go_on(text.clone(), json!({"seed": i, "logprobs": 2, "echo": true, "max_tokens": 25})),
            go_on(
                format!("{i}"),
                json!({"seed": 7 + i, "stop": ["a", "0", "가"], "max_tokens": 60,
                "repetition_penalty": 1.2, "top_p": 0.95}),
            ),
            (RESPONSES, json!({"input": text, "seed": i, "temperature": 0.7, "max_output_tokens": 20})),
        ]);
    }
    requests
}

fn merge(into: &mut Value, fields: Value) {
    for (name, value) in fields.as_object().unwrap() {
        into[name] = value.clone();
    }
}

/// What an answer says, without what names it and without the counts.
fn said(answer: &Value) -> Value {
    let calls = |calls: &Value| -> Value {
        calls.as_array().into_iter().flatten().map(|call| call["function"].clone()).collect()
    };
    if answer["object"] == "response" {
        let item = |item: &Value| match item["type"] == "message" {
            true => item["content"][0]["text"].clone(),
            false => json!([item["name"], item["arguments"]]),
        };
        let output: Value = answer["output"].as_array().unwrap().iter().map(item).collect();
        return json!([output, answer["status"]]);
    }
    let choice = |choice: &Value| match choice.get("message") {
        Some(message) => json!({
            "text": message["content"].as_str().unwrap_or(""), "calls": calls(&message["tool_calls"]),
            "logprobs": choice["logprobs"]["content"], "finish": choice["finish_reason"],
        }),
        None => json!({
            "text": choice["text"], "logprobs": choice["logprobs"], "finish": choice["finish_reason"],
        }),
    };
    answer["choices"].as_array().unwrap().iter().map(choice).collect()
}

/// The same of events.
fn said_in_events(path: &str, events: Vec<String>) -> (Value, Value) {
    let events = events.iter().filter(|event| *event != "[DONE]");
    let events: Vec<Value> = events.map(|event| serde_json::from_str(event).unwrap()).collect();
    let last = events.last().unwrap();
    if path == RESPONSES {
        let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
        let text: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
        let whole = said(&last["response"]);
        assert_eq!(whole[0][0], text, "the pieces are not the whole");
        return (whole, last["response"]["usage"].clone());
    }
    let mut choices: Vec<Value> = Vec::new();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let index = choice["index"].as_u64().unwrap() as usize;
        if choices.len() <= index {
            choices.resize(index + 1, json!({}));
        }
        let (into, delta) = (&mut choices[index], &choice["delta"]);
        let finish = &choice["finish_reason"];
        assert!(into["finish"].is_null(), "{choice} behind the end");
        let text = if path == CHAT { &delta["content"] } else { &choice["text"] };
        let before = into["text"].as_str().unwrap_or("").to_owned();
        into["text"] = json!(before + text.as_str().unwrap_or(""));
        into["finish"] = finish.clone();
        if path == COMPLETIONS {
            join_lists(&mut into["logprobs"], &choice["logprobs"]);
            continue;
        }
        join_lists(&mut into["logprobs"], &choice["logprobs"]["content"]);
        if into["calls"].is_null() {
            into["calls"] = json!([]);
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let calls = into["calls"].as_array_mut().unwrap();
            let arguments = call["function"]["arguments"].as_str().unwrap();
            match calls.get_mut(call["index"].as_u64().unwrap() as usize) {
                None => calls.push(call["function"].clone()),
                Some(call) => {
                    let before = call["arguments"].as_str().unwrap().to_owned();
                    call["arguments"] = json!(before + arguments);
                }
            }
        }
    }
    (choices.into(), last["usage"].clone())
}

/// Appends lists, or the lists in objects.
fn join_lists(into: &mut Value, more: &Value) {
    match (into, more) {
        (into, more) if into.is_null() => *into = more.clone(),
        (Value::Array(into), Value::Array(more)) => into.extend(more.clone()),
        (Value::Object(into), Value::Object(more)) => {
            more.iter().for_each(|(name, more)| join_lists(&mut into[name], more));
        }
        _ => {}
    }
}

/// What each request gets by itself, from a server that knows no prefix, and its usage.
fn alone() -> &'static [(Value, Value)] {
    static ALONE: OnceLock<Vec<(Value, Value)>> = OnceLock::new();
    ALONE.get_or_init(|| {
        let server = Server::start(|setup| setup.engine.prefix_cache = false);
        let ask = |(path, body): Asked| {
            let answer = server.ask(path, &body);
            (said(&answer), answer["usage"].clone())
        };
        requests().into_iter().map(ask).collect()
    })
}

/// All requests at once, twice, streamed and not, to a server that `change` sets up.
fn check(what: &str, change: impl FnOnce(&mut Setup)) -> Server {
    let server = Server::start(change);
    let requests = requests();
    for round in ["first", "second"] {
        for streamed in [false, true] {
            let got = Mutex::new(vec![Value::Null; requests.len()]);
            in_threads(32, requests.len(), |i| {
                let (path, mut body) = requests[i].clone();
                let answer = match streamed {
                    false => said(&server.ask(path, &body)),
                    true => {
                        body["stream"] = json!(true);
                        said_in_events(path, server.stream(path, &body).events()).0
                    }
                };
                got.lock().unwrap()[i] = answer;
            });
            for ((got, (expected, _)), asked) in got.into_inner().unwrap().iter().zip(alone()).zip(&requests)
            {
                assert_eq!(got, expected, "{what}, {round} round, streamed: {streamed}: {asked:?}");
            }
        }
    }
    server.rests();
    server
}

#[test]
fn among_others_is_alone() {
    check("no prefix cache", |setup| setup.engine.prefix_cache = false);
}

#[test]
fn cache_hit_is_miss() {
    let server = check("prefix cache", |_| ());
    assert!(server.metric("vllm:prefix_cache_hits_total") > 0.0, "{}", server.get("/metrics").text());
}

#[test]
fn preempted_is_uninterrupted() {
    let server = check("few blocks", |setup| {
        // Room for little more than the longest request alone.
        (setup.engine.block_size, setup.engine.num_blocks) = (4, 96);
        setup.engine.max_batched_tokens = 64;
    });
    assert!(server.metric("vllm:num_preemptions_total") > 0.0, "{}", server.get("/metrics").text());
}

#[test]
fn n_answers_are_single_answers_of_the_seeds_that_follow() {
    let server = Server::start(|_| ());
    let body = |seed: i64, n: usize| {
        json!({"messages": [{"role": "user", "content": "하나 둘"}], "seed": seed, "n": n,
            "logprobs": true, "max_tokens": 30})
    };
    for first in [0, 41, -2] {
        let together = said(&server.ask(CHAT, &body(first, 4)));
        for (n, together) in together.as_array().unwrap().iter().enumerate() {
            let single = said(&server.ask(CHAT, &body(first + n as i64, 1)));
            assert_eq!(single[0], *together, "seed {first} + {n}");
        }
    }
}

#[test]
fn several_prompts_are_single_prompts() {
    let server = Server::start(|_| ());
    let body = |prompt: Value| json!({"prompt": prompt, "seed": 3, "n": 2, "logprobs": 1, "max_tokens": 12});
    let prompts = ["하나", "two two two two two two", "3"];
    let together = said(&server.ask(COMPLETIONS, &body(json!(prompts))));
    let single: Vec<Value> =
        prompts.iter().map(|prompt| said(&server.ask(COMPLETIONS, &body(json!(prompt))))).collect();
    let single: Vec<&Value> = single.iter().flat_map(|answers| answers.as_array().unwrap()).collect();
    assert_eq!(together.as_array().unwrap().iter().collect::<Vec<_>>(), single);
}

#[test]
fn usage_counts() {
    let server = Server::start(|_| ());
    for (i, (path, mut body)) in requests().into_iter().enumerate() {
        let (said, usage) = &alone()[i];
        let (prompt, written, total) = match path {
            RESPONSES => ("input_tokens", "output_tokens", "total_tokens"),
            _ => ("prompt_tokens", "completion_tokens", "total_tokens"),
        };
        if path == CHAT {
            let expected = server.ask("/tokenize", &json!({"messages": body["messages"]}));
            assert!(!body["tools"].is_null() || usage[prompt] == expected["count"], "{body}");
            if body["logprobs"] == true {
                assert_eq!(usage[written], said[0]["logprobs"].as_array().unwrap().len(), "{body}");
            }
        }
        if path == COMPLETIONS {
            let expected = server.ask("/tokenize", &json!({"prompt": body["prompt"]}));
            assert_eq!(usage[prompt], expected["count"], "{body}");
        }
        let number = |name: &str| usage[name].as_u64().unwrap();
        assert_eq!(number(total), number(prompt) + number(written), "{body}");
        assert!(number(total) <= CONTEXT as u64 * 4);
        // The counts at the end of a stream are those of the whole answer.
        body["stream"] = json!(true);
        if path != RESPONSES {
            body["stream_options"] = json!({"include_usage": true});
        }
        let events = server.stream(path, &body).events();
        if let (true, [pending @ .., _counts, _done]) = (path != RESPONSES, &events[..]) {
            assert!(pending.iter().all(|event| event.contains(r#""usage":null"#)), "{body}");
        }
        let (_, streamed) = said_in_events(path, events);
        for name in [prompt, written, total] {
            assert_eq!(streamed[name], usage[name], "{body}");
        }
    }
}

#[test]
fn cached_tokens_are_reported() {
    let server = Server::start(|_| ());
    let body = json!({"prompt": "x".repeat(100), "seed": 1});
    let cached = |body: &Value| {
        let usage = server.ask(COMPLETIONS, body)["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(&body), 0);
    assert_eq!(cached(&body), 96, "six whole blocks of the 101 tokens");
    let both = json!({"prompt": ["y".repeat(50), "x".repeat(100)], "seed": 1});
    assert_eq!(cached(&both), 96, "the first is new, the second is not");
}

/// However many ask for the figures at once.
#[test]
fn counters_count_once() {
    let server = Server::start(|_| ());
    let body = json!({"prompt": "x".repeat(100), "seed": 1, "ignore_eos": true});
    (0..2).for_each(|_| drop(server.ask(COMPLETIONS, &body)));
    in_threads(32, 64, |_| assert!(server.metric("vllm:prefix_cache_hits_total") == 96.0));
    assert_eq!(server.metric("vllm:prefix_cache_queries_total"), 202.0);
    assert_eq!(server.metric("vllm:generation_tokens_total"), 32.0);
    assert_eq!(server.metric("vllm:prompt_tokens_total"), 202.0);
}
