//! From the logits of one row to one token, in the order of transformers' `generate`:
//!
//! | | field | what it does to the scores |
//! |---|---|---|
//! | 0 | a grammar | removes the tokens that it does not allow: nothing below brings them back |
//! | 1 | `logit_bias` | adds to those of some tokens |
//! | 2 | `repetition_penalty` | divides positive, multiplies negative ones of tokens in the prompt or generated |
//! | 3 | `presence_penalty`, `frequency_penalty` | `score -= presence·(count > 0) + frequency·count`, over generated tokens only |
//! | 4 | `min_tokens` | removes the tokens that would end the sequence, until enough are generated |
//! | 5 | `temperature` | divides all; at 0 the largest is taken here (ties: the lower id) and the rest is skipped |
//! | 6 | `top_k` | removes those below the k-th largest, so that ties with it stay |
//! | 7 | `top_p` | removes the tail: a token stays if those likelier than it sum to less than `top_p` |
//! | 8 | `min_p` | removes those less likely than `min_p` times the likeliest |
//!
//! The next token is then drawn from the softmax of what is left. Step 3 is OpenAI's formula, which transformers does
//! not have. At the edge of `top_p` the lower of two equally likely ids stays, where transformers leaves it to the sort.
//! Everything is f64, so that no temperature overflows.
//!
//! The random number is a function of the sequence's seed and the position alone: no neighbour, chunk or preemption
//! changes what is drawn. Source of the order: transformers 5.23, `GenerationMixin._get_logits_processor`; checked
//! against it by `tests/goldens/make.py`. Tests: `cargo test -p kanana-engine sampler`.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::constraint::Allowed;
use crate::{SamplingParams, SequenceError};

/// What a removed token scores.
const REMOVED: f64 = f64::NEG_INFINITY;

/// What has been said so far, as far as the sampler cares.
pub(crate) struct History<'a> {
    /// Every token of the prompt and generated → how often it was generated.
    pub generated_counts: &'a HashMap<u32, usize>,
    /// Tokens that count as generated after those.
    pub proposed: &'a [u32],
    /// Tokens that must not come now.
    pub forbidden: &'a [u32],
    /// The only ones that a grammar allows.
    pub allowed: Option<&'a Allowed>,
}

/// Chooses the next token. Shapes: `logits_v [V]`, finite; `uniform` in `[0, 1)`. Cost: O(V), and V log V at worst
/// for a `top_p` that keeps nearly all.
pub(crate) fn sample(
    logits_v: &[f32],
    params: &SamplingParams,
    history: &History<'_>,
    uniform: f64,
) -> Result<u32, SequenceError> {
    let scores_v = process(logits_v, params, history);
    let likeliest = argmax(&scores_v).ok_or(SequenceError::NothingToChoose)?;
    match params.temperature {
        0.0 => Ok(likeliest as u32),
        _ => Ok(draw(&scores_v, scores_v[likeliest], uniform)),
    }
}

/// A number in `[0, 1)` that depends on nothing but the seed and the position.
///
/// Source: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), whose n-th output
/// is a hash of the state plus n steps; the seed is hashed first, so that neighbouring seeds share nothing.
pub(crate) fn uniform(seed: u64, position: usize) -> f64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let state = mix(seed.wrapping_add(STEP));
    let bits = mix(state.wrapping_add(STEP.wrapping_mul((position as u64).wrapping_add(1))));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The scores after all steps: [`REMOVED`] for the tokens that cannot come.
fn process(logits_v: &[f32], params: &SamplingParams, history: &History<'_>) -> Vec<f64> {
    let mut scores_v: Vec<f64> = logits_v.iter().map(|&x| x.into()).collect();
    if let Some(allowed) = history.allowed {
        let unwanted = scores_v.iter_mut().enumerate().filter(|(id, _)| !allowed.contains(*id));
        unwanted.for_each(|(_, score)| *score = REMOVED);
    }
    for (&token, &bias) in &params.logit_bias {
        scores_v[token as usize] += f64::from(bias);
    }
    penalise(&mut scores_v, params, history);
    for &token in history.forbidden {
        scores_v[token as usize] = REMOVED;
    }
    if params.temperature == 0.0 {
        return scores_v;
    }
    scores_v.iter_mut().for_each(|score| *score /= f64::from(params.temperature));
    keep_top_k(&mut scores_v, params.top_k);
    keep_top_p(&mut scores_v, params.top_p.into());
    keep_min_p(&mut scores_v, params.min_p.into());
    scores_v
}

