//! Whole texts: an engine over a model on a GPU that begins steps before they come.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{Command, Engine, Outlet, Room, Settings, TargetEvent, TargetOpen};
use request::{Limits, Request, RequestId, Speculation, Strategy};
use scheduler::SequenceId;

use super::*;

/// A model that may not begin early, and what it counted.
struct Seen {
    model: CudaModel,
    early: bool,
    adopted: Rc<Cell<u64>>,
    /// Adopted steps that came with changes of tables.
    changed: Rc<Cell<u64>>,
}

impl Model for Seen {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn begins_early(&self) -> bool {
        self.early && self.model.begins_early()
    }

    fn expect(&mut self, next: &Step) {
        self.model.expect(next);
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        let ticket = self.model.submit(step);
        let more = self.model.adopted() > self.adopted.get() && !step.deltas.is_empty();
        self.changed.set(self.changed.get() + u64::from(more));
        self.adopted.set(self.model.adopted());
        ticket
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        self.model.collect(ticket, draws)
    }
}

struct Kept(Arc<Mutex<Vec<TokenId>>>);

impl Outlet<TargetEvent> for Kept {
    fn room(&self) -> Room {
        Room::Free
    }

    fn deliver(&mut self, event: TargetEvent) {
        if let TargetEvent::Committed { frame, .. } = event {
            self.0.lock().unwrap().extend_from_slice(&frame.ids);
        }
    }
}

/// Answers of different lengths that come one after the other, some drawn with filters, one looking itself up for drafts, one
/// cancelled; with how many steps were adopted, and how many of those with changed tables.
fn texts(model: CudaModel, early: bool) -> (Vec<Vec<TokenId>>, u64, u64) {
    let (adopted, changed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let seen = Seen { model, early, adopted: adopted.clone(), changed: changed.clone() };
    let mut engine = Engine::new(seen, Settings { token_budget: 100, ..Settings::default() });
    let mut outlets = Vec::new();
    for turn in 0..3000u64 {
        let i = turn / 60;
        if turn % 60 == 0 && i < 5 {
            let params = match i {
                0 => SamplingParams::at(0.0),
                1 => SamplingParams { top_p: 0.9, top_k: 30, ..SamplingParams::at(0.8) },
                _ => SamplingParams::at(0.7),
            };
            let sampling = Sampling { params, seed: 3, choice: i as u32 };
            let limits = Limits::new(90 + 37 * i as u32, vec![TokenId(VOCAB - 1)]);
            let prompt = tokens(i, 10 + 40 * i as u32);
            let mut request = Request::new(RequestId::new("test").unwrap(), prompt, sampling, limits);
            let strategy = if i == 3 { Strategy::Ngram } else { Strategy::None };
            request.speculation = Speculation { strategy, ..Speculation::default() };
            let ids = Arc::default();
            let open = TargetOpen {
                sequence: SequenceId(i),
                request,
                constraint: None,
                deadline: None,
                outlet: Box::new(Kept(Arc::clone(&ids))),
                admitted: Box::new(|admitted| admitted.unwrap()),
            };
            engine.command(Duration::ZERO, Command::Target(Box::new(open)));
            outlets.push(ids);
        }
        if turn == 150 {
            engine.command(Duration::ZERO, Command::Cancel(SequenceId(2)));
        }
        engine.step(Duration::from_millis(turn));
        if engine.is_empty() && i >= 5 {
            break;
        }
    }
    assert!(engine.is_empty(), "the answers did not end");
    let texts = outlets.iter().map(|ids: &Arc<Mutex<Vec<TokenId>>>| ids.lock().unwrap().clone());
    (texts.collect(), adopted.get(), changed.get())
}

/// In the invariant mode a text is the same whether steps begin early or not.
#[test]
fn steps_that_begin_early_change_no_text() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 64, 8, 4, false);
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let cuda = CudaOptions { dtype, mode: Mode::Invariant, ..CudaOptions::default() };
        let warm = || {
            let mut model = made.gpu(&cuda);
            model.warm().unwrap();
            model
        };
        let (late, none, _) = texts(warm(), false);
        let (early, adopted, changed) = texts(warm(), true);
        assert_eq!(none, 0);
        println!("{dtype:?}: {adopted} steps adopted, {changed} with other tables");
        assert!(adopted > 100 && changed > 5, "{adopted} steps adopted, {changed} with other tables");
        // Whoever was cancelled may have got a token more or less by then.
        let whole = |texts: &[Vec<TokenId>]| [0, 1, 3, 4].map(|i: usize| texts[i].clone());
        assert!(late.iter().map(Vec::len).sum::<usize>() > 500);
        assert!(whole(&late) == whole(&early), "{dtype:?}: other texts");
    }
}
