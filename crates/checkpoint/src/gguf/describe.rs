//! Writing the configuration: from the fields of a config.json to keys such as `llama.block_count`.
//!
//! What GGUF, or llama.cpp reading it, cannot express is refused: nothing is dropped in the hope that it does not matter.
//! Sources as in `config.rs`.

use serde_json::Value;

use super::config::yarn_temperature;
use super::error::GgufError;
use super::metadata::MetadataValue;
use super::names::Architecture;
use super::rope_factors::{Llama3, factors};

/// What a file says of a model, and the divisors of its rotary frequencies where it needs them as a tensor.
pub(crate) struct Description {
    pub(crate) architecture: Architecture,
    pub(crate) heads: (usize, usize),
    pub(crate) experts: usize,
    pub(crate) layers: usize,
    pub(crate) vocab_size: usize,
    pub(crate) is_tied: bool,
    pub(crate) rope_factors: Option<Vec<f32>>,
    pub(crate) metadata: Vec<(String, MetadataValue)>,
}

/// Describes the model of a complete config.json, as [`crate::gguf::Export`] takes it.
///
/// Errors: [`GgufError::NotExpressible`].
pub(crate) fn describe(config: &Value) -> Result<Description, GgufError> {
    let fields = Fields(config);
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let architecture = match model_type {
        "llama" | "mixtral" => Architecture::Llama,
        "qwen2_moe" => Architecture::Qwen2Moe,
        "qwen3" => Architecture::Qwen3,
        "qwen3_moe" => Architecture::Qwen3Moe,
        _ => {
            return Err(
                fields.refuse("model_type", "llama, mixtral, qwen2_moe, qwen3 and qwen3_moe can be written")
            );
        }
    };
    let (heads, kv_heads) = (fields.size("num_attention_heads")?, fields.size("num_key_value_heads")?);
    let (hidden, head_dim) = (fields.size("hidden_size")?, fields.size("head_dim")?);
    let layers = fields.size("num_hidden_layers")?;
    let vocab_size = fields.size("vocab_size")?;
    let is_tied = config["tie_word_embeddings"] == true;

    let mut entries = Entries { prefix: architecture.name(), list: Vec::new() };
    entries.size("block_count", layers);
    entries.size("context_length", fields.size("max_position_embeddings")?);
    entries.size("embedding_length", hidden);
    entries.size("feed_forward_length", fields.size("intermediate_size")?);
    entries.size("attention.head_count", heads);
    entries.size("attention.head_count_kv", kv_heads);
    entries.size("attention.key_length", head_dim);
    entries.size("attention.value_length", head_dim);
    entries.float("attention.layer_norm_rms_epsilon", fields.number("rms_norm_eps")?);
    entries.size("rope.dimension_count", head_dim);
    entries.float("rope.freq_base", fields.number("rope_theta")?);
    entries.size("vocab_size", vocab_size);
    let rope_factors = describe_rope(&fields, &mut entries, head_dim as usize)?;
    let experts = match model_type {
        "mixtral" => fields.size("num_local_experts")?,
        "qwen2_moe" | "qwen3_moe" => fields.size("num_experts")?,
        _ => 0,
    };
    if experts > 0 {
        entries.size("expert_count", experts);
        entries.size("expert_used_count", fields.size("num_experts_per_tok")?);
        describe_mixture(&fields, &mut entries, architecture)?;
    }
    if architecture == Architecture::Qwen2Moe {
        if hidden != heads * head_dim {
            return Err(fields.refuse("head_dim", "llama.cpp's qwen2moe has hidden_size = heads x head_dim"));
        }
        if is_tied {
            return Err(
                fields.refuse("tie_word_embeddings", "llama.cpp's qwen2moe has an output matrix of its own")
            );
        }
    }
    Ok(Description {
        architecture,
        heads: (heads as usize, kv_heads as usize),
        experts: experts as usize,
        layers: layers as usize,
        vocab_size: vocab_size as usize,
        is_tied,
        rope_factors,
        metadata: entries.list,
    })
}

