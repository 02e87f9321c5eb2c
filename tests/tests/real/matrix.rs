//! What may not change a text, one by one, against a worker that has none of it: prefix cache,
//! preemption, batches, drafters; with penalties, stop strings, JSON schemas and several choices on.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use cluster::Role;
use futures::future::join_all;
use proto::v1::{
    self, generate_request::Prompt, generate_response::Event, inference_client::InferenceClient,
};
use serde_json::{Value, json};

use super::model::{Corrupted, Size, Weights};
use crate::support::{HANG, Node, coordinator, eventually, model_file, start_drafter, start_worker};

const MODEL: &str = "smollm2-135m";

/// Output tokens of an answer.
const TOKENS: u32 = 24;

struct Cluster {
    http: reqwest::Client,
    url: String,
    running: coordinator::Running,
    worker: Node,
}

impl Cluster {
    async fn start(weights: &Weights, size: Size, prefix_cache: bool) -> Self {
        let running = coordinator(MODEL, &weights.path).await;
        let mut config = worker::Config::default();
        config.engine.prefix_cache = prefix_cache;
        config.rank.slots = size.slots;
        config.rank.admin = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let grpc = Some(running.grpc_addr());
        let identity = weights.identity(Role::Worker, "worker-1");
        let worker = start_worker(config, identity, weights.constraints(), grpc, weights.sized(size)).await;
        let http = reqwest::Client::new();
        let url = format!("http://{}", running.http_addr());
        eventually("the worker joins", async || {
            let health = http.get(format!("{url}/health")).send().await;
            health.is_ok_and(|h| h.status().is_success())
        })
        .await;
        Self { http, url, running, worker }
    }

    /// The texts of all choices, and the whole answer.
    async fn ask(&self, body: &Value) -> (Vec<String>, Value) {
        let sent = self.http.post(format!("{}/v1/chat/completions", self.url)).json(body).timeout(HANG);
        let answer: Value = sent.send().await.unwrap().json().await.unwrap();
        let choices = answer["choices"].as_array().unwrap_or_else(|| panic!("{body} got {answer}"));
        let text = |c: &Value| {
            let (content, end) = (c["message"]["content"].as_str(), c["finish_reason"].as_str());
            format!("{}|{}", content.unwrap_or_default(), end.unwrap_or("nothing"))
        };
        (choices.iter().map(text).collect(), answer)
    }

    async fn ask_all(&self, bodies: &[Value], batch: usize) -> (Vec<Vec<String>>, Vec<Value>) {
        let mut all = Vec::new();
        for bodies in bodies.chunks(batch) {
            all.extend(join_all(bodies.iter().map(|body| self.ask(body))).await);
        }
        all.into_iter().unzip()
    }

    /// A counter of this process's `/metrics`.
    async fn metric(&self, name: &str) -> f64 {
        let url = format!("http://{}/metrics", self.worker.admin.unwrap());
        let page = self.http.get(url).send().await.unwrap().text().await.unwrap();
        page.lines()
            .filter(|l| l.starts_with(name))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    async fn has_drafter(&self) {
        let grpc = format!("http://{}", self.running.grpc_addr());
        eventually("the drafter joins", async || {
            let members = cli::status::members(&grpc).await.unwrap();
            members.iter().any(|m| m.record.role == Role::Drafter)
        })
        .await;
    }

    async fn stop(self) {
        assert_eq!(self.worker.drain().await.failed, []);
        let mut running = self.running;
        running.tasks().shutdown().abort();
        assert_eq!(running.join().await.failed, []);
    }
}

/// Requests with everything on that could trip over one of the changes.
fn bodies() -> Vec<Value> {
    // A common beginning of several pages, as a system prompt has.
    let system = "You are a helpful assistant. Answer in plain words, briefly, without a list, and never \
                  repeat the question. If you do not know the answer, say that you do not know it.";
    let base = |prompt: &str, more: Value| {
        let mut body = json!({
            "model": MODEL, "max_tokens": TOKENS, "seed": 5, "temperature": 0.8,
            "messages": [
                { "role": "system", "content": system },
                { "role": "user", "content": prompt },
            ],
        });
        let Value::Object(more) = more else { panic!("an object") };
        body.as_object_mut().unwrap().extend(more);
        body
    };
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": { "name": { "type": "string", "maxLength": 12 }, "age": { "type": "integer" } },
    });
    let format = json!({
        "type": "json_schema", "json_schema": { "name": "person", "strict": true, "schema": schema },
    });
    let penalties = json!({ "presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.2,
                "logit_bias": { "28": -5, "260": 2.5 } });
    vec![
        base("What is gravity?", json!({ "temperature": 0 })),
        base("What is gravity?", penalties.clone()),
        base("Name a person and an age.", json!({ "response_format": format, "max_tokens": 40 })),
        base(
            "Name another person.",
            json!({ "response_format": format, "temperature": 0, "max_tokens": 40 }),
        ),
        base("Tell me about the sea.", json!({ "n": 2 })),
        base("Tell me about the moon.", json!({ "stop": ["e m", "the", "."], "min_tokens": 4 })),
        base("Why is the sky blue?", json!({ "top_p": 0.9, "top_k": 40, "min_p": 0.02, "typical_p": 0.95 })),
        base("Count to ten.", json!({ "temperature": 0, "presence_penalty": 1.5, "logprobs": true })),
    ]
}

