//! The oracle: every score of a query, a softmax over all of them, a weighted sum.

use kanana_tensor::{DType, Tensor, bf16};

use super::{KeyValues, Spans, check_attention, check_write_kv};
use crate::Result;
use crate::ops::check;

pub(crate) fn attention(q: &Tensor, kv: KeyValues<'_>, spans: &Spans, scale: f32) -> Result<Tensor> {
    let args = check_attention(q, &kv, spans)?;
    let (k, v) = match kv {
        KeyValues::Packed { k, v } | KeyValues::Paged { k, v, .. } => (k, v),
    };
    let (k, v) = (check::in_op("attention", k.to_f32_vec())?, check::in_op("attention", v.to_f32_vec())?);
    let q = check::slice::<f32>("attention", q)?;
    let width = args.head_dim;
    let mut out = vec![0.0; args.tokens * args.heads * width];
    for s in 0..args.sequences() {
        let rows = args.query_starts[s] as usize..args.query_starts[s + 1] as usize;
        for (query, row) in rows.enumerate() {
            for head in 0..args.heads {
                let kv_head = head / (args.heads / args.kv_heads);
                let at = (row * args.heads + head) * width;
                let starts: Vec<usize> =
                    (0..args.visible(s, query)).map(|p| args.key_start(s, p, kv_head)).collect();
                let scores: Vec<f32> = starts
                    .iter()
                    .map(|&start| scale * (0..width).map(|i| q[at + i] * k[start + i]).sum::<f32>())
                    .collect();
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f32 = weights.iter().sum();
                for i in 0..width {
                    let sum: f32 = weights.iter().zip(&starts).map(|(w, &start)| w * v[start + i]).sum();
                    out[at + i] = sum / total;
                }
            }
        }
    }
    check::in_op("attention", Tensor::from_slice(&[args.tokens, args.heads, width], &out))
}

/// One body serves every implementation in host memory: the work is a copy.
pub(crate) fn write_kv(x: &Tensor, cache: &mut Tensor, slots: &Tensor) -> Result<()> {
    let ([_, kv_heads, block_size, head_dim], slots) = check_write_kv(x, cache, slots)?;
    let x = check::slice::<f32>("write_kv", x)?;
    let place = |slot: u32, head: usize| {
        let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
        ((block * kv_heads + head) * block_size + offset) * head_dim
    };
    let rows = |t: usize, head: usize| &x[(t * kv_heads + head) * head_dim..][..head_dim];
    match cache.dtype() {
        DType::BF16 => {
            let cache = check::slice_mut::<bf16>("write_kv", cache)?;
            for (t, &slot) in slots.iter().enumerate() {
                for head in 0..kv_heads {
                    let to = &mut cache[place(slot, head)..][..head_dim];
                    to.iter_mut().zip(rows(t, head)).for_each(|(to, &x)| *to = bf16::from_f32(x));
                }
            }
        }
        _ => {
            let cache = check::slice_mut::<f32>("write_kv", cache)?;
            for (t, &slot) in slots.iter().enumerate() {
                for head in 0..kv_heads {
                    cache[place(slot, head)..][..head_dim].copy_from_slice(rows(t, head));
                }
            }
        }
    }
    Ok(())
}
