//! What a Hugging Face folder's `config.json` says that it is.

use serde_json::{Map, Value};

use super::{Architecture, Bias, Llama3, Parameters, Rope, Scaling, Yarn, size};
use crate::LoadError;

/// A `config.json`.
///
/// Keys are read, known to change nothing, or refused: a key that this version does not know and whose
/// name speaks of arithmetic ([`SUSPECT`]) is refused unless its value says "off".
#[derive(Debug)]
pub(crate) struct Config(Map<String, Value>);

/// Read below.
const READ: &[&str] = &[
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
];

/// Without effect on what a trained model computes, although the name may sound so.
const IDLE: &[&str] = &[
    "attention_dropout",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "output_attentions",
    "is_llama_config",
];

/// Words of arithmetic in the names of keys.
const SUSPECT: &[&str] = &[
    "act",
    "alibi",
    "attention",
    "attn",
    "auto_map",
    "bias",
    "chunk",
    "cross",
    "decoder",
    "expert",
    "head",
    "lora",
    "mamba",
    "moe",
    "multiplier",
    "norm",
    "quant",
    "residual",
    "rope",
    "rotary",
    "scal",
    "softcap",
    "ssm",
    "window",
];

impl Config {
    /// `text` is outside data.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, LoadError> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(keys)) => Ok(Self(keys)),
            Ok(_) => Err(LoadError::Json { file: FILE, why: "is not an object".to_owned() }),
            Err(error) => Err(LoadError::Json { file: FILE, why: error.to_string() }),
        }
    }

    /// What the folder says that it is.
    pub(crate) fn read(&self) -> Result<(&'static Architecture, Parameters), LoadError> {
        let top = Reader { keys: &self.0, path: String::new() };
        let architecture = Architecture::named(top.string("model_type")?, false)?;
        self.refuse_unbuilt(&top, architecture)?;
        let hidden = top.size("hidden_size", None)?;
        let heads = top.size("num_attention_heads", None)?;
        // The class's own defaults where they are one value for all models of the kind.
        let kv_heads = top.size("num_key_value_heads", (architecture.name == "llama").then_some(heads))?;
        let head_dim = if architecture.qk_norm { 128 } else { (hidden / heads).max(1) };
        let head_dim = top.size("head_dim", Some(head_dim))?;
        let layers = top.size("num_hidden_layers", None)?;
        let context = top.size("max_position_embeddings", None)? as u32;
        let epsilon = top.number("rms_norm_eps", None)?;
        if epsilon < 0.0 {
            return Err(top.bad("rms_norm_eps", "must not be negative"));
        }
        let rope = rope(&top, architecture, head_dim, context)?;
        let parameters = Parameters {
            layers,
            hidden,
            feed_forward: top.size("intermediate_size", None)?,
            heads,
            kv_heads,
            head_dim,
            vocab: top.size("vocab_size", None)?,
            context,
            longest: rope.reach(context),
            epsilon,
            rope,
            window: window(&top, architecture, layers)?,
            tied: top.boolean("tie_word_embeddings")?,
        };
        parameters.check(|name| match name {
            "kv_heads" => top.key("num_key_value_heads"),
            _ => top.key("head_dim"),
        })?;
        Ok((architecture, parameters))
    }

    fn refuse_unbuilt(&self, top: &Reader<'_>, architecture: &Architecture) -> Result<(), LoadError> {
        if let Some(Value::Array(classes)) = self.0.get("architectures")
            && !classes.iter().any(|class| class.as_str() == Some(architecture.class))
        {
            return Err(top.not_built("architectures", "a class without a language-modelling head"));
        }
        if top.optional_string("hidden_act")?.is_some_and(|act| act != "silu") {
            return Err(top.not_built("hidden_act", "an activation other than silu"));
        }
        // Qwen2's classes have the biases of q, k and v whatever the key says.
        if architecture.qkv_bias != Bias::Required && top.boolean("attention_bias")? == Some(true) {
            return Err(top.not_built("attention_bias", "a bias in the attention of this architecture"));
        }
        if top.boolean("mlp_bias")? == Some(true) {
            return Err(top.not_built("mlp_bias", "a bias in the feed-forward"));
        }
        if top.number("partial_rotary_factor", Some(1.0))? != 1.0 {
            return Err(top.not_built("partial_rotary_factor", "RoPE over a part of a head"));
        }
        for (key, value) in &self.0 {
            let known = READ.contains(&key.as_str()) || IDLE.contains(&key.as_str());
            if !known && SUSPECT.iter().any(|word| key.contains(word)) && !is_off(value) {
                return Err(top.not_built(key, "a key that this version does not know"));
            }
        }
        Ok(())
    }
}

