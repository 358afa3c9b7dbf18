//! A server that speaks OpenAI's protocol, and completions streamed from it with the time of every piece. Knows nothing
//! of what is measured.

use std::fmt::{self, Display};
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::config::Config;
use ureq::http::{Request, Response, Uri, header};
use ureq::{Agent, Body};

use crate::hints::{failure, failure_of};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A server under load may let a request wait for minutes.
const READ_TIMEOUT: Duration = Duration::from_secs(600);
/// Of a body that is no completion: a list of models, an error.
const MAX_BODY_BYTES: u64 = 4 << 20;
/// Of one line of a stream.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Of an answer that is not understood.
const SHOWN_CHARS: usize = 300;

const NOT_OPENAI: &str = "give the address of a server such as `kanana serve` or llama-server: http://HOST:PORT, \
                          whose /v1/models lists its models";

/// A server that is there, and the model that it is asked for.
pub struct Server {
    pub url: String, // without /v1
    pub model: String,
    key: Option<String>,
    config: Config,
}

/// One client's connection to a server: requests after the first find it open.
pub struct Connection<'a> {
    server: &'a Server,
    agent: Agent,
}

/// A completion as it came in.
#[derive(Debug)]
pub struct Answer {
    /// When the request was sent.
    pub started: Instant,
    /// When each piece of the answer arrived: a token, or several whose text cannot be told apart.
    pub pieces: Vec<Instant>,
    /// Tokens read and written, if the server counts them.
    pub usage: Option<Usage>,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    #[serde(default)]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// What of a prompt was in a cache.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct PromptTokensDetails {
    #[serde(default)]
    pub cached_tokens: Option<usize>,
}

/// A status other than success.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    message: String,
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}: {}", self.status, self.message)
    }
}

impl std::error::Error for Refusal {}

/// What `/v1/models` says.
#[derive(Deserialize)]
struct Models {
    data: Vec<Card>,
}

#[derive(Deserialize)]
struct Card {
    id: String,
}

/// An event of a stream.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    #[serde(default)]
    finish_reason: Option<String>,
}

impl Answer {
    /// Time to the first token. Units: seconds.
    pub fn ttft_s(&self) -> f64 {
        self.pieces.first().map_or(0.0, |&first| (first - self.started).as_secs_f64())
    }

    /// Times between two pieces. Units: seconds.
    pub fn gaps_s(&self) -> impl Iterator<Item = f64> {
        self.pieces.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64())
    }
}

impl Server {
    /// Finds a server and the model that it is asked for: the first one that it lists, where none is named.
    ///
    /// Errors: no address, nobody there, no OpenAI server, a wrong key, an unknown model.
    pub fn find(url: &str, key: Option<&str>, model: Option<&str>) -> Result<Self> {
        let url = base(url)?;
        // A benchmark through a proxy would measure the proxy.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .user_agent(concat!("kanana/", env!("CARGO_PKG_VERSION")))
            .build();
        let mut server = Server { url, model: String::new(), key: key.map(str::to_owned), config };
        let mut known = server.connect().models()?;
        server.model = match model {
            None => known.swap_remove(0),
            Some(model) if known.iter().any(|name| name == model) => model.to_owned(),
            Some(model) => {
                return Err(failure(
                    format_args!("{} has no model {model:?}", server.url),
                    format_args!("--model may be {}", known.join(", ")),
                ));
            }
        };
        Ok(server)
    }

    /// A connection of its own.
    pub fn connect(&self) -> Connection<'_> {
        Connection { server: self, agent: Agent::new_with_config(self.config.clone()) }
    }
}

impl Connection<'_> {
    /// The names of the models, at least one.
    fn models(&self) -> Result<Vec<String>> {
        let url = &self.server.url;
        let response = self.send("GET", "/v1/models", String::new()).map_err(|error| {
            let hint = "start the server, for example with `kanana serve`, and check address and port";
            failure_of(error, format_args!("cannot reach {url}"), hint)
        })?;
        let (status, body) = (response.status().as_u16(), text(response)?);
        let models: Option<Models> = serde_json::from_str(&body).ok();
        let names = |models: Models| models.data.into_iter().map(|card| card.id).collect::<Vec<_>>();
        let hint = match (status, models.map(names)) {
            (200, Some(names)) if !names.is_empty() => return Ok(names),
            (401 | 403, _) => "give a key of the server with --api-key",
            (503, _) => "wait until the server has loaded its model",
            _ => NOT_OPENAI,
        };
        let what = if hint == NOT_OPENAI { "is not an OpenAI server: /v1/models answers" } else { "answers" };
        Err(failure(format_args!("{url} {what} {}", Refusal { status, message: message(&body) }), hint))
    }

    /// Goes on with a prompt, the likeliest tokens first, past the model's end of turn: exactly `max_tokens` of them.
    ///
    /// Errors: [`Refusal`] by its status, a connection that breaks, a stream that is none.
    pub fn complete(&self, prompt: &Value, max_tokens: usize) -> Result<Answer> {
        // Fields that kanana, llama-server and vLLM all know; kanana refuses those it does not.
        let body = json!({
            "model": self.server.model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": true,
            "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
        })
        .to_string();
        let started = Instant::now();
        let response = self.send("POST", "/v1/completions", body)?;
        if !response.status().is_success() {
            let (status, body) = (response.status().as_u16(), text(response)?);
            return Err(Refusal { status, message: message(&body) }.into());
        }
        read(response.into_body().into_reader(), started)
    }

    fn send(&self, method: &str, path: &str, body: String) -> Result<Response<Body>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.server.url));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &self.server.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request =
            request.body(body).context("cannot make a request; check --api-key for stray characters")?;
        Ok(self.agent.run(request)?)
    }
}

