//! Checkpoints of a run: a Hugging Face folder, and beside its weights what training needs to go on.
//!
//! `step-00000123/` holds config.json, model.safetensors and the tokenizer's files, and in `training/` the f32 parameters,
//! the optimiser's state and `state.json`. It is written under another name, synced and renamed: whatever kills the program
//! leaves the checkpoints before it, and never half of one.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kanana_checkpoint::{Checkpoint, SaveOptions, TensorSpec, save as save_tensors};
use kanana_data::MixtureState;
use kanana_model::Config;
use kanana_tensor::{DType, Tensor, bf16};
use serde::{Deserialize, Serialize};

use crate::recipe::{CheckpointRecipe, Precision};
use crate::{Optimizer, Parameters, Recipe, Result, TrainError};

const PREFIX: &str = "step-";
const PARTIAL: &str = ".partial";
const TRAINING: &str = "training";
const VERSION: u32 = 1;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The form of the checkpoint.
    #[serde(default)]
    pub(crate) version: u32,
    /// Steps done, those left out included.
    pub(crate) step: u64,
    /// Updates of the optimiser.
    pub(crate) updates: u64,
    /// Tokens read.
    pub(crate) tokens: u64,
    /// Steps left out.
    pub(crate) skipped: u64,
    /// The stage being read.
    pub(crate) stage: usize,
    /// Where its mixture stands.
    pub(crate) mixture: Option<MixtureState>,
    /// The last losses, which a spike is compared with.
    pub(crate) losses: VecDeque<f64>,
    /// The recipe, to tell whether it is the same when the run goes on.
    #[serde(default)]
    pub(crate) recipe: serde_json::Value,
}

/// A checkpoint that was read.
pub(crate) struct Saved {
    pub(crate) parameters: BTreeMap<String, Tensor>,
    pub(crate) optimizer: BTreeMap<String, Tensor>,
    pub(crate) state: State,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
    let path = path.to_owned();
    move |source| TrainError::Io { path, source }
}

