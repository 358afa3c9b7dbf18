//! Sums of gradients, by the parameter or activation they belong to.

use std::collections::{HashMap, HashSet};

use kanana_kernels::{Format, Kernels, Result, Weight};
use kanana_tensor::{DType, Identity, Tensor};

/// Gradients in f32, each of the shape of what it belongs to; and in place of one, of every bias of a router the load of
/// its experts.
#[derive(Debug, Default)]
pub struct Gradients {
    sums: HashMap<Identity, Tensor>,
    loads: HashMap<Identity, Vec<u64>>,
}

impl Gradients {
    /// Adds a gradient to what is there.
    pub fn add(&mut self, kernels: &dyn Kernels, of: Identity, gradient: Tensor) -> Result<()> {
        let sum = match self.sums.remove(&of) {
            Some(sum) => kernels.add(&sum.reshape(gradient.shape())?, &gradient)?,
            None => gradient,
        };
        self.sums.insert(of, sum);
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
        self.sums.insert(w.identity(), sum);
        Ok(())
    }

    /// What is there, for an op that adds to it and puts it back: zeros at first.
    pub(crate) fn take_or_zeros(
        &mut self,
        kernels: &dyn Kernels,
        of: Identity,
        shape: &[usize],
    ) -> Result<Tensor> {
        match self.sums.remove(&of) {
            Some(sum) => Ok(sum),
            None => kernels.zeros(shape, DType::F32),
        }
    }

    pub(crate) fn put(&mut self, of: Identity, gradient: Tensor) {
        self.sums.insert(of, gradient);
    }

    /// Takes one out; none where nothing depended on it.
    pub fn take(&mut self, of: Identity) -> Option<Tensor> {
        self.sums.remove(&of)
    }

    /// Adds the choices of a router to the loads of the `count` experts that its bias is of.
    pub(crate) fn count(&mut self, bias: Identity, experts: &[u32], count: usize) {
        let loads = self.loads.entry(bias).or_insert_with(|| vec![0; count]);
        experts.iter().for_each(|&expert| loads[expert as usize] += 1);
    }

    /// Takes out how often each expert was chosen by the router of this bias.
    pub fn take_loads(&mut self, bias: Identity) -> Option<Vec<u64>> {
        self.loads.remove(&bias)
    }

    /// One of them.
    pub fn get(&self, of: Identity) -> Option<&Tensor> {
        self.sums.get(&of)
    }
}
