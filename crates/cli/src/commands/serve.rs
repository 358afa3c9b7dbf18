//! `kanana serve`: puts models behind an OpenAI-compatible server.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kanana_engine::{Engine, EngineOptions, Pooling};
use kanana_model::{KvCache, cost};
use kanana_serve::{AppOptions, Capacity, Loaded, ModelSpec, ServeOptions};
use kanana_tokenizer::tools::ToolFormat;

use crate::args::{ContextArgs, MachineArgs, SpeculationArgs, parse_bytes, positive};
use crate::budget::{BLOCK_SIZE, Budget, Demand};
use crate::generation::suggested;
use crate::hints::failure;
use crate::load::Source;
use crate::text::{Text, no_tokenizer};
use crate::{embedded, memory, output};

/// The share of the free memory that keys and values take where the user does not say.
const KV_SHARE: u64 = 4;
/// Tokens of one sequence without which a server makes no sense.
const LEAST_CONTEXT: usize = 256;

/// Serve models to OpenAI's clients, with a page to talk on.
#[derive(Args, Clone)]
#[command(after_help = "\
Examples:
  kanana serve
  kanana serve --model kakaocorp/kanana-1.5-2.1b-instruct-2505 --dtype q4 --port 8000
  kanana serve --model ./a --model ./b --served-model-name a --served-model-name b --memory-limit 12GiB
  kanana serve --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem
  curl http://127.0.0.1:8000/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"안녕하세요\"}]}'

The page is at /, the description of the API at /openapi.json, Prometheus' figures at /metrics. Ctrl-C or SIGTERM lets running
answers end; a second one cuts them. SIGHUP reads the file of keys again.")]
pub struct ServeArgs {
    /// A checkpoint folder, a GGUF file, a Hub id, or pico; repeat it for several: all but the first are loaded when
    /// first asked for
    #[arg(short, long, value_name = "FOLDER|ID", default_value = embedded::DEFAULT, help_heading = "Model")]
    model: Vec<String>,

    /// What requests call it [default: as --model has it]; in the order of the models
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    served_model_name: Vec<String>,

    /// How tool calls are written [default: as the chat template has it]
    #[arg(long, value_enum, help_heading = "Model")]
    tool_format: Option<ToolFormatChoice>,

    /// How texts become vectors [default: the last token; of models with 1_Pooling/config.json what that says]
    #[arg(long, value_enum, help_heading = "Model")]
    pooling: Option<PoolingChoice>,

    /// Use this chat template instead of the checkpoint's
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    chat_template: Option<PathBuf>,

    /// Where to listen; 0.0.0.0 lets other machines in
    #[arg(long, default_value = "127.0.0.1", help_heading = "Server")]
    host: IpAddr,

    /// Which port; 0 takes any that is free
    #[arg(short, long, default_value_t = 8000, help_heading = "Server")]
    port: u16,

    /// A key that opens the server (repeatable; several in KANANA_API_KEYS, by commas)
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    api_key: Vec<String>,

    /// A file of such keys, one a line
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    api_key_file: Option<PathBuf>,

    /// Speak HTTPS with this certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Server")]
    tls_cert: Option<PathBuf>,

    /// and its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Server")]
    tls_key: Option<PathBuf>,

    /// Pages of this origin may call the server (repeatable; * for all)
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    cors_origin: Vec<String>,

    /// Log as text or as JSON lines; KANANA_LOG says what (default info)
    #[arg(long, value_enum, default_value_t = LogFormat::Text, help_heading = "Server")]
    pub log_format: LogFormat,

    /// Log what is asked and answered, too
    #[arg(long, help_heading = "Server")]
    log_prompts: bool,

    /// Sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive, help_heading = "Limits")]
    max_sequences: usize,

    /// Sequences that may wait beside those; further ones are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Limits")]
    max_queue: usize,

    /// Milliseconds that a running answer may wait for a step that also reads new prompts: more is faster for who waits,
    /// less smoother for who reads
    #[arg(long, value_name = "MS", default_value_t = 250, help_heading = "Limits")]
    pause: u64,

