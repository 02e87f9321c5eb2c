//! Prompts computed by another worker, with real keys and values: every text is that of one worker, and stays so when either
//! side is killed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cli::client::{Client, Summary};
use cluster::{Duty, NodeId, Role};
use futures::future::join_all;
use serde_json::{Value, json};

use super::model::Weights;
use crate::support::{Node, coordinator_with, eventually, model_file, start_drafter, start_worker};

const MODEL: &str = "smollm2-135m";

const TOKENS: u32 = 20;

struct Cluster {
    client: Client,
    running: coordinator::Running,
    workers: BTreeMap<NodeId, Node>,
    drafter: Option<Node>,
}

/// Who is in a cluster.
#[derive(Clone, Copy)]
struct Who {
    duties: &'static [Duty],
    drafted: bool,
    prefix_cache: bool,
}

const MIXED: &[Duty] = &[Duty::Mixed];
const SPLIT: &[Duty] = &[Duty::Decode, Duty::Prefill];

impl Cluster {
    async fn start(weights: &Weights, who: Who) -> Self {
        let config = coordinator::Config { split_at_tokens: 17, ..coordinator::Config::default() };
        let running = coordinator_with(MODEL, &weights.path, config).await;
        let grpc = Some(running.grpc_addr());
        let mut workers = BTreeMap::new();
        for (n, duty) in who.duties.iter().enumerate() {
            let mut config = worker::Config::default();
            config.engine.prefix_cache = who.prefix_cache;
            // Several chunks a prompt.
            config.engine.token_budget = Some(48);
            config.pages.duty = *duty;
            let identity = weights.identity(Role::Worker, &format!("w{n}-{duty}"));
            let worker = start_worker(config, identity, weights.constraints(), grpc, weights.make()).await;
            workers.insert(worker.record.id.clone(), worker);
        }
        let drafter = match who.drafted {
            false => None,
            true => {
                let identity = weights.identity(Role::Drafter, "drafter");
                let config = drafter::Config::default();
                Some(start_drafter(config, identity, weights.constraints(), grpc, weights.make()).await)
            }
        };
        let client = Client::new(&format!("http://{}", running.http_addr())).unwrap();
        let members = workers.len() + usize::from(who.drafted);
        let grpc = format!("http://{}", running.grpc_addr());
        eventually("everybody joins", async || {
            cli::status::members(&grpc).await.is_ok_and(|listed| listed.len() == members)
        })
        .await;
        eventually("the front door is open", async || client.ready().await.is_ok()).await;
        Self { client, running, workers, drafter }
    }

    async fn answers(&self, drafted: bool) -> Vec<Summary> {
        let bodies = bodies(drafted);
        let asked = bodies.into_iter().map(|body| self.client.chat(body, |_| {}));
        join_all(asked).await.into_iter().map(Result::unwrap).collect()
    }

    async fn stop(mut self) {
        for node in std::mem::take(&mut self.workers).into_values().chain(self.drafter.take()) {
            assert_eq!(node.drain().await.failed, []);
        }
        self.running.tasks().shutdown().abort();
        assert_eq!(self.running.join().await.failed, []);
    }
}

fn body(prompt: &str, temperature: f64, tokens: u32, drafted: bool) -> Value {
    let strategy = if drafted { "draft" } else { "none" };
    json!({
        "model": MODEL, "messages": [{ "role": "user", "content": prompt }], "temperature": temperature, "seed": 3,
        "max_tokens": tokens, "ignore_eos": true, "speculation": { "strategy": strategy },
    })
}

fn bodies(drafted: bool) -> Vec<Value> {
    let story = "A fox, a heron and an owl share a wood. The fox says: the night is mine. The heron says: the pond is \
                 mine. And the owl says nothing at all, but looks at both of them for a long while. ";
    let prompts = [story.to_owned(), story.repeat(3), story.repeat(6)];
    let asked = prompts.iter().zip(["Who owns the wood?", "What does the owl think?", "Tell it again."]);
    let asked = asked.map(|(story, question)| format!("{story}{question}"));
    asked.flat_map(|prompt| [0.0, 0.8].map(|t| body(&prompt, t, TOKENS, drafted))).collect()
}

/// A counter of this process; nothing else of this test adds to it.
fn count(name: &str) -> f64 {
    let (_, text) = telemetry::meters().render().unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn texts(answers: &[Summary]) -> Vec<String> {
    answers.iter().map(|answer| answer.text.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn text_does_not_depend_on_who_computed_the_prompt() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let plain = Who { duties: MIXED, drafted: false, prefix_cache: false };
    let mixed = Cluster::start(&weights, plain).await;
    let reference = texts(&mixed.answers(false).await);
    assert!(reference.iter().all(|text| !text.is_empty()));
    mixed.stop().await;
    for (drafted, prefix_cache) in [(false, false), (false, true), (true, false), (true, true)] {
        let before = count("paceline_handed_pages_total");
        let cluster = Cluster::start(&weights, Who { duties: SPLIT, drafted, prefix_cache }).await;
        let answers = cluster.answers(drafted).await;
        let what = format!("drafted {drafted}, prefix cache {prefix_cache}");
        assert_eq!(texts(&answers), reference, "{what}");
        assert!(count("paceline_handed_pages_total") - before > 20.0, "{what}: pages moved");
        cluster.stop().await;
    }
    assert_eq!(count("paceline_hand_over_faults_total"), 0.0);
}

/// One after the other: the worker that answers, then the one that computes prompts.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_of_either_duty_does_not_change_a_text() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let question = |n: u32| {
        let story = format!("Once more, for the {n}th time, a story of a fox and an owl. ").repeat(20);
        body(&story, 0.8, 60, false)
    };
    let mixed = Cluster::start(&weights, Who { duties: MIXED, drafted: false, prefix_cache: true }).await;
    let mut reference = Vec::new();
    for n in 0..2 {
        reference.push(mixed.client.chat(question(n), |_| {}).await.unwrap().text);
    }
    mixed.stop().await;

    let duties: &[Duty] = &[Duty::Decode, Duty::Decode, Duty::Prefill];
    let mut cluster = Cluster::start(&weights, Who { duties, drafted: false, prefix_cache: true }).await;
    let grpc = format!("http://{}", cluster.running.grpc_addr());
    for (n, duty) in [(0, Duty::Decode), (1, Duty::Prefill)] {
        let before = count("paceline_handed_pages_total");
        let client = cluster.client.clone();
        let answer = tokio::spawn(async move { client.chat(question(n), |_| {}).await });
        let mut busy = None;
        eventually("a worker of that duty is at it", async || {
            let members = cli::status::members(&grpc).await.unwrap();
            busy = members.into_iter().find(|m| m.record.duty == duty && m.load.running > 0);
            busy.is_some()
        })
        .await;
        let killed = cluster.workers.remove(&busy.unwrap().record.id).unwrap();
        killed.kill().await;
        let struck = Instant::now();
        assert_eq!(answer.await.unwrap().unwrap().text, reference[n as usize], "killed: {duty}");
        let took = struck.elapsed();
        assert!(took < Duration::from_secs(60), "{took:?}");
        assert!(
            duty == Duty::Prefill || count("paceline_handed_pages_total") > before,
            "its pages were fetched"
        );
    }
    cluster.stop().await;
}
