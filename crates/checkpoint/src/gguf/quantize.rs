//! Rows of f32 to blocks: the formats that are written. The layouts are described beside their decoders.
//!
//! Scales are searched, not read off the largest element: of some twenty candidates near that one, each refined by least
//! squares, the one with the smallest weighted squared error is kept. The weight of an element is |x| plus the root
//! mean square of its run: large weights matter more, small ones are not forgotten.
//! Source of the idea: Kawrakow's K-quants (llama.cpp PR 1684) and their `make_qkx2_quants`.
//! Tests: `cargo test -p kanana-checkpoint quantize`.

use kanana_tensor::{bf16, f16};

use super::dequantize::scale_and_minimum;
use super::types::GgmlType;

/// The types that can be written.
pub(crate) const WRITABLE: [GgmlType; 8] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q5_0,
    GgmlType::Q4_K,
    GgmlType::Q6_K,
];

/// Encodes whole blocks into `out`, which has room for exactly them.
///
/// The values are finite and, for types other than F32 and BF16, within the range of f16.
pub(crate) fn quantize(ggml_type: GgmlType, values: &[f32], out: &mut [u8]) {
    match ggml_type {
        GgmlType::F32 => each_block(values, out, |x: &[f32; 1]| x[0].to_le_bytes()),
        GgmlType::F16 => each_block(values, out, |x: &[f32; 1]| f16::from_f32(x[0]).to_le_bytes()),
        GgmlType::BF16 => each_block(values, out, |x: &[f32; 1]| bf16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Q8_0 => each_block(values, out, q8_0),
        GgmlType::Q4_0 => each_block(values, out, q4_0),
        GgmlType::Q5_0 => each_block(values, out, q5_0),
        GgmlType::Q4_K => each_block(values, out, q4_k),
        GgmlType::Q6_K => each_block(values, out, q6_k),
        _ => unreachable!("only types of WRITABLE are asked for: this is a bug"),
    }
}

fn each_block<const BYTES: usize, const LEN: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; LEN]) -> [u8; BYTES],
) {
    let (rows, blocks) = (values.as_chunks().0, out.as_chunks_mut().0);
    rows.iter().zip(blocks).for_each(|(x, block)| *block = encode(x));
}

/// The nearest whole number, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. Unlike `round`, this
/// compiles to two additions everywhere.
fn nearest(x: f32) -> f32 {
    const NO_FRACTION: f32 = 12_582_912.0;
    (x + NO_FRACTION) - NO_FRACTION
}

/// The quotient, or 0 where there is nothing to divide by.
fn ratio(x: f32, y: f32) -> f32 {
    if y == 0.0 { 0.0 } else { x / y }
}

/// A scale as it will be read back.
fn stored(scale: f32) -> (f16, f32) {
    let stored = f16::from_f32(scale);
    (stored, stored.to_f32())
}

fn weights<const LEN: usize>(x: &[f32; LEN]) -> [f32; LEN] {
    let root_mean_square = (x.iter().map(|x| x * x).sum::<f32>() / LEN as f32).sqrt();
    x.map(|x| root_mean_square + x.abs())
}

fn largest(x: &[f32]) -> f32 {
    x.iter().copied().fold(0.0, |largest: f32, x| if x.abs() > largest.abs() { x } else { largest })
}

/// The scale s with which s q, for whole q in -levels..levels, is nearest to the values.
fn fit_symmetric<const LEN: usize>(x: &[f32; LEN], levels: f32) -> f32 {
    let (weight, extreme) = (weights(x), largest(x));
    // Too small for the inverse to be finite, and for anything to be stored.
    if extreme.abs() < 1e-30 {
        return 0.0;
    }
    let (mut best, mut best_score) = (0.0, 0.0);
    for step in -9..=9 {
        let inverse = -(levels + 0.1 * step as f32) / extreme;
        let (mut xq, mut qq) = (0.0, 0.0);
        for (x, w) in x.iter().zip(&weight) {
            let q = nearest(inverse * x).clamp(-levels, levels - 1.0);
            xq += w * x * q;
            qq += w * q * q;
        }
        // The error of the best scale for these q is the sum of w x^2 less this.
        let score = ratio(xq * xq, qq);
        if score > best_score {
            (best, best_score) = (xq / qq, score);
        }
    }
    best
}

