//! The recipe of a run: one TOML file, read strictly. Its fields are the reference of what can be said.
//!
//! Paths are relative to the folder of the recipe. Tests: `cargo test -p kanana-train recipe`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{LoraOptions, OptimizerOptions, Result, Schedule, TrainError};

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What weights and orders follow from.
    #[serde(default)]
    pub seed: u64,
    /// The folder for checkpoints and metrics.
    pub output: PathBuf,
    /// The model.
    pub model: ModelRecipe,
    /// How a step is computed.
    #[serde(default)]
    pub step: StepRecipe,
    /// How parameters are updated.
    #[serde(default)]
    pub optimizer: OptimizerOptions,
    /// How the learning rate goes, over all stages together.
    pub schedule: Schedule,
    /// Adapters of low rank beside a frozen model; all parameters are learnt where this is absent.
    pub lora: Option<LoraOptions>,
    /// What is read, one stage after the other.
    #[serde(rename = "stage")]
    pub stages: Vec<StageRecipe>,
    /// What is measured on the way.
    #[serde(default, rename = "evaluation")]
    pub evaluations: Vec<EvaluationRecipe>,
    /// When it is measured and shown.
    #[serde(default)]
    pub report: ReportRecipe,
    /// When it is saved.
    #[serde(default)]
    pub checkpoints: CheckpointRecipe,
}

/// Which model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// A config.json: start from random weights of this shape.
    pub config: Option<PathBuf>,
    /// A checkpoint folder: go on with its weights.
    pub checkpoint: Option<PathBuf>,
    /// The folder of the tokenizer; that of the checkpoint where it is absent.
    pub tokenizer: Option<PathBuf>,
    /// What is computed with: `f32` or `bf16`, with f32 master weights; of a frozen model also `q8` and `q4`.
    #[serde(default)]
    pub precision: Precision,
}

impl ModelRecipe {
    /// Where the tokenizer's files are.
    pub fn tokenizer_folder(&self) -> Option<&Path> {
        self.tokenizer.as_deref().or(self.checkpoint.as_deref())
    }
}

/// What a model is computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits.
    #[default]
    Bf16,
    /// 8 bits, frozen.
    Q8,
    /// 4 bits, frozen.
    Q4,
}

/// How a step is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepRecipe {
    /// Tokens of the longest sequence.
    pub sequence_length: usize,
    /// Tokens of one optimiser step.
    pub batch_tokens: usize,
    /// Tokens of one forward and backward pass at most; gradients of several are added up.
    pub micro_batch_tokens: usize,
    /// Compute blocks again rather than keep them: a third more time, much less memory.
    pub checkpointing: bool,
    /// Rows of logits in memory at once.
    pub logit_rows: usize,
    /// The factor of the squared log-sum-exp of the logits.
    pub z_loss: f32,
    /// The share of probability spread over the whole vocabulary.
    pub label_smoothing: f32,
    /// The factor of the load-balance loss of routers.
    pub router_load_balance: f32,
    /// The factor of the z-loss of routers.
    pub router_z_loss: f32,
    /// How much the bias of an expert goes up or down after a step, towards even loads; 0: never.
    pub router_bias_rate: f32,
    /// Stop after so many steps whose gradients were not finite, or whose loss was a spike.
    pub max_skipped: u64,
    /// A step is left out when its loss is this many standard deviations above the mean of the last 128; 0: never.
    pub spike_deviations: f64,
}

impl Default for StepRecipe {
    fn default() -> Self {
        StepRecipe {
            sequence_length: 1024,
            batch_tokens: 16_384,
            micro_batch_tokens: 4096,
            checkpointing: false,
            logit_rows: 1024,
            z_loss: 0.0,
            label_smoothing: 0.0,
            router_load_balance: 0.001,
            router_z_loss: 0.0,
            router_bias_rate: 0.0,
            max_skipped: 20,
            spike_deviations: 0.0,
        }
    }
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecipe {
    /// Its name in reports.
    pub name: String,
    /// Optimiser steps.
    pub steps: u64,
    /// Conversations: they are never cut.
    #[serde(default)]
    pub chat: bool,
    /// Where tokens come from.
    #[serde(rename = "source")]
    pub sources: Vec<SourceRecipe>,
}

/// A source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecipe {
    /// A folder that `kanana data shard` wrote.
    pub shards: PathBuf,
    /// Its share, relative to the others.
    #[serde(default = "one")]
    pub weight: f64,
    /// How often it may be read.
    #[serde(default = "one")]
    pub max_epochs: f64,
}

fn one() -> f64 {
    1.0
}

/// A text to measure on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationRecipe {
    /// Its name in reports: a language, say.
    pub name: String,
    /// A folder that `kanana data shard --held-out` wrote.
    pub shards: PathBuf,
    /// Tokens to measure on.
    #[serde(default = "evaluation_tokens")]
    pub tokens: usize,
}

