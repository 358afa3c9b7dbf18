//! Weights of 8 and 4 bits: how a group is quantised, and where its parts lie in memory.
//!
//! A group is 64 inputs of one output: `weight = scale · code + min`, codes unsigned, scale and min in f16, fitted by
//! least squares. A block is a group of each of the 16 outputs of a panel: the codes as the 8-bit matrix unit takes
//! them, `[16 quads of inputs][16 n][4]`, then 16 scales, then 16 mins. With 4 bits the quads 8 to 15 are the high halves
//! of the bytes of quads 0 to 7. So 8.5 and 4.5 bits a weight.
//!
//! Inputs are quantised too, to 8 signed bits with one scale for each row and group: then sums of a group are exact
//! integers, the same in any order on any unit, and only the sum over groups is rounded, in the order of k.

use kanana_tensor::f16;

use super::Format;
use super::pack::PANEL;

/// Inputs of a group.
pub(crate) const GROUP: usize = 64;
/// Quads of inputs in a group.
pub(crate) const QUADS: usize = GROUP / 4;
/// Bytes of a vector of codes: four inputs of 16 outputs.
pub(crate) const VECTOR: usize = 4 * PANEL;
/// Bytes of the scales and mins of a block.
const PARAMETERS: usize = 2 * PANEL * size_of::<f16>();

/// Bytes of the codes of a block.
pub(crate) const fn codes_len(format: Format) -> usize {
    match format {
        Format::Q4 => GROUP * PANEL / 2,
        _ => GROUP * PANEL,
    }
}

/// Bytes of a block.
pub(crate) const fn block_len(format: Format) -> usize {
    codes_len(format) + PARAMETERS
}

/// Bytes of a panel.
pub(crate) fn panel_bytes(format: Format, in_features: usize) -> usize {
    in_features.div_ceil(GROUP) * block_len(format)
}

/// The largest code.
fn levels(format: Format) -> f32 {
    if format == Format::Q4 { 15.0 } else { 255.0 }
}

/// One quantised group.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) codes: [u8; GROUP],
    pub(crate) scale: f16,
    pub(crate) min: f16,
}

impl Group {
    /// The value of code `i`.
    pub(crate) fn value(&self, i: usize) -> f32 {
        f32::from(self.codes[i]) * self.scale.to_f32() + self.min.to_f32()
    }

    /// Quantises up to 64 weights; what is not finite makes the whole group not a number, so that it is noticed.
    pub(crate) fn quantise(weights: &[f32], format: Format) -> Self {
        let levels = levels(format);
        let (low, high) = weights
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &w| (low.min(w), high.max(w)));
        let mut best = Self::with(weights, levels, (high - low) / levels, low);
        if weights.iter().any(|w| !w.is_finite()) {
            best.scale = f16::NAN;
            return best;
        }
        let mut least = best.error(weights);
        // Codes fix the best scale and min, which fix the codes: a few rounds come close to the optimum.
        for _ in 0..3 {
            let Some((scale, min)) = best.fit(weights) else { break };
            let next = Self::with(weights, levels, scale, min);
            let error = next.error(weights);
            if error >= least {
                break;
            }
            (best, least) = (next, error);
        }
        best
    }

    fn with(weights: &[f32], levels: f32, scale: f32, min: f32) -> Self {
        let (scale, min) = (f16::from_f32(scale), f16::from_f32(min));
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        let mut codes = [0; GROUP];
        for (code, w) in codes.iter_mut().zip(weights) {
            *code = ((w - min.to_f32()) * inverse).round_ties_even().clamp(0.0, levels) as u8;
        }
        Group { codes, scale, min }
    }

    fn error(&self, weights: &[f32]) -> f32 {
        weights.iter().enumerate().map(|(i, w)| (w - self.value(i)).powi(2)).sum()
    }

    /// Scale and min by linear regression of the weights on their codes.
    fn fit(&self, weights: &[f32]) -> Option<(f32, f32)> {
        let n = weights.len() as f32;
        let (mut c, mut w, mut cc, mut cw) = (0.0, 0.0, 0.0, 0.0);
        for (&code, &weight) in self.codes.iter().zip(weights) {
            let code = f32::from(code);
            (c, w, cc, cw) = (c + code, w + weight, cc + code * code, cw + code * weight);
        }
        let spread = n * cc - c * c;
        let scale = (n * cw - c * w) / spread;
        (spread > 0.0 && scale > 0.0).then(|| (scale, (w - scale * c) / n))
    }

    /// Writes the group as output `lane` of a block.
    pub(crate) fn store(&self, format: Format, lane: usize, block: &mut [u8]) {
        let (codes, parameters) = block.split_at_mut(codes_len(format));
        for (i, &code) in self.codes.iter().enumerate() {
            let (quad, place) = (i / 4, lane * 4 + i % 4);
            match format {
                Format::Q4 if quad >= QUADS / 2 => codes[(quad - QUADS / 2) * VECTOR + place] |= code << 4,
                _ => codes[quad * VECTOR + place] |= code,
            }
        }
        parameters[2 * lane..][..2].copy_from_slice(&self.scale.to_bits().to_le_bytes());
        parameters[2 * (PANEL + lane)..][..2].copy_from_slice(&self.min.to_bits().to_le_bytes());
    }

    /// The value of input `i` of output `lane` of a block.
    pub(crate) fn read(format: Format, block: &[u8], lane: usize, i: usize) -> f32 {
        let (codes, parameters) = block.split_at(codes_len(format));
        let (quad, place) = (i / 4, lane * 4 + i % 4);
        let code = match format {
            Format::Q4 if quad >= QUADS / 2 => codes[(quad - QUADS / 2) * VECTOR + place] >> 4,
            Format::Q4 => codes[quad * VECTOR + place] & 15,
            _ => codes[quad * VECTOR + place],
        };
        let number =
            |at: usize| f16::from_bits(u16::from_le_bytes([parameters[at], parameters[at + 1]])).to_f32();
        f32::from(code) * number(2 * lane) + number(2 * (PANEL + lane))
    }
}

