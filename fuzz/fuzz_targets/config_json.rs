//! Any text is a config or an error; what is accepted survives writing and reading, and can be counted without overflow.
#![no_main]

use kanana_model::{Config, GenerationDefaults, cost, inverse_frequencies};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = GenerationDefaults::from_json_str(text, "generation_config.json");
    let Ok(config) = Config::from_json_str(text, "config.json") else { return };
    let written = config.to_json().to_string();
    assert_eq!(Config::from_json_str(&written, "written").as_ref().ok(), Some(&config), "{written}");

    let context = config.context_length();
    assert!(cost::parameters(&config).total > 0);
    assert!(cost::flops_per_token(&config, context) > 0);
    // Frequencies are one number per pair of the head: allocated, so for heads that models have.
    if config.head_dim <= 1 << 16 {
        let (frequencies, attention_factor) = inverse_frequencies(&config, context);
        assert!(attention_factor.is_finite() && frequencies.iter().all(|f| f.is_finite()), "{written}");
    }
    let _ = config.with_rope_scaling(text, "rope_scaling.json");
    let _ = config.published_128k();
});
