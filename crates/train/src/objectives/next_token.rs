//! Cross-entropy of the next token.

use std::ops::Range;

use kanana_kernels::{CrossEntropy, Kernels};
use kanana_tensor::Tensor;

use super::Objective;
use crate::Result;

/// The loss of language modelling: of pre-training, and of fine-tuning on the targets that are not masked.
#[derive(Debug)]
pub struct NextToken {
    rows: Vec<u32>,
    targets: Vec<u32>,
    options: CrossEntropy,
    /// The sum of the losses seen so far. Units: nats.
    pub loss: f64,
}

impl NextToken {
    /// `targets [T]`: the token that follows each, or [`CrossEntropy::IGNORED`].
    pub fn new(targets: &[u32], options: CrossEntropy) -> Self {
        let rows = (0..).zip(targets).filter(|(_, target)| **target != CrossEntropy::IGNORED);
        let (rows, targets) = rows.map(|(row, &target)| (row, target)).unzip();
        NextToken { rows, targets, options, loss: 0.0 }
    }
}

impl Objective for NextToken {
    fn rows(&self) -> &[u32] {
        &self.rows
    }

    fn chunk(&mut self, kernels: &dyn Kernels, logits: Tensor, rows: Range<usize>) -> Result<Tensor> {
        let targets = kernels.upload(&Tensor::from_slice(&[rows.len()], &self.targets[rows])?)?;
        let (losses, gradient) = kernels.cross_entropy(logits, &targets, self.options)?;
        self.loss += kernels.download(&losses)?.as_slice::<f32>()?.iter().map(|&x| f64::from(x)).sum::<f64>();
        Ok(gradient)
    }
}
