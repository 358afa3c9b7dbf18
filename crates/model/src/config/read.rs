//! From the fields of config.json to a [`Config`].

use kanana_tensor::DType;
use serde_json::Value;

use super::json::Fields;
use super::validate::limits;
use super::{Config, Family, Mixture, RopeScaling, keys, quantization};
use crate::Result;

/// What transformers assumes when a key is absent.
struct Defaults {
    rms_norm_eps: f64,
    rope_theta: f64,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
}

impl Defaults {
    fn of(family: Family) -> Self {
        let (bos_token_id, eos_token_id) = match family {
            Family::Llama | Family::Mixtral => (Some(1), Some(2)),
            Family::Qwen2Moe | Family::Qwen3 | Family::Qwen3Moe => (None, None),
        };
        let (rms_norm_eps, rope_theta) = match family {
            Family::Mixtral => (1e-5, 1e6),
            _ => (1e-6, 1e4),
        };
        Self { rms_norm_eps, rope_theta, bos_token_id, eos_token_id }
    }
}

/// Reads every field of a config.json.
pub(super) fn config(mut fields: Fields<'_>) -> Result<Config> {
    let family = family(&mut fields)?;
    let defaults = Defaults::of(family);
    activation(&mut fields)?;

    let hidden_size = fields.required_size("hidden_size", limits::WIDTH)?;
    let num_hidden_layers = fields.required_size("num_hidden_layers", limits::LAYERS)?;
    let num_attention_heads = fields.required_size("num_attention_heads", limits::HEADS)?;
    let intermediate_size = fields.required_size("intermediate_size", limits::WIDTH)?;
    let vocab_size = fields.required_size("vocab_size", limits::TOKENS)?;
    let max_position_embeddings = fields.required_size("max_position_embeddings", limits::TOKENS)?;
    let num_key_value_heads = key_value_heads(&mut fields, family, num_attention_heads)?;
    let head_dim = head_dim(&mut fields, family, hidden_size, num_attention_heads)?;

    let (rope_scaling, rope_theta) = rope(&mut fields, max_position_embeddings)?;
    let attention_bias = match family {
        Family::Llama | Family::Qwen3 | Family::Qwen3Moe => fields.flag("attention_bias")?.unwrap_or(false),
        Family::Qwen2Moe => fields.flag("qkv_bias")?.unwrap_or(true),
        Family::Mixtral => false,
    };
    let mlp_bias = family == Family::Llama && fields.flag("mlp_bias")?.unwrap_or(false);
    let (bos_token_id, eos_token_ids) = special_tokens(&mut fields, &defaults, vocab_size)?;
    windows(&mut fields, family, num_hidden_layers)?;

    let config = Config {
        family,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        intermediate_size,
        vocab_size,
        max_position_embeddings,
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
        rope_theta: rope_theta.unwrap_or(defaults.rope_theta),
        rope_scaling,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        attention_bias,
        mlp_bias,
        qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe),
        mixture: mixture(&mut fields, family, intermediate_size)?,
        bos_token_id,
        eos_token_ids,
        torch_dtype: dtype(&mut fields)?,
        quantization: quantization::read(&mut fields)?,
    };
    keys::check_the_rest(&mut fields)?;
    config.validate(fields.file)?;
    Ok(config)
}

fn family(fields: &mut Fields<'_>) -> Result<Family> {
    let known = Family::ALL.map(Family::model_type).join(", ");
    let model_type = fields
        .text("model_type")?
        .ok_or_else(|| fields.missing("model_type", &format!("it names the architecture, one of {known}")))?;
    let family = Family::ALL
        .into_iter()
        .find(|family| family.model_type() == model_type)
        .ok_or_else(|| fields.wrong("model_type", &model_type.clone().into(), &format!("one of {known}")))?;

    let stem = family.class_stem();
    let classes = [format!("{stem}ForCausalLM"), format!("{stem}Model")];
    if let Some(architectures) = fields.take("architectures") {
        let fits =
            |class: &Value| class.as_str().is_some_and(|class| classes.iter().any(|known| known == class));
        if !architectures.as_array().is_some_and(|list| list.iter().all(fits)) {
            let expected = format!("[{:?}], as model_type is {model_type}", classes[0]);
            return Err(fields.wrong("architectures", &architectures, &expected));
        }
    }
    Ok(family)
}

