//! The few requests of the Hub that a download needs, with redirects that never carry the token to another host.

use std::time::Duration;

use anyhow::{Context, Error, Result};
use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Request, Response, Uri, header};
use ureq::{Agent, Body};

use super::cache::is_commit;
use super::id::RepositoryId;
use crate::hints::{failure, failure_of};

const MAX_REDIRECTS: usize = 10;
/// Attempts in a row that may fail without a new byte.
const MAX_FAILURES: u32 = 5;
/// A listing is about 100 bytes a file.
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// A connection to the Hub or a mirror.
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    /// The wait after the first failure; it doubles from one to the next.
    pub first_wait: Duration,
}

/// The commit behind a revision, and the names of its files.
pub struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// A file as the Hub announces it.
pub struct RemoteFile {
    pub name: String,
    pub url: String,
    pub etag: String,
    pub size: Option<u64>, // bytes
}

/// Why an attempt failed.
pub enum Trouble {
    /// It may well succeed the next time.
    Passing(Error),
    /// It will fail again.
    Final(Error),
}

impl<E: Into<Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Trouble::Final(error.into())
    }
}

/// How often a failure is borne before it counts.
pub struct Patience {
    failures: u32,
    first_wait: Duration,
}

impl Patience {
    /// Waits, longer each time; gives the error back when there were too many in a row.
    pub fn spend(&mut self, error: Error) -> Result<()> {
        self.failures += 1;
        if self.failures == MAX_FAILURES {
            return Err(error);
        }
        std::thread::sleep(self.first_wait * 2u32.pow(self.failures - 1));
        Ok(())
    }

    /// Forgets the failures, because there was some success.
    pub fn renew(&mut self) {
        self.failures = 0;
    }
}

