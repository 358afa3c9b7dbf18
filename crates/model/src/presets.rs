//! The published shapes by name, each with how far it is published.
//!
//! A preset needs no checkpoint: it is for looking (`inspect`), for timing (`bench --random`) and for training from
//! scratch. A checkpoint's own config.json always decides how that checkpoint runs.
//! Tests: `cargo test -p kanana-model presets`.

use std::fmt;

use kanana_tensor::DType;

use crate::{Config, Family, Mixture, ModelError, Result, RopeScaling};

/// How far the shape of a preset rests on published sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Every field that decides the shape is published, or checked against a published file.
    Confirmed,
    /// As confirmed, but for these fields.
    ConfirmedExcept(&'static [&'static str]),
    /// Follows from published sizes; no configuration is public.
    Inferred,
    /// No published shape: one of several that fit, or made for tests.
    Invented,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Evidence::Confirmed => f.write_str("confirmed"),
            Evidence::ConfirmedExcept(fields) => write!(f, "confirmed; inferred: {}", fields.join(", ")),
            Evidence::Inferred => f.write_str("inferred"),
            Evidence::Invented => f.write_str("invented"),
        }
    }
}

/// A named configuration.
#[derive(Clone, Debug)]
pub struct Preset {
    /// What the command line calls it.
    pub name: &'static str,
    /// The configuration.
    pub config: Config,
    /// How sure it is.
    pub evidence: Evidence,
    /// Where the shape comes from, and what is not known.
    pub note: &'static str,
}

/// All presets, small to large within a generation.
pub fn presets() -> Vec<Preset> {
    let preset = |name, config, evidence, note| Preset { name, config, evidence, note };
    vec![
        preset(
            "nano-2.1b",
            nano(),
            Evidence::Confirmed,
            "metadata of a public copy of kanana-nano-2.1b-instruct; tied and shape proven by its file size",
        ),
        preset(
            "8b",
            eight(),
            Evidence::Inferred,
            "the shape of 1.5-8b with the rope_theta and the context of the first generation",
        ),
        preset(
            "essence-9.8b",
            essence(),
            Evidence::Inferred,
            "the 8b with 40 layers: the only depth at its shape that gives 9.8B",
        ),
        preset(
            "flag-32.5b",
            flag(),
            Evidence::Invented,
            "no shape is published; one of three that round to 26.8B before and 32.5B after depth up-scaling",
        ),
        preset(
            "1.5-2.1b",
            extended(nano()),
            Evidence::Inferred,
            "the shape of nano-2.1b; context published, rope_theta as in 1.5-8b, vocabulary maybe a few larger",
        ),
        preset(
            "nano-1.5-3b",
            three(),
            Evidence::Inferred,
            "the width 9216 is published, the rest follows from the sums of the mixture made from it",
        ),
        preset(
            "1.5-8b",
            extended(eight()),
            Evidence::ConfirmedExcept(&["intermediate_size", "vocab_size", "rms_norm_eps", "eos_token_id"]),
            "config.json as asserted by a public experiment; intermediate_size from the parameter count",
        ),
        preset(
            "1.5-essence-9.8b",
            extended(essence()),
            Evidence::Inferred,
            "essence-9.8b with the rope_theta and the context of 1.5-8b",
        ),
        preset(
            "1.5-32.5b",
            extended(flag()),
            Evidence::Invented,
            "flag-32.5b with the rope_theta and the context of 1.5-8b",
        ),
        preset(
            "1.5-15.7b-a3b",
            mixture(),
            Evidence::Inferred,
            "64 experts of 1152, 8 chosen: published; hidden size, heads and untied from the sums 15.7B and 3B; the \
             class, and whether weights are renormalised, are not published (here: Mixtral, renormalised)",
        ),
        preset("tiny", tiny(), Evidence::Invented, "no published model: made for tests and quick trials"),
        preset(
            "tiny-moe",
            tiny_mixture(),
            Evidence::Invented,
            "no published model: made for tests and quick trials",
        ),
    ]
}

/// The preset of a name.
///
/// Errors: no such name; the message lists those there are.
pub fn preset(name: &str) -> Result<Preset> {
    let presets = presets();
    let known = presets.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ");
    presets
        .into_iter()
        .find(|preset| preset.name == name)
        .ok_or_else(|| ModelError::UnknownPreset { name: name.to_owned(), known })
}

