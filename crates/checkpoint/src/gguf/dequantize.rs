//! Blocks of quantised elements to f32: one function per format, which says how its block is laid out.
//!
//! Names: `d` is the scale of a block and `dmin` that of its minima, both f16; `q` are the stored small integers. "Low
//! nibbles, then high" means that byte j holds element j in its low four bits and element j + n/2 in its high four.
//! Source: written from the layouts in `ggml-common.h` and checked against the gguf Python package 0.19.0
//! (`tests/goldens/make_gguf.py`). Tests: `cargo test -p kanana-checkpoint --test gguf`.

use kanana_tensor::{bf16, f16};

use super::types::GgmlType;

/// The 16 levels of the IQ4 formats: dense near zero, as weights are.
const IQ4_LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// Decodes whole blocks; false for a type without a decoder ([`GgmlType::is_readable`]).
///
/// `data` holds as many blocks as `out` has room for.
pub(crate) fn dequantize(ggml_type: GgmlType, data: &[u8], out: &mut [f32]) -> bool {
    match ggml_type {
        GgmlType::F32 => each_block(data, out, |b: &[u8; 4], x: &mut [f32; 1]| x[0] = f32::from_le_bytes(*b)),
        GgmlType::F16 => each_block(data, out, |b: &[u8; 2], x: &mut [f32; 1]| x[0] = half_at(b, 0)),
        GgmlType::BF16 => each_block(data, out, |b: &[u8; 2], x: &mut [f32; 1]| {
            x[0] = bf16::from_le_bytes(*b).to_f32();
        }),
        GgmlType::Q8_0 => each_block(data, out, q8_0),
        GgmlType::Q4_0 => each_block(data, out, q4_0),
        GgmlType::Q4_1 => each_block(data, out, q4_1),
        GgmlType::Q5_0 => each_block(data, out, q5_0),
        GgmlType::Q5_1 => each_block(data, out, q5_1),
        GgmlType::Q2_K => each_block(data, out, q2_k),
        GgmlType::Q3_K => each_block(data, out, q3_k),
        GgmlType::Q4_K => each_block(data, out, q4_k),
        GgmlType::Q5_K => each_block(data, out, q5_k),
        GgmlType::Q6_K => each_block(data, out, q6_k),
        GgmlType::IQ4_NL => each_block(data, out, iq4_nl),
        GgmlType::IQ4_XS => each_block(data, out, iq4_xs),
        _ => return false,
    }
    true
}

fn each_block<const BYTES: usize, const LEN: usize>(
    data: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, rows) = (data.as_chunks().0, out.as_chunks_mut().0);
    blocks.iter().zip(rows).for_each(|(block, x)| decode(block, x));
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// d, 32 signed bytes. x = d q
fn q8_0(block: &[u8; 34], x: &mut [f32; 32]) {
    let d = half_at(block, 0);
    x.iter_mut().zip(&block[2..]).for_each(|(x, &q)| *x = d * f32::from(q as i8));
}

/// d, 16 bytes of nibbles (low, then high). x = d (q - 8)
fn q4_0(block: &[u8; 18], x: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, &byte) in block[2..].iter().enumerate() {
        x[j] = d * (f32::from(byte & 15) - 8.0);
        x[j + 16] = d * (f32::from(byte >> 4) - 8.0);
    }
}

/// d, minimum m, 16 bytes of nibbles (low, then high). x = d q + m
fn q4_1(block: &[u8; 20], x: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, &byte) in block[4..].iter().enumerate() {
        x[j] = d * f32::from(byte & 15) + m;
        x[j + 16] = d * f32::from(byte >> 4) + m;
    }
}

/// The j-th five-bit integer: 32 fifth bits as one number, then nibbles (low, then high).
fn five_bits(high: &[u8], low: &[u8], j: usize) -> f32 {
    let nibble = (low[j % 16] >> (j / 16 * 4)) & 15;
    let fifth = (high[j / 8] >> (j % 8)) & 1;
    f32::from(nibble | fifth << 4)
}

/// d, 4 bytes of fifth bits, 16 bytes of nibbles. x = d (q - 16)
fn q5_0(block: &[u8; 22], x: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, x) in x.iter_mut().enumerate() {
        *x = d * (five_bits(&block[2..6], &block[6..], j) - 16.0);
    }
}

/// d, minimum m, 4 bytes of fifth bits, 16 bytes of nibbles. x = d q + m
fn q5_1(block: &[u8; 24], x: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, x) in x.iter_mut().enumerate() {
        *x = d * five_bits(&block[4..8], &block[8..], j) + m;
    }
}

/// 16 bytes of scales (low nibble) and minima (high nibble) for runs of 16, 64 bytes of 2-bit q, d, dmin.
///
/// Each half of 128 elements has 32 bytes: byte l holds elements l, l + 32, l + 64, l + 96 from its low bits up.
/// x = d scale q - dmin minimum
fn q2_k(block: &[u8; 84], x: &mut [f32; 256]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (run, x) in x.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, minimum) = (d * f32::from(scales[run] & 15), dmin * f32::from(scales[run] >> 4));
        let (bytes, shift) = (&quants[run / 8 * 32 + run % 2 * 16..], run % 8 / 2 * 2);
        x.iter_mut().zip(bytes).for_each(|(x, &b)| *x = scale * f32::from((b >> shift) & 3) - minimum);
    }
}

