//! The metadata of a GGUF file: values by key, decoded from the mapped file when they are asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::error::GgufError;
use crate::{CheckpointError, Result};

/// The type of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::Text,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    pub(crate) fn number(self) -> u32 {
        self as u32
    }

    /// Bytes of one value; texts and arrays say it themselves.
    pub(crate) fn size(self) -> Option<usize> {
        Some(match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 => 8,
            Kind::Text | Kind::Array => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Kind::U8 => "u8",
            Kind::I8 => "i8",
            Kind::U16 => "u16",
            Kind::I16 => "i16",
            Kind::U32 => "u32",
            Kind::I32 => "i32",
            Kind::F32 => "f32",
            Kind::Bool => "bool",
            Kind::Text => "string",
            Kind::Array => "array",
            Kind::U64 => "u64",
            Kind::I64 => "i64",
            Kind::F64 => "f64",
        }
    }

    /// The integer in `bytes`, which hold one value of this kind.
    fn integer(self, bytes: &[u8]) -> Option<i128> {
        let signed = match self {
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => false,
            Kind::I8 | Kind::I16 | Kind::I32 | Kind::I64 => true,
            _ => return None,
        };
        let fill = if signed && bytes.last().is_some_and(|&high| high >= 0x80) { 0xff } else { 0 };
        let mut wide = [fill; 16];
        wide[..bytes.len()].copy_from_slice(bytes);
        Some(i128::from_le_bytes(wide))
    }
}

/// A checked value: where it is in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RawValue {
    pub(crate) kind: Kind,
    /// Of the elements, when it is an array.
    pub(crate) element: Option<Kind>,
    pub(crate) count: u64,
    pub(crate) bytes: Range<usize>,
}

impl RawValue {
    pub(crate) fn integer(&self, file: &[u8]) -> Option<i128> {
        self.kind.integer(&file[self.bytes.clone()])
    }

    pub(crate) fn describe(&self) -> String {
        match self.element {
            None => format!("a value of type {}", self.kind.name()),
            Some(element) => format!("an array of {} values of type {}", self.count, element.name()),
        }
    }
}

/// The metadata of an open file.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    pub(crate) file: &'a Path,
    pub(crate) bytes: &'a [u8],
    pub(crate) values: &'a BTreeMap<String, RawValue>,
}

impl<'a> Metadata<'a> {
    /// All keys, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &'a str> {
        self.values.keys().map(String::as_str)
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// An integer of any width that is not negative.
    ///
    /// Errors: as all readers here, [`GgufError::Value`] for a value of another type or range.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.read(key, "an integer that is not negative", |value| {
            value.integer(self.bytes).and_then(|n| u64::try_from(n).ok())
        })
    }

    /// A float. One stored in 32 bits becomes the number that its shortest decimal form names: 1e-5 stays 1e-5.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a float", |value| {
            let bytes = &self.bytes[value.bytes.clone()];
            match value.kind {
                Kind::F32 => f32::from_le_bytes(bytes.try_into().ok()?).to_string().parse().ok(),
                Kind::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
                _ => None,
            }
        })
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "a bool", |value| {
            (value.kind == Kind::Bool).then(|| self.bytes[value.bytes.start] == 1)
        })
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", |value| match value.kind {
            Kind::Text => split_text(&self.bytes[value.bytes.clone()]).map(|(text, _)| text),
            _ => None,
        })
    }

    /// An array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.read(key, "an array of strings", |value| {
            let mut rest = &self.bytes[value.bytes.clone()];
            let next = |_| {
                let (text, after) = split_text(rest)?;
                rest = after;
                Some(text)
            };
            (value.element == Some(Kind::Text)).then(|| (0..value.count).map_while(next).collect())
        })
    }

    /// An array of integers that fit in 64 bits with a sign.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.read(key, "an array of integers", |value| {
            let (kind, size) = (value.element?, value.element?.size()?);
            let elements = self.bytes[value.bytes.clone()].chunks_exact(size);
            elements.map(|bytes| i64::try_from(kind.integer(bytes)?).ok()).collect()
        })
    }

    /// The value, which must be there.
    ///
    /// Errors: [`GgufError::MissingKey`].
    pub(crate) fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.wrong(GgufError::MissingKey(key.to_owned())))
    }

    pub(crate) fn wrong(&self, problem: GgufError) -> CheckpointError {
        CheckpointError::Gguf { file: self.file.into(), problem }
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        decode: impl FnOnce(&RawValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let wrong = || self.wrong(GgufError::value(key, value.describe(), expected));
        decode(value).ok_or_else(wrong).map(Some)
    }
}

/// The text at the start of `bytes`, and what follows it.
fn split_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// A metadata value to write.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // Each is what it says.
pub enum MetadataValue {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

impl MetadataValue {
    /// Appends the type and the value as files have them.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, element: Kind, count: usize| {
            out.extend(Kind::Array.number().to_le_bytes());
            out.extend(element.number().to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        };
        match self {
            MetadataValue::U32(n) => out.extend([Kind::U32.number().to_le_bytes(), n.to_le_bytes()].concat()),
            MetadataValue::F32(x) => out.extend([Kind::F32.number().to_le_bytes(), x.to_le_bytes()].concat()),
            MetadataValue::Bool(b) => {
                out.extend(Kind::Bool.number().to_le_bytes());
                out.push(u8::from(*b));
            }
            MetadataValue::Text(text) => {
                out.extend(Kind::Text.number().to_le_bytes());
                write_text(text, out);
            }
            MetadataValue::Texts(texts) => {
                array(out, Kind::Text, texts.len());
                texts.iter().for_each(|text| write_text(text, out));
            }
            MetadataValue::I32s(values) => {
                array(out, Kind::I32, values.len());
                out.extend(values.iter().flat_map(|n| n.to_le_bytes()));
            }
        }
    }
}

/// Appends a text with its length before it.
pub(crate) fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
