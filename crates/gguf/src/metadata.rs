use std::collections::BTreeMap;
use std::io::Read;

use crate::Error;
use crate::source::{Source, reserve};

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Array(Array),
}

/// An array value: all elements have one type. Arrays of arrays are refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Str(Vec<String>),
}

/// The keys of a file. The getters' errors name the key and what was found there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All keys, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Any integer type, if the value fits.
    pub fn u64(&self, key: &str) -> Result<u64, Error> {
        let value = self.need(key)?;
        let fits = match *value {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        };
        fits.ok_or_else(|| wrong(key, "an unsigned integer", value))
    }

    /// Any integer type, if the value fits.
    pub fn u32(&self, key: &str) -> Result<u32, Error> {
        let wide = self.u64(key)?;
        wide.try_into().map_err(|_| Error::WrongType {
            key: key.to_owned(),
            expected: "an integer below 2^32",
            found: wide.to_string(),
        })
    }

    /// A float; an F64 is rounded.
    pub fn f32(&self, key: &str) -> Result<f32, Error> {
        match *self.need(key)? {
            Value::F32(x) => Ok(x),
            Value::F64(x) => Ok(x as f32),
            ref other => Err(wrong(key, "a float", other)),
        }
    }

    pub fn bool(&self, key: &str) -> Result<bool, Error> {
        match *self.need(key)? {
            Value::Bool(b) => Ok(b),
            ref other => Err(wrong(key, "a boolean", other)),
        }
    }

    pub fn str(&self, key: &str) -> Result<&str, Error> {
        match self.need(key)? {
            Value::Str(s) => Ok(s),
            other => Err(wrong(key, "a string", other)),
        }
    }

    pub fn strs(&self, key: &str) -> Result<&[String], Error> {
        match self.need(key)? {
            Value::Array(Array::Str(items)) => Ok(items),
            other => Err(wrong(key, "an array of strings", other)),
        }
    }

    pub fn i32s(&self, key: &str) -> Result<&[i32], Error> {
        match self.need(key)? {
            Value::Array(Array::I32(items)) => Ok(items),
            other => Err(wrong(key, "an array of I32", other)),
        }
    }

    pub fn f32s(&self, key: &str) -> Result<&[f32], Error> {
        match self.need(key)? {
            Value::Array(Array::F32(items)) => Ok(items),
            other => Err(wrong(key, "an array of F32", other)),
        }
    }

    /// `None` when the key is absent; one of the wrong type is still an error:
    /// `metadata.optional("tokenizer.ggml.pre", Metadata::str)`.
    pub fn optional<'a, T>(
        &'a self,
        key: &str,
        getter: impl FnOnce(&'a Self, &str) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if self.0.contains_key(key) { getter(self, key).map(Some) } else { Ok(None) }
    }

    fn need(&self, key: &str) -> Result<&Value, Error> {
        self.get(key).ok_or_else(|| Error::MissingKey { key: key.to_owned() })
    }

    /// Reads `count` keys.
    pub(crate) fn read<R: Read>(source: &mut Source<R>, count: u64) -> Result<Self, Error> {
        let mut map = BTreeMap::new();
        for index in 0..count {
            let key = source.string(&format_args!("the name of metadata key {index}"))?;
            let value = Value::read(source, &key)?;
            if map.contains_key(&key) {
                return Err(Error::DuplicateKey { key });
            }
            map.insert(key, value);
        }
        Ok(Self(map))
    }
}

