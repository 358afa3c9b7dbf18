//! The parameters of a run: what is learnt, in f32, and what is frozen, as the machine computes with it.
//!
//! A model is built from them again after every step, by the loader that reads checkpoints: what is trained is what will
//! be served, to the bit.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use kanana_kernels::{Format, Kernels, Packed};
use kanana_model::{
    Config, LoadOptions, LowRank, Parameter, Source, Transformer, expected_tensors, optional_tensors,
    random_tensor, weight_format,
};
use kanana_tensor::{DType, Identity, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::state::{write_file, write_tensors};
use crate::{Result, TrainError};

/// Adapters of low rank beside frozen projections. Source: Hu et al. 2021, arXiv 2106.09685.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraOptions {
    /// r, the inner width.
    pub rank: usize,
    /// The update counts alpha / r times.
    #[serde(default = "default_alpha")]
    pub alpha: f32,
    /// Alpha over the root of r instead. Source: Kalajdzievski 2023, arXiv 2312.03732.
    #[serde(default)]
    pub rank_stabilised: bool,
    /// Projections that get one, by the last part of their names.
    #[serde(default = "default_targets")]
    pub targets: Vec<String>,
}

fn default_alpha() -> f32 {
    32.0
}

fn default_targets() -> Vec<String> {
    LoraOptions::TARGETS.map(str::to_owned).to_vec()
}

impl LoraOptions {
    /// The projections that can have an adapter.
    pub const TARGETS: [&str; 7] =
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

    /// What `b · a` is multiplied with.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }
}

/// Names of the two factors beside a projection.
const FACTORS: [&str; 2] = ["lora_a", "lora_b"];

/// What is learnt and what is frozen.
pub struct Parameters {
    /// By name: matrices and vectors of the model (biases of routers too, which have no gradient), or the factors `{projection}.lora_a`, `{projection}.lora_b`.
    pub learnt: BTreeMap<String, Tensor>,
    frozen: HashMap<String, Parameter>,
    lora: Option<LoraOptions>,
}

/// A model built from parameters, and which of what it holds is learnt.
pub struct Built {
    /// The model.
    pub model: Arc<Transformer>,
    /// Names of what is learnt, by identity.
    pub names: HashMap<Identity, String>,
    /// The identities alone.
    pub learnt: HashSet<Identity>,
}

impl Parameters {
    /// Fresh ones: matrices with a standard deviation of 0.02, those that write to the residual stream divided by the root
    /// of twice the layers; norms one, biases zero. Source: Radford et al. 2019 (GPT-2), section 2.3.
    pub fn random(config: &Config, seed: u64) -> Result<Self> {
        const DEVIATION: f32 = 0.02;
        let to_residual = ["o_proj.weight", "down_proj.weight", "w2.weight"];
        let mut learnt = BTreeMap::new();
        for (name, shape) in expected_tensors(config) {
            let tensor = match *shape {
                [outputs, inputs] => {
                    let writes = to_residual.iter().any(|end| name.ends_with(end));
                    let share = if writes { (2.0 * config.num_hidden_layers as f32).sqrt() } else { 1.0 };
                    spread(&name, &[outputs, inputs], DEVIATION / share, seed)?
                }
                _ if name.contains("norm") => Tensor::from_slice(&shape, &vec![1f32; shape[0]])?,
                _ => Tensor::zeros(&shape, DType::F32),
            };
            learnt.insert(name, tensor);
        }
        Ok(Parameters { learnt, frozen: HashMap::new(), lora: None })
    }

    /// All parameters of a model that exists, to be learnt further.
    pub fn continued(source: &dyn Source, config: &Config) -> Result<Self> {
        let mut learnt = BTreeMap::new();
        for (name, shape) in expected_tensors(config) {
            let values = source.tensor(&name, &shape)?.to_f32_vec()?;
            learnt.insert(name, Tensor::from_slice(&shape, &values)?);
        }
        learnt.extend(router_biases(source, config)?);
        Ok(Parameters { learnt, frozen: HashMap::new(), lora: None })
    }

    /// Gives every router a bias that has none: zero, which changes nothing at first.
    pub(crate) fn add_router_biases(&mut self, config: &Config) {
        for (name, shape) in optional_tensors(config) {
            self.learnt.entry(name).or_insert_with(|| Tensor::zeros(&shape, DType::F32));
        }
    }

