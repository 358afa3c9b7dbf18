//! One answer on its way: token ids from the engine become text, tool calls and log-probabilities.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream, SelectAll, StreamExt};
use kanana_engine::{Constraint, FinishReason, Logprobs, Request, SamplingParams, StepOutput};
use kanana_tokenizer::tools::{ToolEvent, ToolFormat, ToolParser};
use kanana_tokenizer::{Specials, StopStrings, TextStream};

use crate::error::{ApiError, ApiResult};
use crate::ids::RequestId;
use crate::metrics::Observer;
use crate::models::Model;
use crate::worker::{Admission, Event, Ticket};

/// What is to be generated for one prompt.
pub struct Plan {
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
    pub stops: Vec<String>,
    pub include_stop: bool,
    pub constraint: Option<Constraint>,
    /// How calls of these tools are written, where tools may be called.
    pub tools: Option<(ToolFormat, Vec<String>)>,
    /// How many answers.
    pub n: usize,
}

/// What holds for all answers of a request.
pub struct Terms {
    /// An answer that takes longer is cut.
    pub timeout: Duration,
    /// The request under whose name prompts and answers stand in the log; None: they do not.
    pub log_as: Option<RequestId>,
}

/// Why an answer ended, by OpenAI's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
    ToolCalls,
}

impl Finish {
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
        }
    }
}

/// What became certain of an answer.
#[derive(Debug, Default)]
pub struct Delta {
    pub text: String,
    /// Calls that began, and pieces of their arguments.
    pub calls: Vec<ToolEvent>,
    /// Of the tokens that came since the last delta, where they were asked for.
    pub logprobs: Vec<Logprobs>,
    /// Once, with the first delta.
    pub prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    /// Tokens that came.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt that were in the prefix cache.
    pub cached_tokens: usize,
    pub finish: Option<Finish>,
}

impl Delta {
    /// Whether a client would see anything of it.
    pub fn shows(&self) -> bool {
        !self.text.is_empty() || !self.calls.is_empty() || !self.logprobs.is_empty() || self.finish.is_some()
    }
}

/// Deltas of all answers of a request, each with its answer's index, in the order in which they come.
pub type Deltas = BoxStream<'static, (usize, ApiResult<Delta>)>;

/// Starts all plans, `n` answers of each; answer `j` of plan `i` has the index `i·n + j`. Dropping the stream cancels
/// what runs.
///
/// The first answer of a plan runs ahead until its first token, so that the others find its prompt in the cache.
///
/// Errors: the queue is full, or the server is going down.
pub fn start(model: &Arc<Model>, plans: Vec<Plan>, terms: &Terms) -> ApiResult<Deltas> {
    let total = plans.iter().map(|plan| plan.n).sum();
    let mut admission = model.handle.admit(total)?;
    let (mut first, mut later) = (SelectAll::new(), Vec::new());
    let mut index = 0;
    for plan in plans {
        if let Some(RequestId(request)) = &terms.log_as {
            let prompt = model.tokenizer.decode(&plan.prompt, Specials::Keep)?;
            tracing::info!(request, prompt, "asked");
        }
        for n in 0..plan.n {
            let answer = Answer::new(model, &plan, n, index, terms);
            match n {
                0 => first.push(answer.stream(index, &mut admission)?),
                _ => later.push((index - n, index, answer)),
            }
            index += 1;
        }
    }
    let (deadline, timeout) = (Instant::now() + terms.timeout, terms.timeout);
    let state = Merged { running: first, later, admission, deadline, timeout };
    Ok(stream::unfold(Some(state), next_of).boxed())
}

struct Merged {
    running: SelectAll<Deltas>,
    /// Leader, index, answer.
    later: Vec<(usize, usize, Answer)>,
    admission: Admission,
    deadline: Instant,
    timeout: Duration,
}