/// The scale of a group of inputs, and the sum of their codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct InputGroup {
    pub(crate) scale: f32,
    pub(crate) sum: f32,
}

/// Quantises up to 64 inputs to signed 8 bits, the rest of `codes` to zero. Not a number makes the scale one.
#[inline(always)]
pub(crate) fn quantise_inputs(x: &[f32], codes: &mut [i8]) -> InputGroup {
    let mut largest = 0.0f32;
    let mut all_finite = true;
    for &x in x {
        largest = if x.abs() > largest { x.abs() } else { largest };
        all_finite &= x.is_finite();
    }
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    codes.fill(0);
    if !all_finite {
        return InputGroup { scale: f32::NAN, sum: 0.0 };
    }
    let mut sum = 0;
    for (code, &x) in codes.iter_mut().zip(x) {
        // At most 127 and a rounding error; `as` saturates.
        *code = (x * inverse).round_ties_even() as i8;
        sum += i32::from(*code);
    }
    InputGroup { scale: largest / 127.0, sum: sum as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..GROUP).map(|_| next() + next() + next()).collect()
    }

    #[test]
    fn a_group_is_near_its_weights_and_survives_the_layout() {
        for format in [Format::Q8, Format::Q4] {
            for seed in 1..50 {
                let weights = weights(seed);
                let group = Group::quantise(&weights, format);
                let spread = weights.iter().fold(0f32, |m, w| m.max(w.abs())) * 2.0;
                let mut block = vec![0; block_len(format)];
                group.store(format, 7, &mut block);
                for (i, w) in weights.iter().enumerate() {
                    assert!(
                        (group.value(i) - w).abs() <= 0.8 * spread / levels(format),
                        "{format:?} {seed} {i}"
                    );
                    assert_eq!(Group::read(format, &block, 7, i), group.value(i), "{format:?} {seed} {i}");
                }
            }
        }
    }

    #[test]
    fn fitting_beats_the_plain_range() {
        let (mut plain, mut fitted) = (0.0, 0.0);
        for seed in 1..100 {
            let weights = weights(seed);
            let (low, high) = weights.iter().fold((0f32, 0f32), |(l, h), &w| (l.min(w), h.max(w)));
            plain += Group::with(&weights, 15.0, (high - low) / 15.0, low).error(&weights);
            fitted += Group::quantise(&weights, Format::Q4).error(&weights);
        }
        assert!(fitted < 0.95 * plain, "{fitted} against {plain}");
    }

    #[test]
    fn special_groups() {
        for format in [Format::Q8, Format::Q4] {
            let constant = Group::quantise(&[0.75; GROUP], format);
            assert!((0..GROUP).all(|i| constant.value(i) == 0.75));
            assert!((0..GROUP).all(|i| Group::quantise(&[0.0; 3], format).value(i) == 0.0));
            assert!(Group::quantise(&[1.0, f32::NAN], format).value(0).is_nan());
        }
        let mut codes = [1; GROUP];
        assert_eq!(quantise_inputs(&[0.0; 5], &mut codes), InputGroup::default());
        assert_eq!(codes, [0; GROUP]);
        assert!(quantise_inputs(&[1.0, f32::INFINITY], &mut codes).scale.is_nan());
        let group = quantise_inputs(&[1.0, -2.0, 0.5], &mut codes);
        assert_eq!(codes[..4], [64, -127, 32, 0]);
        assert_eq!((group.scale, group.sum), (2.0 / 127.0, -31.0));
    }
}
