//! Numbers that follow from a seed, in the place of trained ones: to measure speed, and to test laws that hold for any.

use kanana_kernels::Format;
use kanana_tensor::{DType, Tensor, bf16};

use crate::Result;
use crate::load::Source;

/// Weights drawn from a seed, matrices stored as `dtype`, vectors as f32.
pub struct Random {
    pub(crate) seed: u64,
    pub(crate) dtype: DType,
}

impl Random {
    /// Those that [`crate::Transformer::random`] loads in this format.
    pub fn new(seed: u64, format: Format) -> Self {
        Random { seed, dtype: format.kv_format().dtype() }
    }
}

impl Source for Random {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        random_tensor(name, shape, self.dtype, self.seed)
    }
}

/// The tensor that [`crate::Transformer::random`] loads under this name: uniform, with the variance 1/K that keeps
/// activations of order one; norms near one. Matrices are rounded to `dtype`, f32 or bf16; vectors are f32.
pub fn random_tensor(name: &str, shape: &[usize], dtype: DType, seed: u64) -> Result<Tensor> {
    // A tensor's values follow from its name, so that the order of loading does not matter. (FNV-1a.)
    let name_hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let (centre, reach) = match shape {
        [_, inputs] => (0.0, (3.0 / *inputs as f32).sqrt()),
        _ if name.contains("norm") => (1.0, 0.25),
        _ => (0.0, 0.25),
    };
    let mut values = uniform(seed ^ name_hash, centre, reach);
    let dtype = if shape.len() == 2 { dtype } else { DType::F32 };
    let mut tensor = Tensor::zeros(shape, dtype);
    match dtype {
        DType::BF16 => fill(tensor.as_mut_slice()?, values.map(bf16::from_f32)),
        _ => fill(tensor.as_mut_slice()?, &mut values),
    }
    Ok(tensor)
}

/// Fills a slice from a sequence without an end.
pub(crate) fn fill<T>(slice: &mut [T], values: impl Iterator<Item = T>) {
    slice.iter_mut().zip(values).for_each(|(to, value)| *to = value);
}

/// Values spread evenly over `centre - reach .. centre + reach`, without an end.
pub(crate) fn uniform(seed: u64, centre: f32, reach: f32) -> impl Iterator<Item = f32> {
    let mut state = seed;
    // Four values from each 64-bit number of a SplitMix64 sequence.
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    })
    .flat_map(|bytes| [0, 2, 4, 6].map(|i| i16::from_le_bytes([bytes[i], bytes[i + 1]])))
    .map(move |x| centre + reach * f32::from(x) / 32768.0)
}
