//! Sixteen f32 lanes on whatever the processor has, so that a kernel is written once and sums in one order everywhere.
//!
//! A kernel is a [`Kernel`]: a struct of its arguments whose `run` is generic over [`Lanes`]. [`dispatch`] compiles it
//! for each instruction set and calls the one that was detected. The lanes of an instruction set must only be used
//! inside of `dispatch`: that is where the processor is known to have it.
//!
//! A kernel walks in plain loops: lanes that pass through a closure of an iterator or of an array (`fold`, `map`,
//! `from_fn`) are compiled without the instruction set, thirty times slower.

#![allow(unsafe_code)]

mod integers;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

pub(crate) use integers::{BYTES, Integers};

use kanana_tensor::bf16;

/// Lanes in a vector.
pub(crate) const LANES: usize = 16;

/// Instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler makes of plain arrays.
    Portable,
    /// AVX2, FMA and F16C: two vectors of eight.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// The same, and `vdpbf16ps` for bf16 products: AMD's processors from Zen 4 run it at twice the rate of f32.
    Avx512Bf16,
    /// AVX-512, and the matrix unit for bf16 and 8-bit products.
    Amx,
}

impl Isa {
    /// Every set this processor can run, slowest first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut sets = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Isa::Avx2);
                let avx512 = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni");
                if avx512 {
                    sets.push(Isa::Avx512);
                    if is_x86_feature_detected!("avx512bf16") {
                        sets.push(Isa::Avx512Bf16);
                    }
                    if super::amx::available() {
                        sets.push(Isa::Amx);
                    }
                }
            }
        }
        sets
    }

    /// The fastest set this processor can run.
    pub fn best() -> Isa {
        let pays = |isa: &Isa| *isa != Isa::Avx512Bf16 || bf16_pairs_are_fast();
        Self::available().into_iter().rfind(pays).unwrap_or(Isa::Portable)
    }

    /// The name in reports: `amx`, `avx512bf16`, `avx512`, `avx2`, `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }
}

/// Whether `vdpbf16ps` beats two f32 multiply-adds. On AMD's processors from Zen 4 on it does: `kanana bench limits` on a
/// Zen 5 shows twice the rate of f32. On Intel's it does not, by published instruction tables: half the rate.
#[cfg(target_arch = "x86_64")]
fn bf16_pairs_are_fast() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}
#[cfg(not(target_arch = "x86_64"))]
fn bf16_pairs_are_fast() -> bool {
    false
}

/// A kernel with its arguments. `run` must be `#[inline(always)]`, or it is compiled without the instruction set.
pub(crate) trait Kernel {
    type Output;
    fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs a kernel with an instruction set that the caller got from [`Isa::available`].
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn avx512<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<Avx512>()
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<Avx2>()
        }
        match isa {
            // SAFETY: `Cpu` and the measurements of limits take instruction sets of `Isa::available` only.
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => return unsafe { avx512(kernel) },
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { avx2(kernel) },
            Isa::Portable => {}
        }
    }
    let _ = isa;
    kernel.run::<Portable>()
}

/// Round to nearest, ties to even, as `bf16::from_f32` does; NaN stays NaN. Written on bits so that it vectorises.
#[inline(always)]
pub(crate) fn bf16_rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(if x.is_nan() { (bits | 0x0040_0000) & 0xffff_0000 } else { rounded })
}

/// [`bf16_rounded`] as a bf16 number.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> bf16 {
    bf16::from_bits((bf16_rounded(x).to_bits() >> 16) as u16)
}

