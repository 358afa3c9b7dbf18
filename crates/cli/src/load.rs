//! From `--model` to an engine: find the folder, read what it says, check that it fits, load it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use kanana_checkpoint::Checkpoint;
use kanana_checkpoint::gguf::{GgufFile, config_json};
use kanana_engine::{Engine, EngineOptions, Pooling, Speculation};
use kanana_kernels::{Cpu, CpuOptions, Format, Kernels};
use kanana_model::{
    Config, GenerationDefaults, LoadOptions, TensorReport, Transformer, check_stored, compare_tensors, cost,
    presets,
};
use kanana_tensor::DType;

use crate::args::{ContextArgs, DTypeChoice, MemoryArgs, RopeArgs, Speculate, SpeculationArgs};
use crate::budget::{self, BLOCK_SIZE, Budget, Demand};
use crate::embedded;
use crate::hints::{failure, failure_of};
use crate::hub::{self, Hub};
use crate::output;
use crate::progress::Progress;

/// A checkpoint that was opened and checked, but whose weights were not read.
pub struct Source {
    /// As the user wrote it.
    pub name: String,
    pub dir: PathBuf,
    pub config: Config,
    pub defaults: GenerationDefaults,
    checkpoint: Checkpoint,
}

impl Source {
    /// Opens a folder or a Hub id, with the rotary scaling asked for.
    pub fn open(model: &str, rope: &RopeArgs) -> Result<Self> {
        let dir = resolve(model)?;
        if model == embedded::DEFAULT {
            output::note("pico is a very small model that comes with the program; --model names another");
        }
        let config = apply_rope(&read_config(&dir)?, rope)?;
        let defaults = if is_gguf(&dir) { Default::default() } else { GenerationDefaults::from_dir(&dir)? };
        if !defaults.not_honoured.is_empty() {
            let names = defaults.not_honoured.join(", ");
            output::note(format_args!("generation_config.json: not honoured: {names}"));
        }
        let checkpoint = Checkpoint::open(&dir)?;
        check_tensors(&checkpoint, &config)?;
        Ok(Source { name: model.to_string(), dir, config, defaults, checkpoint })
    }

    /// The format that `dtype` asks for.
    ///
    /// Errors: another one than the checkpoint is quantised in.
    pub fn format(&self, dtype: DTypeChoice) -> Result<Format> {
        let asked = dtype.resolve(self.stored_dtype());
        match self.config.quantization {
            Some(stored) if asked == stored || dtype == DTypeChoice::Auto => Ok(stored),
            Some(stored) => Err(failure(
                format_args!(
                    "{} is stored in {stored}, and in {asked} it would be rounded a second time",
                    self.name
                ),
                format_args!(
                    "leave out --dtype {asked}, or give the model that this one was quantised from; \
                     `kanana convert {} NEW_FOLDER --dtype bf16` gives the numbers that it stands for",
                    self.name
                ),
            )),
            None => Ok(asked),
        }
    }

    /// The dtype the weights are stored in, unless they are quantised: what most bytes are.
    fn stored_dtype(&self) -> Option<DType> {
        let embedding = self.checkpoint.get("model.embed_tokens.weight")?;
        if embedding.is_quantised() { None } else { embedding.tensor_dtype() }
    }

    /// How long a sequence may become: what was asked for, else what the model was made for.
    ///
    /// Errors: more was asked for than the model was made for.
    pub fn context(&self, args: &ContextArgs) -> Result<usize> {
        let made_for = self.config.context_length();
        match args.max_context {
            Some(asked) if asked > made_for => Err(failure(
                format_args!("--max-context {asked}, but the model was made for {made_for} tokens"),
                "stretch it with --yarn (the published 128K setting of the 32K models) or --rope-scaling FILE",
            )),
            asked => Ok(asked.unwrap_or(made_for)),
        }
    }

    /// How the model makes a vector of a text: what sentence-transformers wrote beside its weights, else the last token.
    pub fn pooling(&self) -> Pooling {
        let read = |name: &str| std::fs::read_to_string(self.dir.join(name)).ok();
        let json =
            |name: &str| read(name).and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        let pooling = json("1_Pooling/config.json");
        let causal = json("config.json").is_none_or(|config| config["is_causal"] != false);
        match pooling.is_some_and(|pooling| pooling["pooling_mode_mean_tokens"] == true) {
            true if causal => Pooling::Mean,
            true => Pooling::BidirectionalMean,
            false => Pooling::Last,
        }
    }

