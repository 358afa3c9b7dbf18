//! Log-probabilities as they are reported: of the model's own distribution, that is the log-softmax of its logits before
//! any bias, penalty, temperature or cut-off (as vLLM's default `raw_logprobs`), so that they say what the model
//! believes and not what the sampler was told.
//!
//! A log-probability is the token's logit less [`log_sum_exp`](kanana_kernels::Kernels::log_sum_exp) of its row: the
//! same two numbers that a trainer subtracts.

use serde::{Deserialize, Serialize};

/// A token and its log-probability. Units: nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's id.
    pub token: u32,
    /// `ln p(token | everything before it)`.
    pub logprob: f32,
}

/// What the model believed at one position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// The token that stands there.
    pub chosen: TokenLogprob,
    /// The likeliest tokens, as many as were asked for, falling; ties: the lower id first.
    pub top: Vec<TokenLogprob>,
    /// The tokens of `logprob_token_ids`, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<TokenLogprob>,
}

impl Logprobs {
    /// Shapes: `logits [V]`, with its `log_sum_exp`. Cost: O(V) for any `top`, plus sorting that many.
    pub(crate) fn new(logits_v: &[f32], log_sum_exp: f32, chosen: u32, top: usize, asked: &[u32]) -> Self {
        let of = |token: u32| TokenLogprob { token, logprob: logits_v[token as usize] - log_sum_exp };
        Logprobs {
            chosen: of(chosen),
            top: likeliest(logits_v, top).into_iter().map(of).collect(),
            asked: asked.iter().copied().map(of).collect(),
        }
    }
}

/// The ids of the `n` largest of some finite logits, falling; ties: the lower id first.
fn likeliest(logits_v: &[f32], n: usize) -> Vec<u32> {
    if n == 0 {
        return Vec::new();
    }
    // Not total_cmp, for which 0.0 and -0.0 are no tie.
    let compare = |a: f32, b: f32| a.partial_cmp(&b).expect("logits are finite here: this is a bug");
    let falling = |&a: &u32, &b: &u32| compare(logits_v[b as usize], logits_v[a as usize]).then(a.cmp(&b));
    let mut ids: Vec<u32> = (0..logits_v.len() as u32).collect();
    if n < ids.len() {
        ids.select_nth_unstable_by(n, falling);
        ids.truncate(n);
    }
    ids.sort_unstable_by(falling);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(logits: &[f32], n: usize, expected: &[u32]) {
        assert_eq!(likeliest(logits, n), expected);
    }

    #[test]
    fn the_likeliest_come_in_order_and_ties_by_id() {
        let logits = [0.5, 3.0, -1.0, 3.0, 2.0];
        check(&logits, 0, &[]);
        check(&logits, 1, &[1]);
        check(&logits, 3, &[1, 3, 4]);
        check(&logits, 5, &[1, 3, 4, 0, 2]);
        check(&[-0.0, 0.0], 2, &[0, 1]);
    }

    #[test]
    fn probabilities_sum_to_one() {
        let logits = [0.5f32, 3.0, -1.0, 2.0];
        let log_sum_exp = logits.iter().map(|x| x.exp()).sum::<f32>().ln();
        let logprobs = Logprobs::new(&logits, log_sum_exp, 2, 4, &[]);
        let sum: f32 = logprobs.top.iter().map(|t| t.logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(logprobs.chosen, logprobs.top[3]);
    }
}
