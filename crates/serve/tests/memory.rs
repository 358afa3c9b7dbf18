//! Memory does not grow with the number of requests. Alone in its file, so that nothing else runs in the process.
//! `KANANA_REQUESTS` says how many are made. Run: `cargo test -p kanana-serve --test memory`.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::io::Write;

use common::http::post;
use common::{Server, count, in_threads};
use serde_json::json;

/// Requests after which everything is as large as it gets.
const WARM_UP: usize = 400;

/// What may be allocated and not given back, and what allocators hold besides. Units: bytes.
const GROWTH: usize = 8 << 20;

/// Memory of this process. Units: bytes; None where the system does not tell.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? << 10)
}

/// One request of many kinds, some of them wrong, some given up.
fn ask(server: &Server, i: usize) {
    let chat = "/v1/chat/completions";
    let message = json!([{"role": "user", "content": format!("{i} {}", "말 ".repeat(i % 50))}]);
    match i % 8 {
        0 => {
            drop(server.ask(chat, &json!({"messages": message, "logprobs": true, "top_logprobs": 5, "n": 2})))
        }
        1 => drop(server.stream(chat, &json!({"messages": message, "stream": true})).events()),
        2 => {
            drop(server.ask(
                "/v1/completions",
                &json!({"prompt": format!("{i}"), "guided_regex": format!("{i}[ab]+")}),
            ))
        }
        3 => drop(server.ask("/v1/embeddings", &json!({"input": [format!("{i}"), "x"]}))),
        4 => {
            let schema = json!({"type": "object", "properties": {(format!("k{i}")): {"type": "integer"}}});
            let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
            drop(server.ask(chat, &json!({"messages": message, "response_format": format})));
        }
        5 => assert_eq!(
            server.post(chat, &json!({"messages": message, "n": 0, (format!("f{i}")): i})).status,
            400
        ),
        6 => assert_eq!(server.get(&format!("/nothing/{i}")).status, 404),
        _ => {
            let body =
                json!({"messages": message, "stream": true, "max_tokens": 100, "user": format!("{i}")});
            server.connect().write_all(&post(chat, body.to_string().as_bytes())).unwrap();
        }
    }
}

#[test]
fn memory_does_not_grow() {
    let server = Server::start(|_| ());
    in_threads(8, WARM_UP, |i| ask(&server, i));
    server.rests();
    let Some(before) = resident() else {
        println!("skipped: the system does not tell how much memory a process has");
        return;
    };
    let requests = count("KANANA_REQUESTS", 2000);
    in_threads(8, requests, |i| ask(&server, WARM_UP + i));
    server.rests();
    let after = resident().unwrap();
    println!("{requests} requests: {} KiB before, {} KiB after", before >> 10, after >> 10);
    assert!(after < before + GROWTH, "{requests} requests: {before} bytes before, {after} after");
    assert!(server.get("/metrics").body.len() < 100_000, "labels that clients choose");
}
