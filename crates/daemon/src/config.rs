//! Where a process's settings come from: defaults < TOML file < environment < flags.
//!
//! The only place that reads a configuration file; the environment and the flags come in as values
//! from `main`. A key that nobody knows is an error that names it and the layer it stands in.

use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use bytesize::ByteSize;
/// For `#[serde(with = "daemon::config::duration")]` on `Duration` and `Option<Duration>`: "500ms".
pub use humantime_serde as duration;

/// For `#[arg(value_parser = daemon::config::parse_duration)]`: "500ms", "2s", "1m 30s".
pub use humantime::parse_duration;

/// Environment variables start with this; `__` separates levels: `PACELINE_GRPC__MAX_STREAMS`.
pub const ENV_PREFIX: &str = "PACELINE_";

/// Variables with that prefix which are no settings of a process: the file's own place, the model
/// store, the test switch.
pub const ENV_RESERVED: &[&str] = &[
    "PACELINE_CONFIG",
    "PACELINE_COORDINATOR",
    "PACELINE_LOG",
    "PACELINE_MODELS",
    "PACELINE_REQUIRE",
    "PACELINE_URL",
];

/// Longest file that is read; a configuration is a page or two.
const MAX_FILE: u64 = 1 << 20;

/// What values of a configuration may be, beyond their types.
pub trait Check {
    /// Names the first wrong key, dotted: `grpc.stream_window`.
    fn check(&self) -> Result<(), Wrong>;
}

/// The section of a process's configuration that `telemetry` reads.
impl Check for telemetry::Config {
    fn check(&self) -> Result<(), Wrong> {
        Self::check(self).map_err(|telemetry::Invalid { key, why }| Wrong { key, why })
    }
}

/// A key whose value cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct Wrong {
    pub key: String,
    pub why: String,
}

impl Wrong {
    pub fn new(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self { key: key.into(), why: why.into() }
    }

    /// The same, seen from the section that holds it: `check().map_err(|w| w.within("grpc"))`.
    pub fn within(self, section: &str) -> Self {
        Self { key: format!("{section}.{}", self.key), why: self.why }
    }
}

/// A configuration that passed its own [`Check`]; there is no other way to make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Valid<C>(C);

impl<C: Check> Valid<C> {
    pub fn new(config: C) -> Result<Self, Wrong> {
        config.check()?;
        Ok(Self(config))
    }

    pub fn into_inner(self) -> C {
        self.0
    }
}

impl<C> std::ops::Deref for Valid<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration file {}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("unknown setting `{key}` in {from}; {}", known(.expected))]
    Unknown { key: String, from: String, expected: Vec<String> },
    #[error("setting `{key}` is missing: put it in the configuration file, set {variable}, or pass the flag")]
    Missing { key: String, variable: String },
    #[error("setting `{key}` in {from}: {why}")]
    Wrong { key: String, from: String, why: String },
}

/// Reads the layers, lowest first. `environment` is `std::env::vars()` of `main`; `flags` is any
/// struct whose unset flags serialise as `None`. Defaults are serde's (`#[serde(default)]`).
pub fn load<C>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &impl Serialize,
) -> Result<Valid<C>, ConfigError>
where
    C: DeserializeOwned + Check,
{
    let mut figment = Figment::new();
    if let Some(path) = file {
        figment = figment.merge(Layer::file(path)?);
    }
    for layer in Layer::environment(environment) {
        figment = figment.merge(layer);
    }
    let figment = figment.merge(Layer::flags(flags)?);
    let config: C = figment.extract().map_err(|error| explain(&figment, error))?;
    Valid::new(config).map_err(|Wrong { key, why }| ConfigError::Wrong {
        from: source(&figment, &key).unwrap_or_else(|| "the defaults".into()),
        key,
        why,
    })
}

/// One source of settings, already read.
struct Layer {
    name: String,
    dict: Dict,
}

