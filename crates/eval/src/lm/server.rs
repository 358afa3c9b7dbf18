//! An OpenAI-compatible server as a language model, examined or judging.
//!
//! Conversations go to `/v1/chat/completions`, texts to `/v1/completions`. Log-likelihoods need a server that echoes a prompt
//! with its log-probabilities and tells its tokens (`/tokenize`): `kanana serve` and vLLM do, chat-only services do not.
//! Requests run on several threads at once; 429, 5xx and broken connections are tried again after a pause that grows and is
//! not the same for all, or that the server asks for (`Retry-After`).

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kanana_tokenizer::Message;
use serde_json::{Map, Value, json};

use super::{
    Ended, GenerateRequest, Generation, LanguageModel, LogLikelihood, LogLikelihoodRequest, Prompt, Take,
    ToolCall,
};
use crate::embedding::{Instructions, ServerEmbedder};
use crate::{EvalError, Result};

/// Where a server is and how it wants to be asked.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// With the version, without a slash at the end: `http://127.0.0.1:8000/v1`.
    pub base_url: String,
    /// The `model` of every request.
    pub model: String,
    /// Sent as a bearer token; never written anywhere.
    pub api_key: Option<String>,
    /// Requests at once.
    pub concurrency: usize,
    /// A request that takes longer has failed.
    pub timeout: Duration,
    /// How often a request is tried in all.
    pub tries: usize,
    /// Send `max_completion_tokens` where others take `max_tokens`.
    pub max_completion_tokens: bool,
    /// Fields added to every request, over those made here; `null` removes a field (`{"temperature": null}`).
    pub extra: Map<String, Value>,
    /// How it is told what texts to embed are for.
    pub instructions: Instructions,
    /// The server knows no system role: what it would say is put before the first message.
    pub no_system: bool,
}

impl ServerOptions {
    /// The usual way to ask.
    pub fn new(base_url: &str, model: &str) -> Self {
        ServerOptions {
            base_url: base_url.trim_end_matches('/').to_owned(),
            model: model.to_owned(),
            api_key: None,
            concurrency: 8,
            timeout: Duration::from_secs(600),
            tries: 8,
            max_completion_tokens: false,
            extra: Map::new(),
            instructions: Instructions::Field,
            no_system: false,
        }
    }
}

/// A model behind a server.
pub struct Server {
    name: String,
    caller: Caller,
    interrupted: Box<dyn Fn() -> bool>,
}

/// Asks one thing at a time, from any thread.
struct Caller {
    options: ServerOptions,
    agent: ureq::Agent,
}

/// Why a request failed, and whether it may go better.
struct Failure {
    problem: String,
    /// The prompt does not fit the context.
    too_long: bool,
    again: bool,
    after: Option<Duration>,
}

