//! What a GGUF file's metadata says that it is.

use gguf::{Header, Metadata};

use super::{Architecture, Parameters, Rope, Scaling, Yarn, size};
use crate::LoadError;

impl Architecture {
    /// What a file's header says that it is; tensors are looked at when they are taken.
    pub(crate) fn of_header(header: &Header) -> Result<(&'static Self, Parameters), LoadError> {
        refuse_split(&header.metadata)?;
        let architecture = Self::named(header.metadata.str("general.architecture")?, true)?;
        let vocab = header.tensor("token_embd.weight").and_then(|t| t.dims.get(1)).copied();
        let vocab = vocab.ok_or_else(|| LoadError::MissingTensor {
            name: "token_embd.weight".to_owned(),
            architecture: architecture.name,
        })?;
        let read = Reader { metadata: &header.metadata, architecture };
        let parameters = read.parameters(vocab)?;
        parameters.check(|name| match name {
            "kv_heads" => read.key("attention.head_count_kv"),
            _ => read.key("rope.dimension_count"),
        })?;
        Ok((architecture, parameters))
    }
}

/// Refuses one file of several. Its header alone is not a model's: call this before asking it for more.
pub fn refuse_split(metadata: &Metadata) -> Result<(), LoadError> {
    match metadata.optional("split.count", Metadata::u64)? {
        Some(files) if files > 1 => Err(LoadError::Split { files }),
        _ => Ok(()),
    }
}

struct Reader<'a> {
    metadata: &'a Metadata,
    architecture: &'static Architecture,
}

impl Reader<'_> {
    /// Reads the parameters; `vocab` is the number of rows of the embedding table.
    fn parameters(&self, vocab: u64) -> Result<Parameters, LoadError> {
        self.refuse_unbuilt()?;
        let hidden = self.size("embedding_length", None)?;
        let heads = self.size("attention.head_count", None)?;
        let kv_heads = self.size("attention.head_count_kv", Some(heads))?;
        let head_dim = self.size("attention.key_length", Some((hidden / heads).max(1)))?;
        let value_dim = self.size("attention.value_length", Some(head_dim))?;
        self.check("attention.value_length", value_dim, value_dim == head_dim, || {
            format!("keys and values of different sizes are not built; keys have {head_dim}")
        })?;
        let epsilon = self.number("attention.layer_norm_rms_epsilon", None)?;
        self.check("attention.layer_norm_rms_epsilon", epsilon, epsilon >= 0.0, || {
            "must not be negative".to_owned()
        })?;
        let context = self.size("context_length", None)? as u32;
        let rope = self.rope(head_dim, context)?;
        Ok(Parameters {
            layers: self.size("block_count", None)?,
            hidden,
            feed_forward: self.size("feed_forward_length", None)?,
            heads,
            kv_heads,
            head_dim,
            vocab: size(|| "token_embd.weight".to_owned(), vocab)?,
            context,
            longest: rope.reach(context),
            epsilon,
            rope,
            window: self.window()?,
            tied: None,
        })
    }

    fn rope(&self, head_dim: usize, context: u32) -> Result<Rope, LoadError> {
        let dims = self.size("rope.dimension_count", Some(head_dim))?;
        let base = self.positive("rope.freq_base", Some(10_000.0))?;
        let kind = self.metadata.optional(&self.key("rope.scaling.type"), Metadata::str)?;
        let original = || self.size("rope.scaling.original_context_length", Some(context as usize));
        let scaling = match kind {
            // What older converters wrote for linear scaling.
            None if self.has("rope.scale_linear") => {
                Scaling::Linear(self.positive("rope.scale_linear", None)?)
            }
            None | Some("none") => Scaling::None,
            Some("linear") => Scaling::Linear(self.positive("rope.scaling.factor", None)?),
            Some("yarn") => {
                let factor = self.positive("rope.scaling.factor", None)?;
                Scaling::Yarn(Yarn {
                    factor,
                    original: original()? as u32,
                    beta_fast: self.positive("rope.scaling.yarn_beta_fast", Some(32.0))?,
                    beta_slow: self.positive("rope.scaling.yarn_beta_slow", Some(1.0))?,
                    truncate: true,
                    attention: Yarn::temperature(f64::from(factor), 1.0),
                })
            }
            Some(other) => {
                return Err(LoadError::NotBuilt {
                    key: self.key("rope.scaling.type"),
                    found: format!("{other:?}"),
                    what: "this RoPE scaling",
                });
            }
        };
        Ok(Rope { style: self.architecture.rope, dims, base, scaling })
    }

    fn window(&self) -> Result<Option<u32>, LoadError> {
        let key = self.key("attention.sliding_window");
        match self.metadata.optional(&key, Metadata::u64)? {
            None | Some(0) => Ok(None),
            Some(found) if self.architecture.name == "llama" => Ok(Some(size(|| key, found)? as u32)),
            // Qwen's files would not say which of the layers have it.
            Some(found) => Err(LoadError::NotBuilt {
                key,
                found: found.to_string(),
                what: "window attention in some layers of a model",
            }),
        }
    }

    /// Keys that change the arithmetic in ways no kernel here has.
    fn refuse_unbuilt(&self) -> Result<(), LoadError> {
        let refuse = |name: &str, found: f64, what| {
            Err(LoadError::NotBuilt { key: self.key(name), found: found.to_string(), what })
        };
        for (name, what) in [
            ("expert_count", "a mixture of experts"),
            ("attention.sliding_window_pattern", "window attention in some layers of a model"),
        ] {
            if let Some(found) = self.metadata.optional(&self.key(name), Metadata::u64)?
                && found != 0
            {
                return refuse(name, found as f64, what);
            }
        }
        for (name, neutral) in [
            ("rope.scaling.attn_factor", 1.0),
            ("rope.scaling.yarn_attn_factor", 1.0),
            ("rope.scaling.yarn_ext_factor", 1.0),
            ("rope.scaling.yarn_log_multiplier", 0.0),
        ] {
            if let Some(found) = self.metadata.optional(&self.key(name), Metadata::f32)?
                && found != neutral
            {
                return refuse(name, f64::from(found), "this variant of YaRN");
            }
        }
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    fn has(&self, name: &str) -> bool {
        self.metadata.get(&self.key(name)).is_some()
    }

    /// A size; `default` when the key may be absent.
    fn size(&self, name: &str, default: Option<usize>) -> Result<usize, LoadError> {
        let key = self.key(name);
        match (self.metadata.optional(&key, Metadata::u64)?, default) {
            (Some(value), _) => size(|| key, value),
            (None, Some(default)) => Ok(default),
            (None, None) => size(|| key.clone(), self.metadata.u64(&key)?),
        }
    }

    fn number(&self, name: &str, default: Option<f32>) -> Result<f32, LoadError> {
        let key = self.key(name);
        let value = match (self.metadata.optional(&key, Metadata::f32)?, default) {
            (Some(value), _) => value,
            (None, Some(default)) => return Ok(default),
            (None, None) => self.metadata.f32(&key)?,
        };
        self.check(name, value, value.is_finite(), || "must be a finite number".to_owned())?;
        Ok(value)
    }

    fn positive(&self, name: &str, default: Option<f32>) -> Result<f32, LoadError> {
        let value = self.number(name, default)?;
        self.check(name, value, value > 0.0, || "must be above 0".to_owned())?;
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
        Err(LoadError::BadParameter { key: self.key(name), found: found.to_string(), why: why() })
    }
}
