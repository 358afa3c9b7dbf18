//! The integer sums of quantised products on AVX2, which has sixteen registers and no instruction for the quads of
//! [`crate::runtime::simd::Integers::add_quads`].
//!
//! `vpmaddubsw` multiplies unsigned bytes by signed ones and adds neighbours in 16 bits, where it saturates. With 4 bits the
//! codes are the unsigned ones, without their factors: a sub-group of 16 inputs, less eight times the sum of its
//! inputs, is within 31,496 of zero and exact; its factor widens it to 32 bits (`vpmaddwd`). With 8 bits the magnitude
//! of a weight multiplies inputs that took its sign: two products are within 32,512. So inputs stay as they are for the
//! other vectors, and sums of a group are the same integers.
//!
//! A group of a panel is laid out once, in the first-level cache, for all rows of a task.
//!
//! What is called for each product is `inline(always)`, and takes no closure: a call there costs more than the product.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // Registers are named by row and half.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Format;
use super::quant::{GROUP, GROUPS, STEP, STEPS, SUB, SUBS, panel_bytes, step_len, zero_code};
use super::quant_cpu::{Block, Product};
use crate::runtime::simd::{Avx2, BYTES, Integers, LANES, Lanes};

/// Rows of a task, at most: their codes of a group are 24 KiB of the first-level cache.
pub(crate) const ROWS: usize = 96;
/// Rows up to which panels are read one after another, so that memory is one long stream; more rows meet all panels of a
/// task group by group, so that the inputs of a group stay in the first-level cache.
const STREAMED_ROWS: usize = 16;
/// Bytes ahead of the reader that are asked for.
const PREFETCH: usize = 8192;

/// Quads of a step, and of a sub-group.
const QUADS: usize = STEP / 4;
const SUB_QUADS: usize = SUB / 4;
/// Sub-groups of a step.
const STEP_SUBS: usize = STEP / SUB;

/// Signed inputs of a step of a row, sub-group by sub-group.
type StepInputs = [[[u8; 4]; SUB_QUADS]; STEP_SUBS];
/// The sums of sixteen outputs.
type Ints = <Avx2 as Integers>::Ints;

/// A group of a panel with 4 bits as many rows take it.
#[repr(C, align(64))]
struct Nibbles {
    codes: [[[u8; BYTES]; QUADS]; STEPS],
    /// Of each sub-group and output twice, in 16 bits.
    factors: [[[i32; LANES]; STEP_SUBS]; STEPS],
}

/// The codes of a group of a panel, and its factors where there are some.
#[derive(Clone, Copy)]
struct Stored<'a> {
    codes: &'a [[u8; BYTES]],
    factors: &'a [[u16; LANES]], // [steps]
    /// How far behind a byte the one lies that is asked for with it. Units: bytes; zero where nothing is.
    ahead: usize,
}

impl Stored<'_> {
    /// Asks for what comes behind some of the codes.
    #[inline(always)]
    fn prefetch(&self, codes: &[[u8; BYTES]]) {
        if self.ahead > 0 {
            for line in codes {
                Avx2::prefetch(line.as_ptr().wrapping_add(self.ahead));
            }
        }
    }
}

