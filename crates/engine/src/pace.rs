//! How many tokens to propose to a sequence next, from how many came true.
//!
//! Tests: `cargo test -p kanana-engine pace`.

use std::ops::RangeInclusive;

/// Of the estimate of [`Pace`], the part that the latest proposals make up.
const NEWS: f32 = 0.25;

/// Of the distance to full trust, what a step without proposals gives back: a sequence that was given up is tried again
/// with one token about every eight steps, which costs little and finds out when it has become predictable.
const FORGIVENESS: f32 = 1.0 / 512.0;

/// The share of a sequence's recent proposals that came true; and that share of the most that may be proposed is
/// proposed next.
///
/// The share falls with the number proposed, because only proposals before the first wrong one come true; so the two
/// settle where it pays: a proposer that is right 4 times in 5 proposes about half of 8, one that is right 1 time in 2
/// two of them, and one that is never right none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    share: f32,
}

impl Pace {
    /// Full trust: the first proposals will tell.
    pub(crate) fn new() -> Self {
        Pace { share: 1.0 }
    }

    /// How many tokens to propose.
    pub(crate) fn proposals(&self, allowed: &RangeInclusive<usize>) -> usize {
        let wanted = (self.share * *allowed.end() as f32).round() as usize;
        wanted.clamp(*allowed.start(), *allowed.end())
    }

    /// Learns from one step.
    pub(crate) fn note(&mut self, proposed: usize, accepted: usize) {
        self.share += match proposed {
            0 => (1.0 - self.share) * FORGIVENESS,
            _ => (accepted as f32 / proposed as f32 - self.share) * NEWS,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proposals in each of 400 steps where `right` says whether the next guess comes true.
    fn run(allowed: RangeInclusive<usize>, mut right: impl FnMut() -> bool) -> Vec<usize> {
        let mut pace = Pace::new();
        let step = |_| {
            let proposed = pace.proposals(&allowed);
            let accepted = (0..proposed).take_while(|_| right()).count();
            pace.note(proposed, accepted);
            proposed
        };
        (0..400).map(step).collect()
    }

    fn mean(of: &[usize]) -> f64 {
        of.iter().sum::<usize>() as f64 / of.len() as f64
    }

    #[test]
    fn what_always_comes_true_is_proposed_in_full_and_what_never_does_hardly_ever() {
        assert!(run(0..=8, || true).iter().all(|&n| n == 8));
        let given_up = run(0..=8, || false);
        assert_eq!(given_up[0], 8);
        let later = mean(&given_up[40..]);
        assert!(later > 0.05 && later < 0.2, "{later} proposals a step");
        assert!(given_up[40..].iter().all(|&n| n <= 1));
        assert!(run(2..=8, || false)[40..].iter().all(|&n| n == 2));
    }

    #[test]
    fn trust_comes_back() {
        let mut guesses = 0;
        let recovered = run(0..=8, || {
            guesses += 1;
            guesses > 40
        });
        assert!(recovered.contains(&0));
        assert_eq!(recovered[399], 8);
    }

    #[test]
    fn the_share_that_comes_true_sets_the_length() {
        for (probability, lengths) in [(0.8, 3.5..5.5), (0.5, 1.7..3.0), (0.2, 0.5..1.5)] {
            let mut position = 0;
            let mean = mean(&run(0..=8, || {
                position += 1;
                crate::sampler::uniform(5, position) < probability
            }));
            assert!(lengths.contains(&mean), "{mean} proposals a step at {probability}");
        }
    }
}
