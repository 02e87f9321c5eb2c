//! Which of several drafters a worker takes, and how it works with one by where that says it computes.

use std::time::Duration;

use cluster::{Site, SiteDevice, VocabHash};
use proto::Candidate;
use proto::frame::{FromDrafter, FromWorker, Hello};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::fake_drafter::{FakeDrafter, Reaction, Talk, silent};
use super::nodes::{Device, Target, Toy, at, drafter, drafter_computing_on, through_proxy};
use super::question::Question;
use crate::support::{HANG, Link, Node, Proxy};

/// A way that takes longer than a step of the target.
const FAR: Link = Link::Delayed { one_way: Duration::from_millis(40), jitter: Duration::ZERO };

/// A drafter that tells when it is paired, and when a session is opened.
async fn telling(id: &str, tell: mpsc::Sender<&'static str>) -> FakeDrafter {
    FakeDrafter::start(id, move |mut talk| {
        let tell = tell.clone();
        async move {
            talk.hello(1).await;
            let _ = tell.send("paired").await;
            talk.opened().await;
            let _ = tell.send("opened").await;
            silent(talk).await;
        }
    })
    .await
}

#[tokio::test]
async fn the_near_drafter_is_taken_though_the_far_one_is_named_first() {
    let worker = Target::start("worker", Toy { step: Duration::from_millis(20), ..Toy::TARGET }).await;
    let near = drafter("near", Toy::DRAFTER).await;
    let (tell, mut told) = mpsc::channel(16);
    let fake = telling("far", tell).await;
    let (proxy, connect) = Proxy::bind().await.unwrap();
    connect(fake.candidate.endpoint.authority().parse().unwrap());
    proxy.set(FAR);
    let endpoint = cluster::Endpoint::try_from(proxy.address).unwrap();
    let far = Candidate { endpoint, ..fake.candidate.clone() };
    let ask = async |n| {
        let question = Question::numbered(n, 48).drafted_by(&[far.clone(), at(&near)]);
        let accepted = question.ask(&worker).await.right().await.accepted_tokens;
        assert!(accepted > 0, "the near one drafted for question {n}");
    };
    // The far one is not even linked when these are asked.
    ask(1).await;
    assert_eq!(timeout(HANG, told.recv()).await.unwrap(), Some("paired"));
    // Now it is, and measured.
    sleep(Duration::from_millis(500)).await;
    ask(2).await;
    ask(3).await;
    assert!(told.try_recv().is_err(), "the far one was asked");
}

/// The other way round, or the one above would hold of a worker that takes whoever is named last.
#[tokio::test]
async fn the_near_drafter_is_taken_when_it_is_named_first() {
    let worker = Target::start("worker", Toy { step: Duration::from_millis(20), ..Toy::TARGET }).await;
    let (tell, mut told) = mpsc::channel(16);
    let near = telling("near", tell).await;
    let behind = drafter("far", Toy::DRAFTER).await;
    let (proxy, far) = through_proxy(&behind).await;
    proxy.set(FAR);
    let question = Question::numbered(1, 48).drafted_by(&[near.candidate.clone(), far]);
    question.ask(&worker).await.right().await;
    for word in ["paired", "opened"] {
        assert_eq!(timeout(HANG, told.recv()).await.unwrap(), Some(word));
    }
}

#[tokio::test]
async fn a_far_drafter_is_taken_when_the_near_one_is_full() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let near = drafter("near", Toy { slots: 1, ..Toy::DRAFTER }).await;
    let behind = drafter("far", Toy::DRAFTER).await;
    let (proxy, far) = through_proxy(&behind).await;
    proxy.set(Link::Delayed { one_way: Duration::from_millis(10), jitter: Duration::ZERO });
    let candidates = [far, at(&near)];
    let mut first = Question::numbered(1, 1500).drafted_by(&candidates).ask(&worker).await;
    first.until_drafted().await;
    let mut second = Question::numbered(2, 1500).drafted_by(&candidates).ask(&worker).await;
    second.until_drafted().await;
    worker.hurry();
    tokio::join!(first.right(), second.right());
}

