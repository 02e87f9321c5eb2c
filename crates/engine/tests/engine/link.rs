//! A target engine and a drafter engine joined by a link that misbehaves on purpose.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{
    Command, Constraint, DraftEvent, DraftOpen, Drafter, Ended, Engine, Model, ModelError, ModelSpec,
    Outcome, Outlet, Picks, Room, SaidBy, SelfDraft, Settings, TargetEvent, TargetOpen, Ticket, ToyModel,
};
use kvcache::{ClassId, PageId};
use request::{
    Del, Finish, Limits, Request, RequestId, Sampling, SamplingParams, Speculation, SpeculationStats,
    Strategy, TokenId, TokenLogprobs, Usage, Window,
};
use sampling::Draw;
use scheduler::{Parent, Row, SequenceId, Slot, Step, TableChange};
use speculation::Drafts;

pub const VOCAB: u32 = 24;
pub const MODEL_SEED: u64 = 42;

pub const STRATEGIES: [Strategy; 10] = [
    Strategy::Auto,
    Strategy::None,
    Strategy::Draft,
    Strategy::Lockstep { k: 3, deadline: Duration::from_millis(4) },
    Strategy::Ngram,
    Strategy::Suffix,
    Strategy::Recycle,
    Strategy::Del(Del { fixed: None }),
    Strategy::Del(Del { fixed: Some((2, 3)) }),
    Strategy::Window(Window { sink: 2, recent: 6, k: Some(2) }),
];

/// A small generator for the tests' own choices (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// An outlet that keeps everything, and can be told to have no room.
pub struct Kept<E> {
    pub events: Arc<Mutex<Vec<E>>>,
    pub room: Arc<Mutex<Room>>,
}

impl<E> Kept<E> {
    pub fn new() -> Self {
        Self { events: Arc::default(), room: Arc::new(Mutex::new(Room::Free)) }
    }

    pub fn share(&self) -> Self {
        Self { events: self.events.clone(), room: self.room.clone() }
    }

    pub fn take(&self) -> Vec<E> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }
}

impl<E: Send> Outlet<E> for Kept<E> {
    fn room(&self) -> Room {
        *self.room.lock().unwrap()
    }

    fn deliver(&mut self, event: E) {
        self.events.lock().unwrap().push(event);
    }
}

/// How often, in percent, the link does what to a frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub lose: u64,
    pub delay: u64,
    pub double: u64,
    pub reorder: u64,
    /// Draft ids replaced by random ones (a lying drafter, sometimes outside the vocabulary).
    pub lie: u64,
    /// Steps in which the drafter does nothing.
    pub pause: u64,
}

/// One answer and what it took.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub output: Vec<TokenId>,
    pub finish: Option<Finish>,
    pub stats: SpeculationStats,
    pub drafted: usize,
    pub usage: Usage,
    pub logprobs: Vec<TokenLogprobs>,
    /// Of a run of one request: steps whose first rejected draft was the n-th.
    pub rejected_at: Vec<u64>,
}

pub fn request(prompt: &[u32], max_tokens: u32, sampling: Sampling, speculation: Speculation) -> Request {
    let prompt = prompt.iter().copied().map(TokenId).collect();
    let limits = Limits::new(max_tokens, vec![TokenId(0)]);
    Request { speculation, ..Request::new(RequestId::new("test").unwrap(), prompt, sampling, limits) }
}

pub fn sampled(seed: u64, temperature: f32) -> Sampling {
    Sampling { params: SamplingParams::at(temperature), seed, choice: 0 }
}

pub fn target(budget: u32) -> Engine<ToyModel> {
    let settings = Settings { token_budget: budget, ..Settings::default() };
    Engine::new(ToyModel::new(ToyModel::spec(VOCAB, 256, 8, 200), MODEL_SEED), settings)
}

pub fn drafter(noise: f64) -> Engine<ToyModel> {
    let model = ToyModel::new(ToyModel::spec(VOCAB, 256, 8, 200), MODEL_SEED).with_noise(noise);
    Engine::new(model, Settings::default())
}

/// A model that counts what trees came to.
pub struct Watched<M> {
    pub model: M,
    /// Drafts that stood and were not the first of their siblings.
    pub later: Arc<AtomicU64>,
    rows: Vec<Row>,
}

impl<M> Watched<M> {
    pub fn new(model: M, later: &Arc<AtomicU64>) -> Self {
        Self { model, later: later.clone(), rows: Vec::new() }
    }
}

impl<M: Model> Model for Watched<M> {
    fn layers(&self) -> u32 {
        self.model.layers()
    }

    fn export(
        &mut self,
        class: ClassId,
        page: PageId,
        layer: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        self.model.export(class, page, layer, into)
    }

