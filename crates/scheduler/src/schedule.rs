use std::collections::{BTreeMap, VecDeque};

use kvcache::{ClassId, HeadClass, PagePool, PageTable};
use request::TokenId;

use crate::sequence::{Running, Sequence, pages_needed};
use crate::{
    Ahead, Counters, Layers, NewSequence, Output, PagesFacts, Parent, Plan, Row, RowToken, SequenceId, Slice,
    Slot, Step, TableChange, TableDelta,
};

/// Bounds of the scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Most rows of one step. Draft rows count; a decode's own row, and one row of a prompt, are planned
    /// even beyond it.
    pub token_budget: u32,
    /// Sequences that wait for a slot or for pages; one more is refused.
    pub max_waiting: usize,
    /// Most positions of one sequence.
    pub context: u32,
    /// Sequences that run at once.
    pub slots: u32,
    /// Head classes and the pages of each.
    pub classes: Vec<(HeadClass, u32)>,
    /// Keep pages of finished work for sequences that start with the same tokens.
    pub prefix_cache: bool,
}

/// Why a sequence was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a sequence needs at least one token")]
    Empty,
    #[error("{longest} tokens are asked for and the context holds {context}")]
    TooLong { longest: u32, context: u32 },
    #[error("{needed} pages are needed for {longest} tokens and this rank has {capacity} in all")]
    NeverFits { longest: u32, needed: u32, capacity: u32 },
    #[error("{waiting} sequences wait already")]
    QueueFull { waiting: usize },
    #[error("sequence {} is already here", .0.0)]
    Doubled(SequenceId),
}

/// Owns sequences, slots and pages of one rank.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// First come first served.
    waiting: VecDeque<SequenceId>,
    /// In the order of admission.
    running: Vec<SequenceId>,
    free_slots: Vec<Slot>,
    pools: Vec<PagePool>,
    /// Table changes since the last plan; they travel with the next step.
    deltas: Vec<TableDelta>,
}

