//! llama3 rope scaling as GGUF has it: the tensor `rope_freqs.weight`, by which llama.cpp divides the frequencies.
//!
//! Source: Llama 3.1's reference code, and `generate_extra_tensors` of llama.cpp's `conversion/llama.py`.
//! Tests: `cargo test -p kanana-checkpoint rope_factors`.

use std::f64::consts::TAU;

use serde_json::{Value, json};

/// The tensor.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The parameters of llama3 scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Llama3 {
    pub(crate) factor: f64,
    pub(crate) low_freq_factor: f64,
    pub(crate) high_freq_factor: f64,
    /// `original_max_position_embeddings`, in tokens.
    pub(crate) original: f64,
}

/// What every published model has but the factor and, sometimes, the length.
const USUAL: Llama3 = Llama3 { factor: 1.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192.0 };
/// How far two divisors may be apart, relatively, and be the same: they are stored in f32.
const TOLERANCE: f64 = 1e-4;

/// The divisor of each of the `head_dim / 2` frequencies: 1 for wavelengths below original / high, the factor for those
/// above original / low, and between the inverse of a line.
pub(crate) fn factors(llama3: &Llama3, theta: f64, head_dim: usize) -> Vec<f32> {
    turns(theta, head_dim).map(|turns| llama3.divisor(turns) as f32).collect()
}

/// One over the wavelength of each frequency, in turns per token.
fn turns(theta: f64, head_dim: usize) -> impl Iterator<Item = f64> {
    (0..head_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / head_dim as f64) / TAU)
}

impl Llama3 {
    fn divisor(&self, turns: f64) -> f64 {
        // How often the frequency turns within the trained length.
        let turns = turns * self.original;
        if turns > self.high_freq_factor {
            return 1.0;
        }
        if turns < self.low_freq_factor {
            return self.factor;
        }
        let smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        1.0 / ((1.0 - smooth) / self.factor + smooth)
    }

    /// Finds parameters that give these divisors; none when no llama3 scaling does.
    ///
    /// Multiplying the length and both frequency factors by one number changes nothing, so low_freq_factor is taken as
    /// 1, as in every published model. Between the ends the inverse divisors lie on a line over the turns; two points
    /// of it give the rest. Where fewer lie there, the usual parameters and the stated length are tried.
    pub(crate) fn from_factors(divisors: &[f32], theta: f64, stated: Option<u64>) -> Option<Self> {
        let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
        if factor <= 1.0 {
            return None;
        }
        let matches = |candidate: &Llama3| {
            let computed = factors(candidate, theta, divisors.len() * 2);
            computed.iter().zip(divisors).all(|(a, b)| f64::from((a - b).abs()) <= TOLERANCE * f64::from(*b))
        };
        let usual = |original: f64| Llama3 { factor, original, ..USUAL };
        let candidates = [
            stated.map(|n| usual(n as f64)),
            Some(usual(USUAL.original)),
            on_the_ramp(divisors, theta, factor),
        ];
        candidates.into_iter().flatten().find(matches)
    }

    /// The value of `rope_scaling` in config.json.
    pub(crate) fn to_json(self) -> Value {
        json!({
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original as u64,
        })
    }
}

/// The parameters by the first and the last divisor that is neither 1 nor the factor.
fn on_the_ramp(divisors: &[f32], theta: f64, factor: f64) -> Option<Llama3> {
    let smooth = |divisor: f64| (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor);
    let points: Vec<(f64, f64)> = turns(theta, divisors.len() * 2)
        .zip(divisors)
        .map(|(turns, &divisor)| (turns, smooth(f64::from(divisor))))
        .filter(|(_, smooth)| (1e-3..0.999).contains(smooth))
        .collect();
    let ((x0, y0), (x1, y1)) = (points.first()?, points.last()?);
    let slope = (y0 - y1) / (x0 - x1); // original / (high - 1)
    let start = slope * x0 - y0; // 1 / (high - 1)
    if !(slope.is_finite() && start > 0.0) {
        return None;
    }
    // The numbers in f32 are near to round ones: take those.
    let high_freq_factor = ((1.0 + 1.0 / start) * 1e3).round() / 1e3;
    let original = (slope * (high_freq_factor - 1.0)).round();
    Some(Llama3 { factor, low_freq_factor: 1.0, high_freq_factor, original })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(llama3: Llama3, theta: f64, head_dim: usize, stated: Option<u64>) {
        let divisors = factors(&llama3, theta, head_dim);
        assert_eq!(Llama3::from_factors(&divisors, theta, stated), Some(llama3));
    }

    #[test]
    fn parameters_are_found_again() {
        check(Llama3 { factor: 8.0, ..USUAL }, 500_000.0, 128, None);
        check(Llama3 { factor: 32.0, ..USUAL }, 500_000.0, 64, None);
        check(Llama3 { factor: 4.0, original: 32768.0, ..USUAL }, 500_000.0, 128, None);
        check(Llama3 { factor: 4.0, high_freq_factor: 7.5, original: 4096.0, ..USUAL }, 1e6, 128, None);
        check(Llama3 { factor: 2.0, original: 16.0, ..USUAL }, 10_000.0, 12, Some(16));
    }

    #[test]
    fn factors_are_those_of_the_converter() {
        // Of Llama 3.1: `rope_freqs.weight` has 1 up to pair 28, 8 from pair 35.
        let divisors = factors(&Llama3 { factor: 8.0, ..USUAL }, 500_000.0, 128);
        assert_eq!((divisors[0], divisors[28], divisors[34] < 8.0, divisors[35]), (1.0, 1.0, true, 8.0));
        assert!(divisors.is_sorted() && divisors[29] > 1.0);
    }

    #[test]
    fn other_divisors_are_refused() {
        let refuse =
            |divisors: &[f32]| assert_eq!(Llama3::from_factors(divisors, 1e4, None), None, "{divisors:?}");
        refuse(&[1.0, 1.0]);
        refuse(&[]);
        refuse(&[8.0, 1.0, 8.0, 1.0]);
        refuse(&[f32::NAN, 2.0]);
        refuse(&[1.0, 1.5, 1.6, 1.1, 9.0]);
    }
}
