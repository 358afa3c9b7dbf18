use serde_json::{Value, json};

use super::*;

mod files;
mod rope;

const FILE: &str = "config.json";

/// A small valid configuration of a family.
fn base(model_type: &str) -> Value {
    let mut base = json!({
        "model_type": model_type, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6,
        "num_key_value_heads": 2, "intermediate_size": 100, "vocab_size": 300, "max_position_embeddings": 4096,
    });
    match model_type {
        "mixtral" => merge(&mut base, json!({"num_local_experts": 8, "num_experts_per_tok": 2})),
        "qwen2_moe" => merge(
            &mut base,
            json!({"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
                   "shared_expert_intermediate_size": 40}),
        ),
        "qwen3_moe" => {
            merge(&mut base, json!({"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20}))
        }
        _ => {}
    }
    base
}

fn merge(base: &mut Value, changes: Value) {
    let changes = changes.as_object().unwrap().clone();
    base.as_object_mut().unwrap().extend(changes);
}

fn with(model_type: &str, changes: Value) -> String {
    let mut config = base(model_type);
    merge(&mut config, changes);
    config.to_string()
}

fn without(model_type: &str, key: &str) -> String {
    let mut config = base(model_type);
    config.as_object_mut().unwrap().shift_remove(key);
    config.to_string()
}

fn read(text: &str) -> Config {
    Config::from_json_str(text, FILE).unwrap()
}

fn llama(changes: Value) -> Config {
    read(&with("llama", changes))
}

#[track_caller]
fn check_error(json: &str, expected: &str) {
    let error =
        Config::from_json_str(json, FILE).expect_err("this configuration should be refused").to_string();
    assert!(error.starts_with(FILE), "the message does not name the file: {error}");
    assert!(error.contains(expected), "expected {expected:?} in: {error}");
}

#[track_caller]
fn check_llama_error(changes: Value, expected: &str) {
    check_error(&with("llama", changes), expected);
}

// ------------------------------------------------------------------------------------------ defaults and families

#[test]
fn a_llama_configuration_takes_the_defaults_of_transformers() {
    let config = read(&without("llama", "num_key_value_heads"));
    assert_eq!(config.num_key_value_heads, 6);
    assert_eq!((config.head_dim, config.rms_norm_eps, config.rope_theta), (8, 1e-6, 1e4));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), &[2][..]));
    assert!(!config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias && !config.qk_norm);
    assert_eq!((config.mixture, config.torch_dtype, config.rope_scaling), (None, None, RopeScaling::None));
}

#[test]
fn a_head_dim_that_is_stated_is_believed() {
    assert_eq!(llama(json!({"hidden_size": 1792, "num_attention_heads": 24, "head_dim": 128})).head_dim, 128);
    assert_eq!(read(&base("qwen3").to_string()).head_dim, 128);
    check_llama_error(json!({"hidden_size": 1792, "num_attention_heads": 24}), "`head_dim` is missing");
    check_llama_error(
        json!({"hidden_size": 1792, "num_attention_heads": 24}),
        "1792 / 24 is not a whole number",
    );
}

#[test]
fn each_mixture_family_has_its_own_defaults() {
    let mixtral = read(&base("mixtral").to_string());
    let mixture = mixtral.mixture.clone().unwrap();
    assert_eq!((mixtral.rms_norm_eps, mixtral.rope_theta), (1e-5, 1e6));
    assert_eq!(
        (mixture.num_experts, mixture.num_experts_per_tok, mixture.moe_intermediate_size),
        (8, 2, 100)
    );
    assert!(mixture.renormalise && !mixtral.attention_bias && !mixtral.qk_norm);

    let qwen2 = read(&base("qwen2_moe").to_string());
    let mixture = qwen2.mixture.clone().unwrap();
    assert_eq!((mixture.moe_intermediate_size, mixture.shared_expert_intermediate_size), (20, Some(40)));
    assert!(mixture.shared_expert_gated && !mixture.renormalise);
    assert!(qwen2.attention_bias && !qwen2.has_output_bias() && !qwen2.qk_norm);
    assert_eq!((qwen2.bos_token_id, qwen2.eos_token_ids.len()), (None, 0));

    let qwen3 = read(&with("qwen3_moe", json!({"norm_topk_prob": true, "attention_bias": true})));
    let mixture = qwen3.mixture.clone().unwrap();
    assert!(
        mixture.renormalise
            && mixture.shared_expert_intermediate_size.is_none()
            && !mixture.shared_expert_gated
    );
    assert!(qwen3.qk_norm && qwen3.has_output_bias());
}

