//! The trait itself. Legend: T packed tokens, D hidden, N query heads, K kv heads, H head_dim, F ffn, V vocabulary,
//! X experts, S sequences, R any number of rows, A chosen experts per token, B cache blocks, P positions in a block,
//! W elements of a stored key or value.
//!
//! Every op is a function from tensors to new tensors ([`Kernels::write_kv`] writes in place, and
//! [`Kernels::scatter_add_rows`] takes its base by value), so that a tape can wrap any implementation: it calls the
//! inner op, notes the arguments, and replays the notes backwards. Index data (ids, positions, block tables) are tensors
//! too, so that a device can keep them beside the rest. Activations are f32. A row's result never depends on the other
//! rows, on the number of threads or on chunking. Fused ops have default bodies made of plain ops: a new implementation
//! starts small and gets fast op by op.

use kanana_tensor::{DType, Device, Tensor};

use crate::ops::{attention, experts, linear};
use crate::{
    AttentionCall, CrossEntropy, Expert, Format, KeyValues, KvFormat, Packed, Result, RopeTable,
    RouterLosses, RouterOptions, Routing, Spans, Weight,
};

/// The operations a transformer is made of, on one machine.
pub trait Kernels: Send + Sync {
    // ------------------------------------------------------------------------------------------------ memory

    /// The device whose memory the results are in.
    fn device(&self) -> Device;

    /// A zeroed tensor in the device's memory.
    fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor>;

    /// A copy of a host tensor in the device's memory; the same handle where they are one memory.
    fn upload(&self, host: &Tensor) -> Result<Tensor>;

    /// A copy of a device tensor in host memory; the same handle where they are one memory.
    fn download(&self, tensor: &Tensor) -> Result<Tensor>;

    /// Lays a matrix out as [`Kernels::linear`] and [`Kernels::embedding`] of this implementation read it, stored in
    /// `format`.
    ///
    /// Shapes: `matrix [N, K]`, f32, f16 or bf16: `N` outputs of `K` inputs, as checkpoints store it.
    /// Cost: reads the source once; the source may be freed afterwards.
    fn pack(&self, matrix: &Tensor, format: Format) -> Result<Weight>;

    /// Takes a quantised matrix that was packed earlier, perhaps elsewhere: [`Weight::packed`] gives it. The weight is the
    /// one that [`Kernels::pack`] made, bit for bit.
    ///
    /// Errors: panels of another shape than [`Packed::shape`], a format that is not quantised.
    /// Cost: copies the bytes once; the source may be freed afterwards.
    fn adopt(&self, packed: &Packed) -> Result<Weight>;

    // --------------------------------------------------------------------------------------------- plain ops

    /// Row `ids[t]` of the table for every token.
    ///
    /// Shapes: `ids [T] u32`, `table [V, D]` → `[T, D]`. Errors: an id of `V` or more. Cost: T·D reads.
    fn embedding(&self, ids: &Tensor, table: &Weight) -> Result<Tensor>;

    /// `x · wᵀ`. With bf16 weights `x` is rounded to bf16 first, as matrix units take it, and products are summed in f32;
    /// with quantised weights `x` is quantised to 8 bits for each row and group of 256, and sums of a group are exact.
    ///
    /// Shapes: `x [T, K]`, `w [N, K]` → `[T, N]`. Cost: 2·T·N·K FLOPs, N·K weight reads.
    /// Order of sums: bf16 weights sum, over each block of 32 k, even and odd products apart, add the two, add that to
    /// the accumulator (the order of `tdpbf16ps`, Intel SDM), or on [`crate::runtime::Isa::Avx512Bf16`] pair by pair; f32
    /// weights sum in the order of k, quantised ones in that of the groups.
    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor>;

    /// Root-mean-square norm: `x / sqrt(mean(x²) + eps) · weight` over the last dimension.
    ///
    /// Shapes: `x [R, .., H]`, `weight [H] f32` → the shape of `x`: rows of the last dimension are normed one by one,
    /// so per-head norms (QK-norm) are the same op. Source: Zhang and Sennrich 2019, arXiv 1910.07467.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor>;

