//! Readers, limits and failures: what the engine does around the step.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::link::{Kept, MODEL_SEED, VOCAB, request, target};
use engine::{
    Command, Engine, Facts, Model, ModelError, ModelSpec, Outcome, Picks, Refusal, Room, Settings,
    TargetEvent, TargetOpen, Ticket, ToyModel,
};
use request::{Finish, Request, Sampling, Speculation, TokenId, Usage};
use sampling::Draw;
use scheduler::{Output, Refused, SequenceId, Step};
use speculation::{Drafts, PrefixHashes};

pub fn open<M: Model>(
    engine: &mut Engine<M>,
    id: u64,
    request: Request,
) -> (Kept<TargetEvent>, Result<(), Refusal>) {
    let outlet = Kept::new();
    let admitted = Arc::new(Mutex::new(None));
    let answer = admitted.clone();
    engine.command(
        Duration::ZERO,
        Command::Target(Box::new(TargetOpen {
            sequence: SequenceId(id),
            request,
            constraint: None,
            deadline: None,
            outlet: Box::new(outlet.share()),
            admitted: Box::new(move |a| *answer.lock().unwrap() = Some(a)),
        })),
    );
    let admitted = admitted.lock().unwrap().take().expect("every open is answered at once");
    (outlet, admitted)
}

fn long(prompt: &[u32], max_tokens: u32) -> Request {
    let mut request = request(prompt, max_tokens, Sampling::GREEDY, Speculation::default());
    request.limits.stop_ids.clear();
    request
}

fn ended(outlet: &Kept<TargetEvent>) -> Option<Finish> {
    outlet.take().into_iter().find_map(|e| match e {
        TargetEvent::Ended(ended) => Some(ended.finish),
        _ => None,
    })
}

#[test]
fn a_slow_reader_is_held_then_dropped_and_the_others_go_on() {
    let mut engine = target(64);
    let (slow, _) = open(&mut engine, 1, long(&[1, 2], 200));
    let (other, _) = open(&mut engine, 2, long(&[1, 3], 200));
    engine.step(Duration::ZERO);
    *slow.room.lock().unwrap() = Room::Full;
    slow.take();
    other.take();
    for second in 1..30 {
        engine.step(Duration::from_secs(second));
        assert!(slow.take().is_empty(), "nothing is pushed on a reader without room");
        assert_eq!(other.take().len(), 1, "the other stream keeps its pace");
    }
    engine.step(Duration::from_secs(31));
    assert_eq!(ended(&slow), Some(Finish::SlowClient));
    assert_eq!(engine.scheduler().running(), 1);
}

#[test]
fn a_reader_that_left_frees_its_pages_at_the_next_step() {
    let mut engine = target(64);
    let free = engine.scheduler().free_pages();
    let (gone, _) = open(&mut engine, 1, long(&[1, 2], 200));
    engine.step(Duration::ZERO);
    assert!(engine.scheduler().free_pages() < free);
    *gone.room.lock().unwrap() = Room::Gone;
    assert_eq!(engine.step(Duration::ZERO), Outcome::Idle { until: None });
    assert_eq!((engine.scheduler().free_pages(), engine.is_empty()), (free, true));
}

#[test]
fn what_cannot_run_is_refused_with_its_reason() {
    let mut engine = target(64);
    let (_, refused) = open(&mut engine, 1, long(&[1, VOCAB], 4));
    assert_eq!(refused.unwrap_err().to_string(), "prompt: token 24 is outside the vocabulary of 24");
    let (_, refused) = open(&mut engine, 1, long(&[1; 250], 7));
    assert_eq!(refused, Err(Refusal::Scheduler(Refused::TooLong { longest: 257, context: 256 })));
    let (_, refused) = open(&mut engine, 1, long(&[], 7));
    assert!(matches!(refused, Err(Refusal::Invalid(field)) if field.field == "prompt"));
    let (_, first) = open(&mut engine, 1, long(&[1], 7));
    let (_, doubled) = open(&mut engine, 1, long(&[1], 7));
    assert_eq!((first, doubled), (Ok(()), Err(Refusal::Scheduler(Refused::Doubled(SequenceId(1))))));
}

/// A toy whose n-th step ends in an error: applied to the tables first, or refused before.
struct Broken {
    toy: ToyModel,
    steps: u32,
    fails_at: u32,
    error: ModelError,
}

