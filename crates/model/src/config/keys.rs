//! The keys of config.json that need no reader: those that say nothing about the forward pass, and those that say
//! something only at other values than the one that is accepted.

use serde_json::Value;

use super::json::Fields;
use crate::Result;

/// Keys that provably do not change the forward pass of the families here.
const IRRELEVANT: &[&str] = &[
    // Provenance.
    "_name_or_path",
    "_commit_hash",
    "name_or_path",
    "transformers_version",
    "finetuning_task",
    "unsloth_fixed",
    "unsloth_version",
    // Which implementation of the same mathematics runs, and what it hands back.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "attn_implementation",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    // Training only: initial weights, regularisation and extra losses. Recipes state their own.
    "attention_dropout",
    "initializer_range",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "tf_legacy_loss",
    // Heads of other tasks than language modelling.
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    // Text, not tensors.
    "pad_token_id",
    "prefix",
    "sep_token_id",
    "decoder_start_token_id",
    "tokenizer_class",
    // A decoder of these families is one whatever this says.
    "is_decoder",
    "cross_attention_hidden_size",
    // Old files kept sampling settings here; generation_config.json replaced them and transformers 5 drops them.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// The one value, besides `null`, at which a key changes nothing.
enum Neutral {
    Null,
    False,
    True,
    Number(f64),
    Empty,
}

/// Keys that change the mathematics unless they are `null` or neutral, with what they would ask for.
const NEUTRAL: &[(&str, Neutral, &str)] = &[
    ("add_cross_attention", Neutral::False, "cross-attention is not implemented"),
    ("alibi", Neutral::False, "positions are rotary only"),
    ("attention_bias", Neutral::False, "this family has no such biases"),
    ("attention_multiplier", Neutral::Null, "attention is scaled by 1/sqrt(head_dim) only"),
    ("attn_logit_softcapping", Neutral::Null, "soft-capping is not implemented"),
    ("auto_map", Neutral::Null, "the checkpoint brings its own modelling code, which is never run here"),
    ("clip_qkv", Neutral::Null, "clipping is not implemented"),
    ("embedding_multiplier", Neutral::Number(1.0), "embeddings are not scaled"),
    ("final_logit_softcapping", Neutral::Null, "soft-capping is not implemented"),
    (
        "first_k_dense_replace",
        Neutral::Number(0.0),
        "dense layers of a mixture are listed in mlp_only_layers",
    ),
    ("is_causal", Neutral::True, "decoders are causal"),
    ("is_encoder_decoder", Neutral::False, "encoders are not implemented"),
    ("logit_scale", Neutral::Number(1.0), "logits are not scaled"),
    ("logits_scaling", Neutral::Number(1.0), "logits are not scaled"),
    ("mlp_bias", Neutral::False, "this family has no such biases"),
    ("n_shared_experts", Neutral::Number(0.0), "a shared expert is read from qwen2_moe only"),
    ("no_rope_layers", Neutral::Empty, "every layer has rotary positions"),
    ("original_max_position_embeddings", Neutral::Null, "it belongs inside rope_scaling"),
    ("partial_rotary_factor", Neutral::Number(1.0), "every dimension of a head is rotated"),
    ("per_layer_config", Neutral::Null, "all layers have one shape"),
    ("pretraining_tp", Neutral::Number(1.0), "sliced matrix products are not implemented"),
    ("pruned_heads", Neutral::Empty, "all layers have the same heads"),
    ("qk_norm", Neutral::False, "norms on queries and keys are read from qwen3 and qwen3_moe only"),
    ("residual_multiplier", Neutral::Number(1.0), "residuals are not scaled"),
    ("rope_interleaved", Neutral::False, "halves are rotated, not pairs"),
    ("sliding_window", Neutral::Null, "attention windows are not implemented"),
    ("tie_encoder_decoder", Neutral::False, "encoders are not implemented"),
    ("use_qk_norm", Neutral::False, "norms on queries and keys are read from qwen3 and qwen3_moe only"),
    ("use_sliding_window", Neutral::False, "attention windows are not implemented"),
];

/// Accounts for every field the reader of the family left.
///
/// Errors: a key in neither table, or one at a value that changes the mathematics.
pub(super) fn check_the_rest(fields: &mut Fields<'_>) -> Result<()> {
    for (key, value) in fields.rest() {
        if IRRELEVANT.contains(&key.as_str()) {
            continue;
        }
        let Some((_, neutral, reason)) = NEUTRAL.iter().find(|(name, ..)| *name == key) else {
            return Err(fields.unknown(&key, &value));
        };
        let (accepted, expected) = match neutral {
            Neutral::Null => (false, "null".to_owned()),
            Neutral::False => (value == Value::Bool(false), "false".to_owned()),
            Neutral::True => (value == Value::Bool(true), "true".to_owned()),
            Neutral::Number(number) => (value.as_f64() == Some(*number), number.to_string()),
            Neutral::Empty => (
                value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(|map| map.is_empty()),
                "empty".to_owned(),
            ),
        };
        if !accepted && !value.is_null() {
            return Err(fields.wrong(&key, &value, &format!("{expected}: {reason}")));
        }
    }
    Ok(())
}
