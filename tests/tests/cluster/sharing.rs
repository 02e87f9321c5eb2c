//! Many workers on a drafter, many drafters for a worker, and slots that are given and given back.

use super::nodes::{Target, Toy, at, drafter};
use super::question::Question;

#[tokio::test]
async fn two_workers_share_a_drafter() {
    let drafter = drafter("drafter", Toy::DRAFTER).await;
    let (one, two) = tokio::join!(Target::start("one", Toy::TARGET), Target::start("two", Toy::TARGET));
    let ask = async |worker: &Target, n| {
        let stats = Question::numbered(n, 64).drafted_by(&[at(&drafter)]).ask(worker).await.right().await;
        stats.accepted_tokens
    };
    let ones = futures::future::join_all((0..8).map(|n| ask(&one, n)));
    // The same questions: sessions of different workers must not be mixed up by their numbers.
    let twos = futures::future::join_all((0..8).map(|n| ask(&two, n + n % 2)));
    let (ones, twos) = tokio::join!(ones, twos);
    for accepted in [ones, twos] {
        assert!(accepted.iter().sum::<u64>() > 50, "{accepted:?}");
    }
}

#[tokio::test]
async fn a_full_drafter_leaves_the_sequence_to_the_next_one() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let small = drafter("small", Toy { slots: 1, ..Toy::DRAFTER }).await;
    let large = drafter("large", Toy::DRAFTER).await;

    let mut first = Question::numbered(1, 1500).drafted_by(&[at(&small)]).ask(&worker).await;
    first.until_drafted().await;
    let mut second = Question::numbered(2, 1500).drafted_by(&[at(&small), at(&large)]).ask(&worker).await;
    second.until_drafted().await;
    // Nobody drafts for both but the two together: the small one has one slot, and holds it still.
    let held = first.drafted.len();
    first.until("it was drafted for again", |r| r.drafted[held..].contains(&true)).await;
    worker.hurry();
    tokio::join!(first.right(), second.right());
}

#[tokio::test]
async fn a_sequence_without_a_slot_decodes_plainly_until_one_is_free() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy { slots: 1, ..Toy::DRAFTER }).await;
    let question = |n| Question::numbered(n, 2000).drafted_by(&[at(&drafter)]);

    let mut first = question(1).ask(&worker).await;
    first.until_drafted().await;
    let mut second = question(2).ask(&worker).await;
    second.on(30).await;
    assert!(!second.drafted.contains(&true), "there is one slot, and the first answer has it");
    drop(first);
    second.until_drafted().await;
    // An answer that ended well gives its slot back too.
    worker.hurry();
    second.right().await;
    worker.step.set(Toy::TARGET.step);
    let mut third = question(3).ask(&worker).await;
    third.until_drafted().await;
    worker.hurry();
    third.right().await;
    worker.empty().await;
}
