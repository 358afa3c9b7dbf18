//! `/v1/embeddings`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kanana_engine::EmbeddingInput;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::completions::Prompt;
use crate::app::App;
use crate::body::{Api, Body, Rest};
use crate::error::{ApiError, ApiResult, ErrorResponse};
use crate::ids::RequestId;
use crate::models::Model;
use crate::prepare::aside;

/// Tokens that one forward pass embeds, unless a single text has more: generation goes on between two of them.
const TOKENS_AT_ONCE: usize = 512;

/// Texts to be embedded.
#[derive(Debug, Deserialize, ToSchema)]
pub struct EmbeddingRequest {
    /// A name from `/v1/models`; the first of them when left out.
    pub model: Option<String>,
    /// A text, token ids, or several of either.
    pub input: Prompt,
    /// `float` or `base64` (little-endian 32-bit floats).
    pub encoding_format: Option<EncodingFormat>,
    /// The first so many numbers, scaled to length one again.
    pub dimensions: Option<usize>,
    /// What the texts are for: read before each and not pooled. For queries; documents have none.
    pub instruction: Option<String>,
    /// Whether vectors are scaled to length one. The default.
    pub normalize: Option<bool>,
    /// Names the end user in the log.
    pub user: Option<String>,
    /// What is left over.
    #[serde(flatten)]
    #[schema(ignore)]
    pub rest: Rest,
}

impl Api for EmbeddingRequest {
    fn rest(&self) -> &Rest {
        &self.rest
    }
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EncodingFormat {
    /// A list of numbers.
    Float,
    /// Little-endian 32-bit floats in base64.
    Base64,
}

/// The vectors.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingList {
    /// `list`.
    pub object: &'static str,
    /// In the order of the texts.
    pub data: Vec<Embedding>,
    /// Who made them.
    pub model: String,
    /// Tokens read.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// Of the text.
    pub index: usize,
    /// The numbers.
    pub embedding: Vector,
}

/// The numbers of a vector.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    /// As they are.
    Float(Vec<f32>),
    /// In base64.
    Base64(String),
}

/// Tokens read.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    /// Of all texts.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}

/// Embeds texts.
#[utoipa::path(
    post, path = "/v1/embeddings", request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "A vector for each text", body = EmbeddingList),
        (status = 400, description = "A field is wrong", body = ErrorResponse),
    )
)]
pub async fn handle(
    State(app): State<Arc<App>>,
    request_id: RequestId,
    Body(request): Body<EmbeddingRequest>,
) -> ApiResult<Json<EmbeddingList>> {
    let model = app.models.get(request.model.as_deref()).await?;
    request_id.note_user(request.user.as_deref());
    let (input, instruction) = (request.input.clone(), request.instruction.clone());
    let inputs = aside(&model, move |model| inputs_of(model, &input, instruction.as_deref())).await?;
    let prompt_tokens = inputs.iter().map(|input| input.tokens.len()).sum();
    let mut vectors = Vec::new();
    for group in groups(inputs) {
        vectors.extend(model.handle.embed(group, model.pooling).await?);
    }
    let width = vectors.first().map_or(0, Vec::len);
    let dimensions = request.dimensions.unwrap_or(width);
    if dimensions == 0 || dimensions > width {
        let message = format!("dimensions is {dimensions}, but must be from 1 to the model's {width}");
        return Err(ApiError::invalid("dimensions", message));
    }
    let normalize = request.normalize.unwrap_or(true);
    let encoding = request.encoding_format.unwrap_or(EncodingFormat::Float);
    let data = vectors.into_iter().enumerate().map(|(index, mut vector)| {
        vector.truncate(dimensions);
        if normalize {
            scale_to_one(&mut vector);
        }
        Embedding { object: "embedding", index, embedding: Vector::of(vector, encoding) }
    });
    let usage = EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens };
    Ok(Json(EmbeddingList { object: "list", data: data.collect(), model: model.id.clone(), usage }))
}

/// Token ids behind their instruction. Source: Kanana2Vec's `Instruct: …\nQuery: text`.
fn inputs_of(model: &Model, input: &Prompt, instruction: Option<&str>) -> ApiResult<Vec<EmbeddingInput>> {
    let Some(instruction) = instruction.filter(|text| !text.trim().is_empty()) else {
        let plain = |tokens| EmbeddingInput { tokens, instruction: 0 };
        return Ok(input.encode(model, "input")?.into_iter().map(plain).collect());
    };
    let texts = match input {
        Prompt::Text(text) => vec![text.clone()],
        Prompt::Texts(texts) => texts.clone(),
        Prompt::Ids(_) | Prompt::ManyIds(_) => {
            return Err(ApiError::invalid("instruction", "an instruction needs texts, not token ids"));
        }
    };
    let prefix = format!("Instruct: {}\nQuery:", instruction.trim());
    let skipped = model.tokenizer.encode(&prefix)?.len();
    let joined = texts.iter().map(|text| format!("{prefix} {}", text.trim())).collect();
    let encoded = Prompt::Texts(joined).encode(model, "input")?;
    Ok(encoded.into_iter().map(|tokens| EmbeddingInput { tokens, instruction: skipped }).collect())
}

/// Cuts the inputs where one forward pass has enough.
fn groups(inputs: Vec<EmbeddingInput>) -> Vec<Vec<EmbeddingInput>> {
    let mut groups: Vec<Vec<EmbeddingInput>> = Vec::new();
    let mut tokens = usize::MAX;
    for input in inputs {
        let more = input.tokens.len();
        if tokens.saturating_add(more) > TOKENS_AT_ONCE {
            groups.push(Vec::new());
            tokens = 0;
        }
        tokens += more;
        if let Some(group) = groups.last_mut() {
            group.push(input);
        }
    }
    groups
}

fn scale_to_one(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}

impl Vector {
    fn of(vector: Vec<f32>, encoding: EncodingFormat) -> Self {
        match encoding {
            EncodingFormat::Float => Vector::Float(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_the_order_and_the_limit() {
        let input = |n: usize| EmbeddingInput { tokens: vec![1; n], instruction: 0 };
        let sizes = |groups: Vec<Vec<EmbeddingInput>>| -> Vec<Vec<usize>> {
            groups.iter().map(|group| group.iter().map(|input| input.tokens.len()).collect()).collect()
        };
        let cut = groups([300, 200, 20, 900, 5].map(input).to_vec());
        assert_eq!(sizes(cut), [vec![300, 200], vec![20], vec![900], vec![5]]);
    }

    #[test]
    fn base64_is_little_endian() {
        let Vector::Base64(text) = Vector::of(vec![1.0, -2.0], EncodingFormat::Base64) else { panic!() };
        assert_eq!(text, "AACAPwAAAMA=");
    }
}
