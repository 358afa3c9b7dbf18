//! The machine's measured limits: what a kernel's speed is a share of.

mod products;

use std::hint::black_box;
use std::time::Instant;

use kanana_tensor::{DType, Tensor};

use super::memory::advise_huge_pages;
use super::simd::{Isa, Kernel, LANES, Lanes, dispatch};
use super::threads::Threads;
use crate::Format;

/// Rounds of a measurement; the best one counts, because other work on the machine can only take away.
const READING_ROUNDS: usize = 5;
/// Those of products are short.
const PRODUCT_ROUNDS: usize = 20;

/// What multiplies and adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Vectors of f32: multiply-add.
    F32Vectors,
    /// Vectors of bf16 pairs, summed in f32: `vdpbf16ps` (AVX512_BF16).
    Bf16Vectors,
    /// Vectors of four bytes to a lane, summed in i32: `vpdpbusd` (VNNI), or what stands for it in smaller instruction sets.
    Int8Vectors,
    /// Tiles of bf16 pairs, summed in f32: `tdpbf16ps` (AMX).
    Bf16Tiles,
    /// Tiles of bytes, summed in i32: `tdpbusd` (AMX).
    Int8Tiles,
}

impl Unit {
    /// Those of an instruction set, on this processor.
    pub fn available(isa: Isa) -> Vec<Unit> {
        let mut units = vec![Unit::F32Vectors];
        if isa >= Isa::Avx512Bf16 && Isa::available().contains(&Isa::Avx512Bf16) {
            units.push(Unit::Bf16Vectors);
        }
        units.push(Unit::Int8Vectors);
        if isa == Isa::Amx {
            units.extend([Unit::Bf16Tiles, Unit::Int8Tiles]);
        }
        units
    }

    /// The one that multiplies inputs with weights of a format.
    pub fn of(isa: Isa, format: Format) -> Unit {
        match format {
            Format::F32 => Unit::F32Vectors,
            Format::BF16 if isa == Isa::Amx => Unit::Bf16Tiles,
            Format::BF16 if isa == Isa::Avx512Bf16 => Unit::Bf16Vectors,
            Format::BF16 => Unit::F32Vectors,
            Format::Q8 | Format::Q4 if isa == Isa::Amx => Unit::Int8Tiles,
            Format::Q8 | Format::Q4 => Unit::Int8Vectors,
        }
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Unit::F32Vectors => "f32 vectors",
            Unit::Bf16Vectors => "bf16 vectors",
            Unit::Int8Vectors => "int8 vectors",
            Unit::Bf16Tiles => "bf16 tiles",
            Unit::Int8Tiles => "int8 tiles",
        }
    }
}

/// The most that a unit does. Units: operations per second, two per multiply-add.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// The unit.
    pub unit: Unit,
    /// On numbers that stay in registers.
    pub registers: f64,
    /// With one vector or tile for every product loaded from the first-level cache.
    pub loads: f64,
}

impl Peak {
    /// The rate that a kernel can reach: of tiles, whose eight registers hold sums and little else, with loads.
    pub fn reachable(self) -> f64 {
        match self.unit {
            Unit::Bf16Tiles | Unit::Int8Tiles => self.loads,
            Unit::F32Vectors | Unit::Bf16Vectors | Unit::Int8Vectors => self.registers.max(self.loads),
        }
    }

    /// The higher of each of two measurements of one unit.
    pub fn max(self, other: Peak) -> Peak {
        let (registers, loads) = (self.registers.max(other.registers), self.loads.max(other.loads));
        Peak { unit: self.unit, registers, loads }
    }
}

/// Measures a unit of an instruction set that this processor has, on `threads` threads.
///
/// Panics where the processor lacks it. Cost: some tenths of a second, seconds where the instruction set is small.
pub fn peak(threads: usize, isa: Isa, unit: Unit) -> Peak {
    assert!(Isa::available().contains(&isa), "this processor has no {}", isa.name());
    let pool = Threads::new(threads);
    let rate = |loads: bool| {
        best(PRODUCT_ROUNDS, || {
            let work = products::Work { isa, unit, loads };
            pool.run(threads, &|_| work.run());
            threads as f64 * work.operations()
        })
    };
    Peak { unit, registers: rate(false), loads: rate(true) }
}

/// Sequential read bandwidth of `threads` threads with an instruction set that this processor has, over a buffer of `bytes` (made larger than any cache by the caller).
///
/// Units: bytes per second. Cost: `bytes` of memory, and some seconds.
pub fn read_bandwidth(threads: usize, isa: Isa, bytes: usize) -> f64 {
    assert!(Isa::available().contains(&isa), "this processor has no {}", isa.name());
    let pool = Threads::new(threads);
    let mut buffer = Tensor::zeros(&[bytes / 4], DType::F32);
    let Ok(data) = buffer.as_mut_slice::<f32>() else { return 0.0 };
    advise_huge_pages(bytemuck::cast_slice_mut(data));
    // The pages must be there, and not all be the one page of zeros.
    pool.chunks_mut(data, 1 << 20, |i, chunk| chunk.fill(i as f32));
    let part = 1 << 20;
    let parts = data.len() / part;
    let data = &*data;
    best(READING_ROUNDS, || {
        pool.run(parts, &|i| {
            black_box(dispatch(isa, Sum(&data[i * part..][..part])));
        });
        (parts * part * 4) as f64
    })
}

fn best(rounds: usize, mut work: impl FnMut() -> f64) -> f64 {
    let rate = |work: &mut dyn FnMut() -> f64| {
        let start = Instant::now();
        let done = work();
        done / start.elapsed().as_secs_f64()
    };
    (0..rounds).map(|_| rate(&mut work)).fold(0.0, f64::max)
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    /// Two streams, as the products read two or more panels at once.
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let (a, b) = self.0.split_at(self.0.len() / 2);
        let (a, b) = (a.as_chunks::<{ 4 * LANES }>().0, b.as_chunks::<{ 4 * LANES }>().0);
        let mut sums = [L::splat(0.0); 8];
        for (a, b) in a.iter().zip(b) {
            L::prefetch(a.as_ptr().wrapping_add(512).cast());
            L::prefetch(b.as_ptr().wrapping_add(512).cast());
            for i in 0..4 {
                sums[i] = sums[i].add(L::load(&a.as_chunks::<LANES>().0[i]));
                sums[i + 4] = sums[i + 4].add(L::load(&b.as_chunks::<LANES>().0[i]));
            }
        }
        sums.into_iter().fold(L::splat(0.0), L::add).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_has_a_rate_on_every_instruction_set() {
        for isa in Isa::available() {
            for unit in Unit::available(isa) {
                let Peak { registers, loads, .. } = peak(1, isa, unit);
                let plausible = 1e7..1e15;
                assert!(plausible.contains(&registers) && plausible.contains(&loads), "{isa:?} {unit:?}");
            }
            for format in Format::ALL {
                assert!(Unit::available(isa).contains(&Unit::of(isa, format)), "{isa:?} {format}");
            }
        }
    }
}
