use std::collections::BTreeMap;
use std::path::Path;

use gguf::{Header, Metadata};

use crate::LoadError;
use crate::arch::{Architecture, Decoder};
use crate::weights::Weights;

/// What a model file is, without computing with it; for `paceline models show`.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// `general.name`, when the file has one.
    pub name: Option<String>,
    pub architecture: &'static str,
    pub layers: u32,
    pub hidden: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub vocab: u32,
    /// Positions that the model was trained for.
    pub context: u32,
    /// Elements of all tensors.
    pub parameters: u64,
    pub file_bytes: u64,
    pub tensors: Vec<TensorType>,
}

/// How much of a file is stored in one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    pub kind: &'static str,
    pub tensors: u64,
    pub elements: u64,
    pub bytes: u64,
}

impl Description {
    /// Refuses every file that [`crate::CpuModel::load`] refuses. The matrices are mapped, not read.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let header = Header::open(path)?;
        let file_bytes = std::fs::metadata(path)
            .map_err(|source| LoadError::Io { what: "asking for the file's size", source })?
            .len();
        let (architecture, p) = Architecture::read(&header)?;
        let mut types = BTreeMap::new();
        for tensor in &header.tensors {
            let kind = tensor.kind.name();
            let entry = types.entry(kind).or_insert(TensorType { kind, tensors: 0, elements: 0, bytes: 0 });
            entry.tensors += 1;
            entry.elements = entry.elements.saturating_add(tensor.elements());
            entry.bytes = entry.bytes.saturating_add(tensor.bytes());
        }
        let mut tensors: Vec<TensorType> = types.into_values().collect();
        tensors.sort_by_key(|t| std::cmp::Reverse(t.bytes));
        let name = header.metadata.optional("general.name", Metadata::str)?.map(str::to_owned);
        let mut weights = Weights::open(path, header, architecture.name)?;
        Decoder::take(&mut weights, architecture, &p)?;
        weights.finish()?;
        // All of them are at most 2^24 (checked).
        Ok(Self {
            name,
            architecture: architecture.name,
            layers: p.layers as u32,
            hidden: p.hidden as u32,
            heads: p.heads as u32,
            kv_heads: p.kv_heads as u32,
            vocab: p.vocab as u32,
            context: p.context,
            parameters: tensors.iter().fold(0, |n, t| n.saturating_add(t.elements)),
            file_bytes,
            tensors,
        })
    }
}
