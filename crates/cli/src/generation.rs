//! Requests through the engine, and text out of its tokens.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

use anyhow::Result;
use kanana_engine::{
    Engine, FinishReason, Logprobs, Request, SamplingParams, SequenceError, SequenceId, StepOutput,
};
use kanana_model::GenerationDefaults;
use kanana_tokenizer::{Specials, StopStrings, TextStream, Tokenizer};

use crate::args::SamplingArgs;
use crate::signals::Guard;

/// The flags, and where they are silent the checkpoint's generation_config.json.
///
/// A filter (`--top-k`, `--top-p`, `--min-p`) without any temperature samples at 1: at 0 it could do nothing.
pub fn sampling_params(args: &SamplingArgs, defaults: &GenerationDefaults) -> SamplingParams {
    let suggested = suggested(defaults);
    let filtered = args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some();
    let default_temperature = match (defaults.do_sample, filtered) {
        (Some(true), _) => suggested.temperature,
        (_, true) => 1.0,
        (_, false) => 0.0,
    };
    SamplingParams {
        temperature: args.temperature.unwrap_or(default_temperature),
        top_k: args.top_k.unwrap_or(suggested.top_k),
        top_p: args.top_p.unwrap_or(suggested.top_p),
        min_p: args.min_p.unwrap_or(suggested.min_p),
        repetition_penalty: args.repetition_penalty.unwrap_or(suggested.repetition_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(0.0),
        frequency_penalty: args.frequency_penalty.unwrap_or(0.0),
        logit_bias: args.logit_bias.iter().copied().collect(),
        seed: args.seed,
        stop_token_ids: args.stop_token_id.clone(),
        ignore_eos: args.ignore_eos,
        max_tokens: args.max_tokens.or(suggested.max_tokens),
        min_tokens: args.min_tokens,
        ..SamplingParams::default()
    }
}

/// What generation_config.json suggests, and where it is silent the model's own distribution, as OpenAI has it.
pub fn suggested(file: &GenerationDefaults) -> SamplingParams {
    let narrow = |value: Option<f64>| value.map(|value| value as f32);
    let temperature = match file.do_sample {
        Some(false) => 0.0,
        _ => narrow(file.temperature).unwrap_or(1.0),
    };
    SamplingParams {
        temperature,
        top_k: file.top_k.unwrap_or(0),
        top_p: narrow(file.top_p).unwrap_or(1.0),
        min_p: narrow(file.min_p).unwrap_or(0.0),
        repetition_penalty: narrow(file.repetition_penalty).unwrap_or(1.0),
        max_tokens: file.max_new_tokens,
        ..SamplingParams::default()
    }
}

/// How an answer becomes text.
#[derive(Clone)]
pub struct Decoding {
    /// None: token ids are all there is.
    pub tokenizer: Option<Tokenizer>,
    /// Control tokens are left in the text.
    pub specials: Specials,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    Stop,
    Length,
    Interrupted,
    Failed(SequenceError),
}

impl Finish {
    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Interrupted => "interrupted",
            Finish::Failed(_) => "error",
        }
    }
}

/// What was generated for one request, so far or in all.
pub struct Answer {
    pub ids: Vec<u32>,
    /// Empty without a tokenizer.
    pub text: String,
    pub logprobs: Vec<Logprobs>,
    pub prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    /// None while it runs.
    pub finish: Option<Finish>,
    /// From the start of the run to the first token, and to the last.
    pub first_token: Duration,
    pub last_token: Duration,
}

impl Answer {
    /// Tokens per second after the first token.
    pub fn decode_rate(&self) -> f64 {
        let seconds = (self.last_token - self.first_token).as_secs_f64();
        if seconds > 0.0 { (self.ids.len() - 1) as f64 / seconds } else { 0.0 }
    }
}

/// What happens during a run.
pub enum Event<'a> {
    /// A request got a token, which made this text certain (often none).
    Token { id: u32, text: &'a str },
    /// Request `index` has ended; this is the rest of its text.
    Done { index: usize, answer: &'a Answer, text: &'a str },
}

struct Running {
    index: usize,
    answer: Answer,
    stream: Option<TextStream>,
    stops: StopStrings,
    min_tokens: usize,
}

impl Running {
    fn new(index: usize, decoding: &Decoding, min_tokens: usize) -> Self {
        Running {
            index,
            answer: Answer {
                ids: Vec::new(),
                text: String::new(),
                logprobs: Vec::new(),
                prompt_logprobs: None,
                finish: None,
                first_token: Duration::ZERO,
                last_token: Duration::ZERO,
            },
            stream: decoding.tokenizer.as_ref().map(|tokenizer| tokenizer.stream(decoding.specials)),
            stops: StopStrings::new(decoding.stop.clone()),
            min_tokens,
        }
    }

