//! The machine's measured limits: what a kernel's speed is a share of.

use std::hint::black_box;
use std::time::Instant;

use kanana_tensor::{DType, Tensor};

use super::memory::advise_huge_pages;
use super::simd::{Isa, Kernel, LANES, Lanes, dispatch};
use super::threads::Threads;
use crate::Format;

/// Rounds of a measurement; the best one counts, because other work on the machine can only take away.
const ROUNDS: usize = 5;

/// Sequential read bandwidth of `threads` threads over a buffer of `bytes` (made larger than any cache by the caller).
///
/// Units: bytes per second. Cost: `bytes` of memory, and some seconds.
pub fn read_bandwidth(threads: usize, bytes: usize) -> f64 {
    let pool = Threads::new(threads);
    let isa = Isa::best();
    let mut buffer = Tensor::zeros(&[bytes / 4], DType::F32);
    let Ok(data) = buffer.as_mut_slice::<f32>() else { return 0.0 };
    advise_huge_pages(bytemuck::cast_slice_mut(data));
    // The pages must be there, and not all be the one page of zeros.
    pool.chunks_mut(data, 1 << 20, |i, chunk| chunk.fill(i as f32));
    let part = 1 << 20;
    let parts = data.len() / part;
    let data = &*data;
    best(|| {
        pool.run(parts, &|i| {
            black_box(dispatch(isa, Sum(&data[i * part..][..part])));
        });
        (parts * part * 4) as f64
    })
}

/// Rate at which `threads` threads multiply and add numbers that are at hand: f32 in vector registers, or bf16 tiles from
/// the first-level cache where there is a matrix unit, for all other weights; quantised ones, too, are compared with it.
///
/// Units: FLOP per second, two per multiply-add.
pub fn arithmetic_peak(threads: usize, format: Format) -> f64 {
    let pool = Threads::new(threads);
    let isa = Isa::best();
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && format != Format::F32 {
        return best(|| {
            pool.run(threads, &|_| crate::ops::linear::amx::multiply_at_hand(MATRIX_STEPS));
            (threads * MATRIX_STEPS * crate::ops::linear::amx::STEP_FLOPS) as f64
        });
    }
    let _ = format;
    best(|| {
        pool.run(threads, &|_| {
            black_box(dispatch(isa, Fma));
        });
        (threads * FMA_STEPS * FMA_CHAINS * LANES * 2) as f64
    })
}

fn best(mut work: impl FnMut() -> f64) -> f64 {
    let rate = |work: &mut dyn FnMut() -> f64| {
        let start = Instant::now();
        let done = work();
        done / start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| rate(&mut work)).fold(0.0, f64::max)
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

#[cfg(target_arch = "x86_64")]
const MATRIX_STEPS: usize = 200_000;
const FMA_STEPS: usize = 4_000_000;
const FMA_CHAINS: usize = 12;

struct Fma;

impl Kernel for Fma {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let mut sums = [L::splat(0.0); FMA_CHAINS];
        let (a, b) = (L::splat(black_box(1.000_001)), L::splat(black_box(0.999_999)));
        for _ in 0..FMA_STEPS {
            for sum in &mut sums {
                *sum = sum.fma(a, b);
            }
        }
        sums.into_iter().fold(L::splat(0.0), L::add).sum()
    }
}
