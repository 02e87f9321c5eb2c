//! The tensors of a GGUF file, mapped into memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use gguf::{Header, TensorInfo};
use memmap2::{Advice, Mmap};

use crate::LoadError;
use crate::quant::Format;

/// An open model file. Tensors are taken by name; what nobody took is an error in the end.
pub(crate) struct Weights {
    pub(crate) header: Header,
    architecture: &'static str,
    map: Arc<Mmap>,
    taken: BTreeSet<String>,
}

/// A matrix in the file: `outputs` rows of `inputs` weights.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub(crate) format: Format,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Weights {
    /// Maps the file that `header` was read from.
    pub(crate) fn open(path: &Path, header: Header, architecture: &'static str) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|source| LoadError::Io { what: "opening the file", source })?;
        // SAFETY: the map is read-only and private to this process's use of the file. Another process
        // that rewrites the file in place could change bytes under us; every bit pattern of every
        // block format is a value, so that gives wrong numbers, never a wrong memory access. One that
        // shortens it ends this process with SIGBUS: files are replaced by rename (`models pull`).
        let map = unsafe { Mmap::map(&file) }
            .map_err(|source| LoadError::Io { what: "mapping the file into memory", source })?;
        Ok(Self { header, architecture, map: Arc::new(map), taken: BTreeSet::new() })
    }

    /// Has the whole file read ahead, for a model that will compute.
    pub(crate) fn prefetch(&self) {
        // A hint only: the pages are read on first use if the kernel declines.
        let _ = self.map.advise(Advice::WillNeed);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.header.tensor(name).is_some()
    }

    /// A matrix that maps `inputs` values to `outputs`.
    pub(crate) fn matrix(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Matrix, LoadError> {
        let (format, range) = self.take(name, &[inputs as u64, outputs as u64])?;
        Ok(Matrix { format, outputs, inputs, map: Arc::clone(&self.map), range })
    }

    /// A vector of `len` values, as f32.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let (format, range) = self.take(name, &[len as u64])?;
        let mut values = vec![0.0; len];
        format.dequantise(self.map.get(range).unwrap_or_default(), &mut values);
        if values.iter().any(|v| !v.is_finite()) {
            return Err(LoadError::NotFinite { name: name.to_owned() });
        }
        Ok(values)
    }

    /// Refuses tensors that no one asked for: a model that is only partly understood is not run.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        match self.header.tensors.iter().find(|t| !self.taken.contains(&t.name)) {
            None => Ok(()),
            Some(t) => {
                Err(LoadError::UnexpectedTensor { name: t.name.clone(), architecture: self.architecture })
            }
        }
    }

    fn take(&mut self, name: &str, expected: &[u64]) -> Result<(Format, Range<usize>), LoadError> {
        let Some(tensor) = self.header.tensor(name) else {
            return Err(LoadError::MissingTensor { name: name.to_owned(), architecture: self.architecture });
        };
        // Trailing dimensions of 1 are written by some converters and mean nothing.
        let dims = tensor.dims.as_slice();
        let (head, tail) = dims.split_at(expected.len().min(dims.len()));
        if head != expected || tail.iter().any(|d| *d != 1) {
            return Err(LoadError::WrongShape {
                name: name.to_owned(),
                expected: expected.to_vec(),
                found: tensor.dims.clone(),
            });
        }
        let Some(format) = Format::of(tensor.kind) else {
            return Err(LoadError::UnsupportedTensor {
                name: name.to_owned(),
                kind: tensor.kind.name(),
                supported: Format::SUPPORTED,
            });
        };
        let range = self.range(tensor).ok_or_else(|| LoadError::OutsideFile { name: name.to_owned() })?;
        self.taken.insert(name.to_owned());
        Ok((format, range))
    }

    /// Where the tensor lies in the map; `None` when the file is not the one the header was read from.
    fn range(&self, tensor: &TensorInfo) -> Option<Range<usize>> {
        let start = usize::try_from(self.header.data_offset.checked_add(tensor.offset)?).ok()?;
        let end = start.checked_add(usize::try_from(tensor.bytes()).ok()?)?;
        (end <= self.map.len()).then_some(start..end)
    }
}

impl Matrix {
    /// A matrix of bytes made up by a test.
    #[cfg(test)]
    pub(crate) fn in_memory(format: Format, outputs: usize, inputs: usize, bytes: &[u8]) -> Self {
        let mut map = memmap2::MmapMut::map_anon(bytes.len()).unwrap();
        map.copy_from_slice(bytes);
        Self { format, outputs, inputs, map: Arc::new(map.make_read_only().unwrap()), range: 0..bytes.len() }
    }

    /// All rows, one after the other.
    pub(crate) fn bytes(&self) -> &[u8] {
        // Checked against the map when the matrix was made.
        self.map.get(self.range.clone()).unwrap_or_default()
    }

    /// Writes the weights of row `output` to `to`, which holds `inputs` values.
    pub(crate) fn dequantise_row(&self, output: usize, to: &mut [f32]) {
        let (elems, bytes) = self.format.block();
        let row = self.inputs / elems * bytes;
        let from = self.bytes().get(output * row..(output + 1) * row).unwrap_or_default();
        self.format.dequantise(from, to);
    }
}
