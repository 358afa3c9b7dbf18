//! What a model is: the shape and the options of its config.json, read strictly.
//!
//! Every key is understood, or known not to change the mathematics, or an error: a field is never ignored in the
//! hope that it does not matter. Absent keys take the defaults of transformers' configuration classes (revision
//! 5.23.0, `models/{llama,mixtral,qwen2_moe,qwen3,qwen3_moe}/configuration_*.py`). It knows no weights.
//! Tests: `cargo test -p kanana-model config`.

mod generation;
mod json;
mod keys;
mod quantization;
mod read;
mod rope_scaling;
#[cfg(test)]
mod tests;
mod validate;
mod write;

use std::path::Path;

pub use generation::GenerationDefaults;
use json::Fields;
use kanana_kernels::Format;
use kanana_tensor::DType;
pub use rope_scaling::RopeScaling;

use crate::{ModelError, Result};

/// Which published architecture a configuration belongs to: it decides names and defaults, not code paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Every dense Kanana.
    Llama,
    /// A mixture whose chosen experts' weights always sum to one.
    Mixtral,
    /// A mixture with biases on queries, keys and values and a gated shared expert.
    Qwen2Moe,
    /// Dense, with norms on queries and keys.
    Qwen3,
    /// A mixture with norms on queries and keys.
    Qwen3Moe,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 5] =
        [Family::Llama, Family::Mixtral, Family::Qwen2Moe, Family::Qwen3, Family::Qwen3Moe];

    /// `model_type` in config.json.
    pub const fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mixtral => "mixtral",
            Family::Qwen2Moe => "qwen2_moe",
            Family::Qwen3 => "qwen3",
            Family::Qwen3Moe => "qwen3_moe",
        }
    }

    /// The stem of the class names in `architectures`: `Llama` in `LlamaForCausalLM`.
    pub const fn class_stem(self) -> &'static str {
        match self {
            Family::Llama => "Llama",
            Family::Mixtral => "Mixtral",
            Family::Qwen2Moe => "Qwen2Moe",
            Family::Qwen3 => "Qwen3",
            Family::Qwen3Moe => "Qwen3Moe",
        }
    }

    /// Whether its feed-forward layers are mixtures of experts.
    pub const fn is_mixture(self) -> bool {
        matches!(self, Family::Mixtral | Family::Qwen2Moe | Family::Qwen3Moe)
    }
}

/// The shape and the options of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Names and defaults.
    pub family: Family,
    /// D, the width of the residual stream.
    pub hidden_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// N, query heads.
    pub num_attention_heads: usize,
    /// K, key and value heads; divides N.
    pub num_key_value_heads: usize,
    /// H; not always D / N: the 2.1B has 128 where the quotient is 74.67.
    pub head_dim: usize,
    /// F, the width of a dense feed-forward layer; in Mixtral that of every expert.
    pub intermediate_size: usize,
    /// V.
    pub vocab_size: usize,
    /// Positions the file promises; [`Config::context_length`] counts in the rope scaling.
    pub max_position_embeddings: usize,
    /// Added to the mean square under the root.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// How those frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// The output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases on the query, key and value projections; see also [`Config::has_output_bias`].
    pub attention_bias: bool,
    /// Biases on the three projections of a dense feed-forward layer.
    pub mlp_bias: bool,
    /// RMSNorm over every head of the queries and keys, before the rotation.
    pub qk_norm: bool,
    /// Present in the mixture families.
    pub mixture: Option<Mixture>,
    /// The token a text begins with.
    pub bos_token_id: Option<u32>,
    /// The tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// The dtype the weights were saved in, if the file says.
    pub torch_dtype: Option<DType>,
    /// `quantization_config`: the matrices are stored in this format, each as [`crate::weight_format`] says.
    pub quantization: Option<Format>,
}

/// The options of the mixture-of-experts layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// X.
    pub num_experts: usize,
    /// A, experts chosen for every token.
    pub num_experts_per_tok: usize,
    /// The width of one expert.
    pub moe_intermediate_size: usize,
    /// `norm_topk_prob`: the weights of the chosen experts are divided by their sum.
    pub renormalise: bool,
    /// The width of the expert that every token passes.
    pub shared_expert_intermediate_size: Option<usize>,
    /// The shared expert's output is multiplied by the sigmoid of a learned projection.
    pub shared_expert_gated: bool,
    /// Every n-th layer is a mixture, the others are dense.
    pub decoder_sparse_step: usize,
    /// Layers that are dense whatever the step says, in rising order.
    pub mlp_only_layers: Vec<usize>,
}

