//! Queues, times, keys, certificates and the end: what the server does at its limits.
//! Run: `cargo test -p kanana-serve --test limits`.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::http::{Reply, request};
use common::{PATIENCE, Server, in_threads};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

const CHAT: &str = "/v1/chat/completions";

/// An answer of so many tokens.
fn body(max_tokens: usize) -> Value {
    json!({"messages": [{"role": "user", "content": "말"}], "seed": 1, "ignore_eos": true, "max_tokens": max_tokens})
}

fn streamed(max_tokens: usize) -> Value {
    let mut body = body(max_tokens);
    body["stream"] = json!(true);
    body
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let server = Server::start(|setup| setup.serve.capacity.requests = 2);
    let mut streams: Vec<_> = (0..2).map(|_| server.stream(CHAT, &streamed(480))).collect();
    streams.iter_mut().for_each(|stream| drop(stream.event().unwrap()));
    for refused in [body(1), streamed(1)] {
        let reply = server.post(CHAT, &refused);
        assert_eq!(reply.status, 429, "{}", reply.text());
        let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait));
        assert_eq!(reply.json()["error"]["code"], "rate_limit_exceeded");
    }
    // One request for more than there can ever be is another matter: waiting does not help.
    let mut never = body(1);
    never["n"] = json!(3);
    assert_eq!(server.post(CHAT, &never).json()["error"]["param"], "n");
    drop(streams);
    server.rests();
    in_threads(2, 8, |_| drop(server.ask(CHAT, &body(2))));
    server.rests();
}

#[test]
fn an_answer_that_takes_too_long_is_cut() {
    // A queue that does not move: the engine runs one at a time.
    let server = Server::start(|setup| {
        setup.engine.max_sequences = 1;
        setup.serve.app.request_timeout = Duration::from_millis(1);
    });
    let reply = server.post(CHAT, &body(480));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (504, &json!("timeout")), "{}", reply.text());
    let events = server.stream(CHAT, &streamed(480)).events();
    let error: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!((&error["error"]["code"], events.last().unwrap().as_str()), (&json!("timeout"), "[DONE]"));
    server.rests();
}

#[test]
fn a_stream_may_end_when_the_server_is_told_to() {
    let mut server = Server::start(|_| ());
    let expected = server.stream(CHAT, &streamed(300)).events().len();
    let mut stream = server.stream(CHAT, &streamed(300));
    stream.event().unwrap().unwrap();
    let mut idle = server.connect();
    server.stop();
    let mut events = 1;
    while let Some(event) = stream.event().unwrap() {
        events += 1;
        assert!(!event.contains("\"error\""), "{event}");
    }
    // Random pieces of characters join differently only if the text does.
    assert_eq!(events, expected);
    server.join();
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0, "a connection without a request is closed");
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn the_grace_ends() {
    let mut server = Server::start(|setup| setup.serve.grace = Duration::from_millis(100));
    let stuck = server.connect();
    (&stuck).write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").unwrap();
    // So that the request is there before the end is.
    assert_eq!(server.get("/ready").status, 200);
    let begun = Instant::now();
    server.stop();
    server.join();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(Reply::read(&mut BufReader::new(stuck)).is_err());
}

