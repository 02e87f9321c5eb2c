//! Every exact strategy, on real weights: the text is plain decoding's, byte for byte, and drafts of each were
//! accepted and rejected on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::Role;
use engine::{Engine, Settings};
use model::CpuModel;
use request::{Del, Request, Sampling, Source, Speculation, Strategy, TokenId};
use serde_json::{Value, json};

use super::exactness::{Cluster, DRAWS, MODEL, speculation, texts};
use super::link::{self, Dice, Faults, STRATEGIES, Setup, Watched, drive};
use super::model::{Corrupted, Steady, Weights};
use crate::support::{Link, Proxy, model_file, start_drafter};

/// Texts that repeat themselves, each other, or neither.
const PROMPTS: [&str; 4] = [
    "Repeat this list three times: red, green, blue, red, green, blue, red, green, blue, red,",
    "Write it again with x renamed to y: def add(x, z):\n    return x + z\n\ndef sub(x, z):\n    return x - z\n",
    "Count from one to twenty in words.",
    "Why is the sky blue?",
];

fn bodies(strategy: &Value) -> Vec<Value> {
    let body = |draw: (f64, u64), prompt: &str| {
        json!({
            "model": MODEL, "messages": [{ "role": "user", "content": prompt }],
            "temperature": draw.0, "seed": draw.1, "max_tokens": 40, "speculation": strategy,
        })
    };
    DRAWS.iter().flat_map(|draw| PROMPTS.map(|prompt| body(*draw, prompt))).collect()
}

/// Over HTTP, with a drafter that is often wrong, behind a link of 2 to 4 ms there and back.
#[tokio::test(flavor = "multi_thread")]
async fn every_strategy_gives_the_plain_text() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let make = weights.make();
    let cluster = Cluster::with(&weights, 512, move || Steady(make())).await;
    let reference = cluster.ask(bodies(&json!({ "strategy": "none" })), 1).await;
    let drafted = speculation(&reference).0;
    assert_eq!(drafted, 0, "plain decoding verifies nothing");
    let reference = texts(&reference);
    assert!(reference.iter().all(|text| text.len() > 20), "{reference:?}");

    let (proxy, forward) = Proxy::bind().await.unwrap();
    let mut config = drafter::Config::default();
    config.rank.advertise = Some(format!("http://{}", proxy.address));
    let identity = weights.identity(Role::Drafter, "drafter-liar");
    let (make, picks) = (weights.make(), Arc::default());
    let corrupted = move || Corrupted { model: make(), wrong: 25, picks };
    let grpc = Some(cluster.grpc());
    let drafter = start_drafter(config, identity, weights.constraints(), grpc, corrupted).await;
    forward(drafter.address);
    proxy.set(Link::Delayed { one_way: Duration::from_millis(1), jitter: Duration::from_millis(1) });
    cluster.has_drafter().await;

    let lockstep = |rule: &str| json!({ "strategy": "lockstep", "k": 4, "deadline_ms": 2000, "rule": rule });
    for (strategy, must) in [
        (json!({ "strategy": "ngram" }), "ngram"),
        (json!({ "strategy": "suffix" }), "suffix"),
        (json!({ "strategy": "recycle" }), "recycle"),
        (json!({ "strategy": "auto" }), "any"),
        // On a drafter's cores a free-running one may come too late for every step: what it did is asserted
        // under lockstep, where it is waited for.
        (json!({ "strategy": "pearl" }), ""),
        (lockstep("coupled"), "draft"),
        (lockstep("strict"), "draft"),
        // Its lower layers were not trained to say anything: that is found out once for all answers, and changes no
        // text. The last ones are often right.
        (json!({ "strategy": "del" }), "itself"),
        (json!({ "strategy": "del", "exit": 4, "k": 2 }), "wrong"),
        (json!({ "strategy": "del", "exit": 29, "k": 4 }), "del"),
        // Less than the prompts have.
        (json!({ "strategy": "window", "sink": 4, "recent": 24, "k": 4 }), "window"),
    ] {
        let answers = cluster.ask(bodies(&strategy), 4).await;
        assert_eq!(texts(&answers), reference, "{strategy}");
        let (drafted, accepted, histogram) = speculation(&answers);
        if must.is_empty() {
            continue;
        }
        if must == "wrong" {
            // Told to, it drafts in every answer, and is refused.
            assert!(
                drafted >= 2 * answers.len() as u64 && accepted < drafted / 2,
                "{strategy}: {accepted} of {drafted}"
            );
            continue;
        }
        if must == "itself" {
            assert!(drafted > 0, "{strategy}");
            continue;
        }
        assert!(accepted > 10 && drafted > accepted, "{strategy}: {accepted} of {drafted}");
        let depths = histogram.iter().filter(|steps| **steps > 0).count();
        assert!(depths >= 3, "{strategy}: steps by what they accepted: {histogram:?}");
        if ["draft", "del", "window"].contains(&must) {
            // A step verifies four drafts, so one that accepts fewer rejected at that depth.
            assert!(histogram[..4].iter().all(|steps| *steps > 0), "{strategy}: {histogram:?}");
        }
        if !["draft", "any"].contains(&must) {
            let sources: Vec<&str> =
                answers.iter().filter_map(|a| a.speculation["strategy"].as_str()).collect();
            assert!(sources.contains(&must), "{strategy}: {sources:?}");
        }
    }
    assert_eq!(drafter.drain().await.failed, []);
    cluster.stop().await;
}

