//! A projection: a weight and, in some families, a bias.

use kanana_kernels::{Kernels, Weight};
use kanana_tensor::Tensor;

use crate::Result;

/// `x · wᵀ + b`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,       // [out, in]
    pub(crate) bias: Option<Tensor>, // [out] f32
}

impl Linear {
    /// Shapes: `x [T, in]` → `[T, out]`.
    pub(crate) fn forward(&self, kernels: &dyn Kernels, x: &Tensor) -> Result<Tensor> {
        self.add_bias(kernels, kernels.linear(x, &self.weight)?)
    }

    /// Several projections of the same input. Shapes: `x [T, in]` → `[T, out_i]` each.
    pub(crate) fn forward_all<const N: usize>(
        kernels: &dyn Kernels,
        x: &Tensor,
        projections: [&Linear; N],
    ) -> Result<[Tensor; N]> {
        let products = kernels.linears(x, &projections.map(|projection| &projection.weight))?;
        let biased =
            products.into_iter().zip(projections).map(|(y, projection)| projection.add_bias(kernels, y));
        let biased: Vec<Tensor> = biased.collect::<Result<_>>()?;
        Ok(biased.try_into().expect("one product for each projection: this is a bug"))
    }

    fn add_bias(&self, kernels: &dyn Kernels, y: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => Ok(kernels.add_bias(&y, bias)?),
            None => Ok(y),
        }
    }
}