/// The checkpoints of a run's folder, the newest last.
pub fn checkpoints(output: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(output) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(io(output)(error)),
    };
    for entry in entries {
        let path = entry.map_err(io(output))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.strip_prefix(PREFIX).is_some_and(|step| step.parse::<u64>().is_ok()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What decides the numbers of a run: all of the recipe but when it is shown and saved, and where.
fn identity(recipe: &Recipe) -> serde_json::Value {
    let mut value = serde_json::to_value(recipe).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        for key in ["output", "report", "checkpoints", "evaluation"] {
            fields.remove(key);
        }
        if let Some(model) = fields.get_mut("model").and_then(|model| model.as_object_mut()) {
            for key in ["config", "checkpoint", "tokenizer"] {
                model.remove(key);
            }
        }
        for stage in fields.get_mut("stage").and_then(|stages| stages.as_array_mut()).into_iter().flatten() {
            for source in stage["source"].as_array_mut().into_iter().flatten() {
                // A folder may be moved; its tokens are checked otherwise.
                source.as_object_mut().map(|source| source.remove("shards"));
            }
        }
    }
    value
}

pub(crate) fn save(
    recipe: &Recipe,
    config: &Config,
    parameters: &Parameters,
    optimizer: &Optimizer,
    state: &State,
) -> Result<PathBuf> {
    let place = recipe.output.join(format!("{PREFIX}{:08}", state.step));
    if place.exists() {
        return Ok(place);
    }
    for entry in fs::read_dir(&recipe.output).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // What a kill left behind.
        if name.starts_with(PREFIX) && name.ends_with(PARTIAL) {
            fs::remove_dir_all(entry.path()).map_err(io(&entry.path()))?;
        }
    }
    let partial = recipe.output.join(format!("{PREFIX}{:08}{PARTIAL}", state.step));
    if let Err(error) = write(&partial, (recipe, config), (parameters, optimizer), state) {
        // A disk that is full has room again. The error that counts is the first.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    fs::rename(&partial, &place).map_err(io(&place))?;
    // Its new name is on the disk before older ones go.
    sync_folder(&recipe.output)?;
    let all = checkpoints(&recipe.output)?;
    for old in &all[..all.len().saturating_sub(recipe.checkpoints.keep)] {
        // Renamed first: a kill in between leaves no half of it under its name.
        let going = old.with_extension(PARTIAL.trim_start_matches('.'));
        fs::rename(old, &going).and_then(|()| fs::remove_dir_all(&going)).map_err(io(old))?;
    }
    Ok(place)
}

/// Bytes of one checkpoint: the model as it is exported, f32 parameters, the optimiser's state, the tokenizer. What is left
/// out, headers and texts, is a few kilobytes.
pub(crate) fn bytes(recipe: &Recipe, parameters: &Parameters, optimizer: &Optimizer) -> u64 {
    let size = |tensor: &Tensor, dtype: DType| (tensor.len() * dtype_of(tensor, dtype).size()) as u64;
    let of = |dtype: DType| parameters.learnt.values().map(|tensor| size(tensor, dtype)).sum::<u64>();
    let exported = match parameters.lora() {
        Some(_) => of(DType::F32),
        None => of(exported_dtype(recipe)) + tokenizer_files(recipe).map(|path| length(&path)).sum::<u64>(),
    };
    exported + of(DType::F32) + optimizer.state_bytes(&parameters.learnt)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

/// Checkpoints that will lie beside those that are `there`, when they are most: a new one is written before the oldest
/// goes.
pub(crate) fn more_checkpoints(recipe: &CheckpointRecipe, steps_left: u64, there: u64) -> u64 {
    let written = steps_left.div_ceil(recipe.every);
    let most = (there + written).min(recipe.keep as u64 + 1);
    most.saturating_sub(there).max(written.min(1))
}

/// Writes and syncs all of a checkpoint.
fn write(
    partial: &Path,
    (recipe, config): (&Recipe, &Config),
    (parameters, optimizer): (&Parameters, &Optimizer),
    state: &State,
) -> Result<()> {
    let training = partial.join(TRAINING);
    fs::create_dir_all(&training).map_err(io(&training))?;
    export(recipe, config, parameters, partial)?;
    write_tensors(&training.join("parameters"), &parameters.learnt, DType::F32)?;
    write_tensors(&training.join("optimizer"), optimizer.state(), recipe.optimizer.state.dtype())?;
    let state = State { version: VERSION, recipe: identity(recipe), ..state.clone() };
    let json = serde_json::to_string_pretty(&state).expect("a state is JSON: this is a bug");
    write_file(&training.join("state.json"), json.as_bytes())?;
    [&training, partial].into_iter().try_for_each(sync_folder)
}

fn sync_folder(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io(dir))
}

/// What the matrices of the model are exported as.
fn exported_dtype(recipe: &Recipe) -> DType {
    if recipe.model.precision == Precision::F32 { DType::F32 } else { DType::BF16 }
}

/// The tokenizer's files that there are.
fn tokenizer_files(recipe: &Recipe) -> impl Iterator<Item = PathBuf> {
    let folder = recipe.model.tokenizer_folder();
    let paths = TOKENIZER_FILES.into_iter().filter_map(move |name| Some(folder?.join(name)));
    paths.filter(|path| path.exists())
}

/// The folder that others read: configuration, weights, tokenizer.
fn export(recipe: &Recipe, config: &Config, parameters: &Parameters, dir: &Path) -> Result<()> {
    let dtype = exported_dtype(recipe);
    if parameters.lora().is_some() {
        return parameters.export_adapter(dir, recipe.model.checkpoint.as_deref());
    }
    let mut json = config.to_json();
    if let Some(fields) = json.as_object_mut() {
        fields.insert(
            "torch_dtype".to_owned(),
            (if dtype == DType::F32 { "float32" } else { "bfloat16" }).into(),
        );
    }
    write_file(&dir.join("config.json"), format!("{json:#}\n").as_bytes())?;
    write_tensors(dir, &parameters.learnt, dtype)?;
    for from in tokenizer_files(recipe) {
        let bytes = fs::read(&from).map_err(io(&from))?;
        write_file(&dir.join(from.file_name().unwrap_or_default()), &bytes)?;
    }
    Ok(())
}

const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
];

pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = |path: &Path| {
        let mut file = File::create(path)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    };
    write(path).map_err(io(path))
}

/// What a tensor is written as, where matrices become `dtype`.
fn dtype_of(tensor: &Tensor, dtype: DType) -> DType {
    if tensor.shape().len() == 1 { tensor.dtype() } else { dtype }
}

/// Tensors by name, matrices as `dtype`; vectors stay as they are.
pub(crate) fn write_tensors(dir: &Path, tensors: &BTreeMap<String, Tensor>, dtype: DType) -> Result<()> {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, tensor)| TensorSpec { dtype: dtype_of(tensor, dtype), ..TensorSpec::of(name, tensor) })
        .collect();
    let fetch = |name: &str| -> Result<Tensor> {
        let tensor = &tensors[name];
        match dtype_of(tensor, dtype) {
            dtype if dtype == tensor.dtype() => Ok(tensor.clone()),
            DType::BF16 => {
                let values: Vec<bf16> =
                    tensor.as_slice::<f32>()?.iter().map(|&x| bf16::from_f32(x)).collect();
                Ok(Tensor::from_slice(tensor.shape(), &values)?)
            }
            _ => Ok(tensor.clone()),
        }
    };
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    save_tensors(dir, &specs, fetch, &SaveOptions { metadata, max_shard_bytes: None })?;
    Ok(())
}

fn read_tensors(dir: &Path) -> Result<BTreeMap<String, Tensor>> {
    let checkpoint = Checkpoint::open(dir)?;
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let read = |name: String| {
        let tensor = checkpoint.tensor(&name)?;
        // A copy: the optimiser writes to it.
        let copy = match tensor.dtype() {
            DType::BF16 => Tensor::from_slice(tensor.shape(), tensor.as_slice::<bf16>()?)?,
            _ => Tensor::from_slice(tensor.shape(), &tensor.to_f32_vec()?)?,
        };
        Ok((name, copy))
    };
    names.into_iter().map(read).collect()
}

impl Saved {
    /// Reads a checkpoint.
    ///
    /// Errors: not a checkpoint of training; of another version; of a recipe that gives other numbers.
    pub(crate) fn read(dir: &Path, recipe: &Recipe) -> Result<Self> {
        let path = dir.join(TRAINING).join("state.json");
        let failed = |problem: String| TrainError::Recipe { path: path.clone(), problem };
        let text = fs::read_to_string(&path).map_err(io(&path))?;
        let state: State = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        if state.version != VERSION {
            return Err(failed(format!("version {}, expected {VERSION}", state.version)));
        }
        let expected = identity(recipe);
        if state.recipe != expected {
            let fields = expected.as_object().into_iter().flatten();
            let changed: Vec<&str> = fields
                .filter(|(key, value)| state.recipe.get(key.as_str()) != Some(value))
                .map(|(key, _)| key.as_str())
                .collect();
            return Err(failed(format!(
                "saved by another recipe: {} changed; start a new run with model.checkpoint, or undo the change",
                changed.join(", ")
            )));
        }
        let training = dir.join(TRAINING);
        Ok(Saved {
            parameters: read_tensors(&training.join("parameters"))?,
            optimizer: read_tensors(&training.join("optimizer"))?,
            state,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_to_come() {
        let check = |(every, keep): (u64, usize), steps_left: u64, there: u64, expected: u64| {
            let recipe = CheckpointRecipe { every, keep };
            let got = more_checkpoints(&recipe, steps_left, there);
            assert_eq!(got, expected, "{keep} kept, every {every} of {steps_left} steps, {there} there");
        };
        check((10, 2), 100, 0, 3);
        check((10, 2), 20, 0, 2);
        check((10, 2), 11, 0, 2);
        check((10, 2), 3, 0, 1);
        check((10, 2), 100, 1, 2);
        check((10, 2), 100, 2, 1);
        // More are there than will be kept: the next one is written before they go.
        check((10, 2), 100, 5, 1);
        check((10, 2), 0, 2, 0);
    }
}
