//! A live cluster of toys, seen from outside: one trace through all processes' parts, and every metric
//! of the catalogue scraped while it moves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::{Role, VocabHash};
use engine::{Model, ModelError, ModelSpec, Picks, Ticket, ToyModel};
use futures::StreamExt as _;
use futures::future::join_all;
use rank::{Constraints, Identity};
use sampling::Draw;
use scheduler::Step;
use serde_json::{Value, json};
use telemetry::CATALOGUE;
use telemetry::testing::{Collector, Span, Spans};
use tokio::task::JoinHandle;

use super::nodes::MODEL;
use crate::support::{
    BYTES, HANG, Node, byte_model, coordinator, eventually, identity, start_drafter, start_worker,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_holds_the_spans_of_coordinator_worker_and_drafter() {
    let collector = Collector::start().await.unwrap();
    let _spans = Spans::to(&collector).unwrap();
    let cluster = Cluster::start().await;
    let (_worker, _) = cluster.worker("w1", "fp_a", 16, 4096).await;
    let _drafter = cluster.drafter().await;
    cluster.ready(1, 1).await;

    let asked = cluster.ask(json!({ "max_tokens": 120, "stream": true, "ignore_eos": true }));
    let asked = asked.header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    let response = asked.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.text().await.unwrap().contains("[DONE]"));

    // Spans end when their last holder lets go, and are sent soon after.
    let names = ["chat toy", "tokenize", "route", "generate", "engine.generate", "draft.session"];
    let traced = || -> BTreeMap<String, Span> {
        let spans = collector.spans().into_iter().filter(|span| span.trace == TRACE);
        spans.map(|span| (span.name.clone(), span)).collect()
    };
    eventually("all spans have come", async || {
        let traced = traced();
        names.iter().all(|name| traced.contains_key(*name))
    })
    .await;
    let traced = traced();
    let of = |name: &str| &traced[name];
    for (name, parent) in [
        ("chat toy", CALLER),
        ("tokenize", &of("chat toy").id),
        ("route", &of("chat toy").id),
        ("generate", &of("chat toy").id),
        ("engine.generate", &of("generate").id),
        ("draft.session", &of("engine.generate").id),
    ] {
        assert_eq!(of(name).parent, parent, "{name}: {traced:#?}");
    }
    for name in ["tokenize", "generate", "engine.generate"] {
        let (outer, inner) = (&of("chat toy").time, &of(name).time);
        assert!(outer.start <= inner.start && inner.end <= outer.end, "{name} lies within: {traced:#?}");
    }

    let (chat, engine) = (&of("chat toy").attributes, &of("engine.generate").attributes);
    for (attributes, name, value) in [
        (chat, "gen_ai.operation.name", "chat"),
        (chat, "gen_ai.provider.name", "paceline"),
        (chat, "gen_ai.request.model", MODEL),
        (chat, "gen_ai.request.max_tokens", "120"),
        (chat, "gen_ai.usage.output_tokens", "120"),
        (chat, "gen_ai.response.finish_reasons", "length"),
        (engine, "gen_ai.usage.output_tokens", "120"),
        (engine, "gen_ai.response.finish_reasons", "length"),
    ] {
        assert_eq!(attributes.get(name).map(String::as_str), Some(value), "{name} of {attributes:#?}");
    }
    assert_eq!(chat["gen_ai.response.id"], engine["gen_ai.response.id"]);
    let seconds = |name: &str| engine[name].parse::<f64>().unwrap();
    let stages =
        ["queue", "model_prefill", "model_decode"].map(|s| seconds(&format!("gen_ai.latency.time_in_{s}")));
    let whole = (of("engine.generate").time.end - of("engine.generate").time.start) as f64 / 1e9;
    assert!(stages.iter().sum::<f64>() <= whole && stages[2] > 0.0, "{stages:?} of {whole}");
    assert!(engine["paceline.speculation.accepted_tokens"].parse::<u64>().unwrap() > 0, "{engine:#?}");

    // Neither question nor answer is anywhere.
    for span in collector.spans() {
        assert!(!format!("{span:?}").contains(SECRET), "{span:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_catalogue_is_scraped_while_it_moves() {
    let cluster = Cluster::start().await;
    let scraper = Scraper::start(cluster.running.admin_addr().unwrap());
    let (first, _) = cluster.worker("w1", "fp_a", 4, 4096).await;
    let drafter = cluster.drafter().await;
    cluster.ready(1, 1).await;

    super::hand_over::some().await;
    super::spill::some().await;
    super::placement::some().await;

    // More than there are slots, several choices, one prompt again and again.
    let load = (0..12).map(|n| cluster.answer(json!({ "max_tokens": 60, "n": 1 + n % 2, "seed": n })));
    for answer in join_all(load).await {
        assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() > 0, "{answer}");
    }

    // A fault: the worker is lost in mid-answer; another, of other numerics, goes on.
    let asked = cluster.ask(json!({ "max_tokens": 400, "stream": true, "ignore_eos": true })).send();
    let mut stream = asked.await.unwrap().bytes_stream();
    stream.next().await.unwrap().unwrap();
    // Few pages: two long answers do not fit it.
    let (second, sick) = cluster.worker("w2", "fp_b", 4, 48).await;
    cluster.ready(2, 1).await;
    first.kill().await;
    let mut rest = Vec::new();
    while let Some(piece) = stream.next().await {
        rest.extend(piece.unwrap());
    }
    assert!(String::from_utf8(rest).unwrap().contains("[DONE]"), "the answer went on");
    cluster.ready(1, 1).await;

    // A fault: more is decoded at once than pages hold.
    let load = (0..4).map(|n| cluster.answer(json!({ "max_tokens": 500, "ignore_eos": true, "seed": n })));
    for answer in join_all(load).await {
        assert_eq!(answer["usage"]["completion_tokens"], 500, "{answer}");
    }

    // A fault: the model fails in a step. And a question that nobody can answer.
    sick.store(true, Ordering::Relaxed);
    let failed = cluster.ask(json!({ "max_tokens": 8 })).send().await.unwrap();
    assert_eq!(failed.status(), 500, "{}", failed.text().await.unwrap());
    sick.store(false, Ordering::Relaxed);
    let unknown = cluster.ask(json!({ "model": "nobody" })).send().await.unwrap();
    assert_eq!(unknown.status(), 404);

    drop(drafter);
    drop(second);
    let moved = scraper.stop().await;
    let all: BTreeSet<String> = CATALOGUE.iter().map(telemetry::Metric::prometheus).collect();
    let still: Vec<_> = all.difference(&moved).collect();
    assert!(still.is_empty(), "these did not move: {still:?}");
    let unknown: Vec<_> = moved.difference(&all).filter(|name| *name != "target_info").collect();
    assert!(unknown.is_empty(), "these are not in the catalogue: {unknown:?}");
}

const SECRET: &str = "the-secret-of-this-question";

/// A coordinator of toys, and what its nodes need to join it.
struct Cluster {
    running: coordinator::Running,
    vocab_hash: VocabHash,
    client: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (file, vocab_hash) = byte_model(Path::new(folder.path()));
        let running = coordinator(MODEL, &file).await;
        Self { running, vocab_hash, client: reqwest::Client::new(), _folder: folder }
    }

    fn identity(&self, role: Role, id: &str, fingerprint: &str) -> Identity {
        let plain = identity(role, id, MODEL, 0);
        Identity { fingerprint: fingerprint.into(), vocab_hash: self.vocab_hash, ..plain }
    }

    /// A worker of 2 ms a step, and what makes its model fail.
    async fn worker(&self, id: &str, fingerprint: &str, slots: u32, pages: u32) -> (Node, Arc<AtomicBool>) {
        let mut config = worker::Config::default();
        config.rank.slots = slots;
        let toy = Moody::new(slots, pages, Duration::from_millis(2));
        let sick = Arc::clone(&toy.sick);
        let identity = self.identity(Role::Worker, id, fingerprint);
        let to = Some(self.running.grpc_addr());
        (start_worker(config, identity, Constraints::new(None), to, move || toy).await, sick)
    }

    async fn drafter(&self) -> Node {
        let mut config = drafter::Config::default();
        config.rank.slots = 8;
        let mut toy = Moody::new(8, 4096, Duration::from_micros(200));
        toy.toy = toy.toy.with_noise(0.2);
        let identity = self.identity(Role::Drafter, "d1", "fp_d");
        let to = Some(self.running.grpc_addr());
        start_drafter(config, identity, Constraints::new(None), to, move || toy).await
    }

    /// Waits until so many nodes take work.
    async fn ready(&self, workers: u64, drafters: u64) {
        eventually("the nodes have joined", async || {
            let health = self.client.get(self.url("/health")).send().await.unwrap();
            let health: Value = health.json().await.unwrap();
            let model = &health["models"][MODEL];
            model["ready_workers"] == workers && model["ready_drafters"] == drafters
        })
        .await;
    }

    fn ask(&self, with: Value) -> reqwest::RequestBuilder {
        let mut body = json!({
            "model": MODEL,
            "messages": [{ "role": "user", "content": format!("{SECRET}, asked at some length: go on") }],
        });
        body.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        self.client.post(self.url("/v1/chat/completions")).timeout(HANG).json(&body)
    }

    async fn answer(&self, with: Value) -> Value {
        let response = self.ask(with).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.http_addr())
    }
}

