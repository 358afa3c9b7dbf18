//! The router of a mixture of experts. Contract: [`crate::Kernels::route`].

use kanana_tensor::Tensor;

use crate::Result;
use crate::ops::check;

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Softmax over all experts.
    Softmax,
    /// A sigmoid for each expert.
    Sigmoid,
}

/// How a token's experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterOptions {
    /// How logits become scores.
    pub gate: Gate,
    /// Experts per token, A.
    pub top_k: usize,
    /// Divide the chosen scores by their sum.
    pub renormalise: bool,
    /// Multiplies the weights at the end.
    pub scale: f32,
}

/// The experts of every token.
#[derive(Clone, Debug)]
pub struct Routing {
    /// `[T, A] u32`, by falling score, with its bias.
    pub experts: Tensor,
    /// `[T, A] f32`.
    pub weights: Tensor,
}

/// `[T, X]` with at most X choices: T and X.
pub(crate) fn check_route(logits: &Tensor, options: RouterOptions) -> Result<[usize; 2]> {
    let dims @ [_, experts] = check::dims("route", "logits", logits)?;
    match (1..=experts).contains(&options.top_k) {
        true => Ok(dims),
        false => {
            Err(check::shape_error("route", "logits", logits, format!("[T, X ≥ {} ≥ 1]", options.top_k)))
        }
    }
}

/// Softmax or sigmoid, top-k, weights: for one token, into its two rows of the result.
///
/// One body serves every implementation in host memory: the work is a few numbers per token.
/// `bias`: of every expert, or empty.
pub(crate) fn route_token(
    logits: &[f32],
    bias: &[f32],
    options: RouterOptions,
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let scores = scores(logits, options.gate);
    let mut ranks = scores.clone();
    ranks.iter_mut().zip(bias).for_each(|(rank, bias)| *rank += bias);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| ranks[b as usize].total_cmp(&ranks[a as usize]).then(a.cmp(&b)));
    experts.copy_from_slice(&order[..options.top_k]);
    let chosen: f32 = experts.iter().map(|&e| scores[e as usize]).sum();
    let scale = if options.renormalise { options.scale / chosen } else { options.scale };
    experts.iter().zip(weights).for_each(|(&e, weight)| *weight = scores[e as usize] * scale);
}

/// [`crate::Kernels::route`] in host memory.
pub(crate) fn route(logits: &Tensor, bias: Option<&Tensor>, options: RouterOptions) -> Result<Routing> {
    let [tokens, count] = check_route(logits, options)?;
    let logits = check::slice::<f32>("route", logits)?;
    let bias = match bias {
        Some(bias) => {
            check::shape("route", "bias", bias, &[count])?;
            check::slice::<f32>("route", bias)?
        }
        None => &[],
    };
    let (mut experts, mut weights) = (vec![0; tokens * options.top_k], vec![0.0; tokens * options.top_k]);
    for t in 0..tokens {
        let chosen = t * options.top_k..(t + 1) * options.top_k;
        route_token(
            &logits[t * count..][..count],
            bias,
            options,
            &mut experts[chosen.clone()],
            &mut weights[chosen],
        );
    }
    let shape = [tokens, options.top_k];
    Ok(Routing {
        experts: check::in_op("route", Tensor::from_slice(&shape, &experts))?,
        weights: check::in_op("route", Tensor::from_slice(&shape, &weights))?,
    })
}

/// Losses that keep experts in use; they have gradients only. Of T tokens with scores p (of [`Gate::Sigmoid`]: divided by
/// their sum) over X experts, f the share of choices that each expert got and P its mean score.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RouterLosses {
    /// The factor of `X Σ f·P`. Source: Fedus et al. 2021, arXiv 2101.03961, section 2.2; no gradient through f.
    pub load_balance: f32,
    /// The factor of the mean of `lse²`. Source: Zoph et al. 2022, arXiv 2202.08906, section 3.1.
    pub z_loss: f32,
}

/// The scores that [`route_token`] ranks, a bias apart.
fn scores(logits: &[f32], gate: Gate) -> Vec<f32> {
    match gate {
        Gate::Softmax => {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f32> = logits.iter().map(|x| (x - largest).exp()).collect();
            let sum: f32 = exps.iter().sum();
            exps.into_iter().map(|e| e / sum).collect()
        }
        Gate::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
    }
}

