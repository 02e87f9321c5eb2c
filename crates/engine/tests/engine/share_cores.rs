//! A drafter on the target's own cores drafts while the target waits for it, and only then.

use std::time::Duration;

use crate::lanes::{open, text};
use crate::link::{Kept, MODEL_SEED, VOCAB, drafter, request, target};
use engine::{
    Command, CommitFrame, DraftEvent, DraftOpen, Drafter, Engine, Facts, Outcome, Settings, TargetEvent,
    ToyModel,
};
use request::{Request, Sampling, Speculation, Strategy, TokenId};
use scheduler::SequenceId;
use speculation::{Drafts, PrefixHashes};

/// On cores.
const IN_TURN: Drafter = Drafter::InTurn { together: false };
const ID: SequenceId = SequenceId(1);

pub(crate) fn long(prompt: &[u32]) -> Request {
    let mut request = request(prompt, 40, Sampling::GREEDY, Speculation::default());
    assert_eq!(request.speculation.strategy, Strategy::Auto);
    request.limits.stop_ids.clear();
    request
}

/// An engine that knows what steps cost: 50 ms, and 2 ms a row.
pub(crate) fn sharing() -> Engine<ToyModel> {
    let toy = ToyModel::new(ToyModel::spec(VOCAB, 256, 8, 200), MODEL_SEED);
    let mut engine = Engine::new(toy, Settings::default());
    for rows in [1, 2, 5, 9] {
        let facts = Facts { decodes: 1, known_rows: 1, draft_rows: rows - 1, ..Facts::default() };
        engine.took(&facts, Duration::from_millis(50 + 2 * u64::from(rows)));
    }
    engine
}

pub(crate) fn plain(prompt: &[u32]) -> Vec<TokenId> {
    let mut engine = target(64);
    let (outlet, _) = open(&mut engine, 1, long(prompt));
    while !engine.is_empty() {
        engine.step(Duration::ZERO);
    }
    text(&outlet).0
}

/// The windows that were asked for, and the tokens that came.
fn heard(outlet: &Kept<TargetEvent>) -> (Vec<u32>, Vec<TokenId>) {
    let (mut windows, mut tokens) = (Vec::new(), Vec::new());
    for event in outlet.take() {
        match event {
            TargetEvent::Ask { window } => windows.extend(window),
            TargetEvent::Committed { frame, .. } => tokens.extend(frame.ids),
            TargetEvent::Started { .. } | TargetEvent::Again(_) | TargetEvent::Ended(_) => {}
        }
    }
    (windows, tokens)
}

/// What a drafter says after `known`; every seventh word is wrong.
pub(crate) fn drafts(known: &[TokenId], right: &[TokenId], count: usize) -> Drafts {
    let wrong = |(i, id): (usize, &TokenId)| if i % 7 == 6 { TokenId((id.0 + 1) % VOCAB) } else { *id };
    let ids = right.iter().enumerate().map(wrong).skip(known.len()).take(count).collect();
    Drafts { at: known.len() as u32, prefix_hash: PrefixHashes::new(known).last(), ids, q: Vec::new() }
}

#[test]
fn a_sequence_alone_waits_for_as_many_drafts_as_pay_and_its_text_is_the_same() {
    let prompt = [1, 2];
    let answer = plain(&prompt);
    let all: Vec<TokenId> = prompt.map(TokenId).iter().chain(&answer).copied().collect();
    let mut engine = sharing();
    let (outlet, _) = open(&mut engine, 1, long(&prompt));
    engine.command(Duration::ZERO, Command::Drafter(ID, IN_TURN));
    let (mut now, mut text, mut waits, mut longest) = (Duration::ZERO, Vec::new(), 0, 0);
    let mut window = 1;
    while !engine.is_empty() {
        let outcome = engine.step(now);
        let (windows, tokens) = heard(&outlet);
        window = windows.last().copied().unwrap_or(window);
        text.extend(tokens);
        if let Outcome::Idle { until } = outcome {
            assert!(until.is_some_and(|until| until > now), "it does not wait for ever");
            let known = &all[..prompt.len() + text.len()];
            assert!(window > 0 && waits < 100, "a wait that nobody was asked to end");
            // Not a word before it was asked for.
            now += Duration::from_millis(10) * window;
            (waits, longest) = (waits + 1, longest.max(window));
            engine.command(now, Command::Drafts(ID, drafts(known, &all, window as usize)));
        } else {
            now += Duration::from_millis(55);
        }
    }
    assert_eq!(text, answer);
    assert!(waits >= 4 && longest >= 3, "{waits} waits, for {longest} at most");
    // Dear drafts are not worth waiting for; nor is one that never comes waited for twice.
    let mut engine = sharing();
    let (outlet, _) = open(&mut engine, 1, long(&prompt));
    engine.command(Duration::ZERO, Command::Drafter(ID, IN_TURN));
    let (mut now, mut waits, mut text) = (Duration::ZERO, 0, Vec::new());
    while !engine.is_empty() {
        match engine.step(now) {
            Outcome::Idle { until } => (now, waits) = (until.unwrap(), waits + 1),
            Outcome::Worked(_) => now += Duration::from_millis(50),
        }
        text.extend(heard(&outlet).1);
    }
    assert_eq!((text, waits), (answer, 1));
}

