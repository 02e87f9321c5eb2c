//! The text is the target's own, byte for byte, whatever drafts, batches and chunks do.

use std::sync::Arc;
use std::time::Duration;

use cli::client::{Client, Segment, Summary};
use cluster::Role;
use futures::future::join_all;
use serde_json::{Value, json};

use super::model::{Corrupted, Weights};
use crate::support::{Link, Node, Proxy, coordinator, eventually, model_file, start_drafter, start_worker};

pub(super) const MODEL: &str = "smollm2-135m";

const PROMPTS: [&str; 8] = [
    "What is gravity?",
    "List three primary colors.",
    "Write a short poem about the sea.",
    "def quicksort(items):",
    "Explain why the sky is blue, in one paragraph.",
    "Count from one to twenty in words.",
    "Translate to French: good morning, my friend.",
    // Longer than a chunk of 7 and than a page, with characters of several bytes.
    "A fox, a heron and an owl share a wood. The fox says: «the night is mine». The heron says: the \
     pond is mine — and the owl says nothing. Who owns the wood? Answer in the owl's words. 🦉",
];

/// Output tokens of each answer.
const TOKENS: u32 = 28;

/// Greedy, and sampled with a seed.
pub(super) const DRAWS: [(f64, u64); 2] = [(0.0, 1), (0.8, 7)];

fn body(prompt: &str, (temperature, seed): (f64, u64), speculation: &Value) -> Value {
    json!({
        "model": MODEL, "messages": [{ "role": "user", "content": prompt }],
        "temperature": temperature, "seed": seed, "max_tokens": TOKENS, "speculation": speculation,
    })
}

/// A cluster of one worker, and a drafter where the test wants one.
pub(super) struct Cluster {
    client: Client,
    running: coordinator::Running,
    worker: Node,
}

impl Cluster {
    pub(super) async fn start(weights: &Weights, token_budget: u32) -> Self {
        Self::with(weights, token_budget, weights.make()).await
    }

    pub(super) async fn with<M: engine::Model + 'static>(
        weights: &Weights,
        token_budget: u32,
        make: impl FnOnce() -> M + Send + 'static,
    ) -> Self {
        let running = coordinator(MODEL, &weights.path).await;
        let mut config = worker::Config::default();
        config.engine.token_budget = Some(token_budget);
        let identity = weights.identity(Role::Worker, "worker-1");
        let worker =
            start_worker(config, identity, weights.constraints(), Some(running.grpc_addr()), make).await;
        let client = Client::new(&format!("http://{}", running.http_addr())).unwrap();
        eventually("the worker joins", || async { client.ready().await.is_ok() }).await;
        Self { client, running, worker }
    }

    /// Where nodes join.
    pub(super) fn grpc(&self) -> std::net::SocketAddr {
        self.running.grpc_addr()
    }

    /// Waits until the coordinator names a drafter to workers.
    pub(super) async fn has_drafter(&self) {
        let grpc = format!("http://{}", self.running.grpc_addr());
        eventually("the drafter joins", || async {
            let members = cli::status::members(&grpc).await.unwrap();
            members.iter().any(|m| m.record.role == Role::Drafter)
        })
        .await;
    }

    /// All prompts with all draws, `batch` at a time, in order.
    async fn answers(&self, batch: usize, speculation: &Value) -> Vec<Summary> {
        let bodies: Vec<Value> =
            DRAWS.iter().flat_map(|draw| PROMPTS.map(|p| body(p, *draw, speculation))).collect();
        self.ask(bodies, batch).await
    }

    /// Answers, `batch` at a time, in order.
    pub(super) async fn ask(&self, bodies: Vec<Value>, batch: usize) -> Vec<Summary> {
        let mut answers = Vec::new();
        for bodies in bodies.chunks(batch) {
            let asked = bodies.iter().map(|body| self.client.chat(body.clone(), |_| {}));
            answers.extend(join_all(asked).await.into_iter().map(|a| a.unwrap()));
        }
        answers
    }

    pub(super) async fn stop(self) {
        assert_eq!(self.worker.drain().await.failed, []);
        let mut running = self.running;
        running.tasks().shutdown().abort();
        assert_eq!(running.join().await.failed, []);
    }
}

pub(super) fn texts(answers: &[Summary]) -> Vec<&str> {
    answers.iter().map(|a| a.text.as_str()).collect()
}

/// Drafted and accepted tokens, and verification steps by accepted drafts, over all answers.
pub(super) fn speculation(answers: &[Summary]) -> (u64, u64, Vec<u64>) {
    let (mut drafted, mut accepted, mut histogram) = (0, 0, vec![0; 9]);
    for answer in answers {
        drafted += answer.speculation["num_draft_tokens"].as_u64().unwrap();
        accepted += answer.speculation["num_accepted_draft_tokens"].as_u64().unwrap();
        for (n, steps) in answer.speculation["acceptance_histogram"].as_array().unwrap().iter().enumerate() {
            histogram[n.min(8)] += steps.as_u64().unwrap();
        }
    }
    (drafted, accepted, histogram)
}

fn free() -> Value {
    json!({ "strategy": "draft" })
}

fn lockstep() -> Value {
    json!({ "strategy": "lockstep", "k": 4, "deadline_ms": 500 })
}