    /// Seconds that an answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = seconds, help_heading = "Limits")]
    request_timeout: u64,

    /// Seconds that running answers may take when the server is told to end
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Limits")]
    grace: u64,

    /// The largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = parse_bytes, help_heading = "Limits")]
    max_body: u64,

    /// Connections at once; more of them wait
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive, help_heading = "Limits")]
    max_connections: usize,

    #[command(flatten)]
    context: ContextArgs,

    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    speculation: SpeculationArgs,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// `--tool-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum ToolFormatChoice {
    Kanana,
    Llama3Json,
    Hermes,
}

impl From<ToolFormatChoice> for ToolFormat {
    fn from(choice: ToolFormatChoice) -> Self {
        match choice {
            ToolFormatChoice::Kanana => ToolFormat::Kanana,
            ToolFormatChoice::Llama3Json => ToolFormat::Llama3Json,
            ToolFormatChoice::Hermes => ToolFormat::Hermes,
        }
    }
}

/// `--pooling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PoolingChoice {
    Last,
    Mean,
    BidirectionalMean,
}

impl From<PoolingChoice> for Pooling {
    fn from(choice: PoolingChoice) -> Self {
        match choice {
            PoolingChoice::Last => Pooling::Last,
            PoolingChoice::Mean => Pooling::Mean,
            PoolingChoice::BidirectionalMean => Pooling::BidirectionalMean,
        }
    }
}

fn seconds(text: &str) -> Result<u64, String> {
    positive(text).map(|seconds| seconds as u64)
}

/// Runs the command.
pub fn run(args: &ServeArgs) -> Result<()> {
    let specs = args.specs()?;
    let names: Vec<String> = specs.iter().map(|spec| spec.id.clone()).collect();
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    kanana_serve::serve(specs, args.options(), |address| {
        output::note(format_args!("{} at {scheme}://{address}", names.join(", ")));
    })
    .map_err(|error| match &error {
        kanana_serve::ServeError::Listen { .. } => {
            failure(&error, "another program may have the port: choose one with --port, or 0 for any")
        }
        _ => error.into(),
    })
}

impl ServeArgs {
    fn options(&self) -> ServeOptions {
        let from_environment = std::env::var("KANANA_API_KEYS").unwrap_or_default();
        let keys =
            from_environment.split(',').map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned);
        ServeOptions {
            address: SocketAddr::new(self.host, self.port),
            tls: self.tls_cert.clone().zip(self.tls_key.clone()),
            api_keys: self.api_key.iter().cloned().chain(keys).collect(),
            api_key_file: self.api_key_file.clone(),
            max_connections: self.max_connections,
            idle_timeout: Duration::from_secs(60),
            capacity: Capacity {
                requests: self.max_sequences + self.max_queue,
                memory: self.machine.memory.memory_limit.or_else(memory::available),
                pause: Duration::from_millis(self.pause),
            },
            app: AppOptions {
                request_timeout: Duration::from_secs(self.request_timeout),
                body_timeout: Duration::from_secs(30),
                max_body: self.max_body as usize,
                cors_origins: self.cors_origin.clone(),
                log_prompts: self.log_prompts,
            },
            grace: Duration::from_secs(self.grace),
        }
    }

    /// The models, each opened and checked now and read later.
    fn specs(&self) -> Result<Vec<ModelSpec>> {
        if self.served_model_name.len() > self.model.len() {
            let message = format!("{} names for {} models", self.served_model_name.len(), self.model.len());
            return Err(failure(message, "give --served-model-name at most once for each --model"));
        }
        let shared = Arc::new(self.clone());
        let spec = |(index, model): (usize, &String)| {
            let opened = Opened::new(self, model).with_context(|| format!("cannot serve {model}"))?;
            let (args, name) = (Arc::clone(&shared), model.clone());
            Ok(ModelSpec {
                id: self.served_model_name.get(index).unwrap_or(model).clone(),
                bytes: opened.bytes(),
                load: Box::new(move || {
                    let opened = Opened::new(&args, &name).and_then(|opened| opened.load(&args));
                    opened.map_err(|error| format!("{error:#}"))
                }),
            })
        };
        self.model.iter().enumerate().map(spec).collect()
    }
}

