//! Readers, limits and failures: what the engine does around the step.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::link::{Kept, MODEL_SEED, VOCAB, request, target};
use engine::{Command, Engine, Outcome, Refusal, Room, Settings, TargetEvent, TargetOpen, ToyModel};
use request::{Finish, Request, Sampling, Speculation, TokenId};
use scheduler::{Refused, SequenceId};

fn open(
    engine: &mut Engine<ToyModel>,
    id: u64,
    request: Request,
) -> (Kept<TargetEvent>, Result<(), Refusal>) {
    let outlet = Kept::new();
    let admitted = Arc::new(Mutex::new(None));
    let answer = admitted.clone();
    engine.command(Command::Target(Box::new(TargetOpen {
        sequence: SequenceId(id),
        request,
        outlet: Box::new(outlet.share()),
        admitted: Box::new(move |a| *answer.lock().unwrap() = Some(a)),
    })));
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

#[test]
fn a_model_that_fails_ends_the_answers_of_its_step_and_serves_the_next() {
    /// Its second step ends with logits that are not finite in row 1.
    struct Broken(ToyModel, u32);
    impl engine::Model for Broken {
        fn spec(&self) -> &engine::ModelSpec {
            engine::Model::spec(&self.0)
        }
        fn submit(&mut self, step: &scheduler::Step) -> Result<engine::Ticket, engine::ModelError> {
            self.1 += 1;
            let ticket = self.0.submit(step)?;
            if self.1 == 2 {
                return Err(engine::ModelError::NotFinite { row: 1 });
            }
            Ok(ticket)
        }
        fn collect(&mut self, ticket: engine::Ticket) -> Result<engine::Picks, engine::ModelError> {
            self.0.collect(ticket)
        }
    }
    let mut reference = target(64);
    let (kept, _) = open(&mut reference, 1, long(&[1, 2], 20));
    while !reference.is_empty() {
        reference.step(Duration::ZERO);
    }
    let text = |outlet: &Kept<TargetEvent>| -> Vec<TokenId> {
        outlet
            .take()
            .into_iter()
            .flat_map(|e| if let TargetEvent::Committed { frame, .. } = e { frame.ids } else { vec![] })
            .collect()
    };
    let expected = text(&kept);

    let toy = ToyModel::new(ToyModel::spec(VOCAB, 256, 8, 200), MODEL_SEED);
    let mut engine = Engine::new(Broken(toy, 0), Settings::default());
    let outlets: Vec<Kept<TargetEvent>> = [(1u64, [1u32, 2]), (2, [1, 3])]
        .into_iter()
        .map(|(id, prompt)| {
            let outlet = Kept::new();
            engine.command(Command::Target(Box::new(TargetOpen {
                sequence: SequenceId(id),
                request: long(&prompt, 20),
                outlet: Box::new(outlet.share()),
                admitted: Box::new(|a| a.unwrap()),
            })));
            outlet
        })
        .collect();
    while !engine.is_empty() {
        engine.step(Duration::ZERO);
    }
    // Row 1 of the second step is the second sequence's decode; the first one is unharmed.
    assert_eq!(ended(&outlets[1]), Some(Finish::Failed));
    assert_eq!(text(&outlets[0]), expected);
}
