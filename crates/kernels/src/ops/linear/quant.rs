//! Weights of 8 and 4 bits: what their numbers mean, and where they lie in memory.
//!
//! A group is 256 inputs of one output with one scale in bf16. With 8 bits, `weight = scale · (code - 128)`. With 4 bits
//! each 16 inputs of a group have a factor from 0 to 15 besides: `weight = scale · factor · (code - 8)`. The product of
//! factor and code is an 8-bit number, so a group is summed in integers from end to end, whatever the unit: one rounding
//! and one scale to 256 products. So 8.06 and 4.31 bits a weight.
//!
//! A panel is 16 outputs, in blocks of 512 inputs, the last maybe shorter. A block holds the codes as the 8-bit matrix unit
//! takes them, `[8 steps of 64 inputs][16 quads][16 n][4]` (with 4 bits the quads 8 to 15 are the high halves of the bytes
//! of quads 0 to 7), then the factors, `[8 steps][16 n] u16` of four bits each, then the scales, `[2 groups][16 n]`. So a
//! panel is read from end to end, and two groups fill whole cache lines.
//!
//! Inputs are quantised too, to 8 signed bits with one scale for each row and group: sums of a group are exact, the
//! same in any order on any unit, and only the sum over groups is rounded, in the order of k.

use kanana_tensor::bf16;

use super::Format;
use super::pack::PANEL;
use crate::runtime::simd::{Isa, Kernel, LANES, Lanes, dispatch};

/// Inputs with a scale of their own.
pub(crate) const GROUP: usize = 256;
/// Inputs with a factor of their own, in 4 bits.
pub(crate) const SUB: usize = 16;
/// Sub-groups of a group.
pub(crate) const SUBS: usize = GROUP / SUB;
/// Inputs of a tile of the 8-bit matrix unit: panels are padded to whole steps.
pub(crate) const STEP: usize = 64;
/// Steps of a group.
pub(crate) const STEPS: usize = GROUP / STEP;
/// Inputs of a block, and its groups.
pub(crate) const BLOCK: usize = GROUPS * GROUP;
pub(crate) const GROUPS: usize = 2;
/// Bytes of a vector of codes: four inputs of 16 outputs.
pub(crate) const VECTOR: usize = 4 * PANEL;
/// Bytes of the codes of a step as 8-bit numbers.
pub(crate) const STEP_BYTES: usize = STEP * PANEL;
/// Bytes of the factors of a step.
const STEP_FACTORS: usize = 2 * PANEL;
/// The largest factor.
const MAX_FACTOR: f32 = 15.0;
/// Numbers of a group whose largest is below this are zeros: inverses, and squares of weights, stay in the range of f32.
pub(crate) const SMALLEST: f32 = 1e-15;

/// Bytes of the codes of a step as they are stored.
pub(crate) const fn step_len(format: Format) -> usize {
    match format {
        Format::Q4 => STEP_BYTES / 2,
        _ => STEP_BYTES,
    }
}

/// What is subtracted from a code.
pub(crate) const fn zero_code(format: Format) -> i32 {
    match format {
        Format::Q4 => 8,
        _ => 128,
    }
}

/// Where the parts of a block start, and where it ends. Units: bytes.
#[derive(Clone, Copy)]
struct Parts {
    factors: usize,
    scales: usize,
    held: usize,
    end: usize,
}

/// The parts of a block of so many inputs.
#[inline(always)]
const fn parts(format: Format, inputs: usize) -> Parts {
    let steps = inputs.div_ceil(STEP);
    let factors = steps * step_len(format);
    let scales = factors + if matches!(format, Format::Q4) { steps * STEP_FACTORS } else { 0 };
    let held = scales + inputs.div_ceil(GROUP) * PANEL * 2;
    // Blocks start on cache lines.
    Parts { factors, scales, held, end: held.next_multiple_of(VECTOR) }
}

/// Where block `b` of a panel of so many inputs lies in it. Units: bytes.
#[inline(always)]
fn block_range(format: Format, in_features: usize, b: usize) -> std::ops::Range<usize> {
    let start = b * parts(format, BLOCK).end;
    start..start + parts(format, BLOCK.min(in_features - b * BLOCK)).end
}