    /// Takes what a step brought and gives the text that became certain.
    fn accept(&mut self, output: StepOutput, elapsed: Duration) -> Result<String> {
        let answer = &mut self.answer;
        answer.logprobs.extend(output.logprobs);
        answer.prompt_logprobs = answer.prompt_logprobs.take().or(output.prompt_logprobs);
        answer.finish = output.finished.map(|finished| match finished {
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length => Finish::Length,
            FinishReason::Error(error) => Finish::Failed(error),
        });
        let Some(id) = output.token else { return Ok(String::new()) };
        if answer.ids.is_empty() {
            answer.first_token = elapsed;
        }
        answer.last_token = elapsed;
        answer.ids.push(id);
        let Some(stream) = &mut self.stream else { return Ok(String::new()) };
        let text = stream.push(id)?;
        if answer.ids.len() <= self.min_tokens {
            // Too early to stop: what comes before the minimum is passed by the matcher.
            answer.text += &text;
            return Ok(text);
        }
        let released = self.stops.push(&text);
        if released.stopped_by.is_some() {
            answer.finish = Some(Finish::Stop);
        }
        answer.text += &released.text;
        Ok(released.text)
    }

    /// Tells the end, with the text that was held back until nothing could follow.
    fn end(mut self, on_event: &mut impl FnMut(Event<'_>) -> Result<()>) -> Result<()> {
        let mut text = String::new();
        if let Some(stream) = &mut self.stream {
            text = self.stops.push(&stream.finish()?).text;
            text += &self.stops.finish();
            self.answer.text += &text;
        }
        on_event(Event::Done { index: self.index, answer: &self.answer, text: &text })
    }
}

/// Runs requests to their end, many at once, and tells `on_event` what happens. Ctrl-C ends them all where they are.
///
/// Errors: a request that the engine refuses, a failure of the machine, or what `on_event` returns.
pub fn run(
    engine: &mut Engine,
    requests: Vec<Request>,
    decoding: &Decoding,
    interrupt: &Guard<'_>,
    mut on_event: impl FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    let mut running: HashMap<SequenceId, Running> = HashMap::new();
    for (index, request) in requests.into_iter().enumerate() {
        let min_tokens = request.params.min_tokens;
        running.insert(engine.add(request)?, Running::new(index, decoding, min_tokens));
    }
    let outcome = drive(engine, &mut running, start, interrupt, &mut on_event);
    for &id in running.keys() {
        engine.cancel(id);
    }
    outcome?;
    let mut interrupted: Vec<Running> = running.into_values().collect();
    interrupted.sort_by_key(|sequence| sequence.index);
    for mut sequence in interrupted {
        sequence.answer.finish = Some(Finish::Interrupted);
        sequence.end(&mut on_event)?;
    }
    Ok(())
}

/// Steps until all sequences have ended and left `running`, or Ctrl-C leaves the rest there.
fn drive(
    engine: &mut Engine,
    running: &mut HashMap<SequenceId, Running>,
    start: Instant,
    interrupt: &Guard<'_>,
    on_event: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    while !running.is_empty() && !interrupt.requested() {
        for output in engine.step()? {
            let (id, token) = (output.id, output.token);
            let Some(sequence) = running.get_mut(&id) else { continue };
            let text = sequence.accept(output, start.elapsed())?;
            if let Some(token) = token {
                on_event(Event::Token { id: token, text: &text })?;
            }
            if sequence.answer.finish.is_some() {
                engine.cancel(id); // the engine does not know of stop strings
                if let Some(ended) = running.remove(&id) {
                    ended.end(on_event)?;
                }
            }
        }
    }
    Ok(())
}

/// A seed that nobody chose: the standard library's source of random hash keys.
pub fn fresh_seed() -> u64 {
    // 53 bits, so that JSON readers with doubles do not change it.
    RandomState::new().build_hasher().finish() >> 11
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn check(flags: &str, defaults: &str, expected: impl Fn(&SamplingParams) -> bool) {
        let args = Flags::parse_from(format!("x {flags}").split_whitespace()).sampling;
        let defaults = GenerationDefaults::from_json_str(defaults, "generation_config.json").unwrap();
        let params = sampling_params(&args, &defaults);
        assert!(expected(&params), "{flags} over {defaults:?}: {params:?}");
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_greedy() {
        let file = r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 7}"#;
        check("", "{}", |p| p.temperature == 0.0 && p.top_p == 1.0 && p.max_tokens.is_none());
        check("", file, |p| p.temperature == 0.6 && p.top_p == 0.9 && p.max_tokens == Some(7));
        check("--temperature 0 --max-tokens 3", file, |p| p.temperature == 0.0 && p.max_tokens == Some(3));
        check("--top-p 0.5", file, |p| p.temperature == 0.6 && p.top_p == 0.5);
        check("", r#"{"temperature": 0.6}"#, |p| p.temperature == 0.0);
        check("", r#"{"do_sample": true}"#, |p| p.temperature == 1.0);
        check("--top-k 5", "{}", |p| p.temperature == 1.0 && p.top_k == 5);
    }
}
