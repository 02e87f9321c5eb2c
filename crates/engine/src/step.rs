//! The step, as a sentence: plan, submit, collect, commit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvcache::HeadClass;
use request::Sampling;
use sampling::Draw;
use scheduler::{Ahead, Config, Plan, Policy, Scheduler, SequenceId};
use speculation::{Beside, Drops};

use crate::draft_lane::DraftLane;
use crate::drafting::Drafting;
use crate::foresight::Foresight;
use crate::pacing::Pacing;
use crate::prefill_lane::PrefillLane;
use crate::target_lane::{Readiness, TargetLane};
use crate::tier::Spill;
use crate::turnover::Turnover;
use crate::{Command, Facts, Model, ModelError, ModelSpec, PrefixChange, Room};

/// What the engine is told about its rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Most rows of one step: how long a prompt may hold up running sequences. More than the slots, or
    /// prompts move by one row a step.
    pub token_budget: u32,
    /// Longest step while somebody decodes: the budget is lowered until its steps keep it. `None`: always the
    /// whole budget.
    pub tpot_target: Option<Duration>,
    /// Sequences that wait; one more is refused.
    pub max_waiting: usize,
    /// Longest predicted wait for a slot; a sequence that would wait longer is refused.
    pub max_wait: Duration,
    /// Most draft tokens verified in one step for one sequence, unless its strategy says otherwise.
    pub max_draft: u32,
    /// A reader that takes nothing for this long is dropped.
    pub slow_client_timeout: Duration,
    /// Keep pages of finished work for sequences that start with the same tokens.
    pub prefix_cache: bool,
    /// Tell the observer what the prefix cache can serve.
    pub tell_prefixes: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // On a CPU longer chunks compute a prompt no faster, they only make gaps longer (docs/benchmarks.md).
            token_budget: 128,
            tpot_target: None,
            max_waiting: 256,
            max_wait: Duration::from_secs(30),
            max_draft: 8,
            slow_client_timeout: Duration::from_secs(30),
            prefix_cache: true,
            tell_prefixes: false,
        }
    }
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

pub(crate) enum Lane {
    Target(Box<TargetLane>),
    Draft(Box<DraftLane>),
    Prefill(Box<PrefillLane>),
}

/// One rank: sequences, pages and a model.
pub struct Engine<M> {
    pub(crate) model: M,
    pub(crate) scheduler: Scheduler,
    pub(crate) lanes: BTreeMap<SequenceId, Lane>,
    pub(crate) settings: Settings,
    pub(crate) turnover: Turnover,
    /// Since the last step.
    pub(crate) dropped: Drops,
    pub(crate) drafting: Drafting,
    pub(crate) pacing: Pacing,
    /// What the prefix cache gained and lost since the observer was told.
    pub(crate) prefixes: Vec<PrefixChange>,
    pub(crate) spill: Option<Spill>,
    /// Of a model that begins steps early.
    foresight: Option<Foresight>,
    /// Why nothing more is computed.
    pub(crate) lost: Option<ModelError>,
}

impl<M> std::fmt::Debug for Engine<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

impl<M: Model> Engine<M> {
    pub fn new(model: M, settings: Settings) -> Self {
        let spec = model.spec();
        let mut scheduler = Scheduler::new(Config {
            token_budget: settings.token_budget,
            tile: model.tile(),
            policy: Policy::Sarathi,
            max_waiting: settings.max_waiting,
            context: spec.context,
            slots: spec.slots,
            tree_rows: spec.tree_rows,
            classes: spec.classes.clone(),
            prefix_cache: settings.prefix_cache,
        });
        if settings.prefix_cache && settings.tell_prefixes {
            scheduler.watch_pages();
        }
        let foresight = model.begins_early().then(Foresight::new);
        if foresight.is_some() {
            scheduler.keep_pages_ahead();
        }
        let mut drafting = Drafting::new(spec.vocab_size);
        drafting.layered = spec.layered;
        let pacing = Pacing::new(settings.tpot_target, settings.token_budget, model.tile());
        Self {
            model,
            scheduler,
            lanes: BTreeMap::new(),
            settings,
            turnover: Turnover::default(),
            dropped: Drops::default(),
            drafting,
            pacing,
            prefixes: Vec::new(),
            spill: None,
            foresight,
            lost: None,
        }
    }

