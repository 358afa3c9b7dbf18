//! `/v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use kanana_engine::Logprobs;
use kanana_tokenizer::Specials;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::app::App;
use crate::body::{Api, Body, Rest};
use crate::error::{ApiError, ApiResult, ErrorResponse};
use crate::generation::{self, Delta, Finish, Plan, Whole};
use crate::ids::{RequestId, fresh_id, now};
use crate::logprobs::{CompletionLogprobs, Offsets};
use crate::models::Model;
use crate::prepare::{aside, compile, top_logprobs, within_context};
use crate::sampling::{Sampling, sequences};
use crate::sse;
use crate::usage::{StreamOptions, Usage};

/// Prompts of one request.
const MAX_PROMPTS: usize = 2048;
/// Tokens generated where the request does not say: OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Texts to go on with.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// A name from `/v1/models`; the first of them when left out.
    pub model: Option<String>,
    /// A text, token ids, or several of either.
    pub prompt: Prompt,
    /// Put the prompt before the answer.
    pub echo: Option<bool>,
    /// Tokens generated at most; 0 with `echo` only reads the prompt. 16 where left out.
    pub max_tokens: Option<usize>,
    /// Report how likely the tokens were, and this many likeliest ones. From 0 to 20.
    pub logprobs: Option<usize>,
    /// Generate this many and answer with the `n` likeliest.
    pub best_of: Option<usize>,
    /// Not supported: only null.
    pub suffix: Option<Value>,
    /// Send the answer as it comes.
    pub stream: Option<bool>,
    /// With `stream`: `include_usage` sends a last chunk with the counts.
    pub stream_options: Option<StreamOptions>,
    /// How tokens are chosen.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// What is left over.
    #[serde(flatten)]
    #[schema(ignore)]
    pub rest: Rest,
}

impl Api for CompletionRequest {
    fn rest(&self) -> &Rest {
        &self.rest
    }
}

/// One prompt or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids, or a list of such lists"
)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Token ids.
    Ids(Vec<u32>),
    /// Several lists of token ids.
    ManyIds(Vec<Vec<u32>>),
}

impl Prompt {
    /// How many there are.
    fn count(&self) -> usize {
        match self {
            Prompt::Text(_) | Prompt::Ids(_) => 1,
            Prompt::Texts(texts) => texts.len(),
            Prompt::ManyIds(lists) => lists.len(),
        }
    }

    /// The token ids of each.
    ///
    /// Errors: none, too many, an id that the model does not have.
    pub fn encode(&self, model: &Model, field: &'static str) -> ApiResult<Vec<Vec<u32>>> {
        let encode = |text: &String| model.tokenizer.encode(text).map_err(ApiError::from);
        let prompts = match self {
            Prompt::Text(text) => vec![encode(text)?],
            Prompt::Texts(texts) => texts.iter().map(encode).collect::<ApiResult<_>>()?,
            Prompt::Ids(ids) => vec![ids.clone()],
            Prompt::ManyIds(lists) => lists.clone(),
        };
        if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
            let message = format!("{field}: {} prompts, but must be from 1 to {MAX_PROMPTS}", prompts.len());
            return Err(ApiError::invalid(field, message));
        }
        for (index, prompt) in prompts.iter().enumerate() {
            let unknown = prompt.iter().find(|&&id| id as usize >= model.vocab_size);
            let problem = match unknown {
                Some(id) => format!("token {id}, but the model has {}, counted from 0", model.vocab_size),
                None if prompt.is_empty() => "empty: give at least one token".to_owned(),
                None => continue,
            };
            return Err(ApiError::invalid(field, format!("{field} {index}: {problem}")));
        }
        Ok(prompts)
    }
}

/// The answer, whole or a piece.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion {
    /// Of this answer.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Who answered.
    pub model: String,
    /// `n` for each prompt, in their order.
    pub choices: Vec<CompletionChoice>,
    /// Tokens read and written; in a stream with `include_usage`, and null but in its last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One continuation, or a piece of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Which.
    pub index: usize,
    /// Its text.
    pub text: String,
    /// Where asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: Option<&'static str>,
}