async fn next_of(state: Option<Merged>) -> Option<((usize, ApiResult<Delta>), Option<Merged>)> {
    let mut state = state?;
    let next = tokio::time::timeout_at(state.deadline.into(), state.running.next()).await;
    let Ok(next) = next else {
        return Some(((0, Err(ApiError::timed_out(state.timeout.as_secs()))), None));
    };
    let (index, delta) = next?;
    if delta.is_err() {
        return Some(((index, delta), None));
    }
    let (ready, later) = state.later.into_iter().partition(|&(leader, ..)| leader == index);
    state.later = later;
    for (_, follower, answer) in ready {
        match answer.stream(follower, &mut state.admission) {
            Ok(deltas) => state.running.push(deltas),
            Err(error) => return Some(((follower, Err(error)), None)),
        }
    }
    Some(((index, delta), Some(state)))
}

/// One answer.
struct Answer {
    request: Option<(Request, Option<Constraint>)>,
    text: Text,
    calls: Option<ToolParser>,
    called: bool,
    ends: HashSet<u32>,
    control: Arc<Model>,
    observer: Observer,
    ended: bool,
    log: Option<Log>,
}

/// An answer for the log.
struct Log {
    request: RequestId,
    index: usize,
    text: String,
}

/// From ids to text that may be shown.
struct Text {
    stream: TextStream,
    stops: StopStrings,
    min_tokens: usize,
    tokens: usize,
}

impl Answer {
    fn new(model: &Arc<Model>, plan: &Plan, n: usize, index: usize, terms: &Terms) -> Self {
        let mut params = plan.params.clone();
        params.seed = params.seed.map(|seed| seed.wrapping_add(n as u64));
        if !params.ignore_eos {
            params.stop_token_ids.extend(&model.ends_of_turn);
        }
        let stops = StopStrings::new(plan.stops.clone());
        let ends = params.stop_token_ids.iter().copied().collect();
        Answer {
            text: Text {
                stream: model.tokenizer.stream(Specials::Keep),
                stops: if plan.include_stop { stops.include_stop() } else { stops },
                min_tokens: params.min_tokens,
                tokens: 0,
            },
            calls: plan.tools.as_ref().map(|(format, names)| ToolParser::new(*format, names.clone())),
            called: false,
            ends,
            control: Arc::clone(model),
            observer: Observer::start(&model.id, plan.prompt.len()),
            request: Some((Request { prompt: plan.prompt.clone(), params }, plan.constraint.clone())),
            ended: false,
            log: terms.log_as.as_ref().map(|request| Log {
                request: request.clone(),
                index,
                text: String::new(),
            }),
        }
    }

    /// Submits the request; the stream ends behind the delta that says why.
    fn stream(mut self, index: usize, admission: &mut Admission) -> ApiResult<Deltas> {
        let (request, constraint) = self.request.take().expect("an answer is submitted once: this is a bug");
        let ticket = admission.submit(request, constraint)?;
        let next = move |(mut answer, mut ticket): (Answer, Ticket)| async move {
            if answer.ended {
                return None;
            }
            let delta = match ticket.next().await {
                Some(Event::Output(output)) => answer.accept(output),
                Some(Event::Failed(error)) => Err(error),
                None => Err(ApiError::unavailable("the server is going down")),
            };
            answer.ended = delta.as_ref().map_or(true, |delta| delta.finish.is_some());
            Some(((index, delta), (answer, ticket)))
        };
        Ok(stream::unfold((self, ticket), next).boxed())
    }

