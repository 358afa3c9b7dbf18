//! Who is examined: a model in this process, or one behind an OpenAI-compatible server.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use kanana_eval::lm::{LanguageModel, Local, LocalParts, Server, ServerOptions};
use kanana_kernels::runtime::Isa;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::args::{ContextArgs, MachineArgs, ModelArgs, Speculate, positive};
use crate::budget::Demand;
use crate::hints::failure;
use crate::load::{Source, is_gguf};
use crate::output;
use crate::text::{Text, no_tokenizer};

/// Tokens of context where neither the flag nor the model says less: what the protocol's longest prompts take.
const CONTEXT: usize = 8192;

/// Sequences for which the cache has room where memory allows.
const SEQUENCES: usize = 16;

/// What `--model` or `--url` names.
#[derive(Args, Clone)]
pub struct ExamineeArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Examine the model behind this OpenAI-compatible server instead, such as http://127.0.0.1:8000/v1
    #[arg(long, value_name = "URL", help_heading = "Model", requires = "served_model")]
    pub url: Option<String>,

    /// What the server calls the model
    #[arg(long, value_name = "NAME", help_heading = "Model", requires = "url")]
    pub served_model: Option<String>,

    /// The environment variable with the server's key
    #[arg(long, value_name = "NAME", default_value = "OPENAI_API_KEY", help_heading = "Model")]
    pub key_env: String,

    /// A JSON object of fields added to every request to the server; null removes one
    #[arg(long, value_name = "JSON", value_parser = object, requires = "url", help_heading = "Model")]
    pub extra: Option<Map<String, Value>>,

    /// Requests at once, to the server or to the judge
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive, help_heading = "Model")]
    pub concurrency: usize,

    /// How often a request to a server is tried before the run ends
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive, help_heading = "Model")]
    pub tries: usize,

    #[command(flatten)]
    pub context: ContextArgs,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Who judges.
#[derive(Args, Clone)]
#[command(next_help_heading = "Judge")]
pub struct JudgeArgs {
    /// An OpenAI-compatible server that judges answers, such as https://api.openai.com/v1
    #[arg(long, value_name = "URL", requires = "judge_model")]
    pub judge_url: Option<String>,

    /// What that server calls the judge; the published scores are gpt-4o-2024-08-06's
    #[arg(long, value_name = "NAME", requires = "judge_url")]
    pub judge_model: Option<String>,

    /// The environment variable with the judge's key
    #[arg(long, value_name = "NAME", default_value = "OPENAI_API_KEY")]
    pub judge_key_env: String,

    /// A JSON object of fields added to every request to the judge; null removes one
    #[arg(long, value_name = "JSON", value_parser = object, requires = "judge_url")]
    pub judge_extra: Option<Map<String, Value>>,

    /// The judge takes max_completion_tokens where others take max_tokens
    #[arg(long, requires = "judge_url")]
    pub judge_max_completion_tokens: bool,
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

/// What a long run asks between two steps.
pub type Stop = Arc<AtomicBool>;

/// A model that is ready to be examined.
pub struct Examinee {
    pub model: Box<dyn LanguageModel>,
    /// Parameters, where they are known.
    pub parameters: Option<u64>,
}

impl ExamineeArgs {
    /// Loads the model, or notes where the server is. `stop` ends what runs.
    pub fn open(&self, stop: &Stop) -> Result<Examinee> {
        self.open_for(None, stop)
    }

