//! The published ways to stretch rotary positions, as config.json states them; the maths is in `rope.rs`.

use serde_json::{Value, json};

use super::json::Fields;
use super::validate::limits;
use crate::Result;

/// How the rotary frequencies differ from `theta^(-2i/head_dim)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// They do not (`default`).
    None,
    /// All divided by the factor. Source: Chen et al. 2023, arXiv 2306.15595.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// The base grows with the context beyond `max_position_embeddings` ("NTK-aware").
    Dynamic {
        /// At least 1.
        factor: f64,
    },
    /// Long wavelengths divided by the factor, short ones kept, a ramp between. Source: Llama 3.1.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths over original / this are divided.
        low_freq_factor: f64,
        /// Wavelengths under original / this are kept.
        high_freq_factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
    },
    /// As llama3 with the ramp over dimensions, and warmer attention. Source: Peng et al. 2023, arXiv 2309.00071.
    Yarn {
        /// At least 1.
        factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
        /// Dimensions that turn more often than this within the trained length are kept.
        beta_fast: f64,
        /// Dimensions that turn less often than this are divided by the factor.
        beta_slow: f64,
        /// The ends of the ramp are whole dimensions.
        truncate: bool,
        /// Multiplies cosines and sines, so the attention logits by its square; resolved when read.
        attention_factor: f64,
    },
}

/// `attention_factor` where the file does not give it: from `mscale` and `mscale_all_dim` if there are both, else
/// `0.1 ln(factor) + 1`.
pub(super) fn yarn_attention_factor(factor: f64, mscales: Option<(f64, f64)>) -> f64 {
    let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    match mscales {
        Some((mscale, mscale_all_dim)) => temperature(mscale) / temperature(mscale_all_dim),
        None => temperature(1.0),
    }
}

impl RopeScaling {
    /// Reads the object of `rope_scaling` or `rope_parameters`; the second value is its `rope_theta`.
    ///
    /// Errors: a type that is not known, a field that the type does not have, a value out of range.
    pub(super) fn read(
        mut fields: Fields<'_>,
        max_position_embeddings: usize,
    ) -> Result<(Self, Option<f64>)> {
        let theta = fields.number("rope_theta")?;
        if let Some(part) = fields.number("partial_rotary_factor")?.filter(|part| *part != 1.0) {
            return Err(fields.wrong("partial_rotary_factor", &part.into(), "1: every dimension is rotated"));
        }
        let kind = rope_type(&mut fields)?;
        let scaling = match kind.as_str() {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor(&mut fields)? },
            "dynamic" => {
                let factor = factor(&mut fields)?;
                match fields.size("original_max_position_embeddings", limits::TOKENS)? {
                    Some(original) if original != max_position_embeddings => {
                        let expected = format!(
                            "{max_position_embeddings}, as max_position_embeddings says: dynamic scaling starts there"
                        );
                        return Err(fields.wrong(
                            "original_max_position_embeddings",
                            &original.into(),
                            &expected,
                        ));
                    }
                    _ => RopeScaling::Dynamic { factor },
                }
            }
            "llama3" => llama3(&mut fields, max_position_embeddings)?,
            "yarn" => yarn(&mut fields, max_position_embeddings)?,
            "longrope" | "su" => {
                let expected = "default, linear, dynamic, llama3 or yarn: longrope is not implemented, and no Kanana \
                                uses it";
                return Err(fields.wrong("rope_type", &kind.into(), expected));
            }
            _ => {
                return Err(fields.wrong(
                    "rope_type",
                    &kind.into(),
                    "default, linear, dynamic, llama3 or yarn",
                ));
            }
        };
        fields.finish()?;
        Ok((scaling, theta))
    }

    /// The value of `rope_scaling` in config.json, without `rope_theta`.
    pub fn to_json(&self) -> Value {
        match *self {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                truncate,
                attention_factor,
            } => json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "truncate": truncate,
                "attention_factor": attention_factor,
            }),
        }
    }
}

/// `rope_type`, or `type` in older files; `default` when there is neither.
fn rope_type(fields: &mut Fields<'_>) -> Result<String> {
    let new = fields.text("rope_type")?;
    let old = fields.text("type")?;
    match (new, old) {
        (Some(new), Some(old)) if new != old => Err(fields.wrong(
            "type",
            &old.into(),
            &format!("{new:?}, as rope_type says, or only one of them"),
        )),
        (new, old) => Ok(new.or(old).unwrap_or_else(|| "default".to_owned())),
    }
}

fn factor(fields: &mut Fields<'_>) -> Result<f64> {
    fields
        .number_in("factor", 1.0..=1e6)?
        .ok_or_else(|| fields.missing("factor", "this rope type stretches positions by it"))
}

/// As in transformers, the trained length is `max_position_embeddings` if nothing else is said.
fn original(fields: &mut Fields<'_>, max_position_embeddings: usize) -> Result<usize> {
    let stated = fields.size("original_max_position_embeddings", limits::TOKENS)?;
    Ok(stated.unwrap_or(max_position_embeddings))
}

fn llama3(fields: &mut Fields<'_>, max_position_embeddings: usize) -> Result<RopeScaling> {
    let mut ramp_end = |key: &str| {
        let why = "llama3 scaling has a ramp between low_freq_factor and high_freq_factor";
        fields.number_in(key, 1e-6..=1e6)?.ok_or_else(|| fields.missing(key, why))
    };
    let (low_freq_factor, high_freq_factor) = (ramp_end("low_freq_factor")?, ramp_end("high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        let expected = format!("more than low_freq_factor, which is {low_freq_factor}");
        return Err(fields.wrong("high_freq_factor", &high_freq_factor.into(), &expected));
    }
    Ok(RopeScaling::Llama3 {
        factor: factor(fields)?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original(fields, max_position_embeddings)?,
    })
}

fn yarn(fields: &mut Fields<'_>, max_position_embeddings: usize) -> Result<RopeScaling> {
    let factor = factor(fields)?;
    let beta_fast = fields.number_in("beta_fast", 1e-6..=1e6)?.unwrap_or(32.0);
    let beta_slow = fields.number_in("beta_slow", 1e-6..=1e6)?.unwrap_or(1.0);
    if beta_fast < beta_slow {
        let expected = format!("at least beta_slow, which is {beta_slow}");
        return Err(fields.wrong("beta_fast", &beta_fast.into(), &expected));
    }
    let mscale = fields.number_in("mscale", 0.0..=1e3)?.filter(|mscale| *mscale != 0.0);
    let mscale_all_dim = fields.number_in("mscale_all_dim", 0.0..=1e3)?.filter(|mscale| *mscale != 0.0);
    let attention_factor = fields
        .number_in("attention_factor", 1e-3..=1e3)?
        .unwrap_or_else(|| yarn_attention_factor(factor, mscale.zip(mscale_all_dim)));
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original(fields, max_position_embeddings)?,
        beta_fast,
        beta_slow,
        truncate: fields.flag("truncate")?.unwrap_or(true),
        attention_factor,
    })
}