/// Goes on with texts.
#[utoipa::path(
    post, path = "/v1/completions", request_body = CompletionRequest,
    responses(
        (status = 200, description = "The continuations; with stream, as events and [DONE]", body = Completion),
        (status = 400, description = "A field is wrong", body = ErrorResponse),
        (status = 429, description = "The queue is full", body = ErrorResponse),
    )
)]
pub async fn handle(
    State(app): State<Arc<App>>,
    request_id: RequestId,
    Body(request): Body<CompletionRequest>,
) -> ApiResult<Response> {
    if request.suffix.is_some() {
        return Err(ApiError::unsupported("suffix", "the model writes forwards only"));
    }
    let model = app.models.get(request.model.as_deref()).await?;
    let streamed = request.stream.unwrap_or(false);
    let include_usage = crate::usage::include_usage(streamed, request.stream_options.as_ref())?;
    let (n, best_of) = (request.sampling.n()?, request.best_of);
    let tried = sequences("best_of", Some(best_of.unwrap_or(n)))?;
    if tried < n || (streamed && tried > n) {
        let message = "best_of must be at least n, and n where the answer is streamed";
        return Err(ApiError::invalid("best_of", message));
    }
    request_id.note_user(request.sampling.user());
    let echo = request.echo.unwrap_or(false);
    let scored = request.logprobs.is_some();
    model.handle.check_room(request.prompt.count().saturating_mul(tried))?;
    let plans = aside(&model, move |model| request.plans(model, tried, n)).await?;
    let prompts: Vec<Vec<u32>> = plans.iter().map(|plan| plan.prompt.clone()).collect();
    let deltas = generation::start(&model, plans, &app.terms(request_id))?;
    let frame = Frame { id: fresh_id("cmpl-"), created: now(), model, echo, scored, prompts, n: tried };
    if streamed {
        return Ok(sse::response(frame.stream(deltas, include_usage)));
    }
    let answers = generation::collect(deltas, frame.prompts.len() * tried).await?;
    Ok(Json(frame.whole(answers, n)?).into_response())
}

impl CompletionRequest {
    fn plans(&self, model: &Model, tried: usize, n: usize) -> ApiResult<Vec<Plan>> {
        let echo = self.echo.unwrap_or(false);
        let max_tokens = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        if max_tokens == 0 && !(echo && self.logprobs.is_some()) {
            let message = "max_tokens is 0, which only makes sense with echo and logprobs";
            return Err(ApiError::invalid("max_tokens", message));
        }
        let top = top_logprobs("logprobs", self.logprobs)?;
        let constraint = compile(model, self.sampling.grammar()?)?;
        let plan = |prompt: Vec<u32>| {
            let mut params = self.sampling.params(&model.defaults)?;
            params.max_tokens = within_context(Some(max_tokens), prompt.len(), model, None)?;
            params.logprobs = top.or((tried > n).then_some(0));
            params.prompt_logprobs = top.filter(|_| echo);
            params.validate(model.vocab_size)?; // the engine would, when a stream has begun
            Ok(Plan {
                prompt,
                params,
                stops: self.sampling.stops()?,
                include_stop: self.sampling.include_stop_str_in_output.unwrap_or(false),
                constraint: constraint.clone(),
                tools: None,
                n: tried,
            })
        };
        self.prompt.encode(model, "prompt")?.into_iter().map(plan).collect()
    }
}

/// What all parts of one answer say.
struct Frame {
    id: String,
    created: u64,
    model: Arc<Model>,
    echo: bool,
    scored: bool,
    prompts: Vec<Vec<u32>>,
    /// Answers for each prompt.
    n: usize,
}

