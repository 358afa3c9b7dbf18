//! The engine of this process as a language model.
//!
//! Log-likelihoods: a request is its context and all of its continuation but the last token; what the model says after those
//! gives the rest. Requests that differ in the last token only, as the choices " A" to " D" do, are one. Requests are fed in an
//! order that computes a shared prefix once, the longest family first, so that memory runs out at once or never.
//!
//! Source of the tokens of context and continuation, of the truncation and of the windows: `TemplateLM._encode_pair` and
//! `HFLM` of lm-evaluation-harness 0.4.13.

use std::collections::{HashMap, HashSet};

use kanana_engine::{
    Engine, FinishReason, Pooling, Request, SamplingParams, SequenceId, StepOutput, TokenLogprob,
    rolling_windows,
};
use kanana_tokenizer::tools::{self, ToolFormat};
use kanana_tokenizer::{
    ChatRequest, ChatTemplate, Ending, Message, Specials, StopStrings, TextStream, Tokenizer,
};
use serde_json::Value;

use super::{
    Ended, GenerateRequest, Generation, LanguageModel, LogLikelihood, LogLikelihoodRequest, Prompt, Take,
    ToolCall,
};
use crate::embedding::LocalEmbedder;
use crate::{EvalError, Result};

/// Tokens that two prompts must share before one waits for the other: less would not pay for the wait.
const WORTH_WAITING: usize = 32;

/// Tokens of a text that is embedded: those of the family's embedding model.
const MAX_EMBEDDED: usize = 512;

/// Requests that the engine has at once; it runs fewer, and lets the rest wait.
const AT_ONCE: usize = 256;

/// What a [`Local`] is made of.
pub struct LocalParts {
    /// What the model is called in reports; has to say everything that changes its answers (weights, their dtype, scaling).
    pub name: String,
    /// The loop around the model.
    pub engine: Engine,
    /// Tokens that one sequence may have.
    pub max_length: usize,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// Conversations to text.
    pub template: ChatTemplate,
    /// How the tokens of a text become one vector.
    pub pooling: Pooling,
    /// Tokens that end an answer besides those the engine knows.
    pub stop_token_ids: Vec<u32>,
    /// Asked between steps: whether the person wants to stop.
    pub interrupted: Box<dyn Fn() -> bool>,
}

/// A model in this process.
pub struct Local {
    parts: LocalParts,
    tool_format: ToolFormat,
}

impl Local {
    /// The function-call format is the one that the template teaches, or Kanana's.
    pub fn new(parts: LocalParts) -> Self {
        let tool_format = ToolFormat::detect(parts.template.source(true)).unwrap_or(ToolFormat::Kanana);
        Local { parts, tool_format }
    }

