//! Everything together, with real keys and values: prompts computed by another worker or not, drafts or none, workers of
//! one rank or two, prefix cache on or off. Every text is that of one worker, and stays so when one is killed.

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cli::client::{Client, Summary};
use cluster::{Duty, NodeId, Role};
use futures::future::join_all;
use serde_json::{Value, json};
use transport::local::Network;

use super::model::Weights;
use crate::support::{Node, coordinator_with, eventually, model_file, start_drafter, start_worker};

const MODEL: &str = "smollm2-135m";

const TOKENS: u32 = 16;

struct Cluster {
    model: String,
    client: Client,
    running: coordinator::Running,
    workers: BTreeMap<NodeId, Node>,
    drafter: Option<Node>,
    followers: Vec<JoinHandle<()>>,
}

/// Who is in a cluster.
#[derive(Clone, Copy)]
struct Who {
    duties: &'static [Duty],
    drafted: bool,
    prefix_cache: bool,
    /// Of each worker.
    ranks: usize,
}

const MIXED: &[Duty] = &[Duty::Mixed];
const SPLIT: &[Duty] = &[Duty::Decode, Duty::Prefill];

impl Cluster {
    /// `drafts`: the drafter's weights.
    async fn start(weights: &Weights, drafts: &Weights, who: Who) -> Self {
        let config = coordinator::Config { split_at_tokens: 17, ..coordinator::Config::default() };
        let running = coordinator_with(&weights.name, &weights.path, config).await;
        let grpc = Some(running.grpc_addr());
        let (mut workers, mut followers) = (BTreeMap::new(), Vec::new());
        for (n, duty) in who.duties.iter().enumerate() {
            let mut config = worker::Config::default();
            config.engine.prefix_cache = who.prefix_cache;
            // Several chunks a prompt.
            config.engine.token_budget = Some(48);
            config.pages.duty = *duty;
            let identity = weights.identity(Role::Worker, &format!("w{n}-{duty}"));
            let constraints = weights.constraints();
            let worker = if who.ranks == 1 {
                start_worker(config, identity, constraints, grpc, weights.make()).await
            } else {
                let (make, follower) = weights.shared(&Network::new());
                followers.push(follower);
                start_worker(config, identity, constraints, grpc, make).await
            };
            workers.insert(worker.record.id.clone(), worker);
        }
        let drafter = match who.drafted {
            false => None,
            true => {
                let identity = drafts.identity(Role::Drafter, "drafter");
                let config = drafter::Config::default();
                Some(start_drafter(config, identity, drafts.constraints(), grpc, drafts.make()).await)
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
        Self { model: weights.name.clone(), client, running, workers, drafter, followers }
    }

    async fn answers(&self, drafted: bool) -> Vec<Summary> {
        let bodies = bodies(&self.model, drafted);
        let asked = bodies.into_iter().map(|body| self.client.chat(body, |_| {}));
        join_all(asked).await.into_iter().map(Result::unwrap).collect()
    }

    async fn stop(mut self) {
        for node in std::mem::take(&mut self.workers).into_values().chain(self.drafter.take()) {
            assert_eq!(node.drain().await.failed, []);
        }
        for follower in self.followers {
            follower.join().unwrap();
        }
        self.running.tasks().shutdown().abort();
        assert_eq!(self.running.join().await.failed, []);
    }
}

fn body(model: &str, prompt: &str, temperature: f64, tokens: u32, drafted: bool) -> Value {
    let speculation = match (drafted, temperature > 0.0) {
        (false, _) => json!({ "strategy": "none" }),
        // Half of them draft freely, half are sure to be drafted for.
        (true, false) => json!({ "strategy": "draft" }),
        (true, true) => json!({ "strategy": "lockstep", "k": 4, "deadline_ms": 2000 }),
    };
    json!({
        "model": model, "messages": [{ "role": "user", "content": prompt }], "temperature": temperature, "seed": 3,
        "max_tokens": tokens, "ignore_eos": true, "speculation": speculation,
    })
}

fn bodies(model: &str, drafted: bool) -> Vec<Value> {
    let story = "A fox, a heron and an owl share a wood. The fox says: the night is mine. The heron says: the pond is \
                 mine. And the owl says nothing at all, but looks at both of them for a long while. ";
    let prompts = [story.to_owned(), story.repeat(4)];
    let asked = prompts.iter().zip(["Who owns the wood?", "What does the owl think?"]);
    let asked = asked.map(|(story, question)| format!("{story}{question}"));
    asked.flat_map(|prompt| [0.0, 0.8].map(|t| body(model, &prompt, t, TOKENS, drafted))).collect()
}

/// A counter of this process; nothing else of this test adds to it.
pub(super) fn count(name: &str) -> f64 {
    let (_, text) = telemetry::meters().render().unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn texts(answers: &[Summary]) -> Vec<String> {
    answers.iter().map(|answer| answer.text.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn text_does_not_depend_on_split_drafts_ranks_or_prefix_cache() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    combinations(&weights, &weights).await;
}

/// The same of a model that people use, with a drafter of its family: `cargo nextest run -p tests --run-ignored only
/// coder_on_workers --success-output final` (docs/benchmarks.md says how it went).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes and some 4 GB; run by name"]
async fn the_text_of_the_coder_on_workers_of_all_sorts_is_the_same() {
    let (Some(target), Some(drafter)) = (model_file("coder-1.5b"), model_file("coder-0.5b")) else { return };
    combinations(&Weights::open("coder-1.5b", &target), &Weights::open("coder-0.5b", &drafter)).await;
}

/// The eight combinations, each with the prefix cache and without.
#[expect(clippy::print_stdout, reason = "what a person who runs it by name wants to see")]
async fn combinations(weights: &Weights, drafts: &Weights) {
    let plain = Who { duties: MIXED, drafted: false, prefix_cache: false, ranks: 1 };
    let mixed = Cluster::start(weights, drafts, plain).await;
    let reference = texts(&mixed.answers(false).await);
    assert!(reference.iter().all(|text| !text.is_empty()));
    mixed.stop().await;
    let mut combinations = 0;
    for (split, drafted, ranks) in [1, 2].into_iter().flat_map(|ranks| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(s, d)| (s, d, ranks))
    }) {
        for prefix_cache in [false, true] {
            let before = count("paceline_handed_pages_total");
            let duties = if split { SPLIT } else { MIXED };
            let who = Who { duties, drafted, prefix_cache, ranks };
            let cluster = Cluster::start(weights, drafts, who).await;
            let answers = cluster.answers(drafted).await;
            let what =
                format!("split {split}, drafted {drafted}, ranks {ranks}, prefix cache {prefix_cache}");
            assert_eq!(texts(&answers), reference, "{what}");
            let moved = count("paceline_handed_pages_total") - before;
            assert_eq!(moved > 15.0, split, "{what}: {moved} pages moved");
            let accepted = |answer: &Summary| answer.speculation["num_accepted_draft_tokens"].as_u64();
            let accepted: u64 = answers.iter().filter_map(accepted).sum();
            assert_eq!(accepted > 0, drafted, "{what}: {accepted} drafts accepted");
            println!("{}: {what}: the same text; {moved} pages moved, {accepted} drafts stood", weights.name);
            cluster.stop().await;
            combinations += 1;
        }
    }
    assert_eq!((combinations, count("paceline_hand_over_faults_total")), (16, 0.0));
}

/// One after the other: the worker that answers, in the middle of its answer, then the one that computes the prompt.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_of_either_duty_does_not_change_a_text() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let question = |n: u32| {
        let story = format!("Once more, for the {n}th time, a story of a fox and an owl. ").repeat(20);
        body(MODEL, &story, 0.8, 60, false)
    };
    let plain = Who { duties: MIXED, drafted: false, prefix_cache: true, ranks: 1 };
    let mixed = Cluster::start(&weights, &weights, plain).await;
    let (mut reference, mut first) = (Vec::new(), Duration::ZERO);
    for n in 0..2 {
        let (asked, mut heard) = (Instant::now(), None);
        let show = |_: &_| {
            heard.get_or_insert_with(Instant::now);
        };
        let answer = mixed.client.chat(question(n), show).await;
        reference.push(answer.unwrap().text);
        first = first.max(heard.unwrap() - asked);
    }
    mixed.stop().await;