impl FromIterator<(String, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

impl Value {
    fn read<R: Read>(source: &mut Source<R>, key: &str) -> Result<Self, Error> {
        let what = format_args!("the value of metadata key {key:?}");
        Ok(match source.u32(&what)? {
            0 => Self::U8(u8::from_le_bytes(source.array(&what)?)),
            1 => Self::I8(i8::from_le_bytes(source.array(&what)?)),
            2 => Self::U16(u16::from_le_bytes(source.array(&what)?)),
            3 => Self::I16(i16::from_le_bytes(source.array(&what)?)),
            4 => Self::U32(u32::from_le_bytes(source.array(&what)?)),
            5 => Self::I32(i32::from_le_bytes(source.array(&what)?)),
            6 => Self::F32(f32::from_le_bytes(source.array(&what)?)),
            7 => Self::Bool(boolean(key, source.u8(&what)?)?),
            8 => Self::Str(source.string(&what)?),
            9 => Self::Array(Array::read(source, key)?),
            10 => Self::U64(u64::from_le_bytes(source.array(&what)?)),
            11 => Self::I64(i64::from_le_bytes(source.array(&what)?)),
            12 => Self::F64(f64::from_le_bytes(source.array(&what)?)),
            found => return Err(Error::UnknownValueType { key: key.to_owned(), found }),
        })
    }

    /// What the value is, short, for an error.
    fn describe(&self) -> String {
        match self {
            Self::Str(s) if s.len() > 40 => format!("a string of {} bytes", s.len()),
            Self::Array(items) => items.describe(),
            other => format!("{other:?}"),
        }
    }
}

impl Array {
    pub fn len(&self) -> usize {
        match self {
            Self::U8(items) => items.len(),
            Self::I8(items) => items.len(),
            Self::U16(items) => items.len(),
            Self::I16(items) => items.len(),
            Self::U32(items) => items.len(),
            Self::I32(items) => items.len(),
            Self::U64(items) => items.len(),
            Self::I64(items) => items.len(),
            Self::F32(items) => items.len(),
            Self::F64(items) => items.len(),
            Self::Bool(items) => items.len(),
            Self::Str(items) => items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read<R: Read>(source: &mut Source<R>, key: &str) -> Result<Self, Error> {
        let what = format_args!("the array of metadata key {key:?}");
        let kind = source.u32(&what)?;
        let count = source.count(&what, "elements", 1)?;
        Ok(match kind {
            0 => Self::U8(source.numbers(&what, count, u8::from_le_bytes)?),
            1 => Self::I8(source.numbers(&what, count, i8::from_le_bytes)?),
            2 => Self::U16(source.numbers(&what, count, u16::from_le_bytes)?),
            3 => Self::I16(source.numbers(&what, count, i16::from_le_bytes)?),
            4 => Self::U32(source.numbers(&what, count, u32::from_le_bytes)?),
            5 => Self::I32(source.numbers(&what, count, i32::from_le_bytes)?),
            6 => Self::F32(source.numbers(&what, count, f32::from_le_bytes)?),
            7 => {
                let bytes = source.numbers(&what, count, u8::from_le_bytes)?;
                Self::Bool(bytes.into_iter().map(|byte| boolean(key, byte)).collect::<Result<_, _>>()?)
            }
            8 => {
                let mut items = Vec::with_capacity(reserve(count, size_of::<String>()));
                for index in 0..count {
                    items.push(source.string(&format_args!("element {index} of metadata key {key:?}"))?);
                }
                Self::Str(items)
            }
            9 => return Err(Error::NestedArray { key: key.to_owned() }),
            10 => Self::U64(source.numbers(&what, count, u64::from_le_bytes)?),
            11 => Self::I64(source.numbers(&what, count, i64::from_le_bytes)?),
            12 => Self::F64(source.numbers(&what, count, f64::from_le_bytes)?),
            found => return Err(Error::UnknownValueType { key: key.to_owned(), found }),
        })
    }

    fn describe(&self) -> String {
        let element = match self {
            Self::U8(_) => "U8",
            Self::I8(_) => "I8",
            Self::U16(_) => "U16",
            Self::I16(_) => "I16",
            Self::U32(_) => "U32",
            Self::I32(_) => "I32",
            Self::U64(_) => "U64",
            Self::I64(_) => "I64",
            Self::F32(_) => "F32",
            Self::F64(_) => "F64",
            Self::Bool(_) => "booleans",
            Self::Str(_) => "strings",
        };
        format!("an array of {} {element}", self.len())
    }
}

fn boolean(key: &str, byte: u8) -> Result<bool, Error> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Error::BadBool { key: key.to_owned(), found }),
    }
}

fn wrong(key: &str, expected: &'static str, found: &Value) -> Error {
    Error::WrongType { key: key.to_owned(), expected, found: found.describe() }
}
