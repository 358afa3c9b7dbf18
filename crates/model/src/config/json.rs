//! Reading one JSON object field by field, so that nothing in it goes unread.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{ModelError, Result};

/// The fields of one JSON object that have not been read yet.
pub(crate) struct Fields<'a> {
    /// The file, for messages.
    pub file: &'a str,
    /// `""`, or `rope_scaling.` for the fields of that object.
    prefix: String,
    unread: Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Errors: text that is not one JSON object, or in which any object gives a key twice.
    pub fn parse(text: &str, file: &'a str) -> Result<Self> {
        let json = |source| ModelError::Json { file: file.to_owned(), source };
        match serde_json::from_str::<Unique>(text).map_err(json)?.0 {
            Value::Object(unread) => Ok(Self { file, prefix: String::new(), unread }),
            other => Err(json(serde_json::Error::custom(format!("found {} instead", shorten(&other))))),
        }
    }

    /// The fields of an object that is the value of the field `name`.
    pub fn nested(file: &'a str, name: &str, unread: Map<String, Value>) -> Self {
        Self { file, prefix: format!("{name}."), unread }
    }

    /// Takes a field whatever it is, `null` included.
    pub fn take_raw(&mut self, key: &str) -> Option<Value> {
        self.unread.shift_remove(key)
    }

    /// Takes a field; `null` is absence.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.take_raw(key).filter(|value| !value.is_null())
    }

    /// Takes a positive whole number of at most `limit`.
    pub fn size(&mut self, key: &str, limit: usize) -> Result<Option<usize>> {
        self.take(key).map(|value| self.as_size(key, &value, limit)).transpose()
    }

    /// As [`Fields::size`], and it must be there.
    pub fn required_size(&mut self, key: &str, limit: usize) -> Result<usize> {
        let why = "the shape of the model depends on it, and there is no safe default";
        self.size(key, limit)?.ok_or_else(|| self.missing(key, why))
    }

    /// Takes a number; JSON knows no NaN and no infinity.
    pub fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.take(key)
            .map(|value| value.as_f64().ok_or_else(|| self.wrong(key, &value, "a number")))
            .transpose()
    }

    /// Takes a number within `range`.
    pub fn number_in(&mut self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(number) = self.number(key)? else { return Ok(None) };
        if range.contains(&number) {
            return Ok(Some(number));
        }
        let expected = format!("a number from {:e} to {:e}", range.start(), range.end());
        Err(self.wrong(key, &Value::from(number), &expected))
    }

    /// Takes `true` or `false`.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.take(key)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(key, &value, "true or false")))
            .transpose()
    }

    /// Takes a string.
    pub fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.take(key)
            .map(|value| value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, &value, "a string")))
            .transpose()
    }

    /// Takes an object.
    pub fn object(&mut self, key: &str) -> Result<Option<Map<String, Value>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(key, &other, "an object or null")),
        }
    }

    /// Takes one token id; `default` stands in for an absent key, not for `null`.
    pub fn token_id_or(&mut self, key: &str, default: Option<u32>) -> Result<Option<u32>> {
        match self.take_raw(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(id) => self.as_token_id(key, &id).map(Some),
        }
    }

    /// Takes one token id or a list of them; `default` as in [`Fields::token_id_or`].
    pub fn token_ids_or(&mut self, key: &str, default: Option<u32>) -> Result<Vec<u32>> {
        match self.take_raw(key) {
            None => Ok(default.into_iter().collect()),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(|id| self.as_token_id(key, id)).collect(),
            Some(id) => Ok(vec![self.as_token_id(key, &id)?]),
        }
    }

    /// Takes every remaining field.
    pub fn rest(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.unread)
    }

    /// Errors: a field is left that nobody read.
    pub fn finish(mut self) -> Result<()> {
        match self.rest().into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => Err(self.unknown(&key, &value)),
        }
    }

    /// The error of a field with a value that cannot be used.
    pub fn wrong(&self, key: &str, got: &Value, expected: &str) -> ModelError {
        ModelError::Field {
            file: self.file.to_owned(),
            field: format!("{}{key}", self.prefix),
            got: shorten(got),
            expected: expected.to_owned(),
        }
    }

    /// The error of a field that must be there.
    pub fn missing(&self, key: &str, why: &str) -> ModelError {
        let field = format!("{}{key}", self.prefix);
        ModelError::MissingField { file: self.file.to_owned(), field, why: why.to_owned() }
    }

    /// The error of a field that is not understood.
    pub fn unknown(&self, key: &str, got: &Value) -> ModelError {
        let field = format!("{}{key}", self.prefix);
        ModelError::UnknownField { file: self.file.to_owned(), field, got: shorten(got) }
    }

    /// Reads a value that was taken raw as [`Fields::size`] would.
    pub fn as_size(&self, key: &str, value: &Value, limit: usize) -> Result<usize> {
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.filter(|size| (1..=limit).contains(size))
            .ok_or_else(|| self.wrong(key, value, &format!("a whole number from 1 to {limit}")))
    }

    fn as_token_id(&self, key: &str, value: &Value) -> Result<u32> {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.wrong(key, value, "a token id: a whole number from 0"))
    }
}

/// A value as JSON, cut to what fits in a message.
fn shorten(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A JSON value in which no object gives a key twice: readers differ in which of the two they believe.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> std::result::Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> std::result::Result<Value, E> {
        Ok(number.into())
    }

    fn visit_i64<E: Error>(self, number: i64) -> std::result::Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> std::result::Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> std::result::Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Unique(value))) = entries.next_entry::<String, Unique>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} is given twice")));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}
