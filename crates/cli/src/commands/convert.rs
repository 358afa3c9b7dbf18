//! `kanana convert`: a checkpoint folder as a GGUF file, a GGUF file as a folder, either in another precision.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kanana_checkpoint::gguf::{
    Export, GgufError, GgufFormat, Tokenizing, tokenizer_config_json, tokenizer_json,
};
use kanana_checkpoint::{Checkpoint, CheckpointError, SaveOptions, TensorSpec, save};
use kanana_kernels::Cpu;
use kanana_model::{Config, cost, numbers, optional_tensors};
use kanana_tensor::{DType, Tensor, bf16, f16};
use serde_json::{Value, json};

use crate::args::OutputArgs;
use crate::hints::{failure, failure_of};
use crate::progress::Progress;
use crate::{load, output};

/// The files of a folder are at most this large, as those of transformers are.
pub(super) const SHARD_BYTES: u64 = 5_000_000_000;

/// Convert a model between a folder of safetensors and a GGUF file, for llama.cpp or from it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana convert ./checkpoint model.gguf --dtype q4_k_m
  kanana convert kakaocorp/kanana-1.5-2.1b-instruct-2505 model.gguf
  kanana convert model.gguf ./checkpoint --dtype bf16

A tensor at a time is in memory. Tokenizer and chat template come along. From a quantised source the folder gets the
numbers that the source stands for, rounded to bf16 unless --dtype says otherwise; quantising again is refused.")]
pub struct ConvertArgs {
    /// A checkpoint folder, a Hub id, or a GGUF file
    #[arg(value_name = "FOLDER|ID|FILE")]
    source: String,

    /// A file to write whose name ends in .gguf, or a folder to make
    #[arg(value_name = "DESTINATION")]
    destination: PathBuf,

    /// How the matrices are stored: auto keeps what the source has; the quantised ones are for GGUF only
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    dtype: Precision,

    #[command(flatten)]
    output: OutputArgs,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(non_camel_case_types)] // The names of the field.
enum Precision {
    Auto,
    F32,
    F16,
    Bf16,
    /// 8.5 bits a weight
    #[value(name = "q8_0")]
    Q8_0,
    /// 6.6 bits a weight
    #[value(name = "q6_k")]
    Q6_K,
    /// 4.8 bits a weight: the matrices that matter most in 6.6
    #[value(name = "q4_k_m")]
    Q4_K_M,
    /// 4.6 bits a weight
    #[value(name = "q4_k_s")]
    Q4_K_S,
    /// 4.6 bits a weight, in the oldest and fastest format
    #[value(name = "q4_0")]
    Q4_0,
}

impl Precision {
    /// The format of a GGUF file, for weights stored as `stored`.
    fn format(self, stored: Option<DType>) -> GgufFormat {
        match (self, stored) {
            (Precision::F32, _) | (Precision::Auto, Some(DType::F32)) => GgufFormat::F32,
            (Precision::F16, _) | (Precision::Auto, Some(DType::F16)) => GgufFormat::F16,
            (Precision::Bf16 | Precision::Auto, _) => GgufFormat::BF16,
            (Precision::Q8_0, _) => GgufFormat::Q8_0,
            (Precision::Q6_K, _) => GgufFormat::Q6_K,
            (Precision::Q4_K_M, _) => GgufFormat::Q4_K_M,
            (Precision::Q4_K_S, _) => GgufFormat::Q4_K_S,
            (Precision::Q4_0, _) => GgufFormat::Q4_0,
        }
    }

