//! The oracle of [`crate::Kernels::attention_backward`], in f64: every score of a query, as in the forward pass.

use kanana_tensor::Tensor;

use super::{Arguments, KeyValues, Place, Spans, check_attention};
use crate::Result;
use crate::ops::check;

/// The arguments of an attention over packed sequences, as it was called.
#[derive(Clone, Copy)]
pub struct AttentionCall<'a> {
    /// Queries `[T, N, H]`.
    pub q: &'a Tensor,
    /// Keys `[T, K, H]`, f32 or bf16.
    pub k: &'a Tensor,
    /// Values `[T, K, H]`, f32 or bf16.
    pub v: &'a Tensor,
    /// Which rows belong to which sequence.
    pub spans: &'a Spans,
    /// What scores are multiplied with.
    pub scale: f32,
}

impl AttentionCall<'_> {
    /// The checked arguments; `y` and `dy` have the shape of `q`.
    pub(crate) fn check(&self, y: &Tensor, dy: &Tensor) -> Result<Arguments<'_>> {
        const OP: &str = "attention_backward";
        let args = check_attention(self.q, &KeyValues::Packed { k: self.k, v: self.v }, self.spans)?;
        debug_assert!(matches!(args.place, Place::Packed));
        check::storable(OP, "k", self.k.dtype())?;
        check::shape(OP, "y", y, self.q.shape())?;
        check::shape(OP, "dy", dy, self.q.shape())?;
        Ok(args)
    }
}

pub(crate) fn attention_backward(call: AttentionCall<'_>, y: &Tensor, dy: &Tensor) -> Result<[Tensor; 3]> {
    const OP: &str = "attention_backward";
    let args = call.check(y, dy)?;
    let wide = |tensor: &Tensor| -> Result<Vec<f64>> {
        Ok(check::in_op(OP, tensor.to_f32_vec())?.into_iter().map(f64::from).collect())
    };
    let (q, k, v, y, dy) = (wide(call.q)?, wide(call.k)?, wide(call.v)?, wide(y)?, wide(dy)?);
    let scale = f64::from(call.scale);
    let (width, heads, kv_heads) = (args.head_dim, args.heads, args.kv_heads);
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let add = |to: &mut [f64], from: &[f64], factor: f64| {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
    };
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for s in 0..args.sequences() {
        let first = args.query_starts[s] as usize;
        for query in 0..args.query_starts[s + 1] as usize - first {
            for head in 0..heads {
                let at = ((first + query) * heads + head) * width..;
                let (q, y, dy) = (&q[at.clone()][..width], &y[at.clone()][..width], &dy[at.clone()][..width]);
                let place = |key: usize| ((first + key) * kv_heads + head / (heads / kv_heads)) * width..;
                let keys = args.visible(s, query);
                let scores: Vec<f64> = (0..keys).map(|key| scale * dot(q, &k[place(key)][..width])).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                let shared = dot(y, dy);
                for (key, score) in scores.iter().enumerate() {
                    let p = (score - largest).exp() / total;
                    let ds = scale * p * (dot(dy, &v[place(key)][..width]) - shared);
                    add(&mut dv[place(key)][..width], dy, p);
                    add(&mut dq[at.clone()][..width], &k[place(key)][..width], ds);
                    add(&mut dk[place(key)][..width], q, ds);
                }
            }
        }
    }
    let narrow = |shape: &[usize], values: Vec<f64>| {
        let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
        check::in_op(OP, Tensor::from_slice(shape, &values))
    };
    Ok([narrow(call.q.shape(), dq)?, narrow(call.k.shape(), dk)?, narrow(call.v.shape(), dv)?])
}