    /// Why the model cannot go on, if it cannot: this engine is of no use any more.
    pub fn lost(&self) -> Option<&ModelError> {
        self.lost.as_ref()
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
    pub fn command(&mut self, now: Duration, command: Command) {
        match command {
            Command::Target(open) => self.open_target(now, *open),
            Command::Draft(open) => self.open_draft(*open),
            Command::Prefill(open) => self.open_prefill(*open),
            Command::Page(page) => self.page_in(*page),
            Command::Cancel(id) => self.remove(now, id),
            Command::Drafts(id, drafts) => {
                if let (Some(Lane::Target(lane)), Some(known)) =
                    (self.lanes.get_mut(&id), self.scheduler.tokens(id))
                    && let Err(reason) = lane.offer(known, &drafts)
                {
                    self.dropped.count(reason, drafts.ids.len());
                }
            }
            Command::Drafter(sequence, drafter) => {
                if let Some(Lane::Target(lane)) = self.lanes.get_mut(&sequence) {
                    lane.drafted_by(drafter);
                }
            }
            Command::Strategy { sequence, strategy } => {
                if let Some(Lane::Target(lane)) = self.lanes.get_mut(&sequence) {
                    lane.redirect(strategy);
                }
            }
            Command::Resync { sequence, have } => {
                if let (Some(Lane::Target(lane)), Some(known)) =
                    (self.lanes.get_mut(&sequence), self.scheduler.tokens(sequence))
                {
                    lane.again(known, have);
                }
            }
            Command::Commit(id, frame) => self.commit_draft(now, id, &frame),
            Command::Window { sequence, window } => {
                if let Some(Lane::Draft(lane)) = self.lanes.get_mut(&sequence) {
                    lane.session.set_window(window);
                    self.scheduler.set_limit(sequence, lane.session.own(lane.session.limit()));
                }
            }
        }
    }

    /// Plans and executes one step.
    pub fn step(&mut self, now: Duration) -> Outcome {
        for id in self.export() {
            self.remove(now, id);
        }
        let crowd = self.ask();
        let (mut held, mut until) = self.readiness(now);
        for (id, restored) in self.restore(now) {
            held.insert(id);
            until = until.into_iter().chain([restored]).min();
        }
        // Pages that are evicted by this plan are read before its step.
        let settled = if self.spills() { self.settle() } else { Ok(()) };
        self.propose(&held);
        let (self_drafted, window_drafts) = self.self_draft(&held);
        self.scheduler.set_budget(self.pacing.budget(self.decodes(&held)));
        let lanes = &self.lanes;
        let plan = self.scheduler.plan(|id| match lanes.get(&id) {
            _ if held.contains(&id) => Ahead::Hold,
            Some(Lane::Target(lane)) => lane.proposed(),
            Some(Lane::Draft(_) | Lane::Prefill(_)) => Ahead::Go(&[]),
            None => Ahead::Hold,
        });
        self.look_at_pages();
        for admitted in &plan.admitted {
            self.turnover.started(now, admitted.sequence);
            if let Some(Lane::Target(lane)) = self.lanes.get_mut(&admitted.sequence) {
                lane.start(admitted.cached);
            }
        }
        let (running, waiting) = (self.scheduler.running(), self.scheduler.waiting());
        self.turnover.planned(now, self.spec().slots, running, waiting);
        if plan.slices.is_empty() {
            return Outcome::Idle { until };
        }
        self.drafting.ways.begins(now);
        let submitted = settled.and_then(|()| self.model.submit(&plan.step));
        // While a device computes the layers.
        let (draws, unsteered) = self.draws(&plan);
        if submitted.is_ok() {
            self.foretell(&plan);
        }
        let executed = submitted.and_then(|ticket| self.model.collect(ticket, &draws));
        let mut facts = match executed {
            // What was drawn for the unsteered was held to nothing: they end before anything is committed.
            Ok(picks) => {
                self.end_unsteered(now, &unsteered);
                let facts = self.commit(now, &plan, picks.0);
                Facts { failed: facts.failed + unsteered.len() as u32, ..facts }
            }
            // Nothing was committed; whose constraint gave up finds that out again.
            Err(error) => self.fail(now, &plan, &error),
        };
        (facts.self_drafted, facts.window_drafts) = (self_drafted, window_drafts);
        facts.dropped = std::mem::take(&mut self.dropped);
        self.compare_ways(now, crowd, &mut facts);
        Outcome::Worked(facts)
    }

    /// Tells a model that begins steps early which one will most likely follow.
    fn foretell(&mut self, plan: &Plan) {
        let Some(foresight) = &mut self.foresight else { return };
        foresight.comes(&plan.step);
        let context = self.model.spec().context;
        let goes_on =
            |slice: &scheduler::Slice| slice.position + 1 < context && self.scheduler.goes_on(slice.sequence);
        if let Some(next) = foresight.next(plan, goes_on) {
            self.model.expect(&next);
        }
    }

    /// What the last step took; from it the engine learns how many drafts pay. Rows of a prompt cost
    /// otherwise than a few more beside a decode: one line through both would be right for neither.
    pub fn took(&mut self, facts: &Facts, time: Duration) {
        // Another step's time is in it.
        if self.foresight.as_ref().is_some_and(Foresight::was_wrong) {
            return;
        }
        let rows = facts.known_rows + facts.draft_rows;
        if facts.self_drafted > 0 {
            // Its time has other passes in it. Those over a window are like steps.
            if facts.window_drafts > 0 && facts.self_drafted == 1 && facts.known_rows == 1 {
                self.drafting.window.took(facts.window_drafts, rows, time, &mut self.drafting.cost);
            }
            return;
        }
        self.pacing.record(rows, time);
        if facts.decodes > 0 && facts.known_rows == facts.decodes {
            self.drafting.cost.record(rows, time);
        }
    }

    /// Ends lanes whose reader is gone or whose time is up, and says which to leave out of this step.
    fn readiness(&mut self, now: Duration) -> (BTreeSet<SequenceId>, Option<Duration>) {
        let (mut held, mut until, mut ended) = (BTreeSet::new(), None::<Duration>, Vec::new());
        for (id, lane) in &mut self.lanes {
            match lane {
                Lane::Target(lane) => {
                    let decoding = self.scheduler.decoding(*id);
                    match lane.readiness(now, decoding, self.settings.slow_client_timeout, &mut self.drafting)
                    {
                        Readiness::Plan => until = until.into_iter().chain(lane.deadline).min(),
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
                    Room::Free
                        if lane.session.rests()
                            || self.scheduler.tokens(*id).is_some_and(|known| lane.stopped(known)) =>
                    {
                        held.insert(*id);
                    }
                    Room::Free => {}
                },
                Lane::Prefill(lane) => match lane.outlet.room() {
                    Room::Gone => ended.push((*id, None)),
                    Room::Full => {
                        held.insert(*id);
                    }
                    Room::Free => {}
                },
            }
        }
        for (id, finish) in ended {
            match finish {
                Some(finish) => self.end(now, id, finish),
                None => self.remove(now, id),
            }
        }
        self.wait_together(&mut held);
        (held, until)
    }

    /// Sequences that could decode in this step.
    fn decodes(&self, held: &BTreeSet<SequenceId>) -> u32 {
        let decoding = |id: &&SequenceId| !held.contains(id) && self.scheduler.decoding(**id);
        self.lanes.keys().filter(decoding).count() as u32
    }

    /// Chooses the drafts of every sequence that decodes. Who waits or prefills verifies nothing, so its
    /// constraint is not asked at each step.
    fn propose(&mut self, held: &BTreeSet<SequenceId>) {
        let others = self.decodes(held).saturating_sub(1);
        let beside = Beside { rows: others, tokens: others, alike: 0 };
        let server = self.server();
        for (id, lane) in &mut self.lanes {
            let Lane::Target(lane) = lane else { continue };
            match self.scheduler.tokens(*id) {
                Some(known) if !held.contains(id) && self.scheduler.decoding(*id) => {
                    lane.propose(known, server, beside, &mut self.drafting);
                }
                _ => lane.propose_nothing(),
            }
        }
    }

    /// Lets the model draft for itself for who asked for that, or whom it pays; for how many it did, and how many drafts
    /// it made over a window.
    fn self_draft(&mut self, held: &BTreeSet<SequenceId>) -> (u32, u32) {
        let (most, mut drafted, mut windowed) = (self.settings.max_draft, 0, 0);
        let Some(layered) = self.drafting.layered else { return (0, 0) };
        let alone = self.decodes(held) == 1;
        for (id, lane) in &mut self.lanes {
            let Lane::Target(lane) = lane else { continue };
            if held.contains(id) || !self.scheduler.decoding(*id) {
                continue;
            }
            let (Some(slot), Some(known)) = (self.scheduler.steady_slot(*id), self.scheduler.tokens(*id))
            else {
                continue;
            };
            let asked = lane.self_draft(slot, known, (layered, most), &self.drafting);
            let asked =
                asked.or_else(|| lane.over_a_window(slot, known, layered, (alone, most), &self.drafting));
            let Some(asked) = asked else { continue };
            drafted += 1;
            match self.model.self_draft(&asked) {
                Ok(drafts) if asked.window.is_some() => {
                    windowed += drafts.len() as u32;
                    lane.drafted_over_a_window(drafts);
                }
                Ok(drafts) => lane.self_drafted(drafts),
                // Drafts are hints, also the model's own: the answer goes on without.
                Err(_) => lane.distrust(),
            }
        }
        (drafted, windowed)
    }

    /// One draw for each picking row, in row order, and the sequences whose constraint gave up.
    fn draws(&mut self, plan: &Plan) -> (Vec<Draw>, Vec<SequenceId>) {
        let (mut draws, mut unsteered) = (Vec::new(), Vec::new());
        for slice in plan.slices.iter().filter(|s| s.picks) {
            let rows = slice.drafts as usize + 1;
            match self.lanes.get_mut(&slice.sequence) {
                Some(Lane::Target(lane)) => match lane.draws(slice.drafts as usize) {
                    Ok(own) => draws.extend(own),
                    Err(_) => {
                        unsteered.push(slice.sequence);
                        draws.extend(std::iter::repeat_n(Draw::new(Sampling::GREEDY), rows));
                    }
                },
                Some(Lane::Draft(lane)) => draws.push(lane.draw()),
                Some(Lane::Prefill(_)) | None => {
                    draws.extend(std::iter::repeat_n(Draw::new(Sampling::GREEDY), rows))
                }
            }
        }
        (draws, unsteered)
    }

    /// Whether a tail may be rewritten behind what is computed: a window may have given those pages up.
    pub(crate) fn may_draft(&self) -> bool {
        self.spec().classes.iter().all(|(class, _)| *class == HeadClass::Full)
    }
}
