//! Laws that hold for whatever happens, with pools so small that something always gives way.
//!
//! [`Mirror`] executes every step: it refuses a row whose page is missing, shared, or holds anything
//! but the tokens of that sequence. [`mirror::audit`] counts pages and slots after every call.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;

/// Tokens of a world: texts that begin alike, so that sequences meet in the prefix cache.
fn word(text: u64, position: u32) -> TokenId {
    if position < 40 { token(0, position) } else { token(text, position) }
}

#[derive(Clone, Debug)]
enum Op {
    Add {
        text: u64,
        prompt: u32,
        max: u32,
        priority: i32,
        salt: bool,
        draft: bool,
    },
    /// Drafts for everybody, so many of them right.
    Plan {
        drafts: u32,
        right: u32,
    },
    Hold(usize),
    Go(usize),
    Remove(usize),
    /// The target of a draft sequence commits so many tokens, so many of them as drafted.
    Target {
        which: usize,
        commits: u32,
        right: u32,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0u64..3, 1u32..120, 1u32..40, -1i32..2, any::<bool>(), prop::bool::weighted(0.3)).prop_map(
            |(text, prompt, max, priority, salt, draft)| Op::Add { text, prompt, max, priority, salt, draft }
        ),
        12 => (0u32..6, 0u32..6).prop_map(|(drafts, right)| Op::Plan { drafts, right }),
        1 => (0usize..8).prop_map(Op::Hold),
        1 => (0usize..8).prop_map(Op::Go),
        1 => (0usize..8).prop_map(Op::Remove),
        3 => (0usize..8, 1u32..6, 0u32..6)
            .prop_map(|(which, commits, right)| Op::Target { which, commits, right }),
    ]
}

#[derive(Debug)]
struct Life {
    text: u64,
    /// What is committed of a draft sequence; `None`: a target.
    committed: Option<u32>,
    held: bool,
}

struct World {
    scheduler: Scheduler,
    mirror: Mirror,
    lives: BTreeMap<SequenceId, Life>,
    born: u64,
    /// Positions that all sequences ever may compute.
    work: u64,
    plans: Vec<Plan>,
}

impl World {
    fn new(config: Config) -> Self {
        let (scheduler, mirror) = (Scheduler::new(config), Mirror::default());
        Self { scheduler, mirror, lives: BTreeMap::new(), born: 0, work: 0, plans: Vec::new() }
    }