/// [`crate::Kernels::route_backward`] in host memory.
pub(crate) fn route_backward(
    logits: &Tensor,
    routing: &Routing,
    options: RouterOptions,
    dweights: &Tensor,
    losses: RouterLosses,
) -> Result<Tensor> {
    const OP: &str = "route_backward";
    let [tokens, count] = check_route(logits, options)?;
    let top_k = options.top_k;
    check::shape(OP, "experts", &routing.experts, &[tokens, top_k])?;
    check::shape(OP, "dweights", dweights, &[tokens, top_k])?;
    let chosen = check::indices(OP, &routing.experts, count)?;
    let (logits, dweights) = (check::slice::<f32>(OP, logits)?, check::slice::<f32>(OP, dweights)?);
    let mut loads = vec![0f32; count];
    chosen.iter().for_each(|&expert| loads[expert as usize] += 1.0);
    // d loss / d P, of which every token's score is one T-th.
    let pull: Vec<f32> = loads
        .iter()
        .map(|load| losses.load_balance * count as f32 * load / (tokens * top_k) as f32 / tokens as f32)
        .collect();
    let mut gradient = vec![0.0; logits.len()];
    for t in 0..tokens {
        let (logits, out) = (&logits[t * count..][..count], &mut gradient[t * count..][..count]);
        let (chosen, dweights) = (&chosen[t * top_k..][..top_k], &dweights[t * top_k..][..top_k]);
        let p = scores(logits, options.gate);
        let mut dp = vec![0.0; count];
        let sum: f32 = chosen.iter().map(|&e| p[e as usize]).sum();
        let mean: f32 = chosen.iter().zip(dweights).map(|(&e, d)| d * p[e as usize]).sum::<f32>() / sum;
        for (&e, &d) in chosen.iter().zip(dweights) {
            dp[e as usize] = options.scale * if options.renormalise { (d - mean) / sum } else { d };
        }
        let total: f32 = p.iter().sum();
        let pulled: f32 = p.iter().zip(&pull).map(|(p, pull)| p * pull).sum::<f32>() / total;
        dp.iter_mut().zip(&pull).for_each(|(dp, pull)| *dp += (pull - pulled) / total);
        let weighted: f32 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
        for e in 0..count {
            out[e] = match options.gate {
                Gate::Softmax => p[e] * (dp[e] - weighted),
                Gate::Sigmoid => p[e] * (1.0 - p[e]) * dp[e],
            };
        }
        if losses.z_loss != 0.0 {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let lse = largest + logits.iter().map(|x| (x - largest).exp()).sum::<f32>().ln();
            let factor = 2.0 * losses.z_loss / tokens as f32 * lse;
            out.iter_mut().zip(logits).for_each(|(out, x)| *out += factor * (x - lse).exp());
        }
    }
    check::in_op(OP, Tensor::from_slice(&[tokens, count], &gradient))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_bias_changes_who_is_chosen_and_no_weight() {
        // Scores of 0.5, 0.25, 0.25 under both gates.
        let softmax = [2f32.ln(), 0.0, 0.0];
        let sigmoid = [0.0, (1f32 / 3.0).ln(), (1f32 / 3.0).ln()];
        let check = |bias: Option<[f32; 3]>, experts: [u32; 2], weights: [f32; 2]| {
            for (gate, logits) in [(Gate::Softmax, softmax), (Gate::Sigmoid, sigmoid)] {
                let options = RouterOptions { gate, top_k: 2, renormalise: false, scale: 2.0 };
                let bias = bias.map(|bias| Tensor::from_slice(&[3], &bias).unwrap());
                let logits = Tensor::from_slice(&[1, 3], &logits).unwrap();
                let routing = route(&logits, bias.as_ref(), options).unwrap();
                assert_eq!(routing.experts.as_slice::<u32>().unwrap(), experts, "{gate:?} {bias:?}");
                for (got, expected) in routing.weights.as_slice::<f32>().unwrap().iter().zip(weights) {
                    assert!((got - expected).abs() < 1e-6, "{gate:?} {bias:?}: {got}, expected {expected}");
                }
            }
        };
        check(None, [0, 1], [1.0, 0.5]);
        check(Some([0.0; 3]), [0, 1], [1.0, 0.5]);
        check(Some([0.0, 0.0, 0.125]), [0, 2], [1.0, 0.5]);
        check(Some([-0.5, 0.0, 0.125]), [2, 1], [0.5, 0.5]);
        check(Some([-0.125, 0.0, 0.25]), [2, 0], [0.5, 1.0]);
    }
}