/// Bytes of a panel.
pub(crate) const fn panel_bytes(format: Format, in_features: usize) -> usize {
    in_features / BLOCK * parts(format, BLOCK).end + parts(format, in_features % BLOCK).end
}

/// Bytes of a block of [`BLOCK`] inputs of 16 outputs.
pub(crate) const fn block_bytes(format: Format) -> usize {
    parts(format, BLOCK).end
}

/// One block of a panel.
#[derive(Clone, Copy)]
pub(crate) struct BlockView<'a> {
    pub(crate) codes: &'a [u8],             // [steps][step_len]
    pub(crate) factors: &'a [[u16; PANEL]], // [steps] with 4 bits, else none
    pub(crate) scales: &'a [[bf16; PANEL]], // [groups]
}

impl<'a> BlockView<'a> {
    /// Block `b` of a panel.
    #[inline(always)]
    pub(crate) fn new(format: Format, in_features: usize, b: usize, panel: &'a [u8]) -> Self {
        let Parts { factors, scales, held, .. } = parts(format, BLOCK.min(in_features - b * BLOCK));
        let block = &panel[block_range(format, in_features, b)];
        BlockView {
            codes: &block[..factors],
            factors: bytemuck::cast_slice(&block[factors..scales]),
            scales: bytemuck::cast_slice(&block[scales..held]),
        }
    }

    /// The weight of input `k` of the block, of output `lane`.
    pub(crate) fn value(&self, format: Format, lane: usize, k: usize) -> f32 {
        let (step, quad, place) = (k / STEP, k % STEP / 4, lane * 4 + k % 4);
        let codes = &self.codes[step * step_len(format)..][..step_len(format)];
        let high = format == Format::Q4 && quad >= STEP / 8;
        let byte = codes[(if high { quad - STEP / 8 } else { quad }) * VECTOR + place];
        let code = match (format, high) {
            (Format::Q4, true) => byte >> 4,
            (Format::Q4, false) => byte & 15,
            _ => byte,
        };
        let factor = match format {
            Format::Q4 => i32::from(self.factors[step][lane] >> (4 * (k % STEP / SUB)) & 15),
            _ => 1,
        };
        let steps = factor * (i32::from(code) - zero_code(format));
        steps as f32 * self.scales[k / GROUP][lane].to_f32()
    }
}

/// The weight of input `k` of output `lane` of a panel.
pub(crate) fn value(format: Format, in_features: usize, panel: &[u8], (lane, k): (usize, usize)) -> f32 {
    BlockView::new(format, in_features, k / BLOCK, panel).value(format, lane, k % BLOCK)
}

/// One output's quantised group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) codes: [u8; GROUP],
    /// One for each sub-group; with 8 bits all are one.
    pub(crate) factors: [u8; SUBS],
    pub(crate) scale: bf16,
}

impl Group {
    /// Quantises up to 256 weights; what is not finite makes the whole group not a number, so that it is noticed.
    pub(crate) fn quantise(isa: Isa, weights: &[f32], format: Format) -> Self {
        let mut padded = [0.0; GROUP];
        padded[..weights.len()].copy_from_slice(weights);
        let largest = weights.iter().fold(0f32, |largest, w| largest.max(w.abs()));
        let mut group = match format {
            _ if largest < SMALLEST => Group::zeros(format),
            Format::Q4 => dispatch(isa, Fit4(&padded)),
            _ => fit_8(&padded, largest),
        };
        if weights.iter().any(|w| !w.is_finite()) {
            group.scale = bf16::NAN;
        }
        group
    }

    fn zeros(format: Format) -> Self {
        Group { codes: [zero_code(format) as u8; GROUP], factors: [1; SUBS], scale: bf16::ZERO }
    }

    /// The value of code `i`.
    pub(crate) fn value(&self, format: Format, i: usize) -> f32 {
        let steps = i32::from(self.factors[i / SUB]) * (i32::from(self.codes[i]) - zero_code(format));
        steps as f32 * self.scale.to_f32()
    }