fn describe_mixture(
    fields: &Fields<'_>,
    entries: &mut Entries,
    architecture: Architecture,
) -> Result<(), GgufError> {
    if architecture == Architecture::Llama {
        return Ok(());
    }
    let config = fields.0;
    let renormalises = architecture == Architecture::Qwen3Moe;
    if config["norm_topk_prob"] != renormalises {
        let why = if renormalises {
            "llama.cpp's qwen3moe always makes the weights of the chosen experts sum to one"
        } else {
            "llama.cpp's qwen2moe never makes the weights of the chosen experts sum to one"
        };
        return Err(fields.refuse("norm_topk_prob", why));
    }
    let every_layer = "llama.cpp expects experts in every layer";
    if config["decoder_sparse_step"].as_u64().is_some_and(|step| step != 1) {
        return Err(fields.refuse("decoder_sparse_step", every_layer));
    }
    if config["mlp_only_layers"].as_array().is_some_and(|layers| !layers.is_empty()) {
        return Err(fields.refuse("mlp_only_layers", every_layer));
    }
    entries.size("expert_feed_forward_length", fields.size("moe_intermediate_size")?);
    if architecture == Architecture::Qwen2Moe {
        entries.size("expert_shared_feed_forward_length", fields.size("shared_expert_intermediate_size")?);
    }
    Ok(())
}

/// The keys of the rotary scaling, or the divisors that say the same.
fn describe_rope(
    fields: &Fields<'_>,
    entries: &mut Entries,
    head_dim: usize,
) -> Result<Option<Vec<f32>>, GgufError> {
    let scaling = &fields.0["rope_scaling"];
    if scaling.is_null() {
        return Ok(None);
    }
    let inner = Fields(scaling);
    match scaling["rope_type"].as_str() {
        Some("linear") => {
            entries.text("rope.scaling.type", "linear");
            entries.float("rope.scaling.factor", inner.number("factor")?);
            Ok(None)
        }
        Some("llama3") => {
            let llama3 = Llama3 {
                factor: inner.number("factor")?,
                low_freq_factor: inner.number("low_freq_factor")?,
                high_freq_factor: inner.number("high_freq_factor")?,
                original: inner.size("original_max_position_embeddings")? as f64,
            };
            // llama.cpp needs the divisors only; this lets a reader find the parameters behind them.
            entries.size("rope.scaling.original_context_length", llama3.original as u64);
            Ok(Some(factors(&llama3, fields.number("rope_theta")?, head_dim)))
        }
        Some("yarn") => {
            if scaling["truncate"] == false {
                return Err(inner.refuse("truncate", "llama.cpp ends the ramp of YaRN at whole dimensions"));
            }
            let factor = inner.number("factor")?;
            entries.text("rope.scaling.type", "yarn");
            entries.float("rope.scaling.factor", factor);
            entries.size(
                "rope.scaling.original_context_length",
                inner.size("original_max_position_embeddings")?,
            );
            entries.float("rope.scaling.yarn_beta_fast", inner.number("beta_fast")?);
            entries.float("rope.scaling.yarn_beta_slow", inner.number("beta_slow")?);
            let warmth = inner.number("attention_factor")? / yarn_temperature(factor);
            if (warmth - 1.0).abs() > 1e-6 {
                entries.float("rope.scaling.attn_factor", warmth);
            }
            Ok(None)
        }
        _ => Err(fields.refuse("rope_scaling", "llama.cpp knows linear, yarn and llama3 scaling")),
    }
}

/// The fields of a config.json.
struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn refuse(&self, field: &str, why: &'static str) -> GgufError {
        GgufError::NotExpressible { field: field.to_owned(), got: self.0[field].to_string(), why }
    }

    fn size(&self, field: &str) -> Result<u64, GgufError> {
        let fits = |n: &u64| u32::try_from(*n).is_ok();
        self.0[field]
            .as_u64()
            .filter(fits)
            .ok_or_else(|| self.refuse(field, "a whole number below 2^32 is needed"))
    }

    fn number(&self, field: &str) -> Result<f64, GgufError> {
        self.0[field].as_f64().ok_or_else(|| self.refuse(field, "a number is needed"))
    }
}

/// Entries below an architecture's prefix.
struct Entries {
    prefix: &'static str,
    list: Vec<(String, MetadataValue)>,
}

impl Entries {
    fn push(&mut self, name: &str, value: MetadataValue) {
        self.list.push((format!("{}.{name}", self.prefix), value));
    }

    fn size(&mut self, name: &str, value: u64) {
        self.push(name, MetadataValue::U32(value as u32)); // Checked by Fields::size.
    }

    fn float(&mut self, name: &str, value: f64) {
        self.push(name, MetadataValue::F32(value as f32));
    }

    fn text(&mut self, name: &str, value: &str) {
        self.push(name, MetadataValue::Text(value.to_owned()));
    }
}
