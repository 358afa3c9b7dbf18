//! Keys and values of past tokens, in blocks that any sequence may hold.

use kanana_kernels::{Kernels, KvFormat};
use kanana_tensor::{DType, Tensor};

use crate::random::{fill, uniform};
use crate::{Config, Result};

/// The paged cache of all layers. Who owns which block is the caller's business.
pub struct KvCache {
    layers: Vec<LayerCache>,
    num_blocks: usize,
    block_size: usize,
    head_dim: usize,
}

/// One layer's blocks.
pub(crate) struct LayerCache {
    pub(crate) k: Tensor, // [B, K, P, W], W as the format has it
    pub(crate) v: Tensor, // [B, K, P, W]
}

impl KvCache {
    /// A cache of `num_blocks` blocks of `block_size` positions, stored in `format`.
    pub fn new(
        kernels: &dyn Kernels,
        config: &Config,
        num_blocks: usize,
        block_size: usize,
        format: KvFormat,
    ) -> Result<Self> {
        let shape = [num_blocks, config.num_key_value_heads, block_size, format.row_len(config.head_dim)];
        let blocks = || kernels.zeros(&shape, format.dtype());
        let layer = || Ok(LayerCache { k: blocks()?, v: blocks()? });
        let layers = (0..config.num_hidden_layers).map(|_| layer()).collect::<Result<_>>()?;
        Ok(KvCache { layers, num_blocks, block_size, head_dim: config.head_dim })
    }

    /// Memory of one block in all layers. Units: bytes.
    pub fn bytes_per_block(config: &Config, block_size: usize, format: KvFormat) -> usize {
        2 * config.num_hidden_layers
            * config.num_key_value_heads
            * block_size
            * format.row_bytes(config.head_dim)
    }

    /// B.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// P.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Writes random keys and values at these slots, as if tokens had been computed there: uniform with a variance of one,
    /// as those of a [random model](crate::Transformer::random) have. To measure what a long context costs without
    /// computing it.
    ///
    /// Shapes: `slots [T]`, as in [`crate::Batch::slot_mapping`]. Errors: a slot outside of the cache.
    pub fn fill_random(&mut self, kernels: &dyn Kernels, slots: &[u32], seed: u64) -> Result<()> {
        const AT_ONCE: usize = 1024;
        let mut values = uniform(seed, 0.0, 3f32.sqrt());
        for LayerCache { k, v } in &mut self.layers {
            let kv_heads = k.shape()[1];
            for cache in [k, v] {
                for slots in slots.chunks(AT_ONCE) {
                    let mut x_tkh = Tensor::zeros(&[slots.len(), kv_heads, self.head_dim], DType::F32);
                    fill(x_tkh.as_mut_slice()?, &mut values);
                    let slots = kernels.upload(&Tensor::from_slice(&[slots.len()], slots)?)?;
                    kernels.write_kv(&kernels.upload(&x_tkh)?, cache, &slots)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn layer(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }
}
