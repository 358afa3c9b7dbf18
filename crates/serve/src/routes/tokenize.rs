//! `/tokenize` and `/detokenize`, as vLLM has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use kanana_tokenizer::{ChatRequest, Ending, Specials};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::app::App;
use crate::body::{Api, Body, Rest};
use crate::error::{ApiError, ApiResult, ErrorResponse};
use crate::models::Model;
use crate::prepare::{aside, messages_of};

/// A text or a conversation to be cut into tokens.
#[derive(Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    /// A name from `/v1/models`; the first of them when left out.
    pub model: Option<String>,
    /// A text; or `messages`.
    pub prompt: Option<String>,
    /// A conversation; or `prompt`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub messages: Option<Vec<Value>>,
    /// Functions that the template lists.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// Put the tokens that begin a text before a plain `prompt`. The default.
    pub add_special_tokens: Option<bool>,
    /// End a conversation with the header of the assistant's turn. The default.
    pub add_generation_prompt: Option<bool>,
    /// Further variables for the model's template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Tell the text of every token too.
    pub return_token_strs: Option<bool>,
    /// What is left over.
    #[serde(flatten)]
    #[schema(ignore)]
    pub rest: Rest,
}

impl Api for TokenizeRequest {
    fn rest(&self) -> &Rest {
        &self.rest
    }
}

/// The tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// How many.
    pub count: usize,
    /// Tokens that the model takes.
    pub max_model_len: usize,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts, where asked for; U+FFFD stands for parts of a character.
    pub token_strs: Option<Vec<String>>,
}

/// Cuts a text or a conversation into tokens.
#[utoipa::path(
    post, path = "/tokenize", request_body = TokenizeRequest,
    responses(
        (status = 200, description = "The tokens", body = TokenizeResponse),
        (status = 400, description = "A field is wrong", body = ErrorResponse),
    )
)]
pub async fn tokenize(
    State(app): State<Arc<App>>,
    Body(request): Body<TokenizeRequest>,
) -> ApiResult<Json<TokenizeResponse>> {
    let model = app.models.get(request.model.as_deref()).await?;
    let strings = request.return_token_strs.unwrap_or(false);
    let tokens = aside(&model, move |model| encode(model, request)).await?;
    let text_of = |&id: &u32| {
        let bytes = model.tokenizer.token_bytes(id).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let token_strs = strings.then(|| tokens.iter().map(text_of).collect());
    Ok(Json(TokenizeResponse { count: tokens.len(), max_model_len: model.max_context, tokens, token_strs }))
}

fn encode(model: &Model, request: TokenizeRequest) -> ApiResult<Vec<u32>> {
    match (request.prompt, request.messages) {
        (Some(text), None) => Ok(match request.add_special_tokens.unwrap_or(true) {
            true => model.tokenizer.encode(&text)?,
            false => model.tokenizer.encode_rendered(&text)?,
        }),
        (None, Some(messages)) => {
            let messages = messages_of(messages)?;
            let ending = match request.add_generation_prompt.unwrap_or(true) {
                true => Ending::GenerationPrompt,
                false => Ending::Closed,
            };
            let variables = request.chat_template_kwargs.unwrap_or_default();
            let chat = ChatRequest { tools: request.tools, ending, variables, ..ChatRequest::new(messages) };
            Ok(model.tokenizer.encode_rendered(&model.template.render(&chat)?)?)
        }
        _ => Err(ApiError::invalid("prompt", "give either prompt or messages")),
    }
}

/// Token ids to be put together.
#[derive(Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// A name from `/v1/models`; the first of them when left out.
    pub model: Option<String>,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// What is left over.
    #[serde(flatten)]
    #[schema(ignore)]
    pub rest: Rest,
}

impl Api for DetokenizeRequest {
    fn rest(&self) -> &Rest {
        &self.rest
    }
}

/// The text.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// Of all tokens, control tokens included.
    pub prompt: String,
}

/// Puts tokens together.
#[utoipa::path(
    post, path = "/detokenize", request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "The text", body = DetokenizeResponse),
        (status = 400, description = "A field is wrong", body = ErrorResponse),
    )
)]
pub async fn detokenize(
    State(app): State<Arc<App>>,
    Body(request): Body<DetokenizeRequest>,
) -> ApiResult<Json<DetokenizeResponse>> {
    let model = app.models.get(request.model.as_deref()).await?;
    if let Some(id) = request.tokens.iter().find(|&&id| id as usize >= model.vocab_size) {
        let message = format!("tokens: {id}, but the model has {}, counted from 0", model.vocab_size);
        return Err(ApiError::invalid("tokens", message));
    }
    Ok(Json(DetokenizeResponse { prompt: model.tokenizer.decode(&request.tokens, Specials::Keep)? }))
}
