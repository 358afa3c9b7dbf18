//! The rotary options of config.json.

use super::*;
use crate::presets;

const YARN: RopeScaling = RopeScaling::Yarn {
    factor: 4.0,
    original_max_position_embeddings: 1024,
    beta_fast: 32.0,
    beta_slow: 1.0,
    truncate: true,
    attention_factor: 1.138_629_436_111_989,
};

#[test]
fn rope_is_read_under_every_spelling() {
    let fields = json!({"factor": 4.0, "original_max_position_embeddings": 1024});
    for (key, name) in
        [("rope_scaling", "type"), ("rope_scaling", "rope_type"), ("rope_parameters", "rope_type")]
    {
        let mut scaling = fields.clone();
        merge(&mut scaling, json!({name: "yarn"}));
        let config = llama(json!({key: scaling, "rope_theta": 5e5}));
        assert_eq!((config.rope_scaling, config.rope_theta), (YARN, 5e5));
    }
    let mut scaling = fields;
    merge(&mut scaling, json!({"type": "yarn", "rope_type": "yarn", "rope_theta": 5e5, "mscale": null}));
    let config = llama(json!({"rope_parameters": scaling, "rope_scaling": scaling}));
    assert_eq!((config.rope_scaling, config.rope_theta), (YARN, 5e5));
    assert_eq!(llama(json!({"rope_scaling": {}, "rope_theta": 7.0})).rope_theta, 7.0);
}

#[test]
fn every_rope_type_is_read() {
    let scaling = |value: Value| llama(json!({"rope_scaling": value})).rope_scaling;
    assert_eq!(scaling(json!({"type": "default"})), RopeScaling::None);
    assert_eq!(scaling(json!({"type": "linear", "factor": 2})), RopeScaling::Linear { factor: 2.0 });
    assert_eq!(scaling(json!({"type": "dynamic", "factor": 2.5})), RopeScaling::Dynamic { factor: 2.5 });
    assert_eq!(
        scaling(json!({"type": "dynamic", "factor": 2, "original_max_position_embeddings": 4096})),
        RopeScaling::Dynamic { factor: 2.0 }
    );
    assert_eq!(
        scaling(json!({"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4})),
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 4096
        }
    );
    let RopeScaling::Yarn { attention_factor, .. } = scaling(json!({"type": "yarn", "factor": 4,
        "mscale": 1.0, "mscale_all_dim": 0.5}))
    else {
        panic!("not yarn")
    };
    let ln = 4f64.ln();
    assert_eq!(attention_factor, (0.1 * ln + 1.0) / (0.1 * 0.5 * ln + 1.0));
    let RopeScaling::Yarn { attention_factor, truncate, .. } = scaling(json!({"type": "yarn", "factor": 4,
        "mscale": 2.0, "attention_factor": 1.25, "truncate": false}))
    else {
        panic!("not yarn")
    };
    assert_eq!((attention_factor, truncate), (1.25, false));
    let RopeScaling::Yarn { attention_factor, .. } =
        scaling(json!({"type": "yarn", "factor": 4, "mscale": 2.0}))
    else {
        panic!("not yarn")
    };
    assert_eq!(attention_factor, 0.1 * ln + 1.0, "mscale acts only together with mscale_all_dim");
}

#[test]
fn rope_that_is_not_understood_is_refused() {
    for (scaling, expected) in [
        (
            json!({"type": "ntk"}),
            "`rope_scaling.rope_type` is \"ntk\", expected default, linear, dynamic, llama3 or yarn",
        ),
        (json!({"type": "longrope"}), "longrope is not implemented"),
        (json!({"type": "su"}), "longrope is not implemented"),
        (json!({"type": "yarn", "rope_type": "linear", "factor": 2}), "`rope_scaling.type` is \"yarn\""),
        (json!({"type": 3}), "a string"),
        (json!({"type": "default", "factor": 2}), "`rope_scaling.factor` = 2 is not understood"),
        (json!({"factor": 2}), "is not understood"),
        (json!({"type": "linear"}), "`rope_scaling.factor` is missing"),
        (json!({"type": "linear", "factor": 0.5}), "`rope_scaling.factor` is 0.5"),
        (json!({"type": "linear", "factor": -2}), "`rope_scaling.factor` is -2"),
        (json!({"type": "linear", "factor": 1e7}), "a number from 1e0 to 1e6"),
        (json!({"type": "linear", "factor": "2"}), "a number"),
        (
            json!({"type": "linear", "factor": 2, "beta_fast": 3}),
            "`rope_scaling.beta_fast` = 3 is not understood",
        ),
        (json!({"type": "dynamic", "factor": 2, "alpha": 1000}), "`rope_scaling.alpha` = 1000"),
        (
            json!({"type": "dynamic", "factor": 2, "original_max_position_embeddings": 2048}),
            "dynamic scaling starts",
        ),
        (
            json!({"type": "llama3", "factor": 8, "low_freq_factor": 1}),
            "`rope_scaling.high_freq_factor` is missing",
        ),
        (
            json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            "more than low_freq",
        ),
        (
            json!({"type": "llama3", "factor": 8, "low_freq_factor": 0, "high_freq_factor": 4}),
            "low_freq_factor` is 0",
        ),
        (json!({"type": "yarn"}), "`rope_scaling.factor` is missing"),
        (json!({"type": "yarn", "factor": 4, "beta_fast": 0}), "`rope_scaling.beta_fast` is 0"),
        (json!({"type": "yarn", "factor": 4, "beta_slow": 40}), "at least beta_slow, which is 40"),
        (
            json!({"type": "yarn", "factor": 4, "attention_factor": -1.0}),
            "`rope_scaling.attention_factor` is -1",
        ),
        (json!({"type": "yarn", "factor": 4, "truncate": "no"}), "true or false"),
        (
            json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 0}),
            "a whole number from 1",
        ),
        (json!({"type": "yarn", "factor": 4, "finetuned": true}), "`rope_scaling.finetuned` = true"),
        (json!({"type": "yarn", "factor": 4, "partial_rotary_factor": 0.5}), "every dimension is rotated"),
        (
            json!({"type": "yarn", "factor": 1e6, "original_max_position_embeddings": 1 << 28}),
            "`context_length` is",
        ),
        (json!("yarn"), "`rope_scaling` is \"yarn\", expected an object or null"),
    ] {
        check_llama_error(json!({"rope_scaling": scaling}), expected);
    }
    check_llama_error(
        json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}),
        "the same as rope_scaling, or only one of them",
    );
    check_llama_error(
        json!({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        "500000, as rope_parameters.rope_theta says",
    );
    check_llama_error(
        json!({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}}),
        "more than 2",
    );
}

