//! The chain rule: for each op, what its gradient gives to its arguments.

use std::collections::HashSet;

use kanana_kernels::{AttentionCall, Expert, Kernels, Result, RopeTable, RouterLosses, Routing, Weight};
use kanana_tensor::{DType, Identity, Tensor};

use super::Op;
use crate::Gradients;

pub(super) struct Replay<'a> {
    pub(super) kernels: &'a dyn Kernels,
    pub(super) parameters: &'a HashSet<Identity>,
    pub(super) router_losses: RouterLosses,
    pub(super) live: &'a HashSet<Identity>,
    pub(super) gradients: &'a mut Gradients,
}

impl Replay<'_> {
    fn wants(&self, of: Identity) -> bool {
        self.parameters.contains(&of) || self.live.contains(&of)
    }

    /// Adds to the gradient of `x`, where anybody wants it.
    pub(super) fn give(&mut self, x: &Tensor, gradient: Tensor) -> Result<()> {
        match self.wants(x.identity()) {
            true => self.gradients.add(self.kernels, x.identity(), gradient),
            false => Ok(()),
        }
    }

    /// `dy` is taken: nothing but this op gave `y` its value.
    pub(super) fn op(&mut self, op: Op, y: Tensor) -> Result<()> {
        let taken = self.gradients.take(y.identity());
        let kernels = self.kernels;
        let dy = match (taken, &op) {
            (Some(dy), _) => dy.reshape(y.shape())?,
            // The losses of a router need no other.
            (None, Op::Route { .. }) => kernels.zeros(y.shape(), DType::F32)?,
            (None, _) => return Ok(()),
        };
        match op {
            Op::Embedding { ids, table } => {
                let shape = [table.out_features(), table.in_features()];
                let base = self.gradients.take_or_zeros(kernels, table.identity(), &shape)?;
                let sum = kernels.scatter_add_rows(base, &dy, &ids, &self.ones(ids.len())?)?;
                self.gradients.put(table.identity(), sum);
            }
            Op::Linear { x, w } => self.linear(&x, &w, &dy)?,
            Op::RmsNorm { x, weight, eps } => {
                let (dx, dweight) = kernels.rms_norm_backward(&x, &weight, eps, &dy)?;
                self.give(&x, dx)?;
                self.give(&weight, dweight)?;
            }
            Op::Rope { x, table, positions } => {
                let back = RopeTable { sin: kernels.scale(&table.sin, -1.0)?, cos: table.cos };
                self.give(&x, kernels.rope(&dy, &back, &positions)?)?;
            }
            Op::Attention { q, k, v, spans, scale } => {
                let call = AttentionCall { q: &q, k: &k, v: &v, spans: &spans, scale };
                let [dq, dk, dv] = kernels.attention_backward(call, &y, &dy)?;
                self.give(&q, dq)?;
                self.give(&k, dk)?;
                self.give(&v, dv)?;
            }
            Op::SiluMul { gate, up } => {
                let (dgate, dup) = kernels.silu_mul_backward(&gate, &up, &dy)?;
                self.give(&gate, dgate)?;
                self.give(&up, dup)?;
            }
            Op::Add { x, y } => {
                self.give(&x, dy.clone())?;
                self.give(&y, dy)?;
            }
            Op::AddBias { x, bias } => {
                if self.wants(bias.identity()) {
                    let dbias = kernels.sum_rows(&dy)?;
                    self.give(&bias, dbias)?;
                }
                self.give(&x, dy)?;
            }
            Op::Scale { x, factor } => self.give(&x, kernels.scale(&dy, factor)?)?,
            Op::SigmoidGate { x, gate } => {
                let (dx, dgate) = kernels.sigmoid_gate_backward(&x, &gate, &dy)?;
                self.give(&x, dx)?;
                self.give(&gate, dgate)?;
            }
            Op::Cast { x } => self.give(&x, dy)?,
            Op::GatherRows { x, indices } => {
                let zeros = kernels.zeros(x.shape(), DType::F32)?;
                let dx = kernels.scatter_add_rows(zeros, &dy, &indices, &self.ones(indices.len())?)?;
                self.give(&x, dx)?;
            }
            Op::ScatterAddRows { base, x, indices, weights } => {
                let rows = kernels.gather_rows(&dy, &indices)?;
                self.give(&weights, kernels.dot_rows(&rows, &x)?)?;
                self.give(&x, self.scale_rows(&rows, &weights)?)?;
                self.give(&base, dy)?;
            }
            Op::Route { logits, bias, routing, options } => {
                if let Some(bias) = bias.filter(|bias| self.parameters.contains(bias)) {
                    let experts = kernels.download(&routing.experts)?;
                    self.gradients.count(bias, experts.as_slice::<u32>()?, logits.row_len());
                }
                let dlogits = kernels.route_backward(&logits, &routing, options, &dy, self.router_losses)?;
                self.give(&logits, dlogits)?;
            }
            Op::Experts { x, routing, experts } => self.experts(&x, &routing, &experts, &dy)?,
        }
        Ok(())
    }

    fn linear(&mut self, x: &Tensor, w: &Weight, dy: &Tensor) -> Result<()> {
        self.gradients.add_product(self.kernels, w, x, dy, self.parameters)?;
        match self.wants(x.identity()) {
            true => self.give(x, self.kernels.linear(dy, &self.kernels.transposed(w)?)?),
            false => Ok(()),
        }
    }

    /// Expert by expert, whose activations are computed again.
    fn experts(&mut self, x: &Tensor, routing: &Routing, experts: &[Expert], dy: &Tensor) -> Result<()> {
        let kernels = self.kernels;
        let (chosen, weights) = (kernels.download(&routing.experts)?, kernels.download(&routing.weights)?);
        let (chosen, weights) = (chosen.as_slice::<u32>()?, weights.as_slice::<f32>()?);
        let top_k = routing.experts.row_len();
        let mut dx = kernels.zeros(x.shape(), DType::F32)?;
        let mut dweights = vec![0.0; weights.len()];
        for (number, expert) in experts.iter().enumerate() {
            let places: Vec<usize> = (0..chosen.len()).filter(|&i| chosen[i] as usize == number).collect();
            if places.is_empty() {
                continue;
            }
            let tokens: Vec<u32> = places.iter().map(|i| (i / top_k) as u32).collect();
            let tokens = kernels.upload(&Tensor::from_slice(&[tokens.len()], &tokens)?)?;
            let shares: Vec<f32> = places.iter().map(|&i| weights[i]).collect();
            let shares = kernels.upload(&Tensor::from_slice(&[shares.len()], &shares)?)?;

            let x = kernels.gather_rows(x, &tokens)?;
            let projected = kernels.linears(&x, &[&expert.gate, &expert.up])?;
            let product = kernels.silu_mul(&projected[0], &projected[1])?;
            let rows = kernels.gather_rows(dy, &tokens)?;
            let dots = kernels.dot_rows(&rows, &kernels.linear(&product, &expert.down)?)?;
            let dots = kernels.download(&dots)?;
            places.iter().zip(dots.as_slice::<f32>()?).for_each(|(&i, &dot)| dweights[i] = dot);

            let dy = self.scale_rows(&rows, &shares)?;
            let dproduct = self.expert_linear(&product, &expert.down, &dy)?;
            let (dgate, dup) = kernels.silu_mul_backward(&projected[0], &projected[1], &dproduct)?;
            let by_gate = self.expert_linear(&x, &expert.gate, &dgate)?;
            let by_up = self.expert_linear(&x, &expert.up, &dup)?;
            let ones = self.ones(tokens.len())?;
            dx = kernels.scatter_add_rows(dx, &kernels.add(&by_gate, &by_up)?, &tokens, &ones)?;
        }
        let dweights = kernels.upload(&Tensor::from_slice(routing.weights.shape(), &dweights)?)?;
        self.give(&routing.weights, dweights)?;
        self.give(x, dx)
    }

    fn expert_linear(&mut self, x: &Tensor, w: &Weight, dy: &Tensor) -> Result<Tensor> {
        self.gradients.add_product(self.kernels, w, x, dy, self.parameters)?;
        self.kernels.linear(dy, &self.kernels.transposed(w)?)
    }

    /// Every row times its weight.
    fn scale_rows(&self, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let order: Vec<u32> = (0..x.rows() as u32).collect();
        let order = self.kernels.upload(&Tensor::from_slice(&[order.len()], &order)?)?;
        self.kernels.scatter_add_rows(self.kernels.zeros(x.shape(), DType::F32)?, x, &order, weights)
    }

    fn ones(&self, count: usize) -> Result<Tensor> {
        self.kernels.upload(&Tensor::from_slice(&[count], &vec![1f32; count])?)
    }
}
