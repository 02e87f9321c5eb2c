use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use gguf::TensorKind;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::{Stored, Weights, map};
use crate::LoadError;
use crate::arch::Names;
use crate::quant::Format;

/// Longer headers are a mistake: the largest models have some thousand tensors of 100 bytes each.
const MOST_HEADER: u64 = 100_000_000;

impl Weights {
    /// Maps the safetensors files of a folder. `index`, where there is one, says which file each tensor
    /// lies in; files and index must agree.
    pub(crate) fn of_safetensors(
        files: &[(String, std::path::PathBuf)],
        index: Option<&BTreeMap<String, String>>,
        architecture: &'static str,
    ) -> Result<Self, LoadError> {
        let mut tensors = BTreeMap::new();
        for (file, path) in files {
            for (name, stored) in read(file, path)? {
                let bad = |why: String| LoadError::BadSafetensors { file: file.clone(), why };
                if let Some(index) = index {
                    match index.get(&name) {
                        Some(said) if said == file => {}
                        Some(said) => {
                            return Err(bad(format!("holds {name:?}, which the index has in {said}")));
                        }
                        None => return Err(bad(format!("holds {name:?}, which the index does not name"))),
                    }
                }
                if tensors.insert(name.clone(), stored).is_some() {
                    return Err(bad(format!("holds {name:?}, which another file holds too")));
                }
            }
        }
        if let Some(missing) = index.and_then(|index| index.keys().find(|name| !tensors.contains_key(*name)))
        {
            return Err(LoadError::MissingTensor { name: missing.clone(), architecture });
        }
        Ok(Self { architecture, names: Names::HuggingFace, tensors, taken: BTreeSet::new() })
    }
}

/// The tensors of one file.
fn read(file: &str, path: &Path) -> Result<Vec<(String, Stored)>, LoadError> {
    let bad = |why: String| LoadError::BadSafetensors { file: file.to_owned(), why };
    let map = map(path)?;
    let (len, rest) =
        map.split_first_chunk::<8>().ok_or_else(|| bad("is shorter than 8 bytes".to_owned()))?;
    let len = u64::from_le_bytes(*len);
    let header = usize::try_from(len).ok().filter(|_| len <= MOST_HEADER).and_then(|len| rest.get(..len));
    let header =
        header.ok_or_else(|| bad(format!("claims a header of {len} bytes, {} follow", rest.len())))?;
    // Checks that tensors follow one another without a gap and have the bytes that their shape takes.
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| bad(e.to_string()))?;
    let (start, data) = (8 + header.len(), rest.len() - header.len());
    if metadata.data_len() != data {
        return Err(bad(format!("describes {} bytes of tensors and has {data}", metadata.data_len())));
    }
    let stored = |info: &safetensors::tensor::TensorInfo| {
        let (from, to) = info.data_offsets;
        let (kind, format) = kind(info.dtype);
        Stored {
            kind,
            format,
            dims: info.shape.iter().rev().map(|d| *d as u64).collect(),
            // Checked with the header.
            elements: info.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64)),
            map: Arc::clone(&map),
            // Not beyond the data, whose end was compared with the file's.
            range: start + from..start + to,
        }
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, stored(info))).collect())
}

fn kind(dtype: Dtype) -> (&'static str, Option<Format>) {
    let known = |kind: TensorKind| (kind.name(), Format::of(kind));
    match dtype {
        Dtype::F32 => known(TensorKind::F32),
        Dtype::F16 => known(TensorKind::F16),
        Dtype::BF16 => known(TensorKind::BF16),
        Dtype::F8_E4M3 => ("F8_E4M3", None),
        Dtype::F8_E5M2 => ("F8_E5M2", None),
        Dtype::I8 => ("I8", None),
        Dtype::U8 => ("U8", None),
        Dtype::I32 => ("I32", None),
        Dtype::I64 => ("I64", None),
        Dtype::F64 => ("F64", None),
        _ => ("a type that this version does not know", None),
    }
}
