//! `kanana chat`: a conversation in the terminal, or line by line from a pipe.

pub mod conversation;
mod input;
mod slash;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use kanana_engine::{Engine, EngineError, Request, SamplingParams};
use kanana_tokenizer::{Message, Specials};

use self::conversation::Conversation;
use self::input::{Event as InputEvent, Input};
use self::slash::{COMMANDS, Slash};
use crate::args::{ContextArgs, MachineArgs, ModelArgs, SamplingArgs, SpeculationArgs};
use crate::budget::Demand;
use crate::generation::{self, Answer, Decoding, Event, Finish};
use crate::hints::{self, failure};
use crate::load::Source;
use crate::memory;
use crate::output::{self, Align, Style, Table};
use crate::signals::{EXIT_INTERRUPTED, Interrupt};
use crate::text::{TemplateArgs, Text, no_tokenizer};

/// A conversation needs at least this much context.
const LEAST_CONTEXT: usize = 1024;

/// Talk to a model.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana chat --model kakaocorp/kanana-1.5-2.1b-instruct-2505
  kanana chat --model ./checkpoint --system \"너는 친절한 비서야.\" --temperature 0.7
  printf '안녕\\n오늘 뭐 먹지?\\n' | kanana chat --model ./checkpoint

Ctrl-C stops the answer, Ctrl-D leaves, /help lists the commands. A line that ends in a backslash goes on in the next one,
and so does everything between two \"\"\". From a pipe every line is a message, and only the answers are printed.")]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    template: TemplateArgs,

    /// When the context is full, forget the oldest question and answer instead of refusing
    #[arg(long, help_heading = "Chat")]
    drop_oldest: bool,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    context: ContextArgs,

    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    speculation: SpeculationArgs,
}

/// Runs the conversation to its end.
pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    let source = Source::open(&args.model.model, &args.context.rope)?;
    let text = Text::open(&source.dir, source.config.vocab_size, args.template.chat_template.as_deref())?;
    let Some(text) = text else { return Err(no_tokenizer(&source.dir)) };
    let context = source.context(&args.context)?;
    let least = if args.context.max_context.is_some() { context } else { context.min(LEAST_CONTEXT) };
    let demand = Demand { context, least, sequences: 1, positions: context };
    let draft = source.draft(&args.speculation, &args.context.rope)?;
    let budget = source.plan(demand, &args.machine.memory, draft.as_ref())?;

    let interrupt = Interrupt::install()?;
    let engine =
        source.engine(&budget, args.machine.threads(), &args.speculation.speculate, draft.as_ref())?;
    let mut params = generation::sampling_params(&args.sampling, &source.defaults);
    if !args.sampling.ignore_eos {
        params.stop_token_ids.extend(text.ends_of_turn());
    }
    let decoding = Decoding {
        tokenizer: Some(text.tokenizer.clone()),
        specials: Specials::Skip,
        stop: args.sampling.stop.clone(),
    };
    let input = Input::open()?;
    let mut chat = Chat {
        conversation: Conversation::new(args.template.system.clone()),
        context: budget.max_context,
        stats: Stats::default(),
        interactive: input.is_terminal(),
        args,
        text,
        engine,
        params,
        decoding,
        interrupt,
    };
    chat.greet(&source.name);
    chat.talk(input)
}

/// A running conversation.
struct Chat<'a> {
    args: &'a ChatArgs,
    text: Text,
    engine: Engine,
    params: SamplingParams,
    decoding: Decoding,
    interrupt: Interrupt,
    conversation: Conversation,
    context: usize, // tokens
    stats: Stats,
    interactive: bool,
}

/// What `/stats` tells.
#[derive(Default)]
struct Stats {
    answers: usize,
    prompt_tokens: usize,
    cached_tokens: u64,
    generated: usize,
    first_token_s: f64,
    rate: f64, // tokens per second
}

/// What follows an input.
enum Next {
    Go,
    Leave(ExitCode),
}

