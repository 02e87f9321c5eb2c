//! Architectures: what a model's metadata and tensor names mean.
//!
//! The models built so far are one decoder (RMS norm, grouped-query attention with RoPE, gated
//! feed-forward) that differs in the few things [`Architecture`] lists. A GGUF file says what it is in
//! its metadata (`metadata`), a Hugging Face folder in `config.json` (`config`); both become
//! [`Parameters`]. Everything they ask for beyond that is refused by name.

mod config;
mod decoder;
mod metadata;
mod names;
mod rope;

pub(crate) use config::Config;
pub(crate) use decoder::{Decoder, Layer, Linear};
pub use metadata::refuse_split;
pub(crate) use names::{Names, Part};
pub(crate) use rope::{Llama3, Rope, RopeStyle, Scaling, Yarn};

use kvcache::HeadClass;

use crate::LoadError;

/// What tells one architecture from another.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// As in `general.architecture` (also the prefix of its keys) and as `model_type` in `config.json`.
    pub(crate) name: &'static str,
    /// The class of it in `config.json` that has a language-modelling head.
    class: &'static str,
    /// Whether GGUF files of that name exist. Mistral's call themselves `llama`.
    gguf: bool,
    /// Of GGUF files.
    rope: RopeStyle,
    /// Of folders.
    folder_rope: RopeStyle,
    pub(crate) qkv_bias: Bias,
    /// RMS norm over each head of q and k, before RoPE.
    pub(crate) qk_norm: bool,
}

/// Whether the q, k and v projections add a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    Required,
    /// Added when the file has it.
    IfPresent,
    Never,
}

/// Llama 1 to 3, SmolLM2; GGUF files of Mistral.
static LLAMA: Architecture = Architecture {
    name: "llama",
    class: "LlamaForCausalLM",
    gguf: true,
    rope: RopeStyle::Adjacent,
    folder_rope: RopeStyle::HalvesToAdjacent,
    qkv_bias: Bias::IfPresent,
    qk_norm: false,
};

/// Mistral 7B and its kin: llama with a window.
static MISTRAL: Architecture = Architecture {
    name: "mistral",
    class: "MistralForCausalLM",
    gguf: false,
    qkv_bias: Bias::Never,
    ..LLAMA
};

/// Qwen 2 and 2.5, Coder included (dense).
static QWEN2: Architecture = Architecture {
    name: "qwen2",
    class: "Qwen2ForCausalLM",
    gguf: true,
    rope: RopeStyle::Halves,
    folder_rope: RopeStyle::Halves,
    qkv_bias: Bias::Required,
    qk_norm: false,
};

/// Qwen 3 (dense).
static QWEN3: Architecture =
    Architecture { name: "qwen3", class: "Qwen3ForCausalLM", qkv_bias: Bias::Never, qk_norm: true, ..QWEN2 };

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
    /// Positions that the model is said to be for.
    pub(crate) context: u32,
    /// Positions that may be asked for: more than `context` where the RoPE scaling reaches further.
    pub(crate) longest: u32,
    /// Added to the mean square in RMS norms.
    pub(crate) epsilon: f32,
    pub(crate) rope: Rope,
    /// How many positions a query sees, its own included; `None`: all.
    pub(crate) window: Option<u32>,
    /// Whether the head is the embedding again; `None`: when there is no head of its own.
    pub(crate) tied: Option<bool>,
}

impl Architecture {
    const ALL: [&'static Self; 4] = [&LLAMA, &MISTRAL, &QWEN2, &QWEN3];

    fn named(name: &str, gguf: bool) -> Result<&'static Self, LoadError> {
        let known = || Self::ALL.into_iter().filter(move |a| a.gguf || !gguf);
        known().find(|a| a.name == name).ok_or_else(|| LoadError::UnknownArchitecture {
            found: name.to_owned(),
            supported: known().map(|a| a.name).collect::<Vec<_>>().join(", "),
        })
    }
}

impl Parameters {
    /// The one head class of the models built so far.
    pub(crate) fn class(&self) -> HeadClass {
        match self.window {
            // A window that no sequence outgrows hides nothing.
            Some(recent) if recent < self.longest => HeadClass::Window { sink: 0, recent },
            _ => HeadClass::Full,
        }
    }

    /// What must hold between them, wherever they were read; errors name `key` of the parameter.
    fn check(&self, key: impl Fn(&'static str) -> String) -> Result<(), LoadError> {
        let bad = |name, found: usize, why: String| {
            Err(LoadError::BadParameter { key: key(name), found: found.to_string(), why })
        };
        if !self.heads.is_multiple_of(self.kv_heads) {
            return bad("kv_heads", self.kv_heads, format!("does not divide the {} query heads", self.heads));
        }
        if self.rope.dims > self.head_dim || !self.rope.dims.is_multiple_of(2) {
            let why = format!("must be even and at most the head size {}", self.head_dim);
            return bad("rope_dims", self.rope.dims, why);
        }
        Ok(())
    }
}

/// No single size is above this, so that a product of two fits usize and positions fit u32.
const MOST: usize = 1 << 24;

/// A size from 1 to [`MOST`].
fn size(key: impl FnOnce() -> String, value: u64) -> Result<usize, LoadError> {
    match usize::try_from(value) {
        Ok(size @ 1..=MOST) => Ok(size),
        _ => Err(LoadError::BadParameter {
            key: key(),
            found: value.to_string(),
            why: format!("must be between 1 and {MOST}"),
        }),
    }
}