    /// The dtype of a folder; none for what only GGUF has.
    fn dtype(self, stored: Option<DType>) -> Option<DType> {
        match self.format(stored) {
            GgufFormat::F32 => Some(DType::F32),
            GgufFormat::F16 => Some(DType::F16),
            GgufFormat::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

/// What is converted.
pub(super) struct Model {
    name: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) config: Config,
    /// The contents of tokenizer.json and tokenizer_config.json, with the chat template in the latter.
    tokenizer: Option<Value>,
    tokenizer_config: Value,
    generation_config: Option<Value>,
}

/// Converts and prints where the result is.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let model = Model::open(&args.source)?;
    let embedding = model.checkpoint.get("model.embed_tokens.weight");
    let stored = embedding.filter(|info| !info.is_quantised()).and_then(|info| info.tensor_dtype());
    let to = args.destination.as_path();
    let written = match load::is_gguf(to) {
        true => model.write_file(to, args.dtype.format(stored))?,
        false => {
            let dtype = args.dtype.dtype(stored).ok_or_else(|| {
                let hint = "give a destination whose name ends in .gguf, or --dtype bf16";
                failure(format_args!("a folder of safetensors cannot be {:?}", args.dtype), hint)
            })?;
            model.write_folder(to, dtype)?
        }
    };
    match args.output.json {
        true => output::print_json(&json!({"source": args.source, "destination": to, "dtype": written})),
        false => output::println(to.display()),
    }
}

impl Model {
    pub(super) fn open(source: &str) -> Result<Self> {
        let path = load::resolve(source)?;
        let checkpoint = Checkpoint::open(&path)?;
        let name = source.trim_end_matches('/').rsplit('/').next().unwrap_or(source).to_owned();
        let model = match checkpoint.gguf() {
            Some(file) => Model {
                name: file.metadata().text("general.name")?.map_or(name, str::to_owned),
                config: load::config_of(file)?,
                tokenizer: tokenizer_json(file)?,
                tokenizer_config: tokenizer_config_json(file)?,
                generation_config: None,
                checkpoint,
            },
            None => Model {
                name,
                config: Config::from_dir(&path)?,
                tokenizer: read_json(&path.join("tokenizer.json"))?,
                tokenizer_config: with_template(&path)?,
                generation_config: read_json(&path.join("generation_config.json"))?,
                checkpoint,
            },
        };
        load::check_tensors(&model.checkpoint, &model.config)?;
        if model.tokenizer.is_none() {
            output::note(format_args!("{source} has no tokenizer.json: the result will have no tokenizer"));
        }
        Ok(model)
    }

