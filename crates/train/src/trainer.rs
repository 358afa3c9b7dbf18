//! A run: batches from the stages of a recipe, gradients, steps, measurements, checkpoints.
//!
//! It prints nothing: every step gives a [`StepReport`]. What follows from a recipe is the same bits on every run, on any
//! number of threads, and after any interruption. Tests: `crates/train/tests/trainer.rs`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use kanana_checkpoint::Checkpoint;
use kanana_data::{Mixture, Piece, Shards, Source};
use kanana_kernels::{CrossEntropy, Format, Kernels, RouterLosses};
use kanana_model::{Batch, Config, LoadOptions, Transformer};
use serde::Serialize;

use crate::parameters::Built;
use crate::recipe::{EvaluationRecipe, Precision, StageRecipe};
use crate::router_bias::{self, Loads};
use crate::state::{Saved, State, more_checkpoints};
use crate::{Gradients, NextToken, Objective, Optimizer, Parameters, Pass, Recipe, Result, TrainError};

/// Losses that a spike is compared with.
const WINDOW: usize = 128;

/// A run that goes on step by step.
pub struct Trainer<'a> {
    kernels: &'a dyn Kernels,
    recipe: Recipe,
    config: Config,
    options: LoadOptions,
    parameters: Parameters,
    optimizer: Optimizer,
    built: Option<Built>,
    mixture: Mixture,
    state: State,
    evaluations: Vec<(EvaluationRecipe, Shards)>,
}

/// What a step did.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// The name of its stage.
    pub stage: String,
    /// Tokens read so far, this step's included.
    pub tokens: u64,
    /// Tokens of this step.
    pub batch_tokens: u64,
    /// Tokens of this step that were learnt.
    pub learnt: u64,
    /// The mean loss of those. Units: nats.
    pub loss: f64,
    /// The norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// The learning rate of AdamW.
    pub lr: f64,
    /// Steps left out so far: gradients that were not finite, losses that were a spike.
    pub skipped: u64,
    /// MaxVio: the largest load of an expert above the mean, as a share of it; where routers have a bias.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_violation: Option<f64>,
}

/// What the batches of one step give.
struct Computed {
    /// By name.
    gradients: BTreeMap<String, kanana_tensor::Tensor>,
    loads: Loads,
    /// The mean.
    loss: f64,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The mean over tokens. Units: nats.
    pub loss: f64,
    /// Bits for each byte of the text, which compares tokenizers; the end of a text counts as neither.
    pub bits_per_byte: f64,
}

