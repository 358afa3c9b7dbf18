//! What must hold between the fields, whoever filled them in: a file, a preset or a test.

use serde_json::Value;

use super::{Config, RopeScaling};
use crate::{ModelError, Result, cost};

/// The largest sizes that are believed. Far above any model there is, and low enough that no product of them
/// overflows where it is computed.
pub(super) mod limits {
    /// Hidden and intermediate widths, head_dim.
    pub const WIDTH: usize = 1 << 24;
    /// Attention heads.
    pub const HEADS: usize = 1 << 16;
    /// Layers.
    pub const LAYERS: usize = 1024;
    /// Experts of a layer.
    pub const EXPERTS: usize = 1024;
    /// Vocabulary and positions.
    pub const TOKENS: usize = 1 << 28;
    /// Parameters in all.
    pub const PARAMETERS: u64 = 1 << 50;
}

impl Config {
    /// Checks every range and every relation between fields; `file` is what messages call their source.
    ///
    /// Errors: the first field that breaks one.
    pub fn validate(&self, file: &str) -> Result<()> {
        let wrong = |field: &str, got: Value, expected: &str| -> Result<()> {
            Err(ModelError::Field {
                file: file.to_owned(),
                field: field.to_owned(),
                got: got.to_string(),
                expected: expected.to_owned(),
            })
        };
        for (field, size, limit) in self.sizes() {
            if !(1..=limit).contains(&size) {
                return wrong(field, size.into(), &format!("a whole number from 1 to {limit}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads, which is {}", self.num_attention_heads);
            return wrong("num_key_value_heads", self.num_key_value_heads.into(), &expected);
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("head_dim", self.head_dim.into(), "an even number: rotary positions turn pairs");
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return wrong("rms_norm_eps", self.rms_norm_eps.into(), "a number between 0 and 1, such as 1e-5");
        }
        if !(self.rope_theta > 1.0 && self.rope_theta <= 1e30) {
            return wrong(
                "rope_theta",
                self.rope_theta.into(),
                "a number above 1 and up to 1e30, such as 500000",
            );
        }
        if matches!(self.rope_scaling, RopeScaling::Dynamic { .. }) && self.head_dim == 2 {
            return wrong("head_dim", self.head_dim.into(), "more than 2 under dynamic rope scaling");
        }
        if self.family.is_mixture() != self.mixture.is_some() {
            return wrong(
                "model_type",
                self.family.model_type().into(),
                "a mixture family if and only if there are experts",
            );
        }
        if let Some(mixture) = &self.mixture {
            if mixture.num_experts_per_tok > mixture.num_experts {
                let expected = format!("at most the number of experts, which is {}", mixture.num_experts);
                return wrong("num_experts_per_tok", mixture.num_experts_per_tok.into(), &expected);
            }
            if mixture.mlp_only_layers.iter().any(|layer| *layer >= self.num_hidden_layers) {
                let expected =
                    format!("layer numbers below num_hidden_layers, which is {}", self.num_hidden_layers);
                return wrong("mlp_only_layers", mixture.mlp_only_layers.clone().into(), &expected);
            }
        }
        let parameters = cost::parameters(self).total;
        if parameters > limits::PARAMETERS {
            let expected = format!("a shape of at most {} parameters, not {parameters}", limits::PARAMETERS);
            return wrong("hidden_size", self.hidden_size.into(), &expected);
        }
        Ok(())
    }

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        let mut sizes = vec![
            ("hidden_size", self.hidden_size, limits::WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, limits::LAYERS),
            ("num_attention_heads", self.num_attention_heads, limits::HEADS),
            ("num_key_value_heads", self.num_key_value_heads, limits::HEADS),
            ("head_dim", self.head_dim, limits::WIDTH),
            ("intermediate_size", self.intermediate_size, limits::WIDTH),
            ("vocab_size", self.vocab_size, limits::TOKENS),
            ("max_position_embeddings", self.max_position_embeddings, limits::TOKENS),
            ("context_length", self.context_length(), limits::TOKENS),
        ];
        if let Some(mixture) = &self.mixture {
            sizes.extend([
                ("num_experts", mixture.num_experts, limits::EXPERTS),
                ("num_experts_per_tok", mixture.num_experts_per_tok, limits::EXPERTS),
                ("moe_intermediate_size", mixture.moe_intermediate_size, limits::WIDTH),
                ("decoder_sparse_step", mixture.decoder_sparse_step, limits::LAYERS),
            ]);
            let shared = mixture.shared_expert_intermediate_size;
            sizes.extend(shared.map(|width| ("shared_expert_intermediate_size", width, limits::WIDTH)));
        }
        sizes
    }
}
