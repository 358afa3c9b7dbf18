//! The oracle: every score of a query, a softmax over all of them, a weighted sum.

use kanana_tensor::{DType, Tensor, bf16};

use super::kv_format::{dequantise, quantise};
use super::{Arguments, KeyValues, KvFormat, Positions, Spans, check_attention, check_write_kv};
use crate::Result;
use crate::ops::check;

pub(crate) fn attention(q: &Tensor, kv: KeyValues<'_>, spans: &Spans, scale: f32) -> Result<Tensor> {
    let args = check_attention(q, &kv, spans)?;
    let (k, v) = match kv {
        KeyValues::Packed { k, v } | KeyValues::Paged { k, v, .. } => (k, v),
    };
    // What meets keys and values of 16 or 8 bits is rounded to bf16, as matrix units take it.
    let narrow = k.dtype() != DType::F32;
    let as_taken = |x: f32| if narrow { bf16::from_f32(x).to_f32() } else { x };
    let (k, v) = (Stored::new(k, &args)?, Stored::new(v, &args)?);
    let q = check::slice::<f32>("attention", q)?;
    let width = args.head_dim;
    let mut out = vec![0.0; args.tokens * args.heads * width];
    for s in 0..args.sequences() {
        let rows = args.query_starts[s] as usize..args.query_starts[s + 1] as usize;
        for (query, row) in rows.enumerate() {
            for head in 0..args.heads {
                let kv_head = head / (args.heads / args.kv_heads);
                let at = (row * args.heads + head) * width;
                let places: Vec<usize> = (0..args.visible(s, query))
                    .map(|first| args.run(Positions { sequence: s, kv_head, first, count: 1 }, 0).start)
                    .collect();
                let query: Vec<f32> = q[at..][..width].iter().map(|&x| as_taken(x)).collect();
                let score = |&place: &usize| {
                    scale * query.iter().zip(k.row(place)).map(|(q, k)| q * as_taken(k)).sum::<f32>()
                };
                let scores: Vec<f32> = places.iter().map(score).collect();
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f32 = weights.iter().sum();
                for (weight, &place) in weights.iter().zip(&places) {
                    for (out, v) in out[at..][..width].iter_mut().zip(v.row(place)) {
                        *out += as_taken(*weight) * as_taken(v);
                    }
                }
                out[at..][..width].iter_mut().for_each(|out| *out /= total);
            }
        }
    }
    check::in_op("attention", Tensor::from_slice(&[args.tokens, args.heads, width], &out))
}

/// Keys or values as f32, whatever they are stored as.
struct Stored {
    values: Vec<f32>,
    row_len: usize,
    head_dim: usize,
}

impl Stored {
    fn new(kv: &Tensor, args: &Arguments<'_>) -> Result<Self> {
        let (row_len, head_dim) = (args.row_len, args.head_dim);
        let values = match kv.dtype() {
            DType::U8 => {
                let rows = check::slice::<u8>("attention", kv)?.chunks_exact(row_len);
                rows.flat_map(dequantise).collect()
            }
            _ => check::in_op("attention", kv.to_f32_vec())?,
        };
        Ok(Stored { values, row_len, head_dim })
    }

    /// The row that starts at an element of the stored tensor.
    fn row(&self, place: usize) -> impl Iterator<Item = f32> {
        self.values[place / self.row_len * self.head_dim..][..self.head_dim].iter().copied()
    }
}

pub(crate) fn write_kv(x: &Tensor, cache: &mut Tensor, slots: &Tensor) -> Result<()> {
    let ([_, kv_heads, block_size, row_len], slots) = check_write_kv(x, cache, slots)?;
    let head_dim = x.row_len() / kv_heads.max(1);
    let x = check::slice::<f32>("write_kv", x)?;
    let format = KvFormat::of(cache.dtype());
    for (t, &slot) in slots.iter().enumerate() {
        for head in 0..kv_heads {
            let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
            let place = ((block * kv_heads + head) * block_size + offset) * row_len;
            let row = &x[(t * kv_heads + head) * head_dim..][..head_dim];
            match format {
                Some(KvFormat::Q8) => {
                    quantise(row, &mut check::slice_mut::<u8>("write_kv", cache)?[place..][..row_len]);
                }
                Some(KvFormat::BF16) => {
                    let to = &mut check::slice_mut::<bf16>("write_kv", cache)?[place..][..row_len];
                    to.iter_mut().zip(row).for_each(|(to, &x)| *to = bf16::from_f32(x));
                }
                _ => check::slice_mut::<f32>("write_kv", cache)?[place..][..row_len].copy_from_slice(row),
            }
        }
    }
    Ok(())
}