/// The address that paths are put behind.
fn base(url: &str) -> Result<String> {
    let trimmed = url.trim_end_matches('/');
    let trimmed = trimmed.strip_suffix("/v1").unwrap_or(trimmed);
    let parsed = trimmed.parse::<Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    match parsed.as_ref().and_then(Uri::host) {
        Some(_) => Ok(trimmed.to_owned()),
        None => Err(failure(
            format_args!("{url:?} is not the address of a server"),
            "an address is http://HOST:PORT, such as http://127.0.0.1:8000",
        )),
    }
}

fn text(response: Response<Body>) -> Result<String> {
    let body = response.into_body().into_with_config().limit(MAX_BODY_BYTES).read_to_vec();
    Ok(String::from_utf8_lossy(&body?).into_owned())
}

/// What an error's body says: the message in OpenAI's shape, else how it begins.
fn message(body: &str) -> String {
    let json: Option<Value> = serde_json::from_str(body).ok();
    let own = json.as_ref().and_then(|json| json.pointer("/error/message")).and_then(Value::as_str);
    let text = own.unwrap_or(body).trim();
    match text.char_indices().nth(SHOWN_CHARS) {
        _ if text.is_empty() => "an empty body".to_owned(),
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reads a stream of server-sent events to its end.
fn read(stream: impl Read, started: Instant) -> Result<Answer> {
    let mut stream = BufReader::new(stream);
    let (mut pieces, mut usage, mut line) = (Vec::new(), None, String::new());
    loop {
        line.clear();
        let read = stream.by_ref().take(MAX_LINE_BYTES).read_line(&mut line);
        let now = Instant::now();
        if read.context("the stream broke off")? == 0 {
            break;
        }
        // Other lines are comments, names of events, and the empty ones between events.
        let Some(data) = line.strip_prefix("data:").map(str::trim).filter(|data| *data != "[DONE]") else {
            continue;
        };
        let event: Event = serde_json::from_str(data)
            .with_context(|| format!("the stream holds what is no completion: {}", message(data)))?;
        if event.error.is_some() {
            bail!("in the stream: {}", message(data));
        }
        usage = event.usage.or(usage);
        // The event that ends an answer may have no text: then it is no token, unless it is all there is.
        if event
            .choices
            .iter()
            .any(|choice| !choice.text.is_empty() || choice.finish_reason.is_none() || pieces.is_empty())
        {
            pieces.push(now);
        }
    }
    match pieces.is_empty() {
        true => Err(Error::msg("the stream ended without an answer")),
        false => Ok(Answer { started, pieces, usage }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check =
            |url: &str, expected: Option<&str>| assert_eq!(base(url).ok().as_deref(), expected, "{url}");
        check("http://127.0.0.1:8000", Some("http://127.0.0.1:8000"));
        check("http://127.0.0.1:8000/v1/", Some("http://127.0.0.1:8000"));
        check("https://host/path/", Some("https://host/path"));
        check("localhost:8000", None);
        check("ftp://host", None);
        check("", None);
    }

    #[test]
    fn a_stream_is_counted_by_its_pieces() {
        let check = |stream: &str, expected: Option<(usize, Option<usize>)>| {
            let answer = read(stream.as_bytes(), Instant::now());
            let found = answer.map(|answer| (answer.pieces.len(), answer.usage.map(|u| u.completion_tokens)));
            assert_eq!(found.ok(), expected, "{stream}");
        };
        let piece = r#"data: {"choices": [{"text": "a", "finish_reason": null}], "usage": null}"#;
        let last = r#"data: {"choices": [{"text": "b", "finish_reason": "length"}]}"#;
        let end = r#"data: {"choices": [{"text": "", "finish_reason": "length"}]}"#;
        let usage = r#"data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}"#;
        check(&[piece, "", ": ping", piece, end, usage, "data: [DONE]", ""].join("\n"), Some((2, Some(2))));
        check(&[piece, last].join("\r\n\r\n"), Some((2, None)));
        check(end, Some((1, None)));
        check("", None);
        check("data: [DONE]\n", None);
        check("<html>\n", None);
        check("data: 3\n", None);
        check(&[piece, r#"data: {"error": {"message": "timed out"}}"#].join("\n"), None);
    }

    #[test]
    fn errors_are_quoted() {
        let check = |body: &str, expected: &str| assert_eq!(message(body), expected);
        check(r#"{"error": {"message": "no such thing"}}"#, "no such thing");
        check(" plain\n", "plain");
        check("", "an empty body");
        check(&"가".repeat(301), &format!("{} …", "가".repeat(300)));
    }
}
