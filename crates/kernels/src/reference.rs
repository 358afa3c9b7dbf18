//! The oracle: naive f32 loops in host memory. Slow, short, and what every other implementation is compared with.

use kanana_tensor::{DType, Device, Tensor};

use crate::ops::{
    attention, check, cross_entropy, elementwise, embedding, experts, linear, log_sum_exp, rms_norm, rope,
    route, rows,
};
use crate::{
    AttentionCall, CrossEntropy, Format, Kernels, KeyValues, Packed, Result, RopeTable, RouterLosses,
    RouterOptions, Routing, Spans, Weight,
};

/// Naive f32 implementation of the vocabulary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Kernels for Reference {
    fn device(&self) -> Device {
        Device::Cpu
    }
    fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Ok(Tensor::zeros(shape, dtype))
    }
    fn upload(&self, host: &Tensor) -> Result<Tensor> {
        Ok(host.clone())
    }
    fn download(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }
    fn pack(&self, matrix: &Tensor, format: Format) -> Result<Weight> {
        linear::reference::pack(matrix, format)
    }
    fn adopt(&self, packed: &Packed) -> Result<Weight> {
        linear::packed::adopt_as_rows(packed)
    }
    fn embedding(&self, ids: &Tensor, table: &Weight) -> Result<Tensor> {
        embedding::reference::embedding(ids, table)
    }
    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        linear::reference::linear(x, w)
    }
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        rms_norm::reference::rms_norm(x, weight, eps)
    }
    fn rope(&self, x: &Tensor, table: &RopeTable, positions: &Tensor) -> Result<Tensor> {
        rope::reference::rope(x, table, positions)
    }
    fn attention(&self, q: &Tensor, kv: KeyValues<'_>, spans: &Spans, scale: f32) -> Result<Tensor> {
        attention::reference::attention(q, kv, spans, scale)
    }
    fn write_kv(&self, x: &Tensor, cache: &mut Tensor, slots: &Tensor) -> Result<()> {
        attention::reference::write_kv(x, cache, slots)
    }
    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        elementwise::reference::silu_mul(gate, up)
    }
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        elementwise::reference::add(x, y)
    }
    fn add_bias(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        elementwise::reference::add_bias(x, bias)
    }
    fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        elementwise::reference::scale(x, factor)
    }
    fn sigmoid_gate(&self, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
        elementwise::reference::sigmoid_gate(x, gate)
    }
    fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        elementwise::reference::cast(x, dtype)
    }
    fn gather_rows(&self, x: &Tensor, indices: &Tensor) -> Result<Tensor> {
        let shape = rows::gathered_shape(x, indices)?;
        rows::gather_rows(x, indices, Tensor::zeros(&shape, DType::F32))
    }
    fn scatter_add_rows(
        &self,
        base: Tensor,
        x: &Tensor,
        indices: &Tensor,
        weights: &Tensor,
    ) -> Result<Tensor> {
        rows::scatter_add_rows(base, x, indices, weights)
    }
    fn route(&self, logits: &Tensor, bias: Option<&Tensor>, options: RouterOptions) -> Result<Routing> {
        route::route(logits, bias, options)
    }
    fn log_sum_exp(&self, logits: &Tensor) -> Result<Tensor> {
        log_sum_exp::reference::log_sum_exp(logits)
    }
    fn transpose(&self, x: &Tensor) -> Result<Tensor> {
        rows::transpose(x)
    }
    fn transposed(&self, w: &Weight) -> Result<Weight> {
        self.pack_transposed(&linear::backward::unpacked(w)?, linear::backward::transposed_format(w.format()))
    }
    fn rms_norm_backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        dy: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        rms_norm::reference::rms_norm_backward(x, weight, eps, dy)
    }
    fn attention_backward(&self, call: AttentionCall<'_>, y: &Tensor, dy: &Tensor) -> Result<[Tensor; 3]> {
        attention::backward::attention_backward(call, y, dy)
    }
    fn silu_mul_backward(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        elementwise::reference::silu_mul_backward(gate, up, dy)
    }
    fn sigmoid_gate_backward(&self, x: &Tensor, gate: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        elementwise::reference::sigmoid_gate_backward(x, gate, dy)
    }
    fn sum_rows(&self, x: &Tensor) -> Result<Tensor> {
        rows::sum_rows(x)
    }
    fn dot_rows(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        rows::dot_rows(x, y)
    }
    fn route_backward(
        &self,
        logits: &Tensor,
        routing: &Routing,
        options: RouterOptions,
        dweights: &Tensor,
        losses: RouterLosses,
    ) -> Result<Tensor> {
        route::route_backward(logits, routing, options, dweights, losses)
    }
    fn cross_entropy(
        &self,
        logits: Tensor,
        targets: &Tensor,
        options: CrossEntropy,
    ) -> Result<(Tensor, Tensor)> {
        cross_entropy::reference::cross_entropy(&logits, targets, options)
    }

    /// Token by token and expert by expert, the definition itself, rather than the grouped default.
    fn experts(&self, x: &Tensor, routing: &Routing, experts: &[crate::Expert]) -> Result<Tensor> {
        let [tokens, width, top_k] = experts::check_experts(x, routing)?;
        let chosen = check::indices("experts", &routing.experts, experts.len())?;
        let weights = check::slice::<f32>("experts", &routing.weights)?;
        let mut out = vec![0.0; tokens * width];
        for t in 0..tokens {
            let token = check::in_op("experts", x.slice_rows(t..t + 1))?;
            let mut order: Vec<usize> = (t * top_k..(t + 1) * top_k).collect();
            order.sort_by_key(|&i| chosen[i]);
            for i in order {
                let expert = &experts[chosen[i] as usize];
                let y = self.swiglu(&token, &expert.gate, &expert.up, &expert.down)?;
                let y = check::slice::<f32>("experts", &y)?;
                out[t * width..][..width].iter_mut().zip(y).for_each(|(out, y)| *out += y * weights[i]);
            }
        }
        check::in_op("experts", Tensor::from_slice(&[tokens, width], &out))
    }
}
