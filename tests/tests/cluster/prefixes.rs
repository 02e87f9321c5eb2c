//! Requests go where their beginning is cached, unless that worker has much more to do than others.

use std::path::Path;
use std::time::Duration;

use cluster::{NodeId, Role, VocabHash};
use engine::ToyModel;
use futures::future::join_all;
use rank::{Constraints, Identity};
use serde_json::{Value, json};

use super::nodes::MODEL;
use crate::support::{BYTES, HANG, Node, byte_model, coordinator, eventually, identity, start_worker};

const SLOTS: u32 = 4;

struct Cluster {
    running: coordinator::Running,
    vocab_hash: VocabHash,
    client: reqwest::Client,
    workers: Vec<Node>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// Of two workers that keep what they computed.
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (file, vocab_hash) = byte_model(Path::new(folder.path()));
        let running = coordinator(MODEL, &file).await;
        let client = reqwest::Client::new();
        let mut cluster = Self { running, vocab_hash, client, workers: Vec::new(), _folder: folder };
        for id in ["w1", "w2"] {
            let identity =
                Identity { vocab_hash: cluster.vocab_hash, ..identity(Role::Worker, id, MODEL, 0) };
            let mut config = worker::Config::default();
            config.rank.slots = SLOTS;
            let make = || ToyModel::new(ToyModel::spec(BYTES, 2048, SLOTS, 1024), 42);
            let grpc = Some(cluster.running.grpc_addr());
            let worker = start_worker(config, identity, Constraints::new(None), grpc, make).await;
            cluster.workers.push(worker);
        }
        eventually("both have joined", async || cluster.running_at().await.len() == 2).await;
        cluster
    }

    /// By worker, in order: sequences that run.
    async fn running_at(&self) -> Vec<(NodeId, u32)> {
        let grpc = format!("http://{}", self.running.grpc_addr());
        let members = cli::status::members(&grpc).await.unwrap();
        members.into_iter().map(|m| (m.record.id, m.load.running)).collect()
    }

    fn ask(&self, prompt: &str, tokens: u32) -> reqwest::RequestBuilder {
        let body = json!({
            "model": MODEL, "messages": [{ "role": "user", "content": prompt }], "max_tokens": tokens,
            "ignore_eos": true, "speculation": { "strategy": "none" },
        });
        let url = format!("http://{}/v1/chat/completions", self.running.http_addr());
        self.client.post(url).timeout(HANG).json(&body)
    }

    /// Tokens of the prompt, and those of them that the cache served.
    async fn cached(&self, prompt: &str) -> (u64, u64) {
        let response = self.ask(prompt, 4).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        let of = |pointer| answer.pointer(pointer).and_then(Value::as_u64);
        let cached = of("/usage/prompt_tokens_details/cached_tokens").unwrap_or(0);
        (of("/usage/prompt_tokens").unwrap_or_else(|| panic!("{answer}")), cached)
    }

    async fn stop(mut self) {
        for worker in self.workers.drain(..) {
            assert_eq!(worker.drain().await.failed, []);
        }
        self.running.tasks().shutdown().abort();
        assert_eq!(self.running.join().await.failed, []);
    }
}

fn prompt(n: u32) -> String {
    format!("Story number {n} begins here, and goes on for a while. ").repeat(12)
}

/// A counter of this process; other tests may add to it.
fn count(name: &str, label: &str) -> f64 {
    let (_, text) = telemetry::meters().render().unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_asked_where_it_is_cached_and_load_wins() {
    let cluster = Cluster::start().await;
    let stored = || count("paceline_kv_cache_events_applied_total", "\"stored\"");
    let before = stored();
    // By chance all of them would find their worker once in 4096 times.
    for n in 0..12 {
        cluster.cached(&prompt(n)).await;
    }
    // How many pages these are depends on who got which: pages of the same beginning are told once by each worker.
    let last = std::cell::Cell::new(before);
    eventually("the coordinator has heard of them", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let heard = stored();
        heard > before && heard == last.replace(heard)
    })
    .await;
    for n in 0..12 {
        let (tokens, cached) = cluster.cached(&prompt(n)).await;
        assert_eq!(cached, (tokens - 1) / 16 * 16, "of {tokens} tokens, story {n}");
    }

    // Everybody asks for the same story, at length: more than the one that has it has room for.
    let answers: Vec<_> = (0..2 * SLOTS)
        .map(|_| {
            let asked = cluster.ask(&prompt(3), 1200);
            tokio::spawn(async move { asked.send().await.unwrap().status() })
        })
        .collect();
    eventually("both have some of them", async || {
        cluster.running_at().await.iter().all(|(_, running)| *running > 1)
    })
    .await;
    for status in join_all(answers).await {
        assert_eq!(status.unwrap(), 200);
    }
    // And a worker that is gone is asked for nothing, whatever it had.
    let mut cluster = cluster;
    cluster.workers.remove(0).kill().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for n in 0..12 {
        cluster.cached(&prompt(n)).await;
    }
    cluster.stop().await;
}
