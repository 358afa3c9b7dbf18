//! What all requests share, and the way a request takes before it reaches its route.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::auth::Keys;
use crate::body::TOO_LARGE;
use crate::error::{ApiError, ApiResult, ServeError};
use crate::generation::Terms;
use crate::ids::RequestId;
use crate::metrics::count_response;
use crate::models::Models;
use crate::routes::{chat, completions, embeddings, page, responses, service, tokenize};

/// How requests are treated.
#[derive(Clone, Debug)]
pub struct AppOptions {
    /// An answer that takes longer is cut.
    pub request_timeout: Duration,
    /// A body that takes longer to arrive from one piece to the next is refused.
    pub body_timeout: Duration,
    /// Units: bytes.
    pub max_body: usize,
    /// Pages of these origins may call the server; `*`: of all.
    pub cors_origins: Vec<String>,
    /// Prompts and answers stand in the log.
    pub log_prompts: bool,
}

/// Shared by all requests.
pub struct App {
    pub models: Arc<Models>,
    pub keys: Keys,
    pub options: AppOptions,
    closing: AtomicBool,
}

impl App {
    pub fn new(models: Models, keys: Keys, options: AppOptions) -> Arc<Self> {
        Arc::new(App { models: Arc::new(models), keys, options, closing: AtomicBool::new(false) })
    }

    /// What holds for the answers of a request.
    pub fn terms(&self, request: RequestId) -> Terms {
        let log_as = self.options.log_prompts.then_some(request);
        Terms { timeout: self.options.request_timeout, log_as }
    }

    /// Whether the server is going down.
    pub fn closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// From now on the server is not ready.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }
}

/// All routes behind keys, limits and the log.
///
/// Errors: an origin that is no header's value.
pub fn router(app: &Arc<App>) -> Result<Router, ServeError> {
    let api = Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/responses", post(responses::handle))
        .route("/v1/embeddings", post(embeddings::handle))
        .route("/v1/models", get(service::models))
        .route("/v1/models/{*id}", get(service::model))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/metrics", get(service::metrics))
        .layer(from_fn_with_state(Arc::clone(app), authorise));
    let open = Router::new()
        .route("/", get(page::handle))
        .route("/health", get(service::health))
        .route("/ready", get(service::ready))
        .route("/version", get(service::version))
        .route("/openapi.json", get(service::openapi));
    let router = api
        .merge(open)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(Arc::clone(app), watch))
        .layer(DefaultBodyLimit::max(app.options.max_body))
        .layer(RequestBodyTimeoutLayer::new(app.options.body_timeout))
        .layer(CatchPanicLayer::custom(|_| ApiError::internal("the request failed").into_response()))
        .layer(cors(&app.options.cors_origins)?)
        .with_state(Arc::clone(app));
    Ok(router)
}

fn cors(origins: &[String]) -> Result<CorsLayer, ServeError> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        // By their names: `*` covers every header but the one with the key.
        .allow_headers(AllowHeaders::mirror_request())
        .max_age(Duration::from_secs(3600));
    if origins.iter().any(|origin| origin == "*") {
        return Ok(layer.allow_origin(tower_http::cors::Any));
    }
    let origins = origins.iter().map(|origin| {
        let expected = "an origin such as https://example.org, or *";
        let refuse = |_| ServeError::Setting { field: "cors_origins", got: origin.clone(), expected };
        origin.parse::<HeaderValue>().map_err(refuse)
    });
    Ok(layer.allow_origin(AllowOrigin::list(origins.collect::<Result<Vec<_>, _>>()?)))
}

async fn authorise(State(app): State<Arc<App>>, request: Request, next: Next) -> ApiResult<Response> {
    app.keys.check(request.headers())?;
    Ok(next.run(request).await)
}

/// Names the request, and tells what became of it; what was said in it is not told.
async fn watch(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let given = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let id = RequestId::of(given);
    let matched = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let (method, path) = (request.method().clone(), matched.unwrap_or_else(|| "?".to_owned()));
    request.extensions_mut().insert(id.clone());
    let mut response = match announced(&request) {
        // Nobody waits for what would not be read.
        Some(bytes) if bytes > app.options.max_body as u64 => {
            ApiError::of_status(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE).into_response()
        }
        _ => next.run(request).await,
    };
    let status = response.status().as_u16();
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert("x-request-id", value);
    }
    if app.closing() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    count_response(&path, status);
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(request = id.0, %method, path = &*path, status, seconds, "answered");
    response
}

/// The length of the body, where the head says it. Units: bytes.
fn announced(request: &Request) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn no_such_path(request: Request) -> ApiError {
    let message =
        format!("no such path: {} {}; /openapi.json lists them", request.method(), request.uri().path());
    ApiError::not_found(message, "unknown_url")
}

async fn no_such_method(request: Request) -> ApiError {
    let message =
        format!("{} is not for {}; /openapi.json says what is", request.method(), request.uri().path());
    ApiError::of_status(StatusCode::METHOD_NOT_ALLOWED, message)
}
