//! Files, round trips and hostile input.

use proptest::prelude::*;

use super::*;
use crate::presets;

#[test]
fn what_is_written_is_read_back() {
    let scalings = [
        json!(null),
        json!({"type": "linear", "factor": 2}),
        json!({"type": "dynamic", "factor": 2.5}),
        json!({"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}),
        json!({"type": "yarn", "factor": 4.4, "beta_fast": 64, "mscale": 1, "mscale_all_dim": 0.7, "truncate": false}),
    ];
    let mut configs: Vec<Config> = presets::presets().into_iter().map(|preset| preset.config).collect();
    configs.extend(scalings.map(|scaling| {
        llama(json!({"rope_scaling": scaling, "attention_bias": true,
        "mlp_bias": true, "tie_word_embeddings": true, "eos_token_id": [3, 4], "torch_dtype": "float16"}))
    }));
    configs.extend(["qwen2_moe", "qwen3", "qwen3_moe"].map(|family| read(&base(family).to_string())));
    configs.push(read(&with(
        "qwen2_moe",
        json!({"qkv_bias": false, "norm_topk_prob": true, "mlp_only_layers": [1]}),
    )));
    for config in configs {
        assert_eq!(read(&config.to_json().to_string()), config);
    }
}

#[test]
fn a_folder_is_read_with_its_generation_config() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Config::from_dir(dir.path()).unwrap_err();
    assert!(missing.to_string().contains("config.json") && missing.hint().unwrap().contains("config.json"));

    std::fs::write(dir.path().join("config.json"), base("llama").to_string()).unwrap();
    assert_eq!(Config::from_dir(dir.path()).unwrap().eos_token_ids, [2]);
    assert_eq!(GenerationDefaults::from_dir(dir.path()).unwrap(), GenerationDefaults::default());

    let path = dir.path().join("generation_config.json");
    std::fs::write(
        &path,
        r#"{"eos_token_id": [7, 9], "temperature": 0.6, "transformers_version": "4.51.0"}"#,
    )
    .unwrap();
    assert_eq!(Config::from_dir(dir.path()).unwrap().eos_token_ids, [7, 9]);
    std::fs::write(&path, r#"{"temperature": 0.6}"#).unwrap();
    assert_eq!(Config::from_dir(dir.path()).unwrap().eos_token_ids, [2]);
    std::fs::write(&path, "{").unwrap();
    assert!(Config::from_dir(dir.path()).unwrap_err().to_string().contains("generation_config.json"));
}

#[test]
fn generation_defaults_are_read() {
    let text = r#"{"_from_model_config": true, "bos_token_id": 1, "do_sample": true, "temperature": 0.6, "top_k": 0,
        "top_p": 0.9, "min_p": null, "repetition_penalty": 1.1, "max_new_tokens": 64, "max_length": 8192,
        "eos_token_id": 7, "num_beams": 4}"#;
    let expected = GenerationDefaults {
        do_sample: Some(true),
        temperature: Some(0.6),
        top_k: Some(0),
        top_p: Some(0.9),
        min_p: None,
        repetition_penalty: Some(1.1),
        max_new_tokens: Some(64),
        max_length: Some(8192),
        eos_token_ids: Some(vec![7]),
        not_honoured: vec!["num_beams".to_owned()],
    };
    assert_eq!(GenerationDefaults::from_json_str(text, "g.json").unwrap(), expected);
    for bad in [
        r#"{"temperature": -1}"#,
        r#"{"temperature": "warm"}"#,
        r#"{"top_p": 1.5}"#,
        r#"{"top_k": -1}"#,
        r#"{"repetition_penalty": 0}"#,
        r#"{"max_new_tokens": 0}"#,
        r#"{"do_sample": 1}"#,
        r#"{"eos_token_id": "x"}"#,
    ] {
        let error = GenerationDefaults::from_json_str(bad, "g.json").unwrap_err().to_string();
        assert!(error.starts_with("g.json: `"), "{error}");
    }
}

#[test]
fn long_values_are_cut_in_messages_at_a_character() {
    check_llama_error(json!({"mystery": "한".repeat(1000)}), "한…");
}

/// JSON that looks like a configuration: known keys, plausible and hostile values.
fn hostile_config() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        Just(json!(0)),
        Just(json!(1)),
        Just(json!(2)),
        Just(json!(u64::MAX)),
        Just(json!(-1)),
        Just(json!(1e300)),
        Just(json!(1e-300)),
        Just(json!(1 << 24)),
        (1u32..5000).prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
    ];
    let scalar = prop_oneof![
        4 => number, 1 => Just(json!(null)), 1 => any::<bool>().prop_map(|b| json!(b)), 1 => ".*".prop_map(|s| json!(s)),
    ];
    let rope_key = proptest::sample::select(vec![
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
        "rope_theta",
    ]);
    let kind = proptest::sample::select(vec!["default", "linear", "dynamic", "llama3", "yarn"]);
    let rope =
        (kind, proptest::collection::vec((rope_key, scalar.clone()), 0..5)).prop_map(|(kind, fields)| {
            let mut map: serde_json::Map<String, Value> =
                fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            map.insert("type".to_owned(), kind.into());
            Value::Object(map)
        });
    let key = proptest::sample::select(vec![
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "intermediate_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "decoder_sparse_step",
        "eos_token_id",
        "tie_word_embeddings",
        "attention_bias",
    ]);
    let family = proptest::sample::select(Family::ALL.map(Family::model_type).to_vec());
    (family, proptest::collection::vec((key, scalar), 0..3), proptest::option::of(rope)).prop_map(
        |(family, changes, rope)| {
            let mut config = base(family);
            merge(&mut config, changes.into_iter().map(|(k, v)| (k.to_owned(), v)).collect());
            merge(&mut config, json!({"rope_scaling": rope}));
            config.to_string()
        },
    )
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in ".*") {
        let _ = Config::from_json_str(&text, FILE);
        let _ = GenerationDefaults::from_json_str(&text, FILE);
    }

    #[test]
    fn what_passes_is_finite_and_round_trips(text in hostile_config()) {
        if let Ok(config) = Config::from_json_str(&text, FILE) {
            prop_assert_eq!(&read(&config.to_json().to_string()), &config);
            let parameters = crate::cost::parameters(&config);
            prop_assert!(parameters.active <= parameters.total && parameters.total <= 1 << 50);
            if config.head_dim <= 4096 {
                let (frequencies, factor) = crate::inverse_frequencies(&config, config.context_length());
                prop_assert!(factor.is_finite() && frequencies.iter().all(|f| f.is_finite() && *f >= 0.0));
                let (cos, sin) = crate::rope_table(&config, 3);
                prop_assert!(cos.iter().chain(&sin).all(|x| x.is_finite()));
            }
        }
    }
}
