//! Several processes that share one model: a worker group.
//!
//! Every matrix is cut by its outputs, so each rank computes whole sums, in the order that one rank would add them;
//! what travels are activations: each rank's heads, inner values and outputs, gathered to whole rows before the next
//! matrix reads them. So two ranks give the bits of one (docs/decisions/0018). Rank 0 leads: it checks a step, sends it
//! to the others, which execute it and own no scheduler, and it alone draws.
//!
//! Links lead to rank 0 only. A rank that ends, stops, gets stuck ([`pulse`]) or answers nonsense ends the group:
//! [`ModelError::Lost`] tells the engine, which leaves its sequences to be placed again.

mod pages;
mod part;
mod pulse;
mod spans;
mod wire;

use std::time::{Duration, Instant};

use engine::ModelError;
use kvcache::Unshardable;
use scheduler::Step;
use transport::{Fabric, FabricError, Head, Link};

pub(super) use pages::Asked;
pub(super) use part::{Cut, Part};
pub(super) use pulse::Sight;
use pulse::{Own, Pulse};

/// What all ranks of a group must be told alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// The share of each rank; only their relation counts.
    pub memory: Vec<u32>,
    /// Whatever else has to be equal, in words: the numerics fingerprint above all.
    pub said: String,
    /// For all ranks to come, and to load the model.
    pub start: Duration,
    /// For a sign of life of another rank, and for it to come further while others wait for it.
    pub within: Duration,
}

/// One rank's end of a group.
#[derive(Debug)]
pub struct Group {
    rank: usize,
    plan: GroupPlan,
    /// To the followers in order, or to rank 0.
    links: Vec<Box<dyn Link>>,
    /// Beside them, whether who is there is well.
    pulses: Vec<Pulse>,
    own: Own,
    token: u64,
    /// Of the step under way.
    step: u64,
    /// Messages of that step so far.
    messages: u64,
    /// The message about pages under way.
    asked: u64,
    read: Option<pages::Read>,
    payload: Vec<u8>,
}

