//! The coordinator's settings. Where they come from is `daemon::config`'s concern.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::config::{ByteSize, Check, Wrong, duration};
use daemon::registry;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// OpenAI API; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `paceline.v1.Inference` and the Join streams of nodes; port 0 takes a free one.
    pub grpc_listen: SocketAddr,
    /// Admin port (`/metrics`, `/health/live`, `/health/ready`); none when it is left out.
    pub admin: Option<SocketAddr>,
    /// Allows addresses other than loopback, in plain text and without authentication.
    pub insecure: bool,
    /// What is served, in the order of `/v1/models`.
    pub models: Vec<ModelConfig>,
    /// Longest body of a request over HTTP.
    pub max_body_bytes: ByteSize,
    /// Requests under way at once, each choice of several counted; more are refused with 429 and a time
    /// to come back. Times `max_body_bytes` (over gRPC: 8 MiB), it bounds the memory that requests can
    /// take.
    pub max_in_flight: u32,
    /// Output bound of requests that name none, where the context leaves that much.
    pub default_max_tokens: u32,
    /// Deadline of a request, from its first byte to its last; a client may ask for less.
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    /// How long a worker may take to admit a request before the next one is asked.
    #[serde(with = "duration")]
    pub accept_timeout: Duration,
    /// How long the rest of a broken answer may look for a worker.
    #[serde(with = "duration")]
    pub replay_timeout: Duration,
    /// Prompts of so many tokens may be computed by a worker for prompts (`pages.duty`), where there is one and it pays.
    pub split_at_tokens: u32,
    /// How long a client may leave its answer unread before it is given up.
    #[serde(with = "duration")]
    pub slow_client_timeout: Duration,
    /// How long requests under way may take to end at shutdown.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    /// How nodes are watched.
    pub registry: registry::Config,
    /// Where spans and metrics go.
    pub telemetry: telemetry::Config,
}

/// A model that is served: its name, and the file that says how its text is tokenized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// As workers report it.
    pub name: String,
    /// GGUF file or Hugging Face folder; only tokenizer and chat template are read.
    pub path: PathBuf,
    /// Further names that requests may use.
    #[serde(default)]
    pub aliases: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            grpc_listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            admin: None,
            insecure: false,
            models: Vec::new(),
            max_body_bytes: ByteSize::mib(4),
            max_in_flight: 256,
            default_max_tokens: 2048,
            request_timeout: Duration::from_secs(600),
            accept_timeout: Duration::from_secs(30),
            replay_timeout: Duration::from_secs(15),
            split_at_tokens: 512,
            slow_client_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            registry: registry::Config::default(),
            telemetry: telemetry::Config::default(),
        }
    }
}

impl Check for Config {
    fn check(&self) -> Result<(), Wrong> {
        if self.models.is_empty() {
            return Err(Wrong::new(
                "models",
                "is empty; name at least one model with its GGUF file or folder",
            ));
        }
        let mut names = HashSet::new();
        for (i, model) in self.models.iter().enumerate() {
            for name in std::iter::once(&model.name).chain(&model.aliases) {
                if name.is_empty() || name.len() > 256 || !name.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(Wrong::new(
                        format!("models.{i}"),
                        format!("{name:?} is not 1 to 256 visible ASCII characters without spaces"),
                    ));
                }
                if !names.insert(name) {
                    return Err(Wrong::new(
                        format!("models.{i}"),
                        format!("the name {name} is taken already"),
                    ));
                }
            }
        }
        within("max_body_bytes", self.max_body_bytes.as_u64(), 1024, 256 << 20)?;
        within("max_in_flight", self.max_in_flight.into(), 1, 1 << 20)?;
        within("split_at_tokens", self.split_at_tokens.into(), 17, 1 << 20)?;
        within("default_max_tokens", self.default_max_tokens.into(), 1, 1 << 20)?;
        for (key, time) in [
            ("request_timeout", self.request_timeout),
            ("accept_timeout", self.accept_timeout),
            ("replay_timeout", self.replay_timeout),
            ("slow_client_timeout", self.slow_client_timeout),
            ("drain_timeout", self.drain_timeout),
        ] {
            if time < Duration::from_millis(10) || time > Duration::from_secs(24 * 3600) {
                return Err(Wrong::new(key, format!("{time:?} is not between 10ms and 24h")));
            }
        }
        Check::check(&self.telemetry).map_err(|w| w.within("telemetry"))?;
        self.registry.check().map_err(|w| w.within("registry"))
    }
}

fn within(key: &str, value: u64, least: u64, most: u64) -> Result<(), Wrong> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Wrong::new(key, format!("{value} is not between {least} and {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_name_their_key() {
        let model = |name: &str, alias: &str| ModelConfig {
            name: name.into(),
            path: "m.gguf".into(),
            aliases: vec![alias.into()],
        };
        let good = Config { models: vec![model("a", "b")], ..Config::default() };
        good.check().unwrap();
        let with = |change: fn(&mut Config)| {
            let mut config = good.clone();
            change(&mut config);
            config.check().unwrap_err().key
        };
        assert_eq!(Config::default().check().unwrap_err().key, "models");
        assert_eq!(with(|c| c.models[0].name = "a b".into()), "models.0");
        assert_eq!(with(|c| c.models[0].aliases[0] = "a".into()), "models.0");
        assert_eq!(with(|c| c.max_body_bytes = ByteSize::b(1)), "max_body_bytes");
        assert_eq!(with(|c| c.max_in_flight = 0), "max_in_flight");
        assert_eq!(with(|c| c.default_max_tokens = 0), "default_max_tokens");
        assert_eq!(with(|c| c.request_timeout = Duration::ZERO), "request_timeout");
        assert_eq!(with(|c| c.registry.heartbeat = Duration::MAX), "registry.heartbeat");
    }
}
