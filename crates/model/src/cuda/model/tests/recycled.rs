//! Whole texts: an engine over a model on a GPU, whose drafts are trees of recycled tokens.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{Command, Engine, Outlet, Room, Settings, TargetEvent, TargetOpen};
use request::{Limits, Request, RequestId, Speculation, Strategy};
use scheduler::SequenceId;

use super::*;
use crate::cuda::device_count;

/// A model that counts rows of trees, and kept rows that were not behind the rows before them.
struct Watched<M> {
    model: M,
    tree_rows: Rc<Cell<usize>>,
    moved: Rc<Cell<usize>>,
    last: Vec<Row>,
}

impl<M: Model> Model for Watched<M> {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        let trees = step.rows.iter().filter(|row| row.parent != Parent::Previous).count();
        self.tree_rows.set(self.tree_rows.get() + trees);
        for delta in &step.deltas {
            if let TableChange::Keep { row, from } = delta.change {
                let kept = self.last[row as usize].position + 1 - from;
                let first = self.last[..row as usize].iter().rposition(|row| row.parent == Parent::Previous);
                let moved = first.is_some_and(|first| row as usize - first != kept as usize);
                self.moved.set(self.moved.get() + usize::from(moved));
            }
        }
        self.last.clone_from(&step.rows);
        self.model.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        self.model.collect(ticket, draws)
    }
}

struct Kept(Arc<Mutex<Vec<TargetEvent>>>);

impl Outlet<TargetEvent> for Kept {
    fn room(&self) -> Room {
        Room::Free
    }

    fn deliver(&mut self, event: TargetEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// Texts of several requests at once, with rows of trees and moves of kept ones.
fn texts<M: Model>(model: M, strategy: Strategy) -> (Vec<Vec<TokenId>>, usize, usize) {
    let (tree_rows, moved) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let watched = Watched { model, tree_rows: tree_rows.clone(), moved: moved.clone(), last: Vec::new() };
    let mut engine = Engine::new(watched, Settings { token_budget: 100, ..Settings::default() });
    let outlets: Vec<_> = (0..5u32)
        .map(|i| {
            let sampling =
                Sampling { params: SamplingParams::at(if i == 0 { 0.0 } else { 0.7 }), seed: 3, choice: i };
            let limits = Limits::new(120, vec![TokenId(VOCAB - 1)]);
            let prompt = tokens(u64::from(i), 10 + 40 * i);
            let mut request = Request::new(RequestId::new("test").unwrap(), prompt, sampling, limits);
            request.speculation = Speculation { strategy, ..Speculation::default() };
            // Few tokens: what was drawn last after one is often drawn again, and often another one is.
            request.adjust.logit_bias = (6..VOCAB).map(|id| (TokenId(id), -100.0)).collect();
            let events = Arc::default();
            let open = TargetOpen {
                sequence: SequenceId(i.into()),
                request,
                constraint: None,
                deadline: None,
                outlet: Box::new(Kept(Arc::clone(&events))),
                admitted: Box::new(|admitted| admitted.unwrap()),
            };
            engine.command(Duration::ZERO, Command::Target(Box::new(open)));
            events
        })
        .collect();
    for turn in 0..2000 {
        if engine.is_empty() {
            break;
        }
        engine.step(Duration::from_millis(turn));
    }
    assert!(engine.is_empty(), "the answers did not end");
    let text = |events: &Arc<Mutex<Vec<TargetEvent>>>| {
        let mut text = Vec::new();
        for event in events.lock().unwrap().iter() {
            if let TargetEvent::Committed { frame, .. } = event {
                text.extend_from_slice(&frame.ids);
            }
        }
        text
    };
    (outlets.iter().map(text).collect(), tree_rows.get(), moved.get())
}

/// In the invariant mode a text is the same with drafts in trees and without drafts.
#[test]
fn recycled_trees_change_no_text() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 64, 8, 4, false);
    for (ordinals, dtype) in
        [(vec![0], Dtype::Bf16), (vec![0], Dtype::F32), (vec![0, 1 % device_count()], Dtype::Bf16)]
    {
        let rows = if ordinals.len() > device_count() { 64 } else { CudaOptions::default().rows };
        let cuda = CudaOptions { ordinals, dtype, rows, mode: Mode::Invariant, ..CudaOptions::default() };
        let (plain, none, _) = texts(made.gpu(&cuda), Strategy::None);
        let (drafted, rows, moved) = texts(made.gpu(&cuda), Strategy::Recycle);
        assert_eq!(none, 0);
        println!("{:?} {dtype:?}: {rows} rows of trees, {moved} kept paths moved", cuda.ordinals);
        assert!(rows > 200 && moved > 10, "{rows} rows of trees, {moved} moved");
        assert!(plain.iter().all(|text| text.len() == 120));
        assert!(plain == drafted, "{:?} {dtype:?}: other texts", cuda.ordinals);
    }
}
