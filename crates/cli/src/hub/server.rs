//! A Hub of one repository on this machine, for tests: it keeps every request, and misbehaves when told to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::digest::Digest;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>, // lower-case names
}

/// What to answer; the body is sent up to `cut`, if any, and the connection closed.
#[derive(Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub cut: Option<usize>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Reply { status, ..Reply::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// A server that answers until it is dropped.
pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, stop) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::<AtomicBool>::default());
        let (seen, stopped) = (requests.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away is none of the server's business.
                let _ = serve(stream, &answer, &seen);
            }
        });
        Server { url, requests, stop, thread: Some(thread) }
    }

    /// The requests so far of this method whose path ends so.
    pub fn requests(&self, method: &str, end: &str) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|r| r.method == method && r.path.ends_with(end)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &impl Fn(&Request) -> Reply,
    seen: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut headers = BTreeMap::new();
    for line in reader.lines() {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = Request { method, path, headers };
    seen.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    write!(stream, "HTTP/1.1 {} .\r\nConnection: close\r\n", reply.status)?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    if !reply.headers.iter().any(|(name, _)| name == "Content-Length") {
        write!(stream, "Content-Length: {}\r\n", reply.body.len())?;
    }
    stream.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
    }
    stream.flush()
}

/// The files of a repository.
pub type Files = BTreeMap<String, Vec<u8>>;

/// How the Hub names a file: by SHA-256 if large, which is every safetensors file here, by git's object id if small.
pub fn etag(name: &str, data: &[u8]) -> String {
    let like = "0".repeat(if name.ends_with(".safetensors") { 64 } else { 40 });
    let mut digest = Digest::for_etag(&like, Some(data.len() as u64));
    digest.update(data);
    digest.finish().unwrap()
}

/// Answers as the Hub does for a repository of these files, ranges included.
pub fn hub_of(files: &Files, request: &Request) -> Reply {
    if request.path.starts_with("/api/") {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes();
        return Reply { body, ..Reply::status(200) };
    }
    let name = request.path.split_once(&format!("/resolve/{COMMIT}/")).map(|(_, name)| name);
    let Some((name, data)) = name.and_then(|name| files.get_key_value(name)) else {
        return Reply::status(404).with("X-Error-Code", "EntryNotFound");
    };
    let range =
        request.headers.get("range").map(|range| range["bytes=".len()..range.len() - 1].parse().unwrap());
    let start: usize = range.unwrap_or(0);
    let reply = match range {
        Some(_) => Reply::status(206).with("Content-Range", format!("bytes {start}-{}/{0}", data.len())),
        None => Reply::status(200),
    };
    let reply = match name.ends_with(".safetensors") {
        true => reply.with("X-Linked-Etag", format!("{:?}", etag(name, data))).with("ETag", "\"pointer\""),
        false => reply.with("ETag", format!("W/{:?}", etag(name, data))),
    };
    let reply = reply.with("X-Repo-Commit", COMMIT).with("Content-Length", data.len() - start);
    Reply { body: data[start..].to_vec(), ..reply }
}
