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
    /// `[T, A] u32`, by falling score.
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
pub(crate) fn route_token(logits: &[f32], options: RouterOptions, experts: &mut [u32], weights: &mut [f32]) {
    let scores: Vec<f32> = match options.gate {
        Gate::Softmax => {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f32> = logits.iter().map(|x| (x - largest).exp()).collect();
            let sum: f32 = exps.iter().sum();
            exps.into_iter().map(|e| e / sum).collect()
        }
        Gate::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
    };
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
    experts.copy_from_slice(&order[..options.top_k]);
    let chosen: f32 = experts.iter().map(|&e| scores[e as usize]).sum();
    let scale = if options.renormalise { options.scale / chosen } else { options.scale };
    experts.iter().zip(weights).for_each(|(&e, weight)| *weight = scores[e as usize] * scale);
}

/// [`crate::Kernels::route`] in host memory.
pub(crate) fn route(logits: &Tensor, options: RouterOptions) -> Result<Routing> {
    let [tokens, count] = check_route(logits, options)?;
    let logits = check::slice::<f32>("route", logits)?;
    let (mut experts, mut weights) = (vec![0; tokens * options.top_k], vec![0.0; tokens * options.top_k]);
    for t in 0..tokens {
        let chosen = t * options.top_k..(t + 1) * options.top_k;
        route_token(
            &logits[t * count..][..count],
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