    fn accept(&mut self, output: StepOutput) -> ApiResult<Delta> {
        let mut delta = Delta {
            logprobs: output.logprobs.into_iter().collect(),
            prompt_logprobs: output.prompt_logprobs,
            tokens: output.token.into_iter().collect(),
            cached_tokens: output.cached_tokens,
            ..Delta::default()
        };
        self.observer.step(delta.tokens.len());
        let mut finish = match output.finished {
            None => None,
            Some(FinishReason::Stop) => Some(Finish::Stop),
            Some(FinishReason::Length) => Some(Finish::Length),
            Some(FinishReason::Error(error)) => return Err(error.into()),
        };
        if let Some(token) = output.token {
            let ends = finish == Some(Finish::Stop) && self.ends.contains(&token);
            let text =
                if ends || self.hidden(token) { String::new() } else { self.text.stream.push(token)? };
            let stopped = self.text.pass(text, &mut delta.text);
            finish = stopped.then_some(Finish::Stop).or(finish);
        }
        if finish.is_some() {
            let rest = self.text.stream.finish()?;
            self.text.pass(rest, &mut delta.text);
            delta.text += &self.text.stops.finish();
        }
        if let Some(log) = &mut self.log {
            log.text += &delta.text;
            if finish.is_some() {
                tracing::info!(request = log.request.0, index = log.index, answer = log.text, "answered");
            }
        }
        self.find_calls(&mut delta, finish.is_some());
        delta.finish = match finish {
            Some(Finish::Stop) if self.calls.as_ref().is_some_and(ToolParser::unclosed) => {
                Some(Finish::Length)
            }
            Some(Finish::Stop) if self.called => Some(Finish::ToolCalls),
            finish => finish,
        };
        if let Some(finish) = delta.finish {
            self.observer.finish(finish.name());
        }
        Ok(delta)
    }

    /// Control tokens are no text, but for the one that a format of tool calls begins with.
    fn hidden(&self, token: u32) -> bool {
        let control = self.control.tokenizer.special_ids().get(&token);
        control.is_some_and(|name| self.calls.is_none() || name != ToolFormat::PYTHON_TAG)
    }

    /// Moves what is a call from the delta's text to its calls.
    fn find_calls(&mut self, delta: &mut Delta, ended: bool) {
        let Some(parser) = &mut self.calls else { return };
        let text = std::mem::take(&mut delta.text);
        let mut events = parser.push(&text);
        if ended {
            events.extend(parser.finish());
        }
        for event in events {
            match event {
                ToolEvent::Text(text) => delta.text += &text,
                call => {
                    self.called = true;
                    delta.calls.push(call);
                }
            }
        }
    }
}

impl Text {
    /// Passes new text through the stop strings; true when one of them ended it.
    fn pass(&mut self, text: String, out: &mut String) -> bool {
        self.tokens += 1;
        if self.tokens <= self.min_tokens {
            *out += &text; // too early to stop
            return false;
        }
        let released = self.stops.push(&text);
        *out += &released.text;
        released.stopped_by.is_some()
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub struct Whole {
    pub text: String,
    pub calls: Vec<Call>,
    pub tokens: Vec<u32>,
    pub logprobs: Vec<Logprobs>,
    pub prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    pub cached_tokens: usize,
    pub finish: Option<Finish>,
}

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// JSON.
    pub arguments: String,
}

impl Whole {
    /// Adds what came.
    pub fn push(&mut self, delta: Delta) {
        self.text += &delta.text;
        for event in delta.calls {
            match event {
                ToolEvent::Call { name, .. } => self.calls.push(Call { name, arguments: String::new() }),
                ToolEvent::Arguments { index, delta } => {
                    if let Some(call) = self.calls.get_mut(index) {
                        call.arguments += &delta;
                    }
                }
                ToolEvent::Text(text) => self.text += &text,
            }
        }
        self.tokens.extend(delta.tokens);
        self.logprobs.extend(delta.logprobs);
        self.prompt_logprobs = self.prompt_logprobs.take().or(delta.prompt_logprobs);
        self.cached_tokens += delta.cached_tokens;
        self.finish = self.finish.or(delta.finish);
    }

    /// The mean log-probability of its tokens, by which the best of several is chosen. Units: nats.
    pub fn mean_logprob(&self) -> f64 {
        let sum: f64 = self.logprobs.iter().map(|token| f64::from(token.chosen.logprob)).sum();
        sum / self.logprobs.len().max(1) as f64
    }
}

/// Waits for all answers.
///
/// Errors: the first that any of them meets.
pub async fn collect(mut deltas: Deltas, count: usize) -> ApiResult<Vec<Whole>> {
    let mut answers: Vec<Whole> = std::iter::repeat_with(Whole::default).take(count).collect();
    while let Some((index, delta)) = deltas.next().await {
        answers[index].push(delta?);
    }
    Ok(answers)
}
