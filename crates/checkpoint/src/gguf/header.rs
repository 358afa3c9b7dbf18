//! The header of a GGUF file: counts, metadata, and where the tensors are.
//!
//! Source: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, and the checks of llama.cpp's own reader.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use super::error::GgufError;
use super::metadata::{Kind, RawValue};
use super::types::GgmlType;
use crate::{CheckpointError, Result};

/// The letters that every file starts with.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The key of the alignment of tensor data, and what it is when absent.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
/// The most dimensions a ggml tensor has.
const MAX_DIMENSIONS: u32 = 4;
/// The fewest bytes of a metadata entry (key length, one letter, type, one byte) and of a tensor (name length, one
/// letter, dimension count, type, offset).
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 1;
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 4 + 8;

/// The checked header of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufHeader {
    /// 2 or 3; the layouts are the same.
    pub version: u32,
    /// Every tensor starts at a multiple of this, in bytes from the start of the data.
    pub alignment: u64,
    /// Every tensor of the file.
    pub tensors: BTreeMap<String, GgufTensor>,
    pub(crate) metadata: BTreeMap<String, RawValue>,
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// How its elements are stored.
    pub ggml_type: GgmlType,
    /// The extent of every dimension, outermost first: the file has them the other way round.
    pub shape: Vec<usize>,
    /// Where the data are, in bytes from the start of the file.
    pub bytes: Range<usize>,
}

/// Reads and checks the header of a GGUF file.
///
/// `bytes` is the start of the file, at least up to the end of the header, and `file_len` the length of the whole file
/// in bytes; `file` is only named in errors. When this returns, every tensor is a whole number of blocks inside the
/// file, aligned, and overlaps no other; every key and every text is UTF-8.
///
/// Errors: [`CheckpointError::Gguf`], one variant of [`GgufError`] per broken rule; never panics, whatever the bytes.
/// Cost: linear in the header; memory proportional to the number of keys and tensors, since values stay where they are.
pub fn parse_gguf_header(file: &Path, bytes: &[u8], file_len: u64) -> Result<GgufHeader> {
    parse(bytes, file_len).map_err(|problem| CheckpointError::Gguf { file: file.into(), problem })
}

fn parse(bytes: &[u8], file_len: u64) -> Result<GgufHeader, GgufError> {
    let mut cursor = Cursor { bytes, at: 0 };
    let magic = cursor.take(Place::Magic, 4)?;
    if magic != MAGIC {
        return Err(GgufError::Magic(magic.to_vec()));
    }
    let version = cursor.u32(Place::Version)?;
    match version {
        2 | 3 => {}
        0x0200_0000 | 0x0300_0000 => return Err(GgufError::BigEndian),
        _ => return Err(GgufError::Version(version)),
    }
    let tensor_count = cursor.u64(Place::Counts)?;
    let entry_count = cursor.u64(Place::Counts)?;
    cursor.check_count("tensors", tensor_count, LEAST_TENSOR)?;
    cursor.check_count("metadata keys", entry_count, LEAST_ENTRY)?;

    let mut metadata = BTreeMap::new();
    for i in 0..entry_count {
        let key = cursor.name(Place::Key(i))?;
        let value = value(&mut cursor, key)?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(GgufError::DuplicateKey(key.to_owned()));
        }
    }
    let alignment = alignment(bytes, &metadata)?;

    let mut announced = Vec::new();
    for i in 0..tensor_count {
        announced.push(Announced::read(&mut cursor, i, alignment)?);
    }
    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    let tensors = place(announced, data_start, file_len)?;
    Ok(GgufHeader { version, alignment, tensors, metadata })
}

fn alignment(bytes: &[u8], metadata: &BTreeMap<String, RawValue>) -> Result<u64, GgufError> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let alignment = value.integer(bytes).ok_or_else(|| {
        GgufError::value(ALIGNMENT_KEY, value.describe(), "an integer; the file is damaged, fetch it again")
    })?;
    match u32::try_from(alignment) {
        Ok(power) if power.is_power_of_two() => Ok(power.into()),
        _ => Err(GgufError::Alignment(alignment as u64)),
    }
}

