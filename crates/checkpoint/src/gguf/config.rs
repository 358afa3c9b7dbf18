//! Reading the configuration: from keys such as `llama.block_count` to the fields of a config.json.
//!
//! What the file says and no field expresses is refused. The way back is in `describe.rs`.
//! Source of the conventions: llama.cpp (as vendored by llama-cpp-python 0.3.36), `conversion/` and `src/models/`.

use serde_json::{Map, Value, json};

use super::error::GgufError;
use super::metadata::Metadata;
use super::names::Architecture;
use super::rope_factors::{Llama3, ROPE_FACTORS};
use super::{GgufFile, vocabulary};
use crate::Result;

/// A config.json for the model of a file, with every field that changes the mathematics.
///
/// Errors: an architecture or an option that is not implemented, keys that are missing or contradict the tensors.
pub fn config_json(file: &GgufFile) -> Result<Value> {
    let metadata = file.metadata();
    let architecture = Architecture::of(metadata)?;
    let keys = Keys { metadata, prefix: architecture.name() };
    let experts = keys.optional("expert_count")?.filter(|&n| n > 0);
    let (model_type, class) = match (architecture, experts) {
        (Architecture::Llama, None) => ("llama", "LlamaForCausalLM"),
        (Architecture::Llama, Some(_)) => ("mixtral", "MixtralForCausalLM"),
        (Architecture::Qwen2Moe, _) => ("qwen2_moe", "Qwen2MoeForCausalLM"),
        (Architecture::Qwen3, _) => ("qwen3", "Qwen3ForCausalLM"),
        (Architecture::Qwen3Moe, _) => ("qwen3_moe", "Qwen3MoeForCausalLM"),
    };
    let hidden_size = keys.size("embedding_length")?;
    let heads = keys.size("attention.head_count")?;
    let has = |name: &str| file.header().tensors.contains_key(name);
    let feed_forward = keys.optional("feed_forward_length")?;

    let mut config = Map::new();
    let mut set = |field: &str, value: Value| drop(config.insert(field.to_owned(), value));
    set("architectures", json!([class]));
    set("model_type", model_type.into());
    set("hidden_act", "silu".into());
    set("hidden_size", hidden_size.into());
    set("num_hidden_layers", keys.size("block_count")?.into());
    set("num_attention_heads", heads.into());
    set("num_key_value_heads", keys.optional("attention.head_count_kv")?.unwrap_or(heads).into());
    set("head_dim", head_dim(&keys, hidden_size, heads)?.into());
    set("max_position_embeddings", keys.size("context_length")?.into());
    set("rms_norm_eps", keys.need_float("attention.layer_norm_rms_epsilon")?.into());
    set("rope_theta", keys.float("rope.freq_base")?.unwrap_or(10_000.0).into());
    set("rope_scaling", rope_scaling(file, &keys)?);
    set("vocab_size", vocab_size(file)?.into());
    set("tie_word_embeddings", (!has("output.weight")).into());
    let (bos, eos) = vocabulary::end_tokens(metadata)?;
    set("bos_token_id", bos.into());
    set("eos_token_id", eos.into());
    match architecture {
        Architecture::Llama if experts.is_none() => {
            set("attention_bias", has("blk.0.attn_q.bias").into());
            set("mlp_bias", has("blk.0.ffn_gate.bias").into());
        }
        Architecture::Qwen3 | Architecture::Qwen3Moe => {
            set("attention_bias", has("blk.0.attn_q.bias").into());
        }
        Architecture::Qwen2Moe => set("qkv_bias", has("blk.0.attn_q.bias").into()),
        Architecture::Llama => {}
    }
    if let Some(experts) = experts {
        let field = if architecture == Architecture::Llama { "num_local_experts" } else { "num_experts" };
        set(field, experts.into());
        set("num_experts_per_tok", keys.size("expert_used_count")?.into());
    }
    if matches!(architecture, Architecture::Qwen2Moe | Architecture::Qwen3Moe) {
        set("moe_intermediate_size", keys.size("expert_feed_forward_length")?.into());
        // What llama.cpp computes, whatever a file says: no key of its own exists in these architectures.
        set("norm_topk_prob", (architecture == Architecture::Qwen3Moe).into());
    }
    if architecture == Architecture::Qwen2Moe {
        set("shared_expert_intermediate_size", keys.size("expert_shared_feed_forward_length")?.into());
    }
    // A mixture whose dense width was never used may leave it out.
    let moe_width = keys.optional("expert_feed_forward_length")?;
    let width = metadata.need(&keys.key("feed_forward_length"), feed_forward.or(moe_width))?;
    set("intermediate_size", width.into());
    Ok(Value::Object(config))
}