impl Caller {
    /// Sends one request, once.
    fn post(&self, url: &str, body: &Value) -> std::result::Result<Value, Failure> {
        let mut request = self.agent.post(url).header("content-type", "application/json");
        if let Some(key) = &self.options.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let lost = |error: ureq::Error| Failure {
            problem: error.to_string(),
            too_long: false,
            again: true,
            after: None,
        };
        let mut response = request.send(body.to_string()).map_err(lost)?;
        let status = response.status();
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let text = response.body_mut().with_config().limit(64 << 20).read_to_string().map_err(lost)?;
        if status.is_success() {
            let broken = |error| Failure {
                problem: format!("the answer is no JSON: {error}"),
                too_long: false,
                again: true,
                after: None,
            };
            return serde_json::from_str(&text).map_err(broken);
        }
        let message = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|body| Some(body.pointer("/error/message")?.as_str()?.to_owned()))
            .unwrap_or_else(|| text.chars().take(300).collect());
        let problem = format!("{url} answered {status}: {message}");
        Err(Failure {
            // OpenAI's code, and the word that vLLM, llama.cpp and `kanana serve` use
            too_long: status.as_u16() == 400
                && (text.contains("context_length_exceeded") || message.contains("context")),
            problem,
            again: status.as_u16() == 429 || status.as_u16() == 408 || status.is_server_error(),
            after: after.map(Duration::from_secs),
        })
    }

    /// Sends one request until it is answered; None where the prompt does not fit the context.
    ///
    /// Errors: the last failure, or that everything is to stop.
    fn ask(
        &self,
        path: &str,
        mut body: Value,
        stop: &AtomicBool,
    ) -> std::result::Result<Option<Value>, String> {
        if let Some(fields) = body.as_object_mut() {
            for (name, value) in &self.options.extra {
                match value {
                    Value::Null => fields.remove(name),
                    value => fields.insert(name.clone(), value.clone()),
                };
            }
        }
        let base = &self.options.base_url;
        let url = match path.strip_prefix("//") {
            // beside the version: /tokenize
            Some(path) => format!("{}/{path}", base.strip_suffix("/v1").unwrap_or(base)),
            None => format!("{base}{path}"),
        };
        let mut pause = Duration::from_millis(500);
        for attempt in 1.. {
            let failure = match self.post(&url, &body) {
                Ok(answer) => return Ok(Some(answer)),
                Err(failure) if failure.too_long => return Ok(None),
                Err(failure) => failure,
            };
            if !failure.again || attempt >= self.options.tries {
                return Err(failure.problem);
            }
            // between half and one and a half of the pause
            let jitter = 0.5 + (RandomState::new().hash_one(attempt) >> 11) as f64 / (1u64 << 53) as f64;
            let wait = failure.after.unwrap_or(pause.mul_f64(jitter)).min(Duration::from_secs(120));
            tracing::warn!(attempt, seconds = wait.as_secs_f64(), "{}: trying again", failure.problem);
            let until = Instant::now() + wait;
            while Instant::now() < until {
                if stop.load(Ordering::Relaxed) {
                    return Err("stopped".into());
                }
                thread::sleep(Duration::from_millis(50));
            }
            pause = (pause * 2).min(Duration::from_secs(60));
        }
        unreachable!("the loop has no end: this is a bug")
    }
}

impl Server {
    /// Nothing is asked yet. `interrupted` is whether the person wants to stop.
    pub fn new(options: ServerOptions, interrupted: Box<dyn Fn() -> bool>) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            .build();
        // Other fields may mean other answers.
        let name = match options.extra.is_empty() {
            true => options.model.clone(),
            false => format!("{} {}", options.model, Value::from(options.extra.clone())),
        };
        Server { name, caller: Caller { options, agent: config.into() }, interrupted }
    }

    fn problem(&self, problem: impl ToString) -> EvalError {
        let ServerOptions { base_url, model, .. } = &self.caller.options;
        EvalError::Model { model: format!("{model} at {base_url}"), problem: problem.to_string() }
    }

    /// Posts bodies to a path below the version, and gives the answers to `take`.
    pub(crate) fn ask_all(&self, path: &str, bodies: &[Value], take: Take<'_, Value>) -> Result<()> {
        let caller = &self.caller;
        let ask = |index: usize, stop: &AtomicBool| {
            caller.ask(path, bodies[index].clone(), stop)?.ok_or_else(|| TOO_LONG.to_owned())
        };
        self.spread(bodies.len(), ask, take)
    }

    /// Does `work` for every index on several threads, and gives the answers to `take` on this one.
    fn spread<A: Send>(
        &self,
        count: usize,
        work: impl Fn(usize, &AtomicBool) -> std::result::Result<A, String> + Sync,
        take: Take<'_, A>,
    ) -> Result<()> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..self.caller.options.concurrency.clamp(1, count.max(1)) {
                let (sender, next, stop, work) = (sender.clone(), &next, &stop, &work);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count || sender.send((index, work(index, stop))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let mut outcome = Ok(());
            let mut left = count;
            while left > 0 && outcome.is_ok() {
                match receiver.recv_timeout(Duration::from_millis(200)) {
                    Ok((index, Ok(answer))) => {
                        left -= 1;
                        outcome = take(index, answer);
                    }
                    Ok((_, Err(problem))) => outcome = Err(self.problem(problem)),
                    Err(mpsc::RecvTimeoutError::Timeout) if (self.interrupted)() => {
                        outcome = Err(EvalError::Stopped);
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                }
            }
            stop.store(true, Ordering::Relaxed);
            outcome
        })
    }
}

