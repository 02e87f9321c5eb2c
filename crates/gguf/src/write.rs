//! Writes small GGUF files for tests.

use crate::{Array, TensorKind, Value};

/// A file in the making: keys and tensors in the order they are added. It checks nothing, so that
/// tests can write wrong files too.
///
/// ```
/// use gguf::{Header, TensorKind, Value, write::Writer};
///
/// let file = Writer::new()
///     .key("general.architecture", Value::Str("llama".into()))
///     .tensor("output_norm.weight", &[2], TensorKind::F32, &[0; 8])
///     .finish();
/// let header = Header::read(file.as_slice(), file.len() as u64)?;
/// assert_eq!(header.metadata.str("general.architecture")?, "llama");
/// # Ok::<(), gguf::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Writer {
    version: u32,
    alignment: u64,
    keys: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Writer {
    /// Version 3, alignment 32.
    pub fn new() -> Self {
        Self { version: 3, alignment: 32, keys: Vec::new(), tensors: Vec::new() }
    }

    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Writes `general.alignment` too.
    pub fn alignment(mut self, alignment: u32) -> Self {
        self.alignment = alignment.max(1).into();
        self.key("general.alignment", Value::U32(alignment))
    }

    pub fn key(mut self, key: &str, value: Value) -> Self {
        self.keys.push((key.to_owned(), value));
        self
    }

    /// `dims` in ggml's order (fastest first); `bytes` as they lie in the file.
    pub fn tensor(self, name: &str, dims: &[u64], kind: TensorKind, bytes: &[u8]) -> Self {
        self.raw_tensor(name, dims, kind.number(), bytes)
    }

    /// A tensor whose type number need not exist.
    pub fn raw_tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: &[u8]) -> Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), kind, bytes.to_vec()));
        self
    }

    /// The whole file.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            string(&mut out, key);
            put(&mut out, value);
        }
        let mut offset = 0u64;
        for (name, dims, kind, bytes) in &self.tensors {
            string(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            out.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + bytes.len() as u64).next_multiple_of(self.alignment);
        }
        for (_, _, _, bytes) in &self.tensors {
            self.pad(&mut out);
            out.extend(bytes);
        }
        self.pad(&mut out);
        out
    }

    fn pad(&self, out: &mut Vec<u8>) {
        out.resize((out.len() as u64).next_multiple_of(self.alignment) as usize, 0);
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    fn scalar<const N: usize>(out: &mut Vec<u8>, kind: u32, bytes: [u8; N]) {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    }
    match value {
        Value::U8(x) => scalar(out, 0, x.to_le_bytes()),
        Value::I8(x) => scalar(out, 1, x.to_le_bytes()),
        Value::U16(x) => scalar(out, 2, x.to_le_bytes()),
        Value::I16(x) => scalar(out, 3, x.to_le_bytes()),
        Value::U32(x) => scalar(out, 4, x.to_le_bytes()),
        Value::I32(x) => scalar(out, 5, x.to_le_bytes()),
        Value::F32(x) => scalar(out, 6, x.to_le_bytes()),
        Value::Bool(x) => scalar(out, 7, [u8::from(*x)]),
        Value::U64(x) => scalar(out, 10, x.to_le_bytes()),
        Value::I64(x) => scalar(out, 11, x.to_le_bytes()),
        Value::F64(x) => scalar(out, 12, x.to_le_bytes()),
        Value::Str(text) => {
            out.extend(8u32.to_le_bytes());
            string(out, text);
        }
        Value::Array(items) => {
            out.extend(9u32.to_le_bytes());
            put_array(out, items);
        }
    }
}

fn put_array(out: &mut Vec<u8>, items: &Array) {
    let mut start = |kind: u32| {
        out.extend(kind.to_le_bytes());
        out.extend((items.len() as u64).to_le_bytes());
    };
    match items {
        Array::U8(items) => {
            start(0);
            out.extend(items);
        }
        Array::I8(items) => {
            start(1);
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
        Array::U16(items) => {
            start(2);
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
        Array::I16(items) => {
            start(3);
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
        Array::U32(items) => {
            start(4);
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
        Array::I32(items) => {
            start(5);
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
        Array::F32(items) => {
            start(6);
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
        Array::Bool(items) => {
            start(7);
            out.extend(items.iter().map(|x| u8::from(*x)));
        }
        Array::Str(items) => {
            start(8);
            items.iter().for_each(|item| string(out, item));
        }
        Array::U64(items) => {
            start(10);
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
        Array::I64(items) => {
            start(11);
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
        Array::F64(items) => {
            start(12);
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
    }
}