/// The keys below an architecture's prefix.
struct Keys<'a> {
    metadata: Metadata<'a>,
    prefix: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn optional(&self, name: &str) -> Result<Option<u64>> {
        self.metadata.integer(&self.key(name))
    }

    fn size(&self, name: &str) -> Result<u64> {
        self.metadata.need(&self.key(name), self.optional(name)?)
    }

    fn float(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.float(&self.key(name))
    }

    fn need_float(&self, name: &str) -> Result<f64> {
        self.metadata.need(&self.key(name), self.float(name)?)
    }

    fn wrong(&self, name: &str, got: impl ToString, expected: impl Into<String>) -> crate::CheckpointError {
        self.metadata.wrong(GgufError::value(&self.key(name), got, expected))
    }
}

/// One width for keys, values and rotation.
fn head_dim(keys: &Keys<'_>, hidden_size: u64, heads: u64) -> Result<u64> {
    let rotated = keys.optional("rope.dimension_count")?;
    let head_dim = match keys.optional("attention.key_length")?.or(rotated) {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(keys.wrong(
                "attention.key_length",
                "missing",
                "a width: embedding_length / head_count is no whole number",
            ));
        }
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = keys.optional(name)?.filter(|&other| other != head_dim) {
            let expected = format!(
                "{head_dim}, the width of a key: heads of several widths and partial rotation are not implemented"
            );
            return Err(keys.wrong(name, other, expected));
        }
    }
    Ok(head_dim)
}

/// The rows of the embedding; the vocabulary of the file must not have more tokens.
fn vocab_size(file: &GgufFile) -> Result<usize> {
    const NAME: &str = "token_embd.weight";
    let tensor = file.header().tensors.get(NAME).ok_or_else(|| crate::CheckpointError::NoTensor {
        dir: file.path().into(),
        tensor: NAME.to_owned(),
    })?;
    match tensor.shape[..] {
        [rows, _] => Ok(rows),
        _ => Err(file.metadata().wrong(GgufError::Shape {
            tensor: NAME.to_owned(),
            expected: "a matrix [vocabulary, embedding_length]".to_owned(),
            got: tensor.shape.clone(),
        })),
    }
}

fn rope_scaling(file: &GgufFile, keys: &Keys<'_>) -> Result<Value> {
    let kind = keys.metadata.text(&keys.key("rope.scaling.type"))?;
    let factor = keys.float("rope.scaling.factor")?.or(keys.float("rope.scale_linear")?);
    let factor = factor.filter(|&factor| factor != 0.0 && factor != 1.0);
    let original = keys.optional("rope.scaling.original_context_length")?;
    if let Some(tensor) = file.header().tensors.get(ROPE_FACTORS) {
        if let Some(factor) = factor {
            return Err(keys.wrong(
                "rope.scaling.factor",
                factor,
                format!("none beside the tensor {ROPE_FACTORS}"),
            ));
        }
        let theta = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
        let values = file.values(ROPE_FACTORS, tensor)?;
        return match Llama3::from_factors(&values, theta, original) {
            Some(llama3) => Ok(llama3.to_json()),
            None if values.iter().all(|&x| x == 1.0) => Ok(Value::Null),
            None => Err(keys.metadata.wrong(GgufError::Shape {
                tensor: ROPE_FACTORS.to_owned(),
                expected: "the factors of llama3 scaling; no other frequencies are implemented".to_owned(),
                got: tensor.shape.clone(),
            })),
        };
    }
    match (kind, factor) {
        (Some("yarn"), Some(factor)) => yarn(keys, factor, original),
        (None | Some("none" | "linear" | "yarn"), None) | (Some("none"), Some(_)) => Ok(Value::Null),
        (None | Some("linear"), Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
        (Some(other), _) => {
            Err(keys.wrong("rope.scaling.type", format!("{other:?}"), "none, linear or yarn"))
        }
    }
}

/// By how much llama.cpp warms attention under YaRN of its own accord.
pub(super) fn yarn_temperature(factor: f64) -> f64 {
    1.0 + 0.1 * factor.ln()
}

fn yarn(keys: &Keys<'_>, factor: f64, original: Option<u64>) -> Result<Value> {
    // The converter writes transformers' attention_factor to the first key; llama.cpp multiplies by the second.
    let attention_factor = match keys.float("rope.scaling.yarn_attn_factor")? {
        Some(whole) => whole,
        None => keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0) * yarn_temperature(factor),
    };
    Ok(json!({
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original.map_or_else(|| keys.size("context_length"), Ok)?,
        "beta_fast": keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        "beta_slow": keys.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        "truncate": true,
        "attention_factor": attention_factor,
    }))
}
