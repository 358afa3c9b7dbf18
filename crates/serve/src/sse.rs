//! Server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use serde_json::Value;

use crate::error::{ApiError, ApiResult};

/// How often a comment is sent while nothing else is, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// OpenAI's way: `data:` lines of JSON, an error as one of them, `[DONE]` at the end.
///
/// They come as text: numbers of 32 bits are spelled out as ones of 64 on their way through a [`Value`].
pub fn response(stream: impl Stream<Item = ApiResult<String>> + Send + 'static) -> Response {
    let data = |text: String| Ok::<_, Infallible>(Event::default().data(text));
    let events =
        stream.map(move |item| data(item.unwrap_or_else(|error: ApiError| error.to_json().to_string())));
    let done = futures_util::stream::once(async move { data("[DONE]".to_owned()) });
    finish(events.chain(done))
}

/// Named events: those of responses.
pub fn named(stream: impl Stream<Item = (&'static str, Value)> + Send + 'static) -> Response {
    finish(stream.map(|(name, json)| Ok(Event::default().event(name).data(json.to_string()))))
}

fn finish(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // nginx holds answers back otherwise.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}
