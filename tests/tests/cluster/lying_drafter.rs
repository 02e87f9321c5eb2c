//! A drafter that sends nonsense: the answers are right, and those of other drafters unharmed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto::draft::drafter_frame::Frame;
use proto::draft::{self, DrafterFrame};
use proto::frame::{FromDrafter, Hello};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::fake_drafter::{FakeDrafter, Reaction, Talk, silent};
use super::nodes::{Target, Toy, VOCAB, at, drafter};
use super::question::{LOCKSTEP, Question};
use crate::support::HANG;

/// What a worker does about a lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// It leaves the stream: whoever sent this is broken as a whole.
    Leaves,
    /// It closes the session.
    Closes,
    /// It drops the drafts and counts them; the session goes on.
    Drops,
    /// It takes the drafts for what they are: hints, which the target rejects.
    Rejects,
    /// It is as if nothing had been said; the session goes on.
    Ignores,
}

type Told = Pin<Box<dyn Future<Output = Talk> + Send>>;
/// Tells a lie in a session that was granted and has its first commit.
type Lie = fn(Talk) -> Told;

/// Writes a lie: `talk` is at hand by name, and comes back.
macro_rules! lie {
    (|$talk:ident| $body:block) => {
        |mut $talk: Talk| -> Told {
            Box::pin(async move {
                $body;
                $talk
            })
        }
    };
}

#[rustfmt::skip]
const LIES: &[(&str, Expected, Lie)] = {
    use Expected::{Closes, Drops, Ignores, Leaves, Rejects};
    &[
        ("no-frame", Leaves, lie!(|talk| {
            let frame = DrafterFrame { frame: None, ..talk.frame(Frame::Drafts(talk.drafts(vec![1]))) };
            talk.raw(frame).await;
        })),
        ("another-sender", Leaves, lie!(|talk| {
            let frame = talk.frame(Frame::Drafts(talk.drafts(vec![1])));
            talk.raw(DrafterFrame { sender_incarnation: 1, ..frame }).await;
        })),
        ("another-receiver", Leaves, lie!(|talk| {
            let frame = talk.frame(Frame::Drafts(talk.drafts(vec![1])));
            talk.raw(DrafterFrame { receiver_incarnation: u64::MAX, ..frame }).await;
        })),
        ("no-incarnation", Leaves, lie!(|talk| {
            let frame = talk.frame(Frame::Drafts(talk.drafts(vec![1])));
            talk.raw(DrafterFrame { sender_incarnation: 0, ..frame }).await;
        })),
        ("second-hello", Leaves, lie!(|talk| {
            let hello = Hello::new(cluster::NodeId::new("again").unwrap(), cluster::VocabHash([1; 32]));
            talk.say(FromDrafter::Hello(hello)).await;
        })),
        ("more-bytes-than-a-frame-may-have", Leaves, lie!(|talk| {
            talk.say_raw(Frame::Drafts(talk.drafts(vec![u32::MAX; 100_000]))).await;
        })),
        ("no-ids", Closes, lie!(|talk| { talk.say_raw(Frame::Drafts(talk.drafts(vec![]))).await; })),
        ("65-ids", Closes, lie!(|talk| { talk.say_raw(Frame::Drafts(talk.drafts(vec![1; 65]))).await; })),
        ("parents", Closes, lie!(|talk| {
            let tree = draft::Drafts { parents: vec![0, 1], ..talk.drafts(vec![1, 2]) };
            talk.say_raw(Frame::Drafts(tree)).await;
        })),
        ("q", Closes, lie!(|talk| {
            let q = vec![draft::Distribution { ids: vec![1], probabilities: vec![f32::NAN] }];
            talk.say_raw(Frame::Drafts(draft::Drafts { q, ..talk.drafts(vec![1]) })).await;
        })),
        ("no-room-for-the-ids", Closes, lie!(|talk| {
            talk.say_raw(Frame::Drafts(draft::Drafts { at: u32::MAX, ..talk.drafts(vec![1]) })).await;
        })),
        ("a-lease-of-nothing", Closes, lie!(|talk| {
            talk.say_raw(Frame::Granted(draft::Granted { session: talk.session, lease_ttl_ms: 0 })).await;
        })),
        ("outside-the-vocabulary", Drops, lie!(|talk| {
            talk.say_raw(Frame::Drafts(talk.drafts(vec![1, VOCAB, 2]))).await;
        })),
        ("the-largest-id", Drops, lie!(|talk| {
            talk.say_raw(Frame::Drafts(talk.drafts(vec![u32::MAX; 64]))).await;
        })),
        ("another-past", Drops, lie!(|talk| {
            let drafts = talk.drafts(vec![1, 2]);
            let prefix_hash = !drafts.prefix_hash;
            talk.say_raw(Frame::Drafts(draft::Drafts { prefix_hash, ..drafts })).await;
        })),
        ("far-ahead", Drops, lie!(|talk| {
            talk.say_raw(Frame::Drafts(draft::Drafts { at: 1 << 30, ..talk.drafts(vec![1, 2]) })).await;
        })),
        ("committed-otherwise", Drops, lie!(|talk| {
            // The last committed token, which it was told, is another one.
            let last = talk.known.pop().unwrap();
            let drafts = talk.drafts(vec![(last.0 + 1) % VOCAB, 1]);
            talk.known.push(last);
            talk.say_raw(Frame::Drafts(drafts)).await;
        })),
        ("wrong-ids", Rejects, lie!(|talk| {
            for _ in 0..20 {
                talk.say_raw(Frame::Drafts(talk.drafts(vec![3; 64]))).await;
                talk.committed().await;
            }
        })),
        ("another-session", Ignores, lie!(|talk| {
            talk.say_raw(Frame::Drafts(draft::Drafts { session: 999, ..talk.drafts(vec![1]) })).await;
        })),
        ("granted-twice", Ignores, lie!(|talk| { talk.grant().await; })),
        ("refused-after-the-grant", Ignores, lie!(|talk| {
            let reason = proto::frame::RefusedReason::NoSlot;
            let message = "x".repeat(100_000);
            talk.say(FromDrafter::Refused { session: talk.session, reason, message }).await;
        })),
        ("has-everything-already", Ignores, lie!(|talk| {
            talk.say(FromDrafter::Resync { session: talk.session, have: u32::MAX }).await;
        })),
        ("has-nothing", Ignores, lie!(|talk| {
            talk.say(FromDrafter::Resync { session: talk.session, have: 0 }).await;
        })),
        ("closed-a-session-that-never-was", Ignores, lie!(|talk| {
            let closed = draft::Closed { session: 999, reason: 77, message: String::new() };
            talk.say_raw(Frame::Closed(closed)).await;
        })),
        ("takes-for-ever", Ignores, lie!(|talk| {
            let slow = draft::Drafts { draft_time_us: u32::MAX, ..talk.drafts(vec![1]) };
            talk.say_raw(Frame::Drafts(slow)).await;
        })),
    ]
};

