//! A worker that sends nonsense: it is told what was wrong, and other workers' sessions go on.

use std::time::{Duration, Instant};

use cluster::{Incarnation, NodeId};
use proto::draft::worker_frame::Frame;
use proto::draft::{self, WorkerFrame};
use proto::frame::{ClosedReason, FromDrafter, FromWorker, Hello, RefusedReason};
use proto::reason::{Reason, parse};
use proto::v1;
use request::TokenId;

use super::fake_worker::{FakeWorker, ME, addressed, commit, hello, open};
use super::nodes::{CONTEXT, MODEL_SEED, Target, Toy, VOCAB, at, drafter, drafter_with};
use super::question::{Question, Reading};
use crate::support::{Node, eventually};

const SLOTS: u32 = 4;
/// What a running session, opened with [`PROMPT`] and one commit, knows.
const PROMPT: &[u32] = &[1, 2, 3];
const KNOWN: &[u32] = &[1, 2, 3, 1];

/// An `Open` on the wire.
fn opening(session: u64, tokens: &[u32]) -> draft::Open {
    let FromWorker::Open(opening) = open(session, tokens).into_frames().remove(0) else {
        unreachable!("Open comes first")
    };
    opening.into()
}

/// Frames of the session of this number.
type Lie = fn(u64) -> Vec<Frame>;

