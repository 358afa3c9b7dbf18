//! What an optimiser remembers of each weight, in f32 or rounded to bf16.
//!
//! A running mean moves by less than bf16 can hold: rounded to the nearest it would stand still. It is rounded up or down
//! by chance instead, so that its expectation is the f32 value; chance is a hash of where and when, so that a run repeats
//! itself to the bit. Source: Gupta et al. 2015, arXiv 1502.02551, section 3. Tests: `cargo test -p kanana-train moment`.

use kanana_tensor::{DType, Element, bf16};
use serde::{Deserialize, Serialize};

/// How running means are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentFormat {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, rounded stochastically.
    Bf16,
}

impl MomentFormat {
    /// The dtype of the tensors.
    pub fn dtype(self) -> DType {
        match self {
            MomentFormat::F32 => DType::F32,
            MomentFormat::Bf16 => DType::BF16,
        }
    }
}

/// An element of what is remembered.
pub(super) trait Moment: Element + Send + Sync {
    fn widen(self) -> f32;

    /// The value rounded with 16 bits of chance.
    fn round(value: f32, chance: u16) -> Self;
}

impl Moment for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn round(value: f32, _chance: u16) -> Self {
        value
    }
}

impl Moment for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn round(value: f32, chance: u16) -> Self {
        // Added below the last bit that stays, chance carries into it as often as the bits that go say.
        let rounded = bf16::from_bits((value.to_bits().wrapping_add(chance.into()) >> 16) as u16);
        match rounded.is_finite() {
            true => rounded,
            // Not finite before, or no longer.
            false => bf16::from_f32(value),
        }
    }
}

/// The chance of one parameter in one step. Its numbers are those of SplitMix64 (Steele et al. 2014), by their position.
#[derive(Clone, Copy)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64, step: u64, parameter: &str) -> Self {
        // FNV-1a.
        let name = parameter.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Chance(mix(mix(seed ^ name).wrapping_add(step)))
    }

    /// Of an element, for two values that are remembered of it.
    pub(super) fn at(self, index: usize) -> [u16; 2] {
        let bits = mix(self.0.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        [bits as u16, (bits >> 16) as u16]
    }
}

fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean of many roundings, against the value, in units of the step between neighbours in bf16.
    #[test]
    fn rounding_is_unbiased() {
        let check = |value: f32, step: f64| {
            const DRAWS: usize = 1 << 16;
            let mut sums = [0f64; 2];
            for draw in 0..DRAWS {
                // A thousand elements in each of several steps.
                let chance = Chance::new(3, (draw / 1024) as u64, "w").at(draw % 1024);
                for (sum, chance) in sums.iter_mut().zip(chance) {
                    let rounded = f64::from(bf16::round(value, chance).to_f32());
                    assert!((rounded - f64::from(value)).abs() < step, "{value} became {rounded}");
                    *sum += rounded;
                }
            }
            for sum in sums {
                let error = (sum / DRAWS as f64 - f64::from(value)) / step;
                // Four standard deviations: of a coin at most half a step, over the root of the draws.
                assert!(error.abs() < 4.0 * 0.5 / (DRAWS as f64).sqrt(), "{value}: off by {error} steps");
            }
        };
        let step = 2f64.powi(-7);
        for value in [1.0 + 2f32.powi(-9), 1.3, -1.3, 1.999_999, 1.000_01] {
            check(value, step);
        }
        check(1e-12, 2f64.powi(-47));
        // Below the smallest normal number.
        check(1e-39, 2f64.powi(-133));
    }

    #[test]
    fn what_bf16_holds_stays_as_it_is() {
        let check = |value: f32, expected: f32| {
            for chance in [0, 1, 0x7fff, u16::MAX] {
                let rounded = bf16::round(value, chance).to_f32();
                assert_eq!(rounded.to_bits(), expected.to_bits(), "{value} by {chance}");
            }
        };
        for value in [0.0, -0.0, 1.0, -1.5, f32::INFINITY, f32::NEG_INFINITY, bf16::MAX.to_f32()] {
            check(value, value);
        }
        assert!(bf16::round(f32::NAN, 5).is_nan() && bf16::round(f32::from_bits(0x7f80_0001), 0).is_nan());
    }

    /// A mean that decays by a thousandth in each step, below half a step of bf16.
    #[test]
    fn a_slow_mean_moves() {
        const COUNT: usize = 4096;
        let mut means = vec![bf16::from_f32(1.0); COUNT];
        for step in 0..1000 {
            let chance = Chance::new(0, step, "w");
            for (i, mean) in means.iter_mut().enumerate() {
                *mean = bf16::round(mean.widen() * 0.999, chance.at(i)[0]);
            }
        }
        let mean = means.iter().map(|x| f64::from(x.to_f32())).sum::<f64>() / COUNT as f64;
        let expected = 0.999f64.powi(1000);
        assert!((mean / expected - 1.0).abs() < 0.01, "{mean}, expected {expected}");
    }

    #[test]
    fn chance_depends_on_all_of_its_origins() {
        let all = [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1)];
        let drawn = all.map(|(seed, step, name, index)| Chance::new(seed, step, name).at(index));
        for (i, a) in drawn.iter().enumerate() {
            assert!(!drawn[..i].contains(a), "{:?}", all[i]);
            assert_ne!(a[0], a[1]);
        }
    }
}
