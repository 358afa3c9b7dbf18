//! Records a forward pass and replays it backwards.
//!
//! [`Tape`] is an implementation of the vocabulary around another one: it calls the inner op, and notes the arguments of
//! those whose result depends on a parameter. The model's code runs on it unchanged. Fused ops run as the plain ones of
//! their default bodies, which give the same bits. Tests: `crates/train/tests/`.

mod backward;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use kanana_kernels::{
    AttentionCall, CrossEntropy, Expert, Format, KernelError, Kernels, KeyValues, Packed, Result, RopeTable,
    RouterLosses, RouterOptions, Routing, Spans, Weight,
};
use kanana_tensor::{DType, Device, Identity, Tensor};

use crate::Gradients;

/// An implementation of the vocabulary that remembers.
pub struct Tape<'a> {
    inner: &'a dyn Kernels,
    /// What is trained.
    parameters: &'a HashSet<Identity>,
    router_losses: RouterLosses,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    ops: Vec<(Op, Tensor)>,
    /// What depends on a parameter, or is watched. All of it is kept alive by `ops` or by the caller.
    live: HashSet<Identity>,
}

/// An op with the arguments that its gradient needs.
enum Op {
    Embedding { ids: Tensor, table: Weight },
    Linear { x: Tensor, w: Weight },
    RmsNorm { x: Tensor, weight: Tensor, eps: f32 },
    Rope { x: Tensor, table: RopeTable, positions: Tensor },
    Attention { q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: f32 },
    SiluMul { gate: Tensor, up: Tensor },
    Add { x: Tensor, y: Tensor },
    AddBias { x: Tensor, bias: Tensor },
    Scale { x: Tensor, factor: f32 },
    SigmoidGate { x: Tensor, gate: Tensor },
    Cast { x: Tensor },
    GatherRows { x: Tensor, indices: Tensor },
    ScatterAddRows { base: Tensor, x: Tensor, indices: Tensor, weights: Tensor },
    Route { logits: Tensor, bias: Option<Identity>, routing: Routing, options: RouterOptions },
    Experts { x: Tensor, routing: Routing, experts: Vec<Expert> },
}

impl<'a> Tape<'a> {
    /// An empty tape that learns what depends on `parameters`: identities of weights and vectors.
    pub fn new(inner: &'a dyn Kernels, parameters: &'a HashSet<Identity>) -> Self {
        Tape { inner, parameters, router_losses: RouterLosses::default(), notes: Mutex::default() }
    }

    /// Adds these losses of every router to what is differentiated.
    pub fn with_router_losses(self, router_losses: RouterLosses) -> Self {
        Tape { router_losses, ..self }
    }

    /// Keeps the gradient of an input that is no parameter; the caller keeps the input.
    pub fn watch(&self, x: &Tensor) {
        self.notes().live.insert(x.identity());
    }

