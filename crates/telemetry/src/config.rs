//! What telemetry can be told. Where it comes from is `daemon::config`'s concern.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The `telemetry` section of a process's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// OTLP over gRPC: `http://HOST:4317` or `https://...`. None: nothing is exported.
    pub otlp_endpoint: Option<String>,
    /// Share of requests without a `traceparent` whose spans are recorded, 0 to 1. A caller's own
    /// decision goes before it, so that a trace is whole or absent.
    pub trace_ratio: f64,
    /// How often metrics are exported.
    #[serde(with = "humantime_serde")]
    pub metrics_interval: Duration,
    /// How long finished spans may wait for company before they are exported.
    #[serde(with = "humantime_serde")]
    pub spans_interval: Duration,
    /// How long one export may take; what it held is dropped then.
    #[serde(with = "humantime_serde")]
    pub export_timeout: Duration,
    /// Of the resource; None: `paceline-coordinator`, `paceline-worker` or `paceline-drafter`.
    pub service_name: Option<String>,
    /// More attributes of the resource, such as `deployment.environment.name`.
    pub resource: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            trace_ratio: 1.0,
            metrics_interval: Duration::from_secs(15),
            spans_interval: Duration::from_secs(2),
            export_timeout: Duration::from_secs(5),
            service_name: None,
            resource: BTreeMap::new(),
        }
    }
}

/// A key whose value cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct Invalid {
    pub key: String,
    pub why: String,
}

/// Longest name or value of a resource attribute.
const LONGEST: usize = 256;
/// Most attributes that a configuration adds.
const MOST: usize = 64;

impl Config {
    /// # Errors
    /// The first key whose value cannot be used.
    pub fn check(&self) -> Result<(), Invalid> {
        let wrong = |key: &str, why: String| Err(Invalid { key: key.to_owned(), why });
        if let Some(endpoint) = &self.otlp_endpoint {
            let uri: Option<http::Uri> = endpoint.parse().ok();
            let whole = uri.is_some_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some()
            });
            if !whole {
                return wrong(
                    "otlp_endpoint",
                    format!("{endpoint:?} is not http://HOST:PORT or https://HOST:PORT"),
                );
            }
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return wrong("trace_ratio", format!("{} is not between 0 and 1", self.trace_ratio));
        }
        for (key, time) in [
            ("metrics_interval", self.metrics_interval),
            ("spans_interval", self.spans_interval),
            ("export_timeout", self.export_timeout),
        ] {
            if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&time) {
                return wrong(key, format!("{time:?} is not between 10ms and 1h"));
            }
        }
        if self.service_name.as_ref().is_some_and(|name| !plain(name)) {
            return wrong(
                "service_name",
                format!("must be 1 to {LONGEST} characters without control characters"),
            );
        }
        if self.resource.len() > MOST {
            return wrong(
                "resource",
                format!("has {} attributes; at most {MOST} are taken", self.resource.len()),
            );
        }
        for (name, value) in &self.resource {
            if !plain(name) || !plain(value) {
                let why =
                    format!("name and value must be 1 to {LONGEST} characters without control characters");
                return wrong(&format!("resource.{name}"), why);
            }
            if matches!(name.as_str(), "service.name" | "service.instance.id" | "service.version") {
                return wrong(
                    &format!("resource.{name}"),
                    "is set by the process (see service_name)".to_owned(),
                );
            }
        }
        Ok(())
    }
}

fn plain(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_name_their_key() {
        Config::default().check().unwrap();
        let set = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        type Change<'a> = &'a dyn Fn(&mut Config);
        let cases: &[(Change<'_>, &str)] = &[
            (&|c| c.otlp_endpoint = Some("collector:4317".into()), "otlp_endpoint"),
            (&|c| c.otlp_endpoint = Some("ftp://collector".into()), "otlp_endpoint"),
            (&|c| c.otlp_endpoint = Some(String::new()), "otlp_endpoint"),
            (&|c| c.trace_ratio = 1.5, "trace_ratio"),
            (&|c| c.trace_ratio = f64::NAN, "trace_ratio"),
            (&|c| c.metrics_interval = Duration::ZERO, "metrics_interval"),
            (&|c| c.spans_interval = Duration::MAX, "spans_interval"),
            (&|c| c.export_timeout = Duration::ZERO, "export_timeout"),
            (&|c| c.service_name = Some("a\nb".into()), "service_name"),
            (&|c| c.resource = set("a", ""), "resource.a"),
            (&|c| c.resource = set("service.name", "mine"), "resource.service.name"),
        ];
        for (change, key) in cases {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().key, *key);
        }
        for good in ["http://localhost:4317", "https://otlp.example.org", "http://[::1]:4317"] {
            Config { otlp_endpoint: Some(good.into()), ..Config::default() }.check().unwrap();
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let read = |text: &str| toml::from_str::<Config>(text).map_err(|e| e.to_string());
        assert_eq!(read("trace_ratio = 0.5").unwrap().trace_ratio, 0.5);
        assert!(read("endpoint = 'http://a'").unwrap_err().contains("unknown field `endpoint`"));
    }
}
