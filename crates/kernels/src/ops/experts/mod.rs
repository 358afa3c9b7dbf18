//! The mixture of experts. Contract: [`crate::Kernels::experts`].

use kanana_tensor::{DType, Tensor};

use crate::ops::check;
use crate::{Kernels, Result, Routing, Weight};

/// One expert: a SwiGLU block.
#[derive(Clone, Debug)]
pub struct Expert {
    /// `[F, D]`.
    pub gate: Weight,
    /// `[F, D]`.
    pub up: Weight,
    /// `[D, F]`.
    pub down: Weight,
}

/// `x [T, D]` with `[T, A]` experts and weights: T, D and A.
pub(crate) fn check_experts(x: &Tensor, routing: &Routing) -> Result<[usize; 3]> {
    const OP: &str = "experts";
    let [tokens, width] = check::dims(OP, "x", x)?;
    let [_, top_k] = check::dims(OP, "routing", &routing.experts)?;
    check::shape(OP, "routing", &routing.experts, &[tokens, top_k])?;
    check::shape(OP, "routing weights", &routing.weights, &[tokens, top_k])?;
    Ok([tokens, width, top_k])
}

/// Groups tokens by expert and runs each chosen expert once over its tokens.
///
/// A token's sum runs over its experts by number, whoever else is in the batch.
pub(crate) fn by_expert<K: Kernels + ?Sized>(
    kernels: &K,
    x: &Tensor,
    routing: &Routing,
    experts: &[Expert],
) -> Result<Tensor> {
    let [tokens, _, top_k] = check_experts(x, routing)?;
    let (chosen, weights) = (kernels.download(&routing.experts)?, kernels.download(&routing.weights)?);
    let chosen = check::indices("experts", &chosen, experts.len())?;
    let weights = check::slice::<f32>("experts", &weights)?;
    let mut members: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); experts.len()];
    for (i, (&expert, &weight)) in chosen.iter().zip(weights).enumerate() {
        let (tokens, shares) = &mut members[expert as usize];
        tokens.push((i / top_k) as u32);
        shares.push(weight);
    }
    let mut sum = kernels.zeros(x.shape(), DType::F32)?;
    let chosen = experts.iter().zip(&members).filter(|(_, (tokens, _))| !tokens.is_empty());
    if tokens == 1 {
        // All experts of a single token read the same row: their projections are one call.
        let chosen: Vec<&Expert> = chosen.map(|(expert, _)| expert).collect();
        let projections: Vec<&Weight> = chosen.iter().flat_map(|expert| [&expert.gate, &expert.up]).collect();
        let projected = kernels.linears(x, &projections)?;
        let row = kernels.upload(&check::in_op("experts", Tensor::from_slice(&[1], &[0u32]))?)?;
        let shares = members.iter().flat_map(|(_, shares)| shares);
        for ((expert, pair), &share) in chosen.iter().zip(projected.chunks(2)).zip(shares) {
            let y = kernels.linear(&kernels.silu_mul(&pair[0], &pair[1])?, &expert.down)?;
            let share = kernels.upload(&check::in_op("experts", Tensor::from_slice(&[1], &[share]))?)?;
            sum = kernels.scatter_add_rows(sum, &y, &row, &share)?;
        }
        return Ok(sum);
    }
    for (expert, (tokens, shares)) in chosen {
        let tokens =
            kernels.upload(&check::in_op("experts", Tensor::from_slice(&[tokens.len()], tokens))?)?;
        let shares =
            kernels.upload(&check::in_op("experts", Tensor::from_slice(&[shares.len()], shares))?)?;
        let y = kernels.swiglu(&kernels.gather_rows(x, &tokens)?, &expert.gate, &expert.up, &expert.down)?;
        sum = kernels.scatter_add_rows(sum, &y, &tokens, &shares)?;
    }
    Ok(sum)
}
