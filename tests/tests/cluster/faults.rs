//! A drafter that dies, comes back, stalls or is far away: the text goes on unharmed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cluster::{Incarnation, NodeId};
use proto::Candidate;
use request::Strategy;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::fake_drafter::{FakeDrafter, silent};
use super::nodes::{Target, Toy, at, drafter, through_proxy};
use super::question::{LOCKSTEP, Question, Reading};
use crate::support::{HANG, Link};

/// Long enough that the target is never through before the fault.
const LONG: u32 = 2000;

async fn until_plain(answer: &mut Reading) {
    answer
        .until("it went on plainly", |r| r.drafted.len() > 20 && !r.drafted.ends_with(&[true]) && plain(r))
        .await;
}

/// Its last tokens were no drafts.
fn plain(answer: &Reading) -> bool {
    answer.drafted.iter().rev().take(20).all(|drafted| !drafted)
}

async fn until_drafted_again(answer: &mut Reading) {
    let before = answer.drafted.len();
    answer.until("it was drafted for again", |r| r.drafted[before..].contains(&true)).await;
}

#[tokio::test]
async fn killed_after_an_accepted_draft() {
    for strategy in [Strategy::Draft, LOCKSTEP] {
        let worker = Target::start("worker", Toy::TARGET).await;
        let drafter = drafter("drafter", Toy::DRAFTER).await;
        let ask = |n| Question::numbered(n, LONG).strategy(strategy).drafted_by(&[at(&drafter)]);
        let (mut greedy, mut sampled) = (ask(2).ask(&worker).await, ask(3).ask(&worker).await);
        tokio::join!(greedy.until_drafted(), sampled.until_drafted());
        let ended = drafter.kill().await;
        assert_eq!(ended.failed, []);
        tokio::join!(until_plain(&mut greedy), until_plain(&mut sampled));
        worker.hurry();
        tokio::join!(greedy.right(), sampled.right());
        worker.is_well().await;
    }
}

#[tokio::test]
async fn a_killed_drafter_is_not_waited_for() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy::DRAFTER).await;
    let strategy = Strategy::Lockstep { k: 4, deadline: Duration::from_secs(10) };
    let question = Question::numbered(3, LONG).strategy(strategy).drafted_by(&[at(&drafter)]);
    let mut answer = question.ask(&worker).await;
    answer.until_drafted().await;
    drafter.kill().await;
    worker.hurry();
    let killed = Instant::now();
    answer.right().await;
    assert!(killed.elapsed() < Duration::from_secs(8), "a step waited for a drafter that is gone");
}

#[tokio::test]
async fn a_restarted_drafter_is_used_for_new_requests() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let first = drafter("drafter", Toy::DRAFTER).await;
    let mut old = Question::numbered(3, LONG).drafted_by(&[at(&first)]).ask(&worker).await;
    old.until_drafted().await;
    first.kill().await;
    until_plain(&mut old).await;

    let second = drafter("drafter", Toy::DRAFTER).await;
    let mut new = Question::numbered(5, LONG).drafted_by(&[at(&second)]).ask(&worker).await;
    new.until_drafted().await;
    worker.hurry();
    tokio::join!(old.right(), new.right());
}

/// A sequence that was placed before its drafter's restart asks for the old life of it, again and
/// again. That must not cost the others the link to the new one.
#[tokio::test]
async fn asking_for_an_old_incarnation_does_not_break_the_link_to_the_new_one() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let streams = Arc::new(AtomicU32::new(0));
    let (tell, mut granted) = mpsc::channel(8);
    let fake = FakeDrafter::start("drafter", {
        let streams = streams.clone();
        move |mut talk| {
            streams.fetch_add(1, Ordering::SeqCst);
            let tell = tell.clone();
            async move {
                talk.hello(1).await;
                for _ in 0..2 {
                    talk.opened().await;
                    talk.grant().await;
                    let _ = tell.send(()).await;
                }
                silent(talk).await
            }
        }
    })
    .await;
    let ask =
        |n, candidate: &Candidate| Question::numbered(n, LONG).drafted_by(std::slice::from_ref(candidate));
    let one = ask(1, &fake.candidate).ask(&worker).await;
    timeout(HANG, granted.recv()).await.unwrap().unwrap();
    let stale =
        Candidate { incarnation: Incarnation(fake.candidate.incarnation.0 - 1), ..fake.candidate.clone() };
    let mut old = ask(2, &stale).ask(&worker).await;
    // Enough for it to have asked more than once.
    old.on(100).await;
    let two = ask(3, &fake.candidate).ask(&worker).await;
    timeout(HANG, granted.recv()).await.unwrap().unwrap();
    assert_eq!(streams.load(Ordering::SeqCst), 1, "one stream carries all sequences of a pair");
    worker.hurry();
    tokio::join!(one.right(), old.right(), two.right());
}

