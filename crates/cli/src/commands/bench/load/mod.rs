//! `kanana bench load`: how fast an OpenAI-compatible server answers so many clients at once.

mod client;
mod clients;
mod prompts;
mod report;

use std::collections::HashSet;

use anyhow::Result;
use clap::Args;

use self::client::Server;
use self::clients::{Load, Outcome};
use self::prompts::{Form, Lengths, Prompts};
use self::report::{Figures, Report, Subject};
use crate::args::{OutputArgs, positive};
use crate::generation;
use crate::hints::failure;
use crate::output;

/// Measure a server under load
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana bench load http://127.0.0.1:8000
  kanana bench load http://127.0.0.1:8000 --clients 1,8 --prompt-tokens 512 --max-tokens 128 --json
  kanana bench load http://127.0.0.1:8000 --shared-prefix 1024 --clients 1,4
  kanana bench load http://127.0.0.1:8000 --compare http://127.0.0.1:8080

The server may be `kanana serve`, llama-server, vLLM or any other that streams /v1/completions with
ignore_eos: every answer has exactly --max-tokens tokens, the likeliest ones. A client sends its
next request when the last one is answered. Prompts are random, and no two are alike: token ids, or
about as many tokens of words where a server takes only text. Without --seed they are new in every
run, so that no cache of a server knows them. With --shared-prefix, one prompt goes ahead alone at
every number of clients: it misses the cache, the others may hit it. No proxy is used.")]
pub struct LoadArgs {
    /// The server's address
    #[arg(value_name = "URL")]
    url: String,

    /// Clients at once
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,4,8,32", value_parser = positive)]
    clients: Vec<usize>,

    /// Requests that every client sends, one after the other
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = positive)]
    requests_per_client: usize,

    /// Tokens of a prompt that are its own
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    prompt_tokens: usize,

    /// Tokens to generate for each
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    max_tokens: usize,

    /// Tokens before them that are the same in all prompts, which a server may keep in its cache
    #[arg(long, value_name = "N", default_value_t = 0)]
    shared_prefix: usize,

    /// Measure this server too, in turns at every number of clients
    #[arg(long, value_name = "URL")]
    compare: Option<String>,

    /// The key of the server, or of both
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,

    /// The model to ask for, at both servers [default: the first that each of them lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// The prompts follow from it [default: another one in every run]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    #[command(flatten)]
    output: OutputArgs,
}

/// Measures and prints.
pub fn run(args: &LoadArgs) -> Result<()> {
    let seed = args.seed.unwrap_or_else(generation::fresh_seed);
    let mut servers = Vec::new();
    for url in [Some(&args.url), args.compare.as_ref()].into_iter().flatten() {
        servers.push(Server::find(url, args.api_key.as_deref(), args.model.as_deref())?);
    }
    let forms = servers.iter().map(|server| Form::of(server, seed)).collect::<Result<Vec<_>>>()?;
    let form = forms.into_iter().reduce(Form::common).expect("there is one server: this is a bug");
    let lengths = Lengths { shared_prefix: args.shared_prefix, prompt: args.prompt_tokens };
    let prompts = Prompts { form, lengths, seed };

    let mut subjects: Vec<Subject> = servers.iter().map(Subject::of).collect();
    let mut told = HashSet::new();
    let mut first_prompt = 0;
    for (&clients, group) in args.clients.iter().zip(0..) {
        let (requests_per_client, max_tokens) = (args.requests_per_client, args.max_tokens);
        let load = Load { clients, requests_per_client, max_tokens, group, first_prompt };
        for (server, subject) in servers.iter().zip(&mut subjects) {
            output::note(format_args!("{}, {clients} client{}", server.url, plural(clients)));
            let outcome = load.run(server, &prompts)?;
            tell_errors(server, &outcome, &mut told);
            subject.runs.push(Figures::of(&outcome));
        }
        first_prompt += load.requests() as u64 + 1; // One more brings the shared prefix.
    }
    check_answered(&subjects)?;

    let report = Report {
        requests_per_client: args.requests_per_client,
        max_tokens: args.max_tokens,
        prompts,
        subjects,
    };
    match args.output.json {
        true => output::print_json(&report.to_json()),
        false => output::print(&report.to_text()),
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Says each error once.
fn tell_errors(server: &Server, outcome: &Outcome, told: &mut HashSet<String>) {
    for error in &outcome.errors {
        let line = format!("{}: {error}", server.url);
        if told.insert(line.clone()) {
            output::note(line);
        }
    }
}

/// Errors: a server that answered nothing has no figures.
fn check_answered(subjects: &[Subject]) -> Result<()> {
    let Some(silent) = subjects.iter().find(|subject| subject.runs.iter().all(|run| run.answers == 0)) else {
        return Ok(());
    };
    let error = silent.runs.iter().flat_map(|run| &run.errors).next().map_or("", |error| error.as_str());
    Err(failure(
        format_args!("every request to {} failed: {error}", silent.url),
        "ask for what the server takes: --prompt-tokens, --shared-prefix, --max-tokens, --clients",
    ))
}
