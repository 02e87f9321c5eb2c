//! Prompts that another worker computes: the text is that of one worker, and whatever befalls the hand-off, too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::Duty;
use daemon::Ended;
use proto::pages::pages_client::PagesClient;
use proto::pages::{DescribeRequest, PrefillRequest};
use proto::reason::{Reason, parse};
use request::Strategy;
use transport::local::{Fault, Faults, Network};
use worker::pages::UNIT;

use super::nodes::{Target, Toy, VOCAB, at, drafter};
use super::question::Question;

const STALL: Duration = Duration::from_millis(400);

fn config(duty: Duty, prefix_cache: bool) -> worker::Config {
    let mut config = worker::Config::default();
    (config.pages.duty, config.pages.stall) = (duty, STALL);
    config.engine.prefix_cache = prefix_cache;
    // Chunks of two pages.
    config.engine.token_budget = Some(32);
    config
}

/// One that answers and one that computes prompts, over a network of this process.
struct Pair {
    network: Network,
    here: Target,
    there: Target,
}

impl Pair {
    async fn start(network: Network, step: Duration, prefix_cache: bool) -> Self {
        let toy = Toy { step, ..Toy::TARGET };
        let (a, b) = (network.fabric("here"), network.fabric("there"));
        let here = Target::over(Arc::new(a), "here", toy.clone(), config(Duty::Decode, prefix_cache)).await;
        let there = Target::over(Arc::new(b), "there", toy, config(Duty::Prefill, prefix_cache)).await;
        Self { network, here, there }
    }
}

/// Texts that begin differently.
fn prompt(n: u32, tokens: u32) -> Vec<u32> {
    let token = |i: u32| ((u64::from(n) << 32) | u64::from(i)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..tokens).map(|i| token(i + 1) as u32 % VOCAB).collect()
}