/// Why there is no group.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error(transparent)]
    Unshardable(#[from] Unshardable),
    #[error("rank {rank} is none of the group's {ranks}; followers are 1 to {}", .ranks - 1)]
    NoSuchRank { rank: usize, ranks: usize },
    #[error("only {there} of {ranks} ranks came within {within:?}{last}")]
    Incomplete { there: usize, ranks: usize, within: Duration, last: String },
    #[error("rank 0 refused this rank: {0}")]
    Refused(String),
    #[error("{what}: {source}")]
    Link { what: &'static str, source: FabricError },
    #[error("no thread for signs of life: {0}")]
    Thread(String),
}

const HELLO: u32 = 1;
const REFUSED: u32 = 2;
const READY: u32 = 3;
const STEP: u32 = 4;
const PART: u32 = 5;
const LOGITS: u32 = 6;
const WANTED: u32 = 7;
const PAGE: u32 = 8;
const IMPORT: u32 = 9;
const PULSE: u32 = 10;
const BEAT: u32 = 11;

/// Logits of a step are counted from here on: rank 0 may leave them unread.
const FIRST_LOGITS: u64 = 1 << 31;
/// A follower that has nothing to do looks again.
const IDLE: Duration = Duration::from_secs(5);
/// Times `within`: for a message, whoever is well. Only for what signs of life cannot show.
const MESSAGE: u32 = 10;
/// Between two tries to reach rank 0.
const PAUSE: Duration = Duration::from_millis(50);

impl Group {
    /// Rank 0: takes followers in until all are there. `token` names this life of the group.
    pub fn lead(fabric: &dyn Fabric, plan: GroupPlan, token: u64) -> Result<Self, GroupError> {
        let (started, ranks) = (Instant::now(), plan.memory.len());
        // Of each follower the link of the steps, and the one beside it.
        type Links = [Option<Box<dyn Link>>; 2];
        let mut links: Vec<Links> = (1..ranks).map(|_| [None, None]).collect();
        let mut last = String::new();
        while links.iter().flatten().any(Option::is_none) {
            let left = plan.start.saturating_sub(started.elapsed());
            let came = fabric.accept(left);
            if left.is_zero() || matches!(came, Err(FabricError::Deadline { .. })) {
                let there = 1 + links.iter().filter(|links| links[0].is_some()).count();
                return Err(GroupError::Incomplete { there, ranks, within: plan.start, last });
            }
            let mut link =
                came.map_err(|source| GroupError::Link { what: "waiting for followers", source })?;
            let mut payload = Vec::new();
            // Whoever it is: one that says nothing sensible does not end the wait for the others.
            let Ok(Head { kind, token: theirs, item }) = link.recv(&mut payload, plan.within.min(left))
            else {
                continue;
            };
            let place = usize::try_from(item).ok().and_then(|rank| links.get_mut(rank.checked_sub(1)?));
            if kind != HELLO {
                if let Some([Some(_), beside @ None]) = place
                    && (kind, theirs) == (PULSE, token)
                {
                    *beside = Some(link);
                }
                continue;
            }
            let refusal = match place.map(|[steps, _]| steps) {
                None => Some(GroupError::NoSuchRank { rank: item as usize, ranks }.to_string()),
                Some(Some(_)) => Some(format!("rank {item} is there already")),
                Some(place) if payload == plan.hello() => {
                    if link.send(Head { kind: HELLO, token, item }, &[], plan.within).is_ok() {
                        *place = Some(link);
                    }
                    continue;
                }
                Some(_) => Some(format!(
                    "the ranks were told different things: rank 0 {:?}, rank {item} {:?}",
                    String::from_utf8_lossy(&plan.hello()),
                    String::from_utf8_lossy(&payload)
                )),
            };
            if let Some(why) = refusal {
                let _ = link.send(Head { kind: REFUSED, token, item }, why.as_bytes(), plan.within);
                last = format!("; the last refusal: {why}");
            }
        }
        let (steps, beside): (Vec<_>, Vec<_>) =
            links.into_iter().map(|[steps, beside]| (steps, beside)).unzip();
        let links = steps.into_iter().flatten().zip(beside.into_iter().flatten());
        Self::new(0, plan, links.collect(), token)
    }

    /// A follower: joins the group whose rank 0 is at `leader`.
    pub fn follow(
        fabric: &dyn Fabric,
        leader: &str,
        rank: usize,
        plan: GroupPlan,
    ) -> Result<Self, GroupError> {
        let (started, ranks) = (Instant::now(), plan.memory.len());
        if !(1..ranks).contains(&rank) {
            return Err(GroupError::NoSuchRank { rank, ranks });
        }
        let failed = |what| move |source| GroupError::Link { what, source };
        let mut link = loop {
            let left = plan.start.saturating_sub(started.elapsed());
            match fabric.connect(leader, left) {
                Ok(link) => break link,
                // It may not listen yet.
                Err(FabricError::Unreachable { .. }) if left > PAUSE => std::thread::sleep(PAUSE),
                Err(source) => return Err(failed("joining the group")(source)),
            }
        };
        let hello = Head { kind: HELLO, token: 0, item: rank as u64 };
        link.send(hello, &plan.hello(), plan.within).map_err(failed("joining the group"))?;
        let mut payload = Vec::new();
        let left = plan.start.saturating_sub(started.elapsed()).max(plan.within);
        let head = link.recv(&mut payload, left).map_err(failed("waiting for rank 0"))?;
        match head.kind {
            HELLO => {
                let beside = fabric.connect(leader, plan.within).and_then(|mut beside| {
                    let head = Head { kind: PULSE, token: head.token, item: rank as u64 };
                    beside.send(head, &[], plan.within)?;
                    Ok(beside)
                });
                let beside = beside.map_err(failed("joining the group"))?;
                Self::new(rank, plan, vec![(link, beside)], head.token)
            }
            _ => Err(GroupError::Refused(String::from_utf8_lossy(&payload).into_owned())),
        }
    }

    /// `both`: the link of the steps to each other rank, and the one beside it.
    fn new(
        rank: usize,
        plan: GroupPlan,
        both: Vec<(Box<dyn Link>, Box<dyn Link>)>,
        token: u64,
    ) -> Result<Self, GroupError> {
        let own = Own::default();
        let (mut links, mut pulses) = (Vec::new(), Vec::new());
        for (steps, beside) in both {
            let close = steps.closer();
            let close = close.map_err(|source| GroupError::Link { what: "watching a rank", source })?;
            let pulse = Pulse::start(beside, token, plan.within, close, own.clone());
            pulses.push(pulse.map_err(|error| GroupError::Thread(error.to_string()))?);
            links.push(steps);
        }
        let payload = Vec::new();
        Ok(Self {
            rank,
            plan,
            links,
            pulses,
            own,
            token,
            step: 0,
            messages: 0,
            asked: 0,
            read: None,
            payload,
        })
    }

    /// How the others see how far this rank's computing has come.
    pub(super) fn seen_by(&self, sight: Sight) {
        self.own.set(sight);
    }

    /// The number of the next message of the step.
    fn next_message(&mut self) -> u64 {
        self.messages += 1;
        self.step << 32 | self.messages
    }

    /// For one message.
    fn message(&self) -> Duration {
        self.plan.within * MESSAGE
    }

    /// Of a call on the link to a rank.
    fn failed(&self, rank: usize, error: &FabricError) -> ModelError {
        let why = self.pulses.get(rank.saturating_sub(1)).and_then(Pulse::lost);
        ModelError::Lost(format!("rank {rank}: {}", why.map_or_else(|| error.to_string(), str::to_owned)))
    }

    /// Sends to a rank, which has to take it.
    fn send(&mut self, rank: usize, head: Head, payload: &[u8]) -> Result<(), ModelError> {
        let (index, within) = (rank.saturating_sub(1), self.message());
        let missing = || ModelError::Lost(format!("there is no rank {rank}"));
        self.waits(rank, true);
        let sent = self.links.get_mut(index).ok_or_else(missing)?.send(head, payload, within);
        self.waits(rank, false);
        sent.map_err(|error| self.failed(rank, &error))
    }

    /// Rank 0 waits for that rank, or no longer. Followers wait for what rank 0 waits for.
    fn waits(&self, rank: usize, waits: bool) {
        if let Some(pulse) = self.pulses.get(rank.saturating_sub(1)).filter(|_| self.rank == 0) {
            pulse.waits(waits);
        }
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn ranks(&self) -> usize {
        self.plan.memory.len()
    }

    pub(super) fn memory(&self) -> &[u32] {
        &self.plan.memory
    }

    /// Rank 0 waits until all have loaded the model.
    pub(super) fn ready(&mut self) -> Result<(), ModelError> {
        let head = Head { kind: READY, token: self.token, item: 0 };
        if self.rank > 0 {
            return self.send(0, head, &[]);
        }
        for rank in 1..=self.links.len() {
            self.recv(rank, READY, 0, self.plan.start)?;
        }
        Ok(())
    }

    /// Rank 0 sends a step to all; it begins.
    pub(super) fn begin(&mut self, step: &Step) -> Result<(), ModelError> {
        (self.step, self.messages, self.read) = (self.step + 1, 0, None);
        let bytes = wire::encode(step)?;
        let head = Head { kind: STEP, token: self.token, item: self.step << 32 };
        (1..=self.links.len()).try_for_each(|rank| self.send(rank, head, &bytes))
    }

    /// What a follower is to do next; `None` when rank 0 is gone. Nobody needs a group that has nothing to do, but nobody
    /// ends it either: so it asks now and then whether the link is open, for as long as it is.
    pub(super) fn next(&mut self) -> Result<Option<Asked>, ModelError> {
        loop {
            match self.links[0].recv(&mut self.payload, IDLE) {
                Ok(Head { kind: STEP, token, item })
                    if token == self.token && item >> 32 == self.step + 1 =>
                {
                    (self.step, self.messages) = (self.step + 1, 0);
                    return wire::decode(&self.payload).map(Asked::Step).map(Some);
                }
                Ok(head @ Head { kind: WANTED | IMPORT, token, item })
                    if token == self.token && item >> 32 == self.step =>
                {
                    return self.about_pages(head).map(Some);
                }
                Ok(head) => return Err(ModelError::Lost(format!("rank 0 sent {head:?} between steps"))),
                Err(FabricError::Deadline { .. }) => {}
                Err(FabricError::Closed) if self.pulses[0].lost().is_none() => return Ok(None),
                Err(error) => return Err(self.failed(0, &error)),
            }
        }
    }

    /// Makes whole rows of what each rank has of them: `own` are this rank's columns, row by row; `cut` says which
    /// those are.
    pub(super) fn gather(
        &mut self,
        cut: &Cut,
        rows: usize,
        own: &[f32],
        whole: &mut [f32],
    ) -> Result<(), ModelError> {
        let item = self.next_message();
        let head = Head { kind: PART, token: self.token, item };
        let within = self.message();
        cut.put(self.rank, rows, own, whole);
        if self.rank > 0 {
            let mut bytes = std::mem::take(&mut self.payload);
            bytes.clear();
            bytes.extend(own.iter().flat_map(|value| value.to_le_bytes()));
            let sent = self.send(0, head, &bytes);
            self.payload = bytes;
            sent?;
            self.recv(0, PART, item, within)?;
            let others = (0..cut.ranks()).filter(|rank| *rank != self.rank);
            return cut.put_bytes(others, rows, &self.payload, whole).ok_or_else(|| nonsense(0));
        }
        // First all in, then all out: no two ranks both wait for the other to read.
        for rank in 1..=self.links.len() {
            self.recv(rank, PART, item, within)?;
            cut.put_bytes([rank], rows, &self.payload, whole).ok_or_else(|| nonsense(rank))?;
        }
        let mut bytes = std::mem::take(&mut self.payload);
        for rank in 1..=self.links.len() {
            bytes.clear();
            cut.take((0..cut.ranks()).filter(|other| *other != rank), rows, whole, &mut bytes);
            self.send(rank, head, &bytes)?;
        }
        self.payload = bytes;
        Ok(())
    }

    /// The same for logits, which only rank 0 needs: whether this is rank 0.
    pub(super) fn gather_logits(
        &mut self,
        cut: &Cut,
        (piece, rows): (usize, usize),
        own: &[f32],
        whole: &mut [f32],
    ) -> Result<bool, ModelError> {
        let item = (self.step << 32) | (FIRST_LOGITS + piece as u64);
        let within = self.message();
        if self.rank > 0 {
            let mut bytes = std::mem::take(&mut self.payload);
            bytes.clear();
            bytes.extend(own.iter().flat_map(|value| value.to_le_bytes()));
            let sent = self.send(0, Head { kind: LOGITS, token: self.token, item }, &bytes);
            self.payload = bytes;
            return sent.map(|()| false);
        }
        cut.put(0, rows, own, whole);
        for rank in 1..=self.links.len() {
            self.recv(rank, LOGITS, item, within)?;
            cut.put_bytes([rank], rows, &self.payload, whole).ok_or_else(|| nonsense(rank))?;
        }
        Ok(true)
    }

    /// The message that is due from a rank, to `payload`. Logits that nobody asked for are passed over.
    fn recv(&mut self, rank: usize, kind: u32, item: u64, within: Duration) -> Result<(), ModelError> {
        loop {
            // Loading is waited for as long as it takes; a step is not.
            self.waits(rank, kind != READY);
            let head = self.links[rank.saturating_sub(1)].recv(&mut self.payload, within);
            self.waits(rank, false);
            let head = head.map_err(|error| self.failed(rank, &error))?;
            if head == (Head { kind, token: self.token, item }) {
                return Ok(());
            }
            if head.kind != LOGITS || head.token != self.token || head.item >= item {
                return Err(nonsense(rank));
            }
        }
    }
}

impl GroupPlan {
    fn hello(&self) -> Vec<u8> {
        format!("{} shares {:?} arithmetic {}", self.said, self.memory, crate::ARITHMETIC_VERSION)
            .into_bytes()
    }
}

fn nonsense(rank: usize) -> ModelError {
    ModelError::Lost(format!("rank {rank} sent something else than what is due"))
}