    /// A frozen model with adapters: `a` of the variance 1 / 3K, as PyTorch's linear layers, and `b` zero, so that nothing
    /// changes at first.
    ///
    /// Errors: a target that no projection has.
    pub fn adapted(
        source: &dyn Source,
        config: &Config,
        kernels: &dyn Kernels,
        format: Format,
        lora: LoraOptions,
        seed: u64,
    ) -> Result<Self> {
        let keep = Keep { source, kept: RefCell::default() };
        let options = LoadOptions { format, max_positions: 1 };
        Transformer::from_source(&keep, config, kernels, &options)?;
        let mut learnt = BTreeMap::new();
        for (name, shape) in expected_tensors(config) {
            let Some(projection) = name.strip_suffix(".weight") else { continue };
            let target = projection.rsplit('.').next().unwrap_or_default();
            if !lora.targets.iter().any(|wanted| wanted == target) || projection.contains(".experts.") {
                continue;
            }
            let name = |factor: usize| format!("{projection}.{}", FACTORS[factor]);
            let deviation = (3.0 * shape[1] as f32).sqrt().recip();
            learnt.insert(name(0), spread(&name(0), &[lora.rank, shape[1]], deviation, seed)?);
            learnt.insert(name(1), Tensor::zeros(&[shape[0], lora.rank], DType::F32));
        }
        match learnt.is_empty() {
            true => Err(TrainError::NoTarget { targets: lora.targets }),
            false => Ok(Parameters { learnt, frozen: keep.kept.into_inner(), lora: Some(lora) }),
        }
    }

    /// How the adapters are, where there are some.
    pub fn lora(&self) -> Option<&LoraOptions> {
        self.lora.as_ref()
    }

    /// Takes the values of a checkpoint of the same run.
    ///
    /// Errors: other names or shapes.
    pub(crate) fn replace(&mut self, saved: BTreeMap<String, Tensor>) -> Result<()> {
        let same =
            |(a, b): ((&String, &Tensor), (&String, &Tensor))| a.0 == b.0 && a.1.shape() == b.1.shape();
        if saved.len() != self.learnt.len() || !self.learnt.iter().zip(&saved).all(same) {
            let name =
                saved.keys().find(|name| !self.learnt.contains_key(*name)).cloned().unwrap_or_default();
            return Err(TrainError::UnknownParameter { name });
        }
        self.learnt = saved;
        Ok(())
    }

    /// Writes the adapters as the PEFT library does: adapter_config.json and adapter_model.safetensors.
    pub(crate) fn export_adapter(&self, dir: &Path, base: Option<&Path>) -> Result<()> {
        let Some(lora) = &self.lora else { return Ok(()) };
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": true,
            "base_model_name_or_path": base.map(|path| path.display().to_string()),
            "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "use_rslora": lora.rank_stabilised,
            "target_modules": lora.targets, "fan_in_fan_out": false,
        });
        write_file(&dir.join("adapter_config.json"), format!("{config:#}\n").as_bytes())?;
        let renamed = |name: &str| {
            let name = name.replace("lora_a", "lora_A.weight").replace("lora_b", "lora_B.weight");
            format!("base_model.model.{name}")
        };
        let adapters = self.learnt.iter().map(|(name, tensor)| (renamed(name), tensor.clone())).collect();
        // The library that writes checkpoints names its file for itself.
        let within = dir.join("adapter");
        write_tensors(&within, &adapters, DType::F32)?;
        let place = dir.join("adapter_model.safetensors");
        std::fs::rename(within.join("model.safetensors"), &place)
            .and_then(|()| std::fs::remove_dir(&within))
            .map_err(|source| TrainError::Io { path: place, source })
    }

    /// The model with its adapters added in: `w + scale · b · a`, by name, in f32.
    ///
    /// Errors: those of the source, which is the frozen model.
    pub fn merged(
        &self,
        source: &dyn Source,
        config: &Config,
        kernels: &dyn Kernels,
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut merged = BTreeMap::new();
        for (name, shape) in expected_tensors(config) {
            let mut tensor = Tensor::from_slice(&shape, &source.tensor(&name, &shape)?.to_f32_vec()?)?;
            let factor = |i: usize| {
                let projection = name.strip_suffix(".weight")?;
                self.learnt.get(&format!("{projection}.{}", FACTORS[i]))
            };
            if let (Some(lora), Some(a), Some(b)) = (&self.lora, factor(0), factor(1)) {
                let product = kernels.linear(b, &kernels.pack_transposed(a, Format::F32)?)?;
                tensor = kernels.add(&tensor, &kernels.scale(&product, lora.scale())?)?;
            }
            merged.insert(name, tensor);
        }
        merged.extend(router_biases(source, config)?);
        Ok(merged)
    }

    /// How many numbers are learnt.
    pub fn count(&self) -> u64 {
        self.learnt.values().map(|tensor| tensor.len() as u64).sum()
    }

    /// The model as it stands, matrices rounded to `options.format`.
    pub fn build(&self, kernels: &dyn Kernels, config: &Config, options: &LoadOptions) -> Result<Built> {
        let mut laid_out = self.frozen.clone();
        let mut names = HashMap::new();
        for (name, tensor) in &self.learnt {
            let parameter = match tensor.shape() {
                // A copy: the optimiser writes to its own.
                [_] => Parameter::Vector(
                    kernels.upload(&Tensor::from_slice(tensor.shape(), tensor.as_slice::<f32>()?)?)?,
                ),
                _ => Parameter::Matrix(kernels.pack(tensor, self.format(name, options.format))?),
            };
            names.insert(parameter.identity(), name.clone());
            laid_out.insert(name.clone(), parameter);
        }
        let source = LaidOut { parameters: laid_out, scale: self.lora.as_ref().map(LoraOptions::scale) };
        let model = Transformer::from_source(&source, config, kernels, options)?;
        Ok(Built { model: Arc::new(model), learnt: names.keys().copied().collect(), names })
    }

    /// Factors of adapters are never quantised.
    fn format(&self, name: &str, format: Format) -> Format {
        match self.lora {
            Some(_) if format.is_quantised() => Format::BF16,
            _ => weight_format(name, format),
        }
    }
}