/// Scale s and minimum m >= 0 with which s q - m, for whole q in 0..=15, is nearest to the values.
fn fit_affine(x: &[f32; 32]) -> (f32, f32) {
    const TOP: f32 = 15.0;
    let weight = weights(x);
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high - low < 1e-30 {
        return (0.0, -low);
    }
    let (sum_w, sum_wx) = x.iter().zip(&weight).fold((0.0, 0.0), |(w, wx), (x, v)| (w + v, wx + v * x));
    let (mut best, mut best_error) = ((0.0, 0.0), f32::INFINITY);
    for step in -10..=10 {
        let inverse = (TOP + 0.1 * step as f32) / (high - low);
        let q = x.map(|x| nearest(inverse * (x - low)).clamp(0.0, TOP));
        let (mut wq, mut wqq, mut wqx) = (0.0, 0.0, 0.0);
        for ((q, x), w) in q.iter().zip(x).zip(&weight) {
            wq += w * q;
            wqq += w * q * q;
            wqx += w * q * x;
        }
        // Least squares over scale and minimum; over the scale alone when all q are one, or the minimum would raise.
        let determinant = sum_w * wqq - wq * wq;
        let mut scale = (sum_w * wqx - sum_wx * wq) / determinant;
        let mut offset = (wqq * sum_wx - wq * wqx) / determinant;
        if determinant <= 1e-6 * sum_w * wqq || offset > 0.0 {
            (scale, offset) = (ratio(wqx, wqq), 0.0);
        }
        let error = (0..32).map(|i| weight[i] * (scale * q[i] + offset - x[i]).powi(2)).sum::<f32>();
        if error < best_error {
            (best, best_error) = ((scale, -offset), error);
        }
    }
    best
}

fn q8_0(x: &[f32; 32]) -> [u8; 34] {
    let (d, scale) = stored(largest(x).abs() / 127.0);
    let mut block = [0; 34];
    block[..2].copy_from_slice(&d.to_le_bytes());
    for (byte, x) in block[2..].iter_mut().zip(x) {
        *byte = nearest(ratio(*x, scale)).clamp(-127.0, 127.0) as i8 as u8;
    }
    block
}

/// Elements as whole numbers from 0 to `2 levels - 1`, of which `levels` means zero.
fn symmetric<const LEN: usize>(x: &[f32; LEN], scale: f32, levels: f32) -> [u8; LEN] {
    x.map(|x| (nearest(ratio(x, scale)).clamp(-levels, levels - 1.0) + levels) as u8)
}

fn q4_0(x: &[f32; 32]) -> [u8; 18] {
    let (d, scale) = stored(fit_symmetric(x, 8.0));
    let q = symmetric(x, scale, 8.0);
    let mut block = [0; 18];
    block[..2].copy_from_slice(&d.to_le_bytes());
    (0..16).for_each(|j| block[2 + j] = q[j] | q[j + 16] << 4);
    block
}

fn q5_0(x: &[f32; 32]) -> [u8; 22] {
    let (d, scale) = stored(fit_symmetric(x, 16.0));
    let q = symmetric(x, scale, 16.0);
    let mut block = [0; 22];
    block[..2].copy_from_slice(&d.to_le_bytes());
    (0..32).for_each(|j| block[2 + j / 8] |= q[j] >> 4 << (j % 8));
    (0..16).for_each(|j| block[6 + j] = q[j] & 15 | (q[j + 16] & 15) << 4);
    block
}

fn q4_k(x: &[f32; 256]) -> [u8; 144] {
    let runs: &[[f32; 32]] = x.as_chunks().0;
    let fits: [(f32, f32); 8] = std::array::from_fn(|run| fit_affine(&runs[run]));
    let (d, scale_unit) = stored(fits.iter().fold(0.0, |top: f32, fit| top.max(fit.0)) / 63.0);
    let (dmin, minimum_unit) = stored(fits.iter().fold(0.0, |top: f32, fit| top.max(fit.1)) / 63.0);

    let mut block = [0; 144];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&dmin.to_le_bytes());
    let small = |x: f32, unit: f32| nearest(ratio(x, unit)).clamp(0.0, 63.0) as u8;
    for (run, (scale, minimum)) in fits.into_iter().enumerate() {
        pack_pair(&mut block[4..16], run, (small(scale, scale_unit), small(minimum, minimum_unit)));
    }
    for (run, x) in runs.iter().enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], run);
        let (scale, minimum) = (scale_unit * f32::from(scale), minimum_unit * f32::from(minimum));
        let (start, shift) = (16 + run / 2 * 32, run % 2 * 4);
        for (byte, x) in block[start..].iter_mut().zip(x) {
            *byte |= (nearest(ratio(x + minimum, scale)).clamp(0.0, 15.0) as u8) << shift;
        }
    }
    block
}

/// The inverse of [`scale_and_minimum`], for runs in rising order.
fn pack_pair(packed: &mut [u8], run: usize, (scale, minimum): (u8, u8)) {
    match run {
        0..4 => (packed[run], packed[run + 4]) = (scale, minimum),
        _ => {
            packed[run + 4] = scale & 15 | minimum << 4;
            packed[run - 4] |= scale >> 4 << 6;
            packed[run] |= minimum >> 4 << 6;
        }
    }
}