impl LanguageModel for Server {
    fn name(&self) -> &str {
        &self.name
    }

    fn log_likelihoods(
        &mut self,
        requests: &[LogLikelihoodRequest],
        take: Take<'_, LogLikelihood>,
    ) -> Result<()> {
        let caller = &self.caller;
        self.spread(requests.len(), |index, stop| caller.log_likelihood(&requests[index], stop), take)
    }

    fn rolling_log_likelihoods(&mut self, texts: &[String], take: Take<'_, LogLikelihood>) -> Result<()> {
        let _ = (texts, take);
        Err(self.problem("a server does not tell the length of its windows: score texts with a local model"))
    }

    fn generate(&mut self, requests: &[GenerateRequest], take: Take<'_, Generation>) -> Result<()> {
        let caller = &self.caller;
        self.spread(requests.len(), |index, stop| caller.generate(&requests[index], stop), take)
    }

    fn embed(&mut self, texts: &[String], instruction: Option<&str>) -> Result<Vec<Vec<f32>>> {
        let instructions = self.caller.options.instructions;
        ServerEmbedder { server: self, instructions }.embed(texts, instruction)
    }
}

impl Caller {
    /// The tokens of a text, as the model's own server makes them.
    fn tokens(&self, text: &str, stop: &AtomicBool) -> std::result::Result<Vec<u64>, String> {
        let body = json!({ "model": self.options.model, "prompt": text });
        let answer = self.ask("//tokenize", body, stop)?.ok_or(TOO_LONG)?;
        let tokens = answer.get("tokens").and_then(Value::as_array);
        let tokens = tokens.and_then(|tokens| tokens.iter().map(Value::as_u64).collect());
        tokens.ok_or_else(|| "expected a list of ids in `tokens` of the answer of /tokenize".into())
    }

    /// Source: `TemplateLM._encode_pair` and `LocalCompletionsAPI.parse_logprobs` of lm-evaluation-harness 0.4.13.
    fn log_likelihood(
        &self,
        request: &LogLikelihoodRequest,
        stop: &AtomicBool,
    ) -> std::result::Result<LogLikelihood, String> {
        let context = request.context.trim_end();
        let whole = self.tokens(&format!("{}{}", request.context, request.continuation), stop)?;
        let from = self.tokens(context, stop)?.len();
        if from == 0 || whole.len() <= from {
            return Err("a continuation needs a context, and tokens of its own after it".into());
        }
        let body = json!({
            "model": self.options.model, "prompt": whole, "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 1,
        });
        let answer = self.ask("/completions", body, stop)?.ok_or(TOO_LONG)?;
        let logprobs = answer.pointer("/choices/0/logprobs").ok_or("the server echoes no logprobs")?;
        let list =
            |name: &str| logprobs.get(name).and_then(Value::as_array).ok_or(format!("no {name} in logprobs"));
        let (each, top) = (list("token_logprobs")?, list("top_logprobs")?);
        let (mut sum, mut is_greedy) = (0.0, true);
        for index in from..whole.len() {
            let logprob = each
                .get(index)
                .and_then(Value::as_f64)
                .ok_or("a token of the prompt has no log-probability")?;
            sum += logprob;
            let best = top.get(index).and_then(Value::as_object);
            let best = best.and_then(|top| top.values().filter_map(Value::as_f64).max_by(f64::total_cmp));
            is_greedy &= best.is_none_or(|best| logprob >= best);
        }
        Ok(LogLikelihood { sum, is_greedy, context_tokens: from, continuation_tokens: whole.len() - from })
    }