#[test]
fn only_keys_open() {
    let server = Server::start(|setup| setup.serve.api_keys = vec!["열쇠-1".to_owned(), "key-2".to_owned()]);
    let get = |path: &str, value: &str| {
        let headers = [("authorization", value), ("connection", "close")];
        server.exchange(&request("GET", path, &headers, b""))
    };
    let closed = ["/v1/models", "/v1/models/tiny", "/metrics"];
    for path in closed {
        assert_eq!(get(path, "Bearer key-2").status / 100, if path == "/v1/models/tiny" { 4 } else { 2 });
        for wrong in
            ["Bearer key-3", "Bearer key-", "Bearer key-22", "bearer", "", "Bearer \u{ff}", "Basic a2V5LTI="]
        {
            let reply = get(path, wrong);
            assert_eq!(reply.status, 401, "{path} {wrong:?}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
        }
    }
    for path in [CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"] {
        // The key is asked for before the body is looked at.
        assert_eq!(server.post(path, &json!("?")).status, 401, "{path}");
    }
    for path in ["/", "/health", "/ready", "/version", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn pages_of_known_origins_may_ask() {
    let origin = "https://example.org";
    let check = |server: &Server, origin: &str, allowed: Option<&str>| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
            ("connection", "close"),
        ];
        let preflight = server.exchange(&request("OPTIONS", CHAT, &headers, b""));
        let get = server.exchange(&request(
            "GET",
            "/v1/models",
            &[("origin", origin), ("connection", "close")],
            b"",
        ));
        for reply in [&preflight, &get] {
            assert_eq!(reply.header("access-control-allow-origin"), allowed, "{origin}: {reply:?}");
        }
        assert_eq!(preflight.status, 200);
        // The wildcard does not cover `authorization`: Fetch wants that header by its name.
        let headers = preflight.header("access-control-allow-headers").unwrap_or_default().to_lowercase();
        assert!(allowed.is_none() || headers.contains("authorization"), "{headers}");
    };
    let server = Server::start(|setup| setup.serve.app.cors_origins = vec![origin.to_owned()]);
    check(&server, origin, Some(origin));
    check(&server, "https://example.com", None);
    check(&Server::start(|_| ()), origin, None);
    check(&Server::start(|setup| setup.serve.app.cors_origins = vec!["*".to_owned()]), origin, Some("*"));
    // A key is asked for behind the preflight, which carries none.
    let locked = Server::start(|setup| {
        setup.serve.api_keys = vec!["k".to_owned()];
        setup.serve.app.cors_origins = vec![origin.to_owned()];
    });
    let headers = [("origin", origin), ("connection", "close")];
    let reply = locked.exchange(&request("GET", "/v1/models", &headers, b""));
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (401, Some(origin)));
}

#[test]
fn tls_is_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let config = dir.path().join("openssl.cnf");
    let text = "[req]\ndistinguished_name = dn\nx509_extensions = ext\nprompt = no\n[dn]\nCN = localhost\n\
                [ext]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = DNS:localhost\n";
    std::fs::write(&config, text).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
        .arg("-config")
        .arg(&config)
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        println!("skipped: no openssl");
        return;
    }
    let server = Server::start(|setup| {
        setup.serve.tls = Some((cert.clone(), key));
        setup.serve.idle_timeout = Duration::from_secs(1);
    });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&cert).unwrap()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut tls = StreamOwned::new(session, server.connect());
    let health = request("GET", "/health", &[], b"");
    let ask = request("POST", CHAT, &[("content-type", "application/json")], body(5).to_string().as_bytes());
    tls.write_all(&[health, ask].concat()).unwrap();
    let mut replies = BufReader::new(tls);
    assert_eq!(Reply::read(&mut replies).unwrap().status, 200);
    assert_eq!(Reply::read(&mut replies).unwrap().json()["usage"]["completion_tokens"], 5);
    // Who does not speak TLS gets no answer, and harms nobody.
    let mut plain = server.connect();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(&request("GET", "/health", &[], b"")).unwrap();
    assert!(Reply::read(&mut BufReader::new(plain)).is_err());
}

#[test]
fn connections_are_reused_and_more_of_them_wait() {
    let server = Server::start(|setup| setup.serve.max_connections = 2);
    let health = request("GET", "/health", &[], b"");
    let kept: Vec<TcpStream> = (0..2).map(|_| server.connect()).collect();
    for _ in 0..3 {
        for mut stream in &kept {
            stream.write_all(&health).unwrap();
            assert_eq!(Reply::read(&mut BufReader::new(stream)).unwrap().status, 200);
        }
    }
    let mut third = server.connect();
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    third.write_all(&health).unwrap();
    assert!(third.read(&mut [0]).is_err(), "a third connection is not served");
    drop(kept);
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(Reply::read(&mut BufReader::new(third)).unwrap().status, 200);
}