impl Model for Broken {
    fn spec(&self) -> &ModelSpec {
        Model::spec(&self.toy)
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        self.steps += 1;
        if self.steps == self.fails_at {
            if matches!(self.error, ModelError::NotFinite { .. }) {
                let ticket = self.toy.submit(step)?;
                let rows = step.rows.iter().filter(|r| r.output == Output::Pick).count();
                self.toy.collect(ticket, &vec![Draw::new(Sampling::GREEDY); rows])?;
            }
            return Err(self.error.clone());
        }
        self.toy.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        self.toy.collect(ticket, draws)
    }
}

fn broken(fails_at: u32, error: ModelError) -> Engine<Broken> {
    let toy = ToyModel::new(ToyModel::spec(VOCAB, 256, 8, 200), MODEL_SEED);
    Engine::new(Broken { toy, steps: 0, fails_at, error }, Settings::default())
}

pub fn text(outlet: &Kept<TargetEvent>) -> (Vec<TokenId>, Option<Finish>) {
    let (mut ids, mut finish) = (Vec::new(), None);
    for event in outlet.take() {
        match event {
            TargetEvent::Committed { frame, .. } => ids.extend(frame.ids),
            TargetEvent::Ended(ended) => finish = Some(ended.finish),
            TargetEvent::Started { .. } | TargetEvent::Ask { .. } | TargetEvent::Again(_) => {}
        }
    }
    (ids, finish)
}

/// What was said, and the usage at the end.
pub fn answer(outlet: &Kept<TargetEvent>) -> (Vec<TokenId>, Usage) {
    let (mut ids, mut usage) = (Vec::new(), Usage::default());
    for event in outlet.take() {
        match event {
            TargetEvent::Committed { frame, .. } => ids.extend(frame.ids),
            TargetEvent::Ended(ended) => usage = ended.usage,
            TargetEvent::Started { .. } | TargetEvent::Ask { .. } | TargetEvent::Again(_) => {}
        }
    }
    (ids, usage)
}

fn finish_all<M: Model>(engine: &mut Engine<M>) {
    while !engine.is_empty() {
        engine.step(Duration::ZERO);
    }
}

/// The text of the two requests of the tests below, each alone on a sound model.
fn alone() -> [Vec<TokenId>; 2] {
    [[1, 2], [1, 3]].map(|prompt| {
        let mut engine = target(64);
        let (outlet, _) = open(&mut engine, 1, long(&prompt, 20));
        finish_all(&mut engine);
        text(&outlet).0
    })
}

#[test]
fn broken_logits_end_the_answer_of_their_row_only() {
    let mut engine = broken(2, ModelError::NotFinite { row: 1 });
    let (first, _) = open(&mut engine, 1, long(&[1, 2], 20));
    let (second, _) = open(&mut engine, 2, long(&[1, 3], 20));
    finish_all(&mut engine);
    // Row 1 of the second step is the second sequence's decode.
    assert_eq!(text(&second).1, Some(Finish::Failed));
    assert_eq!(text(&first), (alone()[0].clone(), Some(Finish::Length)));
}

#[test]
fn broken_logits_of_a_draft_cost_the_draft_only() {
    let mut engine = broken(2, ModelError::NotFinite { row: 1 });
    let (outlet, _) = open(&mut engine, 1, long(&[1, 2], 20));
    engine.step(Duration::ZERO);
    let known = engine.scheduler().tokens(SequenceId(1)).unwrap();
    let drafts = Drafts {
        at: known.len() as u32,
        prefix_hash: PrefixHashes::new(known).last(),
        ids: vec![TokenId(5), TokenId(6)],
        q: Vec::new(),
    };
    engine.command(Duration::ZERO, Command::Drafts(SequenceId(1), drafts));
    // Row 0 is the decode, row 1 the first draft.
    finish_all(&mut engine);
    assert_eq!(text(&outlet), (alone()[0].clone(), Some(Finish::Length)));
}

#[test]
fn a_refused_step_ends_all_and_the_next_request_finds_clean_tables() {
    for error in [
        ModelError::OutOfRange { what: "page", index: 9, bound: 1 },
        ModelError::Unsupported { what: "this" },
        ModelError::Device("lost".into()),
    ] {
        let mut engine = broken(3, error);
        let (first, _) = open(&mut engine, 1, long(&[1, 2], 20));
        engine.step(Duration::ZERO);
        let (second, _) = open(&mut engine, 2, long(&[1, 3], 20));
        engine.step(Duration::ZERO);
        // Left out of the failing step: its table must not be trusted either.
        *first.room.lock().unwrap() = Room::Full;
        engine.step(Duration::ZERO);
        assert_eq!((text(&first).1, text(&second).1), (Some(Finish::Failed), Some(Finish::Failed)));
        for (prompt, expected) in [[1, 2], [1, 3]].iter().zip(alone()) {
            let (outlet, _) = open(&mut engine, 9, long(prompt, 20));
            finish_all(&mut engine);
            assert_eq!(text(&outlet), (expected, Some(Finish::Length)));
        }
    }
}

