//! Architectures: what a file's metadata and tensor names mean.
//!
//! The models built so far are one decoder (RMS norm, grouped-query attention with RoPE, gated
//! feed-forward) that differs in the few things [`Architecture`] lists. Everything a file asks for
//! beyond that is refused by name.

mod decoder;
mod llama;
mod qwen2;

pub(crate) use decoder::{Decoder, Layer, Linear};

use gguf::{Header, Metadata};

use crate::LoadError;

/// What tells one architecture from another.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// As in `general.architecture`; also the prefix of its keys.
    pub(crate) name: &'static str,
    pub(crate) rope: RopeStyle,
    pub(crate) qkv_bias: Bias,
}

/// Which elements of a head RoPE turns together (arXiv 2104.09864).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopeStyle {
    /// Elements 2i and 2i + 1: llama files, whose converter reorders Q and K for it.
    Adjacent,
    /// Elements i and i + dims / 2 (GPT-NeoX).
    Halves,
}

/// Whether the q, k and v projections add a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    Required,
    /// Added when the file has it.
    IfPresent,
}

/// Hyper-parameters, checked: every product of two of them fits usize.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Rows of the embedding table; token ids are below it.
    pub(crate) vocab: usize,
    pub(crate) context: u32,
    /// Added to the mean square in RMS norms.
    pub(crate) epsilon: f32,
    /// Leading elements of a head that RoPE turns; even.
    pub(crate) rope_dims: usize,
    pub(crate) rope_base: f32,
}

impl Architecture {
    const ALL: [&'static Self; 2] = [&llama::ARCHITECTURE, &qwen2::ARCHITECTURE];

    /// What a file's header says that it is; tensors are looked at when they are taken.
    pub(crate) fn read(header: &Header) -> Result<(&'static Self, Parameters), LoadError> {
        refuse_split(&header.metadata)?;
        let architecture = Self::of(&header.metadata)?;
        let vocab = header.tensor("token_embd.weight").and_then(|t| t.dims.get(1)).copied();
        let vocab = vocab.ok_or_else(|| LoadError::MissingTensor {
            name: "token_embd.weight".to_owned(),
            architecture: architecture.name,
        })?;
        Ok((architecture, architecture.parameters(&header.metadata, vocab)?))
    }

    fn of(metadata: &Metadata) -> Result<&'static Self, LoadError> {
        let found = metadata.str("general.architecture")?;
        Self::ALL.into_iter().find(|a| a.name == found).ok_or_else(|| LoadError::UnknownArchitecture {
            found: found.to_owned(),
            supported: Self::ALL.map(|a| a.name).join(", "),
        })
    }

    /// Reads and checks the parameters; `vocab` is the number of rows of the embedding table.
    fn parameters(&self, metadata: &Metadata, vocab: u64) -> Result<Parameters, LoadError> {
        self.refuse_unbuilt(metadata)?;
        let read = Reader { metadata, prefix: self.name };
        let hidden = read.size("embedding_length", None)?;
        let heads = read.size("attention.head_count", None)?;
        let kv_heads = read.size("attention.head_count_kv", Some(heads))?;
        read.check("attention.head_count_kv", kv_heads, heads % kv_heads == 0, || {
            format!("does not divide the {heads} query heads")
        })?;
        let head_dim = read.size("attention.key_length", Some((hidden / heads).max(1)))?;
        let value_dim = read.size("attention.value_length", Some(head_dim))?;
        read.check("attention.value_length", value_dim, value_dim == head_dim, || {
            format!("keys and values of different sizes are not built; keys have {head_dim}")
        })?;
        let rope_dims = read.size("rope.dimension_count", Some(head_dim))?;
        read.check("rope.dimension_count", rope_dims, rope_dims <= head_dim && rope_dims % 2 == 0, || {
            format!("must be even and at most the head size {head_dim}")
        })?;
        let rope_base = read.number("rope.freq_base", Some(10_000.0))?;
        read.check("rope.freq_base", rope_base, rope_base > 0.0, || "must be above 0".to_owned())?;
        let epsilon = read.number("attention.layer_norm_rms_epsilon", None)?;
        read.check("attention.layer_norm_rms_epsilon", epsilon, epsilon >= 0.0, || {
            "must not be negative".to_owned()
        })?;
        Ok(Parameters {
            layers: read.size("block_count", None)?,
            hidden,
            feed_forward: read.size("feed_forward_length", None)?,
            heads,
            kv_heads,
            head_dim,
            vocab: usize::try_from(vocab).ok().filter(|v| *v <= MOST).ok_or_else(|| {
                LoadError::BadParameter {
                    key: "token_embd.weight".to_owned(),
                    found: vocab.to_string(),
                    why: format!("more than {MOST} tokens"),
                }
            })?,
            context: read.size("context_length", None)? as u32,
            epsilon,
            rope_dims,
            rope_base,
        })
    }

