//! Against a server in this process whose delays are known.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use futures::stream;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::arrival::Arrival;
use super::exchange::Endpoint;
use super::load::{Load, Plan, Run};
use super::progress::Progress;
use super::record::Kind;
use super::summary::Summary;
use super::{ServeArgs, load};

/// What the server does with every request.
#[derive(Clone, Debug)]
struct Script {
    first: Duration,
    gap: Duration,
    chunks: usize,
    tokens_a_chunk: usize,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Full,
    Broken,
    ErrorEvent,
    NoDone,
    Empty,
    Plain,
    Silent,
    /// Refuses the field `ignore_eos`.
    NoIgnoreEos,
}

impl Script {
    fn of(first: u64, gap: u64, chunks: usize) -> Self {
        let (first, gap) = (Duration::from_millis(first), Duration::from_millis(gap));
        Self { first, gap, chunks, tokens_a_chunk: 1, fault: Fault::None }
    }

    fn faulty(fault: Fault) -> Self {
        Self { fault, ..Self::of(0, 0, 2) }
    }
}

/// When each chunk was handed to the network, by the request's seed.
type Stamps = Arc<Mutex<HashMap<u64, Vec<Instant>>>>;

struct Server {
    address: SocketAddr,
    stamps: Stamps,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(script: Script) -> Self {
        let stamps = Stamps::default();
        let models = || async { Json(json!({ "data": [{ "id": "fake" }] })) };
        let app = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(answer))
            .route("/v1/completions", post(answer))
            .with_state((script, Arc::clone(&stamps)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, stamps, task }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn endpoint(&self, timeout: Duration) -> Arc<Endpoint> {
        let url = format!("{}/v1/chat/completions", self.url());
        Arc::new(Endpoint::new(url, Default::default(), timeout).unwrap())
    }
}

async fn answer(State((script, stamps)): State<(Script, Stamps)>, Json(body): Json<Value>) -> Response {
    let refusal = |message: &str| Json(json!({ "error": { "message": message } }));
    match script.fault {
        Fault::Full => {
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")], refusal("full")).into_response();
        }
        Fault::NoIgnoreEos if body.get("ignore_eos").is_some() => {
            return (StatusCode::BAD_REQUEST, refusal("ignore_eos: unknown field")).into_response();
        }
        Fault::Plain => return "hello".into_response(),
        Fault::Silent => sleep(Duration::from_secs(60)).await,
        _ => {}
    }
    let seed = body["seed"].as_u64().unwrap_or(u64::MAX);
    let events = stream::unfold(0usize, move |nth| {
        let (script, stamps) = (script.clone(), Arc::clone(&stamps));
        async move { Some((event(&script, &stamps, seed, nth).await?, nth + 1)) }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}

/// The nth piece of the stream: role, chunks, usage, end.
async fn event(
    script: &Script,
    stamps: &Stamps,
    seed: u64,
    nth: usize,
) -> Option<Result<String, Infallible>> {
    let data = |value: Value| Some(Ok(format!("data: {value}\n\n")));
    let chunks = if script.fault == Fault::Empty { 0 } else { script.chunks };
    match nth {
        0 => data(json!({ "choices": [{ "delta": { "role": "assistant" } }] })),
        n if n <= chunks => {
            if n == 2 && script.fault == Fault::ErrorEvent {
                return data(json!({ "error": { "message": "worker lost" } }));
            }
            if n == 2 && script.fault == Fault::Broken {
                return None;
            }
            sleep(if n == 1 { script.first } else { script.gap }).await;
            stamps.lock().unwrap().entry(seed).or_default().push(Instant::now());
            data(json!({ "choices": [{ "delta": { "content": "word " } }] }))
        }
        n if n == chunks + 1 => data(json!({
            "choices": [], "usage": { "prompt_tokens": 11, "completion_tokens": chunks * script.tokens_a_chunk }
        })),
        n if n == chunks + 2 && script.fault != Fault::NoDone => Some(Ok("data: [DONE]\n\n".into())),
        _ => None,
    }
}

fn closed(concurrency: usize, requests: u64) -> Plan {
    let load = Load::Closed { concurrency };
    Plan { load, requests: Some(requests), duration: None, grace: Duration::ZERO }
}

fn body(index: u64) -> String {
    json!({ "seed": index, "messages": [{ "role": "user", "content": "hi" }] }).to_string()
}

async fn measure(server: &Server, plan: &Plan, timeout: Duration) -> Run {
    let endpoint = server.endpoint(timeout);
    load::run(plan, &endpoint, body, &Progress::hidden(), std::future::pending()).await.unwrap()
}

const LONG: Duration = Duration::from_secs(60);

/// Lower bounds are the server's own delays and hold on any machine. Upper bounds compare with when
/// the server says it handed each chunk over: the median of what this client adds is below 5 ms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_delays_are_measured() {
    let server = Server::start(Script { tokens_a_chunk: 2, ..Script::of(60, 15, 8) }).await;
    let run = measure(&server, &closed(4, 16), LONG).await;
    let summary = Summary::of(&run.records, &["ttft:60ms".parse().unwrap()], 16);
    assert_eq!((summary.completed, summary.failed(), summary.other_length), (16, 0, 0));
    let spread = |tag: &str| summary.spread(tag).unwrap();
    assert!(spread("time_to_first_token").min >= 60.0);
    assert!(spread("request_latency").min >= 60.0 + 7.0 * 15.0);
    assert_eq!(spread("inter_chunk_latency").count, 16 * 7);
    assert_eq!(spread("output_sequence_length").avg, 16.0);
    // 16 tokens in 8 chunks: 15 tokens after the first, in 7 gaps.
    let (itl, decode) = (spread("inter_token_latency"), spread("decode_duration"));
    assert!((itl.sum - decode.sum / 15.0).abs() < 1e-9);
    // A whole millisecond is what a timer may round; the mean gap cannot be shorter.
    assert!(spread("inter_chunk_latency").avg >= 14.0, "{:?}", spread("inter_chunk_latency"));
    assert_eq!(summary.one("goodput"), Some(0.0), "no first token comes at 60 ms sharp");
    let stamps = server.stamps.lock().unwrap();
    let mut added = Vec::new();
    for record in &run.records {
        for (seen, sent) in record.exchange.chunks.iter().zip(&stamps[&record.index]) {
            added.push(seen.as_secs_f64() - sent.duration_since(run.clock.start).as_secs_f64());
        }
    }
    added.sort_by(f64::total_cmp);
    let median_ms = added[added.len() / 2] * 1e3;
    println!(
        "added by client and loopback: median {median_ms:.3} ms, worst {:.3} ms",
        added[added.len() - 1] * 1e3
    );
    assert!((0.0..5.0).contains(&median_ms), "{median_ms} ms");
}

/// A machine of two cores that also runs the server reads above 5,000 chunks a second even when other
/// tests run beside; alone it is an order more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_is_not_the_bottleneck() {
    let server = Server::start(Script::of(0, 0, 64)).await;
    let run = measure(&server, &closed(16, 300), LONG).await;
    let summary = Summary::of(&run.records, &[], 64);
    assert_eq!(summary.completed, 300);
    let rate = summary.one("output_token_throughput").unwrap();
    println!("client and server together: {rate:.0} chunks/s");
    assert!(rate > 5_000.0, "{rate:.0} chunks/s");
}

/// 40 requests are due within 1 s at 40/s; each is answered after 300 ms, so a client that waited for
/// answers would send 4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_loop_does_not_wait_for_answers() {
    let server = Server::start(Script::of(300, 0, 1)).await;
    let load = |most| Load::Open { rate: 40.0, arrival: Arrival::Constant, seed: 0, most };
    let plan =
        |most| Plan { load: load(most), requests: None, duration: Some(Duration::from_secs(1)), grace: LONG };
    let run = measure(&server, &plan(1000), LONG).await;
    assert_eq!(run.records.len(), 40);
    let first = run.records.iter().map(|r| r.exchange.start).max().unwrap();
    assert!(first < Duration::from_millis(1500), "the last was sent at {first:?}");
    // Two at a time: what was due meanwhile is late, and says so.
    let run = measure(&server, &plan(2), LONG).await;
    let summary = Summary::of(&run.records, &[], 1);
    let of = |tag: &str| summary.spread(tag).unwrap();
    assert!(run.records.len() < 20, "{}", run.records.len());
    assert!(of("credit_to_start_latency").max > 500.0);
    assert!(of("effective_latency").max > of("request_latency").max + 400.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_told_apart() {
    for (fault, kind, text) in [
        (Fault::Full, Kind::Status(429), "full"),
        (Fault::ErrorEvent, Kind::Broken, "worker lost"),
        (Fault::Broken, Kind::Broken, "[DONE]"),
        (Fault::NoDone, Kind::Broken, "[DONE]"),
        (Fault::Empty, Kind::Empty, "no text"),
        (Fault::Plain, Kind::Malformed, "text/plain"),
        (Fault::Silent, Kind::Timeout, "300ms"),
    ] {
        let server = Server::start(Script::faulty(fault)).await;
        let run = measure(&server, &closed(2, 4), Duration::from_millis(300)).await;
        let summary = Summary::of(&run.records, &[], 2);
        assert_eq!((summary.completed, summary.failed()), (0, 4), "{fault:?}");
        let (got, failed) = summary.failures.first_key_value().unwrap();
        assert_eq!(*got, kind, "{fault:?}: {failed:?}");
        assert!(failed.messages.keys().all(|m| m.contains(text)), "{fault:?}: {failed:?}");
        let after = (fault == Fault::Full).then_some((Duration::from_secs(7), Duration::from_secs(7)));
        assert_eq!(failed.retry_after, after);
    }
    let mut server = Server::start(Script::of(0, 0, 1)).await;
    let endpoint = server.endpoint(LONG);
    server.task.abort();
    // Its port is closed only when the task is gone.
    let _ = (&mut server.task).await;
    let progress = Progress::hidden();
    let run = load::run(&closed(1, 2), &endpoint, body, &progress, std::future::pending()).await.unwrap();
    let kinds: Vec<_> = run.records.iter().map(|r| r.exchange.failure.as_ref().unwrap().kind).collect();
    assert_eq!(kinds, [Kind::Connect; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_ends_with_its_grace_and_on_request() {
    let server = Server::start(Script::of(10_000, 0, 1)).await;
    let (duration, grace) = (Some(Duration::from_millis(200)), Duration::from_millis(200));
    let plan = Plan { requests: None, duration, grace, ..closed(3, 1) };
    let began = Instant::now();
    let run = measure(&server, &plan, LONG).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    let kinds: Vec<_> = run.records.iter().map(|r| r.exchange.failure.as_ref().unwrap().kind).collect();
    assert_eq!(kinds, [Kind::Cancelled; 3]);
    // An interrupt does not wait for anything.
    let stop = sleep(Duration::from_millis(100));
    let endpoint = server.endpoint(LONG);
    let run = load::run(&closed(2, 9), &endpoint, body, &Progress::hidden(), stop).await.unwrap();
    assert!(run.interrupted && run.records.is_empty() && began.elapsed() < Duration::from_secs(8));
}

#[derive(Parser)]
struct Typed {
    #[command(flatten)]
    serve: ServeArgs,
}

fn typed(server: &Server, words: &[&str]) -> ServeArgs {
    let url = server.url();
    let all = ["bench", "--url", &url].into_iter().chain(words.iter().copied());
    Typed::try_parse_from(all).unwrap().serve
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_writes_json_and_a_plot() {
    // This server also refuses ignore_eos: the probe finds out, and the run goes on without it.
    let server = Server::start(Script { fault: Fault::NoIgnoreEos, ..Script::of(2, 1, 4) }).await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (json, plot, lines) = (path("out.json"), path("out.html"), path("out.jsonl"));
    let sweep = ["--sweep-concurrency", "1,2", "--requests", "6", "--output-tokens", "4", "--slo", "ttft:1s"];
    super::run(typed(&server, &[&sweep[..], &["--json", &json, "--plot", &plot, "--warmup", "2"]].concat()))
        .await
        .unwrap();
    let out: Value = serde_json::from_str(&std::fs::read_to_string(json.clone()).unwrap()).unwrap();
    assert_eq!(out["runs"].as_array().unwrap().len(), 2);
    assert_eq!(out["runs"][1]["request_count"]["avg"], 6.0);
    assert_eq!(out["runs"][1]["good_request_fraction"]["avg"], 1.0);
    assert_eq!(out["runs"][1]["paceline"]["model"], "fake");
    let request = &out["runs"][0]["paceline"]["request"];
    assert_eq!((request.get("ignore_eos"), &request["min_tokens"]), (None, &json!(4)));
    assert!(std::fs::read_to_string(&plot).unwrap().contains("</svg>"));

    let one = ["--requests", "3", "--endpoint", "completions", "--json", &json, "--records", &lines];
    super::run(typed(&server, &one)).await.unwrap();
    let out: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(out["request_count"]["avg"], 3.0);
    assert_eq!(std::fs::read_to_string(lines).unwrap().lines().count(), 3);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    let server = Server::start(Script::of(0, 0, 1)).await;
    for (words, wanted) in [
        (vec!["--requests", "0"], "--requests"),
        (vec!["--duration", "0s"], "--duration"),
        (vec!["--rate", "0"], "rates"),
        (vec!["--rate", "NaN"], "rates"),
        (vec!["--concurrency", "0"], "concurrency"),
        (vec!["--sweep-rate", "1,-1"], "rates"),
        (vec!["--output-tokens", "0"], "--output-tokens"),
        (vec!["--prompt-tokens", "0"], "--prompt-tokens"),
        (vec!["--prompt-tokens", "4", "--shared-prefix", "5"], "--shared-prefix"),
        (vec!["--plot", "x.svg"], "--plot"),
        (vec!["--extra", "a=b"], "no JSON"),
        (vec!["--header", "a"], "NAME=VALUE"),
        (vec!["--prompts", "/nonexistent"], "/nonexistent"),
    ] {
        let error = format!("{:#}", super::run(typed(&server, &words)).await.unwrap_err());
        assert!(error.contains(wanted), "{words:?}: {error}");
    }
    assert!(server.stamps.lock().unwrap().is_empty());
}