    /// Writes the group as group `g` of output `lane` of a zeroed panel.
    pub(crate) fn store(
        &self,
        format: Format,
        in_features: usize,
        (lane, g): (usize, usize),
        panel: &mut [u8],
    ) {
        let (b, g) = (g / GROUPS, g % GROUPS);
        let inputs = BLOCK.min(in_features - b * BLOCK);
        let Parts { factors, scales, .. } = parts(format, inputs);
        let block = &mut panel[block_range(format, in_features, b)];
        let steps = inputs.div_ceil(STEP) - g * STEPS;
        for (i, step) in (0..steps.min(STEPS)).map(|i| (i, g * STEPS + i)) {
            let codes = &mut block[step * step_len(format)..][..step_len(format)];
            for (quad, values) in self.codes[i * STEP..][..STEP].as_chunks::<4>().0.iter().enumerate() {
                for (j, &code) in values.iter().enumerate() {
                    let place = lane * 4 + j;
                    match format {
                        Format::Q4 if quad >= STEP / 8 => {
                            codes[(quad - STEP / 8) * VECTOR + place] |= code << 4;
                        }
                        _ => codes[quad * VECTOR + place] |= code,
                    }
                }
            }
            if format == Format::Q4 {
                let word = self.factors[i * STEP / SUB..][..STEP / SUB]
                    .iter()
                    .rev()
                    .fold(0u16, |word, &factor| (word << 4) | u16::from(factor));
                block[factors + step * STEP_FACTORS + 2 * lane..][..2].copy_from_slice(&word.to_le_bytes());
            }
        }
        let at = scales + 2 * (g * PANEL + lane);
        block[at..][..2].copy_from_slice(&self.scale.to_bits().to_le_bytes());
    }
}

/// The nearest code of each weight, with a scale that reaches the largest.
fn fit_8(weights: &[f32; GROUP], largest: f32) -> Group {
    let scale = bf16::from_f32(largest / 127.0);
    let inverse = 1.0 / scale.to_f32();
    let code = |w: f32| ((w * inverse).round_ties_even().clamp(-128.0, 127.0) + 128.0) as u8;
    Group { codes: weights.map(code), factors: [1; SUBS], scale }
}

/// Fits factors and scale to the weights of a group: lane j is sub-group j.
///
/// Only operations that round alike on every instruction set, so that the codes do not depend on it.
struct Fit4<'a>(&'a [f32; GROUP]);

impl Kernel for Fit4<'_> {
    type Output = Group;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Group {
        const { assert!(SUBS == LANES) };
        // Element i of all sub-groups at once.
        let mut columns = [[0.0; LANES]; SUB];
        for (j, sub) in self.0.as_chunks::<SUB>().0.iter().enumerate() {
            for (column, &w) in columns.iter_mut().zip(sub) {
                column[j] = w;
            }
        }
        let ideal = ideal_steps::<L>(&columns);
        let mut steps = [0.0; LANES];
        ideal.store(&mut steps);
        let mut scale =
            bf16::from_f32(steps.iter().fold(0f32, |largest, &step| largest.max(step)) / MAX_FACTOR);
        let mut best = Group::zeros(Format::Q4);
        let mut least = f32::INFINITY;
        // Codes and factors fix the best scale, which fixes codes and factors: a few rounds come close to the optimum.
        for _ in 0..3 {
            if scale.to_f32() <= 0.0 || !scale.to_f32().is_finite() {
                break;
            }
            let fit = factors_for::<L>(&columns, ideal, scale.to_f32());
            if fit.error >= least {
                break;
            }
            least = fit.error;
            best = fit.group(&columns, scale);
            scale = bf16::from_f32(fit.best_scale);
        }
        if least == f32::INFINITY {
            // Squares beyond the range of f32: noticed, like what is not finite.
            best.scale = bf16::NAN;
        }
        best
    }
}