impl Client {
    /// Errors: the endpoint is no address.
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let uri =
            endpoint.parse::<Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
        let host = uri.as_ref().and_then(Uri::host).ok_or_else(|| {
            failure(
                format_args!("HF_ENDPOINT is {endpoint:?}, expected an http or https address"),
                "set it to an address such as https://huggingface.co, or unset it",
            )
        })?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("kanana/", env!("CARGO_PKG_VERSION")));
        if ["localhost", "127.0.0.1", "[::1]"].contains(&host) {
            config = config.proxy(None); // A mirror on this machine is not behind a proxy.
        }
        Ok(Client { agent: config.build().into(), endpoint, token, first_wait: Duration::from_secs(1) })
    }

    /// What a revision of a model holds.
    pub fn list(&self, id: &RepositoryId) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let revision = escape(&id.revision).replace('/', "%2F");
        let url = format!("{}/api/{}/{}/revision/{revision}", self.endpoint, id.kind.plural(), id.repository);
        let mut response = self.send(&Method::GET, &url, 0).map_err(|error| match error {
            Trouble::Passing(error) | Trouble::Final(error) => error,
        })?;
        if !response.status().is_success() {
            return Err(self.refusal(&response, &id.to_string(), id));
        }
        let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let info = body.map_err(Error::from).and_then(|body| Ok(serde_json::from_slice::<Info>(&body)?));
        let info = info.map_err(|error| self.not_a_hub(error, &url))?;
        if !is_commit(&info.sha) {
            return Err(self.not_a_hub(Error::msg(format!("the commit is {:?}", info.sha)), &url));
        }
        Ok(Listing {
            commit: info.sha,
            files: info.siblings.into_iter().map(|file| file.rfilename).collect(),
        })
    }

    /// Digest and size of a file, without its content.
    pub fn describe(&self, id: &RepositoryId, commit: &str, name: &str) -> Result<RemoteFile> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, id.page(), escape(name));
        let response = self.patiently(|| {
            let response = self.send(&Method::HEAD, &url, 0)?;
            let (status, headers) = (response.status(), response.headers());
            // A redirect to the storage of large files comes with their digest.
            let is_stored_elsewhere = status.is_redirection() && headers.contains_key("x-linked-etag");
            match status.is_success() || is_stored_elsewhere {
                true => Ok(response),
                false => Err(self.trouble(&response, name, id)),
            }
        })?;
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if etag.is_empty() || etag.len() > 200 || !etag.bytes().all(is_plain) {
            return Err(self.not_a_hub(Error::msg(format!("the etag is {etag:?}")), &url));
        }
        let length = text(headers, "content-length").filter(|_| response.status().is_success());
        let size = text(headers, "x-linked-size").or(length).and_then(|size| size.parse().ok());
        Ok(RemoteFile { name: name.to_owned(), etag: etag.to_owned(), size, url })
    }

    /// The content of a file from byte `start`, which the server may decline by status 200 instead of 206.
    pub fn get(&self, url: &str, start: u64) -> Result<Response<Body>, Trouble> {
        self.send(&Method::GET, url, start)
    }

    /// What [`Patience`] a series of attempts starts with.
    pub fn patience(&self) -> Patience {
        Patience { failures: 0, first_wait: self.first_wait }
    }

    /// Tries again what may pass.
    fn patiently<T>(&self, attempt: impl Fn() -> Result<T, Trouble>) -> Result<T> {
        let mut patience = self.patience();
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(error)) => patience.spend(error)?,
            }
        }
    }

    fn send(&self, method: &Method, url: &str, start: u64) -> Result<Response<Body>, Trouble> {
        let mut url: Uri = url.parse().with_context(|| format!("{url:?} is not an address"))?;
        for _ in 0..MAX_REDIRECTS {
            let mut request =
                Request::builder().method(method).uri(&url).header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| self.is_ours(&url)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if start > 0 {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            let request =
                request.body(()).context("cannot make a request; check HF_TOKEN for stray characters")?;
            let response = self.agent.run(request).map_err(|error| unreachable(error, &url))?;
            // The path alone: the query of a storage's address is a key to it.
            tracing::debug!(%method, host = url.host(), path = url.path(), status = %response.status(), start);
            let Some(next) = redirect(&url, &response) else { return Ok(response) };
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                let hint = "do not use this mirror: everyone on the way could change the files";
                return Err(
                    failure(format_args!("{url} leads to {next}, which is not encrypted"), hint).into()
                );
            }
            if method == Method::HEAD && !self.is_ours(&next) {
                return Ok(response);
            }
            url = next;
        }
        Err(failure(
            format_args!("{url} leads from one address to the next without end"),
            "check HF_ENDPOINT",
        )
        .into())
    }

    /// Whether the token may be sent there.
    fn is_ours(&self, url: &Uri) -> bool {
        let endpoint: Option<Uri> = self.endpoint.parse().ok();
        endpoint.is_some_and(|own| own.scheme() == url.scheme() && own.authority() == url.authority())
    }

    /// The error of a status, and whether it is likely to pass.
    pub fn trouble(&self, response: &Response<Body>, what: &str, id: &RepositoryId) -> Trouble {
        match response.status().as_u16() {
            408 | 429 | 500.. => Trouble::Passing(self.refusal(response, what, id)),
            _ => Trouble::Final(self.refusal(response, what, id)),
        }
    }

    fn refusal(&self, response: &Response<Body>, what: &str, id: &RepositoryId) -> Error {
        let page = format!("{}/{}", self.endpoint, id.page());
        let reason = text(response.headers(), "x-error-code").unwrap_or_default();
        match (response.status().as_u16(), &*reason) {
            (401, _) if self.token.is_none() => failure(
                format_args!(
                    "the Hub gives {what} to nobody without a token: it is gated, private, or not there"
                ),
                format_args!(
                    "check the name; else accept the licence on {page} and set HF_TOKEN to your token"
                ),
            ),
            (401, _) => failure(
                format_args!("the Hub does not accept the token for {what}, or it is not there"),
                format_args!(
                    "check the name and HF_TOKEN; make a new token on {}/settings/tokens",
                    self.endpoint
                ),
            ),
            (403, _) => failure(
                format_args!("the token has no access to {what}: it is gated"),
                format_args!(
                    "accept the licence on {page} with the account of the token, and wait for approval"
                ),
            ),
            (404, "RevisionNotFound") => failure(
                format_args!("{} has no revision {}", id.repository, id.revision),
                format_args!("look for branches and tags on {page}/tree/main"),
            ),
            (404, _) => failure(
                format_args!("the Hub has no {what}"),
                format_args!("check the name, {page} should open in a browser; private models need HF_TOKEN"),
            ),
            (429, _) => failure(
                format_args!("the Hub asks to wait before {what}: too many requests"),
                "wait some minutes and run it again; with HF_TOKEN set, the limits are higher",
            ),
            (status, _) => failure(
                format_args!("the Hub answers {status} for {what}"),
                "run it again later; what was fetched is kept",
            ),
        }
    }

    fn not_a_hub(&self, error: Error, url: &str) -> Error {
        failure_of(
            error,
            format_args!("{url} does not answer as a Hub does"),
            format_args!("check HF_ENDPOINT ({}) and the proxy", self.endpoint),
        )
    }
}

fn unreachable(error: ureq::Error, url: &Uri) -> Trouble {
    Trouble::Passing(failure_of(
        error.into(),
        format_args!("cannot reach {}", url.host().unwrap_or_default()),
        "check the connection, the proxy and HF_ENDPOINT, and run it again: it continues where it stopped; \
         HF_HUB_OFFLINE=1 uses what is there already",
    ))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// Where a response leads, if it is a redirect.
fn redirect(url: &Uri, response: &Response<Body>) -> Option<Uri> {
    let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = text(response.headers(), "location").filter(|_| moved)?;
    let (scheme, host) = (url.scheme_str()?, url.authority()?);
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        location
    };
    absolute.parse().ok().filter(|next: &Uri| next.host().is_some())
}

/// Escapes a path for an address, slashes excepted.
fn escape(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
