//! How many tokens of new prompts a step may take while answers run: as many as this machine computes in the time that a
//! reader may wait.

use std::time::Duration;

/// Fewer would read all weights for too little.
const LEAST: usize = 16;
/// More is no faster.
const MOST: usize = 512;
/// How much of the estimate the newest step is.
const WEIGHT: f64 = 0.25;

/// Learns from every step how fast tokens are computed.
#[derive(Debug)]
pub struct Pace {
    /// How long a step may take.
    pause: Duration,
    /// Tokens in a second; 0 before the first step of some size.
    rate: f64,
}

impl Pace {
    /// Nothing is known yet.
    pub fn new(pause: Duration) -> Self {
        Pace { pause, rate: 0.0 }
    }

    /// Takes note of a step. Small ones say nothing: their time is that of reading the weights.
    pub fn note(&mut self, tokens: u64, took: Duration) {
        if tokens < LEAST as u64 || took.is_zero() {
            return;
        }
        let newest = tokens as f64 / took.as_secs_f64();
        self.rate = if self.rate == 0.0 { newest } else { (1.0 - WEIGHT) * self.rate + WEIGHT * newest };
    }

    /// Prompt tokens for the next step beside running answers.
    pub fn prefill(&self) -> usize {
        match self.rate {
            0.0 => 4 * LEAST,
            rate => ((rate * self.pause.as_secs_f64()) as usize).clamp(LEAST, MOST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(steps: &[(u64, u64)], expected: usize) {
        let mut pace = Pace::new(Duration::from_millis(200));
        steps.iter().for_each(|&(tokens, millis)| pace.note(tokens, Duration::from_millis(millis)));
        assert_eq!(pace.prefill(), expected, "{steps:?}");
    }

    #[test]
    fn as_many_as_fit_the_pause() {
        check(&[], 64);
        check(&[(1, 70), (8, 400)], 64);
        check(&[(100, 100)], 200);
        check(&[(128, 4000)], 16);
        check(&[(512, 50)], 512);
        check(&[(100, 100), (100, 50)], 250);
    }
}