impl<'a> Trainer<'a> {
    /// Starts a run, or goes on from a checkpoint of it.
    ///
    /// Errors: files that do not fit one another; a stage that would run out of data; an evaluation text that is trained
    /// on; a checkpoint of another recipe.
    pub fn new(recipe: Recipe, kernels: &'a dyn Kernels, resume: Option<&Path>) -> Result<Self> {
        let folder = recipe.model.checkpoint.clone();
        let config = match (&recipe.model.config, &folder) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| TrainError::Recipe { path: path.clone(), problem: error.to_string() })?;
                Config::from_json_str(&text, &path.display().to_string())?
            }
            (None, Some(folder)) => Config::from_dir(folder)?,
            (None, None) => unreachable!("the recipe was checked: this is a bug"),
        };
        let format = match recipe.model.precision {
            Precision::F32 => Format::F32,
            Precision::Bf16 => Format::BF16,
            Precision::Q8 => Format::Q8,
            Precision::Q4 => Format::Q4,
        };
        let options = LoadOptions { format, max_positions: recipe.step.sequence_length };
        let evaluations = open_evaluations(&recipe)?;
        let held_out: HashSet<u64> =
            evaluations.iter().flat_map(|(_, shards)| shards.fingerprints().iter().copied()).collect();
        for (_, shards) in &evaluations {
            check_shards(&recipe, &config, shards)?;
        }
        for stage in 0..recipe.stages.len() {
            check_stage(&recipe, &config, stage, &held_out)?;
        }
        let source = folder.map(Checkpoint::open).transpose()?;
        let mut parameters = match (&source, &recipe.lora) {
            (Some(source), Some(lora)) => {
                Parameters::adapted(source, &config, kernels, format, lora.clone(), recipe.seed)?
            }
            (Some(source), None) => Parameters::continued(source, &config)?,
            (None, None) => Parameters::random(&config, recipe.seed)?,
            (None, Some(lora)) => {
                let random = kanana_model::Random::new(recipe.seed, format);
                Parameters::adapted(&random, &config, kernels, format, lora.clone(), recipe.seed)?
            }
        };
        let rate = recipe.step.router_bias_rate;
        if rate > 0.0 {
            if config.mixture.is_none() {
                return Err(TrainError::NoRouter { rate, model_type: config.family.model_type() });
            }
            parameters.add_router_biases(&config);
        }
        let mut state = State::default();
        let mut optimizer = Optimizer::new(recipe.optimizer, recipe.seed);
        if let Some(dir) = resume {
            let saved = Saved::read(dir, &recipe)?;
            parameters.replace(saved.parameters)?;
            let updates = saved.state.updates;
            optimizer = Optimizer::restored(recipe.optimizer, recipe.seed, updates, saved.optimizer);
            state = saved.state;
        }
        let mut mixture = mixture(&recipe, state.stage)?;
        if let Some(at) = state.mixture.clone() {
            mixture.restore(&recipe.stages[state.stage].name, at)?;
        }
        Ok(Trainer {
            kernels,
            config,
            options,
            parameters,
            optimizer,
            built: None,
            mixture,
            state,
            evaluations,
            recipe,
        })
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is learnt.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.state.step
    }

    /// Whether all stages are done.
    pub fn is_done(&self) -> bool {
        self.state.step >= self.recipe.steps()
    }

    /// The model as it stands.
    pub fn model(&mut self) -> Result<Arc<Transformer>> {
        Ok(self.built()?.model.clone())
    }

    fn built(&mut self) -> Result<&Built> {
        let built = match self.built.take() {
            Some(built) => built,
            None => self.parameters.build(self.kernels, &self.config, &self.options)?,
        };
        Ok(self.built.insert(built))
    }

    /// One optimiser step.
    ///
    /// Errors: no token is a target; too many steps were left out; the data cannot be read.
    pub fn step(&mut self) -> Result<StepReport> {
        let stage = self.stage_of(self.state.step);
        if stage != self.state.stage {
            self.mixture = mixture(&self.recipe, stage)?;
            self.state.stage = stage;
        }
        let recipe = self.recipe.step.clone();
        // The sequences of the step do not depend on how many of them are computed at once.
        let pieces = self.mixture.next(recipe.batch_tokens, recipe.sequence_length)?;
        let batches = split(pieces, recipe.micro_batch_tokens);
        let learnt = |pieces: &[Piece]| {
            pieces.iter().flat_map(|piece| &piece.targets).filter(|&&y| y != CrossEntropy::IGNORED).count()
        };
        let targets: usize = batches.iter().map(|pieces| learnt(pieces)).sum();
        if targets == 0 {
            return Err(TrainError::NoTargets { step: self.state.step + 1 });
        }
        let Computed { gradients, loads, loss } = self.gradients(&batches, targets)?;
        let factor = self.recipe.schedule.factor(self.state.step, self.recipe.steps());
        let spike = self.is_spike(loss, recipe.spike_deviations);
        self.built = None;
        let outcome = match spike {
            true => None,
            false => {
                Some(self.optimizer.step(self.kernels, &mut self.parameters.learnt, &gradients, factor)?)
            }
        };
        if outcome.is_some_and(|outcome| outcome.updated) {
            router_bias::update(&mut self.parameters.learnt, &loads, recipe.router_bias_rate)?;
        }
        self.state.step += 1;
        self.state.updates = self.optimizer.steps();
        let batch_tokens = batches.iter().flatten().map(|piece| piece.ids.len() as u64).sum::<u64>();
        self.state.tokens += batch_tokens;
        self.state.mixture = Some(self.mixture.state().clone());
        if outcome.is_some_and(|outcome| outcome.updated) {
            self.state.losses.push_back(loss);
            if self.state.losses.len() > WINDOW {
                self.state.losses.pop_front();
            }
        } else {
            self.state.skipped += 1;
            if self.state.skipped > recipe.max_skipped {
                return Err(TrainError::TooManySkipped {
                    step: self.state.step,
                    skipped: self.state.skipped,
                });
            }
        }
        Ok(StepReport {
            step: self.state.step,
            stage: self.recipe.stages[stage].name.clone(),
            tokens: self.state.tokens,
            batch_tokens,
            learnt: targets as u64,
            loss,
            grad_norm: outcome.map_or(f64::NAN, |outcome| outcome.grad_norm),
            lr: f64::from(factor * self.recipe.optimizer.learning_rate),
            skipped: self.state.skipped,
            max_violation: router_bias::max_violation(&loads),
        })
    }

    fn gradients(&mut self, batches: &[Vec<Piece>], targets: usize) -> Result<Computed> {
        let recipe = self.recipe.step.clone();
        let kernels = self.kernels;
        let built = self.built()?;
        let options = CrossEntropy {
            scale: 1.0 / targets as f32,
            label_smoothing: recipe.label_smoothing,
            z_loss: recipe.z_loss,
        };
        let tokens = |pieces: &[Piece]| pieces.iter().map(|piece| piece.ids.len()).sum::<usize>();
        let all: usize = batches.iter().map(|pieces| tokens(pieces)).sum();
        let mut pass = Pass {
            kernels,
            model: &built.model,
            parameters: &built.learnt,
            checkpointing: recipe.checkpointing,
            chunk: recipe.logit_rows,
            router_losses: RouterLosses::default(),
        };
        let (mut sums, mut loss) = (Gradients::default(), 0.0);
        for pieces in batches {
            // Means over a batch, of which the step's is the mean by tokens.
            let share = tokens(pieces) as f32 / all as f32;
            pass.router_losses = RouterLosses {
                load_balance: recipe.router_load_balance * share,
                z_loss: recipe.router_z_loss * share,
            };
            let (batch, targets) = packed(pieces);
            let mut objective = NextToken::new(&targets, options);
            pass.run(&batch, &mut objective, &mut sums)?;
            loss += objective.loss;
        }
        let (mut gradients, mut loads) = (BTreeMap::new(), Loads::new());
        for (&of, name) in &built.names {
            if let Some(gradient) = sums.take(of) {
                gradients.insert(name.clone(), kernels.download(&gradient)?);
            }
            if let Some(of_router) = sums.take_loads(of) {
                loads.insert(name.clone(), of_router);
            }
        }
        Ok(Computed { gradients, loads, loss: loss / targets as f64 })
    }

    /// Whether a loss stands out from those before it.
    fn is_spike(&self, loss: f64, deviations: f64) -> bool {
        if deviations <= 0.0 || self.state.losses.len() < WINDOW {
            return false;
        }
        let mean = self.state.losses.iter().sum::<f64>() / WINDOW as f64;
        let variance = self.state.losses.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WINDOW as f64;
        loss > mean + deviations * variance.sqrt()
    }

    /// The stage of a step; the last one for a step behind all.
    fn stage_of(&self, step: u64) -> usize {
        let mut end = 0;
        let ends = self.recipe.stages.iter().map(|stage| {
            end += stage.steps;
            end
        });
        ends.take_while(|&end| end <= step).count().min(self.recipe.stages.len() - 1)
    }

    /// Measures on every evaluation text.
    pub fn evaluate(&mut self) -> Result<BTreeMap<String, Evaluation>> {
        self.built()?;
        let Some(built) = &self.built else { return Ok(BTreeMap::new()) };
        let step = &self.recipe.step;
        let mut results = BTreeMap::new();
        for (evaluation, shards) in &self.evaluations {
            let (mut nats, mut bytes, mut learnt, mut read) = (0.0, 0, 0, 0);
            let mut pieces = Vec::new();
            let documents = shards.info().documents as usize;
            for document in 0..documents {
                let len = shards.document_len(document);
                read += len;
                bytes += shards.text_bytes(document);
                for skip in (0..len).step_by(step.sequence_length) {
                    let count = step.sequence_length.min(len - skip);
                    let tokens = shards.read(document, skip, count + 1)?;
                    // The last token ends the text, and is none of it.
                    let target = |j: usize| match tokens.learnt.get(j + 1) {
                        Some(true) if skip + j + 2 < len => tokens.ids[j + 1],
                        _ => CrossEntropy::IGNORED,
                    };
                    let targets = (0..count).map(target).collect();
                    pieces.push(Piece { ids: tokens.ids[..count].to_vec(), targets });
                }
                let held: usize = pieces.iter().map(|piece| piece.ids.len()).sum();
                let last = document + 1 == documents || read >= evaluation.tokens;
                if last || held >= step.micro_batch_tokens {
                    let (batch, targets) = packed(&pieces);
                    let options = CrossEntropy { scale: 0.0, label_smoothing: 0.0, z_loss: 0.0 };
                    let mut objective = NextToken::new(&targets, options);
                    learnt += objective.rows().len();
                    measure(self.kernels, &built.model, &batch, &mut objective, step.logit_rows)?;
                    nats += objective.loss;
                    pieces.clear();
                }
                if last {
                    break;
                }
            }
            let bits_per_byte = nats / std::f64::consts::LN_2 / bytes.max(1) as f64;
            let loss = nats / learnt.max(1) as f64;
            results.insert(evaluation.name.clone(), Evaluation { loss, bits_per_byte });
        }
        Ok(results)
    }

    /// Bytes that the checkpoints of the steps to come will take beside those that are there, at most at once.
    pub fn space_needed(&self) -> Result<u64> {
        let there = crate::checkpoints(&self.recipe.output)?.len() as u64;
        let left = self.recipe.steps().saturating_sub(self.state.step);
        let count = more_checkpoints(&self.recipe.checkpoints, left, there);
        Ok(crate::state::bytes(&self.recipe, &self.parameters, &self.optimizer).saturating_mul(count))
    }

    /// Writes a checkpoint into the run's folder, and removes those that need not be kept. Gives its folder.
    pub fn save(&self) -> Result<std::path::PathBuf> {
        crate::state::save(&self.recipe, &self.config, &self.parameters, &self.optimizer, &self.state)
    }
}

