//! What tells of the server itself: models, health, version, metrics, and the description of the API.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::{OpenApi, ToSchema};

use crate::app::App;
use crate::error::{ApiError, ApiResult, ErrorResponse};
use crate::metrics;

/// The models there are.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The default first.
    pub data: Vec<ModelCard>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelCard {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Seconds since 1970 at which the server was started.
    pub created: u64,
    /// Who offers it.
    pub owned_by: &'static str,
    /// Tokens of prompt and answer together; null before it is loaded.
    pub max_model_len: Option<usize>,
}

fn card(app: &App, id: &str) -> ModelCard {
    ModelCard {
        id: id.to_owned(),
        object: "model",
        created: app.models.created(),
        owned_by: "kanana-rs",
        max_model_len: app.models.max_context(id),
    }
}

/// Lists the models.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, description = "The models", body = ModelList)))]
pub async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    let data = app.models.names().map(|id| card(&app, id)).collect();
    Json(ModelList { object: "list", data })
}

/// Tells of one model.
#[utoipa::path(
    get, path = "/v1/models/{id}", params(("id" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The model", body = ModelCard),
        (status = 404, description = "There is none of that name", body = ErrorResponse),
    )
)]
pub async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult<Json<ModelCard>> {
    let Path(id) = id.map_err(|error| ApiError::of_status(error.status(), error.body_text()))?;
    match app.models.names().find(|name| *name == id) {
        Some(name) => Ok(Json(card(&app, name))),
        None => Err(ApiError::not_found(format!("the model {id:?} does not exist here"), "model_not_found")),
    }
}

/// The server answers.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "It does")))]
pub async fn health() -> StatusCode {
    StatusCode::OK
}

/// A model is loaded, and the server is not going down.
#[utoipa::path(
    get, path = "/ready",
    responses((status = 200, description = "Requests are taken"), (status = 503, description = "Not now", body = ErrorResponse))
)]
pub async fn ready(State(app): State<Arc<App>>) -> ApiResult<StatusCode> {
    match app.models.loaded().is_empty() || app.closing() {
        false => Ok(StatusCode::OK),
        true => Err(ApiError::unavailable("no model is loaded, or the server is going down")),
    }
}

/// The version of the program.
#[utoipa::path(get, path = "/version", responses((status = 200, description = "The version", body = Object)))]
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// Counters for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "In the text format", body = String)))]
pub async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::render(&app.models.loaded()))
}

#[derive(OpenApi)]
#[openapi(
    info(title = "kanana", description = "An OpenAI-compatible server of the Kanana family"),
    paths(
        super::chat::handle,
        super::completions::handle,
        super::responses::handle,
        super::embeddings::handle,
        super::tokenize::tokenize,
        super::tokenize::detokenize,
        models,
        model,
        health,
        ready,
        version,
        metrics,
    ),
    components(schemas(super::chat::ChatCompletionChunk))
)]
struct Description;

/// The description of the API, made from its types.
pub async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}