/// A counter of this process; other tests of it may add to it.
fn count(name: &str, label: &str) -> f64 {
    let (_, text) = telemetry::meters().render().unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn pages() -> f64 {
    count("paceline_handed_pages_total", "")
}

fn faults(reason: &str) -> f64 {
    count("paceline_hand_over_faults_total", &format!("reason=\"{reason}\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn text_does_not_depend_on_who_computed_the_prompt() {
    let drafter = drafter("drafter", Toy::DRAFTER).await;
    for prefix_cache in [true, false] {
        let pair = Pair::start(Network::new(), Duration::from_millis(1), prefix_cache).await;
        for strategy in [Strategy::None, Strategy::Draft] {
            for split in [true, false] {
                let before = pages();
                let mut reading = Vec::new();
                for n in 0..6 {
                    // Different texts in each combination: nothing is cached from the one before.
                    let text =
                        prompt(n + 10 * u32::from(split) + 20 * strategy.takes_drafter() as u32, 40 + 60 * n);
                    let mut question =
                        Question::new(&text, 40).strategy(strategy).drafted_by(&[at(&drafter)]);
                    if n % 2 == 1 {
                        question = question.sampled(0.8, 100 + u64::from(n));
                    }
                    if split {
                        question = question.prefilled_by(&pair.there);
                    }
                    reading.push(question.ask(&pair.here).await.right_end());
                }
                let ends = futures::future::join_all(reading).await;
                let hits: u32 = ends.iter().map(|end| end.usage.cached_tokens).sum();
                let drafted: u64 = ends.iter().map(|end| end.stats.accepted_tokens).sum();
                let what = format!("{strategy:?}, split {split}, prefix cache {prefix_cache}");
                let wanted: u32 = (0..6).map(|n| (39 + 60 * n) / 16).sum();
                if split {
                    assert_eq!(pages() - before, f64::from(wanted), "{what}");
                    assert_eq!(hits, wanted * 16, "{what}");
                } else {
                    assert_eq!((pages() - before, hits), (0.0, 0), "{what}");
                }
                assert_eq!(drafted > 0, strategy.takes_drafter(), "{what}: {drafted}");
            }
        }
        pair.here.empty().await;
        pair.there.empty().await;
    }
    assert_eq!(count("paceline_hand_over_faults_total", ""), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_travel_over_tcp_too() {
    let toy = Toy { step: Duration::from_millis(1), ..Toy::TARGET };
    let here = Target::with("here", toy.clone(), config(Duty::Mixed, true)).await;
    let there = Target::with("there", toy, config(Duty::Prefill, true)).await;
    let end = Question::new(&prompt(1, 300), 20).prefilled_by(&there).ask(&here).await.right_end().await;
    assert_eq!(end.usage.cached_tokens, 288);
    // Again, from the other's cache into ours that has it all.
    let end = Question::new(&prompt(1, 300), 20).prefilled_by(&there).ask(&here).await.right_end().await;
    assert_eq!(end.usage.cached_tokens, 288);
}

/// One hand-off with a fault and one without: for tests that look at metrics.
pub(super) async fn some() {
    let network = Network::with_faults(Faults::new(3, Fault::BitFlip, UNIT, 9).at_most(1));
    let pair = Pair::start(network, Duration::from_millis(1), true).await;
    for n in 0..2 {
        Question::new(&prompt(n, 400), 30).prefilled_by(&pair.there).ask(&pair.here).await.right().await;
    }
}

/// What a bad wire, or a bad memory, does: always the right text, and a counter each.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_on_the_way_is_a_shorter_hit_and_a_count() {
    for (fault, reason) in [
        (Fault::BitFlip, "damaged"),
        (Fault::Stale, "damaged"),
        (Fault::Reordered, "order"),
        (Fault::Truncated, "truncated"),
        (Fault::Dropped, "order"),
        (Fault::Hung, "hung"),
    ] {
        let network = Network::with_faults(Faults::new(3, fault, UNIT, 9).at_most(1));
        let pair = Pair::start(network, Duration::from_millis(1), true).await;
        let before = faults(reason);
        let started = Instant::now();
        let question = Question::new(&prompt(7, 400), 30).prefilled_by(&pair.there);
        let end = question.ask(&pair.here).await.right_end().await;
        assert_eq!(pair.network.injected(), 1, "{fault:?}");
        assert_eq!(faults(reason) - before, 1.0, "{fault:?}");
        let hit = end.usage.cached_tokens;
        assert!(hit < 384, "{fault:?}: a whole hit of {hit} in spite of it");
        assert!(started.elapsed() < Duration::from_secs(5), "{fault:?}: {:?}", started.elapsed());
        pair.here.is_well().await;
        pair.there.empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_worker_may_die_or_hang_at_any_time() {
    for (what, reasons) in [("killed", ["closed", "unreachable"]), ("hung", ["hung", "hung"])] {
        let pair = Pair::start(Network::new(), Duration::from_millis(30), true).await;
        let Pair { network, here, there } = pair;
        let before: f64 = reasons.iter().map(|reason| faults(reason)).sum();
        let question = Question::new(&prompt(3, 400), 20).prefilled_by(&there);
        let reading = question.ask(&here).await;
        // Some of its thirteen chunks are computed.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let struck = Instant::now();
        let _left = match what {
            "killed" => {
                network.kill("there");
                there.node.kill().await;
                None
            }
            _ => {
                network.hang("there");
                Some(there)
            }
        };
        here.hurry();
        reading.right().await;
        assert!(struck.elapsed() < Duration::from_secs(5), "{what}: {:?}", struck.elapsed());
        let after: f64 = reasons.iter().map(|reason| faults(reason)).sum();
        assert!(after > before, "{what}: it is counted");
        here.is_well().await;
    }
}

/// Nobody there at all, or one that does not take it.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_take_the_prompt_costs_nothing_but_time() {
    let pair = Pair::start(Network::new(), Duration::from_millis(1), true).await;
    let ask = |n| Question::new(&prompt(n, 200), 10).prefilled_by(&pair.there);
    let mut stale = ask(1);
    let candidate = stale.0.prefill.as_mut().unwrap();
    candidate.incarnation.0 += 1;
    let before = faults("refused");
    stale.ask(&pair.here).await.right().await;
    // A worker for decodes computes no prompts for others.
    Question::new(&prompt(2, 200), 10).prefilled_by(&pair.here).ask(&pair.there).await.right().await;
    assert_eq!(faults("refused") - before, 2.0);
    let mut nobody = ask(3);
    nobody.0.prefill.as_mut().unwrap().endpoint = cluster::Endpoint::new("http://127.0.0.1:1").unwrap();
    let before = faults("unreachable");
    nobody.ask(&pair.here).await.right().await;
    assert_eq!(faults("unreachable") - before, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_during_a_hand_off_leaves_nothing() {
    let pair = Pair::start(Network::new(), Duration::from_millis(20), true).await;
    let reading = Question::new(&prompt(3, 600), 20).prefilled_by(&pair.there).ask(&pair.here).await;
    tokio::time::sleep(Duration::from_millis(120)).await;
    drop(reading);
    pair.there.empty().await;
    pair.here.is_well().await;
}

/// It leaves when its pages are fetched, not before; new prompts it refuses.
#[tokio::test(flavor = "multi_thread")]
async fn a_draining_prefill_worker_waits_until_its_pages_are_fetched() {
    let pair = Pair::start(Network::new(), Duration::from_millis(30), true).await;
    let Pair { here, there, network: _network } = pair;
    let question = |n| Question::new(&prompt(n, 400), 20).prefilled_by(&there);
    let (first, second) = (question(1), question(2));
    let reading = first.ask(&here).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    there.node.begin_drain();
    let before = faults("refused");
    let refused = second.ask(&here).await;
    let (end, ended) = tokio::join!(reading.right_end(), there.node.drain());
    assert_eq!(end.usage.cached_tokens, 384, "all its pages came");
    assert_eq!(ended, Ended { drained: true, ..Ended::default() });
    here.hurry();
    refused.right().await;
    assert_eq!(faults("refused") - before, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_question_for_pages_is_named() {
    let pair = Pair::start(Network::new(), Duration::from_millis(1), true).await;
    let record = &pair.there.node.record;
    let channel = daemon::grpc::dial(&record.endpoint, STALL).unwrap().connect().await.unwrap();
    let mut client = PagesClient::new(channel);
    let good = PrefillRequest {
        request_id: "r".into(),
        transfer: 1,
        incarnation: record.incarnation.0,
        fingerprint: record.fingerprint.clone(),
        tokens: prompt(1, 100),
        ..Default::default()
    };
    for (bad, reason, field) in [
        (PrefillRequest { transfer: 0, ..good.clone() }, Reason::InvalidField, "transfer"),
        (PrefillRequest { incarnation: 77, ..good.clone() }, Reason::StaleIncarnation, "incarnation"),
        (
            PrefillRequest { fingerprint: "fp_other".into(), ..good.clone() },
            Reason::InvalidField,
            "fingerprint",
        ),
        (PrefillRequest { tokens: vec![VOCAB; 40], ..good.clone() }, Reason::InvalidField, "prompt"),
        (PrefillRequest { tokens: vec![1; 16], ..good.clone() }, Reason::InvalidField, "prompt"),
    ] {
        let failure = parse(&client.prefill(bad).await.map(|_| ()).unwrap_err());
        assert_eq!((failure.reason, failure.field.as_deref()), (reason, Some(field)), "{failure:?}");
    }
    let described = client.describe(DescribeRequest::default()).await.unwrap_err();
    assert_eq!(parse(&described).reason, Reason::NotBuilt);
    // One that never opens its link is forgotten.
    drop(client.prefill(good).await.unwrap());
    pair.there.empty().await;
}