#[test]
fn a_replay_of_a_complete_answer_ends_at_once() {
    let mut engine = target(64);
    let mut full = long(&[1, 2], 3);
    full.committed = vec![TokenId(4); 3];
    let (outlet, admitted) = open(&mut engine, 1, full.clone());
    assert_eq!((admitted, text(&outlet)), (Ok(()), (vec![], Some(Finish::Length))));
    full.limits.stop_ids = vec![TokenId(7)];
    full.committed = vec![TokenId(4), TokenId(7)];
    let (outlet, _) = open(&mut engine, 2, full);
    assert_eq!(text(&outlet), (vec![], Some(Finish::Stop)));
    assert!(engine.is_empty());
}

fn open_until<M: Model>(
    engine: &mut Engine<M>,
    id: u64,
    request: Request,
    (now, deadline): (Duration, Option<Duration>),
) -> (Kept<TargetEvent>, Result<(), Refusal>) {
    let (outlet, admitted) = (Kept::new(), Arc::new(Mutex::new(None)));
    let answer = admitted.clone();
    let open = TargetOpen {
        sequence: SequenceId(id),
        request,
        constraint: None,
        deadline,
        outlet: Box::new(outlet.share()),
        admitted: Box::new(move |a| *answer.lock().unwrap() = Some(a)),
    };
    engine.command(now, Command::Target(Box::new(open)));
    let admitted = admitted.lock().unwrap().take().expect("every open is answered at once");
    (outlet, admitted)
}

#[test]
fn a_deadline_ends_what_runs_what_waits_and_what_is_held() {
    let mut engine = target(64);
    let s = Duration::from_secs;
    let free = engine.scheduler().free_pages();
    let mut outlets = Vec::new();
    // Eight slots: the ninth waits.
    for id in 0..9 {
        let (outlet, admitted) =
            open_until(&mut engine, id, long(&[1, 2 + id as u32], 200), (s(0), Some(s(5))));
        admitted.unwrap();
        outlets.push(outlet);
    }
    engine.step(s(0));
    assert_eq!((engine.scheduler().running(), engine.scheduler().waiting()), (8, 1));
    *outlets[3].room.lock().unwrap() = Room::Full;
    engine.step(s(4));
    engine.step(s(5));
    for outlet in &outlets {
        assert_eq!(ended(outlet), Some(Finish::Deadline));
    }
    assert!(engine.is_empty());
    assert_eq!(engine.scheduler().free_pages(), free);
}

/// Eight slots, each answer takes its time; once it is known how fast slots come free, a request that
/// would wait too long is told so at once, and one with room to wait is taken.
#[test]
fn a_wait_that_is_too_long_is_refused_with_its_prediction() {
    let settings = Settings { max_wait: Duration::from_secs(10), ..Settings::default() };
    let mut engine = Engine::new(ToyModel::new(ToyModel::spec(VOCAB, 256, 1, 200), MODEL_SEED), settings);
    let s = Duration::from_secs;
    let mut next = 0;
    let mut ask = |engine: &mut Engine<ToyModel>, now: u64, deadline: Option<u64>| {
        next += 1;
        open_until(engine, next, long(&[1, 2], 2), (s(now), deadline.map(s))).1
    };
    // One slot, two steps of two seconds an answer: a slot every four seconds.
    for _ in 0..4 {
        ask(&mut engine, 0, None).unwrap();
    }
    for step in 1..=4 {
        engine.step(s(step * 2));
    }
    assert_eq!(engine.scheduler().waiting(), 2);
    // Two wait and the slot is free: a third would wait for two of them, a fourth for three, less the time
    // since the last end.
    ask(&mut engine, 8, None).unwrap();
    let refused = ask(&mut engine, 8, None).unwrap_err();
    assert_eq!(refused, Refusal::Wait { predicted: s(12), most: s(10) });
    assert_eq!(ask(&mut engine, 10, None), Ok(()), "two seconds later it would wait ten");
    // Who goes before all that wait, and may take the slot, does not wait for them.
    let urgent = Request { priority: 1, ..long(&[1, 2], 2) };
    assert_eq!(open_until(&mut engine, 100, urgent, (s(11), None)).1, Ok(()));
    // A deadline sooner than the wait is no use to anybody.
    let refused = ask(&mut engine, 12, Some(15)).unwrap_err();
    assert!(matches!(refused, Refusal::Wait { most, .. } if most == s(3)), "{refused}");
}

