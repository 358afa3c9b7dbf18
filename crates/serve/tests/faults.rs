//! What clients do wrong harms nobody else: those that vanish, those that send rubbish, and those that are slow.
//! `KANANA_MUTATIONS` says how many damaged requests are tried. Run: `cargo test -p kanana-serve --test faults`.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::dice::Dice;
use common::http::{Reply, Stream, post, request};
use common::{Server, count, in_threads};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// A long answer.
fn long(seed: usize) -> Value {
    json!({"messages": [{"role": "user", "content": "긴 이야기"}], "seed": seed, "max_tokens": 400,
           "ignore_eos": true, "stream": true})
}

/// The text of a stream.
fn text(stream: Stream) -> String {
    let events = stream.events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunk = |event: &String| serde_json::from_str::<Value>(event).ok();
    let text = |chunk: Value| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned();
    events.iter().filter_map(chunk).map(text).collect()
}

/// Streams run, one after the other, while `work` is done; each says what it says when nothing else happens.
fn undisturbed(server: &Server, work: impl FnOnce() + Send) {
    let expected = text(server.stream(CHAT, &long(1)));
    assert!(expected.len() > 300, "{expected}");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                assert_eq!(text(server.stream(CHAT, &long(1))), expected);
            }
        });
        let work = scope.spawn(work);
        let worked = work.join();
        done.store(true, Ordering::SeqCst);
        watch.join().unwrap();
        worked.unwrap();
    });
    server.rests();
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let server = Server::start(|_| ());
    undisturbed(&server, || {
        in_threads(16, 200, |i| {
            let mut body = long(100 + i);
            body["n"] = json!(1 + i % 3);
            body["stream"] = json!(i % 4 != 0);
            let mut socket = server.connect();
            socket.write_all(&post(CHAT, body.to_string().as_bytes())).unwrap();
            if i % 4 == 0 {
                std::thread::sleep(Duration::from_millis(i as u64 % 40)); // in the middle of a whole answer
            } else {
                let mut begun = vec![0; 300 + 37 * i];
                drop(BufReader::new(&socket).read_exact(&mut begun));
            }
            // Unread data makes the system send a reset; without any the end is an orderly one.
            socket.shutdown(if i % 2 == 0 { Shutdown::Both } else { Shutdown::Write }).ok();
        });
    });
    assert!(server.metric("kanana:request_aborted_total") > 100.0, "{}", server.get("/metrics").text());
}

#[test]
fn a_client_that_does_not_read_keeps_nobody_out() {
    let server = Server::start(|setup| setup.serve.capacity.requests = 8);
    // More than the buffers of the system hold.
    let mut body = long(1);
    (body["n"], body["logprobs"], body["top_logprobs"]) = (json!(8), json!(true), json!(20));
    let mut lazy = server.stream(CHAT, &body);
    (0..20).for_each(|_| drop(lazy.event().unwrap()));
    server.rests();
    server.ask(CHAT, &json!({"messages": [{"role": "user", "content": "x"}], "n": 8}));
    assert_eq!(lazy.events().last().unwrap(), "[DONE]", "and what it was promised is there");
}