fn evaluation_tokens() -> usize {
    32_768
}

/// When a run is measured and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportRecipe {
    /// Steps between two measurements on the evaluation texts.
    pub evaluate_every: u64,
    /// Steps between two samples.
    pub sample_every: u64,
    /// What the samples go on from.
    pub prompts: Vec<String>,
    /// Prompts are questions, put through the chat template.
    pub chat: bool,
    /// Tokens of a sample.
    pub sample_tokens: usize,
}

impl Default for ReportRecipe {
    fn default() -> Self {
        ReportRecipe {
            evaluate_every: 200,
            sample_every: 500,
            prompts: Vec::new(),
            chat: false,
            sample_tokens: 48,
        }
    }
}

/// When a run is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointRecipe {
    /// Steps between two checkpoints.
    pub every: u64,
    /// How many are kept.
    pub keep: usize,
}

impl Default for CheckpointRecipe {
    fn default() -> Self {
        CheckpointRecipe { every: 500, keep: 2 }
    }
}

impl Recipe {
    /// Reads a recipe and makes its paths absolute.
    ///
    /// Errors: a file that cannot be read, a key that is unknown or of another type, a value out of its range.
    pub fn from_file(path: &Path) -> Result<Self> {
        let failed = |problem: String| TrainError::Recipe { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let mut recipe: Recipe = toml::from_str(&text).map_err(|error| failed(told(&error, &text)))?;
        recipe.check().map_err(failed)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let rebase = |path: &mut PathBuf| *path = folder.join(&*path);
        rebase(&mut recipe.output);
        let ModelRecipe { config, checkpoint, tokenizer, .. } = &mut recipe.model;
        [config, checkpoint, tokenizer].into_iter().flatten().for_each(rebase);
        for stage in &mut recipe.stages {
            stage.sources.iter_mut().for_each(|source| rebase(&mut source.shards));
        }
        recipe.evaluations.iter_mut().for_each(|evaluation| rebase(&mut evaluation.shards));
        Ok(recipe)
    }

    /// Steps of all stages.
    pub fn steps(&self) -> u64 {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    fn check(&self) -> std::result::Result<(), String> {
        let step = &self.step;
        let least = |name: &str, value: u64, least: u64| match value >= least {
            true => Ok(()),
            false => Err(format!("{name} is {value}, expected at least {least}")),
        };
        least("step.sequence_length", step.sequence_length as u64, 2)?;
        least("step.micro_batch_tokens", step.micro_batch_tokens as u64, step.sequence_length as u64)?;
        least("step.logit_rows", step.logit_rows as u64, 1)?;
        least("checkpoints.every", self.checkpoints.every, 1)?;
        least("checkpoints.keep", self.checkpoints.keep as u64, 1)?;
        least("report.evaluate_every", self.report.evaluate_every, 1)?;
        least("report.sample_every", self.report.sample_every, 1)?;
        least("steps of all stages", self.steps(), 1)?;
        let range = |name: &str, value: f64, holds: bool, expected: &str| match holds {
            true => Ok(()),
            false => Err(format!("{name} is {value}, expected {expected}")),
        };
        let positive = |name, value: f64| range(name, value, value > 0.0 && value.is_finite(), "above 0");
        let not_negative =
            |name, value: f64| range(name, value, value >= 0.0 && value.is_finite(), "0 or above");
        let below_one = |name, value: f64| range(name, value, (0.0..1.0).contains(&value), "0 to below 1");
        let share = |name, value: f64| range(name, value, (0.0..=1.0).contains(&value), "0 to 1");
        let optimizer = &self.optimizer;
        positive("optimizer.learning_rate", optimizer.learning_rate.into())?;
        positive("optimizer.muon_learning_rate", optimizer.muon_learning_rate.into())?;
        positive("optimizer.eps", optimizer.eps.into())?;
        optimizer.betas.iter().try_for_each(|&beta| below_one("optimizer.betas", beta.into()))?;
        below_one("optimizer.muon_momentum", optimizer.muon_momentum.into())?;
        not_negative("optimizer.weight_decay", optimizer.weight_decay.into())?;
        not_negative("optimizer.clip_norm", optimizer.clip_norm.into())?;
        share("schedule.final_factor", self.schedule.final_factor.into())?;
        share("schedule.decay", self.schedule.decay.into())?;
        not_negative("step.z_loss", step.z_loss.into())?;
        below_one("step.label_smoothing", step.label_smoothing.into())?;
        not_negative("step.router_load_balance", step.router_load_balance.into())?;
        not_negative("step.router_z_loss", step.router_z_loss.into())?;
        not_negative("step.router_bias_rate", step.router_bias_rate.into())?;
        not_negative("step.spike_deviations", step.spike_deviations)?;
        if !step.batch_tokens.is_multiple_of(step.micro_batch_tokens) || step.batch_tokens == 0 {
            return Err(format!(
                "step.batch_tokens is {}, expected a multiple of step.micro_batch_tokens, {}",
                step.batch_tokens, step.micro_batch_tokens
            ));
        }
        match (&self.model.config, &self.model.checkpoint, &self.lora) {
            (Some(_), Some(_), _) => return Err("model has config and checkpoint, expected one".to_owned()),
            (None, None, _) => return Err("model has neither config nor checkpoint, expected one".to_owned()),
            (Some(_), None, _) if self.model.tokenizer.is_none() => {
                return Err("model.tokenizer is missing: model.config has none beside it".to_owned());
            }
            (_, _, Some(lora)) if lora.rank == 0 => {
                return Err("lora.rank is 0, expected at least 1".to_owned());
            }
            _ => {}
        }
        if self.lora.is_some() && step.router_bias_rate > 0.0 {
            return Err(
                "step.router_bias_rate changes the model, which [lora] freezes: leave out one".to_owned()
            );
        }
        if matches!(self.model.precision, Precision::Q8 | Precision::Q4) && self.lora.is_none() {
            return Err("model.precision is of a frozen model: add [lora], or take bf16 or f32".to_owned());
        }
        Ok(())
    }
}

/// What the reader says, with the nearest key where one is unknown.
fn told(error: &toml::de::Error, text: &str) -> String {
    let line =
        error.span().map(|span| text.bytes().take(span.start).filter(|&byte| byte == b'\n').count() + 1);
    let mut message = error.message().to_owned();
    for (start, kind) in [("unknown field `", "key"), ("unknown variant `", "choice")] {
        let Some((name, known)) = message.strip_prefix(start).and_then(|rest| rest.split_once('`')) else {
            continue;
        };
        let known = known.split('`').skip(1).step_by(2);
        if let Some(nearest) = known.min_by_key(|other| strsim::levenshtein(other, name)) {
            message = format!("there is no {kind} {name:?} here; did you mean {nearest:?}?");
            break;
        }
    }
    line.map_or_else(|| message.clone(), |line| format!("line {line}: {message}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const GOOD: &str = "output = \"out\"\n[model]\nconfig = \"c.json\"\ntokenizer = \"/t\"\n[schedule]\nshape = \"cosine\"\n\
                        [[stage]]\nname = \"a\"\nsteps = 3\n[[stage.source]]\nshards = \"s\"\n";

    fn read(text: &str) -> Result<Recipe> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        Recipe::from_file(&path).map(|mut recipe| {
            recipe.output = recipe.output.strip_prefix(dir.path()).unwrap().to_owned();
            recipe
        })
    }

    fn check_error(from: &str, to: &str, expected: &str) {
        assert!(GOOD.contains(from), "{from}");
        let error = read(&GOOD.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains("recipe.toml") && error.contains(expected), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_recipe() {
        let recipe = read(GOOD).unwrap();
        assert_eq!(recipe.output, Path::new("out"));
        assert_eq!(recipe.model.tokenizer.as_deref(), Some(Path::new("/t")));
        assert_eq!((recipe.steps(), recipe.stages[0].sources[0].max_epochs), (3, 1.0));
    }

    #[test]
    fn wrong_recipes_say_what_and_where() {
        check_error(
            "steps = 3",
            "step = 3",
            "line 9: there is no key \"step\" here; did you mean \"steps\"?",
        );
        check_error("steps = 3", "steps = -3", "line 9");
        check_error("steps = 3", "steps = 0", "steps of all stages is 0");
        check_error("config = \"c.json\"", "", "neither config nor checkpoint");
        check_error("tokenizer = \"/t\"", "", "model.tokenizer is missing");
        check_error("tokenizer = \"/t\"", "tokenizer = \"/t\"\nprecision = \"q4\"", "add [lora]");
        check_error(
            "\"cosine\"",
            "\"cosin\"",
            "line 6: there is no choice \"cosin\" here; did you mean \"cosine\"?",
        );
        check_error("\"cosine\"", "\"cosine\"\ndecay = 20", "schedule.decay is 20, expected 0 to 1");
        let optimizer = |field: &str, expected: &str| {
            check_error("[schedule]", &format!("[optimizer]\n{field}\n[schedule]"), expected);
        };
        optimizer("learning_rate = -1", "optimizer.learning_rate is -1, expected above 0");
        optimizer("learning_rate = nan", "optimizer.learning_rate is NaN, expected above 0");
        optimizer("betas = [0.9, 1.0]", "optimizer.betas is 1, expected 0 to below 1");
        check_error(
            "[schedule]",
            "[step]\nrouter_bias_rate = -1e-3\n[schedule]",
            "step.router_bias_rate is -0.001",
        );
        let both = "[step]\nrouter_bias_rate = 1e-3\n[lora]\nrank = 2\n[schedule]";
        check_error("[schedule]", both, "which [lora] freezes");
        check_error("[schedule]", "[step]\nbatch_tokens = 5000\n[schedule]", "multiple of");
    }
}