/// Sixteen f32 values.
pub(crate) trait Lanes: Integers {
    /// Vectors of sixteen that the processor's registers hold at once.
    const HELD: usize = 32;
    fn splat(x: f32) -> Self;
    fn load(x: &[f32; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    /// Sixteen bf16 values, widened.
    fn load_bf16(x: &[bf16; LANES]) -> Self;
    /// Sixteen pairs of bf16 values, widened: the first and the second of each pair.
    fn load_bf16_pairs(x: &[bf16; 2 * LANES]) -> (Self, Self);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self + a · b`, rounded once (twice on portable hardware without FMA).
    fn fma(self, a: Self, b: Self) -> Self;
    /// The larger; `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// Rounds to the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `2^self` for lanes that hold integers from -126 to 127.
    fn exp2_of_integer(self) -> Self;
    /// `self` where `x` is not below `limit`, zero elsewhere.
    fn zero_below(self, x: Self, limit: f32) -> Self;
    /// `a` in lanes where `self` is above zero, `b` elsewhere.
    fn choose(self, a: Self, b: Self) -> Self;
    /// The sum of the lanes by halves: lane i and i + 8, then i + 4, i + 2, i + 1.
    fn sum(self) -> f32;
    /// Pairs of the elements of two rows.
    #[inline(always)]
    fn interleave(first: &[bf16; LANES], second: &[bf16; LANES], to: &mut [bf16; 2 * LANES]) {
        for i in 0..LANES {
            (to[2 * i], to[2 * i + 1]) = (first[i], second[i]);
        }
    }
    /// Lane i of vector j becomes lane j of vector i. Bits stay as they are, whatever they mean.
    #[inline(always)]
    fn transpose(x: [Self; LANES]) -> [Self; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for i in 0..LANES {
            x[i].store(&mut rows[i]);
        }
        let mut turned = [x[0]; LANES];
        for i in 0..LANES {
            let mut column = [0.0; LANES];
            for j in 0..LANES {
                column[j] = rows[j][i];
            }
            turned[i] = Self::load(&column);
        }
        turned
    }
    fn prefetch(address: *const u8);
    /// Fewer than sixteen values, the rest `fill`.
    #[inline(always)]
    fn load_partial(x: &[f32], fill: f32) -> Self {
        let mut full = [fill; LANES];
        full[..x.len()].copy_from_slice(x);
        Self::load(&full)
    }

    /// The first `to.len()` lanes.
    #[inline(always)]
    fn store_partial(self, to: &mut [f32]) {
        let mut full = [0.0; LANES];
        self.store(&mut full);
        to.copy_from_slice(&full[..to.len()]);
    }

    /// The largest lane; unspecified where one is NaN.
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut full = [0.0; LANES];
        self.store(&mut full);
        full.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// `e^self` within 2 units in the last place from -87.3 to 88.37; zero below, constant above, NaN for NaN.
    ///
    /// Source: range reduction by `n·ln 2` in two parts (Cody and Waite 1980), then the Taylor polynomial of degree 7.
    #[inline(always)]
    fn exp(self) -> Self {
        const LOWEST: f32 = -87.3;
        let x = Self::splat(88.37).min(Self::splat(LOWEST).max(self));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        let r = x.fma(n, Self::splat(-0.693_359_4)).fma(n, Self::splat(2.121_944_4e-4));
        let mut p = Self::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = Self::splat(c).fma(p, r);
        }
        p.mul(n.exp2_of_integer()).zero_below(self, LOWEST)
    }
}

/// Plain arrays.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

#[inline(always)]
fn multiply_add(sum: f32, a: f32, b: f32) -> f32 {
    // Without the instruction, `mul_add` is a slow library call.
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, sum) } else { sum + a * b }
}

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Portable(*x)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn load_bf16(x: &[bf16; LANES]) -> Self {
        Portable(std::array::from_fn(|i| x[i].to_f32()))
    }
    #[inline(always)]
    fn load_bf16_pairs(x: &[bf16; 2 * LANES]) -> (Self, Self) {
        let half = |odd: usize| Portable(std::array::from_fn(|i| x[2 * i + odd].to_f32()));
        (half(0), half(1))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |x, y| x / y)
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| multiply_add(self.0[i], a.0[i], b.0[i])))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn round(self) -> Self {
        Portable(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    fn exp2_of_integer(self) -> Self {
        Portable(self.0.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)))
    }
    #[inline(always)]
    fn zero_below(self, x: Self, limit: f32) -> Self {
        self.zip(x, |value, x| if x < limit { 0.0 } else { value })
    }
    #[inline(always)]
    fn choose(self, a: Self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| if self.0[i] > 0.0 { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut x = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] += x[i + half];
            }
        }
        x[0]
    }
    #[inline(always)]
    fn prefetch(_address: *const u8) {}
}

/// One vector of sixteen.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

