//! What a step came to: commits, failures, ends.

use std::time::Duration;

use request::{Finish, TokenId};
use sampling::Drawn;
use scheduler::{Plan, SequenceId, Slice};
use speculation::Reaction;

use crate::open::in_vocabulary;
use crate::step::Lane;
use crate::{
    CommitFrame, DraftClosed, DraftEvent, Drafter, Engine, Facts, Model, ModelError, Pick, PrefillEvent,
};

impl<M: Model> Engine<M> {
    pub(crate) fn commit(&mut self, now: Duration, plan: &Plan, picks: Vec<Pick>) -> Facts {
        let mut facts = self.planned(plan);
        let mut picks = picks.into_iter().peekable();
        for slice in &plan.slices {
            facts.known_rows += slice.known;
            facts.draft_rows += slice.drafts;
            if !slice.picks {
                self.scheduler.commit(slice, 0, &[]);
                continue;
            }
            if let Some(Lane::Prefill(_)) = self.lanes.get(&slice.sequence) {
                // What it picked is the other rank's business.
                self.scheduler.commit(slice, 0, &[]);
                continue;
            }
            facts.decodes += 1;
            facts.drafts += u32::from(slice.drafts > 0);
            let Some(mut drawn) = own_picks(slice, &mut picks) else {
                // The model gave fewer picks than asked: broken, but only for this sequence.
                facts.failed += 1;
                self.end(now, slice.sequence, Finish::Failed);
                continue;
            };
            let Some(known) = self.scheduler.tokens(slice.sequence) else { continue };
            match self.lanes.get_mut(&slice.sequence) {
                Some(Lane::Target(lane)) => {
                    let undrafted = &mut facts.undrafted;
                    if slice.drafts == 0 && lane.drafter_wanted() {
                        *match (lane.drafter != Drafter::Gone, lane.tail.pending().is_empty()) {
                            (false, _) => &mut undrafted.absent,
                            (true, true) => &mut undrafted.late,
                            (true, false) => &mut undrafted.spent,
                        } += 1;
                    }
                    let judged = lane.judge(known, slice.drafts as usize, drawn, &mut self.drafting);
                    facts.accepted += judged.accepted;
                    let said = if lane.watches() {
                        let (rows, sampling) = (judged.tokens.len() as u32, lane.request.sampling);
                        // Only figures: without them the exit stays what it is.
                        self.model.said(slice.slot, rows, &sampling).unwrap_or_default()
                    } else {
                        Vec::new()
                    };
                    lane.heard(&said, &judged, &mut self.drafting);
                    if let Some(leaf) = judged.leaf {
                        self.scheduler.keep_path(slice, leaf);
                    }
                    self.scheduler.commit(slice, judged.accepted, &judged.tokens);
                    if let Some(finish) = judged.finish {
                        self.end(now, slice.sequence, finish);
                    }
                }
                Some(Lane::Draft(lane)) => {
                    let Some(drawn) = drawn.pop() else { continue };
                    self.scheduler.commit(slice, 0, &[drawn.token]);
                    if let Some(known) = self.scheduler.tokens(slice.sequence) {
                        lane.drafted(known, drawn);
                    }
                }
                Some(Lane::Prefill(_)) | None => self.scheduler.remove(slice.sequence),
            }
        }
        facts
    }

    /// What can be said of a plan before it is executed.
    fn planned(&self, plan: &Plan) -> Facts {
        let mut facts = Facts {
            sequences: plan.slices.len() as u32,
            preempted: plan.preempted.len() as u32,
            ..Facts::default()
        };
        for admitted in plan.admitted.iter().filter(|a| !a.again) {
            let known = self.scheduler.tokens(admitted.sequence).map_or(0, <[TokenId]>::len);
            facts.prefix_queries += known as u32;
            facts.prefix_hits += admitted.cached;
        }
        facts
    }