/// Which positions a query sees.
fn window(top: &Reader<'_>, architecture: &Architecture, layers: usize) -> Result<Option<u32>, LoadError> {
    let some = || top.not_built("layer_types", "window attention in some layers of a model");
    let size = |default| top.size("sliding_window", default).map(|size| size as u32);
    if architecture.name == "mistral" {
        if top.keys.get("layer_types").is_some_and(|v| !v.is_null()) {
            return Err(some());
        }
        return match top.keys.get("sliding_window") {
            Some(Value::Null) => Ok(None),
            _ => Ok(Some(size(Some(4096))?)),
        };
    }
    if architecture.name == "llama" {
        return match top.keys.get("sliding_window").is_some_and(|v| !is_off(v)) {
            true => Err(top.not_built("sliding_window", "window attention in this architecture")),
            false => Ok(None),
        };
    }
    if top.boolean("use_sliding_window")? != Some(true) {
        return Ok(None);
    }
    // Qwen's classes: the layers from `max_window_layers` on have the window, unless each is named.
    let windowed: Vec<bool> = match top.keys.get("layer_types") {
        Some(Value::Array(types)) => {
            types.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect()
        }
        None | Some(Value::Null) => {
            // Not a `size`: 0 is a value here.
            let first = top.keys.get("max_window_layers").map_or(Some(28), Value::as_u64);
            let first = first.ok_or_else(|| top.bad("max_window_layers", "must be a number"))?;
            (0..layers as u64).map(|i| i >= first).collect()
        }
        Some(_) => return Err(top.bad("layer_types", "must be a list of names")),
    };
    match (windowed.contains(&true), windowed.contains(&false)) {
        (false, _) => Ok(None),
        (true, false) => Ok(Some(size(None)?)),
        (true, true) => Err(some()),
    }
}

/// `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
fn rope(
    top: &Reader<'_>,
    architecture: &Architecture,
    head_dim: usize,
    context: u32,
) -> Result<Rope, LoadError> {
    let empty = Map::new();
    let of = |name: &str| match top.keys.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(keys)) => Ok(Some(Reader { keys, path: format!("{name}.") })),
        Some(_) => Err(top.bad(name, "must be an object")),
    };
    let scaling = match (of("rope_parameters")?, of("rope_scaling")?) {
        (Some(new), _) => new,
        (None, Some(old)) => old,
        (None, None) => Reader { keys: &empty, path: "rope_parameters.".to_owned() },
    };
    let theta = match scaling.keys.contains_key("rope_theta") {
        true => scaling.positive("rope_theta", None)?,
        false => top.positive("rope_theta", Some(10_000.0))?,
    };
    if scaling.number("partial_rotary_factor", Some(1.0))? != 1.0 {
        return Err(scaling.not_built("partial_rotary_factor", "RoPE over a part of a head"));
    }
    let kind = match scaling.optional_string("rope_type")? {
        Some(kind) => kind,
        None => scaling.optional_string("type")?.unwrap_or("default"),
    };
    let original = || {
        let size = scaling.size("original_max_position_embeddings", Some(context as usize));
        size.map(|size| size as u32)
    };
    let mut read = vec!["rope_theta", "partial_rotary_factor", "rope_type", "type"];
    let built = match kind {
        "default" => Scaling::None,
        "linear" => {
            read.push("factor");
            Scaling::Linear(scaling.positive("factor", None)?)
        }
        "llama3" => {
            read.extend([
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ]);
            let llama3 = Llama3 {
                factor: scaling.positive("factor", None)?,
                low_freq_factor: scaling.positive("low_freq_factor", None)?,
                high_freq_factor: scaling.positive("high_freq_factor", None)?,
                original: original()?,
            };
            if llama3.high_freq_factor <= llama3.low_freq_factor {
                return Err(scaling.bad("high_freq_factor", "must be above low_freq_factor"));
            }
            Scaling::Llama3(llama3)
        }
        "yarn" => {
            read.extend(["factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"]);
            read.extend(["attention_factor", "mscale", "mscale_all_dim"]);
            Scaling::Yarn(yarn(&scaling, original()?)?)
        }
        _ => {
            let key = if scaling.keys.contains_key("rope_type") { "rope_type" } else { "type" };
            return Err(scaling.not_built(key, "this RoPE scaling (built: linear, llama3, yarn)"));
        }
    };
    for (key, value) in scaling.keys {
        if !read.contains(&key.as_str()) && !is_off(value) {
            return Err(scaling.not_built(key, "a key that this version does not know"));
        }
    }
    Ok(Rope { style: architecture.folder_rope, dims: head_dim, base: theta, scaling: built })
}