    /// Text that no template made: what opens every text is put before it, unless it begins so already.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = &self.parts.tokenizer;
        let opening = tokenizer.special_tokens().get("bos_token").and_then(Value::as_str).unwrap_or_default();
        let opened = !opening.is_empty() && text.starts_with(opening);
        Ok(if opened { tokenizer.encode_rendered(text)? } else { tokenizer.encode(text)? })
    }

    /// The token that a text without a context follows: the opening one, or else the closing one.
    fn prefix_token(&self) -> Result<u32> {
        let special = |name| self.parts.tokenizer.special_token_id(name);
        special("bos_token").or_else(|| special("eos_token")).ok_or_else(|| {
            self.problem("a request has no context, and the tokenizer names no bos_token and no eos_token")
        })
    }

    fn problem(&self, problem: impl ToString) -> EvalError {
        EvalError::Model { model: self.parts.name.clone(), problem: problem.to_string() }
    }

    /// The tokens of context and continuation. The context is never empty; both together have at most one more than fit.
    fn encode_pair(&self, request: &LogLikelihoodRequest) -> Result<(Vec<u32>, Vec<u32>)> {
        let context = request.context.trim_end();
        let continuation = format!("{}{}", &request.context[context.len()..], request.continuation);
        let (mut context, mut continuation) = if context.is_empty() {
            // encoded as lm-evaluation-harness does, without what opens a text: the prefix token stands there
            (vec![self.prefix_token()?], self.parts.tokenizer.encode_rendered(&continuation)?)
        } else {
            let mut whole = self.encode(&format!("{context}{continuation}"))?;
            let context = self.encode(context)?;
            let continuation = whole.split_off(context.len().min(whole.len()));
            (context, continuation)
        };
        if continuation.is_empty() {
            let shown: String = request.continuation.chars().take(40).collect();
            return Err(self.problem(format_args!(
                "the continuation {shown:?} has no tokens of its own after its context"
            )));
        }
        let most = self.parts.max_length + 1;
        if continuation.len() >= most {
            let first = continuation.len() - (most - 1);
            context = vec![continuation[first - 1]];
            continuation.drain(..first);
        }
        let excess = (context.len() + continuation.len()).saturating_sub(most);
        context.drain(..excess);
        Ok((context, continuation))
    }

    /// What a prompt becomes.
    fn render_prompt(&self, prompt: &Prompt) -> Result<(String, Vec<u32>)> {
        match prompt {
            Prompt::Text(text) => Ok((text.clone(), self.encode(text)?)),
            Prompt::Chat { messages, tools, prefill } => {
                let mut messages = messages.clone();
                messages.extend(prefill.as_ref().map(Message::assistant));
                let ending = if prefill.is_some() { Ending::ContinueFinal } else { Ending::GenerationPrompt };
                let tools = (!tools.is_empty()).then(|| tools.clone());
                let request = ChatRequest { messages, tools, ending, ..ChatRequest::default() };
                let text = self.parts.template.render(&request)?;
                let ids = self.parts.tokenizer.encode_rendered(&text)?;
                Ok((text, ids))
            }
        }
    }

    /// Runs jobs to their ends. `on_output` says whether a job is done; what is left when it fails is cancelled.
    fn drive(
        &mut self,
        jobs: Vec<Request>,
        mut on_output: impl FnMut(&Self, usize, StepOutput) -> Result<bool>,
    ) -> Result<()> {
        let order = feeding_order(&jobs);
        let mut running: HashMap<SequenceId, usize> = HashMap::new();
        let outcome = self.feed(&jobs, &order, &mut running, &mut on_output);
        for &id in running.keys() {
            self.parts.engine.cancel(id);
        }
        outcome
    }

    fn feed(
        &mut self,
        jobs: &[Request],
        order: &[usize],
        running: &mut HashMap<SequenceId, usize>,
        on_output: &mut impl FnMut(&Self, usize, StepOutput) -> Result<bool>,
    ) -> Result<()> {
        let mut waiting = order.iter().copied().peekable();
        let mut computed: Option<usize> = None; // the last whose prompt is in the prefix cache
        let mut coming: HashSet<usize> = HashSet::new(); // those whose prompts are not there yet
        while waiting.peek().is_some() || !running.is_empty() {
            while let Some(&job) = waiting.peek() {
                let shared = |other: usize| common_prefix(&jobs[other].prompt, &jobs[job].prompt);
                let soon = coming.iter().map(|&other| shared(other)).max().unwrap_or(0);
                if running.len() >= AT_ONCE || soon >= computed.map_or(0, shared) + WORTH_WAITING {
                    break;
                }
                let id = self.parts.engine.add(jobs[job].clone());
                running.insert(id.map_err(|error| self.problem(error))?, job);
                coming.insert(job);
                waiting.next();
            }
            if (self.parts.interrupted)() {
                return Err(EvalError::Stopped);
            }
            let outputs = self.parts.engine.step().map_err(|error| self.problem(error))?;
            for output in outputs {
                let id = output.id;
                let Some(&job) = running.get(&id) else { continue };
                if coming.remove(&job) {
                    computed = Some(job);
                }
                if let Some(FinishReason::Error(error)) = &output.finished {
                    return Err(self.problem(error));
                }
                let finished = output.finished.is_some();
                if on_output(self, job, output)? || finished {
                    self.parts.engine.cancel(id);
                    running.remove(&id);
                }
            }
        }
        Ok(())
    }

    /// Scores windows of tokens from a position on. Requests that differ in their last token only are computed once.
    fn score(&mut self, windows: &[Window], take: Take<'_, LogLikelihood>) -> Result<()> {
        let mut jobs: Vec<Request> = Vec::new();
        let mut of_job: Vec<Vec<usize>> = Vec::new();
        let mut known: HashMap<(&[u32], usize), usize> = HashMap::new();
        for (index, window) in windows.iter().enumerate() {
            let (&last, prompt) = window.tokens.split_last().expect("windows have two tokens: this is a bug");
            let job = *known.entry((prompt, window.from)).or_insert_with(|| {
                let scored = window.from < prompt.len();
                jobs.push(Request {
                    prompt: prompt.to_vec(),
                    params: SamplingParams {
                        max_tokens: Some(1),
                        logprobs: Some(1),
                        prompt_logprobs: scored.then_some(1),
                        prompt_logprobs_start: window.from,
                        ..SamplingParams::greedy()
                    },
                });
                of_job.push(Vec::new());
                jobs.len() - 1
            });
            of_job[job].push(index);
            jobs[job].params.logprob_token_ids.push(last);
        }
        self.drive(jobs, |_, job, output| {
            let scored = output.prompt_logprobs.unwrap_or_default();
            let mut sum = 0.0;
            let mut is_greedy = true;
            let likeliest = |top: &[TokenLogprob]| top.first().map(|top| top.token);
            for logprobs in scored.into_iter().flatten() {
                sum += f64::from(logprobs.chosen.logprob);
                is_greedy &= likeliest(&logprobs.top) == Some(logprobs.chosen.token);
            }
            let last = output.logprobs.expect("log-probabilities were asked for: this is a bug");
            for (&index, asked) in of_job[job].iter().zip(&last.asked) {
                let window = &windows[index];
                take(
                    index,
                    LogLikelihood {
                        sum: sum + f64::from(asked.logprob),
                        is_greedy: is_greedy && likeliest(&last.top) == Some(asked.token),
                        context_tokens: window.from,
                        continuation_tokens: window.tokens.len() - window.from,
                    },
                )?;
            }
            Ok(true)
        })
    }
}