/// Pieces in batches of at most so many tokens.
fn split(pieces: Vec<Piece>, tokens: usize) -> Vec<Vec<Piece>> {
    let (mut batches, mut room) = (Vec::new(), 0);
    for piece in pieces {
        if batches.is_empty() || piece.ids.len() > room {
            batches.push(Vec::new());
            room = tokens;
        }
        room -= piece.ids.len();
        if let Some(batch) = batches.last_mut() {
            batch.push(piece);
        }
    }
    batches
}

/// Pieces one after the other, with their targets.
fn packed(pieces: &[Piece]) -> (Batch, Vec<u32>) {
    let sequences: Vec<&[u32]> = pieces.iter().map(|piece| &piece.ids[..]).collect();
    let targets = pieces.iter().flat_map(|piece| piece.targets.iter().copied()).collect();
    (Batch::packed(&sequences, true), targets)
}

/// The loss of a batch, without gradients.
fn measure(
    kernels: &dyn Kernels,
    model: &Transformer,
    batch: &Batch,
    objective: &mut NextToken,
    chunk: usize,
) -> Result<()> {
    let hidden = model.forward(kernels, batch, None)?;
    let rows = objective.rows().to_vec();
    for (i, rows) in rows.chunks(chunk).enumerate() {
        let indices = kernels.upload(&kanana_tensor::Tensor::from_slice(&[rows.len()], rows)?)?;
        let logits = model.logits(kernels, &kernels.gather_rows(&hidden, &indices)?)?;
        objective.chunk(kernels, logits, i * chunk..i * chunk + rows.len())?;
    }
    Ok(())
}