/// What a client that only half closes says: it has sent everything, and reads on.
#[test]
fn a_client_that_closes_its_half_is_answered() {
    let server = Server::start(|_| ());
    let mut socket = server.connect();
    let body = json!({"prompt": "ab", "max_tokens": 3}).to_string();
    socket.write_all(&post("/v1/completions", body.as_bytes())).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    if let Ok(reply) = Reply::read(&mut BufReader::new(socket)) {
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    server.rests();
}

#[test]
fn rubbish_is_refused_with_the_right_status() {
    let server = Server::start(|setup| {
        setup.serve.app.max_body = 10_000;
        setup.serve.app.body_timeout = Duration::from_millis(500);
        setup.serve.idle_timeout = Duration::from_millis(1500);
    });
    let sent = |bytes: &[u8], status: u16| {
        let reply = server.exchange(bytes);
        assert_eq!(reply.status, status, "{:?}: {}", String::from_utf8_lossy(bytes), reply.text());
        if reply.status < 500 && !reply.body.is_empty() {
            let error = reply.json()["error"].clone();
            assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        }
    };
    undisturbed(&server, || {
        sent(&post(CHAT, b"{"), 400);
        sent(&post(CHAT, b"\xff\xfe\x00"), 400);
        sent(&post(CHAT, "[".repeat(9000).as_bytes()), 400);
        sent(&post(CHAT, b""), 400);
        sent(&post("/v1/nothing", b"{}"), 404);
        sent(&request("DELETE", CHAT, &[("connection", "close")], b""), 405);
        sent(b"GET / HTTP/9.9\r\n\r\n", 400);
        sent(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400);
        sent(&post(CHAT, format!("{{\"messages\": [\"{}\"]}}", "x".repeat(20_000)).as_bytes()), 413);
        let huge = [("content-length", "1000000000000"), ("connection", "close")];
        sent(&request("POST", CHAT, &huge, b""), 413);
        let chunked = [("transfer-encoding", "chunked"), ("connection", "close")];
        let chunk = format!("4000\r\n{}\r\n0\r\n\r\n", "y".repeat(0x4000));
        sent(&[request("POST", CHAT, &chunked, b""), chunk.into_bytes()].concat(), 413);
        let broken = [request("POST", CHAT, &chunked, b""), b"zz\r\n".to_vec()].concat();
        sent(&broken, 400);
        let both = [("transfer-encoding", "chunked"), ("connection", "close")];
        let smuggled =
            [request("POST", CHAT, &both, b"0\r\n\r\n"), b"GET /metrics HTTP/1.1\r\n\r\n".to_vec()];
        assert!(server.exchange(&smuggled.concat()).status >= 400);
        let long_header = "x".repeat(600_000);
        sent(&request("GET", "/health", &[("x-long", &long_header), ("connection", "close")], b""), 431);
        sent(&request("GET", "/v1/models/%ff%00", &[("connection", "close")], b""), 400);
        sent(&request("GET", "/v1/models/%00", &[("connection", "close")], b""), 404);
    });
}

/// What is wrong with a request is its status, not an event of a stream that has begun.
#[test]
fn streams_that_cannot_be_are_refused_before_they_begin() {
    let server = Server::start(|_| ());
    let check = |field: &str, value: Value, param: &str| {
        for (path, mut body) in [
            (CHAT, json!({"messages": [{"role": "user", "content": "x"}]})),
            ("/v1/completions", json!({"prompt": "x"})),
        ] {
            body["stream"] = json!(true);
            body["max_tokens"] = json!(5);
            body[field] = value.clone();
            let reply = server.post(path, &body);
            assert_eq!(reply.status, 400, "{path} {body}: {}", reply.text());
            assert_eq!(reply.json()["error"]["param"], param, "{path} {body}");
        }
    };
    check("logit_bias", json!({"99999": 1}), "logit_bias");
    check("stop_token_ids", json!([280]), "stop_token_ids");
    check("min_tokens", json!(6), "min_tokens");
    check("repetition_penalty", json!(0), "repetition_penalty");
    check("max_tokens", json!(5000), "max_tokens");
    check("guided_regex", json!("("), "guided_regex");
    check("guided_grammar", json!("start: nowhere"), "guided_grammar");
    check("guided_choice", json!([]), "guided_choice");
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(600)}], "stream": true});
    let reply = server.post(CHAT, &long);
    let code = reply.json()["error"]["code"].clone();
    assert_eq!((reply.status, code), (400, json!("context_length_exceeded")), "{}", reply.text());
}

#[test]
fn slow_clients_are_given_up() {
    let server = Server::start(|setup| {
        setup.serve.app.body_timeout = Duration::from_millis(700);
        setup.serve.idle_timeout = Duration::from_millis(1500);
    });
    undisturbed(&server, || {
        let whole = post(CHAT, long(3).to_string().as_bytes());
        let head = whole.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        // One byte a second, until nobody listens.
        let mut socket = server.connect();
        let mut writer = socket.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (begin, rest) = whole.split_at(head);
                writer.write_all(begin).unwrap();
                for byte in &rest[..5] {
                    if writer.write_all(&[*byte]).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
            assert_eq!(Reply::read(&mut BufReader::new(&mut socket)).unwrap().status, 408);
        });
        let nothing_comes = |bytes: &[u8], expected: Option<u16>| {
            let mut socket = server.connect();
            socket.write_all(bytes).unwrap();
            let reply = Reply::read(&mut BufReader::new(socket));
            assert_eq!(reply.ok().map(|reply| reply.status), expected, "{}", String::from_utf8_lossy(bytes));
        };
        nothing_comes(b"", None);
        nothing_comes(&whole[..20], None);
        nothing_comes(&whole[..head], Some(408));
        nothing_comes(&whole[..whole.len() - 1], Some(408));
    });
}

