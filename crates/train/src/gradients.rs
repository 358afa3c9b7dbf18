//! Sums of gradients, by the parameter or activation they belong to.

use std::collections::{HashMap, HashSet};

use kanana_kernels::{Format, Kernels, Result, Weight};
use kanana_tensor::{DType, Identity, Tensor};

/// Gradients in f32, each of the shape of what it belongs to.
#[derive(Debug, Default)]
pub struct Gradients(HashMap<Identity, Tensor>);

impl Gradients {
    /// Adds a gradient to what is there.
    pub fn add(&mut self, kernels: &dyn Kernels, of: Identity, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(&of) {
            Some(sum) => kernels.add(&sum.reshape(gradient.shape())?, &gradient)?,
            None => gradient,
        };
        self.0.insert(of, sum);
        Ok(())
    }

    /// Adds to the gradient of a weight, when it is one of those that are learnt, what a product `x · wᵀ` gives it.
    pub(crate) fn add_product(
        &mut self,
        kernels: &dyn Kernels,
        w: &Weight,
        x: &Tensor,
        dy: &Tensor,
        learnt: &HashSet<Identity>,
    ) -> Result<()> {
        if !learnt.contains(&w.identity()) {
            return Ok(());
        }
        let base = self.take_or_zeros(kernels, w.identity(), &[w.out_features(), w.in_features()])?;
        // The products of gradients are rounded as those of the forward pass.
        let format = if w.format() == Format::F32 { Format::F32 } else { Format::BF16 };
        let sum = kernels.linear_backward_weight(base, dy, x, format)?;
        self.0.insert(w.identity(), sum);
        Ok(())
    }

    /// What is there, for an op that adds to it and puts it back: zeros at first.
    pub(crate) fn take_or_zeros(
        &mut self,
        kernels: &dyn Kernels,
        of: Identity,
        shape: &[usize],
    ) -> Result<Tensor> {
        match self.0.remove(&of) {
            Some(sum) => Ok(sum),
            None => kernels.zeros(shape, DType::F32),
        }
    }

    pub(crate) fn put(&mut self, of: Identity, gradient: Tensor) {
        self.0.insert(of, gradient);
    }

    /// Takes one out; none where nothing depended on it.
    pub fn take(&mut self, of: Identity) -> Option<Tensor> {
        self.0.remove(&of)
    }

    /// One of them.
    pub fn get(&self, of: Identity) -> Option<&Tensor> {
        self.0.get(&of)
    }
}