fn open_evaluations(recipe: &Recipe) -> Result<Vec<(EvaluationRecipe, Shards)>> {
    recipe.evaluations.iter().map(|e| Ok((e.clone(), Shards::open(&e.shards)?))).collect()
}

/// The mixture of a stage, at its beginning.
fn mixture(recipe: &Recipe, stage: usize) -> Result<Mixture> {
    let StageRecipe { name, steps, chat, sources } = &recipe.stages[stage];
    let sources = sources.iter().map(|source| -> Result<Source> {
        Ok(Source {
            shards: Shards::open(&source.shards)?,
            weight: source.weight,
            max_epochs: source.max_epochs,
        })
    });
    let tokens = steps * recipe.step.batch_tokens as u64;
    let seed = recipe.seed ^ (stage as u64 + 1) << 48;
    Ok(Mixture::new(name, sources.collect::<Result<_>>()?, tokens, seed, *chat)?)
}

/// Shards fit the tokenizer and the model.
fn check_shards(recipe: &Recipe, config: &Config, shards: &Shards) -> Result<()> {
    if let Some(tokenizer) = recipe.model.tokenizer_folder() {
        shards.check_tokenizer(tokenizer)?;
    }
    match shards.info().vocab_size <= config.vocab_size {
        true => Ok(()),
        false => Err(TrainError::Vocabulary {
            shards: shards.dir().to_owned(),
            has: shards.info().vocab_size,
            model: config.vocab_size,
        }),
    }
}

/// Everything about a stage that can be known before the first step. `held_out`: what the evaluation texts are.
fn check_stage(recipe: &Recipe, config: &Config, stage: usize, held_out: &HashSet<u64>) -> Result<()> {
    let mixture = mixture(recipe, stage)?;
    for source in mixture.sources() {
        check_shards(recipe, config, &source.shards)?;
    }
    for source in mixture.sources() {
        let overlap = source.shards.fingerprints().iter().filter(|print| held_out.contains(print)).count();
        if overlap > 0 {
            let (shards, stage) = (source.shards.dir().to_owned(), recipe.stages[stage].name.clone());
            return Err(TrainError::Overlap { shards, stage, documents: overlap });
        }
    }
    Ok(())
}