#[test]
fn with_others_beside_it_nobody_waits_and_the_drafter_is_told_to_rest() {
    let mut engine = sharing();
    let (first, _) = open(&mut engine, 1, long(&[1, 2]));
    let (second, _) = open(&mut engine, 2, long(&[1, 3]));
    for id in [1, 2] {
        engine.command(Duration::ZERO, Command::Drafter(SequenceId(id), IN_TURN));
    }
    let mut windows = [Vec::new(), Vec::new()];
    for step in 0..20 {
        assert!(matches!(engine.step(Duration::from_millis(50 * step)), Outcome::Worked(_)), "{step}");
        for (windows, outlet) in windows.iter_mut().zip([&first, &second]) {
            windows.extend(heard(outlet).0);
        }
    }
    assert_eq!(windows, [vec![0], vec![0]]);
    // Alone again, it asks.
    engine.command(Duration::from_secs(1), Command::Cancel(SequenceId(2)));
    engine.step(Duration::from_secs(1));
    assert!(heard(&first).0.iter().any(|window| *window > 0));
}

/// How a drafter works is a matter of each: one that runs ahead is asked for nothing, and one that comes after another is
/// asked anew.
#[test]
fn only_a_drafter_that_shares_the_cores_is_asked_and_each_from_the_start() {
    let mut engine = sharing();
    let (outlet, _) = open(&mut engine, 1, long(&[1, 2]));
    let mut now = Duration::ZERO;
    let mut drafted_by = |drafter, steps| {
        engine.command(now, Command::Drafter(ID, drafter));
        let mut held = 0;
        for _ in 0..steps {
            match engine.step(now) {
                Outcome::Idle { until } => (now, held) = (until.unwrap(), held + 1),
                Outcome::Worked(_) => now += Duration::from_millis(50),
            }
        }
        (heard(&outlet).0, held)
    };
    assert_eq!(drafted_by(Drafter::Ahead, 5), (vec![], 0));
    let (asked, held) = drafted_by(IN_TURN, 2);
    assert!(asked.first().is_some_and(|window| *window > 0) && held > 0, "{asked:?}, {held} waits");
    assert_eq!(drafted_by(Drafter::Ahead, 5), (vec![], 0));
}

/// Told to rest, a drafter computes nothing of what is committed meanwhile; asked again, it computes all of it in one
/// step and drafts on.
#[test]
fn a_drafter_that_rests_catches_up_when_it_is_asked() {
    let prompt = [1, 2].map(TokenId);
    let answer = plain(&[1, 2]);
    let mut engine = drafter(0.0);
    let outlet = Kept::<DraftEvent>::new();
    let asked = long(&[1, 2]);
    engine.command(
        Duration::ZERO,
        Command::Draft(Box::new(DraftOpen {
            sequence: ID,
            prompt: asked.prompt,
            retrieved: None,
            committed: Vec::new(),
            longest: 64,
            sampling: asked.sampling,
            adjust: asked.adjust,
            constraint: None,
            rule: asked.speculation.rule,
            limits: asked.limits,
            window: 0,
            cache_salt: asked.cache_salt,
            outlet: Box::new(outlet.share()),
            admitted: Box::new(|admitted| admitted.unwrap()),
        })),
    );
    // Its prompt is computed at once: the first ask comes soon.
    assert!(matches!(engine.step(Duration::ZERO), Outcome::Worked(facts) if facts.known_rows > 0));
    let mut known = prompt.to_vec();
    for id in &answer[..12] {
        let (at, prefix_hash) = (known.len() as u32, PrefixHashes::new(&known).last());
        let frame = CommitFrame { at, prefix_hash, ids: vec![*id] };
        engine.command(Duration::ZERO, Command::Commit(ID, frame));
        known.push(*id);
        assert!(matches!(engine.step(Duration::ZERO), Outcome::Idle { .. }), "after {} tokens", known.len());
    }
    engine.command(Duration::ZERO, Command::Window { sequence: ID, window: 3 });
    let Outcome::Worked(facts) = engine.step(Duration::ZERO) else { panic!("it was asked") };
    assert!(facts.known_rows >= 12, "all in one step: {}", facts.known_rows);
    while matches!(engine.step(Duration::ZERO), Outcome::Worked(_)) {}
    let Some(DraftEvent::Drafts(drafts)) = outlet.take().into_iter().last() else { panic!("it drafted") };
    assert_eq!(drafts.ids, answer[12..15]);
}