#[test]
fn truncated_requests_are_forgotten() {
    let server = Server::start(|_| ());
    let whole = post(CHAT, long(3).to_string().as_bytes());
    undisturbed(&server, || {
        in_threads(8, whole.len(), |end| {
            let mut socket = server.connect();
            socket.write_all(&whole[..end]).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            if let Ok(reply) = Reply::read(&mut BufReader::new(socket)) {
                assert_eq!(reply.status, 400, "{end}: {}", reply.text());
            }
        });
    });
}

/// A request of every path that takes a body, with most of the fields there are.
fn valid() -> Vec<(&'static str, Value)> {
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "strict": true,
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}});
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}});
    let turns = json!([{"role": "system", "content": "짧게"}, {"role": "user", "content": [{"type": "text",
        "text": "안녕"}]}, {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
        "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}, {"role": "tool", "tool_call_id": "call_1",
        "content": "2"}]);
    vec![
        (
            CHAT,
            json!({"messages": turns, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
            "min_p": 0.01, "seed": 1, "n": 2, "stop": ["x", "끝"], "logprobs": true, "top_logprobs": 2, "user": "u",
            "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"65": 1.5}, "store": false}),
        ),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": "날씨"}], "tools": [tool], "max_tokens": 8,
            "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": false,
            "stream": true, "stream_options": {"include_usage": true}}),
        ),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": "json"}], "max_tokens": 8,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": true,
            "schema": schema}}, "chat_template_kwargs": {"date": "오늘"}, "continue_final_message": false}),
        ),
        (
            "/v1/completions",
            json!({"prompt": ["ab", "가나"], "max_tokens": 4, "echo": true, "logprobs": 2,
            "best_of": 2, "n": 1, "stop": "\n", "min_tokens": 1, "repetition_penalty": 1.1}),
        ),
        (
            "/v1/completions",
            json!({"prompt": [[65, 66], [67]], "max_tokens": 4, "guided_regex": "[ab]{1,5}",
            "stream": true, "stop_token_ids": [68], "ignore_eos": true, "include_stop_str_in_output": true}),
        ),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": 4, "guided_choice": ["yes", "아니오"]})),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": 4, "guided_grammar": "start: /[ab]/ \"c\""})),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": 4, "guided_json": schema})),
        (
            "/v1/responses",
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "안녕"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "3"}], "instructions": "짧게",
            "max_output_tokens": 5, "text": {"format": {"type": "json_schema", "name": "s", "schema": schema}},
            "metadata": {"k": "v"}, "stream": true, "truncation": "disabled"}),
        ),
        (
            "/v1/responses",
            json!({"input": "hi", "max_output_tokens": 5, "tools": [{"type": "function", "name": "f",
            "parameters": {"type": "object"}}], "tool_choice": "auto", "reasoning": {"effort": "none"}}),
        ),
        (
            "/v1/embeddings",
            json!({"input": ["하나", "two"], "encoding_format": "base64", "dimensions": 8,
            "instruction": "find", "normalize": true}),
        ),
        ("/v1/embeddings", json!({"input": [[65, 66], [67]], "encoding_format": "float"})),
        ("/tokenize", json!({"messages": turns, "tools": [tool], "return_token_strs": true})),
        ("/tokenize", json!({"prompt": "가나다 <|eot_id|>", "add_special_tokens": false})),
        ("/detokenize", json!({"tokens": [65, 66, 200, 274]})),
    ]
}

/// All places in a value, as the ways there.
fn places(value: &Value, here: String, all: &mut Vec<String>) {
    let step = |name: &str| format!("{here}/{}", name.replace('~', "~0").replace('/', "~1"));
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| places(value, step(name), all)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| places(value, step(&i.to_string()), all));
        }
        _ => {}
    }
    all.push(here);
}

