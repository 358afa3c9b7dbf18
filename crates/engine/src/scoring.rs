//! How well a model predicts tokens that are given: log-likelihoods of a text, and how far two models' predictions are apart.
//!
//! Runs whole windows without a cache and holds the logits of a few positions at a time. It knows no text.
//! Tests: `cargo test -p kanana-engine scoring`.
//!
//! Legend: T tokens of a window, D hidden, R positions whose logits are held, V vocabulary.

use std::ops::Range;

use kanana_kernels::Kernels;
use kanana_model::{Batch, Transformer};
use kanana_tensor::Tensor;

use crate::{EngineError, Result};

/// Positions whose logits are held at once: 33 MB for each model of a vocabulary of 128,256.
const LOGIT_ROWS: usize = 64;

/// Cuts a text into windows that predict each of its tokens once: `prefix` and the first `length` tokens, then always
/// the last token before and the next `length`. Source: `get_rolling_token_windows` of lm-evaluation-harness 0.4.
///
/// Every window has one token more than it predicts.
pub fn rolling_windows(tokens: &[u32], prefix: u32, length: usize) -> Vec<Vec<u32>> {
    let before = |start: usize| if start == 0 { prefix } else { tokens[start - 1] };
    let starts = (0..tokens.len()).step_by(length.max(1));
    starts
        .map(|start| {
            let end = tokens.len().min(start + length.max(1));
            std::iter::once(before(start)).chain(tokens[start..end].iter().copied()).collect()
        })
        .collect()
}

/// The log-probability of every token of a window but the first, given those before it. Units: nats.
///
/// Errors: [`EngineError::NonFiniteScore`], and whatever the model refuses: an empty window, a token beyond the
/// vocabulary, more positions than the model was loaded for.
pub fn log_likelihoods(model: &Transformer, kernels: &dyn Kernels, window: &[u32]) -> Result<Vec<f32>> {
    let hidden = Hidden::of(model, kernels, window)?;
    let mut scores = Vec::with_capacity(window.len());
    for rows in hidden.parts() {
        let part = hidden.logits(rows.clone())?;
        for (row, (logits, log_sum_exp)) in rows.zip(part.rows()?) {
            let score = logits[window[row + 1] as usize] - log_sum_exp;
            if !score.is_finite() {
                return Err(EngineError::NonFiniteScore { position: row + 1 });
            }
            scores.push(score);
        }
    }
    Ok(scores)
}

/// What two models say of one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// `Σ p ln(p / q)` over the vocabulary, p of the first model. Units: nats.
    pub kl: f64,
    /// Both have the same likeliest token.
    pub same_top: bool,
    /// The log-probabilities that the models give to the token that follows. Units: nats.
    pub log_likelihoods: [f32; 2],
}

/// What a text's [`Divergence`]s come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceSummary {
    /// Units: nats.
    pub kl_mean: f64,
    /// 99.9 % of the positions are at most this far apart. Units: nats.
    pub kl_p99_9: f64,
    /// The share of positions with the same likeliest token.
    pub top1_agreement: f64,
    /// Of the two models: `exp` of the mean negative log-likelihood.
    pub perplexities: [f64; 2],
}

impl DivergenceSummary {
    /// Of at least one position.
    pub fn of(divergences: &[Divergence]) -> Self {
        let count = divergences.len() as f64;
        let mut kls: Vec<f64> = divergences.iter().map(|divergence| divergence.kl).collect();
        kls.sort_by(f64::total_cmp);
        let rank = ((count * 0.999).ceil() as usize).clamp(1, kls.len().max(1));
        let perplexity = |model: usize| perplexity(divergences.iter().map(|d| d.log_likelihoods[model]));
        DivergenceSummary {
            kl_mean: kls.iter().sum::<f64>() / count,
            kl_p99_9: kls.get(rank - 1).copied().unwrap_or(f64::NAN),
            top1_agreement: divergences.iter().filter(|divergence| divergence.same_top).count() as f64
                / count,
            perplexities: [perplexity(0), perplexity(1)],
        }
    }
}

/// `exp` of the mean negative log-likelihood.
pub fn perplexity(log_likelihoods: impl ExactSizeIterator<Item = f32>) -> f64 {
    let count = log_likelihoods.len() as f64;
    (-log_likelihoods.map(f64::from).sum::<f64>() / count).exp()
}

/// Compares two models of one vocabulary at every position of a window but the last.
///
/// Errors: as [`log_likelihoods`]; [`EngineError::Vocabularies`] when the models have different vocabularies.
/// Cost: 2·R·V exponentials on one thread.
pub fn divergences(
    models: [&Transformer; 2],
    kernels: &dyn Kernels,
    window: &[u32],
) -> Result<Vec<Divergence>> {
    let sizes = models.map(|model| model.config.vocab_size);
    if sizes[0] != sizes[1] {
        return Err(EngineError::Vocabularies { first: sizes[0], second: sizes[1] });
    }
    let [p, q] = models.map(|model| Hidden::of(model, kernels, window));
    let (p, q) = (p?, q?);
    let mut divergences = Vec::with_capacity(window.len());
    for rows in p.parts() {
        let (p_part, q_part) = (p.logits(rows.clone())?, q.logits(rows.clone())?);
        for (row, (p_row, q_row)) in rows.zip(p_part.rows()?.zip(q_part.rows()?)) {
            let divergence = divergence(p_row, q_row, window[row + 1] as usize);
            if !divergence.kl.is_finite() {
                return Err(EngineError::NonFiniteScore { position: row + 1 });
            }
            divergences.push(divergence);
        }
    }
    Ok(divergences)
}

/// Logits of one position and their log-sum-exp.
type Row<'a> = (&'a [f32], f32);