    /// Whether anything that is learnt, or watched, has a part in `x`.
    pub fn is_live(&self, x: &Tensor) -> bool {
        self.depends(x.identity())
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn depends(&self, of: Identity) -> bool {
        self.parameters.contains(&of) || self.notes().live.contains(&of)
    }

    /// Notes an op when anything it depends on is learnt. An op that hands its argument through leaves nothing to note.
    fn note(&self, depends_on: &[Identity], y: &Tensor, op: impl FnOnce() -> Op) {
        if depends_on.iter().any(|&of| self.depends(of)) && !depends_on.contains(&y.identity()) {
            let mut notes = self.notes();
            notes.live.insert(y.identity());
            notes.ops.push((op(), y.clone()));
        }
    }
}

impl Kernels for Tape<'_> {
    fn device(&self) -> Device {
        self.inner.device()
    }
    fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.inner.zeros(shape, dtype)
    }
    fn upload(&self, host: &Tensor) -> Result<Tensor> {
        self.inner.upload(host)
    }
    fn download(&self, tensor: &Tensor) -> Result<Tensor> {
        self.inner.download(tensor)
    }
    fn pack(&self, matrix: &Tensor, format: Format) -> Result<Weight> {
        self.inner.pack(matrix, format)
    }
    fn adopt(&self, packed: &Packed) -> Result<Weight> {
        self.inner.adopt(packed)
    }

    fn embedding(&self, ids: &Tensor, table: &Weight) -> Result<Tensor> {
        let y = self.inner.embedding(ids, table)?;
        self.note(&[table.identity()], &y, || Op::Embedding { ids: ids.clone(), table: table.clone() });
        Ok(y)
    }
    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        Ok(self.linears(x, &[w])?.swap_remove(0))
    }
    fn linears(&self, x: &Tensor, weights: &[&Weight]) -> Result<Vec<Tensor>> {
        let products = self.inner.linears(x, weights)?;
        for (&w, y) in weights.iter().zip(&products) {
            self.note(&[x.identity(), w.identity()], y, || Op::Linear { x: x.clone(), w: w.clone() });
        }
        Ok(products)
    }
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        let y = self.inner.rms_norm(x, weight, eps)?;
        self.note(&[x.identity(), weight.identity()], &y, || Op::RmsNorm {
            x: x.clone(),
            weight: weight.clone(),
            eps,
        });
        Ok(y)
    }
    fn rope(&self, x: &Tensor, table: &RopeTable, positions: &Tensor) -> Result<Tensor> {
        let y = self.inner.rope(x, table, positions)?;
        self.note(&[x.identity()], &y, || Op::Rope {
            x: x.clone(),
            table: table.clone(),
            positions: positions.clone(),
        });
        Ok(y)
    }
    fn attention(&self, q: &Tensor, kv: KeyValues<'_>, spans: &Spans, scale: f32) -> Result<Tensor> {
        let KeyValues::Packed { k, v } = kv else {
            return Err(not_differentiable("attention", "keys and values are in a cache"));
        };
        let y = self.inner.attention(q, kv, spans, scale)?;
        self.note(&[q.identity(), k.identity(), v.identity()], &y, || Op::Attention {
            q: q.clone(),
            k: k.clone(),
            v: v.clone(),
            spans: spans.clone(),
            scale,
        });
        Ok(y)
    }
    fn write_kv(&self, _x: &Tensor, _cache: &mut Tensor, _slots: &Tensor) -> Result<()> {
        Err(not_differentiable("write_kv", "what is written cannot be taken back"))
    }
    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let y = self.inner.silu_mul(gate, up)?;
        self.note(&[gate.identity(), up.identity()], &y, || Op::SiluMul {
            gate: gate.clone(),
            up: up.clone(),
        });
        Ok(y)
    }
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let sum = self.inner.add(x, y)?;
        self.note(&[x.identity(), y.identity()], &sum, || Op::Add { x: x.clone(), y: y.clone() });
        Ok(sum)
    }
    fn add_bias(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let y = self.inner.add_bias(x, bias)?;
        self.note(&[x.identity(), bias.identity()], &y, || Op::AddBias { x: x.clone(), bias: bias.clone() });
        Ok(y)
    }
    fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        let y = self.inner.scale(x, factor)?;
        self.note(&[x.identity()], &y, || Op::Scale { x: x.clone(), factor });
        Ok(y)
    }
    fn sigmoid_gate(&self, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
        let y = self.inner.sigmoid_gate(x, gate)?;
        self.note(&[x.identity(), gate.identity()], &y, || Op::SigmoidGate {
            x: x.clone(),
            gate: gate.clone(),
        });
        Ok(y)
    }
    fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let y = self.inner.cast(x, dtype)?;
        self.note(&[x.identity()], &y, || Op::Cast { x: x.clone() });
        Ok(y)
    }
    fn gather_rows(&self, x: &Tensor, indices: &Tensor) -> Result<Tensor> {
        let y = self.inner.gather_rows(x, indices)?;
        self.note(&[x.identity()], &y, || Op::GatherRows { x: x.clone(), indices: indices.clone() });
        Ok(y)
    }
    fn scatter_add_rows(
        &self,
        base: Tensor,
        x: &Tensor,
        indices: &Tensor,
        weights: &Tensor,
    ) -> Result<Tensor> {
        // A second handle keeps the base as it is.
        let y = self.inner.scatter_add_rows(base.clone(), x, indices, weights)?;
        let depends_on = [base.identity(), x.identity(), weights.identity()];
        self.note(&depends_on, &y, || Op::ScatterAddRows {
            base,
            x: x.clone(),
            indices: indices.clone(),
            weights: weights.clone(),
        });
        Ok(y)
    }
    fn route(&self, logits: &Tensor, bias: Option<&Tensor>, options: RouterOptions) -> Result<Routing> {
        let routing = self.inner.route(logits, bias, options)?;
        self.note(&[logits.identity()], &routing.weights, || Op::Route {
            logits: logits.clone(),
            bias: bias.map(Tensor::identity),
            routing: routing.clone(),
            options,
        });
        Ok(routing)
    }
    fn log_sum_exp(&self, logits: &Tensor) -> Result<Tensor> {
        match self.depends(logits.identity()) {
            true => Err(not_differentiable("log_sum_exp", "a loss takes it with its gradient")),
            false => self.inner.log_sum_exp(logits),
        }
    }
    fn experts(&self, x: &Tensor, routing: &Routing, experts: &[Expert]) -> Result<Tensor> {
        let y = self.inner.experts(x, routing, experts)?;
        let matrices = experts.iter().flat_map(|expert| [&expert.gate, &expert.up, &expert.down]);
        let mut depends_on: Vec<Identity> = matrices.map(Weight::identity).collect();
        depends_on.extend([x.identity(), routing.weights.identity()]);
        self.note(&depends_on, &y, || Op::Experts {
            x: x.clone(),
            routing: routing.clone(),
            experts: experts.to_vec(),
        });
        Ok(y)
    }

    // Gradients of gradients are nobody's.

    fn transpose(&self, x: &Tensor) -> Result<Tensor> {
        self.inner.transpose(x)
    }
    fn transposed(&self, w: &Weight) -> Result<Weight> {
        self.inner.transposed(w)
    }
    fn rms_norm_backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        dy: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        self.inner.rms_norm_backward(x, weight, eps, dy)
    }
    fn attention_backward(&self, call: AttentionCall<'_>, y: &Tensor, dy: &Tensor) -> Result<[Tensor; 3]> {
        self.inner.attention_backward(call, y, dy)
    }
    fn silu_mul_backward(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        self.inner.silu_mul_backward(gate, up, dy)
    }
    fn sigmoid_gate_backward(&self, x: &Tensor, gate: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        self.inner.sigmoid_gate_backward(x, gate, dy)
    }
    fn sum_rows(&self, x: &Tensor) -> Result<Tensor> {
        self.inner.sum_rows(x)
    }
    fn dot_rows(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        self.inner.dot_rows(x, y)
    }
    fn route_backward(
        &self,
        logits: &Tensor,
        routing: &Routing,
        options: RouterOptions,
        dweights: &Tensor,
        losses: RouterLosses,
    ) -> Result<Tensor> {
        self.inner.route_backward(logits, routing, options, dweights, losses)
    }
    fn cross_entropy(
        &self,
        logits: Tensor,
        targets: &Tensor,
        options: CrossEntropy,
    ) -> Result<(Tensor, Tensor)> {
        self.inner.cross_entropy(logits, targets, options)
    }
}

fn not_differentiable(op: &'static str, why: &'static str) -> KernelError {
    KernelError::NotDifferentiable { op, why }
}

impl Tape<'_> {
    /// Replays the tape backwards from `dy`, the gradient of `y`. Gradients of parameters are added to `gradients`; that of
    /// what was watched is put there too.
    pub fn backward(self, y: &Tensor, dy: Tensor, gradients: &mut Gradients) -> Result<()> {
        let Notes { mut ops, live } = self.notes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut replay = backward::Replay {
            kernels: self.inner,
            parameters: self.parameters,
            router_losses: self.router_losses,
            live: &live,
            gradients,
        };
        replay.give(y, dy)?;
        // Popped one by one: what is behind needs no memory.
        while let Some((op, y)) = ops.pop() {
            replay.op(op, y)?;
        }
        Ok(())
    }
}