#[test]
fn sparse_layers_follow_the_step_and_the_list() {
    let sparse = |changes: Value| -> Vec<bool> {
        let config = read(&with("qwen3_moe", changes));
        (0..4).map(|layer| config.is_sparse(layer)).collect()
    };
    assert_eq!(sparse(json!({})), [true, true, true, true]);
    assert_eq!(sparse(json!({"decoder_sparse_step": 2})), [false, true, false, true]);
    assert_eq!(sparse(json!({"mlp_only_layers": [0, 2, 0]})), [false, true, false, true]);
    assert_eq!(
        sparse(json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]})),
        [false, true, false, false]
    );
    assert!(!read(&base("llama").to_string()).is_sparse(0));
}

#[test]
fn both_names_of_the_expert_count_are_read() {
    let mut text = base("qwen3_moe");
    text.as_object_mut().unwrap().shift_remove("num_experts");
    merge(&mut text, json!({"num_local_experts": 16}));
    assert_eq!(read(&text.to_string()).mixture.unwrap().num_experts, 16);
    check_error(&with("qwen3_moe", json!({"num_local_experts": 16})), "`num_experts` is 8, expected 16");
}

#[test]
fn token_ids_may_be_a_number_a_list_or_null() {
    assert_eq!(llama(json!({"eos_token_id": 7})).eos_token_ids, [7]);
    assert_eq!(llama(json!({"eos_token_id": [7, 9]})).eos_token_ids, [7, 9]);
    let none = llama(json!({"eos_token_id": null, "bos_token_id": null}));
    assert_eq!((none.bos_token_id, none.eos_token_ids.len()), (None, 0));
    check_llama_error(json!({"eos_token_id": 300}), "an id below vocab_size, which is 300");
    check_llama_error(json!({"bos_token_id": 300}), "an id below vocab_size, which is 300");
    check_llama_error(json!({"eos_token_id": [7, -1]}), "`eos_token_id` is -1");
    check_llama_error(json!({"eos_token_id": "</s>"}), "a token id");
    // The defaults of transformers (1 and 2) do not exist in a vocabulary of two.
    assert!(llama(json!({"vocab_size": 2})).eos_token_ids.is_empty());
}

#[test]
fn both_spellings_of_the_dtype_are_read() {
    assert_eq!(llama(json!({"torch_dtype": "bfloat16"})).torch_dtype, Some(DType::BF16));
    assert_eq!(llama(json!({"dtype": "torch.float16"})).torch_dtype, Some(DType::F16));
    check_llama_error(json!({"dtype": "float8_e4m3fn"}), "float32, float16 or bfloat16");
    check_llama_error(json!({"dtype": "float16", "torch_dtype": "float32"}), "the same as torch_dtype");
}

#[test]
fn what_transformers_5_writes_is_read() {
    // The keys of Qwen2MoeConfig().to_json_string(), transformers 5.23.0.
    let config = read(&with(
        "qwen2_moe",
        json!({
            "architectures": ["Qwen2MoeForCausalLM"], "attention_dropout": 0.0, "bos_token_id": null,
            "decoder_sparse_step": 1, "eos_token_id": null, "hidden_act": "silu", "initializer_range": 0.02,
            "layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"],
            "max_window_layers": 28, "mlp_only_layers": [], "norm_topk_prob": false, "output_router_logits": false,
            "pad_token_id": null, "qkv_bias": true, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "router_aux_loss_coef": 0.001,
            "sliding_window": 0, "tie_word_embeddings": false, "transformers_version": "5.23.0", "use_cache": true,
            "use_sliding_window": false, "dtype": "float32",
        }),
    ));
    assert_eq!((config.rope_theta, config.rope_scaling), (1e6, RopeScaling::None));
}

// ------------------------------------------------------------------------------------------------------- strictness

