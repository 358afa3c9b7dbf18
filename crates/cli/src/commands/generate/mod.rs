//! `kanana generate`: continues one prompt, or a file of them.

mod output;
mod prompts;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use kanana_engine::{EngineError, Request, SamplingParams};
use kanana_tokenizer::{Message, Specials};

use self::output::{Report, Writer};
use self::prompts::{Input, Prompt, PromptArgs, Prompts};
pub use self::prompts::{parse_ids, read_text};
use crate::args::{ContextArgs, MachineArgs, ModelArgs, OutputArgs, SamplingArgs, SpeculationArgs};
use crate::budget::Demand;
use crate::generation::{self, Decoding};
use crate::hints::failure;
use crate::load::Source;
use crate::output as terminal;
use crate::signals::{EXIT_INTERRUPTED, Interrupt};
use crate::text::{TemplateArgs, Text, no_tokenizer};

/// Sequences of a file of prompts that run at once.
const BATCH: usize = 64;

/// Continue a text, token ids, or every line of a file.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana generate --model ./checkpoint --prompt \"옛날 옛적에\" --max-tokens 64
  kanana generate --model ./checkpoint --chat --prompt \"대한민국의 수도는?\" --temperature 0.7
  echo \"Once upon a time\" | kanana generate --model ./checkpoint
  kanana generate --model ./checkpoint --prompt-ids 1 --max-tokens 230 --temperature 0 --threads 2 --json
  kanana generate --model ./checkpoint --prompts prompts.jsonl --max-tokens 256 > answers.jsonl

One prompt prints its text as it comes, or one JSON object with --json. A file of prompts prints one JSON object a line,
in the order of the file. Ctrl-C ends the run and prints what there is (exit code 130).")]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    prompts: PromptArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    report: ReportArgs,

    /// Put the prompt to the model as a user's message, through the chat template
    #[arg(long, help_heading = "Chat")]
    chat: bool,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    context: ContextArgs,

    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    speculation: SpeculationArgs,
}

/// What is told about the answer.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub struct ReportArgs {
    #[command(flatten)]
    output: OutputArgs,

    /// With --json: the log-probability of every generated token, and of the N likeliest beside it
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,

    /// With --json: the same for the tokens of the prompt
    #[arg(long, value_name = "N")]
    prompt_logprobs: Option<usize>,

    /// Leave control tokens such as <|eot_id|> in the text
    #[arg(long)]
    special: bool,
}

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let prompts = args.prompts.read()?;
    args.check_use(&prompts)?;
    let source = Source::open(&args.model.model, &args.context.rope)?;
    let text = Text::open(&source.dir, source.config.vocab_size, args.template.chat_template.as_deref())?;
    let context = source.context(&args.context)?;

    let params = args.params(&source);
    let seed = params.seed.unwrap_or(0);
    let requests = prompts.iter().enumerate().map(|(index, prompt)| {
        let ids = prompt.locate(args.encode(prompt, text.as_ref(), &source))?;
        prompt.locate(check_ids(&ids, &params, context, source.config.vocab_size))?;
        // Equal prompts of one file get different samples, and the same again with the same --seed.
        let mut params = SamplingParams { seed: Some(seed.wrapping_add(index as u64)), ..params.clone() };
        if let Some(text) = text.as_ref().filter(|_| args.is_chat(prompt) && !args.sampling.ignore_eos) {
            params.stop_token_ids.extend(text.ends_of_turn());
        }
        Ok(Request { prompt: ids, params })
    });
    let requests = requests.collect::<Result<Vec<Request>>>()?;
    let decoding = args.decoding(text.as_ref(), &source)?;

    let draft = source.draft(&args.speculation, &args.context.rope)?;
    let budget = source.plan(demand(&requests, context), &args.machine.memory, draft.as_ref())?;
    let interrupt = Interrupt::install()?;
    let started = Instant::now();
    let mut engine =
        source.engine(&budget, args.machine.threads(), &args.speculation.speculate, draft.as_ref())?;
    let report = Report {
        model: source.name.clone(),
        load: started.elapsed(),
        tokenizer: text.map(|text| text.tokenizer),
        sampled: params.temperature > 0.0,
    };

    let guard = interrupt.guard();
    let mut writer = Writer::new(&report, &prompts, &requests, args.report.output.json);
    generation::run(&mut engine, requests.clone(), &decoding, &guard, |event| writer.take(event))?;
    writer.finish()?;
    if let Some(accepted) = engine.stats().accepted_length() {
        terminal::note(format_args!("speculation: {accepted:.2} proposed tokens accepted in a step"));
    }
    Ok(if guard.requested() { ExitCode::from(EXIT_INTERRUPTED) } else { ExitCode::SUCCESS })
}

