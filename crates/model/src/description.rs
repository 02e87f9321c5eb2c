use std::collections::BTreeMap;
use std::path::Path;

use gguf::{Header, Metadata};

use crate::LoadError;
use crate::arch::Architecture;

/// What a model file is, from its header alone; for `paceline models show`.
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
    /// Reads the header and checks what [`crate::CpuModel::load`] would check of it but the tensors.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let header = Header::open(path)?;
        let file_bytes = std::fs::metadata(path)
            .map_err(|source| LoadError::Io { what: "asking for the file's size", source })?
            .len();
        let architecture = Architecture::of(&header.metadata)?;
        let vocab = header.tensor("token_embd.weight").and_then(|t| t.dims.get(1)).copied();
        let p = architecture.parameters(
            &header.metadata,
            vocab.ok_or_else(|| LoadError::MissingTensor {
                name: "token_embd.weight".to_owned(),
                architecture: architecture.name,
            })?,
        )?;
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
        // All of them are at most 2^24 (checked).
        Ok(Self {
            name: header.metadata.optional("general.name", Metadata::str)?.map(str::to_owned),
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
