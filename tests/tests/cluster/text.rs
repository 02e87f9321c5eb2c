//! The text is the target's own, whatever the strategy, and drafting is really going on.

use proto::Candidate;
use request::{SpeculationStats, Strategy};

use super::nodes::{Target, Toy, at, drafter};
use super::question::{LOCKSTEP, Question};

/// Sixteen answers at once, greedy and sampled; all right.
async fn sixteen(worker: &Target, drafters: &[Candidate], strategy: Strategy) -> SpeculationStats {
    let mut reading = Vec::new();
    for n in 0..16 {
        let question = Question::numbered(n, 64).strategy(strategy).drafted_by(drafters);
        // Half of them may end early.
        let question = if n < 8 { question.stop_at(7) } else { question };
        reading.push(question.ask(worker).await.right());
    }
    let mut all = SpeculationStats::default();
    for stats in futures::future::join_all(reading).await {
        all.add(&stats);
    }
    all
}

#[tokio::test]
async fn text_does_not_depend_on_the_strategy() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy::DRAFTER).await;
    let drafters = [at(&drafter)];

    for (name, drafters, strategy) in [
        ("no drafter is known", &[][..], Strategy::Draft),
        ("no drafter is wanted", &drafters, Strategy::None),
    ] {
        let stats = sixteen(&worker, drafters, strategy).await;
        assert_eq!((stats.drafts, stats.dropped_tokens), (0, 0), "{name}");
        assert!(stats.plain_steps > 0, "{name}");
    }
    // Without a model to draft, with one that is not asked.
    for strategy in [Strategy::Ngram, Strategy::Suffix, Strategy::Recycle] {
        let stats = sixteen(&worker, &drafters, strategy).await;
        assert_eq!(stats.of(request::Source::Drafter).drafts, 0, "{strategy:?}: {stats:?}");
    }
    for strategy in [Strategy::Auto, Strategy::Draft, LOCKSTEP] {
        let stats = sixteen(&worker, &drafters, strategy).await;
        let rejected = stats.draft_tokens - stats.accepted_tokens;
        assert!(stats.accepted_tokens > 100, "{strategy:?}: {stats:?}");
        assert!(rejected > 50, "{strategy:?}: {stats:?}");
        let depths = stats.histogram.iter().take(4).filter(|steps| **steps > 0).count();
        assert!(depths == 4, "verification steps by accepted drafts, {strategy:?}: {stats:?}");
    }
    worker.empty().await;
}

#[tokio::test]
async fn lockstep_verifies_as_many_drafts_as_it_asks_for() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy { noise: 0.0, ..Toy::DRAFTER }).await;
    let strategy = Strategy::Lockstep { k: 4, deadline: std::time::Duration::from_secs(10) };
    let question = Question::new(&[1, 2, 3], 101).strategy(strategy).drafted_by(&[at(&drafter)]);
    let stats = question.ask(&worker).await.right().await;
    // Until the drafter is attached the steps are plain; from then on each brings five tokens, but
    // the last, for which fewer are left.
    let full = stats.histogram.get(4).copied().unwrap_or(0);
    assert!(full >= 10 && stats.drafts <= full + 1, "{stats:?}");
    assert_eq!(stats.accepted_tokens, stats.draft_tokens, "a drafter of the same law is always right");
}

#[tokio::test]
async fn a_stop_token_among_the_drafts_ends_the_wait_for_more() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let drafter = drafter("drafter", Toy { noise: 0.0, ..Toy::DRAFTER }).await;
    let strategy = Strategy::Lockstep { k: 8, deadline: std::time::Duration::from_secs(10) };
    for n in 0..4 {
        let question = Question::numbered(n, 200).stop_at(7).strategy(strategy).drafted_by(&[at(&drafter)]);
        assert!(question.answer().0.len() < 200, "this one ends at a stop token");
        let started = std::time::Instant::now();
        question.ask(&worker).await.right().await;
        assert!(started.elapsed().as_secs() < 8, "it waited for drafts that never come");
    }
}
