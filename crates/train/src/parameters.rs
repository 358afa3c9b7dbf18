//! The parameters of a run: what is learnt, in f32, and what is frozen, as the machine computes with it.
//!
//! A model is built from them again after every step, by the loader that reads checkpoints: what is trained is what will
//! be served, to the bit.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use kanana_kernels::{Format, Kernels, Packed};
use kanana_model::{
    Config, LoadOptions, LowRank, Parameter, Source, Transformer, expected_tensors, random_tensor,
    weight_format,
};
use kanana_tensor::{DType, Identity, Tensor};
use serde::{Deserialize, Serialize};

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
    /// By name: matrices and vectors of the model, or the factors `{projection}.lora_a`, `{projection}.lora_b`.
    pub learnt: BTreeMap<String, Tensor>,
    frozen: HashMap<String, Parameter>,
    lora: Option<LoraOptions>,
}

/// A model built from parameters, and which of what it holds is learnt.
pub struct Built {
    /// The model.
    pub model: Transformer,
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
        Ok(Parameters { learnt, frozen: HashMap::new(), lora: None })
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
        Ok(Built { model, learnt: names.keys().copied().collect(), names })
    }

    /// Factors of adapters are never quantised.
    fn format(&self, name: &str, format: Format) -> Format {
        match self.lora {
            Some(_) if format.is_quantised() => Format::BF16,
            _ => weight_format(name, format),
        }
    }
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
