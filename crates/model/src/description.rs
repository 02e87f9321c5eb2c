use std::path::Path;

use kvcache::HeadClass;

use crate::LoadError;
use crate::files::Opened;

/// What a model is, without computing with it; for `paceline models show`.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// `general.name` of a file that has one; a folder's own name.
    pub name: Option<String>,
    pub architecture: &'static str,
    pub layers: u32,
    pub hidden: u32,
    pub feed_forward: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub vocab: u32,
    /// Positions that the model is said to be for.
    pub context: u32,
    /// Positions that `context` of [`crate::Options`] may ask for.
    pub longest: u32,
    /// Positions that a query sees; `None`: all.
    pub window: Option<u32>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Of all files with weights.
    pub file_bytes: u64,
    pub tensors: Vec<TensorType>,
}

/// How much of a model is stored in one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    pub kind: &'static str,
    pub tensors: u64,
    pub elements: u64,
    pub bytes: u64,
}

impl Description {
    /// Refuses every model that [`crate::CpuModel::load`] refuses. The matrices are mapped, not read.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let opened = Opened::open(path)?;
        let (name, file_bytes, tensors) = (opened.name.clone(), opened.file_bytes, opened.weights.types());
        let (architecture, p, _) = opened.decoder()?;
        // All of them are at most 2^24 (checked).
        Ok(Self {
            name,
            architecture: architecture.name,
            layers: p.layers as u32,
            hidden: p.hidden as u32,
            feed_forward: p.feed_forward as u32,
            heads: p.heads as u32,
            kv_heads: p.kv_heads as u32,
            vocab: p.vocab as u32,
            context: p.context,
            longest: p.longest,
            window: match p.class() {
                HeadClass::Full => None,
                HeadClass::Window { recent, .. } => Some(recent),
            },
            parameters: tensors.iter().fold(0, |n, t| n.saturating_add(t.elements)),
            file_bytes,
            tensors,
        })
    }
}
