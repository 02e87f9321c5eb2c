//! Clients that leave, queues that are full, nodes that drain.

use cluster::NodeState;
use daemon::Ended;
use proto::reason::{Reason, parse};
use request::Strategy;

use super::nodes::{Target, Toy, at, drafter};
use super::question::{Question, send};
use crate::support::eventually;

const LONG: u32 = 2000;

#[tokio::test]
async fn dropping_the_answer_frees_slots_and_pages_here_and_at_the_drafter() {
    let worker = Target::start("worker", Toy { slots: 1, ..Toy::TARGET }).await;
    let drafter = drafter("drafter", Toy { slots: 1, ..Toy::DRAFTER }).await;
    for strategy in [Strategy::Draft, super::question::LOCKSTEP] {
        for n in 0..3 {
            // One slot each: a leak would leave the next one waiting, or without drafts.
            let question = Question::numbered(n, LONG).strategy(strategy).drafted_by(&[at(&drafter)]);
            let mut answer = question.ask(&worker).await;
            answer.until_drafted().await;
            assert_eq!(worker.load().await.running, 1);
            drop(answer);
            worker.empty().await;
        }
    }
}

#[tokio::test]
async fn a_client_may_leave_before_its_first_token() {
    // Chunks of 4: the prompt takes hundreds of steps.
    let mut config = worker::Config::default();
    config.engine.token_budget = Some(4);
    let worker = Target::with("worker", Toy { slots: 1, ..Toy::TARGET }, config).await;
    let prefilling = Question::new(&[1; 2000], 10).ask(&worker).await;
    let waiting = Question::new(&[2; 10], 10).ask(&worker).await;
    eventually("one runs, one waits", async || {
        let load = worker.load().await;
        (load.running, load.waiting) == (1, 1)
    })
    .await;
    drop(waiting);
    eventually("the one that waited is gone", async || worker.load().await.waiting == 0).await;
    assert_eq!(worker.load().await.running, 1);
    drop(prefilling);
    worker.is_well().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    let mut config = worker::Config::default();
    config.engine.max_waiting = 1;
    let worker = Target::with("worker", Toy { slots: 1, ..Toy::TARGET }, config).await;
    let mut running = Question::numbered(1, LONG).ask(&worker).await;
    running.on(1).await;
    let waiting = Question::numbered(2, 20).ask(&worker).await;
    eventually("one waits", async || worker.load().await.waiting == 1).await;

    let status = send(&worker, Question::numbered(3, 20).wire()).await.map(|_| ()).unwrap_err();
    let failure = parse(&status);
    assert_eq!((failure.reason, status.code()), (Reason::Overloaded, tonic::Code::ResourceExhausted));
    assert!(failure.retry_after.is_some_and(|after| !after.is_zero()), "{failure:?}");

    drop(running);
    waiting.right().await;
    worker.is_well().await;
}

#[tokio::test]
async fn a_draining_worker_finishes_what_it_has() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy::DRAFTER).await;
    let mut answer = Question::numbered(3, LONG).drafted_by(&[at(&drafter)]).ask(&worker).await;
    answer.until_drafted().await;
    assert_eq!(worker.state().await, NodeState::Ready);
    worker.node.begin_drain();

    assert_eq!(worker.state().await, NodeState::Draining);
    let status = send(&worker, Question::numbered(2, 20).wire()).await.map(|_| ()).unwrap_err();
    assert_eq!((parse(&status).reason, status.code()), (Reason::Draining, tonic::Code::Unavailable));

    // Still drafted for.
    let before = answer.drafted.len();
    answer.until("it was drafted for again", |r| r.drafted[before..].contains(&true)).await;
    worker.hurry();
    let Target { node, .. } = worker;
    let (_, ended) = tokio::join!(answer.right(), node.drain());
    assert_eq!(ended, Ended { drained: true, ..Ended::default() });
}

#[tokio::test]
async fn a_draining_drafter_keeps_its_sessions_and_grants_none() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy::DRAFTER).await;
    let question = |n| Question::numbered(n, LONG).drafted_by(&[at(&drafter)]);
    let mut first = question(3).ask(&worker).await;
    first.until_drafted().await;
    drafter.begin_drain();
    let mut second = question(5).ask(&worker).await;
    second.on(60).await;
    assert!(!second.drafted.contains(&true));
    let before = first.drafted.len();
    first.until("it was drafted for again", |r| r.drafted[before..].contains(&true)).await;
    worker.hurry();
    let (_, _, ended) = tokio::join!(first.right(), second.right(), drafter.drain());
    assert_eq!(ended, Ended { drained: true, ..Ended::default() });
}

#[tokio::test]
async fn a_killed_worker_leaves_its_answers_without_finish() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy { slots: 1, ..Toy::DRAFTER }).await;
    let mut answer = Question::numbered(3, LONG).drafted_by(&[at(&drafter)]).ask(&worker).await;
    answer.until_drafted().await;
    let Target { node, .. } = worker;
    node.kill().await;
    assert_eq!(answer.end_or_break().await, None, "nobody may take this answer for complete");
    assert!(answer.text.len() < LONG as usize);

    // Its drafter has noticed: the one slot is free for another worker.
    let worker = Target::start("worker", Toy::TARGET).await;
    let mut answer = Question::numbered(3, LONG).drafted_by(&[at(&drafter)]).ask(&worker).await;
    answer.until_drafted().await;
}
