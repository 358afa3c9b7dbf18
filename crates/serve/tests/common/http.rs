//! As much of an HTTP/1.1 client as the tests need, on bare sockets: it sends what no decent client would.

use std::io::{self, BufRead, BufReader, Read};
use std::net::TcpStream;

use serde_json::Value;

/// The bytes of a request.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// A JSON body for a path, on a connection that ends with the answer.
pub fn post(path: &str, body: &[u8]) -> Vec<u8> {
    request("POST", path, &[("content-type", "application/json"), ("connection", "close")], body)
}

/// What the server says to a request.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// Errors: the connection ends or waits too long.
    pub fn read(from: &mut impl BufRead) -> io::Result<Reply> {
        let mut reply = Reply::head(from)?;
        let length = reply.header("content-length").map(|length| length.parse().unwrap());
        match (length, reply.header("transfer-encoding")) {
            (Some(length), _) => {
                reply.body = vec![0; length];
                from.read_exact(&mut reply.body)?;
            }
            (None, Some("chunked")) => {
                let mut body = Vec::new();
                Chunked::new(from).read_to_end(&mut body)?;
                reply.body = body;
            }
            _ => {}
        }
        Ok(reply)
    }

    fn head(from: &mut impl BufRead) -> io::Result<Reply> {
        let first = line(from)?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status: {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = line(from)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Reply { status, headers, body: Vec::new() })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    match from.read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}

/// A body that comes in chunks.
struct Chunked<R> {
    from: R,
    left: usize,
    ended: bool,
}

impl<R: BufRead> Chunked<R> {
    fn new(from: R) -> Self {
        Chunked { from, left: 0, ended: false }
    }
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let size = line(&mut self.from)?;
            self.left = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
            self.ended = self.left == 0;
            if self.ended {
                line(&mut self.from)?;
            }
        }
        let most = into.len().min(self.left);
        let read = self.from.read(&mut into[..most])?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        if self.left == 0 && !self.ended {
            line(&mut self.from)?;
        }
        Ok(read)
    }
}

/// Server-sent events as they come: what stands behind `data:`.
pub struct Stream {
    body: BufReader<Chunked<BufReader<TcpStream>>>,
    socket: TcpStream,
}

impl Stream {
    /// Reads the head of a reply, which must be one that streams.
    #[track_caller]
    pub fn begin(socket: TcpStream) -> Stream {
        let mut from = BufReader::new(socket.try_clone().unwrap());
        let head = Reply::head(&mut from).unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        Stream { body: BufReader::new(Chunked::new(from)), socket }
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The next event; None at the end.
    ///
    /// Errors: the stream is cut, or waits too long.
    pub fn event(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.body.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Ok(Some(data.trim_end().to_owned()));
            }
        }
    }

    /// All events to the end.
    #[track_caller]
    pub fn events(mut self) -> Vec<String> {
        std::iter::from_fn(|| self.event().unwrap()).collect()
    }
}
