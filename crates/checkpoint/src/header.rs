//! The header of a safetensors file: eight bytes of length, then JSON, then the data.
//!
//! Source: <https://github.com/safetensors/safetensors> (format), whose own parser is what the tests compare with. It
//! is parsed here because its errors name neither tensor nor numbers, and a name given twice is silently merged there.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::ops::Range;
use std::path::Path;

use kanana_tensor::DType;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::{CheckpointError, Result};

/// The longest header that is read, in bytes: the limit of the format.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of the length field.
pub(crate) const LENGTH_BYTES: u64 = 8;

/// The key of the header that is no tensor.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// The checked header of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Free text that the writer left.
    pub metadata: BTreeMap<String, String>,
    /// Every tensor of the file.
    pub tensors: BTreeMap<String, Entry>,
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The dtype as written: `F32`, `BF16`, `F8_E4M3`, …
    pub dtype: String,
    /// The extent of every dimension, outermost first.
    pub shape: Vec<usize>,
    /// Where the data are, in bytes from the start of the file.
    pub bytes: Range<usize>,
}

/// Reads and checks the header of a safetensors file.
///
/// `bytes` is the start of the file, at least up to the end of the header, and `file_len` the length of the whole
/// file in bytes; `file` is only named in errors. When this returns, the tensors tile the data of the file without
/// overlap or hole, and each has the bytes that its dtype and shape take (a dtype that is not known is not counted).
///
/// Errors: one variant of [`CheckpointError`] per broken rule; never panics, whatever the bytes.
/// Cost: memory proportional to the header, which is at most [`MAX_HEADER_BYTES`].
pub fn parse_header(file: &Path, bytes: &[u8], file_len: u64) -> Result<Header> {
    let text = header_text(file, bytes, file_len)?;
    let raw: RawHeader = serde_json::from_str(text)
        .map_err(|source| CheckpointError::HeaderJson { file: file.into(), source })?;
    let data_start = LENGTH_BYTES + text.len() as u64;
    check_layout(file, &raw, file_len - data_start)?;

    let mut tensors = BTreeMap::new();
    for (name, entry) in raw.tensors {
        let overflow = |_| entry.shape_overflow(file, &name);
        let shape =
            entry.shape.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>().map_err(overflow)?;
        let begin = usize::try_from(data_start + entry.data_offsets.0).map_err(overflow)?;
        let end = usize::try_from(data_start + entry.data_offsets.1).map_err(overflow)?;
        match tensors.entry(name) {
            Slot::Vacant(slot) => slot.insert(Entry { dtype: entry.dtype, shape, bytes: begin..end }),
            Slot::Occupied(slot) => {
                let tensor = slot.key().clone();
                return Err(CheckpointError::Duplicate { tensor, first: file.into(), second: file.into() });
            }
        };
    }
    Ok(Header { metadata: raw.metadata, tensors })
}

/// The dtype of our tensors that a written dtype is, when kernels can read it.
pub(crate) fn readable_dtype(name: &str) -> Option<DType> {
    [DType::F32, DType::F16, DType::BF16, DType::U32, DType::U8]
        .into_iter()
        .find(|&d| written_dtype(d) == name)
}

/// How the format spells a dtype.
pub(crate) fn written_dtype(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::U32 => "U32",
        DType::U8 => "U8",
    }
}

/// Bits of one element, for every dtype that the format has today.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" => 8,
        "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "F32" | "I32" | "U32" => 32,
        "F64" | "I64" | "U64" | "C64" => 64,
        _ => return None,
    })
}

fn header_text<'a>(file: &Path, bytes: &'a [u8], file_len: u64) -> Result<&'a str> {
    let Some((length, rest)) = bytes.split_first_chunk::<{ LENGTH_BYTES as usize }>() else {
        return Err(CheckpointError::TooShort { file: file.into(), got: file_len });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(CheckpointError::HeaderTooLarge {
            file: file.into(),
            got: length,
            limit: MAX_HEADER_BYTES,
        });
    }
    let available = file_len.saturating_sub(LENGTH_BYTES).min(rest.len() as u64);
    if length > available {
        return Err(CheckpointError::HeaderCut { file: file.into(), expected: length, got: available });
    }
    std::str::from_utf8(&rest[..length as usize])
        .map_err(|e| CheckpointError::HeaderText { file: file.into(), at: e.valid_up_to() })
}

/// Checks that the tensors tile `data_len` bytes, each with the bytes that its dtype and shape take.
fn check_layout(file: &Path, raw: &RawHeader, data_len: u64) -> Result<()> {
    let mut by_offset: Vec<&(String, RawEntry)> = raw.tensors.iter().collect();
    by_offset.sort_by_key(|(_, entry)| entry.data_offsets);
    let (mut previous, mut reached) = ("", 0);
    let mut cut = None;
    for (name, entry) in by_offset {
        let (begin, end) = entry.data_offsets;
        entry.check_size(file, name)?;
        if begin < reached {
            let (tensor, previous) = (name.clone(), previous.to_owned());
            return Err(CheckpointError::Overlap {
                file: file.into(),
                tensor,
                begin,
                previous,
                end: reached,
            });
        }
        if begin > reached {
            return Err(CheckpointError::Hole { file: file.into(), begin: reached, end: begin });
        }
        if end > data_len && cut.is_none() {
            cut = Some(name.clone());
        }
        (previous, reached) = (name, end);
    }
    match cut {
        Some(tensor) => {
            Err(CheckpointError::Truncated { file: file.into(), tensor, expected: reached, got: data_len })
        }
        None if reached < data_len => {
            Err(CheckpointError::Hole { file: file.into(), begin: reached, end: data_len })
        }
        None => Ok(()),
    }
}

/// The header as JSON gives it: in file order, names not yet unique, numbers not yet checked.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawEntry)>,
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    fn check_size(&self, file: &Path, name: &str) -> Result<()> {
        let (begin, end) = self.data_offsets;
        let got = end.checked_sub(begin).ok_or_else(|| CheckpointError::Backwards {
            file: file.into(),
            tensor: name.to_owned(),
            begin,
            end,
        })?;
        // The bound leaves zeros out: [0, 2^40, 2^40] is empty, but the length of its rows overflows.
        let width = bits(&self.dtype).unwrap_or(1);
        let bound = self.shape.iter().try_fold(width, |product, &n| product.checked_mul(n.max(1)));
        let bound = bound.ok_or_else(|| self.shape_overflow(file, name))?;
        if bits(&self.dtype).is_none() {
            return Ok(());
        }
        let total = if self.shape.contains(&0) { 0 } else { bound };
        if total % 8 == 0 && total / 8 == got {
            return Ok(());
        }
        Err(CheckpointError::ByteCount {
            file: file.into(),
            tensor: name.to_owned(),
            dtype: self.dtype.clone(),
            shape: self.shape.clone(),
            expected: total.div_ceil(8),
            got,
        })
    }

    fn shape_overflow(&self, file: &Path, name: &str) -> CheckpointError {
        CheckpointError::ShapeOverflow {
            file: file.into(),
            tensor: name.to_owned(),
            dtype: self.dtype.clone(),
            shape: self.shape.clone(),
        }
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a map from tensor names to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut metadata: Option<BTreeMap<String, String>> = None;
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let in_entry = |e| A::Error::custom(format_args!("in {name:?}: {e}"));
            if name != METADATA_KEY {
                let entry = map.next_value().map_err(in_entry)?;
                tensors.push((name, entry));
            } else if metadata.replace(map.next_value().map_err(in_entry)?).is_some() {
                return Err(A::Error::custom("__metadata__ is there twice"));
            }
        }
        Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
    }
}
