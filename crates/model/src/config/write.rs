//! From a [`Config`] to a config.json that transformers (4.45 and later) and this crate read back.

use kanana_tensor::DType;
use serde_json::{Map, Value, json};

use super::{Config, Family, quantization};

impl Config {
    /// The object to write as config.json: no key is left to a default that changes the mathematics.
    pub fn to_json(&self) -> Value {
        let mut fields = Map::new();
        let mut set = |key: &str, value: Value| fields.insert(key.to_owned(), value);
        set("architectures", json!([format!("{}ForCausalLM", self.family.class_stem())]));
        set("model_type", self.family.model_type().into());
        set("hidden_act", "silu".into());
        set("hidden_size", self.hidden_size.into());
        set("intermediate_size", self.intermediate_size.into());
        set("num_hidden_layers", self.num_hidden_layers.into());
        set("num_attention_heads", self.num_attention_heads.into());
        set("num_key_value_heads", self.num_key_value_heads.into());
        set("head_dim", self.head_dim.into());
        set("vocab_size", self.vocab_size.into());
        set("max_position_embeddings", self.max_position_embeddings.into());
        set("rms_norm_eps", self.rms_norm_eps.into());
        set("rope_theta", self.rope_theta.into());
        set("rope_scaling", self.rope_scaling.to_json());
        set("tie_word_embeddings", self.tie_word_embeddings.into());
        set("bos_token_id", self.bos_token_id.into());
        set(
            "eos_token_id",
            match self.eos_token_ids[..] {
                [] => Value::Null,
                [id] => id.into(),
                ref ids => ids.into(),
            },
        );
        set("torch_dtype", self.torch_dtype.map_or(Value::Null, |dtype| torch_name(dtype).into()));
        match self.family {
            Family::Llama => {
                set("attention_bias", self.attention_bias.into());
                set("mlp_bias", self.mlp_bias.into());
            }
            Family::Qwen3 | Family::Qwen3Moe => {
                set("attention_bias", self.attention_bias.into());
            }
            Family::Qwen2Moe => {
                set("qkv_bias", self.attention_bias.into());
            }
            Family::Mixtral => {}
        }
        if let Some(format) = self.quantization {
            let (key, object) = quantization::write(format);
            set(key, object);
        }
        if let Some(mixture) = &self.mixture {
            let experts = if self.family == Family::Mixtral { "num_local_experts" } else { "num_experts" };
            set(experts, mixture.num_experts.into());
            set("num_experts_per_tok", mixture.num_experts_per_tok.into());
            if self.family != Family::Mixtral {
                set("moe_intermediate_size", mixture.moe_intermediate_size.into());
                set("norm_topk_prob", mixture.renormalise.into());
                set("decoder_sparse_step", mixture.decoder_sparse_step.into());
                set("mlp_only_layers", mixture.mlp_only_layers.clone().into());
            }
            if let Some(width) = mixture.shared_expert_intermediate_size {
                set("shared_expert_intermediate_size", width.into());
            }
        }
        Value::Object(fields)
    }
}

/// The name of a dtype of weights in config.json; the others are not dtypes of weights there.
fn torch_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("float32"),
        DType::F16 => Some("float16"),
        DType::BF16 => Some("bfloat16"),
        DType::U32 | DType::U8 => None,
    }
}