/// All rows by all panels of a block. Only with `Isa::Avx2`.
pub(crate) fn multiply(block: &Block<'_>) {
    // SAFETY: `Isa::Avx2` is chosen only where the processor has the instructions.
    unsafe {
        match block.product.format {
            Format::Q4 => walk::<true>(block),
            _ => walk::<false>(block),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn walk<const NIBBLES: bool>(Block { product, rows, panels }: &Block<'_>) {
    for row in rows.clone() {
        product.target(row, panels.start, panels.len()).fill(0.0);
    }
    let mut room = Nibbles { codes: [[[0; BYTES]; QUADS]; STEPS], factors: [[[0; LANES]; STEP_SUBS]; STEPS] };
    let (together, ahead) = match rows.len() {
        ..=STREAMED_ROWS => (1, PREFETCH),
        _ => (panels.len().max(1), panel_bytes(product.format, product.in_features)),
    };
    for first in panels.clone().step_by(together) {
        for g in 0..product.inputs.per_row {
            for panel in first..panels.end.min(first + together) {
                let view = product.block(panel, g / GROUPS);
                let (steps, len) = (product.inputs.steps_in_block(g), step_len(product.format));
                let stored = Stored {
                    codes: view.codes[steps.start * len..steps.end * len].as_chunks().0,
                    factors: if NIBBLES { &view.factors[steps] } else { &[] },
                    ahead,
                };
                let to = Outputs { product, panel, g, scales: Avx2::load_bf16(&view.scales[g % GROUPS]) };
                match NIBBLES {
                    true => rows_by_nibbles(&to, rows.clone(), stored, &mut room),
                    false => rows_by_bytes(&to, rows.clone(), stored),
                }
            }
        }
    }
}

/// The sixteen outputs of a panel, for a group of inputs.
struct Outputs<'a> {
    product: &'a Product<'a>,
    panel: usize,
    g: usize,
    scales: Avx2,
}

impl Outputs<'_> {
    /// The group's inputs of `R` rows.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn inputs<const R: usize>(&self, row: usize) -> [&[StepInputs]; R] {
        let inputs = self.product.inputs;
        let mut steps: [&[StepInputs]; R] = [&[]; R];
        for r in 0..R {
            let bytes: &[u8] = bytemuck::cast_slice(inputs.tiles(row + r, inputs.steps_of(self.g)));
            let quads = bytes.as_chunks::<4>().0;
            steps[r] = quads.as_chunks::<SUB_QUADS>().0.as_chunks::<STEP_SUBS>().0;
        }
        steps
    }

    /// What the sums of the sub-groups of `R` rows start from, in the low 16 bits of a lane.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn offsets<const R: usize>(&self, row: usize) -> [[i32; SUBS]; R] {
        let mut offsets = [[0; SUBS]; R];
        for r in 0..R {
            let sums = Avx2::load_ints(&self.product.inputs.parameters(row + r, self.g).minus_sums);
            for half in 0..2 {
                let times_zero = _mm256_slli_epi32::<{ 16 + ZERO_BITS }>(sums[half]);
                store_half(_mm256_srli_epi32::<16>(times_zero), &mut offsets[r], half);
            }
        }
        offsets
    }

    /// Adds the scaled sums of `R` rows; `R`.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn add<const R: usize>(&self, row: usize, sums: [Ints; R]) -> usize {
        for r in 0..R {
            let scale = Avx2::splat(self.product.inputs.parameters(row + r, self.g).scale);
            let scaled = self.scales.mul(Avx2::from_ints(sums[r]));
            let to = self.product.target(row + r, self.panel, 1);
            match to.first_chunk_mut::<LANES>() {
                Some(to) => Avx2::load(to).fma(scaled, scale).store(to),
                None => Avx2::load_partial(to, 0.0).fma(scaled, scale).store_partial(to),
            }
        }
        R
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rows_by_bytes(to: &Outputs<'_>, rows: Range<usize>, mut stored: Stored<'_>) {
    let mut row = rows.start;
    while row < rows.end {
        row += match share(rows.end - row) {
            4 => to.add(row, sums_of_bytes::<4>(stored, to.inputs(row))),
            3 => to.add(row, sums_of_bytes::<3>(stored, to.inputs(row))),
            2 => to.add(row, sums_of_bytes::<2>(stored, to.inputs(row))),
            _ => to.add(row, sums_of_bytes::<1>(stored, to.inputs(row))),
        };
        stored.ahead = 0;
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rows_by_nibbles(to: &Outputs<'_>, rows: Range<usize>, mut stored: Stored<'_>, room: &mut Nibbles) {
    if rows.len() == 1 {
        let [inputs] = to.inputs(rows.start);
        let [offsets] = to.offsets(rows.start);
        to.add(rows.start, [sums_of_stored_nibbles(stored, inputs, &offsets)]);
        return;
    }
    lay_out(stored, room);
    let mut row = rows.start;
    while row < rows.end {
        let weights = (&*room, stored);
        row += match share(rows.end - row) {
            4 => to.add(row, sums_of_nibbles::<4>(weights, to.inputs(row), to.offsets(row))),
            3 => to.add(row, sums_of_nibbles::<3>(weights, to.inputs(row), to.offsets(row))),
            2 => to.add(row, sums_of_nibbles::<2>(weights, to.inputs(row), to.offsets(row))),
            _ => to.add(row, sums_of_nibbles::<1>(weights, to.inputs(row), to.offsets(row))),
        };
        stored.ahead = 0;
    }
}

/// How many of so many rows are multiplied next: four, and the last ones in shares of about one size.
#[inline(always)]
fn share(rows: usize) -> usize {
    match rows {
        ..=4 => rows,
        5 | 6 => 3,
        _ => 4,
    }
}

/// The factors of the sub-groups of a step, twice in a lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn factor_pairs(words: &[u16; LANES]) -> [Ints; STEP_SUBS] {
    let low = _mm256_set1_epi16(15);
    let words = Avx2::load_words(words);
    let mut pairs = [words; STEP_SUBS];
    for half in 0..2 {
        let twice = _mm256_or_si256(words[half], _mm256_slli_epi32::<16>(words[half]));
        pairs[0][half] = _mm256_and_si256(twice, low);
        pairs[1][half] = _mm256_and_si256(_mm256_srli_epi16::<4>(twice), low);
        pairs[2][half] = _mm256_and_si256(_mm256_srli_epi16::<8>(twice), low);
        pairs[3][half] = _mm256_srli_epi16::<12>(twice);
    }
    pairs
}

/// The low halves of the bytes of a step are its first two sub-groups, the high ones its others.
#[target_feature(enable = "avx2,fma,f16c")]
fn lay_out(stored: Stored<'_>, room: &mut Nibbles) {
    let steps = stored.codes.as_chunks::<{ QUADS / 2 }>().0.iter().zip(stored.factors);
    for ((codes, words), (to, factors)) in steps.zip(room.codes.iter_mut().zip(&mut room.factors)) {
        let (to_low, to_high) = to.split_at_mut(QUADS / 2);
        for i in 0..QUADS / 2 {
            let (low, high) = Avx2::nibbles(Avx2::load_bytes(&codes[i]));
            Avx2::store_bytes(low, &mut to_low[i]);
            Avx2::store_bytes(high, &mut to_high[i]);
        }
        let pairs = factor_pairs(words);
        for sub in 0..STEP_SUBS {
            store_half(pairs[sub][0], &mut factors[sub], 0);
            store_half(pairs[sub][1], &mut factors[sub], 1);
        }
    }
}

/// `zero_code` is two to this power.
const ZERO_BITS: i32 = 3;
const _: () = assert!(zero_code(Format::Q4) == 1 << ZERO_BITS && SUBS == LANES && GROUP == SUBS * SUB);

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sums_of_nibbles<const R: usize>(
    (weights, stored): (&Nibbles, Stored<'_>),
    inputs: [&[StepInputs]; R],
    offsets: [[i32; SUBS]; R],
) -> [Ints; R] {
    let mut totals = [Avx2::splat_int(0); R];
    let lines = stored.codes.as_chunks::<{ SUB_QUADS / 2 }>().0.as_chunks::<STEP_SUBS>().0;
    for (step, lines) in lines.iter().enumerate() {
        let (codes, factors) = (weights.codes[step].as_chunks::<SUB_QUADS>().0, &weights.factors[step]);
        for sub in 0..STEP_SUBS {
            stored.prefetch(&lines[sub]);
            let mut sums = [Avx2::splat_int(0); R];
            for r in 0..R {
                sums[r] = Avx2::splat_int(offsets[r][step * STEP_SUBS + sub]);
            }
            for quad in 0..SUB_QUADS {
                let codes = Avx2::load_bytes(&codes[sub][quad]);
                for r in 0..R {
                    sums[r] = add_products(sums[r], codes, inputs[r][step][sub][quad]);
                }
            }
            let factors = Avx2::load_ints(&factors[sub]);
            for r in 0..R {
                totals[r] = add_widened(totals[r], sums[r], factors);
            }
        }
    }
    totals
}

/// One row: laying out the codes would cost more than multiplying them.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sums_of_stored_nibbles(stored: Stored<'_>, inputs: &[StepInputs], offsets: &[i32; SUBS]) -> Ints {
    let mut total = Avx2::splat_int(0);
    let steps = stored.codes.as_chunks::<SUB_QUADS>().0.as_chunks::<{ STEP_SUBS / 2 }>().0;
    let offsets = offsets.as_chunks::<STEP_SUBS>().0;
    for (((codes, words), inputs), offsets) in steps.iter().zip(stored.factors).zip(inputs).zip(offsets) {
        let factors = factor_pairs(words);
        for sub in 0..STEP_SUBS / 2 {
            let high_sub = sub + STEP_SUBS / 2;
            let (mut low, mut high) = (Avx2::splat_int(offsets[sub]), Avx2::splat_int(offsets[high_sub]));
            stored.prefetch(&codes[sub]);
            for quad in 0..SUB_QUADS {
                let (low_codes, high_codes) = Avx2::nibbles(Avx2::load_bytes(&codes[sub][quad]));
                low = add_products(low, low_codes, inputs[sub][quad]);
                high = add_products(high, high_codes, inputs[high_sub][quad]);
            }
            total = add_widened(total, low, factors[sub]);
            total = add_widened(total, high, factors[high_sub]);
        }
    }
    total
}

/// Adds products of codes and a quad in 16 bits.
#[inline(always)]
fn add_products(sums: Ints, codes: Ints, quad: [u8; 4]) -> Ints {
    let x = splat_quad(quad);
    // SAFETY: called with AVX2 only, as all of this file.
    unsafe {
        [
            _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(codes[0], x)),
            _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(codes[1], x)),
        ]
    }
}

