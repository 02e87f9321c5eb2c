//! The step, as a sentence: plan, submit, collect, commit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvcache::HeadClass;
use request::{Finish, InvalidField, TokenId};
use scheduler::{Ahead, Config, NewSequence, Plan, Refused, Scheduler, SequenceId, Slice};
use speculation::{Reaction, Session};

use crate::draft_lane::DraftLane;
use crate::target_lane::{Readiness, TargetLane};
use crate::{
    Command, CommitFrame, DraftClosed, DraftEvent, DraftOpen, Model, ModelError, ModelSpec, Pick, Room,
    TargetOpen,
};

/// What the engine is told about its rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Most rows of one step.
    pub token_budget: u32,
    /// Sequences that wait; one more is refused.
    pub max_waiting: usize,
    /// Most draft tokens verified in one step for one sequence, unless its strategy says otherwise.
    pub max_draft: u32,
    /// A reader that takes nothing for this long is dropped.
    pub slow_client_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            token_budget: 512,
            max_waiting: 256,
            max_draft: 8,
            slow_client_timeout: Duration::from_secs(30),
        }
    }
}

/// Why the engine did not take a sequence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Scheduler(#[from] Refused),
    #[error(transparent)]
    Invalid(#[from] InvalidField),
}

/// What a step did; processes turn these facts into metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub sequences: u32,
    /// Rows of known tokens.
    pub known_rows: u32,
    /// Rows of draft tokens.
    pub draft_rows: u32,
    pub accepted: u32,
    /// Sequences that picked at least one token.
    pub decodes: u32,
    /// Sequences ended because the model failed.
    pub failed: u32,
}

/// What a call of [`Engine::step`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Worked(Facts),
    /// Nothing can run before this time or the next command.
    Idle {
        until: Option<Duration>,
    },
}

enum Lane {
    Target(Box<TargetLane>),
    Draft(DraftLane),
}

/// One rank: sequences, pages and a model.
pub struct Engine<M> {
    model: M,
    scheduler: Scheduler,
    lanes: BTreeMap<SequenceId, Lane>,
    settings: Settings,
}

impl<M> std::fmt::Debug for Engine<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

impl<M: Model> Engine<M> {
    pub fn new(model: M, settings: Settings) -> Self {
        let spec = model.spec();
        let scheduler = Scheduler::new(Config {
            token_budget: settings.token_budget,
            max_waiting: settings.max_waiting,
            context: spec.context,
            slots: spec.slots,
            classes: spec.classes.clone(),
        });
        Self { model, scheduler, lanes: BTreeMap::new(), settings }
    }

    pub fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// No sequence is here, waiting or running.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Takes one command. A command for a sequence that is gone is ignored: it was on its way.
    pub fn command(&mut self, command: Command) {
        match command {
            Command::Target(open) => self.open_target(*open),
            Command::Draft(open) => self.open_draft(*open),
            Command::Cancel(id) => self.remove(id),
            Command::Drafts(id, drafts) => {
                if let (Some(Lane::Target(lane)), Some(known)) =
                    (self.lanes.get_mut(&id), self.scheduler.tokens(id))
                {
                    // How many tokens were dropped is in the lane's statistics.
                    let _ = lane.offer(known, &drafts);
                }
            }
            Command::Drafter { sequence, attached } => {
                if let Some(Lane::Target(lane)) = self.lanes.get_mut(&sequence) {
                    lane.drafter = attached;
                    if !attached {
                        lane.stats.dropped_tokens += lane.tail.clear() as u64;
                    }
                }
            }
            Command::Resync { sequence, have } => {
                if let (Some(Lane::Target(lane)), Some(known)) =
                    (self.lanes.get_mut(&sequence), self.scheduler.tokens(sequence))
                {
                    lane.again(known, have);
                }
            }
            Command::Commit(id, frame) => self.commit_draft(id, &frame),
            Command::Window { sequence, window } => {
                if let Some(Lane::Draft(lane)) = self.lanes.get_mut(&sequence) {
                    lane.session.set_window(window);
                    self.scheduler.set_limit(sequence, lane.session.limit());
                }
            }
        }
    }