/// The value of `key`: walked over and checked, not copied.
fn value(cursor: &mut Cursor<'_>, key: &str) -> Result<RawValue, GgufError> {
    let place = Place::Value(key);
    let kind = kind(cursor, key)?;
    if kind != Kind::Array {
        let start = cursor.at;
        element(cursor, key, kind)?;
        return Ok(RawValue { kind, element: None, count: 1, bytes: start..cursor.at });
    }
    let element_kind = self::kind(cursor, key)?;
    if element_kind == Kind::Array {
        return Err(GgufError::NestedArray(key.to_owned()));
    }
    let count = cursor.u64(place)?;
    // A text takes at least the eight bytes of its length.
    let least = element_kind.size().unwrap_or(8) as u64;
    if count > cursor.left() / least {
        let what = format!("elements of {key:?}");
        return Err(GgufError::Count { what, got: count, limit: cursor.left() / least });
    }
    let start = cursor.at;
    match element_kind.size() {
        Some(size) if element_kind != Kind::Bool => drop(cursor.take(place, count * size as u64)?),
        _ => (0..count).try_for_each(|_| element(cursor, key, element_kind))?,
    }
    Ok(RawValue { kind, element: Some(element_kind), count, bytes: start..cursor.at })
}

fn kind(cursor: &mut Cursor<'_>, key: &str) -> Result<Kind, GgufError> {
    let number = cursor.u32(Place::Value(key))?;
    Kind::from_number(number).ok_or_else(|| GgufError::ValueType { key: key.to_owned(), got: number })
}

fn element(cursor: &mut Cursor<'_>, key: &str, kind: Kind) -> Result<(), GgufError> {
    let place = Place::Value(key);
    match kind.size() {
        None => drop(cursor.text(place)?),
        Some(size) => {
            let bytes = cursor.take(place, size as u64)?;
            if kind == Kind::Bool && bytes[0] > 1 {
                return Err(GgufError::Bool { key: key.to_owned(), got: bytes[0] });
            }
        }
    }
    Ok(())
}

/// A tensor as the header announces it: its offset is not yet compared with the file.
struct Announced {
    name: String,
    ggml_type: GgmlType,
    shape: Vec<usize>,
    offset: u64,
    bytes: u64,
}

impl Announced {
    fn read(cursor: &mut Cursor<'_>, index: u64, alignment: u64) -> Result<Self, GgufError> {
        let name = cursor.name(Place::TensorName(index))?;
        let place = Place::Tensor(name);
        let tensor = || name.to_owned();
        let dimensions = cursor.u32(place)?;
        if dimensions > MAX_DIMENSIONS {
            return Err(GgufError::Dimensions { tensor: tensor(), got: dimensions });
        }
        let mut shape = (0..dimensions).map(|_| cursor.u64(place)).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let type_id = cursor.u32(place)?;
        let ggml_type = GgmlType::from_id(type_id)
            .ok_or_else(|| GgufError::TensorType { tensor: tensor(), got: type_id })?;
        let offset = cursor.u64(place)?;
        if offset % alignment != 0 {
            return Err(GgufError::Offset { tensor: tensor(), expected: alignment, got: offset });
        }
        let (expected, row) = (ggml_type.block_len(), shape.last().copied().unwrap_or(1));
        if row % expected as u64 != 0 {
            let ggml_type = ggml_type.name();
            return Err(GgufError::RowLength { tensor: tensor(), ggml_type, expected, got: row });
        }
        let overflow = || GgufError::ShapeOverflow { tensor: tensor(), shape: shape.clone() };
        // The bound leaves zeros out: [0, 2^40, 2^40] is empty, but the length of its rows overflows.
        let bound = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n.max(1)));
        let bound = bound.and_then(|n| n.checked_mul(8)).ok_or_else(overflow)?; // No element takes more than 8 bytes.
        let elements = if shape.contains(&0) { 0 } else { bound / 8 };
        let bytes = elements / expected as u64 * ggml_type.block_bytes() as u64;
        let sizes = shape.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>();
        Ok(Announced { name: tensor(), ggml_type, shape: sizes.map_err(|_| overflow())?, offset, bytes })
    }
}

