//! One batch forward and backward, block by block.

use std::collections::HashSet;

use kanana_kernels::{Kernels, RouterLosses};
use kanana_model::{Batch, Step, Transformer};
use kanana_tensor::{DType, Identity, Tensor};

use crate::{Gradients, Objective, Result, Tape};

/// How a batch is run.
pub struct Pass<'a> {
    /// What computes.
    pub kernels: &'a dyn Kernels,
    /// The model.
    pub model: &'a Transformer,
    /// What is learnt: identities of its parameters.
    pub parameters: &'a HashSet<Identity>,
    /// Keep only what goes from block to block, and compute a block again before its gradients. Same bits.
    pub checkpointing: bool,
    /// Rows of logits in memory at once.
    pub chunk: usize,
    /// Losses of the routers, their factors divided as the caller's loss is.
    pub router_losses: RouterLosses,
}

/// A part of the forward pass that was recorded, with its result.
type Recorded<'a> = (Tape<'a>, Tensor);

impl<'a> Pass<'a> {
    /// Adds the gradients of the objective over this batch.
    ///
    /// Cost: three forward passes' FLOPs, four with checkpointing.
    pub fn run(&self, batch: &Batch, objective: &mut dyn Objective, gradients: &mut Gradients) -> Result<()> {
        let (model, layers) = (self.model, self.model.config.num_hidden_layers);
        let step = model.step(self.kernels, batch)?;
        let embedding = self.record(&step, None, |step| model.embed(step))?;
        let learnt = embedding.0.is_live(&embedding.1);
        let layer = |i: usize, x: &Tensor| {
            self.record(&step, (learnt || i > 0).then_some(x), |step| model.layer(i, step, x))
        };
        // Of each layer its input, and unless it is computed again its tape.
        let mut inputs = vec![embedding.1.clone()];
        let mut tapes = Vec::new();
        for i in 0..layers {
            let x = &inputs[i];
            let y = if self.checkpointing {
                model.layer(i, &step, x)?
            } else {
                let (tape, y) = layer(i, x)?;
                tapes.push(tape);
                y
            };
            inputs.push(y);
        }
        let x = inputs[layers].clone();
        let (tape, hidden) = self.record(&step, Some(&x), |step| model.finish(step, &x))?;
        let dhidden = self.loss(&hidden, objective, gradients)?;
        tape.backward(&hidden, dhidden, gradients)?;
        for i in (0..layers).rev() {
            let Some(y) = inputs.pop() else { break };
            let Some(dy) = gradients.take(y.identity()) else { return Ok(()) };
            let (tape, y) = match tapes.pop() {
                Some(tape) => (tape, y),
                None => layer(i, &inputs[i])?,
            };
            tape.backward(&y, dy, gradients)?;
        }
        let (tape, x) = embedding;
        match gradients.take(x.identity()) {
            Some(dx) => Ok(tape.backward(&x, dx, gradients)?),
            None => Ok(()),
        }
    }

    /// Runs a part of the model on a tape of its own, which gives the gradient of `input` too.
    fn record(
        &self,
        step: &Step<'_>,
        input: Option<&Tensor>,
        part: impl FnOnce(&Step<'_>) -> kanana_model::Result<Tensor>,
    ) -> Result<Recorded<'a>> {
        let tape = Tape::new(self.kernels, self.parameters).with_router_losses(self.router_losses);
        if let Some(x) = input {
            tape.watch(x);
        }
        let y = part(&step.on(&tape))?;
        Ok((tape, y))
    }

    /// The objective over chunks of logits, and the gradient of the hidden states.
    fn loss(
        &self,
        hidden: &Tensor,
        objective: &mut dyn Objective,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (kernels, matrix) = (self.kernels, self.model.output_matrix());
        let turned = kernels.transposed(matrix)?;
        let mut dhidden = kernels.zeros(hidden.shape(), DType::F32)?;
        let rows = objective.rows().to_vec();
        for (i, rows) in rows.chunks(self.chunk.max(1)).enumerate() {
            let first = i * self.chunk.max(1);
            let indices = kernels.upload(&Tensor::from_slice(&[rows.len()], rows)?)?;
            let ones = kernels.upload(&Tensor::from_slice(&[rows.len()], &vec![1f32; rows.len()])?)?;
            let x = kernels.gather_rows(hidden, &indices)?;
            let logits = self.model.logits(kernels, &x)?;
            let dlogits = objective.chunk(kernels, logits, first..first + rows.len())?;
            gradients.add_product(kernels, matrix, &x, &dlogits, self.parameters)?;
            let dx = kernels.linear(&dlogits, &turned)?;
            dhidden = kernels.scatter_add_rows(dhidden, &dx, &indices, &ones)?;
        }
        Ok(dhidden)
    }
}
