//! `kanana inspect`: what a model is and what it costs, from its configuration and the headers of its files.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use kanana_checkpoint::Checkpoint;
use kanana_kernels::{Format, KvFormat};
use kanana_model::{Config, RopeScaling, TensorReport, compare_tensors, cost, presets};
use serde_json::{Value, json};

use crate::args::{OutputArgs, RopeArgs, positive};
use crate::output::{self, Align, Style, Table, bytes, count};
use crate::{load, text};

/// Show a model's architecture, parameters, cost and memory, and check its files.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana inspect nano-2.1b
  kanana inspect 1.5-8b --yarn --context 131072
  kanana inspect ./checkpoint --json

Exits with 1 when a file is broken, or a tensor is missing, misshapen or read by nothing.")]
pub struct InspectArgs {
    /// A checkpoint folder, a Hub id, or one of the published shapes (an unknown word lists them)
    #[arg(value_name = "FOLDER|ID|PRESET")]
    model: String,

    /// Tokens of context to compute costs for [default: all the model was made for]
    #[arg(long, value_name = "N", value_parser = positive)]
    context: Option<usize>,

    #[command(flatten)]
    rope: RopeArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// What is known about a model.
struct Findings {
    title: String,
    about: Vec<(&'static str, String)>,
    config: Config,
    files: Option<Files>,
    tokenizer: Value,
}

/// What a folder's weights are like.
enum Files {
    Read { tensors: usize, bytes: u64, files: usize, dtypes: Vec<String>, report: TensorReport },
    Unreadable(String),
}

impl Files {
    fn are_sound(&self) -> bool {
        matches!(self, Files::Read { report, .. } if report.is_loadable() && report.extra.is_empty())
    }
}

/// Prints what there is to say.
pub fn run(args: &InspectArgs) -> Result<ExitCode> {
    let mut findings = examine(&args.model)?;
    findings.config = load::apply_rope(&findings.config, &args.rope)?;
    let context = args.context.unwrap_or_else(|| findings.config.context_length());
    match args.output.json {
        true => output::print_json(&findings.to_json(context))?,
        false => output::print(&findings.to_text(context))?,
    }
    let sound = findings.files.as_ref().is_none_or(Files::are_sound) && findings.tokenizer["error"].is_null();
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(model: &str) -> Result<Findings> {
    let preset = presets().into_iter().find(|preset| preset.name == model);
    if let Some(preset) = preset.filter(|_| !Path::new(model).exists()) {
        return Ok(Findings {
            title: model.to_string(),
            about: vec![("preset", preset.evidence.to_string()), ("source", preset.note.to_string())],
            config: preset.config,
            files: None,
            tokenizer: Value::Null,
        });
    }
    let dir = load::resolve(model)?;
    let config = load::read_config(&dir)?;
    Ok(Findings {
        title: model.to_string(),
        about: vec![(if load::is_gguf(&dir) { "file" } else { "folder" }, dir.display().to_string())],
        files: Some(examine_files(&dir, &config)),
        tokenizer: text::summary(&dir, &config)?,
        config,
    })
}

fn examine_files(dir: &Path, config: &Config) -> Files {
    let checkpoint = match Checkpoint::open(dir) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return Files::Unreadable(error.to_string()),
    };
    let found: Vec<_> = checkpoint.names().filter_map(|name| Some((name, checkpoint.get(name)?))).collect();
    let mut dtypes: Vec<String> = found.iter().map(|(_, info)| info.dtype.to_string()).collect();
    dtypes.sort();
    dtypes.dedup();
    Files::Read {
        tensors: found.len(),
        bytes: checkpoint.total_bytes(),
        files: checkpoint.files().count(),
        dtypes,
        report: compare_tensors(config, found.iter().map(|(name, info)| (*name, info.shape))),
    }
}

impl Findings {
    fn to_text(&self, context: usize) -> String {
        let style = Style::stdout();
        let (bold, reset) = (style.bold(), style.reset());
        let mut text = format!("{bold}{}{reset}\n", self.title);
        self.about.iter().for_each(|(name, value)| text += &format!("  {name}: {value}\n"));
        let mut section = |title: &str, body: String| text += &format!("\n{bold}{title}{reset}\n{body}");

        section("Architecture", pairs(architecture(&self.config)));
        section("Parameters", pairs(parameters(&self.config)));
        section(&format!("One more token behind {context}"), pairs(costs(&self.config, context)));
        section(&format!("Memory for {context} tokens"), memory_table(&self.config, context));
        if let Value::Object(fields) = &self.tokenizer {
            section(
                "Tokenizer",
                pairs(fields.iter().map(|(name, value)| (name.replace('_', " "), plain(value)))),
            );
        }
        if let Some(files) = &self.files {
            section("Files", files_text(files));
        }
        text
    }

