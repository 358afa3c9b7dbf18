//! Keys and values of past tokens, in blocks that any sequence may hold.

use kanana_kernels::Kernels;
use kanana_tensor::{DType, Tensor};

use crate::{Config, Result};

/// The paged cache of all layers. Who owns which block is the caller's business.
pub struct KvCache {
    layers: Vec<LayerCache>,
    num_blocks: usize,
    block_size: usize,
}

/// One layer's blocks.
pub(crate) struct LayerCache {
    pub(crate) k: Tensor, // [B, K, P, H]
    pub(crate) v: Tensor, // [B, K, P, H]
}

impl KvCache {
    /// A cache of `num_blocks` blocks of `block_size` positions, stored as `dtype` (f32 or bf16).
    pub fn new(
        kernels: &dyn Kernels,
        config: &Config,
        num_blocks: usize,
        block_size: usize,
        dtype: DType,
    ) -> Result<Self> {
        let shape = [num_blocks, config.num_key_value_heads, block_size, config.head_dim];
        let layer = || Ok(LayerCache { k: kernels.zeros(&shape, dtype)?, v: kernels.zeros(&shape, dtype)? });
        let layers = (0..config.num_hidden_layers).map(|_| layer()).collect::<Result<_>>()?;
        Ok(KvCache { layers, num_blocks, block_size })
    }

    /// Memory of one block in all layers. Units: bytes.
    pub fn bytes_per_block(config: &Config, block_size: usize, dtype: DType) -> usize {
        2 * config.num_hidden_layers
            * config.num_key_value_heads
            * block_size
            * config.head_dim
            * dtype.size()
    }

    /// B.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// P.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub(crate) fn layer(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }
}