#[test]
fn what_is_not_understood_is_refused() {
    check_llama_error(json!({"mystery_scale": 3}), "`mystery_scale` = 3 is not understood");
    check_error(&with("llama", json!({"num_experts": 8})), "`num_experts` = 8 is not understood");
    check_error(&without("llama", "model_type"), "`model_type` is missing");
    check_error(
        &with("llama", json!({"model_type": "gpt2"})),
        "one of llama, mixtral, qwen2_moe, qwen3, qwen3_moe",
    );
    check_llama_error(json!({"architectures": ["MixtralForCausalLM"]}), "[\"LlamaForCausalLM\"]");
    check_llama_error(json!({"architectures": ["LlamaForSequenceClassification"]}), "`architectures` is");
    check_llama_error(json!({"architectures": "LlamaForCausalLM"}), "`architectures` is");
    assert_eq!(llama(json!({"architectures": ["LlamaModel"]})).family, Family::Llama);
    let unknown = Config::from_json_str(&with("llama", json!({"mystery_scale": 3})), FILE).unwrap_err();
    assert!(unknown.hint().unwrap().contains("delete it from config.json"));
}

#[test]
fn a_stored_format_is_read_strictly() {
    let object = json!({"quant_method": "kanana", "format": "q4", "version": 1});
    let quantised = llama(json!({"quantization_config": object}));
    assert_eq!(quantised.quantization, Some(kanana_kernels::Format::Q4));
    assert_eq!(quantised.to_json()["quantization_config"], object);
    assert_eq!(llama(json!({"quantization_config": null})).quantization, None);
    for (key, value, reason) in [
        ("quant_method", json!("awq"), "use the unquantised (bf16 or f32) checkpoint"),
        ("quant_method", json!(null), "use the unquantised (bf16 or f32) checkpoint"),
        ("format", json!("bf16"), "\"q8\" or \"q4\""),
        ("format", json!(null), "\"q8\" or \"q4\""),
        ("version", json!(2), "expected 1, the layout"),
        ("version", json!("1"), "expected 1, the layout"),
        ("version", json!(null), "expected 1, the layout"),
        ("bits", json!(4), "not understood"),
    ] {
        let mut changed = object.clone();
        changed[key] = value;
        check_llama_error(json!({"quantization_config": changed}), reason);
        check_llama_error(json!({"quantization_config": changed}), &format!("`quantization_config.{key}`"));
    }
    check_llama_error(json!({"quantization_config": "q4"}), "an object or null");
}

#[test]
fn keys_that_change_the_mathematics_are_refused_unless_neutral() {
    for (key, neutral, harmful, reason) in [
        ("pretraining_tp", json!(1), json!(2), "sliced matrix products"),
        ("partial_rotary_factor", json!(1.0), json!(0.5), "every dimension of a head is rotated"),
        ("sliding_window", json!(null), json!(4096), "attention windows"),
        ("use_sliding_window", json!(false), json!(true), "attention windows"),
        ("attn_logit_softcapping", json!(null), json!(50.0), "soft-capping"),
        ("final_logit_softcapping", json!(null), json!(30.0), "soft-capping"),
        ("use_qk_norm", json!(false), json!(true), "norms on queries and keys"),
        ("qk_norm", json!(false), json!(true), "norms on queries and keys"),
        ("clip_qkv", json!(null), json!(8.0), "clipping"),
        ("logit_scale", json!(1), json!(0.5), "logits are not scaled"),
        ("embedding_multiplier", json!(1.0), json!(12.0), "embeddings are not scaled"),
        ("is_encoder_decoder", json!(false), json!(true), "encoders"),
        ("is_causal", json!(true), json!(false), "decoders are causal"),
        ("pruned_heads", json!({}), json!({"0": [1]}), "all layers have the same heads"),
        ("auto_map", json!(null), json!({"AutoConfig": "x.Y"}), "never run here"),
        ("original_max_position_embeddings", json!(null), json!(4096), "inside rope_scaling"),
    ] {
        llama(json!({key: neutral}));
        check_llama_error(json!({key: harmful}), reason);
        check_llama_error(json!({key: harmful}), &format!("`{key}` is"));
    }
    llama(json!({"hidden_act": "swish"}));
    check_llama_error(json!({"hidden_act": "gelu"}), "no other activation");
    check_error(&with("mixtral", json!({"norm_topk_prob": false})), "Mixtral always renormalises");
    check_error(&with("mixtral", json!({"attention_bias": true})), "this family has no such biases");
    check_error(&with("qwen3", json!({"mlp_bias": true})), "this family has no such biases");
    check_error(&with("qwen3", json!({"use_sliding_window": true})), "windows are not implemented");
    assert_eq!(
        read(&with("qwen3", json!({"sliding_window": 4096, "max_window_layers": 2}))).family,
        Family::Qwen3
    );
    check_error(
        &with("qwen3", json!({"layer_types": ["full_attention", "sliding_attention"]})),
        "`layer_types` is",
    );
}