    /// Rotary position embedding in the half-split layout: element `i` is paired with element `i + H/2`.
    ///
    /// Shapes: `x [T, N, H]`, `positions [T] u32`, table `[P, H/2]` cosines and sines → `[T, N, H]`.
    /// Errors: a position beyond the table. Source: Su et al. 2021, arXiv 2104.09864; layout of transformers.
    fn rope(&self, x: &Tensor, table: &RopeTable, positions: &Tensor) -> Result<Tensor>;

    /// Scaled dot-product attention with grouped heads over packed sequences; no token sees another sequence.
    ///
    /// Shapes: `q [T, N, H]`, keys and values as [`KeyValues`] says → `[T, N, H]`; query head `n` reads kv head
    /// `n / (N/K)`. The last query of a sequence is its last key; with `causal` a query sees the keys up to itself.
    /// Keys in tiles of `ops::attention::TILE` positions, and those in stretches of `ops::attention::STRETCH`, are counted
    /// from the start of the sequence, so the result does not depend on how queries are chunked or keys are paged.
    /// Cost: 4·N·H FLOPs per visible (query, key) pair.
    ///
    /// Arithmetic: scores are `scale · (q · k)`. Within a stretch a row has a running maximum m, the f32 sum of its weights
    /// `exp(score - m)` and the sum of weighted values; both fade by `exp(m before - m)` when a tile raises m. Stretches
    /// are merged in their order by the same rule. Beside keys and values of 16 or 8 bits, the query and the weights (not
    /// their sum) are rounded to bf16, and all products are summed in the order of [`Kernels::linear`] over bf16, those
    /// of a tile's values onto the faded sums; beside f32, nothing is rounded, and the order is that of f32.
    /// Source: online softmax, Milakov and Gimelshein 2018, arXiv 1805.02867; tiles, Dao et al. 2022, arXiv 2205.14135.
    fn attention(&self, q: &Tensor, kv: KeyValues<'_>, spans: &Spans, scale: f32) -> Result<Tensor>;

    /// Writes new keys or values into a paged cache, rounding to its format; of equal slots the last one stays.
    ///
    /// Shapes: `x [T, K, H]`, `cache [B, K, P, W]` as [`KvFormat`] stores it, `slots [T] u32`, slot = block·P + offset.
    /// Errors: a slot outside the cache; a cache that is shared.
    fn write_kv(&self, x: &Tensor, cache: &mut Tensor, slots: &Tensor) -> Result<()>;

    /// `silu(gate) · up`, with `silu(x) = x / (1 + exp(-x))`.
    ///
    /// Shapes: two of the same shape → that shape. Source: Shazeer 2020, arXiv 2002.05202.
    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor>;

    /// `x + y`. Shapes: two of the same shape → that shape.
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor>;

    /// `x + bias` for every row. Shapes: `x [T, D]`, `bias [D] f32` → `[T, D]`.
    fn add_bias(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor>;

    /// `x · factor`. Shapes: any → the same.
    fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor>;

    /// `x[t] · sigmoid(gate[t])` for every row: the gate of a shared expert. Shapes: `x [T, D]`, `gate [T, 1]` → `[T, D]`.
    fn sigmoid_gate(&self, x: &Tensor, gate: &Tensor) -> Result<Tensor>;

    /// Rounds or widens. Shapes: any → the same, f32 or bf16.
    fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor>;

    /// The rows `indices[r]` of `x`. Shapes: `x [T, D]`, `indices [R] u32` → `[R, D]`.
    fn gather_rows(&self, x: &Tensor, indices: &Tensor) -> Result<Tensor>;

    /// Adds `x[r] · weights[r]` to row `indices[r]` of `base` in the order of r, in place when this is the only handle.
    ///
    /// Shapes: `base [T, D]`, `x [R, D]`, `indices [R] u32`, `weights [R] f32` → `[T, D]`.
    fn scatter_add_rows(
        &self,
        base: Tensor,
        x: &Tensor,
        indices: &Tensor,
        weights: &Tensor,
    ) -> Result<Tensor>;

    /// Chooses the experts of every token from the router's logits.
    ///
    /// A `bias` is added to the scores that the choice is made by, never to the weights.
    ///
    /// Shapes: `logits [T, X]`, `bias [X] f32` → `experts [T, A] u32` by falling score, with its bias (ties: the lower number
    /// first), and their `weights [T, A]`.
    /// Source: Shazeer et al. 2017, arXiv 1701.06538; order and renormalisation as in transformers' Mixtral and Qwen3-MoE;
    /// the bias, Wang et al. 2024, arXiv 2408.15664, section 3.
    fn route(&self, logits: &Tensor, bias: Option<&Tensor>, options: RouterOptions) -> Result<Routing>;

    /// `log Σ exp(x)` of every row: a token's log-probability is its logit less this.
    ///
    /// Shapes: `logits [T, V]` → `[T]`. Units: nats. NaN in, NaN out.
    fn log_sum_exp(&self, logits: &Tensor) -> Result<Tensor>;

    // --------------------------------------------------------------------------------------------- backward
    //
    // The gradient of each op that has one of its own. `dy` is the gradient of the op's result; the answer is that of its
    // inputs. What is rounded on the way forward is treated as if it were not. Others need no op: of `add` it is `dy`, of
    // `scale` another `scale`, of `rope` a rotation back, of `gather_rows` and `embedding` a `scatter_add_rows`.

    /// Rows become columns. Shapes: `x [R, C]` → `[C, R]`.
    fn transpose(&self, x: &Tensor) -> Result<Tensor>;

    /// The weight whose [`Kernels::linear`] is `x · w`: of a product's gradient, that of its input. Weights that are not f32
    /// become bf16, or f32 where the machine is faster so.
    ///
    /// Shapes: `w [N, K]` → `[K, N]`. Cost: N·K reads and writes.
    fn transposed(&self, w: &Weight) -> Result<Weight>;

    /// [`Kernels::pack`] of the transpose. Shapes: `matrix [R, C]` → a weight of C outputs and R inputs.
    fn pack_transposed(&self, matrix: &Tensor, format: Format) -> Result<Weight> {
        self.pack(&self.transpose(matrix)?, format)
    }

    /// `base + dyᵀ · x`: the gradient of a weight, onto what other tokens gave. `format`, f32 or bf16, is the least that `dy`
    /// and `x` are rounded to: a machine that is faster in f32 does not round them.
    ///
    /// Shapes: `base [N, K] f32`, `dy [T, N]`, `x [T, K]` → `[N, K]`. Cost: 2·T·N·K FLOPs.
    fn linear_backward_weight(
        &self,
        base: Tensor,
        dy: &Tensor,
        x: &Tensor,
        format: Format,
    ) -> Result<Tensor> {
        linear::backward_weight(self, base, dy, x, format)
    }

    /// Shapes: as [`Kernels::rms_norm`] → `dx` as `x`, `dweight [H]`, summed over rows in their order.
    /// Source: `dx = r (w dy - x r² mean(w dy x))`, r = 1 / sqrt(mean(x²) + eps).
    fn rms_norm_backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        dy: &Tensor,
    ) -> Result<(Tensor, Tensor)>;

    /// Shapes: `q`, `y`, `dy [T, N, H]`, packed `k`, `v [T, K, H]` in f32 or bf16 → `dq [T, N, H]`, `dk`, `dv [T, K, H]`;
    /// `y` is what [`Kernels::attention`] gave. The scores are computed again, tile by tile: nothing of T x T is kept.
    /// Source: `dS = P ∘ (dy·vᵀ - rowsum(dy ∘ y))`; Dao et al. 2022, arXiv 2205.14135, appendix B.
    fn attention_backward(&self, call: AttentionCall<'_>, y: &Tensor, dy: &Tensor) -> Result<[Tensor; 3]>;

    /// Shapes: three of the same → `dgate`, `dup` likewise.
    fn silu_mul_backward(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)>;

    /// Shapes: as [`Kernels::sigmoid_gate`] → `dx [T, D]`, `dgate [T, 1]`.
    fn sigmoid_gate_backward(&self, x: &Tensor, gate: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)>;

    /// The sum over rows, in their order: the gradient of a bias. Shapes: `x [T, D]` → `[D]`.
    fn sum_rows(&self, x: &Tensor) -> Result<Tensor>;

    /// The dot product of every pair of rows. Shapes: `x`, `y [R, D]` → `[R]`.
    fn dot_rows(&self, x: &Tensor, y: &Tensor) -> Result<Tensor>;

    /// The gradient of the router's logits: of the chosen weights, and of the losses that keep experts in use. The choice
    /// has none, and so a bias has none.
    ///
    /// Shapes: `logits [T, X]`, `routing` as [`Kernels::route`] gave it, `dweights [T, A]` → `[T, X]`.
    /// Source: [`RouterLosses`].
    fn route_backward(
        &self,
        logits: &Tensor,
        routing: &Routing,
        options: RouterOptions,
        dweights: &Tensor,
        losses: RouterLosses,
    ) -> Result<Tensor>;

    /// The loss of every row of logits against its target, and the gradient of `scale` times their sum.
    ///
    /// Shapes: `logits [T, V]`, `targets [T] u32` → losses `[T]` and `dlogits [T, V]`, in the memory of `logits` where this
    /// is its only handle. Rows whose target is [`CrossEntropy::IGNORED`] have neither loss nor gradient. Units: nats.
    /// Errors: another target of V or more. Source: [`CrossEntropy`].
    fn cross_entropy(
        &self,
        logits: Tensor,
        targets: &Tensor,
        options: CrossEntropy,
    ) -> Result<(Tensor, Tensor)>;

    // --------------------------------------------------------------------------------------------- fused ops

    /// Several products of the same input: the query, key and value, or the gate and up projections.
    fn linears(&self, x: &Tensor, weights: &[&Weight]) -> Result<Vec<Tensor>> {
        weights.iter().map(|w| self.linear(x, w)).collect()
    }

    /// Keys or values rounded as a cache of this format rounds them, for attention without one.
    ///
    /// Shapes: `x [T, K, H]` → `[T, K, W]`.
    fn round_kv(&self, x: &Tensor, format: KvFormat) -> Result<Tensor> {
        match format {
            KvFormat::F32 | KvFormat::BF16 => self.cast(x, format.dtype()),
            KvFormat::Q8 => attention::rounded_by_cache(self, x, format),
        }
    }

    /// `base + scale · (x · aᵀ) · bᵀ`: a low-rank update beside a frozen product.
    ///
    /// Shapes: `base [T, N]`, `x [T, K]`, `a [r, K]`, `b [N, r]` → `[T, N]`. Source: Hu et al. 2021, arXiv 2106.09685.
    fn low_rank(&self, base: &Tensor, x: &Tensor, a: &Weight, b: &Weight, scale: f32) -> Result<Tensor> {
        self.add(base, &self.scale(&self.linear(&self.linear(x, a)?, b)?, scale)?)
    }

    /// `sum = x + y` and its norm, both of which the next block needs.
    fn add_rms_norm(&self, x: &Tensor, y: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        let sum = self.add(x, y)?;
        let normed = self.rms_norm(&sum, weight, eps)?;
        Ok((sum, normed))
    }

    /// SwiGLU: `down(silu(gate(x)) · up(x))`.
    fn swiglu(&self, x: &Tensor, gate: &Weight, up: &Weight, down: &Weight) -> Result<Tensor> {
        let projections = self.linears(x, &[gate, up])?;
        self.linear(&self.silu_mul(&projections[0], &projections[1])?, down)
    }

    /// The mixture: every token's chosen experts, weighted and summed in the order of the experts' numbers.
    ///
    /// Shapes: `x [T, D]` → `[T, D]`. Only chosen experts are read. Cost: A/X of the dense FLOPs.
    fn experts(&self, x: &Tensor, routing: &Routing, experts: &[Expert]) -> Result<Tensor> {
        experts::by_expert(self, x, routing, experts)
    }
}
