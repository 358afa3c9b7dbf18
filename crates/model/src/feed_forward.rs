//! The feed-forward block: dense SwiGLU, or a mixture of experts with an optional shared one.

use kanana_kernels::{Expert, Gate, Kernels, RouterOptions, Weight};
use kanana_tensor::Tensor;

use crate::config::Mixture;
use crate::linear::Linear;
use crate::load::Loader;
use crate::names::{mixture_names, router_bias};
use crate::{Config, Result};

pub(crate) enum FeedForward {
    Dense(Box<Dense>),
    Mixture(Box<MixtureOfExperts>),
}

impl FeedForward {
    /// `layer`: the layer's number, which decides between the two; `prefix`: its name.
    pub(crate) fn load(loader: &Loader<'_>, prefix: &str, config: &Config, layer: usize) -> Result<Self> {
        match &config.mixture {
            Some(mixture) if config.is_sparse(layer) => {
                Ok(FeedForward::Mixture(Box::new(MixtureOfExperts::load(loader, prefix, config, mixture)?)))
            }
            _ => Ok(FeedForward::Dense(Box::new(Dense::load(loader, &format!("{prefix}.mlp"), config)?))),
        }
    }

    /// Shapes: `x [T, D]` → `[T, D]`.
    pub(crate) fn forward(&self, kernels: &dyn Kernels, x: &Tensor) -> Result<Tensor> {
        match self {
            FeedForward::Dense(dense) => dense.forward(kernels, x),
            FeedForward::Mixture(mixture) => mixture.forward(kernels, x),
        }
    }
}

pub(crate) struct Dense {
    gate_proj: Linear, // [F, D]
    up_proj: Linear,   // [F, D]
    down_proj: Linear, // [D, F]
}

impl Dense {
    fn load(loader: &Loader<'_>, prefix: &str, config: &Config) -> Result<Self> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let projection =
            |name: &str, shape| loader.linear(&format!("{prefix}.{name}"), shape, config.mlp_bias);
        Ok(Dense {
            gate_proj: projection("gate_proj", [f, d])?,
            up_proj: projection("up_proj", [f, d])?,
            down_proj: projection("down_proj", [d, f])?,
        })
    }

    fn forward(&self, kernels: &dyn Kernels, x: &Tensor) -> Result<Tensor> {
        let [gate, up] = Linear::forward_all(kernels, x, [&self.gate_proj, &self.up_proj])?;
        self.down_proj.forward(kernels, &kernels.silu_mul(&gate, &up)?)
    }
}

pub(crate) struct MixtureOfExperts {
    gate: Weight,         // [X, D]
    bias: Option<Tensor>, // [X], of the choice alone
    experts: Vec<Expert>, // X
    shared: Option<Shared>,
    router: RouterOptions,
}

/// The expert that every token passes.
struct Shared {
    expert: Expert,
    gate: Option<Weight>, // [1, D]
}

impl MixtureOfExperts {
    fn load(loader: &Loader<'_>, prefix: &str, config: &Config, mixture: &Mixture) -> Result<Self> {
        let (d, f) = (config.hidden_size, mixture.moe_intermediate_size);
        let (block, names) = mixture_names(config.family);
        let block = format!("{prefix}.{block}");
        let expert = |name: String, f: usize| -> Result<Expert> {
            let matrix = |i: usize, shape| loader.matrix(&format!("{name}.{}.weight", names[i]), shape);
            Ok(Expert { gate: matrix(0, [f, d])?, up: matrix(1, [f, d])?, down: matrix(2, [d, f])? })
        };
        let shared = match mixture.shared_expert_intermediate_size {
            None => None,
            Some(shared_f) => Some(Shared {
                expert: expert(format!("{block}.shared_expert"), shared_f)?,
                gate: match mixture.shared_expert_gated {
                    true => Some(loader.matrix(&format!("{block}.shared_expert_gate.weight"), [1, d])?),
                    false => None,
                },
            }),
        };
        Ok(MixtureOfExperts {
            gate: loader.matrix(&format!("{block}.gate.weight"), [mixture.num_experts, d])?,
            bias: loader.optional_vector(&router_bias(&block), mixture.num_experts)?,
            experts: (0..mixture.num_experts)
                .map(|x| expert(format!("{block}.experts.{x}"), f))
                .collect::<Result<_>>()?,
            shared,
            router: RouterOptions {
                gate: Gate::Softmax,
                top_k: mixture.num_experts_per_tok,
                renormalise: mixture.renormalise,
                scale: 1.0,
            },
        })
    }

    fn forward(&self, kernels: &dyn Kernels, x: &Tensor) -> Result<Tensor> {
        let routing = kernels.route(&kernels.linear(x, &self.gate)?, self.bias.as_ref(), self.router)?;
        let routed = kernels.experts(x, &routing, &self.experts)?;
        let Some(Shared { expert, gate }) = &self.shared else { return Ok(routed) };
        let mut shared = kernels.swiglu(x, &expert.gate, &expert.up, &expert.down)?;
        if let Some(gate) = gate {
            shared = kernels.sigmoid_gate(&shared, &kernels.linear(x, gate)?)?;
        }
        Ok(kernels.add(&routed, &shared)?)
    }
}