#[tokio::test]
async fn paused_and_resumed() {
    for strategy in [Strategy::Draft, LOCKSTEP] {
        let worker = Target::start("worker", Toy::TARGET).await;
        let drafter = drafter("drafter", Toy { noise: 0.05, ..Toy::DRAFTER }).await;
        let (proxy, candidate) = through_proxy(&drafter).await;
        let question = Question::numbered(3, LONG).strategy(strategy).drafted_by(&[candidate]);
        let mut answer = question.ask(&worker).await;
        answer.until_drafted().await;
        proxy.set(Link::Paused);
        if strategy == LOCKSTEP {
            // It waits one deadline out, and goes on without.
            answer.on(8).await;
        } else {
            until_plain(&mut answer).await;
        }
        proxy.set(Link::Flows);
        until_drafted_again(&mut answer).await;
        worker.hurry();
        answer.right().await;
    }
}

#[tokio::test]
async fn cut_off_and_back() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy::DRAFTER).await;
    let (proxy, candidate) = through_proxy(&drafter).await;
    let mut answer = Question::numbered(3, LONG).drafted_by(&[candidate]).ask(&worker).await;
    answer.until_drafted().await;
    proxy.set(Link::Cut);
    until_plain(&mut answer).await;
    proxy.set(Link::Flows);
    until_drafted_again(&mut answer).await;
    worker.hurry();
    answer.right().await;
}

/// It knows the prompt only, and asks for what was committed since; no step waits for that.
#[tokio::test]
async fn a_drafter_that_comes_late_catches_up() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy::DRAFTER).await;
    let (proxy, candidate) = through_proxy(&drafter).await;
    proxy.set(Link::Cut);
    let strategy = Strategy::Lockstep { k: 4, deadline: Duration::from_secs(10) };
    let mut answer =
        Question::numbered(3, LONG).strategy(strategy).drafted_by(&[candidate]).ask(&worker).await;
    answer.on(20).await;
    assert!(!answer.drafted.contains(&true));
    proxy.set(Link::Flows);
    let back = Instant::now();
    answer.until_drafted().await;
    assert!(back.elapsed() < Duration::from_secs(8), "it waited for a drafter that knew nothing");
    worker.hurry();
    answer.right().await;
}

#[tokio::test]
async fn far_away() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy { noise: 0.02, ..Toy::DRAFTER }).await;
    let (proxy, candidate) = through_proxy(&drafter).await;
    proxy.set(Link::Delayed { one_way: Duration::from_millis(15), jitter: Duration::ZERO });
    let ask = |n| Question::numbered(n, 200).drafted_by(std::slice::from_ref(&candidate)).ask(&worker);
    let (greedy, sampled) = tokio::join!(ask(2), ask(3));
    let (greedy, sampled) = tokio::join!(greedy.right(), sampled.right());
    assert!(greedy.accepted_tokens + sampled.accepted_tokens > 0, "{greedy:?} {sampled:?}");
}

#[tokio::test]
async fn nobody_is_there() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let gone = drafter("gone", Toy::DRAFTER).await;
    let candidate = at(&gone);
    gone.kill().await;
    let unknown = Candidate {
        id: NodeId::new("unknown").unwrap(),
        endpoint: cluster::Endpoint::new("http://does-not-exist.invalid:1").unwrap(),
        incarnation: Incarnation(1),
    };
    let stats = Question::numbered(3, 64).drafted_by(&[candidate, unknown]).ask(&worker).await.right().await;
    assert_eq!(stats.of(request::Source::Drafter).drafts, 0);
}