/// Adds sums in 16 bits times their factors.
#[inline(always)]
fn add_widened(totals: Ints, sums: Ints, factors: Ints) -> Ints {
    // SAFETY: called with AVX2 only, as all of this file.
    unsafe {
        [
            _mm256_add_epi32(totals[0], _mm256_madd_epi16(sums[0], factors[0])),
            _mm256_add_epi32(totals[1], _mm256_madd_epi16(sums[1], factors[1])),
        ]
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sums_of_bytes<const R: usize>(stored: Stored<'_>, inputs: [&[StepInputs]; R]) -> [Ints; R] {
    let (zero, ones) = (_mm256_set1_epi8(zero_code(Format::Q8) as u8 as i8), _mm256_set1_epi16(1));
    let mut totals = [Avx2::splat_int(0); R];
    let steps = stored.codes.as_chunks::<SUB_QUADS>().0.as_chunks::<STEP_SUBS>().0;
    for (step, codes) in steps.iter().enumerate() {
        for sub in 0..STEP_SUBS {
            stored.prefetch(&codes[sub]);
            for quad in 0..SUB_QUADS {
                let codes = Avx2::load_bytes(&codes[sub][quad]);
                for half in 0..2 {
                    let weights = _mm256_xor_si256(codes[half], zero);
                    let magnitudes = _mm256_abs_epi8(weights);
                    for r in 0..R {
                        let signed = _mm256_sign_epi8(splat_quad(inputs[r][step][sub][quad]), weights);
                        let pairs = _mm256_maddubs_epi16(magnitudes, signed);
                        totals[r][half] = _mm256_add_epi32(totals[r][half], _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
        }
    }
    totals
}

#[inline(always)]
fn splat_quad(quad: [u8; 4]) -> __m256i {
    // SAFETY: called with AVX2 only, as all of this file.
    unsafe { _mm256_set1_epi32(i32::from_ne_bytes(quad)) }
}

/// Stores eight numbers as the first or the second eight.
#[inline(always)]
fn store_half(x: __m256i, to: &mut [i32; LANES], half: usize) {
    let to = &mut to.as_chunks_mut::<8>().0[half];
    // SAFETY: called with AVX2 only, as all of this file; the reference is to the 32 bytes that are written.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
}
