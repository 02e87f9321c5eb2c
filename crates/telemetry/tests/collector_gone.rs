//! A collector that takes connections and never answers costs data, nothing else.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use telemetry::{Config, Label, Log, Service, init, meters, span};

#[tokio::test(flavor = "multi_thread")]
async fn recording_goes_on_as_if_nothing_were_wrong_and_the_end_is_not_held_up() {
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        otlp_endpoint: Some(format!("http://{}", mute.local_addr().unwrap())),
        metrics_interval: Duration::from_millis(20),
        spans_interval: Duration::from_millis(20),
        export_timeout: Duration::from_secs(60),
        ..Config::default()
    };
    let log = Log { filter: "off".into(), ..Log::default() };
    let service = Service { role: "worker", instance: "w1".into() };
    let guard = init(&log, Some((&service, &config))).unwrap();

    let model = [Label::model("coder")];
    let began = Instant::now();
    // Fifty times what the queue of spans holds.
    for _ in 0..100_000 {
        drop(span!("chat"));
        meters().inter_token_latency.record(0.01, &model);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?} for 100,000 spans and measurements");
    assert!(
        meters()
            .render()
            .unwrap()
            .1
            .contains("paceline_inter_token_latency_seconds_count{model=\"coder\"} 100000")
    );

    let began = Instant::now();
    drop(guard);
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
}
