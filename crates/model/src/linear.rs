//! A projection: a weight, in some families a bias, and an update of low rank while it is adapted.

use kanana_kernels::{Kernels, Weight};
use kanana_tensor::Tensor;

use crate::Result;

/// `scale · b · a`, added to a frozen matrix. Source: Hu et al. 2021, arXiv 2106.09685.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[r, in]`.
    pub a: Weight,
    /// `[out, r]`.
    pub b: Weight,
    /// Alpha over r, or over its root.
    pub scale: f32,
}

/// `x · wᵀ + b`, and what is added to w.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,       // [out, in]
    pub(crate) bias: Option<Tensor>, // [out] f32
    pub(crate) low_rank: Option<LowRank>,
}

impl Linear {
    /// Shapes: `x [T, in]` → `[T, out]`.
    pub(crate) fn forward(&self, kernels: &dyn Kernels, x: &Tensor) -> Result<Tensor> {
        self.complete(kernels, x, kernels.linear(x, &self.weight)?)
    }

    /// Several projections of the same input. Shapes: `x [T, in]` → `[T, out_i]` each.
    pub(crate) fn forward_all<const N: usize>(
        kernels: &dyn Kernels,
        x: &Tensor,
        projections: [&Linear; N],
    ) -> Result<[Tensor; N]> {
        let products = kernels.linears(x, &projections.map(|projection| &projection.weight))?;
        let complete =
            products.into_iter().zip(projections).map(|(y, projection)| projection.complete(kernels, x, y));
        let complete: Vec<Tensor> = complete.collect::<Result<_>>()?;
        Ok(complete.try_into().expect("one product for each projection: this is a bug"))
    }

    /// What follows the product `y` of `x`.
    fn complete(&self, kernels: &dyn Kernels, x: &Tensor, mut y: Tensor) -> Result<Tensor> {
        if let Some(LowRank { a, b, scale }) = &self.low_rank {
            y = kernels.low_rank(&y, x, a, b, *scale)?;
        }
        match &self.bias {
            Some(bias) => Ok(kernels.add_bias(&y, bias)?),
            None => Ok(y),
        }
    }
}