    fn to_json(&self, context: usize) -> Value {
        let config = &self.config;
        let counts = cost::parameters(config);
        let memory = Format::ALL.into_iter().map(|format| {
            let needed = cost::memory_needed(config, format, context);
            let costs = json!({"weights": needed.weights, "kv_cache": needed.kv_cache, "rope_table": needed.rope_table,
                   "total": needed.total(),
                   "kv_bytes_per_token": cost::kv_bytes_per_token(config, format.kv_format()),
                   "decode_bytes_per_token": cost::decode_bytes_per_token(config, format, context)});
            (format.name().to_string(), costs)
        });
        json!({
            "model": self.title,
            "about": self.about.iter().map(|(name, value)| (name.to_string(), json!(value))).collect::<serde_json::Map<_, _>>(),
            "config": config.to_json(),
            "context_length": config.context_length(),
            "parameters": {"total": counts.total, "active": counts.active, "embedding": counts.embedding},
            "context": context,
            "flops_per_token": cost::flops_per_token(config, context),
            "memory": memory.collect::<serde_json::Map<_, _>>(),
            "tokenizer": self.tokenizer,
            "files": self.files.as_ref().map(files_json),
        })
    }
}

fn pairs<N: Into<String>>(rows: impl IntoIterator<Item = (N, String)>) -> String {
    let mut table = Table::new(&[Align::Left, Align::Left]);
    rows.into_iter().for_each(|(name, value)| table.row([name.into(), value]));
    table.render()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

fn architecture(config: &Config) -> Vec<(&'static str, String)> {
    let tied = if config.tie_word_embeddings { "tied" } else { "untied" };
    let heads = format!(
        "{} query heads, {} key and value heads of {}",
        config.num_attention_heads, config.num_key_value_heads, config.head_dim
    );
    let mut extras = Vec::new();
    extras.extend(config.qk_norm.then_some("QK-norm"));
    extras.extend(config.attention_bias.then_some("biases"));
    let attention = [&[heads.as_str()], extras.as_slice()].concat().join(", ");
    vec![
        ("family", config.family.model_type().to_string()),
        ("layers", config.num_hidden_layers.to_string()),
        ("hidden size", config.hidden_size.to_string()),
        ("attention", attention),
        ("feed-forward", feed_forward(config)),
        ("vocabulary", format!("{}, {tied} embedding", config.vocab_size)),
        ("context", format!("{} tokens", config.context_length())),
        ("rope", format!("theta {}{}", config.rope_theta, scaling(config.rope_scaling))),
        ("norm epsilon", format!("{:e}", config.rms_norm_eps)),
    ]
}

fn feed_forward(config: &Config) -> String {
    let dense = format!("SwiGLU of {}", config.intermediate_size);
    let Some(mixture) = &config.mixture else { return dense };
    let mut text = format!(
        "{} experts, SwiGLU of {}, {} active, weights {}",
        mixture.num_experts,
        mixture.moe_intermediate_size,
        mixture.num_experts_per_tok,
        if mixture.renormalise { "renormalised" } else { "not renormalised" },
    );
    if let Some(width) = mixture.shared_expert_intermediate_size {
        text += &format!("; shared expert of {width}");
    }
    let dense_layers = (0..config.num_hidden_layers).filter(|&layer| !config.is_sparse(layer)).count();
    if dense_layers > 0 {
        text += &format!("; {dense_layers} layers {dense}");
    }
    text
}

fn scaling(scaling: RopeScaling) -> String {
    match scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", linear by {factor}"),
        RopeScaling::Dynamic { factor } => format!(", dynamic by {factor}"),
        RopeScaling::Llama3 { factor, original_max_position_embeddings, .. } => {
            format!(", llama3 by {factor} of {original_max_position_embeddings}")
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor,
            ..
        } => format!(
            ", YaRN by {factor} of {original_max_position_embeddings}, beta {beta_fast} to {beta_slow}, \
             attention factor {attention_factor:.6}"
        ),
    }
}

fn parameters(config: &Config) -> Vec<(&'static str, String)> {
    let counts = cost::parameters(config);
    let mut rows = vec![("total", count(counts.total))];
    if counts.active != counts.total {
        rows.push(("active", count(counts.active)));
    }
    rows.push(("without embedding", count(counts.non_embedding())));
    rows
}

fn costs(config: &Config, context: usize) -> Vec<(&'static str, String)> {
    let read = |format: Format| {
        format!("{} in {format}", bytes(cost::decode_bytes_per_token(config, format, context)))
    };
    let kept = |format: KvFormat| format!("{} in {format}", bytes(cost::kv_bytes_per_token(config, format)));
    vec![
        ("FLOPs", count(cost::flops_per_token(config, context))),
        ("bytes read", Format::ALL.map(read).join(", ")),
        ("keys and values", KvFormat::ALL.map(kept).join(", ")),
    ]
}

fn memory_table(config: &Config, context: usize) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right]);
    table.row(["dtype", "weights", "keys and values", "total"]);
    for format in Format::ALL {
        let needed = cost::memory_needed(config, format, context);
        table.row([
            format.name().to_string(),
            bytes(needed.weights),
            bytes(needed.kv_cache),
            bytes(needed.total()),
        ]);
    }
    table.render()
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn files_text(files: &Files) -> String {
    let (tensors, size, files, dtypes, report) = match files {
        Files::Unreadable(error) => return format!("  {error}\n"),
        Files::Read { tensors, bytes, files, dtypes, report } => (tensors, *bytes, files, dtypes, report),
    };
    let mut rows = vec![(
        "weights".to_string(),
        format!("{tensors} tensors, {}, {}, {}", dtypes.join(", "), bytes(size), plural(*files, "file")),
    )];
    rows.extend(report.missing.iter().map(|name| ("missing".to_string(), name.clone())));
    rows.extend(report.extra.iter().map(|name| ("extra".to_string(), format!("{name} (nothing reads it)"))));
    rows.extend(report.misshapen.iter().map(|(name, expected, got)| {
        ("misshapen".to_string(), format!("{name} is {got:?}, config.json calls for {expected:?}"))
    }));
    if rows.len() == 1 {
        rows.push(("tensors".to_string(), "all there, none extra, all of the right shape".to_string()));
    }
    pairs(rows)
}

fn files_json(files: &Files) -> Value {
    match files {
        Files::Unreadable(error) => json!({"error": error}),
        Files::Read { tensors, bytes, files, dtypes, report } => {
            let misshapen = report
                .misshapen
                .iter()
                .map(|(name, expected, got)| json!({"name": name, "expected": expected, "got": got}));
            json!({"tensors": tensors, "bytes": bytes, "files": files, "dtypes": dtypes, "missing": report.missing,
                   "extra": report.extra, "misshapen": misshapen.collect::<Vec<_>>()})
        }
    }
}