    fn import(&mut self, class: ClassId, page: PageId, layer: u32, bytes: &[u8]) -> Result<(), ModelError> {
        self.model.import(class, page, layer, bytes)
    }

    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        for delta in step.deltas.iter().filter(|delta| delta.class.0 == 0) {
            let TableChange::Keep { row, .. } = delta.change else { continue };
            let mut at = row as usize;
            while let parent @ Parent::Row(above) = self.rows[at].parent {
                let first = self.rows.iter().position(|row| row.parent == parent);
                self.later.fetch_add(u64::from(first != Some(at)), Ordering::Relaxed);
                at = above as usize;
            }
        }
        self.rows.clone_from(&step.rows);
        self.model.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        self.model.collect(ticket, draws)
    }

    fn self_draft(&mut self, asked: &SelfDraft) -> Result<Vec<(TokenId, f64)>, ModelError> {
        self.model.self_draft(asked)
    }

    fn said(&mut self, slot: Slot, rows: u32, sampling: &Sampling) -> Result<Vec<SaidBy>, ModelError> {
        self.model.said(slot, rows, sampling)
    }
}

enum Up {
    Drafts(Drafts),
    Resync(u32),
}

/// A target, the link to its drafter, and what goes wrong.
pub struct Setup<T = ToyModel, D = ToyModel> {
    pub target: Engine<T>,
    pub drafter: Option<Engine<D>>,
    pub faults: Faults,
    /// The drafter is gone once that many drafts were accepted.
    pub kill_after: Option<u64>,
    /// In how many of a hundred turns a request is drafted for in another way from then on.
    pub switch: u64,
    /// Compiles the constraint of every request, for target and drafter.
    pub constraint: Option<Box<dyn Fn() -> Box<dyn Constraint>>>,
}

/// What a run of several requests came to.
#[derive(Debug)]
pub struct Ran {
    pub answers: Vec<Answer>,
    /// Virtual milliseconds: one a turn of the target.
    pub time: u64,
    pub preempted: u32,
    pub prefix_hits: u32,
}

impl Setup {
    /// A target with this token budget, no drafter.
    pub fn plain(budget: u32) -> Self {
        let (drafter, faults, kill_after, constraint) = (None, Faults::default(), None, None);
        Self { target: target(budget), drafter, faults, kill_after, switch: 0, constraint }
    }
}

impl Setup<Watched<ToyModel>> {
    /// The same with a count of what trees came to.
    pub fn watched(budget: u32, later: &Arc<AtomicU64>) -> Self {
        let settings = Settings { token_budget: budget, ..Settings::default() };
        let toy = ToyModel::new(ToyModel::spec(VOCAB, 256, 8, 200), MODEL_SEED);
        let target = Engine::new(Watched::new(toy, later), settings);
        Self {
            target,
            drafter: None,
            faults: Faults::default(),
            kill_after: None,
            switch: 0,
            constraint: None,
        }
    }
}

/// Runs requests together on one target, each with a session on `drafter` (if there is one), over
/// links with `faults`. `kill_after`: the drafter is gone once that many drafts were accepted.
pub fn run(
    requests: &[Request],
    budget: u32,
    drafter: Option<Engine<ToyModel>>,
    faults: Faults,
    dice: &mut Dice,
    kill_after: Option<u64>,
) -> Vec<Answer> {
    drive(requests, Setup { drafter, faults, kill_after, ..Setup::plain(budget) }, dice).answers
}

/// As [`run`]; also the virtual time it took.
pub fn run_counting(
    requests: &[Request],
    budget: u32,
    drafter: Option<Engine<ToyModel>>,
    faults: Faults,
    dice: &mut Dice,
) -> (Vec<Answer>, u64) {
    let ran = drive(requests, Setup { drafter, faults, ..Setup::plain(budget) }, dice);
    (ran.answers, ran.time)
}

