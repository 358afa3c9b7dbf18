//! `kanana`: the command line. Wires the libraries together and does no mathematics of its own.
//!
//! One way through the files: `args` (flags) → `commands/` (one file each) → `load` (a checkpoint becomes an engine,
//! after `budget` said that it fits) → `generation` (requests become text) → `output`. Errors end in `hints`.
//! Tests: `cargo test -p kanana`.

mod args;
mod budget;
mod commands;
mod disk;
mod embedded;
mod examinee;
mod generation;
mod hints;
mod hub;
mod load;
mod memory;
mod output;
mod progress;
mod signals;
mod text;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use kanana_kernels::runtime::Isa;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};
use commands::serve::LogFormat;
use commands::{
    bench, chat, completions, convert, data, eval, generate, inspect, niah, plot, pull, quantize, report,
    score, serve, tokenize, train,
};

fn main() -> ExitCode {
    kanana_eval::sandbox::enter_if_launched();
    let cli = Cli::parse();
    start_log(&cli.command);
    run(&cli.command).unwrap_or_else(|error| hints::report(&error))
}

fn run(command: &Command) -> Result<ExitCode> {
    let hint = "set it to one of these, or to nothing for the fastest";
    Isa::chosen().map_err(|error| hints::failure(error, hint))?;
    match command {
        Command::Chat(args) => return chat::run(args),
        Command::Generate(args) => return generate::run(args),
        Command::Inspect(args) => return inspect::run(args),
        Command::Tokenize(args) => tokenize::run(args)?,
        Command::Pull(args) => pull::run(args)?,
        Command::Bench(args) => bench::run(args)?,
        Command::Eval(args) => return eval::run(args),
        Command::Perplexity(args) => score::perplexity(args)?,
        Command::Compare(args) => score::compare(args)?,
        Command::Convert(args) => convert::run(args)?,
        Command::Quantize(args) => quantize::run(args)?,
        Command::Train(args) => return train::run(args),
        Command::Niah(args) => return niah::run(args),
        Command::Plot(args) => plot::run(args)?,
        Command::Report(args) => report::run(args)?,
        Command::Data(args) => data::run(args)?,
        Command::Serve(args) => serve::run(args)?,
        Command::Tokenizer(args) => data::run_tokenizer(args)?,
        Command::Completions(args) => completions::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the libraries tell goes to standard error, as much of it as `KANANA_LOG` asks for; a server tells what it answers.
fn start_log(command: &Command) {
    let (default, json) = match command {
        Command::Serve(args) => (Some("info"), args.log_format == LogFormat::Json),
        _ => (None, false),
    };
    let asked = EnvFilter::try_from_env("KANANA_LOG").ok();
    let Some(filter) = asked.or_else(|| default.map(EnvFilter::new)) else { return };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match json {
        true => log.json().flatten_event(true).init(),
        false => log.init(),
    }
}
