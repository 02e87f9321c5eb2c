//! What a step costs by its rows, measured before the first request.

use std::time::Duration;

use kvcache::{ClassId, HeadClass, PageId};
use request::{Sampling, TokenId};
use sampling::Draw;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

use crate::{Engine, Layered, Model, ModelError, SelfDraft};

/// Each size is run so often, and on while that takes less than `SHORT` together; the fastest counts, as nothing makes a
/// step faster than it is.
const RUNS: usize = 2;
const MOST_RUNS: usize = 8;
const SHORT: Duration = Duration::from_millis(30);

impl<M: Model> Engine<M> {
    /// Times steps of one sequence of 1 row up to one more than the drafts that a step may carry. To be called
    /// while the rank is empty. An error leaves the rank as it was, with the sizes that were measured.
    pub fn calibrate(&mut self, clock: &dyn Fn() -> Duration) -> Result<(), ModelError> {
        debug_assert!(self.is_empty(), "the first slot and the first pages are taken");
        let spec = self.spec();
        let pages = spec.classes.iter().map(|(_, pages)| *pages).min().unwrap_or(0);
        let room =
            pages.saturating_mul(kvcache::PAGE_POSITIONS).min(spec.context).min(self.settings.token_budget);
        let most = self.settings.max_draft.saturating_add(1).min(room);
        let mut sizes: Vec<u32> =
            std::iter::successors(Some(1), |n| Some(n * 2 - n / 2)).take_while(|n| *n < most).collect();
        sizes.push(most);
        if most == 0 {
            return Ok(());
        }
        let mut deltas = self.room_for(most);
        let mut measured = Ok(());
        'sizes: for rows in sizes {
            let (mut fastest, begin) = (Duration::MAX, clock());
            // The first run of all reads weights that were never touched.
            let least = if rows == 1 { RUNS + 1 } else { RUNS };
            for run in 0..MOST_RUNS {
                if run >= least && clock().saturating_sub(begin) > SHORT {
                    break;
                }
                let step = Step { deltas: std::mem::take(&mut deltas), rows: (0..rows).map(row).collect() };
                let draws = vec![Draw::new(Sampling::GREEDY); rows as usize];
                let start = clock();
                let done = self.model.submit(&step).and_then(|ticket| self.model.collect(ticket, &draws));
                if let Err(error) = done {
                    measured = Err(error);
                    break 'sizes;
                }
                fastest = fastest.min(clock().saturating_sub(start));
            }
            self.drafting.cost.record(rows, fastest);
        }
        let drafted = measured.and_then(|()| self.calibrate_drafts(clock, room));
        let drafted = drafted.and_then(|()| self.calibrate_window(clock, room));
        self.scheduler.clear_tables();
        drafted
    }

    /// Times drafts of the model's own first layers, behind few and behind many; what a layer takes and what a draft
    /// takes besides follow from that, and from a step what its head takes.
    fn calibrate_drafts(&mut self, clock: &dyn Fn() -> Duration, room: u32) -> Result<(), ModelError> {
        const DRAFTS: u32 = 4;
        let Some(Layered { layers, windows, .. }) = self.drafting.layered else { return Ok(()) };
        let (few, many) = (1, layers.div_ceil(2));
        if many <= few || room <= DRAFTS {
            return Ok(());
        }
        let mut seconds = [f64::INFINITY; 2];
        for (fastest, exit) in seconds.iter_mut().zip([few, many]) {
            let asked = SelfDraft { exit, ..drafts(DRAFTS) };
            let begin = clock();
            for run in 0..MOST_RUNS {
                if run > RUNS && clock().saturating_sub(begin) > SHORT {
                    break;
                }
                let start = clock();
                self.model.self_draft(&asked)?;
                let took = clock().saturating_sub(start).as_secs_f64();
                *fastest = fastest.min(took / f64::from(DRAFTS));
            }
        }
        let layer = (seconds[1] - seconds[0]) / f64::from(many - few);
        let Some(step) = self.drafting.cost.seconds(1).filter(|_| layer > 0.0) else { return Ok(()) };
        let head = (step / layer - f64::from(layers)).max(0.0);
        let draft = (seconds[0] / layer - f64::from(few)).max(0.0);
        self.drafting.layered = Some(Layered { layers, head, draft, windows });
        Ok(())
    }

    /// Times drafts over a window. Behind a text that is no longer than the window they would take little more.
    fn calibrate_window(&mut self, clock: &dyn Fn() -> Duration, room: u32) -> Result<(), ModelError> {
        const DRAFTS: u32 = 2;
        let Some(Layered { layers, windows: true, .. }) = self.drafting.layered else { return Ok(()) };
        if room <= DRAFTS {
            return Ok(());
        }
        let window = Some(HeadClass::Window { sink: 1, recent: 1 });
        let asked = SelfDraft { exit: layers, window, ..drafts(DRAFTS) };
        let mut fastest = Duration::MAX;
        for _ in 0..RUNS {
            let start = clock();
            self.model.self_draft(&asked)?;
            fastest = fastest.min(clock().saturating_sub(start));
        }
        self.drafting.window.measured(fastest / DRAFTS);
        Ok(())
    }

    /// Pages for the first `positions` of the first slot.
    fn room_for(&self, positions: u32) -> Vec<TableDelta> {
        let classes = (0..u8::MAX).map(ClassId).take(self.spec().classes.len());
        let append = |class| {
            let change =
                move |page| TableDelta { slot: Slot(0), class, change: TableChange::Append(PageId(page)) };
            (0..kvcache::pages_for(positions)).map(change)
        };
        classes.flat_map(append).collect()
    }
}

/// Drafts at the beginning of the first slot; which layers they pass is left to say.
fn drafts(most: u32) -> SelfDraft {
    SelfDraft {
        slot: Slot(0),
        token: TokenId(0),
        position: 0,
        exit: 0,
        window: None,
        most,
        stop: None,
        stop_ids: Vec::new(),
        sampling: Sampling::GREEDY,
        watch: false,
    }
}

fn row(position: u32) -> Row {
    // Which token it is makes no difference to the time; the first one is in every vocabulary.
    let token = RowToken::Known(TokenId(0));
    let (parent, layers, output) = (Parent::Previous, Layers::All, Output::Pick);
    Row { slot: Slot(0), token, position, parent, layers, output, adapter: None }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{Settings, ToyModel};

    #[test]
    fn an_empty_rank_knows_what_its_steps_cost() {
        for (pages, context, most) in [(200, 256, 9), (1, 256, 9), (200, 3, 3)] {
            let mut engine =
                Engine::new(ToyModel::new(ToyModel::spec(16, context, 2, pages), 1), Settings::default());
            let free = engine.scheduler.free_pages();
            // A clock that goes on by the calls: every step takes 7.
            let now = Cell::new(0);
            let clock = || {
                now.set(now.get() + 7);
                Duration::from_millis(now.get())
            };
            engine.calibrate(&clock).unwrap();
            let seconds = |rows| engine.drafting.cost.seconds(rows).unwrap();
            assert!((seconds(1) - 0.007).abs() < 1e-9 && (seconds(most) - 0.007).abs() < 1e-9);
            assert_eq!(engine.scheduler.free_pages(), free);
            assert!(engine.is_empty());
        }
    }
}