    fn generate(
        &self,
        request: &GenerateRequest,
        stop: &AtomicBool,
    ) -> std::result::Result<Generation, String> {
        let options = &self.options;
        let limit = if options.max_completion_tokens { "max_completion_tokens" } else { "max_tokens" };
        let mut body = json!({
            "model": options.model, "temperature": request.temperature, limit: request.max_tokens, "n": 1,
        });
        if !request.stop.is_empty() {
            body["stop"] = json!(request.stop);
        }
        if request.temperature > 0.0 {
            body["seed"] = json!(request.seed);
        }
        if request.json {
            body["response_format"] = json!({ "type": "json_object" });
        }
        match &request.prompt {
            Prompt::Text(text) => {
                body["prompt"] = json!(text);
                let Some(answer) = self.ask("/completions", body, stop)? else { return Ok(too_long()) };
                let text = answer.pointer("/choices/0/text").and_then(Value::as_str).unwrap_or_default();
                Ok(generation(&answer, text, Vec::new()))
            }
            Prompt::Chat { messages, tools, prefill } => {
                body["messages"] = json!(self.messages(messages));
                if let Some(prefill) = prefill {
                    let list = body["messages"].as_array_mut().expect("made a line above: this is a bug");
                    list.push(json!({ "role": "assistant", "content": prefill }));
                    body["add_generation_prompt"] = json!(false);
                    body["continue_final_message"] = json!(true);
                }
                if !tools.is_empty() {
                    body["tools"] = json!(tools);
                }
                let Some(answer) = self.ask("/chat/completions", body, stop)? else { return Ok(too_long()) };
                let message = answer.pointer("/choices/0/message").cloned().unwrap_or_default();
                let text = message.get("content").and_then(Value::as_str).unwrap_or_default();
                let calls = message.get("tool_calls").and_then(Value::as_array);
                let call = |call: &Value| {
                    let function = call.get("function")?;
                    // Some servers write arguments as an object where OpenAI has a string.
                    let arguments = match function.get("arguments") {
                        Some(Value::String(text)) => text.clone(),
                        Some(other) => other.to_string(),
                        None => String::new(),
                    };
                    Some(ToolCall { name: function.get("name")?.as_str()?.to_owned(), arguments })
                };
                let calls = calls.into_iter().flatten().filter_map(call).collect();
                let mut generation = generation(&answer, text, calls);
                if message.get("refusal").is_some_and(Value::is_string) {
                    generation.ended = Ended::Refused;
                }
                Ok(generation)
            }
        }
    }

    /// Messages as the server takes them.
    fn messages(&self, messages: &[Message]) -> Vec<Value> {
        let mut system = String::new();
        let mut list = Vec::new();
        for message in messages {
            let mut value = Value::from(message.clone());
            if self.options.no_system && message.role() == "system" {
                system = format!("{system}{}\n\n", message.text().unwrap_or_default());
                continue;
            }
            if !system.is_empty() {
                value["content"] = json!(std::mem::take(&mut system) + message.text().unwrap_or_default());
            }
            for call in value.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
                // The API wants a string where templates want an object.
                if let Some(arguments) =
                    call.pointer_mut("/function/arguments").filter(|value| !value.is_string())
                {
                    *arguments = json!(arguments.to_string());
                }
            }
            list.push(value);
        }
        list
    }
}

const TOO_LONG: &str = "the request does not fit the context of the server";

fn too_long() -> Generation {
    Generation {
        text: String::new(),
        tool_calls: Vec::new(),
        ended: Ended::TooLong,
        prompt_tokens: 0,
        completion_tokens: 0,
    }
}

fn generation(answer: &Value, text: &str, tool_calls: Vec<ToolCall>) -> Generation {
    let ended = match answer.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
        Some("length") => Ended::Length,
        Some("content_filter") => Ended::Refused,
        _ => Ended::Stop,
    };
    let count =
        |name: &str| answer.pointer(&format!("/usage/{name}")).and_then(Value::as_u64).unwrap_or(0) as usize;
    Generation {
        text: text.to_owned(),
        tool_calls,
        ended,
        prompt_tokens: count("prompt_tokens"),
        completion_tokens: count("completion_tokens"),
    }
}