pub fn drive<T: Model, D: Model>(requests: &[Request], setup: Setup<T, D>, dice: &mut Dice) -> Ran {
    let Setup { mut target, mut drafter, faults, kill_after, switch, constraint } = setup;
    let mut answers: Vec<Answer> = Vec::new();
    let mut outlets = Vec::new();
    let mut sessions = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let id = SequenceId(i as u64);
        let outlet = Kept::<TargetEvent>::new();
        outlets.push(outlet.share());
        answers.push(Answer::default());
        target.command(
            Duration::ZERO,
            Command::Target(Box::new(TargetOpen {
                sequence: id,
                request: request.clone(),
                constraint: constraint.as_ref().map(|c| c()),
                deadline: None,
                outlet: Box::new(outlet),
                admitted: Box::new(|admitted| admitted.unwrap()),
            })),
        );
        let session = Kept::<DraftEvent>::new();
        sessions.push(session.share());
        if let Some(drafter) = &mut drafter {
            drafter.command(
                Duration::ZERO,
                Command::Draft(Box::new(DraftOpen {
                    sequence: id,
                    prompt: request.prompt.clone(),
                    // Of a prompt that is read in part its first half is not.
                    retrieved: request.speculation.strategy.rapid().map(|rapid| {
                        let skipped = request.prompt.len() / 2;
                        request.prompt[if rapid.retrieval.head == 0 { skipped } else { 0 }..].to_vec()
                    }),
                    committed: request.committed.clone(),
                    longest: 256,
                    sampling: request.sampling,
                    adjust: request.adjust.clone(),
                    constraint: constraint.as_ref().map(|c| c()),
                    rule: request.speculation.rule,
                    limits: request.limits.clone(),
                    window: 6,
                    cache_salt: request.cache_salt.clone(),
                    outlet: Box::new(session),
                    admitted: Box::new(|admitted| admitted.unwrap()),
                })),
            );
            target.command(Duration::ZERO, Command::Drafter(id, Drafter::Ahead));
        }
    }
    let mut up: Vec<(SequenceId, Up)> = Vec::new();
    let mut down = Vec::new();
    let (mut accepted, mut rejected_at) = (0, Vec::new());
    let (mut preempted, mut prefix_hits) = (0, 0);
    for now in 0..20_000u64 {
        if answers.iter().all(|a| a.finish.is_some()) {
            answers[0].rejected_at = rejected_at;
            return Ran { answers, time: now, preempted, prefix_hits };
        }
        // Frames that travel, each with its luck.
        let mut order: Vec<_> = std::mem::take(&mut up);
        if order.len() > 1 && dice.chance(faults.reorder) {
            order.reverse();
        }
        for (id, frame) in order {
            if dice.chance(faults.delay) {
                up.push((id, frame));
                continue;
            }
            if dice.chance(faults.lose) {
                continue;
            }
            match frame {
                Up::Drafts(mut drafts) => {
                    if dice.chance(faults.lie) {
                        for id in &mut drafts.ids {
                            *id = TokenId(dice.below(u64::from(VOCAB) + 1) as u32);
                        }
                    }
                    let copies = 1 + u32::from(dice.chance(faults.double));
                    for _ in 0..copies {
                        target.command(Duration::ZERO, Command::Drafts(id, drafts.clone()));
                    }
                }
                Up::Resync(have) => {
                    target.command(Duration::ZERO, Command::Resync { sequence: id, have });
                }
            }
        }
        if switch > 0 && dice.chance(switch) {
            let sequence = SequenceId(dice.below(requests.len() as u64));
            let strategy = STRATEGIES[dice.below(STRATEGIES.len() as u64) as usize];
            target.command(Duration::ZERO, Command::Strategy { sequence, strategy });
        }
        let outcome = target.step(Duration::from_millis(now));
        if let Outcome::Worked(facts) = outcome {
            accepted += u64::from(facts.accepted);
            preempted += facts.preempted;
            prefix_hits += facts.prefix_hits;
            if facts.sequences == 1 && facts.accepted < facts.draft_rows {
                let depth = facts.accepted as usize;
                rejected_at.resize(rejected_at.len().max(depth + 1), 0);
                rejected_at[depth] += 1;
            }
        }
        for (i, outlet) in outlets.iter().enumerate() {
            for event in outlet.take() {
                let id = SequenceId(i as u64);
                match event {
                    TargetEvent::Committed { frame, drafted, logprobs, .. } => {
                        let at = frame.at as usize - requests[i].prompt.len();
                        assert_eq!(
                            at,
                            answers[i].output.len() + requests[i].committed.len(),
                            "no gap, no repeat"
                        );
                        assert_eq!(drafted.len(), frame.ids.len());
                        answers[i].logprobs.extend(logprobs);
                        answers[i].output.extend(&frame.ids);
                        answers[i].drafted += drafted.iter().filter(|d| **d).count();
                        down.push((id, frame));
                    }
                    TargetEvent::Started { .. } => {
                        assert!(answers[i].output.is_empty(), "started once, and first");
                    }
                    TargetEvent::Ask { .. } => panic!("these drafters have cores of their own"),
                    TargetEvent::Again(frame) => down.push((id, frame)),
                    TargetEvent::Ended(Ended { finish, speculation, usage }) => {
                        assert_eq!(
                            usage.completion_tokens as usize,
                            answers[i].output.len() + requests[i].committed.len()
                        );
                        answers[i].finish = Some(finish);
                        answers[i].stats = speculation;
                        answers[i].usage = usage;
                    }
                }
            }
        }
        let Some(engine) = &mut drafter else { continue };
        if kill_after.is_some_and(|n| accepted >= n) {
            drafter = None;
            for i in 0..requests.len() {
                let gone = Command::Drafter(SequenceId(i as u64), Drafter::Gone);
                target.command(Duration::ZERO, gone);
            }
            continue;
        }
        for (id, frame) in std::mem::take(&mut down) {
            if dice.chance(faults.delay) {
                down.push((id, frame));
            } else if !dice.chance(faults.lose) {
                engine.command(Duration::ZERO, Command::Commit(id, frame));
            }
        }
        for _ in 0..3 {
            if !dice.chance(faults.pause) {
                engine.step(Duration::from_millis(now));
            }
        }
        for (i, session) in sessions.iter().enumerate() {
            for event in session.take() {
                let id = SequenceId(i as u64);
                match event {
                    DraftEvent::Drafts(drafts) => up.push((id, Up::Drafts(drafts))),
                    DraftEvent::Resync { have } => up.push((id, Up::Resync(have))),
                    DraftEvent::Closed(_) => {}
                }
            }
        }
    }
    panic!("the target stood still: {answers:?}");
}
