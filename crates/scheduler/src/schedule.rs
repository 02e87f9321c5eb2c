use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use kvcache::{ClassId, PageHash, PagePool, PoolChange};
use request::TokenId;

use crate::budget::{Ready, Rows, Share, share_out};
use crate::drafts::Drafts;
use crate::handed::Handed;
use crate::sequence::{Order, Sequence};
use crate::{
    Ahead, Config, Counters, Layers, NewSequence, Output, PagesFacts, Parent, Plan, Refused, Row, RowToken,
    SequenceId, Slice, Slot, TableChange, TableDelta,
};

/// Owns sequences, slots and pages of one rank.
///
/// The same calls give the same plans.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) sequences: BTreeMap<SequenceId, Sequence>,
    pub(crate) waiting: BTreeMap<Order, SequenceId>,
    pub(crate) running: BTreeMap<Order, SequenceId>,
    pub(crate) free_slots: Vec<Slot>,
    /// One per head class.
    pub(crate) pools: Vec<PagePool>,
    /// Table changes since the last step, in the order they happened; they travel with the next one.
    pub(crate) deltas: Vec<TableDelta>,
    /// Who gave way since the last plan.
    pub(crate) preempted: Vec<SequenceId>,
    pub(crate) counters: Counters,
    /// Pages held for sequences that are still to come.
    pub(crate) handed: BTreeMap<SequenceId, Handed>,
    arrivals: u64,
    /// At most the configured one.
    budget: u32,
    /// Decoding sequences hold the page of the position behind the next one.
    pub(crate) ahead: bool,
}

impl Scheduler {
    pub fn new(config: Config) -> Self {
        Self {
            sequences: BTreeMap::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            free_slots: (0..config.slots).rev().map(Slot).collect(),
            pools: config.classes.iter().map(|(class, pages)| PagePool::new(*class, *pages)).collect(),
            deltas: Vec::new(),
            preempted: Vec::new(),
            counters: Counters::default(),
            handed: BTreeMap::new(),
            arrivals: 0,
            budget: config.token_budget,
            ahead: false,
            config,
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait and go before a new one of this priority.
    pub fn waiting_before(&self, priority: i32) -> usize {
        self.waiting.range(..=Order { priority: Reverse(priority), arrival: u64::MAX }).count()
    }

    /// Whether a new sequence of this priority could take the place of a running one at once.
    pub fn may_preempt(&self, priority: i32) -> bool {
        let last = self.running.last_key_value();
        last.is_some_and(|(order, _)| order.priority > Reverse(priority))
            && self.waiting_before(priority) == 0
    }

    /// Pages of the scarcest class that a sequence could take: free ones and cached ones.
    pub fn free_pages(&self) -> u32 {
        self.pools.iter().map(PagePool::available).min().unwrap_or(0)
    }

    /// Pages of the class that has the smallest share of its pages left.
    pub fn pages(&self) -> PagesFacts {
        let left =
            |pool: &&PagePool| u64::from(pool.available()) * 1_000_000 / u64::from(pool.capacity().max(1));
        let scarcest = self.pools.iter().min_by_key(left);
        scarcest.map_or_else(PagesFacts::default, |pool| PagesFacts {
            total: pool.capacity(),
            free: pool.free(),
            cached: pool.cached(),
        })
    }

    pub fn counters(&self) -> Counters {
        Counters { evictions: self.pools.iter().map(PagePool::evictions).sum(), ..self.counters }
    }

    /// From now on [`Scheduler::page_changes`] is to be called after each plan.
    pub fn watch_pages(&mut self) {
        self.pools.iter_mut().for_each(PagePool::watch);
    }

    /// From now on a decoding sequence has, where there are plenty, the page that the step after the next one writes: a model
    /// may begin that step early.
    pub fn keep_pages_ahead(&mut self) {
        self.ahead = true;
    }

    /// Whether a sequence to which one more token is committed goes on to compute that.
    pub fn goes_on(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|sequence| sequence.len() + 1 < sequence.limit)
    }

    /// What happened to cached pages since the last call, by class in order.
    pub fn page_changes(&mut self) -> Vec<(usize, PoolChange)> {
        let of = |(class, pool): (usize, &mut PagePool)| pool.changes().into_iter().map(move |c| (class, c));
        self.pools.iter_mut().enumerate().flat_map(of).collect()
    }

    /// Whether the cache has a page of this content.
    pub fn is_cached(&self, class: usize, hash: &PageHash) -> bool {
        self.pools.get(class).is_some_and(|pool| pool.find(hash).is_some())
    }

    /// The first `most` that wait.
    pub fn next_in_line(&self, most: usize) -> Vec<SequenceId> {
        self.waiting.values().take(most).copied().collect()
    }

    pub fn is_waiting(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|sequence| sequence.running.is_none())
    }

