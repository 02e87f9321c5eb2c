//! What a file says of weights that were trained for early exit (`tools/layerskip/merge.py` writes it).

use gguf::Metadata;

use crate::LoadError;

/// After which layers the model can draft, and with which tokens; both empty where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Early {
    /// Layers passed, in rising order, each fewer than all.
    pub(crate) layers: Vec<usize>,
    /// The tokens that are drafted alone, in rising order (FR-Spec, arXiv 2502.14856).
    pub(crate) tokens: Vec<u32>,
}

impl Early {
    const LAYERS: &str = "paceline.early.layers";
    const TOKENS: &str = "paceline.early.tokens";

    /// For a model of so many layers, whose output layer knows so many tokens.
    pub(crate) fn read(metadata: &Metadata, layers: usize, vocab: usize) -> Result<Self, LoadError> {
        let numbers = |key: &str, first: usize, end: usize| {
            let listed = metadata.optional(key, Metadata::i32s)?.unwrap_or_default();
            let bad = |found: String| {
                let why = format!("must be numbers from {first} to below {end} in rising order");
                LoadError::BadParameter { key: key.to_owned(), found, why }
            };
            let mut numbers: Vec<u32> = Vec::with_capacity(listed.len());
            for found in listed {
                let number = u32::try_from(*found).ok().filter(|n| (first..end).contains(&(*n as usize)));
                let number = number.filter(|n| numbers.last().is_none_or(|last| last < n));
                numbers.push(number.ok_or_else(|| bad(found.to_string()))?);
            }
            Ok::<_, LoadError>(numbers)
        };
        Ok(Self {
            layers: numbers(Self::LAYERS, 1, layers)?.into_iter().map(|layer| layer as usize).collect(),
            tokens: numbers(Self::TOKENS, 0, vocab)?,
        })
    }
}