/// Checks that the tensors lie inside the file and apart, and gives them their places in it.
fn place(
    mut announced: Vec<Announced>,
    data_start: u64,
    file_len: u64,
) -> Result<BTreeMap<String, GgufTensor>, GgufError> {
    let data_len = file_len.saturating_sub(data_start);
    announced.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut tensors = BTreeMap::new();
    let (mut previous, mut reached) = (String::new(), 0);
    for Announced { name, ggml_type, shape, offset, bytes } in announced {
        if offset < reached {
            return Err(GgufError::Overlap { tensor: name, begin: offset, previous, end: reached });
        }
        let end = offset.checked_add(bytes).filter(|&end| end <= data_len);
        let Some(end) = end else {
            let expected = offset.saturating_add(bytes);
            return Err(GgufError::Truncated { tensor: name, expected, got: data_len });
        };
        // Within the file, which is mapped: no overflow.
        let bytes = (data_start + offset) as usize..(data_start + end) as usize;
        if tensors.insert(name.clone(), GgufTensor { ggml_type, shape, bytes }).is_some() {
            return Err(GgufError::DuplicateTensor(name));
        }
        (previous, reached) = (name, end);
    }
    Ok(tensors)
}

/// What was being read: only named when it fails.
#[derive(Clone, Copy)]
enum Place<'a> {
    Magic,
    Version,
    Counts,
    Key(u64),
    Value(&'a str),
    TensorName(u64),
    Tensor(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Magic => f.write_str("the letters GGUF"),
            Place::Version => f.write_str("the version"),
            Place::Counts => f.write_str("the counts of tensors and metadata keys"),
            Place::Key(index) => write!(f, "metadata key number {index}"),
            Place::Value(key) => write!(f, "the value of {key:?}"),
            Place::TensorName(index) => write!(f, "the name of tensor number {index}"),
            Place::Tensor(name) => write!(f, "the description of tensor {name:?}"),
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn check_count(&self, what: &str, got: u64, least: u64) -> Result<(), GgufError> {
        let limit = self.left() / least;
        match got > limit {
            true => Err(GgufError::Count { what: what.to_owned(), got, limit }),
            false => Ok(()),
        }
    }

    fn take(&mut self, place: Place<'_>, count: u64) -> Result<&'a [u8], GgufError> {
        if count > self.left() {
            return Err(GgufError::Cut { place: place.to_string(), expected: count, got: self.left() });
        }
        let taken = &self.bytes[self.at..self.at + count as usize];
        self.at += count as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, place: Place<'_>) -> Result<[u8; N], GgufError> {
        let taken = self.take(place, N as u64)?;
        Ok(taken.try_into().expect("as many bytes as were taken: this is a bug"))
    }

    fn u32(&mut self, place: Place<'_>) -> Result<u32, GgufError> {
        self.array(place).map(u32::from_le_bytes)
    }

    fn u64(&mut self, place: Place<'_>) -> Result<u64, GgufError> {
        self.array(place).map(u64::from_le_bytes)
    }

    fn text(&mut self, place: Place<'_>) -> Result<&'a str, GgufError> {
        let length = self.u64(place)?;
        std::str::from_utf8(self.take(place, length)?)
            .map_err(|e| GgufError::Text { place: place.to_string(), at: e.valid_up_to() })
    }

    fn name(&mut self, place: Place<'_>) -> Result<&'a str, GgufError> {
        match self.text(place)? {
            "" => Err(GgufError::Empty(place.to_string())),
            name => Ok(name),
        }
    }
}
