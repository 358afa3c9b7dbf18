//! Rotary position tables: the frequencies of every published scaling, and their cosines and sines.
//!
//! [`inverse_frequencies`] is the exact formula in f64. [`rope_table`] computes it as transformers does, rounding to
//! f32 after every operation, because the weights were trained with those angles: at position 131071 the last bit of
//! an f32 frequency moves an angle by about 0.004 rad, and an exact table would be a different model.
//! Source: transformers 5.23.0, `modeling_rope_utils.py`. It knows no tensors. Tests: `cargo test -p kanana-model rope`.
//!
//! Shapes: P positions, H head_dim.

use std::f64::consts::PI;

use crate::{Config, RopeScaling};

/// How the results of arithmetic are rounded.
#[derive(Clone, Copy)]
enum Precision {
    /// To f32 after every operation. A sum, product, quotient or root of f32 values that is computed in f64 and then
    /// rounded is the correctly rounded f32 result.
    Single,
    /// f64 throughout.
    Double,
}

impl Precision {
    fn round(self, x: f64) -> f64 {
        match self {
            Precision::Single => f64::from(x as f32),
            Precision::Double => x,
        }
    }
}

/// The rotary frequencies and the factor on cosines and sines, in f64.
///
/// Shapes: `[H/2]`. Units: radians per position. `context` is the served length in tokens and matters to dynamic
/// scaling only: transformers stretches the base anew whenever a longer sequence arrives, which would give the keys
/// of one sequence several bases and make a token depend on its neighbours in a batch; here the base is fixed once
/// for the served context, which is what transformers computes for a first call of that length.
pub fn inverse_frequencies(config: &Config, context: usize) -> (Vec<f64>, f64) {
    (frequencies(config, context, Precision::Double), attention_factor(config))
}

/// Cosines and sines by position, the attention factor multiplied in, bit for bit in the order of transformers but
/// for the last bit of the library's `pow`, `cos` and `sin`.
///
/// Shapes: `[P, H/2]` each, P = `positions`, which is also the served context of dynamic scaling.
/// Cost: P·H/2 sines and cosines; 8 bytes each pair.
pub fn rope_table(config: &Config, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let frequencies = frequencies(config, positions, Precision::Single);
    let factor = attention_factor(config) as f32;
    let size = positions.saturating_mul(frequencies.len());
    let (mut cos, mut sin) = (Vec::with_capacity(size), Vec::with_capacity(size));
    for position in 0..positions {
        for frequency in &frequencies {
            let angle = Precision::Single.round(Precision::Single.round(position as f64) * frequency);
            let (s, c) = angle.sin_cos();
            cos.push(c as f32 * factor);
            sin.push(s as f32 * factor);
        }
    }
    (cos, sin)
}

fn attention_factor(config: &Config) -> f64 {
    match config.rope_scaling {
        RopeScaling::Yarn { attention_factor, .. } => attention_factor,
        _ => 1.0,
    }
}

fn frequencies(config: &Config, context: usize, precision: Precision) -> Vec<f64> {
    let round = |x: f64| precision.round(x);
    let dim = config.head_dim as f64;
    let base = round(base(config, context));
    // theta^(2i/H): positions per radian.
    let periods = (0..config.head_dim / 2).map(|i| round(base.powf(round((2 * i) as f64 / dim))));
    match config.rope_scaling {
        RopeScaling::None | RopeScaling::Dynamic { .. } => {
            periods.map(|period| round(1.0 / period)).collect()
        }
        RopeScaling::Linear { factor } => {
            periods.map(|period| round(round(1.0 / period) / round(factor))).collect()
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = original_max_position_embeddings as f64;
            let stretch = |frequency: f64| {
                let wavelength = round(round(2.0 * PI) / frequency);
                if wavelength > original / low_freq_factor {
                    return round(frequency / round(factor));
                }
                if wavelength < original / high_freq_factor {
                    return frequency;
                }
                let turns = round(round(original) / wavelength);
                let span = round(high_freq_factor - low_freq_factor);
                let kept = round(round(turns - round(low_freq_factor)) / span);
                let divided = round(round(round(1.0 - kept) * frequency) / round(factor));
                round(divided + round(kept * frequency))
            };
            periods.map(|period| stretch(round(1.0 / period))).collect()
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } => {
            // The dimension that turns `turns` times within the trained length.
            let dimension = |turns: f64| {
                dim * (original_max_position_embeddings as f64 / (turns * 2.0 * PI)).ln()
                    / (2.0 * config.rope_theta.ln())
            };
            let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(dim - 1.0));
            if low == high {
                high += 0.001; // A ramp of no width would divide by zero.
            }
            let mix = |(i, period): (usize, f64)| {
                let ramp = round(round(i as f64 - round(low)) / round(high - low)).clamp(0.0, 1.0);
                let kept = round(1.0 - ramp);
                let divided = round(round(1.0 / round(round(factor) * period)) * round(1.0 - kept));
                round(divided + round(round(1.0 / period) * kept))
            };
            periods.enumerate().map(mix).collect()
        }
    }
}

