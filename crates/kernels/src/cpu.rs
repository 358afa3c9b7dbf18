//! The vocabulary on the CPU: threads, vectors of sixteen lanes, weights in panels, memory that is used again.

use std::sync::Arc;

use kanana_tensor::{DType, Device, Pool, Tensor};

use crate::ops::{
    attention, check, cross_entropy, elementwise, embedding, linear, log_sum_exp, rms_norm, rope, route, rows,
};
use crate::runtime::Isa;
use crate::runtime::Machine;
use crate::runtime::memory::advise_huge_pages;
use crate::runtime::threads::Threads;
use crate::{
    AttentionCall, CrossEntropy, Format, Kernels, KeyValues, Packed, Result, RopeTable, RouterLosses,
    RouterOptions, Routing, Spans, Weight,
};

/// How a [`Cpu`] is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the caller's included; `None`: one for each processor this process may use.
    pub threads: Option<usize>,
    /// The instruction set; `None`, or one that this processor lacks: the one that the environment variable `KANANA_ISA`
    /// names (see [`Isa::chosen`]), else the best there is.
    pub isa: Option<Isa>,
}

/// The multi-threaded CPU implementation.
pub struct Cpu {
    threads: Threads,
    isa: Isa,
    pool: Arc<Pool>,
}

impl Cpu {
    /// Starts the threads.
    pub fn new(options: CpuOptions) -> Self {
        let threads = options
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get()));
        let isa = options.isa.filter(|isa| Isa::available().contains(isa));
        let isa = isa.or_else(|| Isa::chosen().ok()).unwrap_or_else(Isa::best);
        Cpu { threads: Threads::new(threads), isa, pool: Pool::new() }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    fn machine(&self) -> Machine<'_> {
        Machine { threads: &self.threads, isa: self.isa, pool: &self.pool }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new(CpuOptions::default())
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({} threads, {})", self.threads.count(), self.isa.name())
    }
}

impl Kernels for Cpu {
    fn device(&self) -> Device {
        Device::Cpu
    }
    fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let zeros = Tensor::zeros(shape, dtype);
        // What is large is a cache, of which attention reads a block here and a block there.
        advise_huge_pages(check::in_op("zeros", zeros.as_bytes())?);
        Ok(zeros)
    }
    fn upload(&self, host: &Tensor) -> Result<Tensor> {
        Ok(host.clone())
    }
    fn download(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }
    fn pack(&self, matrix: &Tensor, format: Format) -> Result<Weight> {
        linear::pack::pack(&self.threads, self.isa, matrix, format)
    }
    fn adopt(&self, packed: &Packed) -> Result<Weight> {
        linear::packed::adopt(&self.threads, packed)
    }
    fn embedding(&self, ids: &Tensor, table: &Weight) -> Result<Tensor> {
        embedding::cpu::embedding(self.machine(), ids, table)
    }
    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        Ok(self.linears(x, &[w])?.swap_remove(0))
    }
    fn linears(&self, x: &Tensor, weights: &[&Weight]) -> Result<Vec<Tensor>> {
        linear::cpu::linears(self.machine(), x, weights)
    }
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        rms_norm::cpu::rms_norm(self.machine(), x, weight, eps)
    }
    fn rope(&self, x: &Tensor, table: &RopeTable, positions: &Tensor) -> Result<Tensor> {
        rope::cpu::rope(self.machine(), x, table, positions)
    }
    fn attention(&self, q: &Tensor, kv: KeyValues<'_>, spans: &Spans, scale: f32) -> Result<Tensor> {
        attention::cpu::attention(self.machine(), q, kv, spans, scale)
    }
    fn write_kv(&self, x: &Tensor, cache: &mut Tensor, slots: &Tensor) -> Result<()> {
        attention::write::write_kv(self.machine(), x, cache, slots)
    }
    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        elementwise::cpu::silu_mul(self.machine(), gate, up)
    }
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        elementwise::cpu::add(self.machine(), x, y)
    }
    fn add_bias(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        elementwise::cpu::add_bias(self.machine(), x, bias)
    }
    fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        elementwise::cpu::scale(self.machine(), x, factor)
    }
    fn sigmoid_gate(&self, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
        elementwise::cpu::sigmoid_gate(self.machine(), x, gate)
    }
    fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        elementwise::cpu::cast(self.machine(), x, dtype)
    }
    fn gather_rows(&self, x: &Tensor, indices: &Tensor) -> Result<Tensor> {
        let shape = rows::gathered_shape(x, indices)?;
        rows::gather_rows(x, indices, self.pool.tensor(&shape, DType::F32))
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
        log_sum_exp::cpu::log_sum_exp(self.machine(), logits)
    }
    fn transpose(&self, x: &Tensor) -> Result<Tensor> {
        linear::backward_cpu::transpose(self.machine(), x)
    }
    fn transposed(&self, w: &Weight) -> Result<Weight> {
        linear::backward_cpu::transposed(self.machine(), w)
    }
    fn pack_transposed(&self, matrix: &Tensor, format: Format) -> Result<Weight> {
        match format {
            Format::F32 => linear::backward_cpu::pack_transposed_f32(self.machine(), matrix),
            _ => self.pack(&self.transpose(matrix)?, format),
        }
    }
    fn linear_backward_weight(
        &self,
        base: Tensor,
        dy: &Tensor,
        x: &Tensor,
        format: Format,
    ) -> Result<Tensor> {
        match linear::backward_cpu::bf16_pays(self.isa) && format == Format::BF16 {
            true => linear::backward_weight(self, base, dy, x, format),
            false => linear::backward_cpu::backward_weight_f32(self.machine(), base, dy, x),
        }
    }
    fn rms_norm_backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        dy: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        rms_norm::backward::rms_norm_backward(self.machine(), x, weight, eps, dy)
    }
    fn attention_backward(&self, call: AttentionCall<'_>, y: &Tensor, dy: &Tensor) -> Result<[Tensor; 3]> {
        attention::backward_cpu::attention_backward(self.machine(), call, y, dy)
    }
    fn silu_mul_backward(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        elementwise::cpu::silu_mul_backward(self.machine(), gate, up, dy)
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
        cross_entropy::cpu::cross_entropy(self.machine(), logits, targets, options)
    }
}