fn lockstep(bodies: &[Value], rule: &str) -> Vec<Value> {
    let speculation = json!({ "strategy": "lockstep", "k": 4, "deadline_ms": 500, "rule": rule });
    let with = |body: &Value| {
        let mut body = body.clone();
        body["speculation"] = speculation.clone();
        body
    };
    bodies.iter().map(with).collect()
}

fn sum(answers: &[Value], pointer: &str) -> u64 {
    answers.iter().filter_map(|a| a.pointer(pointer)?.as_u64()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn text_does_not_depend_on_cache_preemption_batch_or_drafter() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let bodies = bodies();

    // The reference: no prefix cache, one at a time, no drafter, pages for all.
    let plain = Cluster::start(&weights, Size::LARGE, false).await;
    let (reference, answers) = plain.ask_all(&bodies, 1).await;
    assert_eq!(sum(&answers, "/usage/prompt_tokens_details/cached_tokens"), 0);
    for (schema, answer) in reference[2..4].iter().zip(&answers[2..4]) {
        let (text, _) = schema[0].rsplit_once('|').unwrap();
        let person: BTreeMap<String, Value> =
            serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {answer}"));
        assert!(person["name"].is_string() && person["age"].is_i64(), "{text}");
    }
    assert_eq!(reference[4].len(), 2);
    assert_ne!(reference[4][0], reference[4][1], "two choices differ");
    assert_ne!(reference[0], reference[1], "penalties change the text");
    assert!(reference[5][0].ends_with("|stop"), "a stop string ended it: {:?}", reference[5]);
    assert_eq!(plain.ask_all(&bodies, 8).await.0, reference, "batch 8");
    plain.stop().await;

    // Prefix cache: the second round finds everything of the first.
    let cached = Cluster::start(&weights, Size::LARGE, true).await;
    for (round, batch) in [(1, 1), (2, 1), (3, 8)] {
        let (texts, answers) = cached.ask_all(&bodies, batch).await;
        assert_eq!(texts, reference, "prefix cache, round {round}");
        let hits = sum(&answers, "/usage/prompt_tokens_details/cached_tokens");
        assert!(hits > if round == 1 { 100 } else { 300 }, "round {round}: {hits} tokens from the cache");
    }
    // A prediction that is the answer, then one that is half of another.
    for (at, guess) in [(0, reference[0][0].as_str()), (7, reference[0][0].as_str())] {
        let mut body = bodies[at].clone();
        body["prediction"] = json!({ "type": "content", "content": guess.rsplit_once('|').unwrap().0 });
        let (text, answer) = cached.ask(&body).await;
        assert_eq!(text, reference[at], "prediction");
        let accepted = sum(&[answer], "/usage/completion_tokens_details/accepted_prediction_tokens");
        assert!(at != 0 || accepted > 10, "accepted {accepted} of the prediction");
    }

    // A drafter whose proposals are corrupted at random, under the same constraints and penalties.
    let (make, picks) = (weights.make(), std::sync::Arc::default());
    let liar = weights.identity(Role::Drafter, "drafter-liar");
    let grpc = Some(cached.running.grpc_addr());
    let drafter = start_drafter(drafter::Config::default(), liar, weights.constraints(), grpc, move || {
        Corrupted { model: make(), wrong: 20, picks }
    })
    .await;
    cached.has_drafter().await;
    // A strict drafter guesses the most likely token, which a draw at 0.8 is less often.
    for (rule, batch, enough) in [("coupled", 1, 40), ("coupled", 8, 40), ("strict", 8, 10)] {
        let (texts, answers) = cached.ask_all(&lockstep(&bodies, rule), batch).await;
        assert_eq!(texts, reference, "corrupted drafter, {rule}, batch {batch}");
        let drafted = sum(&answers, "/metrics/speculative_decoding/num_draft_tokens");
        let accepted = sum(&answers, "/metrics/speculative_decoding/num_accepted_draft_tokens");
        assert!((enough..drafted).contains(&accepted), "{rule}, batch {batch}: {accepted} of {drafted}");
    }
    assert_eq!(drafter.drain().await.failed, []);
    cached.stop().await;

    // Pages for two or three at a time, asked for by eight: they push each other out and come back. One
    // crowd may happen to fit; not each of them.
    for prefix_cache in [true, false] {
        let mut preempted = 0.0;
        for pages in [10, 12, 14] {
            let crowded = Cluster::start(&weights, Size { pages, ..Size::LARGE }, prefix_cache).await;
            let before = crowded.metric("paceline_num_preemptions").await;
            assert_eq!(crowded.ask_all(&bodies, 8).await.0, reference, "{pages} pages, cache {prefix_cache}");
            preempted += crowded.metric("paceline_num_preemptions").await - before;
            crowded.stop().await;
        }
        assert!(preempted > 0.0, "nothing was preempted, cache {prefix_cache}");
    }
}

/// A client that was cut off sends what it has as `committed` and gets the rest: at every token of an
/// answer whose stop string lies across tokens, with a seed that it never chose.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_at_every_cut() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let cluster = Cluster::start(&weights, Size::LARGE, true).await;
    let mut client =
        InferenceClient::connect(format!("http://{}", cluster.running.grpc_addr())).await.unwrap();
    let request = v1::GenerateRequest {
        model: MODEL.into(),
        prompt: Some(Prompt::Text("The sea is a place where".into())),
        sampling: Some(v1::SamplingParams {
            temperature: Some(0.7),
            presence_penalty: Some(0.5),
            repetition_penalty: Some(1.1),
            ..Default::default()
        }),
        max_tokens: Some(40),
        // With drafts a message has several tokens: a client that holds it holds them all.
        speculation: Some(v1::Speculation { strategy: v1::Strategy::None.into(), ..Default::default() }),
        ..Default::default()
    };
    let whole = read(&mut client, request.clone()).await;
    // From the middle of one token to the middle of a later one, far enough from the beginning.
    let (text, ends) = (whole.text(), whole.ends());
    let at = (ends[8] - 2..ends[ends.len() - 4]).find(|at| text.is_char_boundary(*at)).unwrap();
    let len = (6..).find(|len| text.is_char_boundary(at + len)).unwrap();
    let stop = text[at..at + len].to_owned();
    let stopping = v1::GenerateRequest { stop: vec![stop.clone()], seed: Some(whole.seed), ..request };
    let full = read(&mut client, stopping.clone()).await;
    let found = text.find(&stop).unwrap();
    assert_eq!(full.text(), text[..found], "the text before {stop:?}");
    assert_eq!(full.reason, v1::FinishReason::Stop as i32);
    assert!(full.pieces.len() > 4);
    for cut in 0..=full.pieces.len() {
        let (delivered, before): (Vec<u32>, Vec<&str>) =
            full.pieces[..cut].iter().map(|(id, text)| (*id, text.as_str())).unzip();
        let replay = v1::GenerateRequest { committed: delivered, attempt: 1, ..stopping.clone() };
        let rest = read(&mut client, replay).await;
        assert_eq!(before.concat() + &rest.text(), full.text(), "cut at {cut}, stop {stop:?}");
        assert_eq!((rest.reason, rest.seed), (full.reason, full.seed), "cut at {cut}");
        assert_eq!(rest.output, full.output, "cut at {cut}: completion tokens");
    }
    cluster.stop().await;
}

