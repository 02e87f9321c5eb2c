//! Logs: one subscriber a process, set up once at its edge.
//!
//! Lines go to standard error, for people or as JSON; standard output belongs to the command. The
//! filter comes in as a value; nothing here reads the environment.
//!
//! Not here yet: meters, traces and their OTLP export (issue 3). When they come, this stays the only
//! crate that names an exporter; everyone else says `tracing`.
//!
//! Start at [`init`].
#![forbid(unsafe_code)]

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Human,
    /// One JSON object a line, span fields included.
    Json,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub format: Format,
    /// Directives as `tracing-subscriber` takes them: `info`, `info,daemon=debug`.
    pub filter: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { format: Format::Human, filter: "info".into() }
    }
}

/// Held by `main` until the process ends; later it flushes exporters when dropped.
#[derive(Debug)]
#[must_use = "dropping it ends telemetry"]
pub struct Guard(());

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(
        "log.filter: {filter:?} is not a filter ({why}); write for example \"info\" or \"info,daemon=debug\""
    )]
    Filter { filter: String, why: String },
    #[error("logs were set up before in this process")]
    Twice,
}

/// Sends this process's log lines to standard error from now on. Once a process.
pub fn init(config: &Config) -> Result<Guard, InitError> {
    let colour = std::io::stderr().is_terminal();
    subscriber(config, std::io::stderr, colour)?.try_init().map_err(|_| InitError::Twice)?;
    Ok(Guard(()))
}

fn subscriber<W>(
    config: &Config,
    writer: W,
    colour: bool,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, InitError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(&config.filter)
        .map_err(|e| InitError::Filter { filter: config.filter.clone(), why: e.to_string() })?;
    let lines = fmt().with_env_filter(filter).with_writer(writer);
    Ok(match config.format {
        Format::Human => Box::new(lines.with_ansi(colour).with_target(true).finish()),
        Format::Json => Box::new(lines.with_ansi(false).json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, filter: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let config = Config { format, filter: filter.into() };
        let subscriber = subscriber(&config, move || writer.clone(), false).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(node = "w1", "joined");
            tracing::debug!("detail");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_filter_decides_what_is_logged() {
        assert!(logged(Format::Human, "info").contains("joined node=\"w1\""));
        assert!(!logged(Format::Human, "info").contains("detail"));
        assert!(logged(Format::Human, "warn,telemetry=debug").contains("detail"));
        assert_eq!(logged(Format::Human, "warn"), "");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(Format::Json, "info");
        assert_eq!(text.lines().count(), 1);
        for part in ["\"message\":\"joined\"", "\"node\":\"w1\"", "\"level\":\"INFO\""] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_wrong_filter_is_named() {
        let config = Config { filter: "info,=[".into(), ..Config::default() };
        let error = subscriber(&config, std::io::sink, false).err().unwrap().to_string();
        assert!(error.starts_with("log.filter: \"info,=[\""), "{error}");
    }
}
