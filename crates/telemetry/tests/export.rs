//! Spans and metrics of a process reach a collector over OTLP. One file, one process: telemetry is set
//! up once a process.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use telemetry::testing::Collector;
use telemetry::{Config, Label, Log, Service, init, meters, span, trace};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_recorded_arrives_at_the_collector_at_the_latest_when_the_process_ends() {
    let collector = Collector::start().await.unwrap();
    let config = Config {
        otlp_endpoint: Some(collector.endpoint()),
        // Nothing is sent before the end.
        metrics_interval: Duration::from_secs(3600),
        spans_interval: Duration::from_secs(3600),
        ..Config::default()
    };
    let service = Service { role: "worker", instance: "w1".into() };
    let guard = init(&Log::default(), Some((&service, &config))).unwrap();
    assert!(init(&Log::default(), None).is_err(), "once a process");

    let outer = span!("chat", otel.name = "chat coder", otel.kind = "server", gen_ai.request.max_tokens = 16);
    trace::continue_from_text(&outer, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let inner = span!(parent: &outer, "tokenize");
    trace::set(&inner, "gen_ai.usage.input_tokens", 3);
    trace::fail(&inner, "too_large");
    drop(inner);
    drop(outer);
    meters().prompt_tokens.add(3, &[Label::model("coder")]);

    let began = Instant::now();
    drop(guard);
    assert!(began.elapsed() < Duration::from_secs(5));
    let spans = collector.spans();
    let find =
        |name: &str| spans.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("{name}: {spans:?}"));
    let (outer, inner) = (find("chat coder"), find("tokenize"));
    assert_eq!(outer.trace, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!((outer.parent.as_str(), inner.parent.as_str()), ("b7ad6b7169203331", outer.id.as_str()));
    assert_eq!(inner.trace, outer.trace);
    assert_eq!(outer.attributes["gen_ai.request.max_tokens"], "16");
    assert_eq!((inner.attributes["gen_ai.usage.input_tokens"].as_str(), inner.failed), ("3", true));
    assert_eq!(outer.service, "paceline-worker");
    assert_eq!(collector.metrics("paceline-worker"), ["paceline.prompt_tokens"]);
}