/// Tokens, those from `from` on to be scored.
struct Window {
    tokens: Vec<u32>,
    from: usize,
}

impl LanguageModel for Local {
    fn name(&self) -> &str {
        &self.parts.name
    }

    fn log_likelihoods(
        &mut self,
        requests: &[LogLikelihoodRequest],
        take: Take<'_, LogLikelihood>,
    ) -> Result<()> {
        let window = |request| {
            let (mut tokens, continuation) = self.encode_pair(request)?;
            let from = tokens.len();
            tokens.extend(continuation);
            Ok(Window { tokens, from })
        };
        let windows: Vec<Window> = requests.iter().map(window).collect::<Result<_>>()?;
        self.score(&windows, take)
    }

    fn rolling_log_likelihoods(&mut self, texts: &[String], take: Take<'_, LogLikelihood>) -> Result<()> {
        let prefix = self.prefix_token()?;
        let mut windows = Vec::new();
        let mut of_window = Vec::new();
        let mut sums = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let tokens = self.parts.tokenizer.encode_rendered(text)?;
            let parts = rolling_windows(&tokens, prefix, self.parts.max_length);
            sums.push((parts.len(), None::<LogLikelihood>));
            if parts.is_empty() {
                let nothing =
                    LogLikelihood { sum: 0.0, is_greedy: true, context_tokens: 0, continuation_tokens: 0 };
                take(index, nothing)?;
            }
            of_window.extend(parts.iter().map(|_| index));
            windows.extend(parts.into_iter().map(|tokens| Window { tokens, from: 1 }));
        }
        self.score(&windows, &mut |window, part| {
            let index = of_window[window];
            let (left, total) = &mut sums[index];
            *left -= 1;
            let total = total.get_or_insert(LogLikelihood {
                sum: 0.0,
                is_greedy: true,
                context_tokens: 0,
                continuation_tokens: 0,
            });
            total.sum += part.sum;
            total.is_greedy &= part.is_greedy;
            total.context_tokens += part.context_tokens;
            total.continuation_tokens += part.continuation_tokens;
            if *left == 0 { take(index, *total) } else { Ok(()) }
        })
    }

    fn generate(&mut self, requests: &[GenerateRequest], take: Take<'_, Generation>) -> Result<()> {
        let mut answers: Vec<Writing> = Vec::new();
        let mut jobs = Vec::new();
        for request in requests {
            if request.json {
                return Err(self.problem("answers held to JSON (of a judge) need a server: --judge-url"));
            }
            let (_, mut prompt) = self.render_prompt(&request.prompt)?;
            let room = self.parts.max_length.saturating_sub(request.max_tokens).max(1);
            prompt.drain(..prompt.len().saturating_sub(room));
            answers.push(Writing::new(&self.parts.tokenizer, request, prompt.len()));
            jobs.push(Request {
                prompt,
                params: SamplingParams {
                    temperature: request.temperature as f32,
                    seed: Some(request.seed),
                    max_tokens: Some(request.max_tokens),
                    stop_token_ids: self.parts.stop_token_ids.clone(),
                    ..SamplingParams::default()
                },
            });
        }
        self.drive(jobs, |this, job, output| {
            let answer = &mut answers[job];
            let done = answer.push(output)?;
            if done {
                take(job, answer.finish(this.tool_format)?)?;
            }
            Ok(done)
        })
    }

    fn embed(&mut self, texts: &[String], instruction: Option<&str>) -> Result<Vec<Vec<f32>>> {
        let LocalParts { name, engine, max_length, tokenizer, pooling, interrupted, .. } = &self.parts;
        let max_tokens = MAX_EMBEDDED.min(*max_length);
        let embedder = LocalEmbedder { name, engine, tokenizer, pooling: *pooling, max_tokens, interrupted };
        embedder.embed(texts, instruction)
    }

    fn render(&self, prompt: &Prompt) -> Result<Option<(String, Vec<u32>)>> {
        self.render_prompt(prompt).map(Some)
    }
}

