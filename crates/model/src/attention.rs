//! Grouped-query attention with rotary positions and, in the Qwen3 families, norms on queries and keys.

use kanana_kernels::{KeyValues, RopeTable};
use kanana_tensor::Tensor;

use crate::batch::Step;
use crate::kv_cache::LayerCache;
use crate::linear::Linear;
use crate::load::Loader;
use crate::{Config, Result};

pub(crate) struct Attention {
    q_proj: Linear,         // [N·H, D]
    k_proj: Linear,         // [K·H, D]
    v_proj: Linear,         // [K·H, D]
    o_proj: Linear,         // [D, N·H]
    q_norm: Option<Tensor>, // [H]
    k_norm: Option<Tensor>, // [H]
    num_heads: usize,       // N
    num_kv_heads: usize,    // K
    head_dim: usize,        // H
    rms_norm_eps: f32,
}

impl Attention {
    pub(crate) fn load(loader: &Loader<'_>, prefix: &str, config: &Config) -> Result<Self> {
        let (d, n, k, h) =
            (config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let projection = |name: &str, shape: [usize; 2], bias: bool| {
            loader.linear(&format!("{prefix}.{name}"), shape, bias)
        };
        let norm = |name: &str| match config.qk_norm {
            true => loader.vector(&format!("{prefix}.{name}.weight"), h).map(Some),
            false => Ok(None),
        };
        Ok(Attention {
            q_proj: projection("q_proj", [n * h, d], config.attention_bias)?,
            k_proj: projection("k_proj", [k * h, d], config.attention_bias)?,
            v_proj: projection("v_proj", [k * h, d], config.attention_bias)?,
            o_proj: projection("o_proj", [d, n * h], config.has_output_bias())?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            num_heads: n,
            num_kv_heads: k,
            head_dim: h,
            rms_norm_eps: config.rms_norm_eps as f32,
        })
    }

    /// Shapes: `x [T, D]` → `[T, D]`; writes the new keys and values into `cache` when there is one.
    pub(crate) fn forward(
        &self,
        step: &Step<'_>,
        x: &Tensor,
        rope: &RopeTable,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let kernels = step.kernels;
        let (t, h) = (x.rows(), self.head_dim);
        let [q, k, v] = Linear::forward_all(kernels, x, [&self.q_proj, &self.k_proj, &self.v_proj])?;
        let mut q_tnh = q.reshape(&[t, self.num_heads, h])?;
        let mut k_tkh = k.reshape(&[t, self.num_kv_heads, h])?;
        let v_tkh = v.reshape(&[t, self.num_kv_heads, h])?;
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            q_tnh = kernels.rms_norm(&q_tnh, q_norm, self.rms_norm_eps)?;
            k_tkh = kernels.rms_norm(&k_tkh, k_norm, self.rms_norm_eps)?;
        }
        let q_tnh = kernels.rope(&q_tnh, rope, &step.positions)?;
        let k_tkh = kernels.rope(&k_tkh, rope, &step.positions)?;
        let scale = (h as f32).sqrt().recip();
        let y_tnh = match (cache, &step.slot_mapping, &step.block_table) {
            (Some(cache), Some(slots), Some(block_table)) => {
                kernels.write_kv(&k_tkh, &mut cache.k, slots)?;
                kernels.write_kv(&v_tkh, &mut cache.v, slots)?;
                let kv = KeyValues::Paged { k: &cache.k, v: &cache.v, block_table };
                kernels.attention(&q_tnh, kv, &step.spans, scale)?
            }
            _ => {
                let round = |x| kernels.round_kv(x, step.kv_format);
                let (k, v) = (round(&k_tkh)?, round(&v_tkh)?);
                kernels.attention(&q_tnh, KeyValues::Packed { k: &k, v: &v }, &step.spans, scale)?
            }
        };
        self.o_proj.forward(kernels, &y_tnh.reshape(&[t, self.num_heads * h])?)
    }
}
