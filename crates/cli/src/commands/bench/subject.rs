//! The model that is measured: of a checkpoint, or of random weights.

use anyhow::Result;
use clap::Args;
use kanana_kernels::{Format, Kernels};
use kanana_model::{Config, LoadOptions, Preset, Transformer, preset};

use crate::args::{DTypeChoice, RopeArgs};
use crate::budget::Budget;
use crate::load::{self, Source};

/// What is measured.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct SubjectArgs {
    /// A checkpoint folder, a GGUF file or a Hub id
    #[arg(short, long, value_name = "FOLDER|FILE|ID")]
    model: Option<String>,

    /// Random weights of a published shape; `kanana inspect` lists them
    #[arg(long, value_name = "PRESET")]
    random: Option<String>,
}

pub enum Subject {
    Checkpoint(Box<Source>),
    Random(Box<Preset>),
}

impl Subject {
    pub fn open(args: &SubjectArgs, rope: &RopeArgs) -> Result<Self> {
        if let Some(model) = &args.model {
            return Ok(Subject::Checkpoint(Box::new(Source::open(model, rope)?)));
        }
        let mut preset = preset(args.random.as_deref().unwrap_or_default())?;
        preset.config = load::apply_rope(&preset.config, rope)?;
        Ok(Subject::Random(Box::new(preset)))
    }

    pub fn name(&self) -> &str {
        match self {
            Subject::Checkpoint(source) => &source.name,
            Subject::Random(preset) => preset.name,
        }
    }

    pub fn config(&self) -> &Config {
        match self {
            Subject::Checkpoint(source) => &source.config,
            Subject::Random(preset) => &preset.config,
        }
    }

    pub fn format(&self, dtype: DTypeChoice) -> Result<Format> {
        match self {
            Subject::Checkpoint(source) => source.format(dtype),
            Subject::Random(preset) => Ok(dtype.resolve(preset.config.torch_dtype)),
        }
    }

    pub fn load(&self, kernels: &dyn Kernels, budget: &Budget, seed: u64) -> Result<Transformer> {
        match self {
            Subject::Checkpoint(source) => source.load(kernels, budget),
            Subject::Random(preset) => {
                let options = LoadOptions { format: budget.format, max_positions: budget.positions };
                Ok(Transformer::random(&preset.config, kernels, &options, seed)?)
            }
        }
    }
}
