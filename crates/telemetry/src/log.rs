//! How log lines look, and the ids of the trace that they belong to.
//!
//! Lines go to standard error; standard output belongs to the command. Spans of [`crate::trace`] are not
//! printed in front of every line: a line ends with their ids instead, whatever the filter leaves out.

use std::fmt;

use opentelemetry::trace::TraceContextExt as _;
use serde::{Deserialize, Serialize};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::InitError;

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
pub struct Log {
    pub format: Format,
    /// Directives as `tracing-subscriber` takes them: `info`, `info,daemon=debug`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: Format::Human, filter: "info".into() }
    }
}

pub(crate) fn layer<S, W>(
    log: &Log,
    writer: W,
    colour: bool,
) -> Result<Box<dyn Layer<S> + Send + Sync>, InitError>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(&log.filter)
        .map_err(|e| InitError::Filter { filter: log.filter.clone(), why: e.to_string() })?;
    let printed = filter_fn(|meta| !(meta.is_span() && meta.target() == crate::trace::TARGET));
    let filter = filter.and(printed);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    Ok(match log.format {
        Format::Human => lines
            .with_ansi(colour)
            .map_event_format(|format| WithTrace { inner: format.with_ansi(colour), insert: human })
            .with_filter(filter)
            .boxed(),
        Format::Json => lines
            .with_ansi(false)
            .json()
            .flatten_event(true)
            .map_event_format(|format| WithTrace { inner: format, insert: json })
            .with_filter(filter)
            .boxed(),
    })
}

/// A format whose lines also carry the ids of the span that they were written in.
struct WithTrace<F> {
    inner: F,
    insert: fn(&str, &str, &str) -> String,
}

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let context = opentelemetry::Context::current();
        let span = context.span().span_context().clone();
        if !span.is_valid() {
            return self.inner.format_event(ctx, writer, event);
        }
        let mut line = String::new();
        self.inner.format_event(ctx, Writer::new(&mut line), event)?;
        writer.write_str(&(self.insert)(&line, &span.trace_id().to_string(), &span.span_id().to_string()))
    }
}

fn human(line: &str, trace: &str, span: &str) -> String {
    format!("{} trace_id={trace} span_id={span}\n", line.trim_end_matches('\n'))
}

fn json(line: &str, trace: &str, span: &str) -> String {
    match line.trim_end().strip_suffix('}') {
        Some(open) => format!("{open},\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"}}\n"),
        // Not an object, so not ours to extend.
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

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

    /// What is written by `say`, with spans as in a process that serves.
    fn logged(format: Format, filter: &str, say: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = Log { format, filter: filter.into() };
        let tracer = SdkTracerProvider::builder().build().tracer("test");
        let subscriber = tracing_subscriber::registry()
            .with(layer(&log, move || writer.clone(), false).unwrap())
            .with(crate::trace::layer(tracer));
        tracing::subscriber::with_default(subscriber, say);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn said() {
        tracing::info!(node = "w1", "joined");
        tracing::debug!("detail");
    }

    #[test]
    fn the_filter_decides_what_is_logged() {
        assert!(logged(Format::Human, "info", said).contains("joined node=\"w1\""));
        assert!(!logged(Format::Human, "info", said).contains("detail"));
        assert!(logged(Format::Human, "warn,telemetry=debug", said).contains("detail"));
        assert_eq!(logged(Format::Human, "warn", said), "");
        // Spans that are exported are not what a filter of lines is about.
        assert_eq!(logged(Format::Human, "trace", || drop(crate::span!("chat", text = 1))), "");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(Format::Json, "info", said);
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["message"], &line["node"], &line["level"]),
            (&"joined".into(), &"w1".into(), &"INFO".into())
        );
        assert!(line.get("trace_id").is_none(), "{text}");
    }

    /// Also for a filter that would hide the span itself.
    #[test]
    fn lines_within_a_request_name_its_trace() {
        const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let within = || {
            let span = crate::span!("chat");
            crate::trace::continue_from_text(&span, PARENT);
            let _entered = span.enter();
            tracing::warn!("worker lost");
        };
        let line: serde_json::Value = serde_json::from_str(&logged(Format::Json, "warn", within)).unwrap();
        assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(line["span_id"].as_str().unwrap().len(), 16);
        let text = logged(Format::Human, "warn", within);
        assert!(text.contains("worker lost trace_id=0af7651916cd43dd8448eb211c80319c span_id="), "{text}");
        assert_eq!(text.matches('\n').count(), 1, "{text}");
    }

    #[test]
    fn a_wrong_filter_is_named() {
        let log = Log { filter: "info,=[".into(), ..Log::default() };
        let layer = layer::<tracing_subscriber::Registry, _>(&log, std::io::sink, false);
        let error = layer.err().unwrap().to_string();
        assert!(error.starts_with("log.filter: \"info,=[\""), "{error}");
    }
}