/// Kanana Nano 2.1B; the other shapes are told by their difference from it.
fn nano() -> Config {
    Config {
        family: Family::Llama,
        hidden_size: 1792,
        num_hidden_layers: 32,
        num_attention_heads: 24,
        num_key_value_heads: 8,
        head_dim: 128,
        intermediate_size: 8064,
        vocab_size: 128_256,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        attention_bias: false,
        mlp_bias: false,
        qk_norm: false,
        mixture: None,
        bos_token_id: Some(128_000),
        eos_token_ids: vec![128_009],
        torch_dtype: Some(DType::BF16),
        quantization: None,
    }
}

fn eight() -> Config {
    Config {
        hidden_size: 4096,
        num_attention_heads: 32,
        intermediate_size: 14_336,
        tie_word_embeddings: false,
        ..nano()
    }
}

fn essence() -> Config {
    Config { num_hidden_layers: 40, ..eight() }
}

fn flag() -> Config {
    Config {
        hidden_size: 6144,
        num_hidden_layers: 65,
        num_attention_heads: 48,
        intermediate_size: 20_992,
        ..eight()
    }
}

/// The second generation: positions to 32768 by a larger base.
fn extended(config: Config) -> Config {
    Config { max_position_embeddings: 32_768, rope_theta: 8_000_000.0, ..config }
}

fn three() -> Config {
    extended(Config { hidden_size: 2048, intermediate_size: 9216, ..eight() })
}

/// Kanana-1.5-15.7B-A3B: the 3B with every dense layer cut in 8 slices, each copied 8 times.
fn mixture() -> Config {
    Config {
        family: Family::Mixtral,
        intermediate_size: 1152,
        mixture: Some(Mixture {
            num_experts: 64,
            num_experts_per_tok: 8,
            moe_intermediate_size: 1152,
            renormalise: true,
            shared_expert_intermediate_size: None,
            shared_expert_gated: false,
            decoder_sparse_step: 1,
            mlp_only_layers: Vec::new(),
        }),
        ..three()
    }
}

/// As the 2.1B, heads wider than hidden / heads and in groups of three, in miniature.
fn tiny() -> Config {
    Config {
        hidden_size: 56,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 16,
        intermediate_size: 120,
        vocab_size: 259,
        max_position_embeddings: 512,
        rope_theta: 10_000.0,
        bos_token_id: Some(256),
        eos_token_ids: vec![257],
        torch_dtype: Some(DType::F32),
        ..nano()
    }
}

fn tiny_mixture() -> Config {
    let mixture = mixture().mixture.map(|mixture| Mixture {
        num_experts: 8,
        num_experts_per_tok: 2,
        moe_intermediate_size: 24,
        ..mixture
    });
    Config { family: Family::Mixtral, intermediate_size: 24, mixture, tie_word_embeddings: false, ..tiny() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid_and_named_once() {
        let presets = presets();
        for found in &presets {
            found.config.validate(found.name).unwrap();
            assert_eq!(presets.iter().filter(|other| other.name == found.name).count(), 1);
            assert_eq!(preset(found.name).unwrap().config, found.config);
        }
    }

    #[test]
    fn an_unknown_name_lists_those_there_are() {
        let error = preset("nano-3b").unwrap_err().to_string();
        assert!(
            error.starts_with("there is no preset named \"nano-3b\"; there are nano-2.1b, 8b,"),
            "{error}"
        );
    }

    #[test]
    fn evidence_is_told_in_words() {
        assert_eq!(preset("nano-2.1b").unwrap().evidence.to_string(), "confirmed");
        assert_eq!(preset("1.5-15.7b-a3b").unwrap().evidence.to_string(), "inferred");
        assert!(
            preset("1.5-8b")
                .unwrap()
                .evidence
                .to_string()
                .starts_with("confirmed; inferred: intermediate_size")
        );
    }

    #[test]
    fn the_generations_differ_in_base_and_context() {
        let (first, second) = (preset("8b").unwrap().config, preset("1.5-8b").unwrap().config);
        assert_eq!((first.rope_theta, first.max_position_embeddings), (5e5, 8192));
        assert_eq!((second.rope_theta, second.max_position_embeddings), (8e6, 32_768));
    }
}