    /// Plans and executes one step.
    pub fn step(&mut self, now: Duration) -> Outcome {
        let (held, until) = self.readiness(now);
        let (lanes, max_draft) = (&self.lanes, self.settings.max_draft);
        let plan = self.scheduler.plan(|id| match lanes.get(&id) {
            Some(Lane::Target(lane)) if !held.contains(&id) => lane.ahead(max_draft),
            Some(Lane::Draft(_)) if !held.contains(&id) => Ahead::Go(&[]),
            _ => Ahead::Hold,
        });
        if plan.slices.is_empty() {
            return Outcome::Idle { until };
        }
        for slice in &plan.slices {
            if let Some(Lane::Target(lane)) = self.lanes.get_mut(&slice.sequence) {
                lane.start();
            }
        }
        let executed = self.model.submit(&plan.step).and_then(|ticket| self.model.collect(ticket));
        Outcome::Worked(match executed {
            Ok(picks) => self.commit(&plan, &picks.0),
            Err(error) => self.fail(&plan, &error),
        })
    }

    /// Ends lanes whose reader is gone and says which to leave out of this step.
    fn readiness(&mut self, now: Duration) -> (BTreeSet<SequenceId>, Option<Duration>) {
        let (mut held, mut until, mut ended) = (BTreeSet::new(), None::<Duration>, Vec::new());
        for (id, lane) in &mut self.lanes {
            match lane {
                Lane::Target(lane) => {
                    match lane.readiness(now, self.scheduler.decoding(*id), self.settings.slow_client_timeout)
                    {
                        Readiness::Plan => {}
                        Readiness::Hold { until: at } => {
                            held.insert(*id);
                            until = until.into_iter().chain(at).min();
                        }
                        Readiness::End(finish) => ended.push((*id, Some(finish))),
                    }
                }
                Lane::Draft(lane) => match lane.outlet.room() {
                    Room::Gone => ended.push((*id, None)),
                    Room::Full => {
                        held.insert(*id);
                    }
                    Room::Free if self.scheduler.tokens(*id).is_some_and(|known| lane.stopped(known)) => {
                        held.insert(*id);
                    }
                    Room::Free => {}
                },
            }
        }
        for (id, finish) in ended {
            match finish {
                Some(finish) => self.end(id, finish),
                None => self.remove(id),
            }
        }
        (held, until)
    }

    fn commit(&mut self, plan: &Plan, picks: &[Pick]) -> Facts {
        let mut facts = Facts { sequences: plan.slices.len() as u32, ..Facts::default() };
        for slice in &plan.slices {
            facts.known_rows += slice.known;
            facts.draft_rows += slice.drafts;
            if !slice.picks {
                self.scheduler.commit(slice, 0, &[]);
                continue;
            }
            facts.decodes += 1;
            let Some(own) = own_picks(slice, picks) else {
                // The model gave fewer picks than asked: broken, but only for this sequence.
                facts.failed += 1;
                self.end(slice.sequence, Finish::Failed);
                continue;
            };
            match self.lanes.get_mut(&slice.sequence) {
                Some(Lane::Target(lane)) => {
                    let drafts: Vec<TokenId> = lane.tail.pending()[..slice.drafts as usize].to_vec();
                    let at = slice.position + slice.known;
                    let (accepted, tokens, finish) = lane.judge(at, &drafts, &own);
                    facts.accepted += accepted;
                    self.scheduler.commit(slice, accepted, &tokens);
                    if let Some(finish) = finish {
                        self.end(slice.sequence, finish);
                    }
                }
                Some(Lane::Draft(lane)) => {
                    self.scheduler.commit(slice, 0, &own);
                    if let (Some(known), [id]) = (self.scheduler.tokens(slice.sequence), own.as_slice()) {
                        lane.drafted(known, *id);
                    }
                }
                None => self.scheduler.remove(slice.sequence),
            }
        }
        facts
    }