/// SwiGLU only: `silu`, also called `swish`.
fn activation(fields: &mut Fields<'_>) -> Result<()> {
    match fields.text("hidden_act")? {
        Some(name) if !matches!(name.as_str(), "silu" | "swish") => {
            Err(fields.wrong("hidden_act", &name.into(), "\"silu\": no other activation is implemented"))
        }
        _ => Ok(()),
    }
}

/// Absent means as many as query heads only in Llama; `null` means it everywhere.
fn key_value_heads(fields: &mut Fields<'_>, family: Family, num_attention_heads: usize) -> Result<usize> {
    const KEY: &str = "num_key_value_heads";
    match fields.take_raw(KEY) {
        Some(Value::Null) => Ok(num_attention_heads),
        None if family == Family::Llama => Ok(num_attention_heads),
        None => Err(fields.missing(KEY, "only a Llama configuration may leave it out")),
        Some(value) => fields.as_size(KEY, &value, limits::HEADS),
    }
}

fn head_dim(fields: &mut Fields<'_>, family: Family, hidden_size: usize, heads: usize) -> Result<usize> {
    if let Some(head_dim) = fields.size("head_dim", limits::WIDTH)? {
        return Ok(head_dim);
    }
    if family == Family::Qwen3 {
        return Ok(128);
    }
    if hidden_size.is_multiple_of(heads) {
        return Ok(hidden_size / heads);
    }
    let why = format!("hidden_size / num_attention_heads = {hidden_size} / {heads} is not a whole number");
    Err(fields.missing("head_dim", &why))
}

/// The rotary options under both spellings: `rope_scaling` beside `rope_theta`, or `rope_parameters` with all of it.
fn rope(fields: &mut Fields<'_>, max_position_embeddings: usize) -> Result<(RopeScaling, Option<f64>)> {
    let beside = fields.number("rope_theta")?;
    let old = fields.object("rope_scaling")?.filter(|map| !map.is_empty());
    let new = fields.object("rope_parameters")?.filter(|map| !map.is_empty());
    let (name, map) = match (old, new) {
        (None, None) => return Ok((RopeScaling::None, beside)),
        (Some(old), Some(new)) if old != new => {
            return Err(fields.wrong(
                "rope_parameters",
                &new.into(),
                "the same as rope_scaling, or only one of them",
            ));
        }
        (Some(map), _) => ("rope_scaling", map),
        (None, Some(map)) => ("rope_parameters", map),
    };
    let (scaling, inside) =
        RopeScaling::read(Fields::nested(fields.file, name, map), max_position_embeddings)?;
    match (beside, inside) {
        (Some(beside), Some(inside)) if beside != inside => {
            let expected = format!("{inside}, as {name}.rope_theta says, or only one of them");
            Err(fields.wrong("rope_theta", &beside.into(), &expected))
        }
        _ => Ok((scaling, beside.or(inside))),
    }
}

/// Ids the file states must exist; the defaults of transformers are dropped where the vocabulary is too small.
fn special_tokens(
    fields: &mut Fields<'_>,
    defaults: &Defaults,
    vocab_size: usize,
) -> Result<(Option<u32>, Vec<u32>)> {
    let exists = |id: &u32| (*id as usize) < vocab_size;
    let bos = match fields.token_id_or("bos_token_id", defaults.bos_token_id.filter(exists))? {
        Some(id) if !exists(&id) => return Err(beyond_vocabulary(fields, "bos_token_id", id, vocab_size)),
        bos => bos,
    };
    let eos = fields.token_ids_or("eos_token_id", defaults.eos_token_id.filter(exists))?;
    match eos.iter().find(|id| !exists(id)) {
        Some(id) => Err(beyond_vocabulary(fields, "eos_token_id", *id, vocab_size)),
        None => Ok((bos, eos)),
    }
}

fn beyond_vocabulary(fields: &Fields<'_>, key: &str, id: u32, vocab_size: usize) -> crate::ModelError {
    fields.wrong(key, &id.into(), &format!("an id below vocab_size, which is {vocab_size}"))
}

