//! A target and a free-running drafter, joined by a link with a round trip. Their state is the real one
//! ([`Tail`], [`Session`], [`verify`]); models are coins and steps take virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use request::{Source, TokenId};
use speculation::{
    Beliefs, Beside, Drafts, Offer, PrefixHashes, Proposal, Reaction, Session, Shadows, StepCost, Tail,
    choose, verify,
};

/// A small generator for coins (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// One sequence and what it takes; times in microseconds.
#[derive(Clone, Copy)]
pub struct Pair {
    pub target_step: u64,
    pub draft_step: u64,
    /// There and back.
    pub round_trip: u64,
    /// Chance that a draft after the true prefix is right.
    pub acceptance: f64,
    pub window: u32,
    /// Most drafts of a step.
    pub most: usize,
    /// What each draft adds to the step that verifies it.
    pub row: u64,
    /// As many of them as pay, as `auto` chooses; else all.
    pub auto: bool,
}

impl Pair {
    fn step(&self, drafts: usize) -> u64 {
        self.target_step + self.row * drafts as u64
    }
}

/// What `auto` knows.
struct Chooser {
    cost: StepCost,
    rank: Beliefs,
    own: Beliefs,
    shadows: Shadows,
}

impl Chooser {
    fn new(pair: &Pair) -> Self {
        let mut cost = StepCost::default();
        for rows in [1, 2, 3, 5, 9] {
            cost.record(rows, Duration::from_micros(pair.step(rows as usize - 1)));
        }
        let (rank, own) = (Beliefs::default(), Beliefs::of_a_sequence());
        Self { cost, rank, own, shadows: Shadows::default() }
    }

    fn learn(&mut self, text: &[TokenId]) {
        self.shadows.judge(text, &mut [&mut self.rank, &mut self.own]);
    }

    fn drafts(&mut self, pending: &[TokenId], most: usize) -> usize {
        let proposal = Proposal::chain(pending.to_vec(), 0);
        self.shadows.cast(Source::Drafter, &proposal);
        let offers = [Offer { source: Source::Drafter, proposal: &proposal }];
        choose(&offers, most, &self.cost, &self.rank, &self.own, Beside::default()).map_or(0, |(_, k)| k)
    }
}

/// What a run came to.
pub struct Ran {
    pub tokens: u64,
    pub steps: u64,
    pub time: u64,
    /// Drafts that were taken back by the drafter.
    pub rolled_back: u64,
    /// Drafts that steps carried.
    pub verified: u64,
}

impl Ran {
    /// Over plain decoding.
    pub fn speed_up(&self, pair: &Pair) -> f64 {
        self.tokens as f64 * pair.target_step as f64 / self.time as f64
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// In the order in which they happen when they come together: what arrives at the start of a step is
    /// there for it.
    Drafted,
    Frame {
        at: u32,
        prefix_hash: u64,
        ids: Vec<TokenId>,
    },
    Commit {
        at: u32,
        prefix_hash: u64,
        ids: Vec<TokenId>,
    },
    Stepped,
}

const VOCAB: u32 = 1000;

struct World {
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, Event, u64)>>,
}

impl World {
    fn after(&mut self, delay: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((self.now + delay, event, self.order)));
    }
}

/// Runs until so many tokens are committed.
pub fn run(pair: &Pair, tokens: usize, dice: &mut Dice) -> Ran {
    let slack = pair.window as usize + pair.most + 4;
    let truth: Vec<TokenId> = (0..tokens + slack).map(|i| TokenId(i as u32 % (VOCAB - 1))).collect();
    let coins: Vec<bool> = truth.iter().map(|_| dice.unit() < pair.acceptance).collect();
    let wrong = TokenId(VOCAB - 1);

    // Both know the first token.
    let mut committed = truth[..1].to_vec();
    let mut tail = Tail::new(&committed, VOCAB, 64);
    let mut session = Session::new(&committed, pair.window);
    let mut known = committed.clone();
    let first = PrefixHashes::new(&committed).last();
    // The target's second token opens the session.
    session.commit(&known, 1, first, &truth[1..2]);
    known.push(truth[1]);
    tail.commit(&truth[1..2]);
    committed.push(truth[1]);

    let mut world = World { now: 0, order: 0, events: BinaryHeap::new() };
    let (mut proposed, mut drafting) = (Vec::new(), true);
    // Tokens from the first on that the drafter has right.
    let mut agrees = known.len();
    let (mut steps, mut rolled_back, mut verified) = (0, 0, 0);
    let mut chooser = Chooser::new(pair);
    world.after(pair.target_step, Event::Stepped);
    world.after(pair.draft_step, Event::Drafted);
    while committed.len() < tokens {
        let Reverse((now, event, _)) = world.events.pop().expect("a step is always under way");
        world.now = now;
        match event {
            Event::Drafted => {
                let place = known.len();
                let right = agrees == place && coins[place];
                let token = if right { truth[place] } else { wrong };
                agrees += usize::from(right);
                known.push(token);
                session.drafted(token);
                if let Some(Drafts { at, prefix_hash, ids, .. }) = session.frame(&known) {
                    world.after(pair.round_trip / 2, Event::Frame { at, prefix_hash, ids });
                }
                drafting = (known.len() as u32) < session.limit();
                if drafting {
                    world.after(pair.draft_step, Event::Drafted);
                }
            }
            Event::Frame { at, prefix_hash, ids } => {
                let _ = tail.offer(&committed, &Drafts { at, prefix_hash, ids, q: Vec::new() });
            }
            Event::Commit { at, prefix_hash, ids } => {
                if let Reaction::Rewrite { at, ids } = session.commit(&known, at, prefix_hash, &ids) {
                    rolled_back += known.len() as u64 - u64::from(at);
                    known.truncate(at as usize);
                    known.extend(&ids);
                    agrees = known.len();
                    // What was under way is drafted after the wrong token: it begins again.
                    world.events.retain(|Reverse((_, event, _))| *event != Event::Drafted);
                    drafting = false;
                }
                if !drafting && (known.len() as u32) < session.limit() {
                    drafting = true;
                    world.after(pair.draft_step, Event::Drafted);
                }
            }
            Event::Stepped => {
                steps += 1;
                let from = committed.len();
                let picks = &truth[from..=from + proposed.len()];
                let verdict = verify(&proposed, picks);
                let (at, prefix_hash) = (from as u32, tail.committed_hash());
                tail.commit(&verdict.tokens);
                chooser.learn(&verdict.tokens);
                committed.extend(&verdict.tokens);
                let commit = Event::Commit { at, prefix_hash, ids: verdict.tokens };
                world.after(pair.round_trip / 2, commit);
                let pending = tail.pending();
                let most = pending.len().min(pair.most);
                let drafts = if pair.auto { chooser.drafts(pending, most) } else { most };
                proposed = pending[..drafts].to_vec();
                verified += drafts as u64;
                world.after(pair.step(drafts), Event::Stepped);
            }
        }
    }
    Ran { tokens: committed.len() as u64 - 2, steps, time: world.now, rolled_back, verified }
}
