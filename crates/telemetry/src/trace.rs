//! One trace through all processes: W3C Trace Context in, spans, W3C Trace Context out.
//!
//! A span of a request is made with [`crate::span!`], given its parent with [`continue_from`] before
//! it is entered, and handed on with [`inject`]. In the draft stream, which carries many sequences, the
//! context travels as text ([`traceparent`], [`continue_from_text`]). A context that is absent or
//! malformed starts a new trace: that is the standard's rule, and never an error.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

/// Target of all spans that are exported; log lines do not repeat them, but end with their ids.
pub const TARGET: &str = "paceline.trace";

/// The header of the standard; in the draft stream its value travels alone.
const TRACEPARENT: &str = "traceparent";
/// Length of a version 00 `traceparent`.
pub const TRACEPARENT_LEN: usize = 55;

/// A span that is exported: `span!("tokenize")`, `span!("chat", otel.kind = "server", ...)`.
#[macro_export]
macro_rules! span {
    ($($rest:tt)*) => { $crate::trace::tracing::info_span!(target: $crate::trace::TARGET, $($rest)*) };
}

#[doc(hidden)]
pub use tracing;

/// Makes the caller's span, if the headers (of HTTP, or gRPC metadata) name one, the parent of `span`.
/// Once, before `span` is entered.
pub fn continue_from(span: &Span, headers: &HeaderMap) {
    adopt(span, &TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers)));
}

/// The same for a context that came as the text of a `traceparent`; empty is none.
pub fn continue_from_text(span: &Span, traceparent: &str) {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(traceparent) {
        headers.insert(TRACEPARENT, value);
    }
    continue_from(span, &headers);
}

/// Writes `span` into the headers of a call that is made on its behalf.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&span.context(), &mut HeadersMut(headers));
}

/// The text that names `span` to another process; empty when nothing is traced.
pub fn traceparent(span: &Span) -> String {
    let mut headers = HeaderMap::new();
    inject(span, &mut headers);
    headers.get(TRACEPARENT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
}

/// The trace that `span` belongs to, as 32 hexadecimal digits; `None` when nothing is traced.
pub fn id(span: &Span) -> Option<String> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| context.trace_id().to_string())
}

/// Names `span` by what was learnt after it began.
pub fn rename(span: &Span, name: String) {
    span.context().span().update_name(name);
}

/// Marks `span` as failed, with a reason of `proto::reason`.
pub fn fail(span: &Span, reason: &'static str) {
    span.set_attribute("error.type", reason);
    span.set_status(opentelemetry::trace::Status::error(reason));
}

/// Sets an attribute whose name is not known where the span is made.
pub fn set(span: &Span, name: &'static str, value: impl Into<opentelemetry::Value>) {
    span.set_attribute(name, value);
}

/// Turns spans of [`TARGET`], and only those, into spans of the tracer.
pub(crate) fn layer<S>(tracer: SdkTracer) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'s> LookupSpan<'s> + Send + Sync,
{
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(|meta| meta.is_span() && meta.target() == TARGET))
}

fn adopt(span: &Span, parent: &Context) {
    if parent.span().span_context().is_valid() {
        // A span that no layer wants, as in a command, has no parent either.
        let _ = span.set_parent(parent.clone());
    }
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'h>(&'h mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value))
        {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
    use proptest::prelude::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn traced<T>(root: Sampler, within: impl FnOnce() -> T) -> T {
        let provider =
            SdkTracerProvider::builder().with_sampler(Sampler::ParentBased(Box::new(root))).build();
        let subscriber = tracing_subscriber::registry().with(layer(provider.tracer("test")));
        tracing::subscriber::with_default(subscriber, within)
    }

    /// What the next process is told, of a caller's headers.
    fn passed_on(root: Sampler, headers: &HeaderMap) -> HeaderMap {
        traced(root, || {
            let span = crate::span!("chat");
            continue_from(&span, headers);
            let mut next = HeaderMap::new();
            inject(&span, &mut next);
            next
        })
    }

    #[test]
    fn a_callers_trace_goes_on_whatever_we_would_have_decided() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        for (root, flags) in [(Sampler::AlwaysOff, "01"), (Sampler::AlwaysOn, "00")] {
            let mut headers = HeaderMap::new();
            let parent = format!("00-{TRACE}-b7ad6b7169203331-{flags}");
            headers.insert("traceparent", parent.parse().unwrap());
            headers.insert("tracestate", "vendor=x".parse().unwrap());
            let next = passed_on(root, &headers);
            let told = next["traceparent"].to_str().unwrap();
            assert_eq!(told.len(), TRACEPARENT_LEN);
            assert!(
                told.starts_with(&format!("00-{TRACE}-")) && told.ends_with(&format!("-{flags}")),
                "{told}"
            );
            assert_ne!(told, parent, "the span of this process is the parent now");
            assert_eq!(next["tracestate"], "vendor=x");
        }
    }

    #[test]
    fn without_a_caller_a_trace_begins_here() {
        let told = |root| passed_on(root, &HeaderMap::new())["traceparent"].to_str().unwrap().to_owned();
        assert!(told(Sampler::AlwaysOn).ends_with("-01"));
        assert!(told(Sampler::AlwaysOff).ends_with("-00"));
        // As in a command, where nothing is traced.
        assert_eq!(traceparent(&crate::span!("chat")), "");
        assert_eq!(id(&crate::span!("chat")), None);
    }

    proptest! {
        /// Nonsense of a caller begins a new trace; nothing else happens.
        #[test]
        fn malformed_contexts_are_no_contexts(text in "[0-9a-f-]{0,70}|\\PC{0,80}") {
            let (told, own) = traced(Sampler::AlwaysOn, || {
                let span = crate::span!("chat");
                continue_from_text(&span, &text);
                (traceparent(&span), id(&span))
            });
            prop_assert_eq!(told.len(), TRACEPARENT_LEN);
            let trace = text.get(3..35);
            let own = own.unwrap();
            if trace == Some(own.as_str()) {
                prop_assert!(text.len() >= TRACEPARENT_LEN);
            }
        }
    }
}