/// An answer while it is written.
struct Writing {
    stream: TextStream,
    stops: StopStrings,
    text: String,
    prompt_tokens: usize,
    tokens: usize,
    ended: Ended,
    stopped: bool,
    /// The functions that could be called; None where calls are not looked for.
    tools: Option<Vec<String>>,
}

impl Writing {
    fn new(tokenizer: &Tokenizer, request: &GenerateRequest, prompt_tokens: usize) -> Self {
        let tools = match &request.prompt {
            Prompt::Chat { tools, .. } if !tools.is_empty() => {
                let name = |tool: &Value| Some(tool.get("function")?.get("name")?.as_str()?.to_owned());
                Some(tools.iter().filter_map(name).collect())
            }
            _ => None,
        };
        // Calls may stand behind a control token, which must be seen.
        let specials = if tools.is_some() { Specials::Keep } else { Specials::Skip };
        Writing {
            stream: tokenizer.stream(specials),
            stops: StopStrings::new(request.stop.clone()),
            text: String::new(),
            prompt_tokens,
            tokens: 0,
            ended: Ended::Length,
            stopped: false,
            tools,
        }
    }

    /// Takes what a step brought; true where the answer has ended.
    fn push(&mut self, output: StepOutput) -> Result<bool> {
        let ends = output.finished == Some(FinishReason::Stop);
        if let Some(token) = output.token {
            self.tokens += 1;
            if !ends {
                let released = self.stops.push(&self.stream.push(token)?);
                self.text += &released.text;
                self.stopped = released.stopped_by.is_some();
            }
        }
        if ends || self.stopped {
            self.ended = Ended::Stop;
        }
        Ok(output.finished.is_some() || self.stopped)
    }

    fn finish(&mut self, format: ToolFormat) -> Result<Generation> {
        if !self.stopped {
            let released = self.stops.push(&self.stream.finish()?);
            self.text += &released.text;
            match released.stopped_by {
                Some(_) => self.ended = Ended::Stop,
                None => self.text += &self.stops.finish(),
            }
        }
        let mut text = std::mem::take(&mut self.text);
        let mut tool_calls = Vec::new();
        if let Some(names) = self.tools.take() {
            let parsed = tools::parse(format, names, &text);
            text = parsed.text;
            let call = |call: tools::ParsedCall| ToolCall { name: call.name, arguments: call.arguments };
            tool_calls = parsed.calls.into_iter().map(call).collect();
        }
        Ok(Generation {
            text,
            tool_calls,
            ended: self.ended,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.tokens,
        })
    }
}

/// Families of prompts that share a beginning together, the one with the longest member first; sorted within, so that of two
/// neighbours the second finds the most of itself computed.
fn feeding_order(jobs: &[Request]) -> Vec<usize> {
    let mut sorted: Vec<usize> = (0..jobs.len()).collect();
    sorted.sort_by(|&a, &b| jobs[a].prompt.cmp(&jobs[b].prompt).then(a.cmp(&b)));
    let mut families: Vec<Vec<usize>> = Vec::new();
    for job in sorted {
        match families.last_mut() {
            Some(family)
                if family.last().is_some_and(|&last| {
                    common_prefix(&jobs[last].prompt, &jobs[job].prompt) >= WORTH_WAITING
                }) =>
            {
                family.push(job);
            }
            _ => families.push(vec![job]),
        }
    }
    let longest =
        |family: &Vec<usize>| family.iter().map(|&job| jobs[job].prompt.len()).max().unwrap_or_default();
    families.sort_by_key(|family| std::cmp::Reverse(longest(family)));
    families.concat()
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