/// The step of each sub-group that leaves the least squared error, of some that reach near its largest weight.
#[inline(always)]
fn ideal_steps<L: Lanes>(columns: &[[f32; LANES]; SUB]) -> L {
    let zero = L::splat(0.0);
    let mut largest = zero;
    for column in columns {
        let w = L::load(column);
        largest = w.max(zero.sub(w)).max(largest);
    }
    let (mut best, mut gain) = (zero, zero);
    for reach in [6.0, 6.5, 7.0, 7.4, 7.8, 8.2, 8.6] {
        let inverse = L::splat(reach).div(largest.max(L::splat(SMALLEST)));
        let (mut cw, mut cc) = (zero, L::splat(f32::MIN_POSITIVE));
        for column in columns {
            let w = L::load(column);
            let code = code_of(w, inverse);
            cw = cw.add(code.mul(w));
            cc = cc.add(code.mul(code));
        }
        // With its best step cw / cc, these codes leave Σ w² - cw² / cc.
        let this = cw.mul(cw).div(cc);
        (best, gain) = (this.sub(gain).choose(cw.div(cc), best), this.max(gain));
    }
    best
}

/// The code of a weight less the zero code.
#[inline(always)]
fn code_of<L: Lanes>(w: L, inverse: L) -> L {
    L::splat(7.0).min(L::splat(-8.0).max(w.mul(inverse).round()))
}

struct Fit<L> {
    factors: L,
    error: f32,
    /// The scale that fits these factors and codes best.
    best_scale: f32,
}

/// The factor of each sub-group that fits best with this scale: the ideal one rounded, or a neighbour.
#[inline(always)]
fn factors_for<L: Lanes>(columns: &[[f32; LANES]; SUB], ideal: L, scale: f32) -> Fit<L> {
    let zero = L::splat(0.0);
    let nearest = ideal.div(L::splat(scale)).round();
    let (mut factors, mut error) = (zero, L::splat(f32::INFINITY));
    let (mut cw, mut cc) = (zero, zero);
    for shift in [0.0, -1.0, 1.0, -2.0, 2.0] {
        let factor = L::splat(MAX_FACTOR).min(L::splat(1.0).max(nearest.add(L::splat(shift))));
        let step = factor.mul(L::splat(scale));
        let inverse = L::splat(1.0).div(step);
        let (mut this_error, mut this_cw, mut this_cc) = (zero, zero, zero);
        for column in columns {
            let w = L::load(column);
            let code = code_of(w, inverse);
            let left = w.sub(code.mul(step));
            let steps = code.mul(factor);
            this_error = this_error.add(left.mul(left));
            this_cw = this_cw.add(steps.mul(w));
            this_cc = this_cc.add(steps.mul(steps));
        }
        let better = error.sub(this_error);
        factors = better.choose(factor, factors);
        cw = better.choose(this_cw, cw);
        cc = better.choose(this_cc, cc);
        error = this_error.min(error);
    }
    let cc = cc.sum();
    Fit { factors, error: error.sum(), best_scale: if cc > 0.0 { cw.sum() / cc } else { 0.0 } }
}

impl<L: Lanes> Fit<L> {
    #[inline(always)]
    fn group(&self, columns: &[[f32; LANES]; SUB], scale: bf16) -> Group {
        let mut group = Group { codes: [0; GROUP], factors: [0; SUBS], scale };
        let mut factors = [0.0; LANES];
        self.factors.store(&mut factors);
        for (to, factor) in group.factors.iter_mut().zip(factors) {
            *to = factor as u8;
        }
        let inverse = L::splat(1.0).div(self.factors.mul(L::splat(scale.to_f32())));
        for (i, column) in columns.iter().enumerate() {
            let mut codes = [0.0; LANES];
            code_of(L::load(column), inverse).add(L::splat(8.0)).store(&mut codes);
            for (j, code) in codes.into_iter().enumerate() {
                group.codes[j * SUB + i] = code as u8;
            }
        }
        group
    }
}

/// The scale of a group of inputs, and minus the sum of its codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct InputGroup {
    pub(crate) scale: f32,
    pub(crate) minus_sum: i32,
    /// The same for each sub-group.
    pub(crate) minus_sums: [i32; SUBS],
}