/// Attention windows must be off. The Qwen families state a window that acts only if `use_sliding_window`.
fn windows(fields: &mut Fields<'_>, family: Family, num_hidden_layers: usize) -> Result<()> {
    if matches!(family, Family::Qwen2Moe | Family::Qwen3 | Family::Qwen3Moe) {
        match fields.flag("use_sliding_window")? {
            Some(true) => {
                return Err(fields.wrong(
                    "use_sliding_window",
                    &true.into(),
                    "false: windows are not implemented",
                ));
            }
            _ => {
                fields.take("sliding_window");
                fields.take("max_window_layers");
            }
        }
    }
    let Some(types) = fields.take("layer_types") else { return Ok(()) };
    let full = types.as_array().is_some_and(|list| {
        list.len() == num_hidden_layers && list.iter().all(|kind| kind == "full_attention")
    });
    let expected = format!("\"full_attention\" for each of the {num_hidden_layers} layers");
    if full { Ok(()) } else { Err(fields.wrong("layer_types", &types, &expected)) }
}

fn mixture(fields: &mut Fields<'_>, family: Family, intermediate_size: usize) -> Result<Option<Mixture>> {
    if !family.is_mixture() {
        return Ok(None);
    }
    let num_experts = expert_count(fields)?;
    let num_experts_per_tok = fields.required_size("num_experts_per_tok", limits::EXPERTS)?;
    let mixture = if family == Family::Mixtral {
        if fields.flag("norm_topk_prob")? == Some(false) {
            return Err(fields.wrong("norm_topk_prob", &false.into(), "true: Mixtral always renormalises"));
        }
        Mixture {
            num_experts,
            num_experts_per_tok,
            moe_intermediate_size: intermediate_size,
            renormalise: true,
            shared_expert_intermediate_size: None,
            shared_expert_gated: false,
            decoder_sparse_step: 1,
            mlp_only_layers: Vec::new(),
        }
    } else {
        let shared = family == Family::Qwen2Moe;
        Mixture {
            num_experts,
            num_experts_per_tok,
            moe_intermediate_size: fields.required_size("moe_intermediate_size", limits::WIDTH)?,
            renormalise: fields.flag("norm_topk_prob")?.unwrap_or(false),
            shared_expert_intermediate_size: shared
                .then(|| fields.required_size("shared_expert_intermediate_size", limits::WIDTH))
                .transpose()?,
            shared_expert_gated: shared,
            decoder_sparse_step: fields.size("decoder_sparse_step", limits::LAYERS)?.unwrap_or(1),
            mlp_only_layers: layer_list(fields, "mlp_only_layers")?,
        }
    };
    Ok(Some(mixture))
}

/// `num_local_experts` in Mixtral and in what transformers 5 writes, `num_experts` in the Qwen files.
fn expert_count(fields: &mut Fields<'_>) -> Result<usize> {
    let local = fields.size("num_local_experts", limits::EXPERTS)?;
    let plain = fields.size("num_experts", limits::EXPERTS)?;
    match (local, plain) {
        (Some(local), Some(plain)) if local != plain => {
            Err(fields.wrong("num_experts", &plain.into(), &format!("{local}, as num_local_experts says")))
        }
        _ => local
            .or(plain)
            .ok_or_else(|| fields.missing("num_experts", "this family is a mixture of experts")),
    }
}

fn layer_list(fields: &mut Fields<'_>, key: &str) -> Result<Vec<usize>> {
    let Some(value) = fields.take(key) else { return Ok(Vec::new()) };
    let layer = |item: &Value| item.as_u64().and_then(|layer| usize::try_from(layer).ok());
    let list: Option<Vec<usize>> = value.as_array().and_then(|list| list.iter().map(layer).collect());
    let mut layers = list.ok_or_else(|| fields.wrong(key, &value, "a list of layer numbers"))?;
    layers.sort_unstable();
    layers.dedup();
    Ok(layers)
}

/// `dtype` in transformers 5, `torch_dtype` before.
fn dtype(fields: &mut Fields<'_>) -> Result<Option<DType>> {
    let mut found: Option<DType> = None;
    for key in ["torch_dtype", "dtype"] {
        let Some(name) = fields.text(key)? else { continue };
        let dtype = match name.strip_prefix("torch.").unwrap_or(&name) {
            "float32" => DType::F32,
            "float16" => DType::F16,
            "bfloat16" => DType::BF16,
            _ => return Err(fields.wrong(key, &name.into(), "float32, float16 or bfloat16")),
        };
        if found.is_some_and(|first| first != dtype) {
            return Err(fields.wrong(key, &name.into(), "the same as torch_dtype, or only one of them"));
        }
        found = Some(dtype);
    }
    Ok(found)
}