impl Chat<'_> {
    fn greet(&self, name: &str) {
        if self.interactive {
            let style = Style::stderr();
            eprintln!("{}{name}{}", style.bold(), style.reset());
            output::note(format_args!(
                "{} tokens of context; /help lists the commands, Ctrl-D leaves",
                self.context
            ));
        }
    }

    fn talk(&mut self, mut input: Input) -> Result<ExitCode> {
        loop {
            let next = match input.next()? {
                InputEvent::End => Next::Leave(ExitCode::SUCCESS),
                InputEvent::Interrupted => {
                    output::note("to leave, type /exit or press Ctrl-D");
                    Next::Go
                }
                InputEvent::Message(message) => match slash::parse(&message) {
                    None => self.ask(message)?,
                    Some(Ok(command)) => self.command(command)?,
                    Some(Err(problem)) => self.complain(failure(problem, "/help lists the commands"))?,
                },
            };
            if let Next::Leave(code) = next {
                return Ok(code);
            }
        }
    }

    /// On a terminal an error is told and the conversation goes on; from a pipe nobody could react, so it ends.
    fn complain(&self, error: anyhow::Error) -> Result<Next> {
        if !self.interactive {
            return Err(error);
        }
        hints::report(&error);
        Ok(Next::Go)
    }

    fn command(&mut self, command: Slash) -> Result<Next> {
        match command {
            Slash::Help => self.help(),
            Slash::System(None) => output::note(self.conversation.system().unwrap_or("no system prompt")),
            Slash::System(text) => {
                self.conversation = Conversation::new(text);
                output::note("system prompt set, conversation started over");
            }
            Slash::Reset => {
                self.conversation.reset();
                output::note("conversation started over");
            }
            Slash::Undo => self.undo(),
            Slash::Retry => {
                if let Some(question) = self.conversation.undo() {
                    return self.ask(question);
                }
                output::note("nothing to answer again");
            }
            Slash::Save(path) => return self.save(&path),
            Slash::Load(path) => return self.load(&path),
            Slash::Stats => self.show_stats(),
            Slash::Exit => return Ok(Next::Leave(ExitCode::SUCCESS)),
        }
        Ok(Next::Go)
    }

    fn help(&self) {
        let mut table = Table::new(&[Align::Left, Align::Left]);
        COMMANDS
            .iter()
            .for_each(|help| table.row([format!("{} {}", help.name, help.argument), help.what.into()]));
        eprint!("{}", table.render());
    }

    fn undo(&mut self) {
        match self.conversation.undo() {
            Some(question) => output::note(format_args!("forgotten: {question}")),
            None => output::note("nothing to forget"),
        }
    }

    fn save(&self, path: &Path) -> Result<Next> {
        match self.conversation.save(path) {
            Ok(()) => output::note(format_args!(
                "{} messages saved to {}",
                self.conversation.count(),
                path.display()
            )),
            Err(error) => return self.complain(error),
        }
        Ok(Next::Go)
    }

    fn load(&mut self, path: &Path) -> Result<Next> {
        match Conversation::load(path) {
            Ok(conversation) => self.conversation = conversation,
            Err(error) => return self.complain(error),
        }
        output::note(format_args!("{} messages loaded", self.conversation.count()));
        Ok(Next::Go)
    }

    fn show_stats(&self) {
        let Stats { answers, prompt_tokens, cached_tokens, generated, first_token_s, rate } = &self.stats;
        let mut table = Table::new(&[Align::Left, Align::Left]);
        table.row(["answers", &answers.to_string()]);
        let used = if self.conversation.count() == 0 { 0 } else { prompt_tokens + generated };
        table.row(["context", &format!("{used} of {} tokens used", self.context)]);
        table.row([
            "last prompt",
            &format!("{prompt_tokens} tokens, {cached_tokens} of them from the prefix cache"),
        ]);
        table.row(["last answer", &format!("{generated} tokens, {rate:.1} per second")]);
        table.row(["first token", &format!("after {first_token_s:.2} s")]);
        if let Some(accepted) = self.engine.stats().accepted_length() {
            table.row(["speculation", &format!("{accepted:.2} proposed tokens accepted in a step")]);
        }
        if let Some(peak) = memory::peak() {
            table.row(["peak memory", &output::bytes(peak)]);
        }
        eprint!("{}", table.render());
    }

    /// Puts a question and prints the answer as it comes.
    fn ask(&mut self, question: String) -> Result<Next> {
        let before = self.conversation.clone();
        self.conversation.push(Message::user(question));
        let answered = self.encode().and_then(|prompt| self.answer(prompt));
        match answered {
            Ok(answer) => self.keep(answer),
            Err(error) => {
                self.conversation = before;
                if error.is::<output::OutputError>() {
                    return Err(error);
                }
                self.complain(error)
            }
        }
    }

    /// Tokens that an answer should find free where old ones may go: what it may take, but no more than a quarter.
    fn room(&self) -> usize {
        (self.context / 4).min(self.params.max_tokens.unwrap_or(usize::MAX))
    }

    /// The tokens of the conversation; where they fill the context, the oldest are dropped or the user is told.
    fn encode(&mut self) -> Result<Vec<u32>> {
        loop {
            let request = self.args.template.request(self.conversation.messages())?;
            let prompt = self.text.encode_chat(&request)?;
            let fits = prompt.len() < self.context;
            if fits && (!self.args.drop_oldest || prompt.len() + self.room() <= self.context) {
                return Ok(prompt);
            }
            if !self.args.drop_oldest {
                let hint = "/reset starts over, /undo takes the last question back; \
                            or start with --drop-oldest or a larger --max-context";
                let error =
                    EngineError::PromptTooLong { prompt: prompt.len(), generated: 1, context: self.context };
                return Err(failure(format_args!("the context is full: {error}"), hint));
            }
            if !self.conversation.drop_oldest() {
                if fits {
                    return Ok(prompt);
                }
                return Err(failure(
                    format_args!(
                        "this message alone has {} tokens, the context holds {}",
                        prompt.len(),
                        self.context
                    ),
                    "send less text at once",
                ));
            }
            output::note("the context is full: the oldest question and its answer were forgotten");
        }
    }

    fn answer(&mut self, prompt: Vec<u32>) -> Result<Finished> {
        let cached_before = self.engine.stats().cached_tokens;
        let prompt_tokens = prompt.len();
        let request = Request { prompt, params: self.params.clone() };
        let guard = self.interrupt.guard();
        let mut finished = None;
        let mut line_open = true;
        generation::run(&mut self.engine, vec![request], &self.decoding, &guard, |event| {
            let (Event::Token { text, .. } | Event::Done { text, .. }) = event;
            if !text.is_empty() {
                line_open = !text.ends_with('\n');
                output::print(text)?;
            }
            if let Event::Done { answer, .. } = event {
                finished = Some(Finished::of(answer));
            }
            Ok(())
        })?;
        if line_open {
            output::print("\n")?;
        }
        let finished = finished.expect("every request ends with an answer: this is a bug");
        self.stats = Stats {
            answers: self.stats.answers + 1,
            prompt_tokens,
            cached_tokens: self.engine.stats().cached_tokens - cached_before,
            generated: finished.tokens,
            first_token_s: finished.first_token_s,
            rate: finished.rate,
        };
        match finished.finish {
            Finish::Failed(error) => Err(error.into()),
            _ => Ok(finished),
        }
    }

    /// Remembers an answer, also a part of one: the model goes on from what the user has seen.
    fn keep(&mut self, answer: Finished) -> Result<Next> {
        self.conversation.push(Message::assistant(answer.text));
        match answer.finish {
            Finish::Interrupted if !self.interactive => {
                return Ok(Next::Leave(ExitCode::from(EXIT_INTERRUPTED)));
            }
            Finish::Interrupted => output::note("stopped"),
            Finish::Length if self.interactive => {
                output::note("cut: --max-tokens or the context was reached")
            }
            _ => {}
        }
        Ok(Next::Go)
    }
}

/// An answer that has ended.
struct Finished {
    text: String,
    finish: Finish,
    tokens: usize,
    first_token_s: f64,
    rate: f64, // tokens per second
}

impl Finished {
    fn of(answer: &Answer) -> Self {
        Finished {
            text: answer.text.clone(),
            finish: answer.finish.clone().unwrap_or(Finish::Interrupted),
            tokens: answer.ids.len(),
            first_token_s: answer.first_token.as_secs_f64(),
            rate: answer.decode_rate(),
        }
    }
}