/// Quantises up to 256 inputs to signed 8 bits, the rest of `codes` (whole steps) to zero. Not a number makes the scale one.
#[inline(always)]
pub(crate) fn quantise_inputs<L: Lanes>(x: &[f32], codes: &mut [i8]) -> InputGroup {
    let (full, rest) = x.as_chunks::<LANES>();
    let mut largest = L::splat(0.0);
    // Zero times what is not finite is not a number, and stays so in a sum.
    let mut poison = L::splat(0.0);
    for x in full {
        let x = L::load(x);
        largest = x.max(L::splat(0.0).sub(x)).max(largest);
        poison = poison.add(x.mul(L::splat(0.0)));
    }
    let tail = L::load_partial(rest, 0.0);
    largest = tail.max(L::splat(0.0).sub(tail)).max(largest);
    poison = poison.add(tail.mul(L::splat(0.0)));
    codes.fill(0);
    if poison.sum() != 0.0 {
        return InputGroup { scale: f32::NAN, ..InputGroup::default() };
    }
    let largest = largest.largest();
    if largest < SMALLEST {
        return InputGroup::default();
    }
    let inverse = 127.0 / largest;
    let chunks = codes.as_chunks_mut::<LANES>().0;
    for (x, codes) in full.iter().zip(chunks.iter_mut()) {
        L::load(x).mul(L::splat(inverse)).round().store_as_i8(codes);
    }
    if !rest.is_empty() {
        tail.mul(L::splat(inverse)).round().store_as_i8(&mut chunks[full.len()]);
    }
    let mut group = InputGroup { scale: largest / 127.0, ..InputGroup::default() };
    for (sum, codes) in group.minus_sums.iter_mut().zip(chunks.iter()) {
        let mut total = 0;
        for &code in codes {
            total += i32::from(code);
        }
        *sum = -total;
    }
    group.minus_sum = group.minus_sums.iter().sum();
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTISED: [Format; 2] = [Format::Q8, Format::Q4];

    /// Sums of three uniform numbers: nearly normal.
    fn weights(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next() + next() + next()).collect()
    }

    /// The root of the mean squared error, as a share of that of the weights.
    fn error(weights: &[f32], group: &Group, format: Format) -> f32 {
        let left: f32 = weights.iter().enumerate().map(|(i, w)| (w - group.value(format, i)).powi(2)).sum();
        (left / weights.iter().map(|w| w * w).sum::<f32>()).sqrt()
    }

    #[test]
    fn a_group_is_near_its_weights() {
        for (format, expected) in [(Format::Q8, 0.0065), (Format::Q4, 0.075)] {
            let errors: Vec<f32> = (1..50)
                .map(|seed| {
                    let weights = weights(seed, GROUP);
                    error(&weights, &Group::quantise(Isa::Portable, &weights, format), format)
                })
                .collect();
            let mean = errors.iter().sum::<f32>() / errors.len() as f32;
            assert!(mean < expected && mean > expected / 2.0, "{format}: {mean}");
        }
    }

    #[test]
    fn groups_survive_the_layout() {
        for format in QUANTISED {
            for in_features in [1, 16, 63, 64, 65, 256, 257, 511, 512, 513, 1100] {
                let mut panel = vec![0; panel_bytes(format, in_features)];
                let rows: Vec<Vec<f32>> =
                    (0..PANEL).map(|lane| weights(lane as u64 + 7, in_features)).collect();
                let quantised = |row: &Vec<f32>| -> Vec<Group> {
                    row.chunks(GROUP).map(|group| Group::quantise(Isa::best(), group, format)).collect()
                };
                let groups: Vec<Vec<Group>> = rows.iter().map(quantised).collect();
                for (lane, groups) in groups.iter().enumerate() {
                    for (g, group) in groups.iter().enumerate() {
                        group.store(format, in_features, (lane, g), &mut panel);
                    }
                }
                let panel = kanana_tensor::Tensor::from_slice(&[panel.len()], &panel).unwrap();
                let panel = panel.as_slice::<u8>().unwrap();
                for (lane, groups) in groups.iter().enumerate() {
                    for k in 0..in_features {
                        let expected = groups[k / GROUP].value(format, k % GROUP);
                        let got = value(format, in_features, panel, (lane, k));
                        assert_eq!(got, expected, "{format} {in_features}: {lane}, {k}");
                    }
                }
            }
        }
    }

    #[test]
    fn codes_do_not_depend_on_the_instruction_set() {
        for isa in Isa::available() {
            for (format, seed) in
                QUANTISED.into_iter().flat_map(|format| (1..20).map(move |seed| (format, seed)))
            {
                let weights = weights(seed, 1 + 13 * seed as usize);
                let expected = Group::quantise(Isa::Portable, &weights, format);
                assert_eq!(Group::quantise(isa, &weights, format), expected, "{isa:?} {format} {seed}");
            }
        }
    }

    #[test]
    fn special_groups() {
        let isa = Isa::best();
        for format in QUANTISED {
            assert!((0..GROUP).all(|i| Group::quantise(isa, &[0.0; 3], format).value(format, i) == 0.0));
            assert!(Group::quantise(isa, &[1.0, f32::NAN], format).value(format, 0).is_nan());
            assert!(Group::quantise(isa, &[f32::INFINITY; 40], format).value(format, 5).is_nan());
            // Too small and too large for inverses and squares: zeros, near, or not a number, never something else.
            for size in [1e-38f32, 1e-16, 1e-14, 1e15, 1e30] {
                let weights = [size, 0.0, -size, size / 2.0];
                let group = Group::quantise(isa, &weights, format);
                for (i, w) in weights.into_iter().enumerate() {
                    let got = group.value(format, i);
                    let near = (got - w).abs() <= 0.1 * size || got.is_nan();
                    assert!(near || (got == 0.0 && size < SMALLEST), "{format} {w}: {got}");
                }
            }
            // One sub-group of zeros among others, and weights below what f16 would hold.
            let mut weights = weights(3, GROUP);
            weights[16..32].fill(0.0);
            weights.iter_mut().for_each(|w| *w *= 1e-9);
            let group = Group::quantise(isa, &weights, format);
            assert!((16..32).all(|i| group.value(format, i) == 0.0), "{format}");
            assert!(error(&weights, &group, format) < 0.1, "{format}");
        }
    }

    struct Quantise<'a>(&'a [f32], &'a mut [i8]);
    impl Kernel for Quantise<'_> {
        type Output = InputGroup;
        #[inline(always)]
        fn run<L: Lanes>(self) -> InputGroup {
            quantise_inputs::<L>(self.0, self.1)
        }
    }

    #[test]
    fn inputs() {
        for isa in Isa::available() {
            let mut codes = [1; STEP];
            let mut check = |x: &[f32]| (dispatch(isa, Quantise(x, &mut codes)), codes);
            for nothing in [[0.0; 5], [1e-38, 0.0, -1e-38, 0.0, 1e-20]] {
                assert_eq!(check(&nothing), (InputGroup::default(), [0; STEP]));
            }
            for spoilt in [f32::INFINITY, f32::NAN] {
                assert!(check(&[1.0, spoilt]).0.scale.is_nan());
                let mut long = [1.0; 40];
                long[3] = spoilt;
                assert!(check(&long).0.scale.is_nan());
            }
            let (group, codes) = check(&[1.0, -2.0, 0.5]);
            assert_eq!(codes[..4], [64, -127, 32, 0]);
            assert_eq!((group.scale, group.minus_sum, group.minus_sums[0]), (2.0 / 127.0, 31, 31));
            let (group, codes) = check(&std::array::from_fn::<f32, 40, _>(|i| i as f32));
            assert_eq!((codes[39], codes[40]), (127, 0));
            let sum =
                |range: std::ops::Range<usize>| -codes[range].iter().map(|&c| i32::from(c)).sum::<i32>();
            assert_eq!(group.minus_sums[..4], [sum(0..16), sum(16..32), sum(32..48), 0]);
            assert_eq!(group.minus_sum, sum(0..64));
        }
    }
}