    /// A step that the model did not finish. Nothing was committed, so what goes on computes the same
    /// rows again.
    pub(crate) fn fail(&mut self, now: Duration, plan: &Plan, error: &ModelError) -> Facts {
        let slice =
            |row: u32| plan.slices.iter().find(|s| (s.first_row..s.first_row + s.rows()).contains(&row));
        let doomed: Vec<SequenceId> = match error {
            ModelError::NotFinite { row } => match slice(*row) {
                // A row that only a draft put there must not end an answer that is fine without it.
                Some(slice) if *row >= slice.first_row + slice.known => {
                    if let Some(Lane::Target(lane)) = self.lanes.get_mut(&slice.sequence) {
                        lane.distrust();
                    }
                    Vec::new()
                }
                Some(slice) => vec![slice.sequence],
                None => self.lanes.keys().copied().collect(),
            },
            // The step was refused or the device failed: its table changes may or may not have been
            // applied, so no table is what this side believes. Everybody ends, every table starts over.
            ModelError::Unsupported { .. }
            | ModelError::OutOfRange { .. }
            | ModelError::NoPage { .. }
            | ModelError::Draws { .. }
            | ModelError::PageSize { .. }
            | ModelError::Device(_) => self.lanes.keys().copied().collect(),
            // Their answers are not wrong, only unfinished: an outlet that is dropped without an end says so.
            ModelError::Lost(_) => {
                let facts = Facts { failed: self.lanes.len() as u32, ..self.planned(plan) };
                self.lost = Some(error.clone());
                for id in std::mem::take(&mut self.lanes).into_keys() {
                    self.scheduler.remove(id);
                }
                return facts;
            }
        };
        let all = !doomed.is_empty() && doomed.len() == self.lanes.len();
        let facts = Facts { failed: doomed.len() as u32, ..self.planned(plan) };
        for id in doomed {
            self.end(now, id, Finish::Failed);
        }
        if all {
            self.scheduler.clear_tables();
        }
        facts
    }

    /// Ends the answers whose constraint gave up in this step.
    pub(crate) fn end_unsteered(&mut self, now: Duration, unsteered: &[SequenceId]) {
        for id in unsteered {
            self.end(now, *id, Finish::Failed);
        }
    }

    pub(crate) fn commit_draft(&mut self, now: Duration, id: SequenceId, frame: &CommitFrame) {
        let vocab_size = self.spec().vocab_size;
        let Some(Lane::Draft(lane)) = self.lanes.get_mut(&id) else { return };
        let Some(known) = self.scheduler.tokens(id) else { return };
        let end = u64::from(frame.at) + frame.ids.len() as u64;
        let closed = if end > u64::from(lane.longest) {
            Some(DraftClosed::TooLong)
        } else if in_vocabulary("ids", &frame.ids, vocab_size).is_err() {
            Some(DraftClosed::Vocabulary)
        } else {
            None
        };
        if let Some(closed) = closed {
            lane.outlet.deliver(DraftEvent::Closed(closed));
            self.remove(now, id);
            return;
        }
        let reaction = lane.commit(known, frame);
        let own = |place| lane.session.own(place);
        let (limit, committed) = (own(lane.session.limit()), own(lane.session.committed()));
        match reaction {
            Reaction::Rewrite { at, ids } => self.scheduler.rewrite(id, own(at), &ids),
            Reaction::Agreed => {}
            Reaction::Diverged => return self.remove(now, id),
            Reaction::Resync { .. } | Reaction::Known => return,
        }
        self.scheduler.set_limit(id, limit);
        self.scheduler.settle(id, committed);
    }

    pub(crate) fn end(&mut self, now: Duration, id: SequenceId, finish: Finish) {
        match self.lanes.remove(&id) {
            Some(Lane::Target(lane)) => {
                let known = self.scheduler.tokens(id).unwrap_or_default();
                lane.leave(known.get(lane.request.prompt.len()..).unwrap_or_default(), &mut self.drafting);
                lane.end(finish);
            }
            Some(Lane::Draft(mut lane)) => {
                lane.outlet.deliver(DraftEvent::Closed(DraftClosed::Failed));
            }
            Some(Lane::Prefill(mut lane)) => lane.outlet.deliver(PrefillEvent::Failed),
            None => {}
        }
        self.leave(now, id);
    }

    pub(crate) fn remove(&mut self, now: Duration, id: SequenceId) {
        self.lanes.remove(&id);
        self.leave(now, id);
    }

    fn leave(&mut self, now: Duration, id: SequenceId) {
        self.scheduler.remove(id);
        self.turnover.left(now, id);
    }
}

/// The draws of a slice: after its last known token and after each draft.
fn own_picks(slice: &Slice, picks: &mut std::iter::Peekable<std::vec::IntoIter<Pick>>) -> Option<Vec<Drawn>> {
    let first = slice.first_row + slice.known - 1;
    while picks.next_if(|p| p.row < first).is_some() {}
    let own: Vec<Drawn> = (first..=first + slice.drafts)
        .map_while(|row| Some(picks.next_if(|p| p.row == row)?.drawn))
        .collect();
    (own.len() == slice.drafts as usize + 1).then_some(own)
}