    fn which(&self, index: usize) -> Option<SequenceId> {
        self.lives.keys().nth(index % self.lives.len().max(1)).copied()
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Add { text, prompt, max, priority, salt, draft } => {
                let id = SequenceId(self.born);
                self.born += 1;
                let root = PrefixRoot::salted(if salt { "salt" } else { "" });
                let new = NewSequence {
                    id,
                    tokens: (0..prompt).map(|at| word(text, at)).collect(),
                    // A drafter knows its prompt and waits for the target's first token.
                    limit: if draft { prompt } else { prompt + max },
                    longest: prompt + max,
                    priority,
                    root,
                    settled: if draft { prompt } else { u32::MAX },
                };
                if self.scheduler.add(new).is_ok() {
                    self.mirror.open(id, root);
                    self.work += u64::from(prompt + max);
                    self.lives.insert(id, Life { text, committed: draft.then_some(prompt), held: false });
                }
            }
            Op::Hold(index) | Op::Go(index) => {
                if let Some(id) = self.which(index) {
                    self.lives.get_mut(&id).unwrap().held = matches!(op, Op::Hold(_));
                }
            }
            Op::Remove(index) => {
                if let Some(id) = self.which(index) {
                    self.remove(id);
                }
            }
            Op::Target { which, commits, right } => {
                if let Some(id) = self.which(which) {
                    self.target(id, commits, right);
                }
            }
            Op::Plan { drafts, right } => drop(self.plan(drafts, right)),
        }
        mirror::audit(&self.scheduler);
    }

    fn remove(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.lives.remove(&id);
    }

    /// The target of a draft sequence commits: the drafter's tail holds, or is rewritten.
    fn target(&mut self, id: SequenceId, commits: u32, right: u32) {
        let (scheduler, life) = (&mut self.scheduler, self.lives.get_mut(&id).unwrap());
        let (Some(committed), longest) = (life.committed, scheduler.sequences[&id].longest) else { return };
        let end = (committed + commits).min(longest);
        let known = scheduler.tokens(id).unwrap().to_vec();
        let tokens: Vec<TokenId> = (committed..end)
            .map(|at| match known.get(at as usize) {
                Some(drafted) if at < committed + right => *drafted,
                _ => word(life.text, at),
            })
            .collect();
        let tail = &known[committed as usize..];
        let same = tokens.iter().zip(tail).take_while(|(a, b)| a == b).count();
        if same < tokens.len() {
            scheduler.rewrite(id, committed + same as u32, &tokens[same..]);
        }
        life.committed = Some(end);
        scheduler.settle(id, end);
        scheduler.set_limit(id, (end + 6).min(longest));
    }

    fn plan(&mut self, drafts: u32, right: u32) -> Plan {
        // What may be verified of each: the true continuation up to `right`, then nonsense.
        let guesses: BTreeMap<SequenceId, Vec<TokenId>> = self
            .lives
            .iter()
            .map(|(id, life)| {
                let from = self.scheduler.tokens(*id).unwrap().len() as u32;
                let guess = |i| if i < right { word(life.text, from + i) } else { token(97, i) };
                (*id, if life.committed.is_some() { vec![] } else { (0..drafts).map(guess).collect() })
            })
            .collect();
        let moves = |scheduler: &Scheduler, lives: &BTreeMap<SequenceId, Life>, id: &SequenceId| {
            !lives[id].held && scheduler.sequences[id].behind() > 0
        };
        let ready: Vec<SequenceId> = self.scheduler.running.values().copied().collect();
        let ready: Vec<SequenceId> =
            ready.into_iter().filter(|id| moves(&self.scheduler, &self.lives, id)).collect();
        let (before, lives) = (self.scheduler.running.clone(), &self.lives);
        // Half of all plans hold trees: before each guess a sibling that is wrong, and children of that one.
        let forked = |guess: &Vec<TokenId>| {
            let (mut ids, mut parents) = (Vec::new(), Vec::new());
            for (i, id) in guess.iter().enumerate() {
                let parent = (i as u32).checked_sub(1).map(|before| 3 * before + 1);
                ids.extend([token(95, i as u32), *id, token(94, i as u32)]);
                parents.extend([parent, parent, Some(3 * i as u32)]);
            }
            (ids, parents)
        };
        let trees: BTreeMap<SequenceId, (Vec<TokenId>, Vec<Option<u32>>)> = match self.plans.len() % 2 {
            0 => BTreeMap::new(),
            _ => guesses.iter().map(|(id, guess)| (*id, forked(guess))).collect(),
        };
        let plan = self.scheduler.plan(|id| match (lives.get(&id), trees.get(&id)) {
            (Some(life), Some((ids, parents))) if !life.held && !ids.is_empty() => Ahead::Tree(ids, parents),
            (Some(life), _) if !life.held => Ahead::Go(&guesses[&id]),
            _ => Ahead::Hold,
        });
        mirror::audit(&self.scheduler);
        self.mirror.execute(&self.scheduler, &plan);
        self.check(&plan, &ready, &before);
        for slice in &plan.slices {
            let life = &self.lives[&slice.sequence];
            let (mut tokens, mut accepted, mut leaf) = (Vec::new(), 0, None);
            if slice.picks {
                let at = slice.position + slice.known;
                // Of a tree the second of each three rows is the guess.
                accepted = if slice.tree { (slice.drafts + 1) / 3 } else { slice.drafts }.min(right);
                leaf = accepted.checked_sub(1).map(|last| if slice.tree { 3 * last + 1 } else { last });
                // A drafter of its own mind: every third token is wrong.
                let wrong = life.committed.is_some() && at.is_multiple_of(3);
                tokens.extend((at..at + accepted).map(|at| word(life.text, at)));
                tokens.push(if wrong { token(96, at) } else { word(life.text, at + accepted) });
            }
            if let Some(leaf) = leaf {
                self.scheduler.keep_path(slice, leaf);
            }
            self.scheduler.commit(slice, accepted, &tokens);
            mirror::audit(&self.scheduler);
            let sequence = &self.scheduler.sequences[&slice.sequence];
            assert!(sequence.len() <= sequence.limit);
            if self.lives[&slice.sequence].committed.is_none() && !sequence.grows() {
                self.remove(slice.sequence);
            }
        }
        self.plans.push(plan.clone());
        plan
    }

    fn check(&self, plan: &Plan, ready: &[SequenceId], before: &BTreeMap<Order, SequenceId>) {
        let scheduler = &self.scheduler;
        let sliced = |id: &SequenceId| plan.slices.iter().any(|slice| slice.sequence == *id);
        let mut row = 0;
        for slice in &plan.slices {
            let sequence = &scheduler.sequences[&slice.sequence];
            assert_eq!((slice.first_row, slice.position), (row, sequence.computed));
            assert!(!self.lives[&slice.sequence].held && slice.known > 0);
            row += slice.rows();
        }
        let decodes = plan.slices.iter().filter(|slice| slice.known == 1).count() as u32;
        // A last tile that decodes began is filled.
        let filled = (decodes + 1).next_multiple_of(scheduler.config.tile.min(scheduler.config.token_budget));
        assert!(row <= scheduler.config.token_budget.max(filled));
        // Streams do not stall: who was decoding and did not give way has its row.
        for id in ready.iter().filter(|id| scheduler.decoding(**id)) {
            assert!(sliced(id), "{id:?} stalled");
        }
        assert!(ready.is_empty() || !plan.slices.is_empty(), "somebody could move");
        let kept = |order: &Order| scheduler.running.contains_key(order);
        let fresh = |id: &SequenceId| plan.admitted.iter().any(|admitted| admitted.sequence == *id);
        // The first in order of those who can move gives way to nobody, but for a higher priority.
        if let Some((order, id)) = before.iter().find(|(_, id)| ready.contains(id)) {
            let higher = plan.admitted.iter().any(|a| scheduler.sequences[&a.sequence].order < *order);
            assert!(kept(order) || higher, "{id:?} gave way");
        }
        // Who could have moved gives way before those behind it only if these just came back.
        for (order, _) in before.iter().filter(|(order, id)| ready.contains(id) && !kept(order)) {
            let mut behind = before.range(order..).skip(1);
            assert!(behind.all(|(order, id)| !kept(order) || fresh(id)), "{order:?} gave way first");
        }
    }

    /// Everybody goes on until the end; returns the plans it took.
    fn finish(&mut self) -> u64 {
        let drafters: Vec<SequenceId> =
            self.lives.iter().filter(|(_, life)| life.committed.is_some()).map(|(id, _)| *id).collect();
        drafters.into_iter().for_each(|id| self.remove(id));
        self.lives.values_mut().for_each(|life| life.held = false);
        let mut plans = 0;
        while !self.lives.is_empty() {
            let plan = self.plan((plans % 5) as u32, (plans % 3) as u32);
            assert!(!plan.slices.is_empty(), "{} sequences wait for nothing", self.lives.len());
            plans += 1;
            assert!(plans <= 2 * self.work + 100, "no progress");
        }
        plans
    }
}

