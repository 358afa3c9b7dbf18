//! `kanana quantize`: a model whose matrices are stored as they are computed with, in 8 or 4 bits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kanana_checkpoint::{Packing, SaveOptions, TensorSpec, save};
use kanana_kernels::{Cpu, CpuOptions, Format, Kernels, Packed};
use kanana_model::{Config, expected_tensors, optional_tensors, weight_format};
use kanana_tensor::{DType, Tensor};
use serde_json::{Value, json};

use super::convert::{Model, SHARD_BYTES, read_json, write_json};
use crate::args::{OutputArgs, thread_count};
use crate::hints::failure;
use crate::progress::Progress;
use crate::{hub, output};

/// Quantise a model once, so that it starts as fast as the disk reads it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana quantize ./checkpoint ./checkpoint-q4 --dtype q4
  kanana quantize kakaocorp/kanana-1.5-2.1b-instruct-2505 ./nano-q8 --dtype q8
  kanana chat --model ./checkpoint-q4

The result is a folder like the source, with the same weights, bit for bit, that --dtype gives while loading. Only this
program reads it; for llama.cpp see `kanana convert`. A tensor at a time is in memory. A quantised source is refused.")]
pub struct QuantizeArgs {
    /// A checkpoint folder, a Hub id, or a GGUF file, not quantised
    #[arg(value_name = "FOLDER|ID|FILE")]
    source: String,

    /// The folder to make
    #[arg(value_name = "DESTINATION")]
    destination: PathBuf,

    /// The format of the matrices; embedding and output have 8 bits, norms, biases and routers stay as they are
    #[arg(long, value_enum)]
    dtype: Quantised,

    /// Threads to quantise with [default: all available cores]
    #[arg(long, value_name = "N", value_parser = thread_count)]
    threads: Option<usize>,

    #[command(flatten)]
    output: OutputArgs,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Quantised {
    Q8,
    Q4,
}

/// Quantises and prints where the result is, and what it saves.
pub fn run(args: &QuantizeArgs) -> Result<()> {
    let format = match args.dtype {
        Quantised::Q8 => Format::Q8,
        Quantised::Q4 => Format::Q4,
    };
    let model = Model::open(&args.source)?;
    refuse_quantised(&model, &args.source)?;
    let to = args.destination.as_path();
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    // Made by this run or by nobody else's: only then may it be taken away again.
    let is_new = fs::create_dir(to).is_ok();
    if !is_new && !is_empty_folder(to) {
        return Err(failure(
            format_args!("{} is there already", to.display()),
            "give another destination, or remove what a run that was cut short has left there",
        ));
    }
    let kernels = Cpu::new(CpuOptions { threads: args.threads, isa: None });
    let written = write(&model, to, format, &kernels);
    if written.is_err() && is_new {
        // All that is in there is from this run, and without weights it is of no use.
        let _ = fs::remove_dir_all(to);
    }
    let [before, after] = written?;
    output::note(format_args!("{} before, {} after", output::bytes(before), output::bytes(after)));
    match args.output.json {
        true => output::print_json(&json!({
            "source": args.source, "destination": to, "dtype": format.name(),
            "bytes_before": before, "bytes_after": after,
        })),
        false => output::println(to.display()),
    }
}

fn refuse_quantised(model: &Model, source: &str) -> Result<()> {
    let tensors = model.checkpoint.names().filter_map(|name| Some((name, model.checkpoint.get(name)?)));
    match tensors.into_iter().find(|(_, info)| info.is_quantised()) {
        None => Ok(()),
        Some((name, info)) => Err(failure(
            format_args!("{source} is quantised already ({name} is {}), and twice loses twice", info.dtype),
            "it runs as it stands; for another format quantise the bf16 or f32 model that it was made from",
        )),
    }
}

fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Writes the folder and returns the bytes of the weights before and after.
///
/// The weights come last, so that a run that is cut short at any moment leaves a folder without them.
fn write(model: &Model, to: &Path, format: Format, kernels: &dyn Kernels) -> Result<[u64; 2]> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    write_json(&to.join("config.json"), &config_json(model, format)?)?;
    match model.checkpoint.gguf() {
        Some(_) => model.write_text_files(to)?,
        None => copy_text_files(model.checkpoint.dir(), to)?,
    }

    let checkpoint = &model.checkpoint;
    let (specs, metadata) = plan(model, format);
    let source_bytes = |name: &str| checkpoint.get(name).map_or(0, |info| info.bytes as u64);
    let before = specs.iter().map(|spec| source_bytes(&spec.name)).sum();
    let (mut read, mut after) = (0, 0);
    let progress = Progress::of_quantising(before);
    let fetch = |name: &str| -> Result<Tensor> {
        let mut tensor = checkpoint.tensor(name)?;
        if metadata.contains_key(name) {
            let packed = kernels.pack(&tensor, weight_format(name, format))?.packed();
            tensor = packed.context("the format has no bytes to store: this is a bug")?.panels;
        }
        // A view of the file stays valid: its pages come back when they are written.
        checkpoint.release(name);
        read += source_bytes(name);
        after += tensor.bytes() as u64;
        progress.set(read);
        Ok(tensor)
    };
    save(to, &specs, fetch, &SaveOptions { metadata: metadata.clone(), max_shard_bytes: Some(SHARD_BYTES) })?;
    Ok([before, after])
}

/// Every tensor of the result, and the metadata of its files: what the packed ones stand for, by name.
fn plan(model: &Model, format: Format) -> (Vec<TensorSpec>, BTreeMap<String, String>) {
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let optional = optional_tensors(&model.config).into_iter();
    let there = optional.filter(|(name, _)| model.checkpoint.get(name).is_some());
    let specs = expected_tensors(&model.config).into_iter().chain(there).map(|(name, shape)| {
        let format = weight_format(&name, format);
        if let [out_features, in_features] = shape[..]
            && let Some(panels) = Packed::shape(format, out_features, in_features)
        {
            let (shape, version) = ([out_features, in_features], Packed::VERSION);
            let packing = Packing { format: format.name().to_owned(), version, shape };
            metadata.insert(name.clone(), packing.to_string());
            return TensorSpec { name, dtype: DType::U8, shape: panels.to_vec() };
        }
        let dtype = model.checkpoint.get(&name).and_then(|info| info.tensor_dtype());
        // A dtype that is not read is an error when its turn comes.
        TensorSpec { name, dtype: dtype.unwrap_or(DType::F32), shape }
    });
    (specs.collect(), metadata)
}

/// The source's config.json with the format added, everything else as it was.
fn config_json(model: &Model, format: Format) -> Result<Value> {
    let stated = Config { quantization: Some(format), ..model.config.clone() }.to_json();
    if model.checkpoint.gguf().is_some() {
        return Ok(stated);
    }
    let mut config = read_json(&model.checkpoint.dir().join("config.json"))?.unwrap_or_default();
    config["quantization_config"] = stated["quantization_config"].clone();
    Ok(config)
}

/// Copies what a folder holds beside configuration and weights: tokenizer, chat template, sampling defaults, licence.
fn copy_text_files(from: &Path, to: &Path) -> Result<()> {
    let unreadable = || format!("cannot read {}", from.display());
    for entry in fs::read_dir(from).with_context(unreadable)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).with_context(unreadable)?;
        let is_text = name.to_str().is_some_and(hub::is_companion);
        // Links of the Hub's cache lead to files, and so these are copied.
        if is_text && path.is_file() {
            fs::copy(&path, to.join(&name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}
