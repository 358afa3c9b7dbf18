//! Names of answers and requests, and the time.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

/// A name that nobody else has: `prefix` and 32 hexadecimal digits of the standard library's random hash keys.
pub fn fresh_id(prefix: &str) -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:016x}", random(), random())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// The name of a request, from its `x-request-id` or made up; it is sent back and stands in the log.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

impl RequestId {
    /// The client's name for the request where that is short and plain, else a fresh one.
    pub fn of(given: Option<&str>) -> Self {
        let plain = |id: &&str| id.len() <= 128 && !id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic());
        RequestId(given.filter(plain).map_or_else(|| fresh_id("req-"), str::to_owned))
    }

    /// Ties the end user that the client named to the request in the log.
    pub fn note_user(&self, user: Option<&str>) {
        if let Some(user) = user {
            let user: String = user.chars().take(128).collect();
            tracing::info!(request = self.0, user, "asked for");
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<RequestId>().cloned().unwrap_or_else(|| RequestId::of(None)))
    }
}