/// A model that was checked and not read.
struct Opened {
    source: Source,
    draft: Option<Source>,
    text: Text,
    budget: Budget,
}

impl Opened {
    fn new(args: &ServeArgs, model: &str) -> Result<Self> {
        let source = Source::open(model, &args.context.rope)?;
        let rows = source.config.vocab_size;
        let text = Text::open(&source.dir, rows, args.chat_template.as_deref())?;
        let text = text.ok_or_else(|| no_tokenizer(&source.dir))?;
        let context = source.context(&args.context)?;
        let least = context.min(LEAST_CONTEXT);
        let demand = Demand { context, least, sequences: args.max_sequences, positions: context };
        let draft = source.draft(&args.speculation, &args.context.rope)?;
        let mut machine = args.machine.memory.clone();
        if machine.kv_memory.is_none() {
            let free = machine.memory_limit.or_else(memory::available);
            let kv_format = machine.kv_dtype.resolve(source.format(machine.dtype)?);
            let block = KvCache::bytes_per_block(&source.config, BLOCK_SIZE, kv_format) as u64;
            let fewest = least.div_ceil(BLOCK_SIZE) as u64 * block * 2;
            machine.kv_memory = free.map(|free| (free / KV_SHARE).max(fewest));
        }
        let budget = source.plan(demand, &machine, draft.as_ref())?;
        Ok(Opened { source, draft, text, budget })
    }

    /// What it will take. Units: bytes.
    fn bytes(&self) -> u64 {
        let config = &self.source.config;
        let format = config.quantization.unwrap_or(self.budget.format);
        let weights = cost::memory_needed(config, format, self.budget.positions);
        let block = KvCache::bytes_per_block(config, BLOCK_SIZE, self.budget.kv_format) as u64;
        weights.weights + weights.rope_table + block * self.budget.num_blocks as u64
    }

    fn load(self, args: &ServeArgs) -> Result<(Engine, Loaded)> {
        let Opened { source, draft, text, budget } = self;
        let (threads, speculate) = (args.machine.threads(), &args.speculation.speculate);
        let engine = source.engine_with(&budget, threads, speculate, draft.as_ref(), |options| {
            EngineOptions { max_sequences: args.max_sequences, ..options }
        })?;
        let mut ends_of_turn = text.ends_of_turn();
        ends_of_turn.extend(&source.config.eos_token_ids);
        ends_of_turn.extend(source.defaults.eos_token_ids.iter().flatten());
        ends_of_turn.sort_unstable();
        ends_of_turn.dedup();
        let loaded = Loaded {
            defaults: suggested(&source.defaults),
            ends_of_turn,
            max_context: budget.max_context,
            vocab_size: source.config.vocab_size,
            tool_format: args.tool_format.map(ToolFormat::from),
            pooling: args.pooling.map(Pooling::from).unwrap_or_else(|| source.pooling()),
            tokenizer: text.tokenizer,
            template: text.template,
        };
        Ok((engine, loaded))
    }
}

#[cfg(test)]
mod tests {
    use kanana_engine::SamplingParams;
    use kanana_model::GenerationDefaults;

    use super::*;

    fn check(file: &str, expected: impl Fn(&SamplingParams) -> bool) {
        let file = GenerationDefaults::from_json_str(file, "generation_config.json").unwrap();
        let params = suggested(&file);
        assert!(expected(&params), "{params:?}");
    }

    #[test]
    fn the_file_wins_over_openai() {
        check("{}", |p| p.temperature == 1.0 && p.top_p == 1.0 && p.max_tokens.is_none());
        check(r#"{"do_sample": false, "temperature": 0.6}"#, |p| p.temperature == 0.0);
        check(r#"{"temperature": 0.6, "top_p": 0.9}"#, |p| p.temperature == 0.6 && p.top_p == 0.9);
    }
}