fn penalise(scores_v: &mut [f64], params: &SamplingParams, history: &History<'_>) {
    let repetition = f64::from(params.repetition_penalty);
    let (presence, frequency) = (f64::from(params.presence_penalty), f64::from(params.frequency_penalty));
    if (repetition, presence, frequency) == (1.0, 0.0, 0.0) {
        return;
    }
    let mut generated_counts = Cow::Borrowed(history.generated_counts);
    for &token in history.proposed {
        *generated_counts.to_mut().entry(token).or_insert(0) += 1;
    }
    for (&token, &count) in &*generated_counts {
        let score = &mut scores_v[token as usize];
        *score = if *score < 0.0 { *score * repetition } else { *score / repetition };
        if count > 0 {
            *score -= presence + frequency * count as f64;
        }
    }
}

fn keep_top_k(scores_v: &mut [f64], k: usize) {
    if k == 0 || k >= scores_v.len() {
        return;
    }
    let mut sorted = scores_v.to_vec();
    let (_, &mut kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    remove(scores_v, |score| score < kth);
}

fn keep_top_p(scores_v: &mut [f64], p: f64) {
    if p >= 1.0 {
        return;
    }
    let Some(best) = argmax(scores_v) else { return };
    let max = scores_v[best];
    let total: f64 = scores_v.iter().map(|score| (score - max).exp()).sum();
    // A heap finds the few likeliest without sorting the vocabulary.
    let mut by_score: BinaryHeap<Scored> = scores_v
        .iter()
        .enumerate()
        .filter(|&(_, &score)| score > REMOVED)
        .map(|(id, &score)| Scored { score, id })
        .collect();
    let mut kept = Vec::new();
    let mut likelier = 0.0;
    while let Some(next) = by_score.pop() {
        if !kept.is_empty() && likelier >= p * total {
            break;
        }
        likelier += (next.score - max).exp();
        kept.push(next);
    }
    scores_v.fill(REMOVED);
    kept.iter().for_each(|scored| scores_v[scored.id] = scored.score);
}

fn keep_min_p(scores_v: &mut [f64], p: f64) {
    if p == 0.0 {
        return;
    }
    if let Some(best) = argmax(scores_v) {
        let least = scores_v[best] + p.ln();
        remove(scores_v, |score| score < least);
    }
}

fn remove(scores_v: &mut [f64], unwanted: impl Fn(f64) -> bool) {
    scores_v.iter_mut().filter(|score| unwanted(**score)).for_each(|score| *score = REMOVED);
}

/// The largest score that is not removed; ties: the lower id.
fn argmax(scores_v: &[f64]) -> Option<usize> {
    let mut best = None;
    let mut max = REMOVED;
    for (id, &score) in scores_v.iter().enumerate() {
        if score > max {
            (best, max) = (Some(id), score);
        }
    }
    best
}

/// Inverse of the cumulative distribution, over the ids in order.
fn draw(scores_v: &[f64], max: f64, uniform: f64) -> u32 {
    let weights_v: Vec<f64> = scores_v.iter().map(|score| (score - max).exp()).collect();
    let target = uniform * weights_v.iter().sum::<f64>();
    let mut cumulative = 0.0;
    let mut drawn = 0;
    for (id, &weight) in weights_v.iter().enumerate() {
        // A weight of 0 never lifts the sum over the target; the last other one is taken if rounding leaves a gap.
        if weight > 0.0 {
            cumulative += weight;
            drawn = id;
            if cumulative > target {
                break;
            }
        }
    }
    drawn as u32
}

/// A token in a heap that gives the likeliest first; ties: the lower id.
struct Scored {
    score: f64,
    id: usize,
}

impl Ord for Scored {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scored {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scored {}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