    /// Reads the weights, with a progress bar on a terminal.
    pub fn load(&self, kernels: &dyn Kernels, budget: &Budget) -> Result<Transformer> {
        // A draft model that is quantised stays what it is beside a model of another format.
        let format = self.config.quantization.unwrap_or(budget.format);
        let options = LoadOptions { format, max_positions: budget.positions };
        let progress = Progress::of_loading(cost::parameters(&self.config).total);
        let model =
            Transformer::load_with_progress(&self.checkpoint, &self.config, kernels, &options, &|loaded| {
                progress.set(loaded);
            });
        drop(progress);
        let model = model.with_context(|| format!("cannot load {}", self.name))?;
        Ok(model.with_kv_format(budget.kv_format))
    }

    /// How the model, and a draft model beside it, fit the demand.
    pub fn plan(&self, demand: Demand, args: &MemoryArgs, draft: Option<&Source>) -> Result<Budget> {
        let format = self.format(args.dtype)?;
        budget::plan_beside(draft.map(|draft| &draft.config), &self.config, format, demand, args)
    }

    /// The draft model that `--speculate` names.
    pub fn draft(&self, args: &SpeculationArgs, rope: &RopeArgs) -> Result<Option<Source>> {
        match &args.speculate {
            Speculate::Draft(model) => Source::open(model, rope).map(Some),
            _ => Ok(None),
        }
    }

    /// An engine over the loaded weights, and those of the draft model that `speculate` asks for.
    pub fn engine(
        &self,
        budget: &Budget,
        threads: usize,
        speculate: &Speculate,
        draft: Option<&Source>,
    ) -> Result<Engine> {
        self.engine_with(budget, threads, speculate, draft, |options| options)
    }

    /// [`Source::engine`] with other options than the usual ones.
    pub fn engine_with(
        &self,
        budget: &Budget,
        threads: usize,
        speculate: &Speculate,
        draft: Option<&Source>,
        change: impl FnOnce(EngineOptions) -> EngineOptions,
    ) -> Result<Engine> {
        let kernels = Arc::new(Cpu::new(CpuOptions { threads: Some(threads), isa: None }));
        let model = Arc::new(self.load(&*kernels, budget)?);
        tracing::debug!(dir = %self.dir.display(), ?budget, threads, "loaded");
        let speculation = match (speculate, draft) {
            (Speculate::Draft(_), Some(draft)) => {
                Speculation::draft(Arc::new(draft.load(&*kernels, budget)?))
            }
            (Speculate::Lookup(Some(most)), _) => {
                Speculation::PromptLookup { ngram: 3, proposals: 0..=*most }
            }
            (Speculate::Lookup(None), _) => Speculation::prompt_lookup(),
            _ => Speculation::Off,
        };
        let options = EngineOptions {
            num_blocks: budget.num_blocks,
            block_size: BLOCK_SIZE,
            speculation,
            ..EngineOptions::for_context(budget.max_context, budget.kv_format)
        };
        Ok(Engine::new(model, kernels, change(options))?)
    }
}

/// The folder of a model: a path, or what was or now is downloaded from the Hub.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() || (is_gguf(path) && path.exists()) {
        return Ok(path.to_path_buf());
    }
    if path.exists() {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Err(failure(
            format_args!("{model} is a file, a model is a folder"),
            format_args!("give the folder: {}", folder.display()),
        ));
    }
    if let Some(folder) = embedded::folder(model)? {
        return Ok(folder);
    }
    if !looks_like_hub_id(model) {
        return Err(failure(format_args!("{model}: no such folder"), hint_for(model)));
    }
    let hub = Hub::from_env()?;
    if let Some(dir) = hub.cached(model) {
        return Ok(dir);
    }
    output::note(format_args!("{model} is neither a folder here nor in the cache: downloading it"));
    hub.pull(model, &[], &hub::Progress::on_stderr())
}

