//! The tensors of a model, mapped into memory: one table, whatever files they lie in.

mod gguf;
mod safetensors;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

#[cfg(unix)]
use memmap2::UncheckedAdvice;
use memmap2::{Advice, Mmap};

use crate::arch::{Names, Part};
use crate::quant::Format;
use crate::{LoadError, TensorType};

/// The tensors of an open model. They are taken by role; what nobody took is an error in the end.
pub(crate) struct Weights {
    architecture: &'static str,
    names: Names,
    tensors: BTreeMap<String, Stored>,
    taken: BTreeSet<String>,
}

/// Where one tensor lies and how it is stored.
struct Stored {
    /// Name of its type.
    kind: &'static str,
    /// `None`: no kernel.
    format: Option<Format>,
    /// The fastest first, as ggml has them: a matrix is `[inputs, outputs]`.
    dims: Vec<u64>,
    elements: u64,
    map: Arc<Mmap>,
    /// Inside the map (checked).
    range: Range<usize>,
}

/// A matrix in a file: `outputs` rows of `inputs` weights.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub(crate) format: Format,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Weights {
    /// Has all files read ahead, for a model that will compute.
    pub(crate) fn prefetch(&self) {
        let mut seen = BTreeSet::new();
        for tensor in self.tensors.values() {
            if seen.insert(tensor.map.as_ptr()) {
                // A hint only: the pages are read on first use if the kernel declines.
                let _ = tensor.map.advise(Advice::WillNeed);
            }
        }
    }

    pub(crate) fn names(&self) -> Names {
        self.names
    }

    /// What the part is called in this model.
    pub(crate) fn name(&self, part: Part) -> String {
        self.names.of(part)
    }

    pub(crate) fn has(&self, part: Part) -> bool {
        self.tensors.contains_key(&self.name(part))
    }

    /// A matrix that maps `inputs` values to `outputs`.
    pub(crate) fn matrix(&mut self, part: Part, inputs: usize, outputs: usize) -> Result<Matrix, LoadError> {
        let (format, map, range) = self.take(part, &[inputs as u64, outputs as u64])?;
        Ok(Matrix { format, outputs, inputs, map, range })
    }

    /// A vector of `len` values, as f32.
    pub(crate) fn vector(&mut self, part: Part, len: usize) -> Result<Vec<f32>, LoadError> {
        let (format, map, range) = self.take(part, &[len as u64])?;
        let mut values = vec![0.0; len];
        format.dequantise(map.get(range).unwrap_or_default(), &mut values);
        if values.iter().any(|v| !v.is_finite()) {
            return Err(LoadError::NotFinite { name: self.name(part) });
        }
        Ok(values)
    }

    /// Lets a tensor go unused.
    pub(crate) fn pass_over(&mut self, part: Part) {
        self.taken.insert(self.name(part));
    }

    /// How much is stored in which type, the most first.
    pub(crate) fn types(&self) -> Vec<TensorType> {
        let mut types = BTreeMap::new();
        for Stored { kind, elements, range, .. } in self.tensors.values() {
            let entry = types.entry(*kind).or_insert(TensorType { kind, tensors: 0, elements: 0, bytes: 0 });
            entry.tensors += 1;
            entry.elements = entry.elements.saturating_add(*elements);
            entry.bytes = entry.bytes.saturating_add(range.len() as u64);
        }
        let mut types: Vec<TensorType> = types.into_values().collect();
        types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
        types
    }

    /// Refuses tensors that no one asked for: a model that is only partly understood is not run.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        let idle = |name: &str| self.taken.contains(name) || self.names.is_idle(name);
        match self.tensors.keys().find(|name| !idle(name)) {
            None => Ok(()),
            Some(name) => {
                Err(LoadError::UnexpectedTensor { name: name.clone(), architecture: self.architecture })
            }
        }
    }

    fn take(&mut self, part: Part, expected: &[u64]) -> Result<(Format, Arc<Mmap>, Range<usize>), LoadError> {
        let name = self.name(part);
        let Some(tensor) = self.tensors.get(&name) else {
            return Err(LoadError::MissingTensor { name, architecture: self.architecture });
        };
        // Trailing dimensions of 1 are written by some converters and mean nothing.
        let (head, tail) = tensor.dims.split_at(expected.len().min(tensor.dims.len()));
        if head != expected || tail.iter().any(|d| *d != 1) {
            // In the order of the files.
            let shown = |dims: &[u64]| match self.names {
                Names::Gguf => dims.to_vec(),
                Names::HuggingFace => dims.iter().rev().copied().collect(),
            };
            let (expected, found) = (shown(expected), shown(&tensor.dims));
            return Err(LoadError::WrongShape { name, expected, found });
        }
        let Some(format) = tensor.format else {
            let (kind, supported) = (tensor.kind, Format::SUPPORTED);
            return Err(LoadError::UnsupportedTensor { name, kind, supported });
        };
        let found = (format, Arc::clone(&tensor.map), tensor.range.clone());
        self.taken.insert(name);
        Ok(found)
    }
}

/// Maps a file of weights.
fn map(path: &Path) -> Result<Arc<Mmap>, LoadError> {
    let file = File::open(path).map_err(|source| LoadError::Io { what: opening(path), source })?;
    // SAFETY: the map is read-only and private to this process's use of the file. Another process
    // that rewrites the file in place could change bytes under us; every bit pattern of every
    // block format is a value, so that gives wrong numbers, never a wrong memory access. One that
    // shortens it ends this process with SIGBUS: files are replaced by rename (`models pull`).
    let map = unsafe { Mmap::map(&file) }
        .map_err(|source| LoadError::Io { what: "mapping the file into memory".into(), source })?;
    Ok(Arc::new(map))
}

fn opening(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    format!("opening {}", name.to_string_lossy())
}

impl Matrix {
    /// A matrix of bytes made up by a test.
    #[cfg(test)]
    pub(crate) fn in_memory(format: Format, outputs: usize, inputs: usize, bytes: &[u8]) -> Self {
        use std::io::Write as _;

        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Self { format, outputs, inputs, map: map(file.path()).unwrap(), range: 0..bytes.len() }
    }

    /// All rows, one after the other.
    pub(crate) fn bytes(&self) -> &[u8] {
        // Checked against the map when the matrix was made.
        self.map.get(self.range.clone()).unwrap_or_default()
    }

    /// Says that its bytes will not be read soon. They are there again when they are.
    pub(crate) fn let_go(&self) {
        // SAFETY: the map is read-only and of a file: pages that are given up are read again from the
        // file on the next use, with the same bytes.
        #[cfg(unix)]
        let _ = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.range.start, self.range.len())
        };
    }

    /// Writes the weights of row `output` to `to`, which holds `inputs` values.
    pub(crate) fn dequantise_row(&self, output: usize, to: &mut [f32]) {
        let (elems, bytes) = self.format.block();
        let row = self.inputs / elems * bytes;
        let from = self.bytes().get(output * row..(output + 1) * row).unwrap_or_default();
        self.format.dequantise(from, to);
    }
}
