//! Quantised matrices as bytes that may lie in a file. Contract: [`crate::Kernels::adopt`].

use kanana_tensor::{DType, Tensor, bf16};

use super::pack::PANEL;
use super::quant::{BLOCK, GROUP, STEP, SUB, block_bytes, panel_bytes};
use super::{Format, Layout, Weight};
use crate::ops::check;
use crate::runtime::memory::advise_huge_pages;
use crate::runtime::threads::Threads;
use crate::{KernelError, Result};

/// A quantised matrix `[N, K]` as bytes that mean the same on every machine: numbers are little-endian, and neither the
/// instruction set nor the number of threads has a say.
#[derive(Clone, Debug)]
pub struct Packed {
    /// How the elements are stored; one that is quantised.
    pub format: Format,
    /// N.
    pub out_features: usize,
    /// K.
    pub in_features: usize,
    /// Panels of 16 outputs, of the shape [`Packed::shape`] says, u8.
    pub panels: Tensor,
}

impl Packed {
    /// The version of the layout: another one whenever the same bytes would mean other numbers.
    pub const VERSION: u32 = 1;

    /// The shape of the panels of a matrix `[N, K]`: their number and the bytes of one.
    ///
    /// None for a format that is not quantised, and for more bytes than memory can address.
    pub fn shape(format: Format, out_features: usize, in_features: usize) -> Option<[usize; 2]> {
        // A row takes less than two bytes a weight and less than a kilobyte more: past this bound nothing can overflow.
        let addressable = in_features < isize::MAX as usize / (4 * PANEL);
        let shape = (format.is_quantised() && addressable)
            .then(|| [out_features.div_ceil(PANEL), panel_bytes(format, in_features)])?;
        shape[0].checked_mul(shape[1]).map(|_| shape)
    }

    /// The bytes, once there are as many as the shape calls for.
    fn checked(&self) -> Result<&[u8]> {
        const OP: &str = "adopt";
        let Packed { format, out_features, in_features, ref panels } = *self;
        if !format.is_quantised() {
            return Err(KernelError::NotQuantised { op: OP, format });
        }
        if panels.dtype() != DType::U8 {
            return Err(KernelError::DType {
                op: OP,
                argument: "panels",
                expected: "u8",
                got: panels.dtype(),
            });
        }
        match Packed::shape(format, out_features, in_features) {
            Some(shape) if panels.shape() == shape => check::slice(OP, panels),
            expected => {
                let expected = expected.map_or("fewer elements".to_owned(), |shape| format!("{shape:?}"));
                Err(check::shape_error(OP, "panels", panels, expected))
            }
        }
    }
}

impl Weight {
    /// The bytes of a quantised matrix, shared with it; none for other formats, and for the reference's layout.
    pub fn packed(&self) -> Option<Packed> {
        let Weight { format, out_features, in_features, layout, .. } = *self;
        let shape = Packed::shape(format, out_features, in_features).filter(|_| layout == Layout::Panels)?;
        let panels = self.data.reshape(&shape).expect("as many bytes as were packed: this is a bug");
        Some(Packed { format, out_features, in_features, panels })
    }
}

/// Copies the panels, so that they lie in huge pages and the file's own may go.
pub(crate) fn adopt(threads: &Threads, packed: &Packed) -> Result<Weight> {
    let bytes = packed.checked()?;
    let mut data = Tensor::zeros(&[bytes.len()], DType::U8);
    let copy = check::slice_mut::<u8>("adopt", &mut data)?;
    advise_huge_pages(copy);
    const AT_ONCE: usize = 1 << 18;
    threads.chunks_mut(copy, AT_ONCE, |i, out| out.copy_from_slice(&bytes[i * AT_ONCE..][..out.len()]));
    Ok(packed.weight(Layout::Panels, data))
}

/// The oracle's way: one value after another into rows.
pub(crate) fn adopt_as_rows(packed: &Packed) -> Result<Weight> {
    let bytes = packed.checked()?;
    let Packed { format, out_features, in_features, .. } = *packed;
    let panel_len = panel_bytes(format, in_features);
    let mut rows = Vec::new();
    for n in 0..out_features {
        let panel = &bytes[n / PANEL * panel_len..][..panel_len];
        rows.extend((0..in_features).map(|k| value(format, in_features, panel, (n % PANEL, k))));
    }
    let data = check::in_op("adopt", Tensor::from_slice(&[out_features, in_features], &rows))?;
    Ok(packed.weight(Layout::Rows, data))
}

/// The value of input `k` of output `lane` of a panel: the layout of [`super::quant`], byte by byte.
fn value(format: Format, in_features: usize, panel: &[u8], (lane, k): (usize, usize)) -> f32 {
    let (b, k) = (k / BLOCK, k % BLOCK);
    let block = &panel[b * block_bytes(format)..];
    let steps = BLOCK.min(in_features - b * BLOCK).div_ceil(STEP);
    let (step, quad, place) = (k / STEP, k % STEP / 4, lane * 4 + k % 4);
    let number = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let (code, factor, scales) = match format {
        Format::Q4 => {
            let (codes, factors) = (step * STEP * PANEL / 2, steps * STEP * PANEL / 2);
            let both = block[codes + quad % 8 * 4 * PANEL + place];
            let code = if quad < 8 { both & 15 } else { both >> 4 };
            let factor = number(factors + 2 * (step * PANEL + lane)) >> (k % STEP / SUB * 4) & 15;
            (i32::from(code) - 8, i32::from(factor), factors + 2 * steps * PANEL)
        }
        _ => {
            let code = block[step * STEP * PANEL + quad * 4 * PANEL + place];
            (i32::from(code) - 128, 1, steps * STEP * PANEL)
        }
    };
    (code * factor) as f32 * bf16::from_bits(number(scales + 2 * (k / GROUP * PANEL + lane))).to_f32()
}

impl Packed {
    fn weight(&self, layout: Layout, data: Tensor) -> Weight {
        let Packed { format, out_features, in_features, .. } = *self;
        Weight { out_features, in_features, format, layout, data }
    }
}