impl GenerateArgs {
    /// Refuses flags that nothing in this run would read, before anything is loaded.
    fn check_use(&self, prompts: &Prompts) -> Result<()> {
        if let (Some(flag), false) =
            (self.template.given(), prompts.iter().any(|prompt| self.is_chat(prompt)))
        {
            return Err(failure(
                format_args!("{flag} needs a conversation, and the prompt is a plain text"),
                "add --chat to put the prompt through the chat template",
            ));
        }
        let logprobs = self.report.logprobs.or(self.report.prompt_logprobs);
        if logprobs.is_some() && !self.report.output.json && matches!(prompts, Prompts::One(_)) {
            return Err(failure("log-probabilities are printed as JSON only", "add --json"));
        }
        Ok(())
    }

    /// Whether a prompt goes through the chat template.
    fn is_chat(&self, prompt: &Prompt) -> bool {
        match prompt.input {
            Input::Messages(_) => true,
            Input::Text(_) => self.chat,
            Input::Ids(_) => false,
        }
    }

    fn params(&self, source: &Source) -> SamplingParams {
        let mut params = generation::sampling_params(&self.sampling, &source.defaults);
        params.seed.get_or_insert_with(generation::fresh_seed);
        params.logprobs = self.report.logprobs;
        params.prompt_logprobs = self.report.prompt_logprobs;
        params
    }

    fn encode(&self, prompt: &Prompt, text: Option<&Text>, source: &Source) -> Result<Vec<u32>> {
        let chat = |text: &Text, messages: Vec<Message>| {
            text.encode_chat(&self.template.request(self.template.with_system(messages))?)
        };
        let ids = match (&prompt.input, text) {
            (Input::Ids(ids), _) => ids.clone(),
            (_, None) => return Err(no_tokenizer(&source.dir)),
            (Input::Text(content), _) if content.is_empty() => Vec::new(),
            (Input::Text(content), Some(text)) if self.chat => chat(text, vec![Message::user(content)])?,
            (Input::Text(content), Some(text)) => text.tokenizer.encode(content)?,
            (Input::Messages(messages), Some(text)) => chat(text, messages.clone())?,
        };
        if ids.is_empty() {
            return Err(failure(
                "the prompt is empty",
                "to start from nothing, give the token that begins a text as --prompt-ids",
            ));
        }
        Ok(ids)
    }

    fn decoding(&self, text: Option<&Text>, source: &Source) -> Result<Decoding> {
        if text.is_none() && !self.sampling.stop.is_empty() {
            return Err(no_tokenizer(&source.dir).context("--stop needs text"));
        }
        Ok(Decoding {
            tokenizer: text.map(|text| text.tokenizer.clone()),
            specials: if self.report.special { Specials::Keep } else { Specials::Skip },
            stop: self.sampling.stop.clone(),
        })
    }
}

/// Refuses what the engine would refuse, before the weights are loaded.
fn check_ids(prompt: &[u32], params: &SamplingParams, context: usize, vocab_size: usize) -> Result<()> {
    if let Some(&token) = prompt.iter().find(|&&token| token as usize >= vocab_size) {
        return Err(EngineError::TokenOutOfRange { field: "prompt", token, vocab_size }.into());
    }
    let generated = params.max_tokens.unwrap_or(1).min(1);
    if prompt.len() + generated > context {
        return Err(EngineError::PromptTooLong { prompt: prompt.len(), generated, context }.into());
    }
    Ok(())
}

/// Room for the longest sequence, and for as many like it as may run at once.
fn demand(requests: &[Request], context: usize) -> Demand {
    let room = |request: &Request, otherwise: usize| {
        let asked = request.params.max_tokens.map(|tokens| request.prompt.len().saturating_add(tokens));
        asked.unwrap_or(otherwise).min(context)
    };
    let longest = |otherwise: &dyn Fn(&Request) -> usize| {
        requests.iter().map(|request| room(request, otherwise(request))).max().unwrap_or(1)
    };
    Demand {
        context: longest(&|_| context),
        least: longest(&|request| request.prompt.len() + 1),
        sequences: requests.len().min(BATCH),
        positions: context,
    }
}