/// On the target's own device a drafter is asked for drafts one by one; elsewhere it runs ahead from the start.
#[tokio::test]
async fn how_a_drafter_works_follows_where_it_says_that_it_computes() {
    let cores = |machine: &str, cores: std::ops::Range<u32>| {
        let threads = cores.len() as u32;
        let device = SiteDevice::Cores { cores: cores.collect(), threads };
        Some(Site { machine: machine.into(), device })
    };
    let here = || cores("here", 0..2);
    for (case, mine, theirs, setting, turns) in [
        ("an old drafter", here(), None, None, false),
        ("the same cores", here(), here(), None, true),
        ("an old worker's site", None, here(), None, false),
        ("cores of its own", here(), cores("here", 2..4), None, false),
        ("another machine", here(), cores("there", 0..2), None, false),
        ("one GPU", gpu("0"), gpu("0"), None, true),
        ("two GPUs", gpu("0"), gpu("1"), None, false),
        ("one GPU, told to run ahead", gpu("0"), gpu("0"), Some(false), false),
        ("told to run ahead", here(), here(), Some(false), false),
        ("told to take turns", here(), None, Some(true), true),
        ("two GPUs, told to take turns", gpu("0"), gpu("1"), Some(true), true),
    ] {
        let mut config = worker::Config::default();
        config.engine.drafters_take_turns = setting;
        let worker = Target::computing_on(mine, Toy::TARGET, config).await;
        let (tell, mut told) = mpsc::channel(16);
        let fake = FakeDrafter::start("drafter", move |mut talk: Talk| {
            let (tell, site) = (tell.clone(), theirs.clone());
            async move {
                let Some(FromWorker::Hello(worker)) = talk.hear().await else { panic!("no hello") };
                talk.say(FromDrafter::Hello(Hello { site, ..worker })).await;
                talk.opened().await;
                let _ = tell.send(talk.window).await;
                silent(talk).await;
            }
        })
        .await;
        let mut question = Question::numbered(3, 24);
        question.0.drafters = vec![fake.candidate.clone()];
        question.ask(&worker).await.right().await;
        let window = timeout(HANG, told.recv()).await.unwrap().unwrap();
        assert_eq!(window == 1, turns, "{case}: opened with {window}");
    }
}

fn gpu(name: &str) -> Option<Site> {
    let device = SiteDevice::Gpus([name.to_owned()].into());
    Some(Site { machine: "here".into(), device })
}

/// A worker and a drafter that say that they compute on one GPU, and do on this device.
async fn on_one_gpu(device: Device) -> (Target, Node) {
    let on = |toy: Toy| Toy { device: Some(device.clone()), ..toy };
    let target = on(Toy { step: Duration::from_millis(10), ..Toy::TARGET });
    let worker = Target::computing_on(gpu("0"), target, worker::Config::default()).await;
    let drafter = on(Toy { step: Duration::from_millis(2), ..Toy::DRAFTER });
    (worker, drafter_computing_on(gpu("0"), drafter).await)
}

async fn ask(worker: &Target, drafter: &Node, n: u32) {
    let mut question = Question::numbered(n, 96);
    question.0.drafters = vec![at(drafter)];
    question.ask(worker).await.right().await;
}

/// For the test of all metrics: steps with a drafter on the worker's GPU.
pub(super) async fn some() {
    let (worker, drafter) = on_one_gpu(Device::new(1.0)).await;
    ask(&worker, &drafter, 1).await;
}

/// What part of the worker's steps its drafter drafted beside, once so many questions have been answered.
async fn ahead_on(device: Device, questions: u32) -> f64 {
    let (worker, drafter) = on_one_gpu(device).await;
    let mut counted = [0.0; 2];
    for n in 0..2 * questions {
        if n == questions {
            counted = steps_by_way();
        }
        ask(&worker, &drafter, n).await;
    }
    let steps = std::iter::zip(steps_by_way(), counted).map(|(now, before)| now - before);
    let [turns, ahead] = steps.collect::<Vec<_>>().try_into().unwrap();
    ahead / (turns + ahead)
}

fn steps_by_way() -> [f64; 2] {
    let text = telemetry::meters().render().unwrap().1;
    ["turns", "ahead"].map(|way| {
        let name = format!(r#"paceline_shared_gpu_steps_total{{model="toy",way="{way}"}} "#);
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    })
}

/// Target and drafter get the GPU one after the other and lose by each change: both together are slower than in turn.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_gpu_that_is_shared_by_slices_turns_are_found_to_be_faster() {
    let ahead = ahead_on(Device::new(1.6), 6).await;
    assert!(ahead < 0.4, "{ahead} of the steps were made beside drafts");
}

/// They compute beside each other as if each were alone: then waiting for drafts is time lost.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_gpu_with_room_for_both_running_ahead_is_found_to_be_faster() {
    let ahead = ahead_on(Device::new(0.5), 6).await;
    assert!(ahead > 0.6, "{ahead} of the steps were made beside drafts");
}

#[tokio::test]
async fn a_drafter_with_an_absurd_site_is_left() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let (tell, mut told) = mpsc::channel(16);
    let fake = FakeDrafter::start("drafter", move |mut talk: Talk| {
        let tell = tell.clone();
        async move {
            let Some(FromWorker::Hello(worker)) = talk.hear().await else { panic!("no hello") };
            let device = SiteDevice::Cores { cores: (0..5000).collect(), threads: 1 };
            let site = Some(Site { machine: "m".into(), device });
            talk.say(FromDrafter::Hello(Hello { site, vocab_hash: VocabHash([1; 32]), ..worker })).await;
            let _ = tell.send(talk.reaction().await).await;
        }
    })
    .await;
    let question = Question::numbered(3, 48).drafted_by(std::slice::from_ref(&fake.candidate));
    let stats = question.ask(&worker).await.right().await;
    assert_eq!(timeout(HANG, told.recv()).await.unwrap(), Some(Reaction::LeftStream));
    assert_eq!(stats.accepted_tokens, 0);
}
