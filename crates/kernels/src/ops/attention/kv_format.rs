//! How keys and values are stored.

use kanana_tensor::DType;

/// Storage of keys and values, in a cache or beside the queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// 32 bits; attention then computes in f32.
    F32,
    /// 16 bits.
    BF16,
    /// 8 bits: each position of a head is signed codes with one scale, 127 steps up to its largest element.
    Q8,
}

impl KvFormat {
    /// All of them.
    pub const ALL: [KvFormat; 3] = [KvFormat::F32, KvFormat::BF16, KvFormat::Q8];

    /// The name on the command line: `f32`, `bf16`, `q8`.
    pub const fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::BF16 => "bf16",
            KvFormat::Q8 => "q8",
        }
    }

    /// The dtype of the tensors that hold them.
    pub const fn dtype(self) -> DType {
        match self {
            KvFormat::F32 => DType::F32,
            KvFormat::BF16 => DType::BF16,
            KvFormat::Q8 => DType::U8,
        }
    }

    /// W: elements of such a tensor for one position of one head. Codes are followed by their scale, an f32 in little
    /// endian.
    pub const fn row_len(self, head_dim: usize) -> usize {
        match self {
            KvFormat::F32 | KvFormat::BF16 => head_dim,
            KvFormat::Q8 => head_dim + SCALE,
        }
    }

    /// Memory of one position of one head, of keys or of values. Units: bytes.
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        self.row_len(head_dim) * self.dtype().size()
    }

    /// The format that a tensor of this dtype has.
    pub(crate) const fn of(dtype: DType) -> Option<KvFormat> {
        match dtype {
            DType::F32 => Some(KvFormat::F32),
            DType::BF16 => Some(KvFormat::BF16),
            DType::U8 => Some(KvFormat::Q8),
            _ => None,
        }
    }
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Bytes of a scale.
const SCALE: usize = size_of::<f32>();

/// Writes the codes and the scale of one position of one head. What is not finite makes all of them NaN.
#[inline(always)]
pub(crate) fn quantise(x: &[f32], to: &mut [u8]) {
    let Some((codes, to_scale)) = to.split_last_chunk_mut::<SCALE>() else { return };
    let (mut largest, mut finite) = (0f32, true);
    for x in x {
        largest = if x.abs() > largest { x.abs() } else { largest };
        finite &= x.is_finite();
    }
    // A scale that is a normal number, and so is its inverse.
    let scale = if finite { (largest / 127.0).max(1e-30) } else { f32::NAN };
    let steps = if finite { scale.recip() } else { 0.0 };
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * steps).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    }
    *to_scale = scale.to_le_bytes();
}

/// The values of one position of one head.
pub(crate) fn dequantise(row: &[u8]) -> impl Iterator<Item = f32> {
    let (codes, scale) = row.split_last_chunk::<SCALE>().unwrap_or((&[], &[0; SCALE]));
    let scale = f32::from_le_bytes(*scale);
    codes.iter().map(move |&code| f32::from(code as i8) * scale)
}
