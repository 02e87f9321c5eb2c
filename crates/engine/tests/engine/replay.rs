//! A recorded pair's words over other models: the text is the trace's, and drafts are right exactly as often
//! as they were recorded to be.

use std::sync::Arc;

use crate::link::{Answer, Dice, Faults, Setup, drive, request};
use engine::{Engine, Recorded, Replay, ReplayError, Settings, Side, ToyModel, Trace};
use kvcache::HeadClass;
use request::{Finish, Request, Sampling, Speculation, Strategy, TokenId};
use std::time::Duration;

const VOCAB: u32 = 50;

fn ids(dice: &mut Dice, n: u64) -> Vec<TokenId> {
    (0..n).map(|_| TokenId(1 + dice.below(u64::from(VOCAB) - 1) as u32)).collect()
}

/// Answers of 30 to 60 tokens of which a drafter knows about two thirds; some prompts begin alike.
fn trace(dice: &mut Dice, answers: usize) -> Arc<Trace> {
    let common = ids(dice, 40);
    let answers = (0..answers)
        .map(|i| {
            let own = 3 + dice.below(20);
            let prompt = [&common[..if i % 2 == 0 { 40 } else { 0 }], &ids(dice, own)].concat();
            let length = 30 + dice.below(30);
            let target = ids(dice, length);
            let drafter = target.iter().map(|t| if dice.chance(33) { TokenId(0) } else { *t }).collect();
            Recorded { prompt, target, drafter }
        })
        .collect();
    Arc::new(Trace { vocab_size: VOCAB, answers })
}

/// Models of another vocabulary and law than the trace's.
fn replaying(trace: &Arc<Trace>, side: Side, pages: u32) -> Engine<Replay<ToyModel>> {
    // The harness leaves sessions open on a drafter: it needs a slot for each.
    let slots = if side == Side::Target { 3 } else { 8 };
    let toy = ToyModel::new(ToyModel::spec(VOCAB + 9, 256, slots, pages), 7);
    let settings = Settings { token_budget: 32, ..Settings::default() };
    Engine::new(Replay::new(toy, trace.clone(), side).unwrap(), settings)
}

fn asked(answer: &Recorded, strategy: Strategy) -> Request {
    let prompt: Vec<u32> = answer.prompt.iter().map(|t| t.0).collect();
    let speculation = Speculation { strategy, ..Speculation::default() };
    let mut request = request(&prompt, answer.target.len() as u32, Sampling::GREEDY, speculation);
    request.limits.stop_ids.clear();
    request
}

/// What chains of at most `k` drafts come to: the trace read by hand.
fn chains(answer: &Recorded, k: usize) -> Vec<u64> {
    let length = answer.target.len();
    // The first token is the prompt's own step.
    let (mut at, mut histogram) = (1, Vec::new());
    while at < length {
        // No draft for the last place of all: the target's own token fills it.
        let drafts = k.min(length - at - 1);
        let right = |i: &usize| answer.drafter[at + i] == answer.target[at + i];
        let accepted = (0..drafts).take_while(right).count();
        if drafts > 0 {
            histogram.resize(histogram.len().max(accepted + 1), 0);
            histogram[accepted] += 1;
        }
        at += accepted + 1;
    }
    histogram
}

#[test]
fn texts_and_acceptance_are_the_recorded_ones() {
    let mut dice = Dice(11);
    let (mut accepted, mut preempted, mut hits) = (0, 0, 0);
    for case in 0..40 {
        let trace = trace(&mut dice, 6);
        let k = 1 + dice.below(6) as u32;
        let strategy = Strategy::Lockstep { k, deadline: Duration::from_secs(9) };
        let requests: Vec<Request> = trace.answers.iter().map(|a| asked(a, strategy)).collect();
        let faults = Faults::default();
        // 12 pages do not hold two sequences of up to 123 positions.
        let pages = [12, 200][case % 2];
        let target = replaying(&trace, Side::Target, pages);
        let drafter = Some(replaying(&trace, Side::Drafter, 200));
        let ran = drive(
            &requests,
            Setup { target, drafter, faults, kill_after: None, switch: 0, constraint: None },
            &mut dice,
        );
        (preempted, hits) = (preempted + ran.preempted, hits + ran.prefix_hits);
        for (answer, recorded) in ran.answers.iter().zip(&trace.answers) {
            let Answer { output, finish, stats, .. } = answer;
            assert_eq!((output, *finish), (&recorded.target, Some(Finish::Length)), "case {case}");
            if pages == 200 {
                assert_eq!(stats.histogram, chains(recorded, k as usize), "case {case}, chains of {k}");
            }
            accepted += stats.accepted_tokens;
        }
    }
    assert!(accepted > 2_000 && preempted > 20 && hits > 500, "{accepted} {preempted} {hits}");
}