impl Frame {
    fn of(&self, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>) -> Completion {
        let model = self.model.id.clone();
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model,
            choices,
            usage,
        }
    }

    /// The `n` best of the answers for each prompt.
    fn whole(&self, answers: Vec<Whole>, n: usize) -> ApiResult<Completion> {
        let prompt_tokens = self.prompts.iter().map(Vec::len).sum();
        let usage = Usage::of(prompt_tokens, &answers, self.n);
        let mut choices = Vec::new();
        let mut answers = answers.into_iter();
        for prompt in &self.prompts {
            let mut tried: Vec<Whole> = answers.by_ref().take(self.n).collect();
            if n < self.n {
                tried.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
                tried.truncate(n);
            }
            let echoed = self.echo.then_some(prompt.as_slice());
            for answer in tried {
                let mut offsets = Offsets::new(&self.model.tokenizer);
                choices.push(self.choice(choices.len(), echoed, answer, &mut offsets)?);
            }
        }
        Ok(self.of(choices, Some(Some(usage))))
    }

    /// A choice, or what is new of one: behind its prompt, where that is given to be echoed. `offsets` is where the text is.
    fn choice(
        &self,
        index: usize,
        echoed: Option<&[u32]>,
        answer: Whole,
        offsets: &mut Offsets,
    ) -> ApiResult<CompletionChoice> {
        let (tokenizer, mut text) = (&self.model.tokenizer, String::new());
        let mut logprobs = CompletionLogprobs::default();
        if let Some(prompt) = echoed {
            text = tokenizer.decode(prompt, Specials::Skip)?;
            if let Some(of_prompt) = &answer.prompt_logprobs {
                logprobs.extend(tokenizer, prompt, of_prompt, offsets)?;
                offsets.end_text()?;
            }
        }
        let of_answer: Vec<Option<Logprobs>> = answer.logprobs.into_iter().map(Some).collect();
        logprobs.extend(tokenizer, &answer.tokens, &of_answer, offsets)?;
        text += &answer.text;
        let logprobs = self.scored.then_some(logprobs);
        Ok(CompletionChoice { index, text, logprobs, finish_reason: answer.finish.map(Finish::name) })
    }

    fn stream(
        self,
        deltas: generation::Deltas,
        include_usage: bool,
    ) -> impl futures_util::Stream<Item = ApiResult<String>> + Send {
        let mut totals: Vec<(Whole, Offsets)> = Vec::new();
        let begun = || (Whole::default(), Offsets::new(&self.model.tokenizer));
        totals.resize_with(self.prompts.len() * self.n, begun);
        futures_util::stream::unfold(Some((self, deltas, totals)), move |state| async move {
            let (frame, mut deltas, mut totals) = state?;
            loop {
                match deltas.next().await {
                    Some((index, Ok(delta))) => {
                        let piece = frame.piece(index, delta, &mut totals[index]);
                        if let Some(piece) = piece.transpose() {
                            let pending = include_usage.then_some(None);
                            let json = piece.and_then(|piece| to_json(frame.of(vec![piece], pending)));
                            return Some((json, Some((frame, deltas, totals))));
                        }
                    }
                    Some((_, Err(error))) => return Some((Err(error), None)),
                    None if include_usage => {
                        let prompt_tokens = frame.prompts.iter().map(Vec::len).sum();
                        let answers: Vec<Whole> = totals.into_iter().map(|(total, _)| total).collect();
                        let usage = Usage::of(prompt_tokens, &answers, frame.n);
                        return Some((to_json(frame.of(Vec::new(), Some(Some(usage)))), None));
                    }
                    None => return None,
                }
            }
        })
    }

    /// What is new of an answer, behind its prompt where that is echoed; None where there is nothing to see. `total` has
    /// the tokens so far, and where the text is.
    fn piece(
        &self,
        index: usize,
        delta: Delta,
        (total, offsets): &mut (Whole, Offsets),
    ) -> ApiResult<Option<CompletionChoice>> {
        let first = total.tokens.is_empty() && total.finish.is_none();
        let shows = delta.shows() || (first && self.echo);
        total.tokens.extend(&delta.tokens);
        total.cached_tokens += delta.cached_tokens;
        total.finish = delta.finish;
        let mut new = Whole::default();
        new.push(delta);
        let echoed = (first && self.echo).then(|| self.prompts[index / self.n].as_slice());
        let choice = self.choice(index, echoed, new, offsets)?;
        Ok(shows.then_some(choice))
    }
}

fn to_json(completion: Completion) -> ApiResult<String> {
    serde_json::to_string(&completion).map_err(ApiError::internal)
}