struct Read {
    seed: u64,
    /// Each token with the text that came with it.
    pieces: Vec<(u32, String)>,
    /// Text that came without a token, at the end.
    rest: String,
    reason: i32,
    output: u32,
}

impl Read {
    fn text(&self) -> String {
        self.pieces.iter().map(|(_, text)| text.as_str()).chain([self.rest.as_str()]).collect()
    }

    /// Bytes of text after each token.
    fn ends(&self) -> Vec<usize> {
        let lens = self.pieces.iter().map(|(_, text)| text.len());
        lens.scan(0, |sum, len| {
            *sum += len;
            Some(*sum)
        })
        .collect()
    }
}

async fn read(client: &mut InferenceClient<tonic::transport::Channel>, request: v1::GenerateRequest) -> Read {
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let mut read = Read { seed: 0, pieces: Vec::new(), rest: String::new(), reason: 0, output: 0 };
    while let Some(message) = stream.message().await.unwrap() {
        match message.event.unwrap() {
            Event::Accepted(accepted) => read.seed = accepted.seed,
            Event::Tokens(tokens) => match tokens.ids.split_last() {
                None => read.rest += &tokens.text,
                Some((last, ids)) => {
                    // Without drafts a message has one token; the text belongs to the last in any case.
                    read.pieces.extend(ids.iter().map(|id| (*id, String::new())));
                    read.pieces.push((*last, tokens.text));
                }
            },
            Event::Finish(finish) => {
                read.reason = finish.reason;
                read.output = finish.usage.unwrap().completion_tokens;
            }
        }
    }
    read
}