#[test]
fn sizes_out_of_range_are_refused() {
    for key in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ] {
        check_error(&without("llama", key), &format!("`{key}` is missing"));
        for bad in [json!(0), json!(-4), json!(1.5), json!("8"), json!([8]), json!(u64::MAX), json!(1e300)] {
            check_llama_error(json!({key: bad}), &format!("`{key}` is "));
        }
    }
    for key in ["num_key_value_heads", "head_dim"] {
        for bad in [json!(0), json!(-4), json!(1.5), json!(u64::MAX)] {
            check_llama_error(json!({key: bad}), &format!("`{key}` is "));
        }
    }
    check_llama_error(json!({"num_key_value_heads": 4}), "a divisor of num_attention_heads, which is 6");
    check_llama_error(json!({"head_dim": 7}), "an even number");
    check_llama_error(
        json!({"hidden_size": 1 << 24, "intermediate_size": 1 << 24, "head_dim": 1 << 20,
        "num_hidden_layers": 1024}),
        "parameters",
    );
    check_error(&without("mixtral", "num_key_value_heads"), "only a Llama configuration may leave it out");
}

#[test]
fn numbers_out_of_range_are_refused() {
    for bad in [json!(0), json!(-1e-5), json!(1), json!("1e-5")] {
        check_llama_error(json!({"rms_norm_eps": bad}), "`rms_norm_eps` is ");
    }
    for bad in [json!(0), json!(1), json!(-1e4), json!(1e31), json!("1e4")] {
        check_llama_error(json!({"rope_theta": bad}), "`rope_theta` is ");
    }
    check_llama_error(json!({"tie_word_embeddings": 1}), "true or false");
    check_llama_error(json!({"model_type": 7}), "a string");
}

#[test]
fn mixtures_that_cannot_be_are_refused() {
    check_error(
        &with("mixtral", json!({"num_experts_per_tok": 9})),
        "at most the number of experts, which is 8",
    );
    check_error(&with("mixtral", json!({"num_local_experts": 0})), "`num_local_experts` is 0");
    check_error(&without("mixtral", "num_local_experts"), "this family is a mixture of experts");
    check_error(&without("mixtral", "num_experts_per_tok"), "`num_experts_per_tok` is missing");
    check_error(&without("qwen3_moe", "moe_intermediate_size"), "`moe_intermediate_size` is missing");
    check_error(&without("qwen2_moe", "shared_expert_intermediate_size"), "is missing");
    check_error(&with("qwen3_moe", json!({"shared_expert_intermediate_size": 40})), "is not understood");
    check_error(&with("qwen3_moe", json!({"decoder_sparse_step": 0})), "`decoder_sparse_step` is 0");
    check_error(&with("qwen3_moe", json!({"mlp_only_layers": [4]})), "layer numbers below num_hidden_layers");
    check_error(&with("qwen3_moe", json!({"mlp_only_layers": "0"})), "a list of layer numbers");
    check_error(&with("qwen3_moe", json!({"mlp_only_layers": [-1]})), "a list of layer numbers");
}

#[test]
fn text_that_is_not_one_json_object_is_refused() {
    for (text, expected) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[1, 2]", "found [1,2] instead"),
        ("null", "found null instead"),
        (r#"{"rms_norm_eps": NaN}"#, "expected value"),
        (r#"{"rms_norm_eps": 1e999}"#, "number out of range"),
        (r#"{"hidden_size": 1, "hidden_size": 2}"#, "the key \"hidden_size\" is given twice"),
        (r#"{"rope_scaling": {"type": "yarn", "type": "linear"}}"#, "the key \"type\" is given twice"),
        ("{} {}", "trailing characters"),
    ] {
        check_error(text, "not a valid JSON object");
        check_error(text, expected);
    }
    check_error(&"[".repeat(100_000), "recursion limit");
}
