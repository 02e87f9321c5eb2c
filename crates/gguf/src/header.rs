use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::kind::why_unknown;
use crate::source::Source;
use crate::{Error, Metadata, TensorInfo, TensorKind};

/// What a GGUF file says of itself, checked against the file's length.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// 2 or 3 (the same layout, little-endian).
    pub version: u32,
    /// Bytes; a power of two. Tensors start on multiples of it.
    pub alignment: u64,
    pub metadata: Metadata,
    /// In the order of the file; names are unique.
    pub tensors: Vec<TensorInfo>,
    /// Where tensor data starts, in bytes from the start of the file.
    pub data_offset: u64,
}

impl Header {
    const MAX_DIMS: u32 = 4;
    const DEFAULT_ALIGNMENT: u32 = 32;

    /// Reads the header of a file; tensor data is not touched.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { at: 0, source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        Self::read(BufReader::with_capacity(256 * 1024, file), len)
    }

    /// Reads a header from the start of `input`; `file_len` is the length of the whole file in
    /// bytes, tensor data included.
    pub fn read(input: impl Read, file_len: u64) -> Result<Self, Error> {
        let mut source = Source::new(input, file_len);
        let version = version(&mut source)?;
        // The least an entry can take: 8 + 4 + 4 + 8 bytes a tensor, 8 + 4 + 1 a key.
        let tensor_count = source.count(&"the tensor count", "tensors", 24)?;
        let key_count = source.count(&"the metadata count", "keys", 13)?;
        let metadata = Metadata::read(&mut source, key_count)?;
        let alignment = alignment(&metadata)?;

        let mut tensors = Vec::new();
        for index in 0..tensor_count {
            tensors.push(tensor(&mut source, index)?);
        }
        let data_offset = source.at().next_multiple_of(alignment);
        check(&tensors, alignment, data_offset, file_len)?;
        Ok(Self { version, alignment, metadata, tensors, data_offset })
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

fn version<R: Read>(source: &mut Source<R>) -> Result<u32, Error> {
    let found = source.array(&"the magic number")?;
    if &found != b"GGUF" {
        return Err(Error::NotGguf { found });
    }
    match source.u32(&"the version")? {
        version @ 2..=3 => Ok(version),
        // A small number written by a big-endian machine.
        found if found != 0 && found & 0xffff == 0 => Err(Error::BigEndian),
        found => Err(Error::UnknownVersion { found }),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, Error> {
    let found = metadata.optional("general.alignment", Metadata::u32)?.unwrap_or(Header::DEFAULT_ALIGNMENT);
    if !found.is_power_of_two() {
        return Err(Error::BadAlignment { found });
    }
    Ok(found.into())
}

fn tensor<R: Read>(source: &mut Source<R>, index: u64) -> Result<TensorInfo, Error> {
    let name = source.string(&format_args!("the name of tensor {index}"))?;
    let what = format_args!("the description of tensor {name:?}");
    let rank = source.u32(&what)?;
    if rank > Header::MAX_DIMS {
        let why = format!("has {rank} dimensions, more than {}", Header::MAX_DIMS);
        return Err(Error::BadTensor { name, why });
    }
    let dims = source.numbers(&what, rank.into(), u64::from_le_bytes)?;
    let number = source.u32(&what)?;
    let offset = source.u64(&what)?;
    let Some(kind) = TensorKind::from_number(number) else {
        return Err(Error::UnknownTensorKind { name, found: number, why: why_unknown(number) });
    };
    Ok(TensorInfo { name, dims, kind, offset })
}

fn check(tensors: &[TensorInfo], alignment: u64, data_offset: u64, file_len: u64) -> Result<(), Error> {
    let mut names = HashSet::new();
    for tensor in tensors {
        let name = || tensor.name.clone();
        if let Some(why) = tensor.fault(alignment) {
            return Err(Error::BadTensor { name: name(), why });
        }
        if !names.insert(&tensor.name) {
            return Err(Error::BadTensor { name: name(), why: "appears twice".to_owned() });
        }
        let end = data_offset.checked_add(tensor.offset).and_then(|at| at.checked_add(tensor.bytes()));
        match end {
            Some(end) if end <= file_len => {}
            _ => {
                let end = end.unwrap_or(u64::MAX);
                return Err(Error::TensorBeyondFile { name: name(), end, file_len });
            }
        }
    }
    Ok(())
}
