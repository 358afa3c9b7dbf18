//! The integers of sixteen lanes: sums of products of 8-bit numbers, exact and so the same on every unit.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::LANES;
use super::Portable;
#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};

/// Bytes in a vector: a quad for each lane.
pub(crate) const BYTES: usize = 64;

/// Sixteen i32 values or sixty-four unsigned bytes in the place of sixteen f32 values.
pub(crate) trait Integers: Copy {
    /// Sixteen i32 values.
    type Ints: Copy;
    /// Sixty-four bytes, a quad for each lane.
    type Bytes: Copy;
    /// Whether there are 32 registers of a whole vector, so that two dozen sums can stay in them.
    const MANY_REGISTERS: bool;

    fn splat_int(x: i32) -> Self::Ints;
    fn load_ints(x: &[i32; LANES]) -> Self::Ints;
    fn load_words(x: &[u16; LANES]) -> Self::Ints;
    fn add_ints(x: Self::Ints, y: Self::Ints) -> Self::Ints;
    /// The low 32 bits of the products.
    fn mul_ints(x: Self::Ints, y: Self::Ints) -> Self::Ints;
    /// Bits `4 i .. 4 i + 4`.
    fn nibble_of(x: Self::Ints, i: u32) -> Self::Ints;
    fn from_ints(x: Self::Ints) -> Self;
    /// Lanes that hold integers, narrowed; beyond the range of i8 to its ends.
    fn store_as_i8(self, to: &mut [i8; LANES]);

    fn load_bytes(x: &[u8; BYTES]) -> Self::Bytes;
    fn store_bytes(x: Self::Bytes, to: &mut [u8; BYTES]);
    /// The low and the high four bits of every byte.
    fn nibbles(x: Self::Bytes) -> (Self::Bytes, Self::Bytes);
    /// `sums + Σ x[4 i + j] · quad[j]` in lane i: four inputs, the same for every lane.
    fn add_quads(sums: Self::Ints, x: Self::Bytes, quad: [i8; 4]) -> Self::Ints;
    /// `x · factor + offset` in the four bytes of each lane, where factor is that lane's. No product may exceed 255.
    fn scale_bytes(x: Self::Bytes, factors: Self::Ints, offsets: Self::Ints) -> Self::Bytes;
}

impl Integers for Portable {
    type Ints = [i32; LANES];
    type Bytes = [u8; BYTES];
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat_int(x: i32) -> [i32; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    fn load_ints(x: &[i32; LANES]) -> [i32; LANES] {
        *x
    }
    #[inline(always)]
    fn load_words(x: &[u16; LANES]) -> [i32; LANES] {
        x.map(i32::from)
    }
    #[inline(always)]
    fn add_ints(x: [i32; LANES], y: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|i| x[i] + y[i])
    }
    #[inline(always)]
    fn mul_ints(x: [i32; LANES], y: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|i| x[i].wrapping_mul(y[i]))
    }
    #[inline(always)]
    fn nibble_of(x: [i32; LANES], i: u32) -> [i32; LANES] {
        x.map(|x| (x >> (4 * i)) & 15)
    }
    #[inline(always)]
    fn from_ints(x: [i32; LANES]) -> Self {
        Portable(x.map(|x| x as f32))
    }
    #[inline(always)]
    fn store_as_i8(self, to: &mut [i8; LANES]) {
        *to = self.0.map(|x| x as i8);
    }
    #[inline(always)]
    fn load_bytes(x: &[u8; BYTES]) -> [u8; BYTES] {
        *x
    }
    #[inline(always)]
    fn store_bytes(x: [u8; BYTES], to: &mut [u8; BYTES]) {
        *to = x;
    }
    #[inline(always)]
    fn nibbles(x: [u8; BYTES]) -> ([u8; BYTES], [u8; BYTES]) {
        (x.map(|x| x & 15), x.map(|x| x >> 4))
    }
    #[inline(always)]
    fn add_quads(mut sums: [i32; LANES], x: [u8; BYTES], quad: [i8; 4]) -> [i32; LANES] {
        let quad = quad.map(i32::from);
        for (sum, x) in sums.iter_mut().zip(x.as_chunks::<4>().0) {
            let x = x.map(i32::from);
            *sum += (x[0] * quad[0] + x[1] * quad[1]) + (x[2] * quad[2] + x[3] * quad[3]);
        }
        sums
    }
    #[inline(always)]
    fn scale_bytes(mut x: [u8; BYTES], factors: [i32; LANES], offsets: [i32; LANES]) -> [u8; BYTES] {
        for (lane, quad) in x.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *quad = quad.map(|x| (i32::from(x) * factors[lane] + offsets[lane]) as u8);
        }
        x
    }
}