/// A toy that takes time and can be made to fail.
struct Moody {
    toy: ToyModel,
    step: Duration,
    sick: Arc<AtomicBool>,
}

impl Moody {
    fn new(slots: u32, pages: u32, step: Duration) -> Self {
        let toy = ToyModel::new(ToyModel::spec(BYTES, 1024, slots, pages), 42);
        Self { toy, step, sick: Arc::default() }
    }
}

impl Model for Moody {
    fn spec(&self) -> &ModelSpec {
        self.toy.spec()
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        std::thread::sleep(self.step);
        if self.sick.load(Ordering::Relaxed) {
            return Err(ModelError::Device("made to fail".into()));
        }
        self.toy.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        self.toy.collect(ticket, draws)
    }
}

/// Reads `/metrics` again and again.
struct Scraper {
    stop: Arc<AtomicBool>,
    scraping: JoinHandle<BTreeSet<String>>,
}

impl Scraper {
    fn start(admin: SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let scraping = tokio::spawn(async move {
            let (mut before, mut moved) = (BTreeMap::new(), BTreeSet::new());
            loop {
                // Once more after the end.
                let last = stopped.load(Ordering::Relaxed);
                let response = reqwest::get(format!("http://{admin}/metrics")).await.unwrap();
                let now = families(&response.text().await.unwrap());
                for (name, samples) in &now {
                    let old = before.get(name);
                    let counts = samples.iter().any(|sample| !sample.ends_with(" 0"));
                    // That it appears is no move unless it says something.
                    if old.is_some_and(|old| old != samples) || (old.is_none() && counts) {
                        moved.insert(name.clone());
                    }
                }
                before = now;
                if last {
                    return moved;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { stop, scraping }
    }

    async fn stop(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.scraping.await.unwrap()
    }
}

/// Samples by the name of their family.
fn families(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut families: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').unwrap().0.to_owned();
        } else if !line.starts_with('#') {
            families.entry(family.clone()).or_default().push(line.to_owned());
        }
    }
    families
}