impl Scheduler {
    pub fn new(config: Config) -> Self {
        Self {
            sequences: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            free_slots: (0..config.slots).rev().map(Slot).collect(),
            pools: config.classes.iter().map(|(_, pages)| PagePool::new(*pages)).collect(),
            deltas: Vec::new(),
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

    /// Free pages of the scarcest class.
    pub fn free_pages(&self) -> u32 {
        self.pools.iter().map(PagePool::available).min().unwrap_or(0)
    }

    pub fn pages(&self) -> PagesFacts {
        let free = self.free_pages();
        PagesFacts { total: self.pools.iter().map(PagePool::capacity).min().unwrap_or(0), free, cached: 0 }
    }

    pub fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Tokens of a sequence: prompt, then what was committed.
    pub fn tokens(&self, id: SequenceId) -> Option<&[TokenId]> {
        self.sequences.get(&id).map(|s| s.tokens.as_slice())
    }

    /// Whether only the last known position is left to compute: drafts would be verified next.
    pub fn decoding(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|s| s.running.is_some() && s.len() == s.computed + 1)
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
        let needed = pages_needed(&self.config.classes, longest, self.chunk());
        for (needed, (_, capacity)) in needed.into_iter().zip(&self.config.classes) {
            if needed > *capacity {
                return Err(Refused::NeverFits { longest, needed, capacity: *capacity });
            }
        }
        if self.waiting.len() >= self.config.max_waiting {
            return Err(Refused::QueueFull { waiting: self.waiting.len() });
        }
        self.waiting.push_back(new.id);
        self.sequences.insert(new.id, Sequence::new(NewSequence { longest, ..new }));
        Ok(())
    }

    /// Plans the next step; an empty plan means that nothing can move now.
    pub fn plan<'a>(&mut self, ahead: impl Fn(SequenceId) -> Ahead<'a>) -> Plan {
        self.admit();
        let mut budget = self.config.token_budget;
        let mut chosen: Vec<(SequenceId, u32, &'a [TokenId])> = Vec::new();
        let ready: Vec<(SequenceId, u32, &'a [TokenId])> = self
            .running
            .iter()
            .filter_map(|id| match ahead(*id) {
                Ahead::Hold => None,
                Ahead::Go(drafts) => Some((*id, self.sequences.get(id)?.behind(), drafts)),
            })
            .collect();
        // Decodes first; their own rows are never refused (running is bounded by the slots).
        let decodes = ready.iter().filter(|(_, behind, _)| *behind == 1);
        chosen.extend(decodes.map(|(id, _, drafts)| (*id, 1, *drafts)));
        budget = budget.saturating_sub(chosen.len() as u32);
        // Then their drafts, in equal shares; while a prompt is behind, half of what is left is its.
        let prompts = ready.iter().any(|(_, behind, _)| *behind > 1);
        let mut for_drafts = if prompts { budget / 2 } else { budget };
        let mut drafting = chosen.iter().filter(|(_, _, drafts)| !drafts.is_empty()).count() as u32;
        for (id, _, drafts) in chosen.iter_mut().filter(|(_, _, drafts)| !drafts.is_empty()) {
            let share = for_drafts.div_ceil(drafting);
            let room = self.sequences.get(id).map_or(0, |s| s.limit.saturating_sub(s.len() + 1));
            let take = (drafts.len() as u32).min(room).min(share);
            *drafts = &drafts[..take as usize];
            (for_drafts, budget, drafting) = (for_drafts - take, budget - take, drafting - 1);
        }
        // However many decode, a prompt moves: at least one row a step.
        budget = budget.max(u32::from(prompts));
        for (id, behind, _) in ready.iter().filter(|(_, behind, _)| *behind > 1) {
            let rows = (*behind).min(budget);
            if rows > 0 {
                chosen.push((*id, rows, &[]));
                budget -= rows;
            }
        }
        let mut plan = Plan {
            step: Step { deltas: std::mem::take(&mut self.deltas), rows: Vec::new() },
            ..Plan::default()
        };
        for (id, known, drafts) in chosen {
            self.slice(&mut plan, id, known, drafts);
        }
        if plan.slices.is_empty() {
            // Nothing runs: the deltas wait for the next step.
            self.deltas = plan.step.deltas;
            return Plan::default();
        }
        plan
    }

    /// Records what a slice of an executed plan came to: `accepted` of its drafts hold, and `tokens`
    /// are committed after the sequence's last one. Gives back pages of rejected drafts and pages
    /// that a window left behind.
    pub fn commit(&mut self, slice: &Slice, accepted: u32, tokens: &[TokenId]) {
        let Some(sequence) = self.sequences.get_mut(&slice.sequence) else { return };
        sequence.tokens.extend_from_slice(tokens);
        sequence.computed = (slice.position + slice.known + accepted).min(sequence.len());
        self.give_back(slice.sequence);
    }

    /// Replaces everything from `at` on by `ids` (the drafter's tail was wrong).
    pub fn rewrite(&mut self, id: SequenceId, at: u32, ids: &[TokenId]) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        debug_assert!(at >= 1 && at <= sequence.len(), "a rewrite keeps at least one token");
        sequence.tokens.truncate(at as usize);
        sequence.tokens.extend_from_slice(ids);
        sequence.computed = sequence.computed.min(at);
        self.give_back(id);
    }

    /// Says that tokens before `settled` will not be rewritten any more. After a rewrite, not before it.
    pub fn settle(&mut self, id: SequenceId, settled: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.settled = sequence.settled.max(settled);
        }
    }