#[tokio::test]
async fn a_lie_costs_its_own_session_or_stream_and_nothing_else() {
    let worker = Target::start("worker", Toy { slots: 64, ..Toy::TARGET }).await;
    let honest = drafter("honest", Toy::DRAFTER).await;
    let mut bystander = Question::numbered(3, 2500).drafted_by(&[at(&honest)]).ask(&worker).await;
    bystander.until_drafted().await;

    let mut fakes = Vec::new();
    let mut answers = Vec::new();
    for (n, (name, expected, lie)) in LIES.iter().enumerate() {
        let (tell, told) = mpsc::channel(1);
        let fake = FakeDrafter::start(name, move |mut talk| {
            let tell = tell.clone();
            async move {
                talk.granted(1).await;
                talk = lie(talk).await;
                let reaction = match expected {
                    Expected::Leaves | Expected::Closes => Some(talk.reaction().await),
                    // Commits go on coming.
                    _ => match (talk.committed().await, talk.committed().await) {
                        (true, true) => None,
                        _ => Some(Reaction::ClosedSession),
                    },
                };
                // Only the first stream counts: a worker that left comes back.
                let _ = tell.try_send(reaction);
                silent(talk).await
            }
        })
        .await;
        let question = Question::numbered(n as u32, 2000).drafted_by(std::slice::from_ref(&fake.candidate));
        answers.push(tokio::spawn(question.ask(&worker).await.right()));
        fakes.push((fake, told));
    }
    for ((name, expected, _), ((_, told), answer)) in LIES.iter().zip(fakes.iter_mut().zip(&answers)) {
        let reaction = timeout(HANG, told.recv()).await.unwrap().unwrap();
        let wanted = match expected {
            Expected::Leaves => Some(Reaction::LeftStream),
            Expected::Closes => Some(Reaction::ClosedSession),
            Expected::Drops | Expected::Rejects | Expected::Ignores => None,
        };
        assert_eq!(reaction, wanted, "{name}");
        assert!(!answer.is_finished(), "{name}: it may have been the end of the answer that was seen");
    }
    // The honest drafter's answer is still drafted for.
    let before = bystander.drafted.len();
    bystander.until("it was drafted for again", |r| r.drafted[before..].contains(&true)).await;

    worker.hurry();
    for ((name, expected, _), answer) in LIES.iter().zip(answers) {
        let stats = answer.await.unwrap_or_else(|e| panic!("{name}: {e}"));
        match expected {
            Expected::Drops => assert!(stats.dropped_tokens > 0, "{name}: {stats:?}"),
            // Verified and rejected, or, where drafters were found to be wrong before, not even verified.
            Expected::Rejects => {
                let rejected = stats.draft_tokens - stats.accepted_tokens;
                assert!(rejected + stats.dropped_tokens > 0, "{name}: {stats:?}");
            }
            Expected::Leaves | Expected::Closes => {
                assert_eq!(stats.of(request::Source::Drafter).drafts, 0, "{name}");
            }
            Expected::Ignores => {}
        }
    }
    bystander.right().await;
    worker.is_well().await;
}

