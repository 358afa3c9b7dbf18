//! Errors as OpenAI's clients read them, and those that keep the server from starting.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kanana_engine::{EngineError, SequenceError};
use kanana_tokenizer::TokenizerError;
use serde::Serialize;
use utoipa::ToSchema;

/// The result of handling a request.
pub type ApiResult<T> = Result<T, ApiError>;

/// An answer that is an error, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub body: ErrorBody,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u64>,
}

/// The body of an error.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong, what was expected, and what to do.
    pub message: String,
    /// The kind: `invalid_request_error`, `authentication_error`, `rate_limit_error`, `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field that is wrong.
    pub param: Option<String>,
    /// A name for programs.
    pub code: Option<&'static str>,
}

/// What goes over the wire.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorResponse {
    /// The error.
    pub error: ErrorBody,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl ToString) -> Self {
        let body = ErrorBody { message: message.to_string(), kind, param: None, code: None };
        ApiError { status, body, retry_after: None }
    }

    /// The request is wrong; `param` names its field.
    pub fn invalid(param: impl Into<String>, message: impl ToString) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        error.body.param = Some(param.into()).filter(|param: &String| !param.is_empty());
        error
    }

    /// The field is known, and what it asks for is not offered.
    pub fn unsupported(param: &str, instead: &str) -> Self {
        let mut error = Self::invalid(param, format!("{param} is not supported: {instead}"));
        error.body.code = Some("unsupported_parameter");
        error
    }

    /// No such model or path.
    pub fn not_found(message: impl ToString, code: &'static str) -> Self {
        let mut error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        error.body.code = Some(code);
        error
    }

    /// No key, or a wrong one.
    pub fn unauthorized(message: impl ToString) -> Self {
        let mut error = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        error.body.code = Some("invalid_api_key");
        error
    }

    /// Too many requests wait already.
    pub fn busy(retry_after: u64) -> Self {
        let message = format!("the queue is full: try again in {retry_after} seconds");
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        error.body.code = Some("rate_limit_exceeded");
        error.retry_after = Some(retry_after);
        error
    }

    /// The request took longer than the server allows.
    pub fn timed_out(seconds: u64) -> Self {
        let message = format!("the answer was not ready after {seconds} seconds; ask for fewer tokens");
        let mut error = Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message);
        error.body.code = Some("timeout");
        error
    }

    /// The server is going down or cannot load a model now.
    pub fn unavailable(message: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    /// The server's own fault.
    pub fn internal(message: impl ToString) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// An error of another status that a layer below has made, such as 413.
    pub fn of_status(status: StatusCode, message: impl ToString) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// As one event of a stream that has begun.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "error": self.body })
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        };
        match &error {
            // A grammar is named by its kind here; who compiles it knows its field.
            EngineError::Parameter { field, .. }
            | EngineError::TokenOutOfRange { field, .. }
            | EngineError::Grammar { field, .. } => Self::invalid(*field, message),
            EngineError::PromptTooLong { .. } | EngineError::KvMemory { .. } => {
                let mut error = Self::invalid("messages", message);
                error.body.code = Some("context_length_exceeded");
                error
            }
            EngineError::EmptyPrompt => Self::invalid("prompt", message),
            _ => Self::internal(message),
        }
    }
}

impl From<SequenceError> for ApiError {
    fn from(error: SequenceError) -> Self {
        match error {
            SequenceError::NothingToChoose => Self::invalid("min_tokens", error),
            SequenceError::Grammar { .. } => Self::invalid("", error),
            SequenceError::NonFiniteLogits { .. } => Self::internal(error),
        }
    }
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> Self {
        let message = match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        };
        Self::invalid("messages", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorResponse { error: self.body })).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Why a server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// What was asked for.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A file cannot be read or does not hold what it should.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting makes no sense.
    #[error("{field} is {got}, but must be {expected}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        got: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The first model cannot be loaded.
    #[error("cannot load {model}: {problem}")]
    Load {
        /// Its name.
        model: String,
        /// Why not.
        problem: String,
    },
    /// The machine refuses a thread, a socket or a signal handler.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