/// 32 bytes of third bits, 64 bytes of 2-bit q as in [`q2_k`], 12 bytes of 6-bit scales for runs of 16, d.
///
/// Third bit of element 32 c + l: bit c of byte l; where it is 0, q is lowered by 4. Scale r, minus 32: the low four
/// bits are nibble r of the first 8 bytes (low nibbles, then high), the upper two bits are r/4 of byte 8 + r % 4.
/// x = d scale q
fn q3_k(block: &[u8; 110], x: &mut [f32; 256]) {
    let (thirds, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (run, x) in x.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = (scales[run % 8] >> (run / 8 * 4)) & 15;
        let high = (scales[8 + run % 4] >> (run / 4 * 2)) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (start, shift, bit) = (run % 2 * 16, run % 8 / 2 * 2, run / 2);
        let bytes = &quants[run / 8 * 32 + start..];
        for (l, x) in x.iter_mut().enumerate() {
            let lowered = if (thirds[start + l] >> bit) & 1 == 1 { 0.0 } else { 4.0 };
            *x = scale * (f32::from((bytes[l] >> shift) & 3) - lowered);
        }
    }
}

/// Scale and minimum number `run` of the eight 6-bit pairs in 12 bytes.
///
/// Pairs 0 to 3: the low six bits of bytes `run` and `run + 4`. Pairs 4 to 7: the nibbles of byte `run + 4`, with the
/// upper two bits of bytes `run - 4` and `run` above them.
pub(crate) fn scale_and_minimum(packed: &[u8], run: usize) -> (u8, u8) {
    match run {
        0..4 => (packed[run] & 63, packed[run + 4] & 63),
        _ => (packed[run + 4] & 15 | packed[run - 4] >> 6 << 4, packed[run + 4] >> 4 | packed[run] >> 6 << 4),
    }
}

/// d, dmin, 12 bytes of [`scale_and_minimum`] for runs of 32, 128 bytes of nibbles: each 32 bytes hold one run in the
/// low nibbles and the next in the high ones. x = d scale q - dmin minimum
fn q4_k(block: &[u8; 144], x: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (run, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], run);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let (bytes, shift) = (&block[16 + run / 2 * 32..], run % 2 * 4);
        x.iter_mut().zip(bytes).for_each(|(x, &b)| *x = scale * f32::from((b >> shift) & 15) - minimum);
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the nibbles: bit `run` of byte l belongs to element l of the run.
fn q5_k(block: &[u8; 176], x: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (run, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], run);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let (bytes, shift) = (&block[48 + run / 2 * 32..], run % 2 * 4);
        for (l, x) in x.iter_mut().enumerate() {
            let fifth = (block[16 + l] >> run) & 1;
            *x = scale * f32::from((bytes[l] >> shift) & 15 | fifth << 4) - minimum;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of upper two bits, 16 signed scales for runs of 16, d.
///
/// In each half of 128 elements, quarter c of 32: the nibbles are the low (c < 2) or high ones of bytes 32 (c % 2) + l
/// of 64, the upper bits are pair c of byte l of 32. x = d scale (q - 32)
fn q6_k(block: &[u8; 210], x: &mut [f32; 256]) {
    let (nibbles, uppers, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (run, x) in x.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[run] as i8);
        let (half, quarter, start) = (run / 8, run % 8 / 2, run % 2 * 16);
        let low = &nibbles[half * 64 + quarter % 2 * 32 + start..];
        let high = &uppers[half * 32 + start..];
        for (l, x) in x.iter_mut().enumerate() {
            let q = (low[l] >> (quarter / 2 * 4)) & 15 | ((high[l] >> (quarter * 2)) & 3) << 4;
            *x = scale * (f32::from(q) - 32.0);
        }
    }
}

/// d, 16 bytes of nibbles (low, then high). x = d level(q), of 16 levels
fn iq4_nl(block: &[u8; 18], x: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, &byte) in block[2..].iter().enumerate() {
        x[j] = d * IQ4_LEVELS[usize::from(byte & 15)];
        x[j + 16] = d * IQ4_LEVELS[usize::from(byte >> 4)];
    }
}

/// d, two bytes of upper scale bits, four bytes of low scale nibbles, and eight runs of 32 as in [`iq4_nl`].
///
/// Scale r, minus 32: nibble r of the four bytes (low and high in turn), below bits 2r and 2r + 1 of the two.
/// x = d scale level(q)
fn iq4_xs(block: &[u8; 136], x: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let upper = u16::from_le_bytes([block[2], block[3]]);
    for (run, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = (block[4 + run / 2] >> (run % 2 * 4)) & 15;
        let high = ((upper >> (run * 2)) & 3) as u8;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        for (j, &byte) in block[8 + run * 16..][..16].iter().enumerate() {
            x[j] = scale * IQ4_LEVELS[usize::from(byte & 15)];
            x[j + 16] = scale * IQ4_LEVELS[usize::from(byte >> 4)];
        }
    }
}