/// Changes the structure of a request.
fn bend(dice: &mut Dice, body: &mut Value) {
    let mut all = Vec::new();
    places(body, String::new(), &mut all);
    let strange = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1e308),
        json!(-0.0),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(4_294_967_296u64),
        json!(0.1),
        json!(""),
        json!("\u{0}"),
        json!("\u{10ffff}가"),
        json!("x".repeat(3000)),
        json!([]),
        json!({}),
        json!([[]]),
        json!([null]),
        json!({"": null}),
        json!([1, "a", {}]),
        json!({"type": 3}),
        json!("{{ 1/0 }}"),
        json!("<|eot_id|>"),
        json!(279),
        json!(280),
        json!("auto"),
        json!("required"),
        json!([0.5]),
        json!("(a*)*b"),
        json!({"$ref": "#"}),
        json!(128),
        json!(512),
        json!("a{0,999999}"),
    ];
    let place = dice.pick(&all).clone();
    let other = body.pointer(dice.pick::<String>(&all)).unwrap().clone();
    let (parent, name) = place.rsplit_once('/').map_or(("", ""), |pair| pair);
    match dice.roll(6) {
        0 | 1 => *body.pointer_mut(&place).unwrap() = dice.pick(&strange).clone(),
        2 => *body.pointer_mut(&place).unwrap() = other,
        3 => match body.pointer_mut(parent) {
            Some(Value::Object(map)) => drop(map.remove(name)),
            Some(Value::Array(list)) => drop(list.pop()),
            _ => {}
        },
        4 => match body.pointer_mut(&place) {
            Some(Value::Object(map)) => {
                drop(map.insert((*dice.pick(&["type", "x", "", "name"])).into(), other))
            }
            Some(Value::Array(list)) => list.extend(std::iter::repeat_n(other, 1 + dice.roll(40))),
            Some(Value::String(text)) => *text = text.repeat(dice.roll(9)),
            _ => {}
        },
        _ => {
            let wrapped = body.pointer_mut(&place).unwrap();
            *wrapped = if dice.roll(2) == 0 { json!([wrapped]) } else { json!({"type": wrapped}) };
        }
    }
}

/// Changes bytes.
fn break_bytes(dice: &mut Dice, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let at = dice.roll(bytes.len());
    match dice.roll(5) {
        0 => bytes[at] ^= 1 << dice.roll(8),
        1 => bytes.insert(at, *dice.pick(b"\"{}[],:0-e\\\x00\xff\n ")),
        2 => drop(bytes.remove(at)),
        3 => bytes.truncate(at),
        _ => {
            let end = (at + dice.roll(30)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            bytes.splice(at..at, copy);
        }
    }
}

#[test]
fn mutated_requests_never_break_the_server() {
    let server = Server::start(|setup| setup.serve.app.request_timeout = Duration::from_secs(30));
    for (path, body) in valid() {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text());
    }
    let (valid, mutations) = (valid(), count("KANANA_MUTATIONS", 1000));
    let (seen, slowest) = (Mutex::new(std::collections::BTreeMap::new()), Mutex::new(Duration::ZERO));
    in_threads(8, mutations, |i| {
        let mut dice = Dice(i as u64);
        (0..3).for_each(|_| _ = dice.roll(2)); // seeds that are close begin alike
        let (path, mut body) = dice.pick(&valid).clone();
        let bends = *dice.pick(&[0, 1, 1, 1, 1, 2, 3]);
        (0..bends).for_each(|_| bend(&mut dice, &mut body));
        let mut bytes = body.to_string().into_bytes();
        let breaks = if bends == 0 { 1 + dice.roll(4) } else { dice.roll(5) / 4 };
        (0..breaks).for_each(|_| break_bytes(&mut dice, &mut bytes));
        let begun = Instant::now();
        let reply = server.exchange(&post(path, &bytes));
        let said = String::from_utf8_lossy(&bytes).into_owned();
        assert!(reply.status < 500, "mutation {i}: {path} {said}: {} {}", reply.status, reply.text());
        let failed = reply.text().contains("server_error");
        assert!(!failed, "mutation {i}: {path} {said}: {}", reply.text());
        if reply.status >= 400 {
            let error = reply.json()["error"].clone();
            assert!(
                error["message"].as_str().is_some_and(|m| m.len() > 5),
                "mutation {i}: {path} {said}: {error}"
            );
        }
        *seen.lock().unwrap().entry(reply.status).or_insert(0) += 1;
        let mut slowest = slowest.lock().unwrap();
        *slowest = slowest.max(begun.elapsed());
    });
    println!(
        "{mutations} mutations: {:?}, the slowest took {:?}",
        seen.lock().unwrap(),
        slowest.lock().unwrap()
    );
    server.rests();
    let answer = server.ask(CHAT, &json!({"messages": [{"role": "user", "content": "또"}]}));
    assert_eq!(answer["object"], "chat.completion");
}