/// Whether a model is one GGUF file rather than a folder.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The file of a model that is one GGUF file; none for a folder.
pub fn open_gguf(path: &Path) -> Result<Option<GgufFile>> {
    Ok(if is_gguf(path) { Some(GgufFile::open(path)?) } else { None })
}

/// The configuration of a folder or a GGUF file.
pub fn read_config(path: &Path) -> Result<Config> {
    match open_gguf(path)? {
        Some(file) => config_of(&file),
        None => Ok(Config::from_dir(path)?),
    }
}

/// The configuration that a GGUF file's metadata amount to.
pub fn config_of(file: &GgufFile) -> Result<Config> {
    Ok(Config::from_json_str(&config_json(file)?.to_string(), &file.path().display().to_string())?)
}

/// `OWNER/NAME` or `OWNER/NAME@REVISION`, and not a path.
fn looks_like_hub_id(model: &str) -> bool {
    let name = model.split('@').next().unwrap_or_default();
    let parts: Vec<&str> = name.split('/').collect();
    !model.starts_with(['.', '~', '/']) && parts.len() == 2 && parts.iter().all(|part| !part.is_empty())
}

fn hint_for(model: &str) -> String {
    let names: Vec<&str> = presets().iter().map(|preset| preset.name).collect();
    if names.contains(&model) {
        return format!(
            "{model} is a shape without weights: see `kanana inspect {model}` and `kanana bench --random {model}`"
        );
    }
    format!(
        "give a checkpoint folder or a Hub id such as kakaocorp/kanana-1.5-2.1b-instruct-2505; \
         the shapes that `inspect` and `bench --random` know are {}",
        names.join(", ")
    )
}

/// The configuration with the scaling that the flags ask for.
pub fn apply_rope(config: &Config, args: &RopeArgs) -> Result<Config> {
    if args.yarn {
        let hint = "--yarn is for the models of 32768 positions that ship without a scaling; \
                    --rope-scaling FILE gives any other";
        return config.published_128k().map_err(|error| failure_of(error.into(), "--yarn", hint));
    }
    let Some(path) = &args.rope_scaling else { return Ok(config.clone()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(config.with_rope_scaling(&text, &path.display().to_string())?)
}

/// Every tensor must be there, be of the right shape, be stored as config.json says and be read: one that is left over belongs to another mathematics.
pub fn check_tensors(checkpoint: &Checkpoint, config: &Config) -> Result<()> {
    let found = checkpoint.names().filter_map(|name| Some((name, checkpoint.get(name)?.shape)));
    let TensorReport { missing, extra, misshapen } = compare_tensors(config, found);
    let list = |names: &[String]| match names {
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        [] => String::new(),
    };
    let file_of =
        |name: &str| checkpoint.get(name).map_or(String::new(), |info| format!("{}: ", info.file.display()));
    let (message, hint) = if let Some((name, expected, got)) = misshapen.first() {
        (
            format!("{}{name} has shape {got:?}, but config.json calls for {expected:?}", file_of(name)),
            "config.json and the weights belong to different models",
        )
    } else if !missing.is_empty() {
        (
            format!("missing from the checkpoint: {}", list(&missing)),
            "config.json and the weights belong to different models, or the download is not whole",
        )
    } else if !extra.is_empty() {
        (
            format!("the checkpoint holds tensors that this architecture does not read: {}", list(&extra)),
            "config.json may name the wrong architecture; running without these tensors would compute something else",
        )
    } else {
        return Ok(check_stored(checkpoint, config)?);
    };
    let dir = checkpoint.dir().display();
    Err(failure(message, format_args!("{hint}; `kanana inspect {dir}` lists every difference")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_are_told_from_paths() {
        let check = |model: &str, expected: bool| assert_eq!(looks_like_hub_id(model), expected, "{model}");
        check("kakaocorp/kanana-1.5-2.1b-instruct-2505", true);
        check("kakaocorp/kanana@v1.0", true);
        check("./checkpoint", false);
        check("../a", false);
        check("/models/a", false);
        check("a/b/c", false);
        check("checkpoint", false);
        check("folder/", false);
    }
}