// SAFETY of every block below: `dispatch` is the only caller of kernels with these lanes, after the processor was
// found to have the instructions; loads and stores go through references to arrays of the right size.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx512 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        unsafe { Avx512(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        unsafe { Avx512(_mm512_loadu_ps(x.as_ptr())) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn load_bf16(x: &[bf16; LANES]) -> Self {
        unsafe {
            let half = _mm256_loadu_si256(x.as_ptr().cast());
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))))
        }
    }
    #[inline(always)]
    fn load_bf16_pairs(x: &[bf16; 2 * LANES]) -> (Self, Self) {
        unsafe {
            let pairs = _mm512_loadu_si512(x.as_ptr().cast());
            let first = _mm512_slli_epi32::<16>(pairs);
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (Avx512(_mm512_castsi512_ps(first)), Avx512(_mm512_castsi512_ps(second)))
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        unsafe { Avx512(_mm512_fmadd_ps(a.0, b.0, self.0)) }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Avx512(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn round(self) -> Self {
        unsafe { Avx512(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }
    #[inline(always)]
    fn exp2_of_integer(self) -> Self {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    fn zero_below(self, x: Self, limit: f32) -> Self {
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, _mm512_set1_ps(limit));
            Avx512(_mm512_maskz_mov_ps(keep, self.0))
        }
    }
    #[inline(always)]
    fn choose(self, a: Self, b: Self) -> Self {
        unsafe {
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm512_setzero_ps());
            Avx512(_mm512_mask_mov_ps(b.0, above, a.0))
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let low = _mm512_castps512_ps256(self.0);
            sum_of_eight(_mm256_add_ps(low, _mm512_extractf32x8_ps::<1>(self.0)))
        }
    }
    #[inline(always)]
    fn interleave(first: &[bf16; LANES], second: &[bf16; LANES], to: &mut [bf16; 2 * LANES]) {
        unsafe {
            let first = _mm512_cvtepu16_epi32(_mm256_loadu_si256(first.as_ptr().cast()));
            let second = _mm512_cvtepu16_epi32(_mm256_loadu_si256(second.as_ptr().cast()));
            let pairs = _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }
    /// Pairs, then fours of lanes of four vectors are put side by side; then quarters of vectors, twice.
    #[inline(always)]
    fn transpose(x: [Self; LANES]) -> [Self; LANES] {
        unsafe {
            let mut fours = [x[0].0; LANES];
            for i in 0..4 {
                let [a, b, c, d] = [x[4 * i].0, x[4 * i + 1].0, x[4 * i + 2].0, x[4 * i + 3].0];
                let (low_ab, high_ab) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (low_cd, high_cd) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                fours[4 * i] = _mm512_shuffle_ps::<0x44>(low_ab, low_cd);
                fours[4 * i + 1] = _mm512_shuffle_ps::<0xee>(low_ab, low_cd);
                fours[4 * i + 2] = _mm512_shuffle_ps::<0x44>(high_ab, high_cd);
                fours[4 * i + 3] = _mm512_shuffle_ps::<0xee>(high_ab, high_cd);
            }
            // Quarter q of vector 4 i + j now holds lane 4 q + j of vectors 4 i .. 4 i + 4.
            let mut turned = x;
            for j in 0..4 {
                let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
                let (even_ab, odd_ab) =
                    (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (even_cd, odd_cd) =
                    (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                turned[j] = Avx512(_mm512_shuffle_f32x4::<0x88>(even_ab, even_cd));
                turned[4 + j] = Avx512(_mm512_shuffle_f32x4::<0x88>(odd_ab, odd_cd));
                turned[8 + j] = Avx512(_mm512_shuffle_f32x4::<0xdd>(even_ab, even_cd));
                turned[12 + j] = Avx512(_mm512_shuffle_f32x4::<0xdd>(odd_ab, odd_cd));
            }
            turned
        }
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

/// Two vectors of eight.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn sum_of_eight(x: __m256) -> f32 {
    // SAFETY: as for the lanes, its only callers.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

// SAFETY of every block below: as for `Avx512`.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx2 {
    const HELD: usize = 8;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        unsafe { Avx2(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), self.1);
        }
    }
    #[inline(always)]
    fn load_bf16(x: &[bf16; LANES]) -> Self {
        unsafe {
            let p: *const __m128i = x.as_ptr().cast();
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1))));
            Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    fn load_bf16_pairs(x: &[bf16; 2 * LANES]) -> (Self, Self) {
        unsafe {
            let p: *const __m256i = x.as_ptr().cast();
            let (a, b) = (_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1)));
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let (first_a, first_b) = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
            let (second_a, second_b) = (_mm256_and_si256(a, high), _mm256_and_si256(b, high));
            (
                Avx2(_mm256_castsi256_ps(first_a), _mm256_castsi256_ps(first_b)),
                Avx2(_mm256_castsi256_ps(second_a), _mm256_castsi256_ps(second_b)),
            )
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        unsafe { Avx2(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Avx2(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    fn exp2_of_integer(self) -> Self {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias));
            Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    fn zero_below(self, x: Self, limit: f32) -> Self {
        unsafe {
            let limit = _mm256_set1_ps(limit);
            let (low, high) =
                (_mm256_cmp_ps::<_CMP_NLT_UQ>(x.0, limit), _mm256_cmp_ps::<_CMP_NLT_UQ>(x.1, limit));
            Avx2(_mm256_and_ps(self.0, low), _mm256_and_ps(self.1, high))
        }
    }
    #[inline(always)]
    fn choose(self, a: Self, b: Self) -> Self {
        unsafe {
            let zero = _mm256_setzero_ps();
            let low = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, zero);
            let high = _mm256_cmp_ps::<_CMP_GT_OQ>(self.1, zero);
            Avx2(_mm256_blendv_ps(b.0, a.0, low), _mm256_blendv_ps(b.1, a.1, high))
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe { sum_of_eight(_mm256_add_ps(self.0, self.1)) }
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything<'a>(&'a [f32; LANES]);

    impl Kernel for Everything<'_> {
        type Output = (Vec<f32>, f32);
        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Output {
            let x = L::load(self.0);
            let y = x
                .mul(L::splat(0.5))
                .fma(x, x)
                .sub(x.exp())
                .max(x.min(L::splat(2.0)))
                .div(L::splat(3.0))
                .add(x);
            let mut out = [0.0; LANES];
            y.store(&mut out);
            (out.to_vec(), y.sum())
        }
    }

    struct Exp(f32);
    impl Kernel for Exp {
        type Output = f32;
        #[inline(always)]
        fn run<L: Lanes>(self) -> f32 {
            let mut out = [0.0; LANES];
            L::splat(self.0).exp().store(&mut out);
            out[3]
        }
    }

    #[test]
    fn instruction_sets_agree() {
        let x: [f32; LANES] = std::array::from_fn(|i| (i as f32 - 7.3) * 0.77);
        let (expected, expected_sum) = dispatch(Isa::Portable, Everything(&x));
        for isa in Isa::available() {
            let (got, sum) = dispatch(isa, Everything(&x));
            for (a, b) in got.iter().zip(&expected) {
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{isa:?}: {a} {b}");
            }
            assert!((sum - expected_sum).abs() < 1e-2 * expected_sum.abs(), "{isa:?}");
        }
    }

    struct Turn<'a>(&'a [[f32; LANES]; LANES]);
    impl Kernel for Turn<'_> {
        type Output = [[f32; LANES]; LANES];
        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Output {
            let mut turned = [[0.0; LANES]; LANES];
            let rows = L::transpose(self.0.map(|x| L::load(&x)));
            rows.into_iter().zip(&mut turned).for_each(|(row, to)| row.store(to));
            turned
        }
    }

    #[test]
    fn transposed_lanes_change_places() {
        let x: [[f32; LANES]; LANES] = std::array::from_fn(|j| std::array::from_fn(|i| (16 * j + i) as f32));
        for isa in Isa::available() {
            let turned = dispatch(isa, Turn(&x));
            for (i, row) in turned.iter().enumerate() {
                assert_eq!(*row, x.map(|x| x[i]), "{isa:?}: lane {i}");
            }
        }
    }

    #[test]
    fn exp_is_exp() {
        for isa in Isa::available() {
            for i in -8700..8800 {
                let x = i as f32 * 0.01;
                let (got, expected) = (dispatch(isa, Exp(x)) as f64, (x as f64).exp());
                assert!(
                    (got - expected).abs() <= 3e-7 * expected,
                    "{isa:?} exp({x}) = {got}, not {expected}"
                );
            }
            assert_eq!(dispatch(isa, Exp(f32::NEG_INFINITY)), 0.0);
            assert_eq!(dispatch(isa, Exp(-100.0)), 0.0);
            assert!(dispatch(isa, Exp(f32::NAN)).is_nan());
            assert_eq!(dispatch(isa, Exp(0.0)), 1.0);
        }
    }
}
