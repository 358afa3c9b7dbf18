//! Products with weight matrices, and the layouts weights are kept in. Contract: [`crate::Kernels::linear`].

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod backward;
pub(crate) mod backward_cpu;
#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16_dot;
pub(crate) mod cpu;
pub(crate) mod pack;
pub(crate) mod packed;
pub(crate) mod quant;
#[cfg(target_arch = "x86_64")]
pub(crate) mod quant_amx;
pub(crate) mod quant_cpu;
pub(crate) mod reference;
pub(crate) mod shares;

pub(crate) use backward::backward_weight;
use kanana_tensor::{Identity, Tensor};

use crate::ops::check;
use crate::{KernelError, KvFormat, Result};

/// How the elements of a weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32 bits.
    F32,
    /// 16 bits.
    BF16,
    /// 8 bits, in groups of 256 inputs with a scale: 8.06 bits a weight.
    Q8,
    /// 4 bits, likewise, with a factor for each 16 inputs: 4.31 bits a weight.
    Q4,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 4] = [Format::F32, Format::BF16, Format::Q8, Format::Q4];

    /// The name on the command line: `f32`, `bf16`, `q8`, `q4`.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::BF16 => "bf16",
            Format::Q8 => "q8",
            Format::Q4 => "q4",
        }
    }

    /// What keys and values are usually stored as beside weights of this format.
    pub const fn kv_format(self) -> KvFormat {
        match self {
            Format::F32 => KvFormat::F32,
            _ => KvFormat::BF16,
        }
    }

    /// Whether weights are codes with scales.
    pub const fn is_quantised(self) -> bool {
        matches!(self, Format::Q8 | Format::Q4)
    }

    /// The format of the embedding and the output matrix beside layers of this one: 4 bits are too few for them.
    pub const fn of_embedding(self) -> Format {
        match self {
            Format::Q4 => Format::Q8,
            other => other,
        }
    }

    /// Memory of so many weights, without the padding of the last panels. Units: bytes.
    pub const fn bytes(self, weights: u64) -> u64 {
        match self {
            Format::F32 => 4 * weights,
            Format::BF16 => 2 * weights,
            Format::Q8 | Format::Q4 => {
                let (bytes, held) = (quant::block_bytes(self), quant::BLOCK * pack::PANEL);
                (weights as u128 * bytes as u128 / held as u128) as u64
            }
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How the elements of a weight are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[N, K]`, as given; quantised weights as the f32 values of their codes.
    Rows,
    /// Panels of 16 outputs; f32: `[N/16][K][16 n]`; bf16: `[N/16][K/32][16 pairs][16 n][2]`, which is the tile that
    /// `tdpbf16ps` takes; quantised: as [`quant`] says. All padded with zeros.
    Panels,
}

/// A matrix `[N, K]` in the layout of the implementation that packed it.
#[derive(Clone, Debug)]
pub struct Weight {
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
    pub(crate) format: Format,
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

    /// How the elements are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What tells this weight from others.
    pub fn identity(&self) -> Identity {
        self.data.identity()
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