impl Config {
    /// Reads the text of a config.json; `file` is what messages call it.
    ///
    /// Errors: anything that is not understood, out of range or contradictory; no input makes it panic.
    pub fn from_json_str(text: &str, file: &str) -> Result<Self> {
        read::config(Fields::parse(text, file)?)
    }

    /// Reads config.json of a checkpoint folder, and the end-of-text ids of its generation_config.json, which, as
    /// in transformers, take the place of those in config.json.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let mut config = Self::from_json_str(&text, &path.display().to_string())?;
        if let Some(ids) = GenerationDefaults::from_dir(dir)?.eos_token_ids {
            config.eos_token_ids = ids;
        }
        Ok(config)
    }

    /// Whether layer `layer` is a mixture of experts.
    pub fn is_sparse(&self, layer: usize) -> bool {
        self.mixture.as_ref().is_some_and(|mixture| {
            (layer + 1).is_multiple_of(mixture.decoder_sparse_step)
                && !mixture.mlp_only_layers.contains(&layer)
        })
    }

    /// Whether the output projection of the attention has a bias: `attention_bias` covers it, except in Qwen2-MoE.
    pub fn has_output_bias(&self) -> bool {
        self.attention_bias && self.family != Family::Qwen2Moe
    }

    /// How many tokens the model can attend to.
    ///
    /// `max_position_embeddings`, except where people enable scaling by editing `rope_scaling` alone and leave that
    /// number at the trained length: then factor × trained length (dynamic always; YaRN when the two are equal).
    pub fn context_length(&self) -> usize {
        let trained = self.max_position_embeddings;
        match self.rope_scaling {
            RopeScaling::Dynamic { factor } => (trained as f64 * factor) as usize,
            RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. }
                if original >= trained =>
            {
                (original as f64 * factor) as usize
            }
            _ => trained,
        }
    }

    /// This model with the rotary scaling of a JSON text, which replaces its own: the object of `rope_scaling`
    /// (`rope_parameters`), bare or under that key. `file` is what messages call it.
    ///
    /// `max_position_embeddings` grows to factor × trained length for linear and llama3 scaling, whose files would
    /// state it so; for YaRN and dynamic scaling [`Config::context_length`] follows by itself.
    pub fn with_rope_scaling(&self, text: &str, file: &str) -> Result<Self> {
        let mut fields = Fields::parse(text, file)?;
        for key in ["rope_scaling", "rope_parameters"] {
            if let Some(inner) = fields.object(key)? {
                fields.finish()?;
                fields = Fields::nested(file, key, inner);
                break;
            }
        }
        let (rope_scaling, theta) = RopeScaling::read(fields, self.max_position_embeddings)?;
        let mut config = Self { rope_theta: theta.unwrap_or(self.rope_theta), rope_scaling, ..self.clone() };
        let (factor, original) = match config.rope_scaling {
            RopeScaling::Linear { factor } => (factor, self.max_position_embeddings),
            RopeScaling::Llama3 { factor, original_max_position_embeddings, .. } => {
                (factor, original_max_position_embeddings)
            }
            _ => (1.0, 1),
        };
        config.max_position_embeddings =
            self.max_position_embeddings.max((factor * original as f64) as usize);
        config.validate(file)?;
        Ok(config)
    }

    /// This model with the setting published for 128K tokens: YaRN by 4.4 of 32768 positions, beta_fast 64,
    /// beta_slow 2; the context becomes 131072, a little less than 4.4 × 32768 = 144179.
    ///
    /// Errors: a model that was not trained for 32768 positions, or that already scales its positions otherwise.
    /// Source: the README of kakao/kanana, "Processing 32K+ Length".
    pub fn published_128k(&self) -> Result<Self> {
        const TRAINED: usize = 32_768;
        const CONTEXT: usize = 131_072;
        let rope_scaling = RopeScaling::Yarn {
            factor: 4.4,
            original_max_position_embeddings: TRAINED,
            beta_fast: 64.0,
            beta_slow: 2.0,
            truncate: true,
            attention_factor: rope_scaling::yarn_attention_factor(4.4, None),
        };
        let already = self.rope_scaling == rope_scaling;
        let refuse = |field: &str, got: String, expected: &str| ModelError::Field {
            file: "the published 128K setting".to_owned(),
            field: field.to_owned(),
            got,
            expected: format!("{expected}; give another setting as a rope scaling file"),
        };
        if !already && self.rope_scaling != RopeScaling::None {
            return Err(refuse("rope_scaling", format!("{:?}", self.rope_scaling), "none"));
        }
        if !already && self.max_position_embeddings != TRAINED {
            let got = self.max_position_embeddings.to_string();
            return Err(refuse("max_position_embeddings", got, "32768, the length it was published for"));
        }
        Ok(Self { rope_scaling, max_position_embeddings: CONTEXT, ..self.clone() })
    }
}