fn config(budget: u32, tile: u32, slots: u32, pages: u32, windowed: bool, prefix_cache: bool) -> Config {
    let mut classes = vec![(HeadClass::Full, pages)];
    if windowed {
        classes.push((HeadClass::Window { sink: 4, recent: 20 }, pages));
    }
    Config {
        token_budget: budget,
        tile,
        policy: Policy::Sarathi,
        max_waiting: 6,
        context: 4096,
        slots,
        tree_rows: 64,
        classes,
        prefix_cache,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Any operations: every planned row has its pages and every key a row sees is that of its own
    /// tokens; no page is lost, doubled, written while shared or seen under another salt; streams do
    /// not stall, everybody ends, nothing is left, and the same calls give the same plans.
    #[test]
    fn whatever_happens_texts_and_pages_are_kept(
        ops in prop::collection::vec(op(), 1..120),
        budget in 1u32..48, tile in 1u32..9, slots in 1u32..6, pages in 11u32..24, windowed: bool, cached: bool,
        ahead: bool,
    ) {
        let run = || {
            let mut world = World::new(config(budget, tile, slots, pages, windowed, cached));
            if ahead {
                world.scheduler.keep_pages_ahead();
            }
            ops.iter().for_each(|op| world.apply(op));
            world.finish();
            let pools = world.scheduler.pools.iter();
            assert!(pools.clone().all(|pool| pool.available() == pool.capacity()));
            assert!(cached || pools.clone().all(|pool| pool.cached() == 0));
            world
        };
        let (first, second) = (run(), run());
        prop_assert_eq!(first.plans, second.plans);
        prop_assert_eq!(first.scheduler.counters(), second.scheduler.counters());
    }
}

/// The law above means something only when these things happen in it.
#[test]
fn the_laws_are_tried_under_pressure() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut seen, mut kept) = (Counters::default(), 0);
    for _ in 0..200 {
        let ops = prop::collection::vec(op(), 60..120).new_tree(&mut runner).unwrap().current();
        let mut world = World::new(config(24, 1, 4, 12, true, true));
        ops.iter().for_each(|op| world.apply(op));
        world.finish();
        let counters = world.scheduler.counters();
        kept += world.mirror.kept;
        seen.prefix_hits += counters.prefix_hits;
        seen.recovered += counters.recovered;
        seen.evictions += counters.evictions;
        seen.preemptions += counters.preemptions;
    }
    let few = [seen.prefix_hits, seen.recovered, seen.evictions, seen.preemptions].into_iter().min();
    assert!(few > Some(200) && kept > 1000, "{seen:?}, {kept} positions of trees kept");
}
