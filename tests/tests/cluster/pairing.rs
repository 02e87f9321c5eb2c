//! Who may pair with whom, and what the one who may not is told.

use std::time::Duration;

use cluster::{Incarnation, VocabHash};
use proto::frame::{FromDrafter, FromWorker, Hello};
use proto::reason::{Reason, parse};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::fake_drafter::{FakeDrafter, Reaction};
use super::fake_worker::{addressed, dial, hello, open};
use super::nodes::{Target, Toy, at, drafter};
use super::question::Question;
use crate::support::HANG;

#[tokio::test]
async fn a_drafter_says_why_it_does_not_pair() {
    let drafter = drafter("drafter", Toy::DRAFTER).await;
    let me = drafter.record.incarnation;
    let opening = || open(1, &[1, 2]).into_frames().remove(0);
    let nothing =
        || proto::draft::WorkerFrame { frame: None, ..addressed(me, FromWorker::Close { session: 1 }) };
    let vocabularies = [VocabHash([9; 32]).to_string(), VocabHash([1; 32]).to_string()];
    for (first, reason, field, says) in [
        (
            addressed(me, FromWorker::Hello(Hello { vocab_hash: VocabHash([9; 32]), ..hello() })),
            Reason::VocabMismatch,
            "hello.vocab_hash",
            vec!["drafter", "fake-worker", &vocabularies[0], &vocabularies[1]],
        ),
        (
            addressed(me, FromWorker::Hello(Hello { protocol: (7, 9), ..hello() })),
            Reason::ProtocolMismatch,
            "hello.protocol",
            vec!["drafter speaks versions 1 to 1", "fake-worker speaks 7 to 9", "upgrade"],
        ),
        (
            addressed(Incarnation(me.0 + 1), FromWorker::Hello(hello())),
            Reason::StaleIncarnation,
            "receiver_incarnation",
            vec!["is for incarnation"],
        ),
        (addressed(me, opening()), Reason::InvalidField, "frame", vec!["hello"]),
        (nothing(), Reason::InvalidField, "frame", vec!["missing"]),
    ] {
        let status = dial(&drafter, first).await.map(|(_, first)| first).expect_err(reason.as_str());
        let failure = parse(&status);
        assert_eq!(
            (failure.reason, failure.field.as_deref(), status.code()),
            (reason, Some(field), reason.grpc()),
            "{status:?}"
        );
        for words in says {
            assert!(failure.message.contains(words), "{words:?} is not in {:?}", failure.message);
        }
    }
    // It still pairs with who fits.
    let (_, first) = dial(&drafter, addressed(me, FromWorker::Hello(hello()))).await.unwrap();
    assert!(matches!(first, FromDrafter::Hello(_)));
}

#[tokio::test]
async fn a_worker_without_a_fitting_drafter_decodes_plainly() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let other = drafter("other-vocabulary", Toy { vocab: 2, ..Toy::DRAFTER }).await;
    let restarted = drafter("restarted", Toy::DRAFTER).await;
    let mut stale = at(&restarted);
    stale.incarnation = Incarnation(stale.incarnation.0 + 1000);
    for candidate in [at(&other), stale] {
        let question = Question::numbered(3, 100).drafted_by(&[candidate]);
        let stats = question.ask(&worker).await.right().await;
        assert_eq!(stats.of(request::Source::Drafter).drafts, 0);
    }
}

/// A drafter that takes anybody: then the worker is the one that refuses.
#[tokio::test]
async fn a_worker_leaves_a_drafter_that_does_not_fit() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let (tell, mut heard) = mpsc::channel(16);
    let mut fakes = Vec::new();
    for (name, vocab, protocol, wrong_frame) in
        [("vocabulary", 9, (1, 1), false), ("protocol", 1, (2, 3), false), ("no-hello", 1, (1, 1), true)]
    {
        let tell = tell.clone();
        let fake = FakeDrafter::start(name, move |mut talk| {
            let tell = tell.clone();
            async move {
                let Some(FromWorker::Hello(theirs)) = talk.hear().await else { panic!("no hello") };
                let vocab_hash = VocabHash([vocab; 32]);
                talk.say(if wrong_frame {
                    FromDrafter::Granted { session: 1, lease_ttl: Duration::from_secs(1) }
                } else {
                    FromDrafter::Hello(Hello { protocol, vocab_hash, ..theirs })
                })
                .await;
                let _ = tell.send((name, talk.reaction().await)).await;
            }
        });
        fakes.push(fake.await);
    }
    let candidates: Vec<_> = fakes.iter().map(|f| f.candidate.clone()).collect();
    let answer = Question::numbered(3, 100).drafted_by(&candidates).ask(&worker).await;
    // They are linked at the same time.
    let mut left = Vec::new();
    for _ in &candidates {
        left.extend(timeout(HANG, heard.recv()).await.unwrap());
    }
    left.sort_unstable_by_key(|(name, _)| *name);
    assert_eq!(left, ["no-hello", "protocol", "vocabulary"].map(|name| (name, Reaction::LeftStream)));
    assert_eq!(answer.right().await.of(request::Source::Drafter).drafts, 0);
}