    /// Writes a GGUF file and returns the name of its format.
    fn write_file(&self, path: &Path, format: GgufFormat) -> Result<String> {
        let config = self.config.to_json();
        let tokenizing =
            self.tokenizer.as_ref().map(|tokenizer| Tokenizing { tokenizer, config: &self.tokenizer_config });
        let export =
            Export { checkpoint: &self.checkpoint, config: &config, tokenizing, name: &self.name, format };
        let progress = Progress::of_converting(cost::parameters(&self.config).total);
        match export.write(path, &mut |done| progress.set(done)) {
            Ok(()) => Ok(format.name().to_lowercase()),
            Err(error @ CheckpointError::Gguf { problem: GgufError::AlreadyQuantised { .. }, .. }) => {
                let hint = "convert the folder or the bf16 file that this one was made from; \
                            a destination that is a folder gets the numbers that this one stands for";
                Err(failure_of(error.into(), "the source is quantised", hint))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a checkpoint folder and returns the name of its dtype.
    fn write_folder(&self, dir: &Path, dtype: DType) -> Result<String> {
        let checkpoint = &self.checkpoint;
        let exact: BTreeSet<String> =
            optional_tensors(&self.config).into_iter().map(|(name, _)| name).collect();
        let specs: Vec<TensorSpec> = checkpoint
            .names()
            .filter_map(|name| Some((name, checkpoint.get(name)?)))
            .map(|(name, info)| {
                // The bias of a router moves by less than half a step of 16 bits.
                let dtype = if exact.contains(name) { DType::F32 } else { dtype };
                TensorSpec { name: name.to_owned(), dtype, shape: info.shape.to_vec() }
            })
            .collect();
        let options = SaveOptions {
            metadata: [("format".to_owned(), "pt".to_owned())].into(),
            max_shard_bytes: Some(SHARD_BYTES),
        };
        let progress = Progress::of_converting(cost::parameters(&self.config).total);
        let kernels = Cpu::default();
        let mut done = 0;
        let fetch = |name: &str| -> Result<Tensor> {
            let dtype = if exact.contains(name) { DType::F32 } else { dtype };
            let tensor = cast(name, &numbers(checkpoint, &kernels, name)?, dtype)?;
            // A view of the file stays valid: its pages come back when they are written.
            checkpoint.release(name);
            done += tensor.len() as u64;
            progress.set(done);
            Ok(tensor)
        };
        save(dir, &specs, fetch, &options)?;
        let config = Config { torch_dtype: Some(dtype), quantization: None, ..self.config.clone() };
        write_json(&dir.join("config.json"), &config.to_json())?;
        self.write_text_files(dir)?;
        Ok(dtype.name().to_owned())
    }

    /// Writes tokenizer, chat template and sampling defaults, as far as there are any.
    pub(super) fn write_text_files(&self, dir: &Path) -> Result<()> {
        if let Some(tokenizer) = &self.tokenizer {
            write_json(&dir.join("tokenizer.json"), tokenizer)?;
            write_json(&dir.join("tokenizer_config.json"), &self.tokenizer_config)?;
        }
        if let Some(generation) = &self.generation_config {
            write_json(&dir.join("generation_config.json"), generation)?;
        }
        Ok(())
    }
}

/// The tensor in another dtype.
fn cast(name: &str, tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    if tensor.dtype() == dtype {
        return Ok(tensor.clone());
    }
    let values = tensor.to_f32_vec()?;
    if let Some(large) = values.iter().find(|x| dtype == DType::F16 && x.abs() > f16::MAX.to_f32()) {
        let hint = "bf16 has the range of f32: give --dtype bf16";
        return Err(failure(format_args!("tensor {name:?} holds {large}, which f16 cannot store"), hint));
    }
    let shape = tensor.shape();
    Ok(match dtype {
        DType::F16 => Tensor::from_slice(shape, &Vec::from_iter(values.into_iter().map(f16::from_f32)))?,
        DType::BF16 => Tensor::from_slice(shape, &Vec::from_iter(values.into_iter().map(bf16::from_f32)))?,
        _ => Tensor::from_slice(shape, &values)?,
    })
}

/// The contents of tokenizer_config.json, with the template of chat_template.jinja where that file exists.
fn with_template(dir: &Path) -> Result<Value> {
    let mut config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_else(|| json!({}));
    let template = dir.join("chat_template.jinja");
    if template.exists() {
        let text = std::fs::read_to_string(&template);
        config["chat_template"] = text.with_context(|| format!("cannot read {}", template.display()))?.into();
    }
    Ok(config)
}

pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let value = serde_json::from_str(&text);
    value.map(Some).map_err(|error| {
        failure(
            format_args!("{}: {error}", path.display()),
            "download the file again, or correct it in an editor",
        )
    })
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_follows_the_source_unless_it_is_said() {
        let check = |precision: Precision, stored, expected: &str, folder| {
            assert_eq!(precision.format(stored).name(), expected);
            assert_eq!(precision.dtype(stored), folder);
        };
        check(Precision::Auto, Some(DType::F32), "F32", Some(DType::F32));
        check(Precision::Auto, Some(DType::F16), "F16", Some(DType::F16));
        check(Precision::Auto, Some(DType::BF16), "BF16", Some(DType::BF16));
        check(Precision::Auto, None, "BF16", Some(DType::BF16));
        check(Precision::Bf16, Some(DType::F32), "BF16", Some(DType::BF16));
        check(Precision::Q4_K_M, Some(DType::F32), "Q4_K_M", None);
    }

    #[test]
    fn values_beyond_f16_are_refused() {
        let tensor = Tensor::from_slice(&[2], &[1.0f32, 1e5]).unwrap();
        assert!(
            cast("w", &tensor, DType::F16).unwrap_err().to_string().contains("tensor \"w\" holds 100000")
        );
        assert_eq!(cast("w", &tensor, DType::BF16).unwrap().dtype(), DType::BF16);
    }
}
