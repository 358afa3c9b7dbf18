//! Inputs that follow from a seed.

#![allow(dead_code, reason = "every test file uses some of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use kanana_tensor::Tensor;

/// A sequence of test inputs (SplitMix64).
pub struct Inputs(pub u64);

impl Inputs {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> u32 {
        (self.next() % limit as u64) as u32
    }

    /// Uniform in -2..2.
    pub fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| (self.next() >> 40) as f32 / (1 << 22) as f32 - 2.0)
            .collect();
        Tensor::from_slice(shape, &values).unwrap()
    }

    pub fn ids(&mut self, count: usize, limit: usize) -> Tensor {
        let ids: Vec<u32> = (0..count).map(|_| self.below(limit)).collect();
        Tensor::from_slice(&[count], &ids).unwrap()
    }
}

/// A one-dimensional tensor of indices.
pub fn u32s(values: &[u32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values).unwrap()
}

/// A seed that no run had before; a failure names it.
pub fn fresh_seed() -> u64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    elapsed.as_nanos() as u64
}