    let duties: &[Duty] = &[Duty::Decode, Duty::Decode, Duty::Prefill];
    let mut cluster = Cluster::start(&weights, &weights, Who { duties, ..plain }).await;
    let grpc = format!("http://{}", cluster.running.grpc_addr());
    for (n, duty) in [(0, Duty::Decode), (1, Duty::Prefill)] {
        let before = count("paceline_handed_pages_total");
        let (client, (told, mut hears)) = (cluster.client.clone(), tokio::sync::mpsc::channel(1024));
        let answer = tokio::spawn(async move {
            let show = move |_: &_| {
                let _ = told.try_send(Instant::now());
            };
            client.chat(question(n), show).await
        });
        if duty == Duty::Decode {
            for _ in 0..5 {
                hears.recv().await.unwrap();
            }
        }
        let mut busy = None;
        eventually("a worker of that duty is at it", async || {
            let members = cli::status::members(&grpc).await.unwrap();
            busy = members.into_iter().find(|m| m.record.duty == duty && m.load.running > 0);
            busy.is_some()
        })
        .await;
        let killed = cluster.workers.remove(&busy.unwrap().record.id).unwrap();
        let struck = Instant::now();
        killed.kill().await;
        assert_eq!(answer.await.unwrap().unwrap().text, reference[n as usize], "killed: {duty}");
        // What was on its way still comes: the longest pause is the one that the kill made.
        let (mut last, mut pause) = (struck, Duration::ZERO);
        while let Some(heard) = hears.recv().await {
            pause = pause.max(heard.saturating_duration_since(last));
            last = last.max(heard);
        }
        // Besides, prompt and what was said are computed again.
        let bound = Duration::from_secs(5) + 4 * first;
        println!(
            "a {duty} worker killed: no token for {pause:.1?}; the first one of a prompt takes {first:.1?}"
        );
        assert!(pause < bound, "{pause:?}, at most {bound:?}");
        assert!(
            duty == Duty::Prefill || count("paceline_handed_pages_total") > before,
            "its pages were fetched"
        );
    }
    cluster.stop().await;
}