/// `rope_theta`, grown for the served context under dynamic scaling.
fn base(config: &Config, context: usize) -> f64 {
    let RopeScaling::Dynamic { factor } = config.rope_scaling else { return config.rope_theta };
    let dim = config.head_dim as f64;
    let trained = config.max_position_embeddings as f64;
    let stretch = factor * (context as f64).max(trained) / trained - (factor - 1.0);
    config.rope_theta * stretch.powf(dim / (dim - 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::preset;

    fn config(rope_theta: f64, max_position_embeddings: usize, rope_scaling: RopeScaling) -> Config {
        let config = preset("1.5-8b").unwrap().config;
        Config { rope_theta, max_position_embeddings, rope_scaling, ..config }
    }

    #[track_caller]
    fn check(config: &Config, expected: &[(usize, f64)]) {
        let (frequencies, _) = inverse_frequencies(config, config.context_length());
        assert_eq!(frequencies.len(), config.head_dim / 2);
        for &(i, expected) in expected {
            let error = (frequencies[i] - expected).abs() / expected;
            assert!(error < 1e-9, "frequency {i}: {:e}, expected {expected:e}", frequencies[i]);
        }
    }

    fn published(truncate: bool) -> Config {
        let mut config = preset("1.5-8b").unwrap().config.published_128k().unwrap();
        if let RopeScaling::Yarn { truncate: field, .. } = &mut config.rope_scaling {
            *field = truncate;
        }
        config
    }

    #[test]
    fn plain_frequencies_are_those_published() {
        check(
            &config(8e6, 32_768, RopeScaling::None),
            &[
                (0, 1.0),
                (15, 2.410395369e-2),
                (17, 1.466785885e-2),
                (18, 1.144210533e-2),
                (20, 6.962807350e-3),
                (24, 2.578346344e-3),
                (28, 9.547686066e-4),
                (31, 4.532270140e-4),
                (32, 3.535533906e-4),
                (40, 4.848068619e-5),
                (63, 1.602399475e-7),
            ],
        );
    }

    #[test]
    fn yarn_frequencies_are_those_published() {
        check(
            &published(true),
            &[
                (0, 1.0),
                (15, 2.410395369e-2),
                (17, 1.466785885e-2),
                (18, 1.085266354e-2),
                (20, 5.886737123e-3),
                (24, 1.648579026e-3),
                (28, 4.137330629e-4),
                (31, 1.263541979e-4),
                (32, 8.035304332e-5),
                (40, 1.101833777e-5),
                (63, 3.641816989e-8),
            ],
        );
        check(&published(false), &[(18, 1.126350484e-2), (31, 1.198885610e-4)]);
        let theta = Config { rope_theta: 500_000.0, ..published(true) };
        check(&theta, &[(15, 4.616405027e-2), (31, 9.907741280e-4), (63, 5.579865434e-7)]);
    }

    #[test]
    fn yarn_warms_the_attention() {
        let (_, factor) = inverse_frequencies(&published(true), 1);
        assert!((factor - 1.148160454092).abs() < 1e-12);
        assert!((factor * factor - 1.318272428).abs() < 1e-9);
    }

    #[test]
    fn yarn_is_the_same_at_every_length() {
        let config = published(true);
        assert_eq!(inverse_frequencies(&config, 1), inverse_frequencies(&config, 131_072));
    }

    #[test]
    fn dynamic_scaling_starts_beyond_the_trained_length() {
        let plain = config(5e5, 8192, RopeScaling::None);
        let dynamic = config(5e5, 8192, RopeScaling::Dynamic { factor: 2.0 });
        assert_eq!(inverse_frequencies(&dynamic, 8192), inverse_frequencies(&plain, 8192));
        // The base at 16384 positions of 8192 by factor 2 is theta · 3^(128/126).
        let base = 5e5 * 3f64.powf(128.0 / 126.0);
        assert_eq!(
            inverse_frequencies(&dynamic, 16_384),
            inverse_frequencies(&config(base, 1, RopeScaling::None), 1)
        );
    }

    /// `(position, index, cos, sin)` of transformers 5.23.0: `LlamaRotaryEmbedding(config)(x, position_ids)` in f32,
    /// head_dim 128.
    #[track_caller]
    fn check_table(config: &Config, expected: &[(usize, usize, f32, f32)]) {
        let positions = 131_072;
        let (cos, sin) = rope_table(config, positions);
        assert_eq!((cos.len(), sin.len()), (positions * 64, positions * 64));
        for &(position, i, c, s) in expected {
            let at = position * 64 + i;
            let error = (cos[at] - c).abs().max((sin[at] - s).abs());
            assert!(
                error <= 2e-7,
                "position {position}, index {i}: {} {}, expected {c} {s}",
                cos[at],
                sin[at]
            );
        }
    }

    #[test]
    fn plain_and_linear_tables_are_those_of_transformers() {
        check_table(
            &config(8e6, 32_768, RopeScaling::None),
            &[
                (0, 0, 1.0, 0.0),
                (1, 1, 0.71085715, 0.70333636),
                (777, 5, -0.17428024, -0.9846961),
                (32_767, 3, -0.9158211, -0.40158662),
                (131_071, 1, 0.9242647, -0.3817521),
                (131_071, 20, 0.010473293, 0.99994516),
                (131_071, 63, 0.99977946, 0.021001266),
            ],
        );
        check_table(
            &config(5e5, 8192, RopeScaling::Linear { factor: 3.0 }),
            &[
                (777, 5, 0.2320158, -0.97271204),
                (32_767, 3, -0.21591683, -0.97641176),
                (131_071, 1, -0.97831327, 0.20713083),
                (131_071, 20, 0.56951666, 0.8219798),
            ],
        );
    }

    #[test]
    fn llama3_and_yarn_tables_are_those_of_transformers() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        check_table(
            &config(5e5, 131_072, llama3),
            &[
                (777, 5, -0.64608854, 0.76326245),
                (131_071, 1, -0.81723183, 0.576309),
                (131_071, 20, -0.9696459, 0.24451335),
                (131_071, 30, -0.7352952, -0.677747),
                (131_071, 34, -0.1640067, -0.9864592),
                (131_071, 63, 0.9991911, 0.04021387),
            ],
        );
        check_table(
            &published(true),
            &[
                (0, 0, 1.1481605, 0.0),
                (777, 5, -0.20010169, -1.1305891),
                (32_767, 3, -1.0515095, -0.4610859),
                (131_071, 1, 1.0612042, -0.43831268),
                (131_071, 20, 0.36077067, -1.0900078),
                (131_071, 63, 1.1481473, 0.0054805693),
            ],
        );
    }

    #[test]
    fn yarn_with_mscale_is_that_of_transformers() {
        let text = r#"{"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5,
            "truncate": false, "original_max_position_embeddings": 4096}"#;
        let config = config(1e4, 32_768, RopeScaling::None).with_rope_scaling(text, "rope.json").unwrap();
        check_table(
            &config,
            &[
                (0, 0, 1.155722, 0.0),
                (777, 5, 0.2161519, 1.1353289),
                (131_071, 1, -1.1299647, -0.24263778),
                (131_071, 20, 1.0212456, 0.5410644),
                (131_071, 63, 1.0739644, 0.42695892),
            ],
        );
    }
}