    /// Keys that change the arithmetic in ways no kernel here has.
    fn refuse_unbuilt(&self, metadata: &Metadata) -> Result<(), LoadError> {
        let key = |name: &str| format!("{}.{name}", self.name);
        let scaling = key("rope.scaling.type");
        if let Some(kind) = metadata.optional(&scaling, Metadata::str)?
            && kind != "none"
        {
            return Err(LoadError::NotBuilt {
                key: scaling,
                found: format!("{kind:?}"),
                what: "RoPE scaling",
            });
        }
        // The key that older converters wrote for linear scaling.
        let linear = key("rope.scale_linear");
        if let Some(factor) = metadata.optional(&linear, Metadata::f32)?
            && factor != 1.0
        {
            return Err(LoadError::NotBuilt { key: linear, found: factor.to_string(), what: "RoPE scaling" });
        }
        for (name, what) in
            [("expert_count", "a mixture of experts"), ("attention.sliding_window", "window attention")]
        {
            let key = key(name);
            if let Some(found) = metadata.optional(&key, Metadata::u64)?
                && found != 0
            {
                return Err(LoadError::NotBuilt { key, found: found.to_string(), what });
            }
        }
        Ok(())
    }
}

/// Refuses one file of several. Its header alone is not a model's: call this before asking it for more.
pub fn refuse_split(metadata: &Metadata) -> Result<(), LoadError> {
    match metadata.optional("split.count", Metadata::u64)? {
        Some(files) if files > 1 => Err(LoadError::Split { files }),
        _ => Ok(()),
    }
}

/// No single size is above this, so that a product of two fits usize and positions fit u32.
const MOST: usize = 1 << 24;

struct Reader<'a> {
    metadata: &'a Metadata,
    prefix: &'static str,
}

impl Reader<'_> {
    /// A size from 1 to [`MOST`]; `default` when the key may be absent.
    fn size(&self, name: &str, default: Option<usize>) -> Result<usize, LoadError> {
        let key = format!("{}.{name}", self.prefix);
        let value = match (self.metadata.optional(&key, Metadata::u64)?, default) {
            (Some(value), _) => value,
            (None, Some(default)) => return Ok(default),
            (None, None) => self.metadata.u64(&key)?,
        };
        match usize::try_from(value) {
            Ok(size @ 1..=MOST) => Ok(size),
            _ => Err(LoadError::BadParameter {
                key,
                found: value.to_string(),
                why: format!("must be between 1 and {MOST}"),
            }),
        }
    }

    fn number(&self, name: &str, default: Option<f32>) -> Result<f32, LoadError> {
        let key = format!("{}.{name}", self.prefix);
        let value = match (self.metadata.optional(&key, Metadata::f32)?, default) {
            (Some(value), _) => value,
            (None, Some(default)) => return Ok(default),
            (None, None) => self.metadata.f32(&key)?,
        };
        self.check(name, value, value.is_finite(), || "must be a finite number".to_owned())?;
        Ok(value)
    }

    fn check(
        &self,
        name: &str,
        found: impl std::fmt::Display,
        holds: bool,
        why: impl FnOnce() -> String,
    ) -> Result<(), LoadError> {
        if holds {
            return Ok(());
        }
        Err(LoadError::BadParameter {
            key: format!("{}.{name}", self.prefix),
            found: found.to_string(),
            why: why(),
        })
    }
}