#[tokio::test]
async fn a_lie_in_a_session_ends_that_session() {
    #[rustfmt::skip]
    const LIES: &[(&str, Lie, ClosedReason, &str)] = {
        use ClosedReason::{ContextFull, Invalid};
        &[
            ("beyond what it reserved",
                |s| vec![Frame::Commit(commit(s, KNOWN, &[1; 61]))], ContextFull, "commit"),
            ("another past",
                |s| vec![Frame::Commit(commit(s, &[1, 2, 3, 2], &[1]))], Invalid, "commit: its past"),
            ("another commit", |s| vec![Frame::Commit(commit(s, PROMPT, &[2]))], Invalid, "commit: its past"),
            ("outside the vocabulary",
                |s| vec![Frame::Commit(commit(s, KNOWN, &[1, VOCAB]))], Invalid, "commit.ids"),
            ("nothing", |s| vec![Frame::Commit(commit(s, KNOWN, &[]))], Invalid, "commit.ids"),
            ("too much", |s| vec![Frame::Commit(commit(s, KNOWN, &[1; 16_385]))], Invalid, "commit.ids"),
            ("past the last position",
                |s| vec![Frame::Commit(draft::Commit { at: u32::MAX, ..commit(s, KNOWN, &[1]) })],
                Invalid, "commit.at"),
            ("a window of 65",
                |s| vec![Frame::Credit(draft::Credit { session: s, window: 65 })], Invalid, "credit.window"),
            ("nothing more is known",
                |s| vec![Frame::Known(draft::Known { session: s, at: 4, ids: vec![] })], Invalid, "known.ids"),
        ]
    };
    let (worker, drafter, mut bystander) = bystander().await;
    // One stream for all: it is as good as before after each, and the slot is free again.
    let mut liar = FakeWorker::pair(&drafter).await;
    for (n, (name, lie, reason, says)) in (1..).zip(LIES) {
        liar.run(n, PROMPT).await;
        for frame in lie(n) {
            liar.say_raw(frame).await;
        }
        match liar.hear_but_drafts().await {
            Ok(FromDrafter::Closed { session, reason: r, message }) if (session, r) == (n, *reason) => {
                assert!(message.contains(says), "{name}: {message:?} does not say {says:?}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    drop(liar);
    unharmed(worker, &mut bystander).await;
    all_slots_are_free(&drafter).await;
    bystander.right().await;
}

#[tokio::test]
async fn what_cannot_be_opened_is_refused() {
    #[rustfmt::skip]
    const LIES: &[(&str, Lie, RefusedReason, &str)] = {
        use RefusedReason::{Invalid, TooLong};
        &[
            ("no prompt", |s| vec![Frame::Open(opening(s, &[]))], Invalid, "open.prompt_len"),
            ("a token outside the vocabulary",
                |s| vec![Frame::Open(opening(s, &[1, VOCAB]))], Invalid, "vocabulary"),
            ("more than any request has",
                |s| vec![Frame::Open(draft::Open { prompt_len: u32::MAX, ..opening(s, PROMPT) })],
                Invalid, "open.prompt_len"),
            ("huge, and the rest never comes",
                |s| vec![Frame::Open(draft::Open { prompt_len: 1 << 20, longest: 1 << 20, ..opening(s, PROMPT) })],
                TooLong, "context"),
            ("as long as the context",
                |s| vec![Frame::Open(draft::Open { longest: 1 << 20, ..opening(s, &[1; CONTEXT as usize]) })],
                TooLong, "context"),
            ("a sequence without end",
                |s| vec![Frame::Open(draft::Open { longest: u32::MAX, ..opening(s, PROMPT) })],
                Invalid, "open.longest"),
            ("shorter than itself",
                |s| vec![Frame::Open(draft::Open { longest: 2, ..opening(s, PROMPT) })], Invalid, "open.longest"),
            ("more tokens than announced",
                |s| vec![Frame::Open(draft::Open { prompt_len: 2, ..opening(s, PROMPT) })], Invalid, "open.prompt"),
            ("no window",
                |s| vec![Frame::Open(draft::Open { window: 0, ..opening(s, PROMPT) })], Invalid, "open.window"),
            ("a temperature that is no number", |s| {
                let sampling = Some(v1::SamplingParams { temperature: Some(f32::NAN), ..Default::default() });
                vec![Frame::Open(draft::Open { sampling, ..opening(s, PROMPT) })]
            }, Invalid, "temperature"),
            ("two forms at once", |s| {
                let (grammar, regex) = ("root".into(), "a".into());
                vec![Frame::Open(draft::Open { grammar, regex, ..opening(s, PROMPT) })]
            }, Invalid, "open.grammar"),
            ("a rule of the future",
                |s| vec![Frame::Open(draft::Open { rule: 99, ..opening(s, PROMPT) })],
                Invalid, "speculation.rule"),
            ("a salt like a book",
                |s| vec![Frame::Open(draft::Open { cache_salt: "x".repeat(257), ..opening(s, PROMPT) })],
                Invalid, "open.cache_salt"),
            ("a hole in what is known", |s| vec![
                Frame::Open(draft::Open { prompt_len: 10, longest: 64, ..opening(s, PROMPT) }),
                Frame::Known(draft::Known { session: s, at: 5, ids: vec![1; 5] }),
            ], Invalid, "known.at"),
            ("the same again", |s| vec![
                Frame::Open(draft::Open { prompt_len: 10, longest: 64, ..opening(s, PROMPT) }),
                Frame::Known(draft::Known { session: s, at: 0, ids: PROMPT.to_vec() }),
            ], Invalid, "known.at"),
            ("more than was announced", |s| vec![
                Frame::Open(draft::Open { prompt_len: 5, longest: 64, ..opening(s, PROMPT) }),
                Frame::Known(draft::Known { session: s, at: 3, ids: vec![1; 3] }),
            ], Invalid, "known.ids"),
        ]
    };
    let (worker, drafter, mut bystander) = bystander().await;
    let mut liar = FakeWorker::pair(&drafter).await;
    for (n, (name, lie, reason, says)) in (1..).zip(LIES) {
        for frame in lie(n) {
            liar.say_raw(frame).await;
        }
        match liar.hear().await {
            Ok(FromDrafter::Refused { session, reason: r, message }) if (session, r) == (n, *reason) => {
                assert!(message.contains(says), "{name}: {message:?} does not say {says:?}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    // The stream is as good as before; of sessions that never were nothing is said.
    liar.say_raw(Frame::Known(draft::Known { session: 98, at: 0, ids: vec![1] })).await;
    liar.say_raw(Frame::Commit(commit(98, KNOWN, &[1]))).await;
    liar.say_raw(Frame::Close(draft::Close { session: 98 })).await;
    liar.run(99, PROMPT).await;
    // A number in use is not given twice, and its session goes on.
    liar.say_raw(Frame::Open(opening(99, PROMPT))).await;
    match liar.hear_but_drafts().await {
        Ok(FromDrafter::Refused { session: 99, reason: RefusedReason::Invalid, message }) => {
            assert!(message.contains("in use"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    liar.say_raw(Frame::Commit(commit(99, KNOWN, &[9]))).await;
    liar.drafts(99, 5).await;
    drop(liar);
    unharmed(worker, &mut bystander).await;
    all_slots_are_free(&drafter).await;
    bystander.right().await;
}

#[tokio::test]
async fn a_lie_about_the_stream_ends_the_stream() {
    type Lie = fn(Incarnation) -> WorkerFrame;
    const CREDIT: FromWorker = FromWorker::Credit { session: 1, window: 4 };
    #[rustfmt::skip]
    const LIES: &[(&str, Lie, Reason, Option<&str>)] = {
        use Reason::{InvalidField, StaleIncarnation, TooLarge};
        &[
            ("a second hello", |to| addressed(to, FromWorker::Hello(hello())), InvalidField, Some("frame")),
            ("another hello", |to| {
                let hello = Hello { node: NodeId::new("other").unwrap(), ..hello() };
                addressed(to, FromWorker::Hello(hello))
            }, InvalidField, Some("frame")),
            ("no frame",
                |to| WorkerFrame { frame: None, ..addressed(to, CREDIT) }, InvalidField, Some("frame")),
            ("for another life of the drafter",
                |to| addressed(Incarnation(to.0 + 1), CREDIT), StaleIncarnation, Some("receiver_incarnation")),
            ("from another life of the worker",
                |to| WorkerFrame { sender_incarnation: ME.0 + 1, ..addressed(to, CREDIT) },
                StaleIncarnation, Some("sender_incarnation")),
            ("from nobody",
                |to| WorkerFrame { sender_incarnation: 0, ..addressed(to, CREDIT) },
                InvalidField, Some("sender_incarnation")),
            ("more bytes than a frame may have", |to| WorkerFrame {
                frame: Some(Frame::Commit(commit(1, KNOWN, &[u32::MAX; 100_000]))),
                ..addressed(to, CREDIT)
            }, TooLarge, None),
        ]
    };
    let (worker, drafter, mut bystander) = bystander().await;
    for (name, lie, reason, field) in LIES {
        let mut liar = FakeWorker::pair(&drafter).await;
        liar.run(1, PROMPT).await;
        liar.raw(lie(drafter.record.incarnation)).await;
        let end = liar.hear_but_drafts().await.expect_err(name);
        let failure = parse(&end.unwrap_or_else(|| panic!("{name}: the stream ended without a reason")));
        assert_eq!((failure.reason, failure.field.as_deref()), (*reason, *field), "{name}: {failure:?}");
    }
    unharmed(worker, &mut bystander).await;
    all_slots_are_free(&drafter).await;
    bystander.right().await;
}

/// A gap is no lie: a commit may have been lost on the way.
#[tokio::test]
async fn a_missing_commit_is_asked_for() {
    let drafter = drafter("drafter", Toy { noise: 0.0, ..Toy::DRAFTER }).await;
    let mut worker = FakeWorker::pair(&drafter).await;
    worker.run(1, PROMPT).await;
    worker.say_raw(Frame::Commit(commit(1, &[1, 2, 3, 1, 5], &[6]))).await;
    let asked = worker.hear_but_drafts().await.unwrap();
    assert_eq!(asked, FromDrafter::Resync { session: 1, have: 4 });
    worker.say_raw(Frame::Commit(commit(1, KNOWN, &[5, 6]))).await;
    let drafts = worker.drafts(1, 6).await;
    // What it has now is what the target has: its drafts are the law's.
    let known = [1, 2, 3, 1, 5, 6].map(TokenId);
    let law = sampling::argmax(&engine::toy_logits(MODEL_SEED, &known, VOCAB)).unwrap();
    assert_eq!(drafts[0], law);
}

#[tokio::test]
async fn a_session_of_which_nothing_is_heard_loses_its_slot() {
    let mut config = drafter::Config::default();
    config.sessions.lease = Duration::from_millis(300);
    let drafter = drafter_with("drafter", Toy { slots: 1, ..Toy::DRAFTER }, config).await;
    let mut worker = FakeWorker::pair(&drafter).await;
    worker.run(1, PROMPT).await;
    // Whoever is heard of keeps it.
    let running = Instant::now();
    while running.elapsed() < 2 * Duration::from_millis(300) {
        worker.say(FromWorker::Credit { session: 1, window: 4 }).await;
        worker.open(open(2, PROMPT)).await;
        match worker.hear_but_drafts().await {
            Ok(FromDrafter::Refused { session: 2, reason: RefusedReason::NoSlot, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    match worker.hear_but_drafts().await {
        Ok(FromDrafter::Closed { session: 1, reason: ClosedReason::LeaseExpired, .. }) => {}
        other => panic!("{other:?}"),
    }
    worker.run(3, PROMPT).await;
}

/// A real worker with a long answer that the drafter drafts for.
async fn bystander() -> (Target, Node, Reading) {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy { slots: SLOTS, ..Toy::DRAFTER }).await;
    let mut answer = Question::numbered(3, 3000).drafted_by(&[at(&drafter)]).ask(&worker).await;
    answer.until_drafted().await;
    (worker, drafter, answer)
}

/// It is still drafted for, on the stream and in the session that it had.
async fn unharmed(worker: Target, bystander: &mut Reading) {
    let before = bystander.drafted.len();
    bystander.until("it was drafted for again", |r| r.drafted[before..].contains(&true)).await;
    worker.hurry();
}

/// All but the bystander's, soon: streams that ended may still be on their way out.
async fn all_slots_are_free(drafter: &Node) {
    let mut worker = FakeWorker::pair(drafter).await;
    let mut session = 0;
    for _ in 1..SLOTS {
        eventually("a slot is free", async || {
            session += 1;
            worker.open(open(session, PROMPT)).await;
            match worker.hear().await.unwrap() {
                FromDrafter::Granted { .. } => true,
                FromDrafter::Refused { reason: RefusedReason::NoSlot, .. } => false,
                other => panic!("{other:?}"),
            }
        })
        .await;
    }
}