impl Layer {
    fn file(path: &Path) -> Result<Self, ConfigError> {
        let failed = |why: String| ConfigError::File { path: path.into(), why };
        let length = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
        if length > MAX_FILE {
            return Err(failed(format!("has {length} bytes; at most {MAX_FILE} are read")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let dict = toml::from_str(&text).map_err(|e| failed(e.to_string()))?;
        Ok(Self { name: path.display().to_string(), dict })
    }

    /// A layer a variable, so that an error names the variable.
    fn environment(variables: impl IntoIterator<Item = (String, String)>) -> Vec<Self> {
        let ours = |(name, _): &(String, String)| {
            name.starts_with(ENV_PREFIX) && !ENV_RESERVED.contains(&name.as_str())
        };
        variables
            .into_iter()
            .filter(ours)
            .filter_map(|(name, text)| {
                let key = name.strip_prefix(ENV_PREFIX)?.to_ascii_lowercase().replace("__", ".");
                let dict = figment::util::nest(&key, value_of(&text)).into_dict()?;
                Some(Self { name: format!("environment variable {name}"), dict })
            })
            .collect()
    }

    fn flags(flags: &impl Serialize) -> Result<Self, ConfigError> {
        let failed = |why| ConfigError::Wrong { key: "flags".into(), from: "the command line".into(), why };
        let value = Value::serialize(flags).map_err(|e| failed(e.to_string()))?;
        // A process without flags of its own passes `&()`.
        let dict = value.into_dict().unwrap_or_default();
        Ok(Self { name: "the command line".into(), dict: set_ones(dict) })
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// Numbers, booleans, [lists] and {tables} are read as such, all else as text.
///
/// Figment's reader takes the place of an escape for a byte while it counts characters (0.10.19):
/// after a non-ASCII one it cuts the text short or panics. Such values are left to TOML's reader.
fn value_of(text: &str) -> Value {
    let misread = !text.is_ascii() && text.contains('\\');
    let value = match text.trim().parse::<toml::Value>() {
        Ok(value) if misread => Value::serialize(value).ok(),
        _ if misread => None,
        _ => text.parse().ok(),
    };
    value.unwrap_or_else(|| Value::from(text))
}

/// Drops flags that were not given, so that they hide nothing of the layers below.
fn set_ones(dict: Dict) -> Dict {
    dict.into_iter()
        .filter_map(|(key, value)| match value {
            Value::Empty(..) => None,
            Value::Dict(tag, inner) => {
                let inner = set_ones(inner);
                (!inner.is_empty()).then_some((key, Value::Dict(tag, inner)))
            }
            value => Some((key, value)),
        })
        .collect()
}

fn explain(figment: &Figment, error: figment::Error) -> ConfigError {
    let key =
        |last: Option<&str>| error.path.iter().map(String::as_str).chain(last).collect::<Vec<_>>().join(".");
    let from = |key: &str| {
        let named = error.metadata.as_ref().map(|m| m.name.to_string());
        source(figment, key).or(named).unwrap_or_else(|| "the configuration".into())
    };
    match &error.kind {
        Kind::UnknownField(name, expected) => {
            // The path may end in the unknown key itself.
            let key = if error.path.last() == Some(name) { key(None) } else { key(Some(name)) };
            let expected = expected.iter().map(|e| e.to_string()).collect();
            ConfigError::Unknown { from: from(&key), key, expected }
        }
        Kind::MissingField(name) => {
            let key = key(Some(name));
            let variable = format!("{ENV_PREFIX}{}", key.replace('.', "__").to_ascii_uppercase());
            ConfigError::Missing { key, variable }
        }
        kind => {
            let key = key(None);
            ConfigError::Wrong { from: from(&key), why: kind.to_string(), key }
        }
    }
}

fn source(figment: &Figment, key: &str) -> Option<String> {
    figment.find_metadata(key).map(|m| m.name.to_string())
}

fn known(expected: &[String]) -> String {
    if expected.is_empty() {
        return "no setting is known there".into();
    }
    format!("known there: {}", expected.join(", "))
}

#[cfg(test)]
mod tests;