    /// The pages of a waiting sequence that a cache could serve.
    pub fn cacheable(&mut self, id: SequenceId) -> Vec<PageHash> {
        self.sequences.get_mut(&id).map(Sequence::cacheable).unwrap_or_default()
    }

    /// Tokens of a sequence: prompt, then what was committed.
    pub fn tokens(&self, id: SequenceId) -> Option<&[TokenId]> {
        self.sequences.get(&id).map(|s| s.tokens.as_slice())
    }

    /// Whether only the last known position is left to compute: drafts would be verified next.
    pub fn decoding(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|s| s.running.is_some() && s.len() == s.computed + 1)
    }

    /// The slot of a sequence whose page table the model has as it is here, but for what it no longer needs: nothing that
    /// a step must change first is under way.
    pub fn steady_slot(&self, id: SequenceId) -> Option<Slot> {
        let slot = self.sequences.get(&id)?.running.as_ref()?.slot;
        let less = |change: &TableChange| matches!(change, TableChange::Truncate(_) | TableChange::Drop(_));
        self.deltas.iter().filter(|delta| delta.slot == slot).all(|delta| less(&delta.change)).then_some(slot)
    }

    /// Takes out the kept rows of trees that wait for the next step ([`TableChange::Keep`]). They come before all else that
    /// waits for their slots, so whoever executes them at once changes nothing. To be done before a page is
    /// read or written outside of steps: it may be one that a row is still to be copied into.
    pub fn take_kept(&mut self) -> Vec<TableDelta> {
        self.deltas.extract_if(.., |delta| matches!(delta.change, TableChange::Keep { .. })).collect()
    }

    /// What [`Scheduler::take_kept`] gave could not be executed: the next step says so.
    pub fn put_back_kept(&mut self, deltas: Vec<TableDelta>) {
        self.deltas.splice(0..0, deltas);
    }

    /// Takes a sequence into the queue, or says why it never can or cannot now run.
    pub fn add(&mut self, new: NewSequence) -> Result<(), Refused> {
        if new.tokens.is_empty() {
            return Err(Refused::Empty);
        }
        if self.sequences.contains_key(&new.id) {
            return Err(Refused::Doubled(new.id));
        }
        let longest = new.longest.max(new.tokens.len() as u32);
        if longest > self.config.context {
            return Err(Refused::TooLong { longest, context: self.config.context });
        }
        // Window pages are left behind as tokens settle. Of a sequence that is rewritten nobody says
        // how far behind that is, so it must fit as if it kept them all.
        let chunked = new.settled == u32::MAX && !self.config.policy.whole_prompts();
        let stride = if chunked { self.config.token_budget } else { longest };
        for (class, capacity) in &self.config.classes {
            let needed = kvcache::PageTable::worst_case(*class, longest, stride);
            if needed > *capacity {
                return Err(Refused::NeverFits { longest, needed, capacity: *capacity });
            }
        }
        if self.waiting.len() >= self.config.max_waiting {
            return Err(Refused::QueueFull { waiting: self.waiting.len() });
        }
        let id = new.id;
        let sequence = Sequence::new(NewSequence { longest, ..new }, self.arrivals, stride);
        self.arrivals += 1;
        self.waiting.insert(sequence.order, id);
        self.sequences.insert(id, sequence);
        Ok(())
    }

    /// Rows of the steps from here on, at most the configured budget: a rank that has a pace to keep lowers it.
    pub fn set_budget(&mut self, rows: u32) {
        self.budget = rows.clamp(1, self.config.token_budget.max(1));
    }

    /// Plans the next step. A plan without rows means that nothing can move before the next call that
    /// changes something; it may still name preemptions and admissions.
    pub fn plan<'a>(&mut self, ahead: impl Fn(SequenceId) -> Ahead<'a>) -> Plan {
        let mut plan = Plan::default();
        // When all gave way, what they gave back may be enough for who waits: look once more.
        for _ in 0..2 {
            self.admit(&ahead, &mut plan.admitted);
            let before = self.preempted.len();
            let shares = self.choose(&ahead);
            self.rows(&shares, &mut plan);
            if !shares.is_empty() || self.preempted.len() == before {
                break;
            }
        }
        plan.preempted = std::mem::take(&mut self.preempted);
        plan
    }

    /// Of a slice whose drafts are a tree those on the path to draft `leaf` hold: the next step keeps what was computed
    /// of them. To be called before [`Self::commit`].
    pub fn keep_path(&mut self, slice: &Slice, leaf: u32) {
        let running = self.sequences.get(&slice.sequence).and_then(|sequence| sequence.running.as_ref());
        if let Some(running) = running.filter(|_| slice.tree) {
            let (row, from) = (slice.first_row + slice.known + leaf, slice.position + slice.known);
            let keep = TableChange::Keep { row, from };
            let classes = 0..self.pools.len();
            self.deltas.extend(classes.map(|class| change(running.slot, class, keep)));
        }
    }

    /// Records what a slice of an executed plan came to: `accepted` of its drafts hold, and `tokens`
    /// are committed after the sequence's last one. Gives back pages of rejected drafts and pages
    /// that a window left behind.
    pub fn commit(&mut self, slice: &Slice, accepted: u32, tokens: &[TokenId]) {
        let Some(sequence) = self.sequences.get_mut(&slice.sequence) else { return };
        sequence.tokens.extend_from_slice(tokens);
        if sequence.running.is_some() {
            sequence.computed = (slice.position + slice.known + accepted).min(sequence.len());
            self.tidy(slice.sequence);
        }
    }

    /// Replaces everything from `at` on by `ids` (the drafter's tail was wrong). What is settled is
    /// not rewritten; should it be, the sequence starts over from there.
    pub fn rewrite(&mut self, id: SequenceId, at: u32, ids: &[TokenId]) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        debug_assert!(at >= 1 && at <= sequence.len(), "a rewrite keeps at least one token");
        let unsettled = at < sequence.settled.min(sequence.len());
        sequence.tokens.truncate(at as usize);
        sequence.tokens.extend_from_slice(ids);
        sequence.computed = sequence.computed.min(at);
        if unsettled {
            // Its pages may be sealed: they must not be written.
            sequence.settled = at;
            sequence.chain.truncate(at);
            self.preempt(id);
        } else {
            self.tidy(id);
        }
    }

    /// Says that tokens before `settled` will not be rewritten any more. To be called after a rewrite.
    pub fn settle(&mut self, id: SequenceId, settled: u32) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        if settled > sequence.settled {
            sequence.settled = settled;
            self.tidy(id);
        }
    }

    /// Moves the length up to which a sequence may grow, at most to its `longest`.
    pub fn set_limit(&mut self, id: SequenceId, limit: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.limit = limit.min(sequence.longest);
        }
    }

    /// Ends a sequence and gives back its slot and pages. What it computed and settled stays in the
    /// prefix cache.
    pub fn remove(&mut self, id: SequenceId) {
        self.release_handed(id);
        let Some(sequence) = self.sequences.remove(&id) else { return };
        self.waiting.remove(&sequence.order);
        self.running.remove(&sequence.order);
        if let Some(running) = sequence.running {
            self.give_up(running);
        }
    }

    /// Empties every table of the model with the next step, and the prefix cache: after a failure
    /// nobody knows what they hold.
    pub fn clear_tables(&mut self) {
        debug_assert!(self.sequences.is_empty(), "sequences go first");
        for id in self.handed.keys().copied().collect::<Vec<_>>() {
            self.release_handed(id);
        }
        self.deltas.clear();
        self.pools.iter_mut().for_each(PagePool::forget);
        for slot in (0..self.config.slots).map(Slot) {
            self.deltas.extend((0..self.pools.len()).map(|class| change(slot, class, TableChange::Clear)));
        }
    }

    /// Who has rows in the next step, and how many.
    fn choose<'a>(&mut self, ahead: &impl Fn(SequenceId) -> Ahead<'a>) -> Vec<Share<'a>> {
        let ready = |(order, id): (&Order, &SequenceId)| {
            let drafts = match ahead(*id) {
                Ahead::Hold => return None,
                Ahead::Go(ids) => Drafts::chain(ids),
                Ahead::Tree(ids, parents) => Drafts::tree(ids, parents),
            };
            let sequence = self.sequences.get(id)?;
            let running = sequence.running.as_ref()?;
            Some(Ready {
                id: *id,
                order: *order,
                behind: Some(sequence.behind()).filter(|behind| *behind > 0)?,
                started: running.started,
                drafts,
                room: sequence.limit.saturating_sub(sequence.len() + 1),
            })
        };
        let ready: Vec<Ready<'a>> = self.running.iter().filter_map(ready).collect();
        let ids: BTreeSet<SequenceId> = ready.iter().map(|ready| ready.id).collect();
        let Config { tile, policy, tree_rows, .. } = self.config;
        let rows = Rows { budget: self.budget, trees: tree_rows, tile, policy };
        self.place(share_out(rows, &ready), &ids)
    }

    /// Writes the rows of the step.
    fn rows(&mut self, shares: &[Share<'_>], plan: &mut Plan) {
        if shares.is_empty() {
            // Nothing runs: the deltas wait for the next step.
            return;
        }
        plan.step.deltas = std::mem::take(&mut self.deltas);
        for share in shares {
            let Some(sequence) = self.sequences.get_mut(&share.id) else { continue };
            let Some(running) = &mut sequence.running else { continue };
            running.started = true;
            let (position, end) = (sequence.computed, sequence.computed + share.known);
            let picks =
                end as usize == sequence.tokens.len() && sequence.tokens.len() < sequence.limit as usize;
            plan.slices.push(Slice {
                sequence: share.id,
                slot: running.slot,
                first_row: plan.step.rows.len() as u32,
                position,
                known: share.known,
                drafts: share.drafts.len(),
                tree: share.drafts.parents.is_some(),
                picks,
            });
            let last = plan.step.rows.len() as u32 + share.known - 1;
            let parent = |draft: usize| match share.drafts.parents {
                Some(parents) => Parent::Row(parents[draft].map_or(last, |parent| last + 1 + parent)),
                None => Parent::Previous,
            };
            let known = &sequence.tokens[position as usize..end as usize];
            let known = known.iter().zip(position..).map(|(token, at)| (token, at, Parent::Previous));
            let depths = share.drafts.depths();
            let drafts = share.drafts.ids.iter().zip(&depths).enumerate();
            let drafts = drafts.map(|(i, (token, depth))| (token, end - 1 + depth, parent(i)));
            plan.step.rows.extend(known.chain(drafts).map(|(token, at, parent)| Row {
                slot: running.slot,
                token: RowToken::Known(*token),
                position: at,
                parent,
                layers: Layers::All,
                output: if picks && at + 1 >= end { Output::Pick } else { Output::None },
                adapter: None,
            }));
        }
    }

    /// Gives back pages beyond what is computed, seals what is full and settled, and gives back what
    /// no later query sees.
    fn tidy(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let (computed, line) = (sequence.computed, sequence.line());
        let Some(running) = &mut sequence.running else { return };
        let chain = match self.config.prefix_cache {
            true => sequence.chain.reach(&sequence.tokens[..line as usize]),
            false => &[],
        };
        for (class, (table, pool)) in running.tables.iter_mut().zip(&mut self.pools).enumerate() {
            let cut = table.truncate(computed + u32::from(self.ahead), pool).map(TableChange::Truncate);
            table.seal(chain, pool);
            let left = table.commit(line, pool).into_iter().map(TableChange::Drop);
            self.deltas.extend(cut.into_iter().chain(left).map(|table| change(running.slot, class, table)));
        }
    }
}

pub(crate) fn change(slot: Slot, class: usize, change: TableChange) -> TableDelta {
    TableDelta { slot, class: ClassId(class as u8), change }
}

#[cfg(test)]
mod tests;