    /// A step that the model did not finish. Nothing was committed, so what goes on computes the same
    /// rows again.
    fn fail(&mut self, plan: &Plan, error: &ModelError) -> Facts {
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
            | ModelError::Device(_) => self.lanes.keys().copied().collect(),
        };
        let all = !doomed.is_empty() && doomed.len() == self.lanes.len();
        let facts = Facts { failed: doomed.len() as u32, ..Facts::default() };
        for id in doomed {
            self.end(id, Finish::Failed);
        }
        if all {
            self.scheduler.clear_tables();
        }
        facts
    }

    fn open_target(&mut self, open: TargetOpen) {
        let TargetOpen { sequence, request, outlet, admitted } = open;
        let known = request.known();
        let vocab_size = self.spec().vocab_size;
        let checked = request.validate().and_then(|()| in_vocabulary("prompt", &known, vocab_size));
        if checked.is_ok()
            && let Some(finish) = request.finished()
        {
            // A replay of an answer that was complete: nothing is left to generate.
            TargetLane::new(request, outlet, vocab_size, 0).end(finish);
            return admitted(Ok(()));
        }
        let longest = (request.prompt.len() as u32).saturating_add(request.limits.max_tokens);
        let added = checked.map_err(Refusal::from).and_then(|()| {
            let new = NewSequence {
                id: sequence,
                tokens: known,
                limit: longest,
                longest,
                sampling: request.sampling,
            };
            self.scheduler.add(new).map_err(Refusal::from)
        });
        if added.is_ok() {
            let longest_tail = request::Speculation::MAX_DRAFT as usize;
            let lane = TargetLane::new(request, outlet, vocab_size, longest_tail);
            self.lanes.insert(sequence, Lane::Target(Box::new(lane)));
        }
        admitted(added);
    }

    fn open_draft(&mut self, open: DraftOpen) {
        let DraftOpen { sequence, tokens, longest, sampling, stop_ids, window, outlet, admitted } = open;
        let session = Session::new(&tokens, window);
        let checked = if self.spec().classes.iter().any(|(class, _)| *class != HeadClass::Full) {
            // A rewrite may go back behind what a window has given up.
            Err(InvalidField::not_built("model", "drafting with window head classes is not built yet"))
        } else {
            in_vocabulary("prompt", &tokens, self.spec().vocab_size)
        };
        let added = checked.map_err(Refusal::from).and_then(|()| {
            let new = NewSequence { id: sequence, tokens, limit: session.limit(), longest, sampling };
            self.scheduler.add(new).map_err(Refusal::from)
        });
        if added.is_ok() {
            self.lanes.insert(sequence, Lane::Draft(DraftLane { session, outlet, stop_ids, longest }));
        } else {
            // What the outlet holds is free before the refusal is told.
            drop(outlet);
        }
        admitted(added);
    }

    fn commit_draft(&mut self, id: SequenceId, frame: &CommitFrame) {
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
            self.remove(id);
            return;
        }
        match lane.commit(known, frame) {
            Reaction::Rewrite { at, ids } => {
                let limit = lane.session.limit();
                self.scheduler.rewrite(id, at, &ids);
                self.scheduler.set_limit(id, limit);
            }
            Reaction::Agreed => self.scheduler.set_limit(id, lane.session.limit()),
            Reaction::Diverged => self.remove(id),
            Reaction::Resync { .. } | Reaction::Known => {}
        }
    }

    fn end(&mut self, id: SequenceId, finish: Finish) {
        match self.lanes.remove(&id) {
            Some(Lane::Target(lane)) => lane.end(finish),
            Some(Lane::Draft(mut lane)) => {
                lane.outlet.deliver(DraftEvent::Closed(DraftClosed::Failed));
            }
            None => {}
        }
        self.scheduler.remove(id);
    }

    fn remove(&mut self, id: SequenceId) {
        self.lanes.remove(&id);
        self.scheduler.remove(id);
    }
}

/// The picks of a slice: after its last known token and after each draft.
fn own_picks(slice: &Slice, picks: &[Pick]) -> Option<Vec<TokenId>> {
    let first = slice.first_row + slice.known - 1;
    let start = picks.partition_point(|p| p.row < first);
    let own = picks.get(start..start + slice.drafts as usize + 1)?;
    let aligned = own.iter().enumerate().all(|(i, p)| p.row == first + i as u32);
    aligned.then(|| own.iter().map(|p| p.token).collect())
}

fn in_vocabulary(field: &'static str, tokens: &[TokenId], vocab_size: u32) -> Result<(), InvalidField> {
    match tokens.iter().find(|t| t.0 >= vocab_size) {
        Some(token) => {
            Err(InvalidField::new(field, format!("token {token} is outside the vocabulary of {vocab_size}")))
        }
        None => Ok(()),
    }
}