#[tokio::test(flavor = "multi_thread")]
async fn text_does_not_depend_on_drafter_batch_or_chunks() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);

    // The reference: no drafter, one at a time, prompts in one chunk.
    let plain = Cluster::start(&weights, 512).await;
    let reference = plain.answers(1, &free()).await;
    let reference = texts(&reference);
    assert!(reference.iter().all(|t| !t.is_empty()));
    let distinct: std::collections::HashSet<_> = reference.iter().collect();
    assert!(distinct.len() > 12, "answers differ by prompt and by draw: {reference:?}");

    // Eight at once.
    assert_eq!(texts(&plain.answers(8, &free()).await), reference, "batch 8");
    plain.stop().await;

    // Prompt chunks of at most 7 tokens, eight at once.
    let chunked = Cluster::start(&weights, 7).await;
    assert_eq!(texts(&chunked.answers(8, &free()).await), reference, "chunks of 7");

    // The model as its own drafter: every draft is right.
    let twin = weights.identity(Role::Drafter, "drafter-twin");
    let grpc = Some(chunked.running.grpc_addr());
    let drafter =
        start_drafter(drafter::Config::default(), twin, weights.constraints(), grpc, weights.make()).await;
    chunked.has_drafter().await;
    let answers = chunked.answers(8, &free()).await;
    assert_eq!(texts(&answers), reference, "its own drafter, free-running, batch 8, chunks of 7");
    // Batch 3: a step of 7 rows has room for 4 drafts beside the 3 decodes.
    for batch in [1, 3] {
        let answers = chunked.answers(batch, &lockstep()).await;
        assert_eq!(texts(&answers), reference, "its own drafter, lockstep, batch {batch}, chunks of 7");
        let (drafted, accepted, _) = speculation(&answers);
        assert!(accepted > 100, "batch {batch}: accepted {accepted}");
        assert!(accepted * 100 >= drafted * 95, "a twin's drafts are right: {accepted} of {drafted}");
    }
    assert_eq!(drafter.drain().await.failed, []);
    chunked.stop().await;

    // A drafter whose proposals are corrupted at random.
    let cluster = Cluster::start(&weights, 512).await;
    let (make, picks) = (weights.make(), Arc::default());
    let liar = weights.identity(Role::Drafter, "drafter-liar");
    let grpc = Some(cluster.running.grpc_addr());
    let drafter = start_drafter(drafter::Config::default(), liar, weights.constraints(), grpc, move || {
        Corrupted { model: make(), wrong: 30, picks }
    })
    .await;
    cluster.has_drafter().await;
    for batch in [1, 8] {
        let answers = cluster.answers(batch, &lockstep()).await;
        assert_eq!(texts(&answers), reference, "corrupted drafter, lockstep, batch {batch}");
        let (drafted, accepted, histogram) = speculation(&answers);
        assert!((50..drafted).contains(&accepted), "batch {batch}: {accepted} of {drafted}");
        // A step verifies 4 drafts here, so one that accepts fewer rejected at that depth.
        let depths = histogram[..4].iter().filter(|steps| **steps > 0).count();
        assert_eq!(depths, 4, "rejected at every depth: {histogram:?}");
    }
    let answers = cluster.answers(8, &free()).await;
    assert_eq!(texts(&answers), reference, "corrupted drafter, free-running, batch 8");
    assert_eq!(drafter.drain().await.failed, []);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_does_not_depend_on_what_happens_to_the_drafter() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let cluster = Cluster::start(&weights, 512).await;
    let reference = cluster.answers(1, &free()).await;
    let reference = texts(&reference);

    // Free-running, too: there, most steps of a target on the drafter's cores find no draft in time,
    // so what the run exercised is asserted under lockstep.
    for (fate, strategy) in
        [("slowed", lockstep()), ("paused", lockstep()), ("killed", lockstep()), ("killed", free())]
    {
        let (proxy, forward) = Proxy::bind().await.unwrap();
        let mut config = drafter::Config::default();
        config.rank.advertise = Some(format!("http://{}", proxy.address));
        let identity = weights
            .identity(Role::Drafter, &format!("drafter-{fate}-{}", strategy["strategy"].as_str().unwrap()));
        let grpc = Some(cluster.running.grpc_addr());
        let drafter = start_drafter(config, identity, weights.constraints(), grpc, weights.make()).await;
        forward(drafter.address);
        cluster.has_drafter().await;
        if fate == "slowed" {
            proxy.set(Link::Delayed { one_way: Duration::from_millis(15), jitter: Duration::ZERO });
        }
        let mut drafter = Some(drafter);
        let (mut accepted, mut hit) = (0, 0);
        let draws = DRAWS.iter().flat_map(|draw| PROMPTS.map(|p| body(p, *draw, &strategy)));
        for (body, expected) in draws.zip(&reference) {
            // The fate strikes right after the first accepted draft of an answer.
            let mut struck = false;
            let strike = |segment: &Segment| {
                if segment.drafted && !std::mem::replace(&mut struck, true) {
                    match fate {
                        "paused" => proxy.set(Link::Paused),
                        "killed" => proxy.set(Link::Cut),
                        _ => {}
                    }
                }
            };
            let answer = cluster.client.chat(body, strike).await.unwrap();
            assert_eq!(answer.text, *expected, "drafter {fate}");
            accepted += answer.speculation["num_accepted_draft_tokens"].as_u64().unwrap();
            hit += u32::from(struck);
            if fate == "killed"
                && struck
                && let Some(drafter) = drafter.take()
            {
                drafter.kill().await;
            }
            if fate == "paused" {
                proxy.set(Link::Flows);
            }
        }
        if strategy == lockstep() {
            assert!(hit > 0 && accepted > 0, "drafter {fate}: struck {hit} answers, {accepted} accepted");
        }
        if let Some(drafter) = drafter {
            drafter.kill().await;
        }
    }
    cluster.stop().await;
}