fn q6_k(x: &[f32; 256]) -> [u8; 210] {
    let runs: &[[f32; 16]] = x.as_chunks().0;
    let scales: [f32; 16] = std::array::from_fn(|run| fit_symmetric(&runs[run], 32.0));
    // The largest becomes -128: the negative side reaches one further.
    let (d, unit) = stored(largest(&scales) / -128.0);
    let mut block = [0; 210];
    block[208..].copy_from_slice(&d.to_le_bytes());
    for (run, x) in runs.iter().enumerate() {
        let small = nearest(ratio(scales[run], unit)).clamp(-128.0, 127.0);
        block[192 + run] = small as i8 as u8;
        let q = symmetric(x, unit * small, 32.0);
        let (half, quarter, start) = (run / 8, run % 8 / 2, run % 2 * 16);
        for (l, q) in q.into_iter().enumerate() {
            block[half * 64 + quarter % 2 * 32 + start + l] |= (q & 15) << (quarter / 2 * 4);
            block[128 + half * 32 + start + l] |= q >> 4 << (quarter * 2);
        }
    }
    block
}

#[cfg(test)]
mod tests {
    use super::super::dequantize::dequantize;
    use super::*;

    /// Numbers that look like weights: a sum of uniform ones, some of them large.
    fn weights_like(count: usize, mut seed: u32) -> Vec<f32> {
        let mut uniform = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count)
            .map(|i| (uniform() + uniform() + uniform()) * if i % 97 == 0 { 0.2 } else { 0.05 })
            .collect()
    }

    fn round_trip(ggml_type: GgmlType, x: &[f32]) -> Vec<f32> {
        let mut blocks = vec![0; ggml_type.bytes_of(x.len())];
        quantize(ggml_type, x, &mut blocks);
        let mut out = vec![0.0; x.len()];
        assert!(dequantize(ggml_type, &blocks, &mut out));
        out
    }

    /// Root mean square error as a share of the root mean square of the values.
    fn error(x: &[f32], y: &[f32]) -> f64 {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let noise: f64 = x.iter().zip(y).map(|(x, y)| square(x - y)).sum();
        (noise / x.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
    }

    #[test]
    fn errors_are_those_of_the_formats() {
        let x = weights_like(256 * 64, 1);
        for (ggml_type, most) in [
            (GgmlType::F32, 0.0),
            (GgmlType::F16, 3e-4),
            (GgmlType::BF16, 2.4e-3),
            (GgmlType::Q8_0, 8e-3),
            (GgmlType::Q6_K, 0.022),
            (GgmlType::Q5_0, 0.055),
            (GgmlType::Q4_K, 0.095),
            (GgmlType::Q4_0, 0.12),
        ] {
            assert!(WRITABLE.contains(&ggml_type));
            let error = error(&x, &round_trip(ggml_type, &x));
            println!("{ggml_type}: {error:.5}");
            assert!(error <= most, "{ggml_type}: {error}");
        }
    }

    #[test]
    fn what_a_format_can_say_is_kept() {
        for ggml_type in WRITABLE {
            let n = ggml_type.block_len().max(32);
            let constant = |x: f32| {
                let y = round_trip(ggml_type, &vec![x; n]);
                let worst = y.iter().map(|y| (y - x).abs()).fold(0.0, f32::max);
                assert!(worst <= 0.01 * x.abs(), "{ggml_type}: {x} became {y:?}");
            };
            [0.0, 1.0, -1.0, 0.1, -3e4].into_iter().for_each(constant);
            // Below what f16 scales reach: zeros, never NaN.
            assert!(round_trip(ggml_type, &vec![1e-38; n]).iter().all(|y| y.abs() <= 1e-30), "{ggml_type}");
        }
    }

    #[test]
    fn the_search_beats_the_largest_element() {
        let x = weights_like(32 * 400, 7);
        let plain: Vec<f32> = x
            .chunks_exact(32)
            .flat_map(|x| {
                let d = f16::from_f32(largest(x) / -8.0).to_f32();
                x.iter().map(move |x| d * (x / d).round().clamp(-8.0, 7.0))
            })
            .collect();
        assert!(error(&x, &round_trip(GgmlType::Q4_0, &x)) < 0.97 * error(&x, &plain));
    }

    #[test]
    fn pairs_of_six_bits_are_packed_and_unpacked() {
        let mut packed = [0; 12];
        let pair = |run: usize| ((run * 9) as u8, (63 - run * 5) as u8);
        (0..8).for_each(|run| pack_pair(&mut packed, run, pair(run)));
        (0..8).for_each(|run| assert_eq!(scale_and_minimum(&packed, run), pair(run)));
    }
}