/// Drafters that never get as far as a session.
#[tokio::test]
async fn silence_and_slammed_doors() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let honest = drafter("honest", Toy::DRAFTER).await;
    let mute = FakeDrafter::start("mute", silent).await;
    let closes = FakeDrafter::start("closes", |talk| async { drop(talk) }).await;
    let hello_only = FakeDrafter::start("hello-only", |mut talk: Talk| async move {
        talk.hello(1).await;
        silent(talk).await
    })
    .await;
    let leaves = FakeDrafter::start("leaves", |mut talk: Talk| async move {
        talk.granted(1).await;
    })
    .await;
    let early = FakeDrafter::start("early", |mut talk: Talk| async move {
        talk.hello(1).await;
        talk.opened().await;
        // Drafts for the first token, which is the target's to say, and no grant.
        talk.say_raw(Frame::Drafts(talk.drafts(vec![1, 2, 3]))).await;
        silent(talk).await
    })
    .await;
    let mut answers = Vec::new();
    for strategy in [request::Strategy::Draft, LOCKSTEP] {
        for fake in [&mute, &closes, &hello_only, &leaves, &early] {
            let drafters = [fake.candidate.clone()];
            answers
                .push(Question::numbered(3, 200).strategy(strategy).drafted_by(&drafters).ask(&worker).await);
        }
    }
    // Behind one that closes, the next of the list is asked.
    let both = [closes.candidate.clone(), at(&honest)];
    let mut second_choice = Question::numbered(5, 2000).drafted_by(&both).ask(&worker).await;
    second_choice.until_drafted().await;
    futures::future::join_all(answers.into_iter().map(super::question::Reading::right)).await;
    worker.hurry();
    second_choice.right().await;
    worker.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_frames_drowns_nobody() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let honest = drafter("honest", Toy::DRAFTER).await;
    let said = Arc::new(AtomicU64::new(0));
    let flood = FakeDrafter::start("flood", {
        let said = said.clone();
        move |mut talk| {
            let said = said.clone();
            async move {
                talk.granted(1).await;
                let have = talk.known.len() as u32 - 1;
                loop {
                    let ids = vec![(said.fetch_add(1, Ordering::Relaxed) % u64::from(VOCAB)) as u32; 64];
                    talk.say_raw(Frame::Drafts(talk.drafts(ids))).await;
                    talk.say(FromDrafter::Resync { session: talk.session, have }).await;
                }
            }
        }
    })
    .await;
    let drowning =
        Question::numbered(3, 3000).drafted_by(std::slice::from_ref(&flood.candidate)).ask(&worker).await;
    let drowning = tokio::spawn(drowning.right());
    crate::support::eventually("the flood is on", async || said.load(Ordering::Relaxed) > 500).await;

    // New requests are taken, decoded and drafted for meanwhile.
    for n in 0..4 {
        let mut answer = Question::numbered(n, 2000).drafted_by(&[at(&honest)]).ask(&worker).await;
        answer.until_drafted().await;
    }
    let during = said.load(Ordering::Relaxed);
    assert!(during > 1000, "{during} frames are no flood");
    assert!(!drowning.is_finished());
    worker.hurry();
    timeout(Duration::from_secs(60), drowning).await.unwrap().unwrap();
    worker.is_well().await;
}