/// Two engines of the real weights on virtual time: strategies change at random in the middle of answers, and the
/// drafter lies, is late, stands still, loses frames or dies.
#[test]
fn the_text_does_not_depend_on_when_the_strategy_changes() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let tokenizer = text::Tokenizer::open(&file).unwrap();
    let later = Arc::default();
    let engine = || Engine::new(Watched::new(weights.make()(), &later), Settings::default());
    let requests: Vec<Request> = (0..8)
        .map(|i| {
            let prompt: Vec<u32> =
                tokenizer.encode(PROMPTS[i % 4], false).unwrap().into_iter().map(|id| id.0).collect();
            let sampling = if i < 4 { Sampling::GREEDY } else { link::sampled(i as u64, 0.8) };
            let mut request = link::request(&prompt, 32, sampling, Speculation::default());
            request.speculation.strategy = match i {
                // After so many layers it is right at times.
                3 => Strategy::Del(Del { fixed: Some((29, 3)) }),
                _ => STRATEGIES[i % STRATEGIES.len()],
            };
            request
        })
        .collect();
    type Pair = Setup<Watched<CpuModel>, Corrupted>;
    let setup = |drafter: Option<Engine<Corrupted>>, faults, kill_after, switch| -> Pair {
        Setup { target: engine(), drafter, faults, kill_after, switch, constraint: None }
    };
    let plain: Vec<Request> = requests
        .iter()
        .map(|r| Request {
            speculation: Speculation { strategy: Strategy::None, ..r.speculation },
            ..r.clone()
        })
        .collect();
    let reference = drive(&plain, setup(None, Faults::default(), None, 0), &mut Dice(0)).answers;
    let output = |answers: &[link::Answer]| -> Vec<Vec<TokenId>> {
        answers.iter().map(|a| a.output.clone()).collect()
    };
    let mut sources: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (name, faults, kill_after) in [
        ("late", Faults { delay: 40, reorder: 20, ..Faults::default() }, None),
        ("lying", Faults { lie: 30, lose: 15, double: 10, pause: 20, ..Faults::default() }, None),
        ("killed", Faults::default(), Some(15)),
    ] {
        let drafter = Engine::new(
            Corrupted { model: weights.make()(), wrong: 20, picks: Arc::default() },
            Settings::default(),
        );
        let ran = drive(&requests, setup(Some(drafter), faults, kill_after, 60), &mut Dice(5));
        assert_eq!(output(&ran.answers), output(&reference), "a drafter that is {name}");
        for source in Source::ALL {
            let (right, wrong) = sources.entry(source.name()).or_default();
            for did in ran.answers.iter().map(|a| a.stats.of(source)) {
                *right += did.accepted_tokens;
                *wrong += did.draft_tokens - did.accepted_tokens;
            }
        }
    }
    for source in [Source::Drafter, Source::Ngram, Source::Suffix, Source::Recycle, Source::Del] {
        let (right, wrong) = sources[source.name()];
        assert!(right > 0 && wrong > 0, "{}: {right} right, {wrong} wrong", source.name());
    }

    // Trees, from what is recycled and from what followed before, in answers long enough to repeat.
    let long = |strategy: Option<Strategy>| -> Vec<Request> {
        let long = requests.iter().enumerate().map(|(i, request)| {
            let mut long = request.clone();
            long.limits.max_tokens = 64;
            long.speculation.strategy =
                strategy.unwrap_or(if i % 4 == 0 { Strategy::Suffix } else { Strategy::Recycle });
            long
        });
        long.collect()
    };
    let reference = drive(&long(Some(Strategy::None)), setup(None, Faults::default(), None, 0), &mut Dice(0));
    let before = later.load(Ordering::Relaxed);
    let ran = drive(&long(None), setup(None, Faults::default(), None, 0), &mut Dice(0));
    assert_eq!(output(&ran.answers), output(&reference.answers), "trees");
    let later = later.load(Ordering::Relaxed) - before;
    assert!(later > 5, "drafts that stood and were not the first of their siblings: {later}");
}