/// A client that cancels, and one that just leaves: two steps later nothing of them is left.
#[test]
fn cancelled_sequences_leave_nothing_after_two_steps() {
    let mut engine = target(64);
    let free = engine.scheduler().free_pages();
    let (cancelled, _) = open(&mut engine, 1, long(&[1, 2], 200));
    let (left, _) = open(&mut engine, 2, long(&[1, 3], 200));
    for _ in 0..3 {
        engine.step(Duration::ZERO);
    }
    engine.command(Duration::ZERO, Command::Cancel(SequenceId(1)));
    *left.room.lock().unwrap() = Room::Gone;
    engine.step(Duration::ZERO);
    engine.step(Duration::ZERO);
    assert_eq!((engine.scheduler().free_pages(), engine.is_empty()), (free, true));
    // The outlets were dropped: whoever waits on them (a drafter's session) hears of it.
    assert_eq!((Arc::strong_count(&cancelled.events), Arc::strong_count(&left.events)), (1, 1));
}

/// A decode of n rows takes 20 ms and half a millisecond a row, a prompt six a row: that prompts come says
/// nothing about drafts.
#[test]
fn prompts_do_not_make_drafts_look_dear() {
    let mut engine = target(64);
    let rows =
        |known_rows, decodes, draft_rows| Facts { known_rows, decodes, draft_rows, ..Facts::default() };
    for step in 0..200 {
        let decode = rows(1, 1, step % 3);
        engine.took(&decode, Duration::from_micros(20_000 + 500 * u64::from(1 + decode.draft_rows)));
        if step % 20 == 0 {
            engine.took(&rows(512, 0, 0), Duration::from_millis(3092));
        }
    }
    let _ = open(&mut engine, 1, long(&[1, 2], 200));
    engine.step(Duration::ZERO);
    let known = engine.scheduler().tokens(SequenceId(1)).unwrap();
    let (at, prefix_hash) = (known.len() as u32, PrefixHashes::new(known).last());
    let drafts = Drafts { at, prefix_hash, ids: vec![TokenId(5); 6], q: Vec::new() };
    engine.command(Duration::ZERO, Command::Drafts(SequenceId(1), drafts));
    let Outcome::Worked(facts) = engine.step(Duration::ZERO) else { panic!("idle") };
    assert_eq!(facts.draft_rows, 6);
}

/// When verifying a row costs as much as a step, drafts that are wrong are not verified; no step is spent on
/// trying, and when they become right that is seen as well.
#[test]
fn drafts_that_do_not_pay_are_left_out() {
    let mut plain = target(64);
    let (outlet, _) = open(&mut plain, 1, long(&[1, 2], 200));
    while !plain.is_empty() {
        plain.step(Duration::ZERO);
    }
    let text = [vec![TokenId(1), TokenId(2)], answer(&outlet).0].concat();

    let mut engine = target(64);
    let (outlet, _) = open(&mut engine, 1, long(&[1, 2], 200));
    engine.step(Duration::ZERO);
    let mut verified = Vec::new();
    for step in 0..110u32 {
        let known = engine.scheduler().tokens(SequenceId(1)).unwrap();
        let truth = text[known.len()..known.len() + 4].iter();
        let drafts = Drafts {
            at: known.len() as u32,
            prefix_hash: PrefixHashes::new(known).last(),
            ids: truth.map(|t| if step < 60 { TokenId((t.0 + 1) % VOCAB) } else { *t }).collect(),
            q: Vec::new(),
        };
        engine.command(Duration::ZERO, Command::Drafts(SequenceId(1), drafts));
        let Outcome::Worked(facts) = engine.step(Duration::ZERO) else { panic!("idle") };
        verified.push(facts.draft_rows);
        // A step of n rows takes n + 1 units.
        let rows = facts.known_rows + facts.draft_rows;
        engine.took(&facts, Duration::from_millis(u64::from(rows) + 1));
        assert!(facts.drafts == 1 || facts.undrafted.spent + facts.undrafted.absent == 1, "step {step}");
        if engine.scheduler().tokens(SequenceId(1)).unwrap().len() > 195 {
            break;
        }
    }
    assert_eq!(verified[0], 4, "at first nothing is known");
    assert_eq!(verified[30..60].iter().sum::<u32>(), 0, "{verified:?}");
    assert_eq!(verified.last(), Some(&4), "{verified:?}");
    assert_eq!(ended(&outlet), None);
}