#[test]
fn the_context_counts_in_the_scaling() {
    let context = |scaling: Value| llama(json!({"rope_scaling": scaling})).context_length();
    assert_eq!(context(json!(null)), 4096);
    assert_eq!(context(json!({"type": "linear", "factor": 4})), 4096);
    assert_eq!(context(json!({"type": "dynamic", "factor": 4})), 16384);
    assert_eq!(context(json!({"type": "yarn", "factor": 4})), 16384);
    assert_eq!(context(json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 1024})), 4096);
}

#[test]
fn a_rope_scaling_file_replaces_the_scaling() {
    let plain = llama(json!({"rope_theta": 5e5}));
    let bare = r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}"#;
    let wrapped = format!(r#"{{"rope_scaling": {bare}}}"#);
    for text in [bare, &wrapped] {
        let config = plain.with_rope_scaling(text, "rope.json").unwrap();
        assert_eq!((config.context_length(), config.rope_theta), (16384, 5e5));
        assert!(matches!(config.rope_scaling, RopeScaling::Yarn { factor: 4.0, .. }));
    }
    let context = |text: &str| plain.with_rope_scaling(text, "rope.json").unwrap().context_length();
    assert_eq!(context(r#"{"type": "linear", "factor": 2.0}"#), 8192);
    assert_eq!(context(r#"{"type": "dynamic", "factor": 2.0}"#), 8192);
    assert_eq!(
        context(r#"{"type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4}"#),
        8192
    );
    let theta = r#"{"rope_type": "default", "rope_theta": 8e6}"#;
    assert_eq!(plain.with_rope_scaling(theta, "rope.json").unwrap().rope_theta, 8e6);

    for (text, expected) in [
        (r#"{"type": "ntk"}"#, "rope.json: `rope_type` is \"ntk\""),
        (r#"{"rope_scaling": {"type": "default"}, "hidden_size": 8}"#, "`hidden_size` = 8 is not understood"),
        (r#"{"type": "linear", "factor": 1e6}"#, "`max_position_embeddings` is"),
        ("yarn", "rope.json: not a valid JSON object"),
    ] {
        let error = plain.with_rope_scaling(text, "rope.json").unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected:?} in: {error}");
    }
}

#[test]
fn the_published_128k_setting_applies_to_models_of_32k() {
    let trained = presets::preset("1.5-8b").unwrap().config;
    let config = trained.published_128k().unwrap();
    let from_file = trained
        .with_rope_scaling(
            r#"{"rope_type": "yarn", "factor": 4.4, "original_max_position_embeddings": 32768,
                "beta_fast": 64, "beta_slow": 2}"#,
            "rope.json",
        )
        .unwrap();
    assert_eq!(config.rope_scaling, from_file.rope_scaling);
    assert_eq!((config.context_length(), from_file.context_length()), (131_072, 144_179));
    assert_eq!(config.published_128k().unwrap(), config, "twice is once");

    let short = presets::preset("8b").unwrap().config.published_128k().unwrap_err().to_string();
    assert!(short.contains("`max_position_embeddings` is 8192"), "{short}");
    let scaled = Config { rope_scaling: RopeScaling::Linear { factor: 2.0 }, ..trained };
    let scaled = scaled.published_128k().unwrap_err().to_string();
    assert!(scaled.contains("`rope_scaling` is Linear"), "{scaled}");
}