fn yarn(scaling: &Reader<'_>, original: u32) -> Result<Yarn, LoadError> {
    let factor = scaling.positive("factor", None)?;
    let weight = |name| match scaling.keys.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => scaling.number(name, None).map(|m| Some(f64::from(m)).filter(|m| *m != 0.0)),
    };
    let of = |m| Yarn::temperature(f64::from(factor), m);
    let attention = match (weight("attention_factor")?, weight("mscale")?, weight("mscale_all_dim")?) {
        (Some(given), ..) => given,
        (None, Some(m), Some(all)) => of(m) / of(all),
        _ => of(1.0),
    };
    Ok(Yarn {
        factor,
        original,
        beta_fast: scaling.positive("beta_fast", Some(32.0))?,
        beta_slow: scaling.positive("beta_slow", Some(1.0))?,
        truncate: scaling.boolean("truncate")?.unwrap_or(true),
        attention,
    })
}

const FILE: &str = "config.json";

/// Whether a value says that what its key names is not there.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
    }
}

/// An object of `config.json`; a `null` is an absent key.
struct Reader<'a> {
    keys: &'a Map<String, Value>,
    /// Of the object, for messages; empty for the whole.
    path: String,
}

impl<'a> Reader<'a> {
    /// A size; `default` when the key may be absent.
    fn size(&self, name: &str, default: Option<usize>) -> Result<usize, LoadError> {
        match self.get(name) {
            None => default.ok_or_else(|| self.missing(name)),
            Some(value) => {
                let value = value.as_u64().ok_or_else(|| self.bad(name, "must be a whole number"))?;
                size(|| self.key(name), value)
            }
        }
    }

    fn number(&self, name: &str, default: Option<f32>) -> Result<f32, LoadError> {
        let Some(value) = self.get(name) else { return default.ok_or_else(|| self.missing(name)) };
        let number = value.as_f64().map(|n| n as f32).filter(|n| n.is_finite());
        number.ok_or_else(|| self.bad(name, "must be a finite number"))
    }

    fn positive(&self, name: &str, default: Option<f32>) -> Result<f32, LoadError> {
        let number = self.number(name, default)?;
        if number > 0.0 { Ok(number) } else { Err(self.bad(name, "must be above 0")) }
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, LoadError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.bad(name, "must be true or false"))
    }

    fn optional_string(&self, name: &str) -> Result<Option<&'a str>, LoadError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.bad(name, "must be a string"))
    }

    fn string(&self, name: &str) -> Result<&'a str, LoadError> {
        self.optional_string(name)?.ok_or_else(|| self.missing(name))
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.keys.get(name).filter(|value| !value.is_null())
    }

    fn key(&self, name: &str) -> String {
        format!("{FILE} {}{name}", self.path)
    }

    fn missing(&self, name: &str) -> LoadError {
        LoadError::MissingKey { key: self.key(name) }
    }

    fn bad(&self, name: &str, why: &str) -> LoadError {
        LoadError::BadParameter { key: self.key(name), found: self.shown(name), why: why.to_owned() }
    }

    fn not_built(&self, name: &str, what: &'static str) -> LoadError {
        LoadError::NotBuilt { key: self.key(name), found: self.shown(name), what }
    }

    /// The value, short.
    fn shown(&self, name: &str) -> String {
        let text = self.keys.get(name).map_or_else(|| "absent".to_owned(), Value::to_string);
        match text.char_indices().nth(60) {
            Some((cut, _)) => format!("{}...", &text[..cut]),
            None => text,
        }
    }
}