    /// [`ExamineeArgs::open`] for texts of so many tokens, even where the model was made for fewer.
    pub fn open_for(&self, tokens: Option<usize>, stop: &Stop) -> Result<Examinee> {
        let stop = Arc::clone(stop);
        let interrupted = Box::new(move || stop.load(Ordering::Relaxed));
        if let (Some(url), Some(name)) = (&self.url, &self.served_model) {
            let options = ServerOptions {
                api_key: std::env::var(&self.key_env).ok(),
                concurrency: self.concurrency,
                tries: self.tries,
                extra: self.extra.clone().unwrap_or_default(),
                ..ServerOptions::new(url, name)
            };
            return Ok(Examinee { model: Box::new(Server::new(options, interrupted)), parameters: None });
        }
        let source = Source::open(&self.model.model, &self.context.rope)?;
        let text = Text::open(&source.dir, source.config.vocab_size, None)?;
        let text = text.ok_or_else(|| no_tokenizer(&source.dir))?;
        let made_for = source.context(&self.context)?;
        let context = tokens.or(self.context.max_context).unwrap_or(made_for.min(CONTEXT));
        if context > made_for {
            output::note(format_args!(
                "{context} tokens are more than the {made_for} that the model was made for"
            ));
        }
        let sequences = if tokens.is_some() { 2 } else { SEQUENCES };
        let demand = Demand { context, least: context, sequences, positions: made_for.max(context) };
        let budget = source.plan(demand, &self.machine.memory, None)?;
        let engine = source.engine(&budget, self.machine.threads(), &Speculate::Off, None)?;
        let stretched = match (&self.context.rope.yarn, &self.context.rope.rope_scaling) {
            (true, _) => " yarn".to_owned(),
            (_, Some(path)) => format!(" rope {}", path.display()),
            _ => String::new(),
        };
        let name = format!(
            "{} {} kv {}{stretched} {}",
            source.name,
            budget.format,
            budget.kv_format,
            &fingerprint(&source.dir)?[..12]
        );
        let parameters = kanana_model::cost::parameters(&source.config).total;
        let stop_token_ids = text.ends_of_turn();
        let parts = LocalParts {
            name,
            engine,
            // One less than the context: the engine wants room for the token that it would say next.
            max_length: budget.max_context - 1,
            tokenizer: text.tokenizer,
            pooling: source.pooling(),
            template: text.template,
            stop_token_ids,
            interrupted,
        };
        Ok(Examinee { model: Box::new(Local::new(parts)), parameters: Some(parameters) })
    }
}

impl JudgeArgs {
    /// The judge, where one is named.
    pub fn open(&self, concurrency: usize, stop: &Stop) -> Option<Server> {
        let (url, name) = (self.judge_url.as_ref()?, self.judge_model.as_ref()?);
        let stop = Arc::clone(stop);
        let options = ServerOptions {
            api_key: std::env::var(&self.judge_key_env).ok(),
            concurrency,
            extra: self.judge_extra.clone().unwrap_or_default(),
            max_completion_tokens: self.judge_max_completion_tokens,
            timeout: Duration::from_secs(600),
            ..ServerOptions::new(url, name)
        };
        Some(Server::new(options, Box::new(move || stop.load(Ordering::Relaxed))))
    }
}

/// Processor, instruction set and threads, for reports.
pub fn hardware(threads: usize) -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    format!(
        "{name}, {}, {threads} threads",
        Isa::chosen().map_or_else(|_| String::new(), |isa| isa.name().to_owned())
    )
}

/// What tells two checkpoints of one name apart: the SHA-256 of names, sizes, beginnings and ends of their files.
fn fingerprint(path: &Path) -> Result<String> {
    let mut files = Vec::new();
    if is_gguf(path) {
        files.push(path.to_owned());
    } else {
        for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
            let path = entry?.path();
            let kind = path.extension().unwrap_or_default();
            if ["json", "safetensors", "model", "jinja", "gguf"].iter().any(|name| kind == *name) {
                files.push(path);
            }
        }
        files.sort();
    }
    let mut digest = Sha256::new();
    for path in &files {
        let unreadable = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(unreadable)?;
        let length = file.metadata().with_context(unreadable)?.len();
        digest.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        digest.update(length.to_le_bytes());
        for start in [0, length.saturating_sub(PART)] {
            let mut part = Vec::new();
            file.seek(SeekFrom::Start(start)).with_context(unreadable)?;
            Read::by_ref(&mut file).take(PART).read_to_end(&mut part).with_context(unreadable)?;
            digest.update(&part);
        }
    }
    if files.is_empty() {
        return Err(failure(
            format_args!("{} has no files of a model", path.display()),
            "give a checkpoint folder",
        ));
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Of each end of a file. Units: bytes.
const PART: u64 = 1 << 20;