/// The biases of routers that a source has.
fn router_biases(source: &dyn Source, config: &Config) -> Result<BTreeMap<String, Tensor>> {
    let mut biases = BTreeMap::new();
    for (name, shape) in optional_tensors(config) {
        if let Some(bias) = source.optional(&name, &shape)? {
            biases.insert(name, Tensor::from_slice(&shape, &bias.to_f32_vec()?)?);
        }
    }
    Ok(biases)
}

/// Parameters at hand.
struct LaidOut {
    parameters: HashMap<String, Parameter>,
    scale: Option<f32>,
}

impl Source for LaidOut {
    fn tensor(&self, name: &str, _shape: &[usize]) -> kanana_model::Result<Tensor> {
        Err(kanana_model::ModelError::MissingTensor { tensor: name.to_owned() })
    }
    fn parameter(&self, name: &str) -> Option<Parameter> {
        self.parameters.get(name).cloned()
    }
    fn low_rank(&self, projection: &str) -> Option<LowRank> {
        let factor = |i: usize| match self.parameters.get(&format!("{projection}.{}", FACTORS[i])) {
            Some(Parameter::Matrix(weight)) => Some(weight.clone()),
            _ => None,
        };
        Some(LowRank { a: factor(0)?, b: factor(1)?, scale: self.scale? })
    }
}

/// A source that keeps what was laid out.
struct Keep<'a> {
    source: &'a dyn Source,
    kept: RefCell<HashMap<String, Parameter>>,
}

impl Source for Keep<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> kanana_model::Result<Tensor> {
        self.source.tensor(name, shape)
    }
    fn optional(&self, name: &str, shape: &[usize]) -> kanana_model::Result<Option<Tensor>> {
        self.source.optional(name, shape)
    }
    fn packed(&self, name: &str) -> kanana_model::Result<Option<Packed>> {
        self.source.packed(name)
    }
    fn loaded(&self, name: &str, parameter: &Parameter) {
        self.kept.borrow_mut().insert(name.to_owned(), parameter.clone());
        self.source.loaded(name, parameter);
    }
}

/// Spread evenly around zero with this standard deviation, by name and seed.
fn spread(name: &str, shape: &[usize; 2], deviation: f32, seed: u64) -> Result<Tensor> {
    let mut tensor = random_tensor(name, shape, DType::F32, seed)?;
    let factor = deviation * (shape[1] as f32).sqrt();
    tensor.as_mut_slice::<f32>()?.iter_mut().for_each(|x| *x *= factor);
    Ok(tensor)
}
