use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use gguf::{Header, TensorInfo};

use super::{Stored, Weights, map};
use crate::LoadError;
use crate::arch::Names;
use crate::quant::Format;

impl Weights {
    /// Maps the GGUF file that `header` was read from.
    pub(crate) fn of_gguf(
        path: &Path,
        header: &Header,
        architecture: &'static str,
    ) -> Result<Self, LoadError> {
        let map = map(path)?;
        let mut tensors = BTreeMap::new();
        for tensor in &header.tensors {
            let range = range(header, tensor, map.len())
                .ok_or_else(|| LoadError::OutsideFile { name: tensor.name.clone() })?;
            let stored = Stored {
                kind: tensor.kind.name(),
                format: Format::of(tensor.kind),
                dims: tensor.dims.clone(),
                elements: tensor.elements(),
                map: Arc::clone(&map),
                range,
            };
            tensors.insert(tensor.name.clone(), stored);
        }
        Ok(Self { architecture, names: Names::Gguf, tensors, taken: BTreeSet::new() })
    }
}

/// Where the tensor lies in the map; `None` when the file is not the one the header was read from.
fn range(header: &Header, tensor: &TensorInfo, len: usize) -> Option<Range<usize>> {
    let start = usize::try_from(header.data_offset.checked_add(tensor.offset)?).ok()?;
    let end = start.checked_add(usize::try_from(tensor.bytes()).ok()?)?;
    (end <= len).then_some(start..end)
}