    /// Moves the length up to which a sequence may grow, at most to what it reserved.
    pub fn set_limit(&mut self, id: SequenceId, limit: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.limit = limit.min(sequence.longest);
        }
    }

    /// Ends a sequence and gives back its slot and pages.
    pub fn remove(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        self.waiting.retain(|other| *other != id);
        self.running.retain(|other| *other != id);
        let Some(running) = sequence.running else { return };
        for (class, (mut table, mut reservation)) in running.tables.into_iter().enumerate() {
            table.truncate(0, &mut self.pools[class], &mut reservation);
            self.pools[class].release(reservation);
            self.deltas.push(TableDelta {
                slot: running.slot,
                class: ClassId(class as u8),
                change: TableChange::Clear,
            });
        }
        self.free_slots.push(running.slot);
    }

    /// Empties every table of the model with the next step: after a failure nobody knows what they hold.
    pub fn clear_tables(&mut self) {
        debug_assert!(self.sequences.is_empty(), "sequences go first");
        self.deltas.clear();
        for slot in 0..self.config.slots {
            let class = |class| ClassId(class as u8);
            self.deltas.extend((0..self.pools.len()).map(|c| TableDelta {
                slot: Slot(slot),
                class: class(c),
                change: TableChange::Clear,
            }));
        }
    }

    /// Most positions of one sequence that a step computes.
    fn chunk(&self) -> u32 {
        self.config.token_budget
    }

    /// Moves waiting sequences to slots while slots and pages last.
    fn admit(&mut self) {
        while let Some(id) = self.waiting.front().copied() {
            let Some(sequence) = self.sequences.get_mut(&id) else {
                self.waiting.pop_front();
                continue;
            };
            let Some(slot) = self.free_slots.pop() else { return };
            let needed = pages_needed(&self.config.classes, sequence.longest, self.config.token_budget);
            let mut tables = Vec::with_capacity(needed.len());
            for ((pool, pages), (class, _)) in self.pools.iter_mut().zip(needed).zip(&self.config.classes) {
                match pool.reserve(pages) {
                    Ok(reservation) => tables.push((PageTable::new(*class), reservation)),
                    Err(_) => {
                        for ((_, reservation), pool) in tables.into_iter().zip(&mut self.pools) {
                            pool.release(reservation);
                        }
                        self.free_slots.push(slot);
                        return;
                    }
                }
            }
            sequence.running = Some(Running { slot, tables });
            self.waiting.pop_front();
            self.running.push(id);
        }
    }

    fn slice(&mut self, plan: &mut Plan, id: SequenceId, known: u32, drafts: &[TokenId]) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(running) = &mut sequence.running else { return };
        let position = sequence.computed;
        let end = position + known + drafts.len() as u32;
        for (class, (table, reservation)) in running.tables.iter_mut().enumerate() {
            let added = table.cover(end, &mut self.pools[class], reservation);
            debug_assert!(added.is_some(), "a plan stays within what its sequence reserved");
            plan.step.deltas.extend(added.unwrap_or_default().into_iter().map(|page| TableDelta {
                slot: running.slot,
                class: ClassId(class as u8),
                change: TableChange::Append(page),
            }));
        }
        let picks = position + known == sequence.tokens.len() as u32
            && sequence.tokens.len() < sequence.limit as usize;
        let first_row = plan.step.rows.len() as u32;
        let tokens = sequence.tokens[position as usize..(position + known) as usize].iter().chain(drafts);
        for (i, token) in tokens.enumerate() {
            let i = i as u32;
            plan.step.rows.push(Row {
                slot: running.slot,
                token: RowToken::Known(*token),
                position: position + i,
                parent: Parent::Previous,
                layers: Layers::All,
                output: if picks && i + 1 >= known { Output::Pick } else { Output::None },
                adapter: None,
            });
        }
        let slot = running.slot;
        plan.slices.push(Slice {
            sequence: id,
            slot,
            first_row,
            position,
            known,
            drafts: drafts.len() as u32,
            picks,
        });
    }

    /// Gives back pages beyond what is computed, and pages no later query sees.
    fn give_back(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let computed = sequence.computed;
        let Some(running) = &mut sequence.running else { return };
        for (class, (table, reservation)) in running.tables.iter_mut().enumerate() {
            let pool = &mut self.pools[class];
            let cut = table.truncate(computed, pool, reservation).map(TableChange::Truncate);
            // A drafter may be told to go back behind `computed`: the engine takes drafts only on
            // models whose classes are all full.
            let left = table.commit(computed, pool, reservation).into_iter().map(TableChange::Drop);
            self.deltas.extend(cut.into_iter().chain(left).map(|change| TableDelta {
                slot: running.slot,
                class: ClassId(class as u8),
                change,
            }));
        }
    }
}

#[cfg(test)]
mod tests;