// SAFETY of every block below: as for the f32 lanes of the same instruction set.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Integers for Avx512 {
    type Ints = __m512i;
    type Bytes = __m512i;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn splat_int(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn load_ints(x: &[i32; LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_words(x: &[u16; LANES]) -> __m512i {
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn add_ints(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(x, y) }
    }
    #[inline(always)]
    fn mul_ints(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(x, y) }
    }
    #[inline(always)]
    fn nibble_of(x: __m512i, i: u32) -> __m512i {
        unsafe {
            let shifted = _mm512_srl_epi32(x, _mm_cvtsi32_si128(4 * i as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi32(15))
        }
    }
    #[inline(always)]
    fn from_ints(x: __m512i) -> Self {
        unsafe { Avx512(_mm512_cvtepi32_ps(x)) }
    }
    #[inline(always)]
    fn store_as_i8(self, to: &mut [i8; LANES]) {
        unsafe {
            let narrow = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(self.0));
            _mm_storeu_si128(to.as_mut_ptr().cast(), narrow);
        }
    }
    #[inline(always)]
    fn load_bytes(x: &[u8; BYTES]) -> __m512i {
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(x: __m512i, to: &mut [u8; BYTES]) {
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn nibbles(x: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let low = _mm512_set1_epi8(15);
            (_mm512_and_si512(x, low), _mm512_and_si512(_mm512_srli_epi16::<4>(x), low))
        }
    }
    #[inline(always)]
    fn add_quads(sums: __m512i, x: __m512i, quad: [i8; 4]) -> __m512i {
        let quad = i32::from_le_bytes(quad.map(|x| x as u8));
        unsafe { _mm512_dpbusd_epi32(sums, x, _mm512_set1_epi32(quad)) }
    }
    #[inline(always)]
    fn scale_bytes(x: __m512i, factors: __m512i, offsets: __m512i) -> __m512i {
        unsafe {
            // A 16-bit product of two bytes at once: that of the low byte has no carry.
            let factors = _mm512_or_si512(factors, _mm512_slli_epi32::<16>(factors));
            let offsets = _mm512_shuffle_epi8(offsets, _mm512_set4_epi32(LANE_3, LANE_2, LANE_1, LANE_0));
            _mm512_add_epi8(_mm512_mullo_epi16(x, factors), offsets)
        }
    }
}

/// The first byte of each lane of a quarter, four times.
#[cfg(target_arch = "x86_64")]
const LANE_0: i32 = 0;
#[cfg(target_arch = "x86_64")]
const LANE_1: i32 = 0x0404_0404;
#[cfg(target_arch = "x86_64")]
const LANE_2: i32 = 0x0808_0808;
#[cfg(target_arch = "x86_64")]
const LANE_3: i32 = 0x0c0c_0c0c;

// SAFETY of every block below: as for the f32 lanes of the same instruction set.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Integers for Avx2 {
    type Ints = [__m256i; 2];
    type Bytes = [__m256i; 2];
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat_int(x: i32) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    fn load_ints(x: &[i32; LANES]) -> [__m256i; 2] {
        unsafe {
            let p: *const __m256i = x.as_ptr().cast();
            [_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))]
        }
    }
    #[inline(always)]
    fn load_words(x: &[u16; LANES]) -> [__m256i; 2] {
        unsafe {
            let p: *const __m128i = x.as_ptr().cast();
            [_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1)))]
        }
    }
    #[inline(always)]
    fn add_ints(x: [__m256i; 2], y: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_add_epi32(x[0], y[0]), _mm256_add_epi32(x[1], y[1])] }
    }
    #[inline(always)]
    fn mul_ints(x: [__m256i; 2], y: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_mullo_epi32(x[0], y[0]), _mm256_mullo_epi32(x[1], y[1])] }
    }
    #[inline(always)]
    fn nibble_of(x: [__m256i; 2], i: u32) -> [__m256i; 2] {
        unsafe {
            let (count, low) = (_mm_cvtsi32_si128(4 * i as i32), _mm256_set1_epi32(15));
            [
                _mm256_and_si256(_mm256_srl_epi32(x[0], count), low),
                _mm256_and_si256(_mm256_srl_epi32(x[1], count), low),
            ]
        }
    }
    #[inline(always)]
    fn from_ints(x: [__m256i; 2]) -> Self {
        unsafe { Avx2(_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])) }
    }
    #[inline(always)]
    fn store_as_i8(self, to: &mut [i8; LANES]) {
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            // The halves come out quarter by quarter: 0, 2, 1, 3.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn load_bytes(x: &[u8; BYTES]) -> [__m256i; 2] {
        unsafe {
            let p: *const __m256i = x.as_ptr().cast();
            [_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))]
        }
    }
    #[inline(always)]
    fn store_bytes(x: [__m256i; 2], to: &mut [u8; BYTES]) {
        unsafe {
            let p: *mut __m256i = to.as_mut_ptr().cast();
            _mm256_storeu_si256(p, x[0]);
            _mm256_storeu_si256(p.add(1), x[1]);
        }
    }
    #[inline(always)]
    fn nibbles(x: [__m256i; 2]) -> ([__m256i; 2], [__m256i; 2]) {
        unsafe {
            let low = _mm256_set1_epi8(15);
            (
                [_mm256_and_si256(x[0], low), _mm256_and_si256(x[1], low)],
                [
                    _mm256_and_si256(_mm256_srli_epi16::<4>(x[0]), low),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(x[1]), low),
                ],
            )
        }
    }
    /// The even and the odd bytes apart, as 16-bit numbers: `vpmaddubsw` would saturate.
    #[inline(always)]
    fn add_quads(sums: [__m256i; 2], x: [__m256i; 2], quad: [i8; 4]) -> [__m256i; 2] {
        unsafe {
            let pair = |a: i8, b: i8| (i32::from(b) << 16) | (i32::from(a) & 0xffff);
            let even = _mm256_set1_epi32(pair(quad[0], quad[2]));
            let odd = _mm256_set1_epi32(pair(quad[1], quad[3]));
            let low = _mm256_set1_epi16(255);
            let mut total = sums;
            for half in 0..2 {
                let evens = _mm256_madd_epi16(_mm256_and_si256(x[half], low), even);
                let odds = _mm256_madd_epi16(_mm256_srli_epi16::<8>(x[half]), odd);
                total[half] = _mm256_add_epi32(total[half], _mm256_add_epi32(evens, odds));
            }
            total
        }
    }
    #[inline(always)]
    fn scale_bytes(x: [__m256i; 2], factors: [__m256i; 2], offsets: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let first_bytes =
                _mm256_setr_epi32(LANE_0, LANE_1, LANE_2, LANE_3, LANE_0, LANE_1, LANE_2, LANE_3);
            let mut scaled = x;
            for half in 0..2 {
                let factors = _mm256_or_si256(factors[half], _mm256_slli_epi32::<16>(factors[half]));
                let offsets = _mm256_shuffle_epi8(offsets[half], first_bytes);
                scaled[half] = _mm256_add_epi8(_mm256_mullo_epi16(x[half], factors), offsets);
            }
            scaled
        }
    }
}