/// A drafter that draws of a few thousand tokens is wrong where the target takes another one, and nowhere is the text:
/// coupled drafts need no law of the drafter's.
#[test]
fn a_drafters_shortlist_changes_no_text() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let tokenizer = text::Tokenizer::open(&file).unwrap();
    let later = Arc::default();
    let requests = |strategy: Strategy| -> Vec<Request> {
        let request = |i: usize| {
            let prompt: Vec<u32> =
                tokenizer.encode(PROMPTS[i % 4], false).unwrap().into_iter().map(|id| id.0).collect();
            let sampling = if i < 4 { Sampling::GREEDY } else { link::sampled(i as u64, 0.8) };
            link::request(&prompt, 40, sampling, Speculation { strategy, ..Speculation::default() })
        };
        (0..8).map(request).collect()
    };
    let setup = |drafter: Option<Engine<CpuModel>>| Setup {
        target: Engine::new(Watched::new(weights.make()(), &later), Settings::default()),
        drafter,
        faults: Faults::default(),
        kill_after: None,
        switch: 0,
        constraint: None,
    };
    let reference = drive(&requests(Strategy::None), setup(None), &mut Dice(0)).answers;
    let drafter = Engine::new(weights.shortlisted(3000), Settings::default());
    let ran = drive(&requests(Strategy::Draft), setup(Some(drafter)), &mut Dice(0)).answers;
    let (mut right, mut wrong) = (0, 0);
    for (ran, plain) in ran.iter().zip(&reference) {
        assert_eq!(ran.output, plain.output);
        let did = ran.stats.of(Source::Drafter);
        right += did.accepted_tokens;
        wrong += did.draft_tokens - did.accepted_tokens;
    }
    // Without a list this drafter, which is the target, is never wrong.
    assert!(right > 20 && wrong > 20, "{right} right, {wrong} wrong");
}

/// The same on the coder pair, from the 16 HumanEval prompts of the recorded trace: greedy and at T=0.8, strategies that
/// change at random, drafters that lie, are late, lose frames or die. Some ten minutes, so it runs when it is asked
/// for: `cargo nextest run -p tests --run-ignored only coder_pair` (docs/benchmarks.md says how it went).
#[test]
#[ignore = "takes ten minutes; run by name"]
fn the_text_of_the_coder_pair_does_not_depend_on_when_the_strategy_changes() {
    let (Some(target), Some(drafter)) = (model_file("coder-1.5b"), model_file("coder-0.5b")) else { return };
    let (target, drafter) = (Weights::open("coder-1.5b", &target), Weights::open("coder-0.5b", &drafter));
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks/traces/humaneval-coder-pair.jsonl");
    let trace = cli::bench::compare::trace::File::read(trace.as_ref()).unwrap();
    assert_eq!(trace.answers.len(), 16);
    for (half, answers) in trace.answers.chunks(8).enumerate() {
        let requests: Vec<Request> = answers
            .iter()
            .enumerate()
            .flat_map(|(i, answer)| {
                let prompt: Vec<u32> = answer.recorded.prompt.iter().map(|id| id.0).collect();
                [Sampling::GREEDY, link::sampled(i as u64, 0.8)].map(|sampling| {
                    let mut request = link::request(&prompt, 24, sampling, Speculation::default());
                    request.speculation.strategy = STRATEGIES[i % STRATEGIES.len()];
                    request
                })
            })
            .collect();
        let plain: Vec<Request> = requests
            .iter()
            .map(|r| Request {
                speculation: Speculation { strategy: Strategy::None, ..r.speculation },
                ..r.clone()
            })
            .collect();
        let setup = |drafter, faults, kill_after, switch| Setup {
            target: Engine::new(target.make()(), Settings::default()),
            drafter,
            faults,
            kill_after,
            switch,
            constraint: None,
        };
        let reference = drive(&plain, setup(None, Faults::default(), None, 0), &mut Dice(0)).answers;
        let mut sources: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (name, faults, kill_after) in [
            ("lying", Faults { lie: 30, lose: 15, double: 10, delay: 20, ..Faults::default() }, None),
            ("killed", Faults::default(), Some(40)),
        ] {
            let corrupted = Corrupted { model: drafter.make()(), wrong: 10, picks: Arc::default() };
            let drafter = Engine::new(corrupted, Settings::default());
            let ran = drive(&requests, setup(Some(drafter), faults, kill_after, 60), &mut Dice(5));
            for (ran, plain) in ran.answers.iter().zip(&reference) {
                assert_eq!(ran.output, plain.output, "half {half}, a drafter that is {name}");
            }
            for source in Source::ALL {
                let (right, wrong) = sources.entry(source.name()).or_default();
                for did in ran.answers.iter().map(|a| a.stats.of(source)) {
                    *right += did.accepted_tokens;
                    *wrong += did.draft_tokens - did.accepted_tokens;
                }
            }
        }
        println!("half {half}: right and wrong by source {sources:?}");
        for source in [Source::Drafter, Source::Ngram, Source::Suffix, Source::Recycle] {
            let (right, wrong) = sources[source.name()];
            assert!(right > 0 && wrong > 0, "{}: {right} right, {wrong} wrong", source.name());
        }
    }
}