/// A drafter that runs freely over a bad link is as right as it can be and changes no text.
#[test]
fn a_free_running_drafter_replays_too() {
    let mut dice = Dice(12);
    let mut accepted = 0;
    for case in 0..30 {
        let trace = trace(&mut dice, 3);
        let requests: Vec<Request> = trace.answers.iter().map(|a| asked(a, Strategy::Draft)).collect();
        let faults = Faults { lose: 10, delay: 30, double: 10, reorder: 20, lie: 10, pause: 20 };
        let target = replaying(&trace, Side::Target, 200);
        let drafter = Some(replaying(&trace, Side::Drafter, 200));
        let setup = Setup { target, drafter, faults, kill_after: None, switch: 0, constraint: None };
        for (answer, recorded) in drive(&requests, setup, &mut dice).answers.iter().zip(&trace.answers) {
            assert_eq!(answer.output, recorded.target, "case {case}");
            accepted += answer.stats.accepted_tokens;
        }
    }
    assert!(accepted > 500, "{accepted}");
}

#[test]
fn what_is_not_in_the_trace_is_the_models_own() {
    let mut dice = Dice(13);
    let trace = trace(&mut dice, 2);
    let mut foreign = asked(&trace.answers[0], Strategy::None);
    foreign.prompt[5] = TokenId(0);
    let mut beyond = asked(&trace.answers[1], Strategy::None);
    beyond.limits.max_tokens += 7;
    let setup = |target| Setup {
        target,
        drafter: None::<Engine<ToyModel>>,
        faults: Faults::default(),
        kill_after: None,
        switch: 0,
        constraint: None,
    };
    for request in [foreign, beyond] {
        let own = Engine::new(ToyModel::new(ToyModel::spec(VOCAB + 9, 256, 3, 200), 7), Settings::default());
        let recorded = &trace.answers[1];
        let replayed =
            drive(std::slice::from_ref(&request), setup(replaying(&trace, Side::Target, 200)), &mut dice);
        let output = &replayed.answers[0].output;
        let (skip, request) = match output.strip_prefix(recorded.target.as_slice()) {
            // Behind the recorded end it goes on as the model does from there.
            Some(_) => {
                let committed = recorded.target.clone();
                (committed.len(), Request { committed, ..request })
            }
            None => (0, request),
        };
        assert_eq!(skip > 0, request.prompt == recorded.prompt);
        let plain = Setup {
            target: own,
            drafter: None::<Engine<ToyModel>>,
            faults: Faults::default(),
            kill_after: None,
            switch: 0,
            constraint: None,
        };
        assert_eq!(drive(&[request], plain, &mut dice).answers[0].output, output[skip..]);
    }
}

#[test]
fn a_trace_that_does_not_fit_is_refused() {
    let good = trace(&mut Dice(1), 2);
    let toy = |vocab, context| ToyModel::new(ToyModel::spec(vocab, context, 1, 20), 1);
    let refused = |trace: &Trace, toy| Replay::new(toy, Arc::new(trace.clone()), Side::Target).unwrap_err();
    assert_eq!(refused(&good, toy(VOCAB - 1, 256)), ReplayError::Vocabulary { trace: 50, model: 49 });
    assert!(matches!(refused(&good, toy(VOCAB, 30)), ReplayError::Context { context: 30, .. }));
    let mut windowed = ToyModel::spec(VOCAB, 256, 1, 20);
    windowed.classes = vec![(HeadClass::Window { sink: 4, recent: 32 }, 20)];
    assert_eq!(refused(&good, ToyModel::new(windowed, 1)), ReplayError::NoFullClass);
    type Change = fn(&mut Trace);
    let cases: [(Change, &str); 5] = [
        (|t| t.answers[1].prompt.clear(), "answer 1 of the trace has no prompt or no tokens"),
        (|t| t.answers[0].target.clear(), "has no prompt or no tokens"),
        (|t| t.answers[0].drafter.truncate(3), "has not as many drafts as tokens"),
        (|t| t.answers[0].drafter[0] = TokenId(VOCAB), "has an id outside its own vocabulary"),
        (|t| t.vocab_size = 1, "no draft can be wrong"),
    ];
    for (change, why) in cases {
        let mut trace = Trace::clone(&good);
        change(&mut trace);
        let error = refused(&trace, toy(VOCAB, 256)).to_string();
        assert!(error.contains(why), "{error}");
    }
}
