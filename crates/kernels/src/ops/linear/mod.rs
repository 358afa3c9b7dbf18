//! Products with weight matrices, and the layouts weights are kept in. Contract: [`crate::Kernels::linear`].

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod cpu;
pub(crate) mod pack;
pub(crate) mod reference;

use kanana_tensor::{DType, Tensor};

use crate::ops::check;
use crate::{KernelError, Result};

/// How the elements of a weight are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[N, K]`, as given.
    Rows,
    /// Panels of 16 outputs; f32: `[N/16][K][16 n]`; bf16: `[N/16][K/32][16 pairs][16 n][2]`, which is the tile that
    /// `tdpbf16ps` takes. Both padded with zeros.
    Panels,
}

/// A matrix `[N, K]` in the layout of the implementation that packed it.
#[derive(Clone, Debug)]
pub struct Weight {
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
    pub(crate) layout: Layout,
    pub(crate) data: Tensor,
}

impl Weight {
    /// N: outputs, or rows of a table.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// K: inputs, or the width of a table.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The dtype the elements are stored in.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// Bytes in memory, padding included.
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    pub(crate) fn check_layout(&self, op: &'static str, layout: Layout) -> Result<()> {
        if self.layout == layout { Ok(()) } else { Err(KernelError::ForeignWeight { op }) }
    }
}

/// `[T, K]` against `[N, K]`: T.
pub(crate) fn check_linear(x: &Tensor, w: &Weight) -> Result<usize> {
    let [tokens, inputs] = check::dims("linear", "x", x)?;
    if inputs != w.in_features {
        return Err(check::shape_error("linear", "x", x, format!("[T, {}]", w.in_features)));
    }
    Ok(tokens)
}