fn divergence((p, p_sum): Row<'_>, (q, q_sum): Row<'_>, next: usize) -> Divergence {
    let kl = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p - p_sum), f64::from(q - q_sum));
        p.exp() * (p - q)
    });
    Divergence {
        kl: kl.sum(),
        same_top: top(p) == top(q),
        log_likelihoods: [p[next] - p_sum, q[next] - q_sum],
    }
}

/// The first of the largest.
fn top(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// The hidden states of a window.
struct Hidden<'a> {
    model: &'a Transformer,
    kernels: &'a dyn Kernels,
    states_td: Tensor,
}

impl<'a> Hidden<'a> {
    fn of(model: &'a Transformer, kernels: &'a dyn Kernels, window: &[u32]) -> Result<Self> {
        let states_td = model.forward(kernels, &Batch::packed(&[window], true), None)?;
        Ok(Hidden { model, kernels, states_td })
    }

    /// The positions that something follows, a few at a time.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let positions = self.states_td.rows().saturating_sub(1);
        (0..positions).step_by(LOGIT_ROWS).map(move |first| first..positions.min(first + LOGIT_ROWS))
    }

    fn logits(&self, rows: Range<usize>) -> Result<Part> {
        let logits_rv = self.model.logits(self.kernels, &self.states_td.slice_rows(rows)?)?;
        let log_sum_exp_r = self.kernels.download(&self.kernels.log_sum_exp(&logits_rv)?)?.to_f32_vec()?;
        Ok(Part { logits_rv: self.kernels.download(&logits_rv)?, log_sum_exp_r })
    }
}

/// The logits of some positions in host memory.
struct Part {
    logits_rv: Tensor,
    log_sum_exp_r: Vec<f32>,
}

impl Part {
    fn rows(&self) -> Result<impl Iterator<Item = Row<'_>>> {
        let logits = self.logits_rv.as_slice::<f32>()?.chunks_exact(self.logits_rv.row_len());
        Ok(logits.zip(self.log_sum_exp_r.iter().copied()))
    }
}

#[cfg(test)]
mod tests {
    use kanana_kernels::{Cpu, Format};
    use kanana_model::{LoadOptions, preset};

    use super::*;

    fn model(kernels: &Cpu, format: Format, seed: u64) -> Transformer {
        let options = LoadOptions { format, max_positions: 300 };
        Transformer::random(&preset("tiny").unwrap().config, kernels, &options, seed).unwrap()
    }

    fn window(model: &Transformer, length: u32) -> Vec<u32> {
        (0..length).map(|i| i * 7919 % model.config.vocab_size as u32).collect()
    }

    #[test]
    fn windows_predict_every_token_once() {
        assert_eq!(rolling_windows(&[1, 2, 3, 4, 5], 9, 2), [vec![9, 1, 2], vec![2, 3, 4], vec![4, 5]]);
        assert_eq!(rolling_windows(&[1, 2], 9, 5), [vec![9, 1, 2]]);
        assert!(rolling_windows(&[], 9, 5).is_empty());
    }

    #[test]
    fn probabilities_of_all_tokens_sum_to_one() {
        let kernels = Cpu::default();
        let model = model(&kernels, Format::F32, 1);
        let total: f64 = (0..model.config.vocab_size as u32)
            .map(|next| f64::from(log_likelihoods(&model, &kernels, &[3, 1, next]).unwrap()[1]).exp())
            .sum();
        assert!((total - 1.0).abs() < 1e-4, "{total}");
    }

    #[test]
    fn a_model_agrees_with_itself_and_less_with_fewer_bits() {
        let kernels = Cpu::default();
        let exact = model(&kernels, Format::F32, 1);
        let window = window(&exact, 200); // several parts
        let mean = |other: &Transformer| {
            let divergences = divergences([&exact, other], &kernels, &window).unwrap();
            assert_eq!(divergences.len(), 199);
            let scores = log_likelihoods(other, &kernels, &window).unwrap();
            assert!(divergences.iter().zip(scores).all(|(d, score)| d.log_likelihoods[1] == score));
            divergences.iter().map(|d| d.kl).sum::<f64>() / 199.0
        };
        let [same, q8, q4, stranger] = [(Format::F32, 1), (Format::Q8, 1), (Format::Q4, 1), (Format::F32, 2)]
            .map(|(format, seed)| mean(&model(&kernels, format, seed)));
        assert_eq!(same, 0.0);
        assert!(0.0 < q8 && q8 < q4 && q4 < stranger, "{q8} {q4} {stranger}");
    }

    #[test]
    fn summaries() {
        let of = |kl: f64, same_top| Divergence { kl, same_top, log_likelihoods: [-1.0, -2.0] };
        let mut divergences: Vec<Divergence> = (0..1999).map(|i| of(i as f64, i % 4 == 0)).collect();
        divergences.push(of(1e9, true));
        let summary = DivergenceSummary::of(&divergences);
        assert_eq!((summary.kl_p99_9, summary.top1_agreement), (1997.0, 501.0 / 2000.0));
        assert!((summary.perplexities[1] - 2f64.exp()).abs() < 1e-9);
        assert!((summary.kl_mean - (1998.0 * 1999.0 / 2.0 + 1e9) / 2000.0).abs() < 1e-3);
    }

    #[test]
    fn other_vocabularies_are_refused() {
        let kernels = Cpu::default();
        let tiny = model(&kernels, Format::F32, 1);
        let mut config = tiny.config.clone();
        config.vocab_size += 1;
        let options = LoadOptions { format: Format::F32, max_positions: 300 };
        let other = Transformer::random(&config, &kernels, &options, 1).unwrap();
        let error = divergences([&tiny, &other], &kernels, &[1, 2]).unwrap_err();
        assert!(matches!(error, EngineError::Vocabularies { .. }), "{error}");
    }
}
