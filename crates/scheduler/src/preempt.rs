//! Who gives way when slots or pages are short, and how.
//!
//! Preemption is by recompute: a sequence gives up slot and pages, waits in its old place in the
//! order, and comes back through the prefix cache, where its sealed pages stay as long as nobody
//! takes them.

use std::collections::BTreeSet;

use kvcache::PagePool;

use crate::budget::Share;
use crate::schedule::{Scheduler, change};
use crate::sequence::{Order, Running, Sequence};
use crate::{SequenceId, TableChange};

impl Scheduler {
    /// Gives every share the pages of its rows, or cuts it down to the pages there are.
    ///
    /// First each one's first row, in order: for that one, sequences behind it give way. So the first
    /// in order always runs. The other rows of prompts, and after them drafts, take what is left.
    pub(crate) fn place<'a>(
        &mut self,
        shares: Vec<Share<'a>>,
        ready: &BTreeSet<SequenceId>,
    ) -> Vec<Share<'a>> {
        let mut by_order: Vec<(Order, SequenceId)> =
            shares.iter().map(|share| (share.order, share.id)).collect();
        by_order.sort_unstable();
        for (order, id) in by_order {
            // One that gave way has no table: it needs nothing now.
            while self.cover(id, 1) == Some(0) {
                let gives_way = self.gives_way(order, ready).unwrap_or(id);
                self.preempt(gives_way);
            }
        }
        let mut placed = shares;
        placed.retain(|share| self.running.contains_key(&share.order));
        for share in &mut placed {
            share.known = self.cover(share.id, share.known).unwrap_or(0);
        }
        for share in placed.iter_mut().filter(|share| !share.drafts.is_empty()) {
            let positions = self.cover(share.id, share.known + share.drafts.reach()).unwrap_or(0);
            share.drafts = share.drafts.within(positions.saturating_sub(share.known));
        }
        self.cover_ahead(&placed);
        placed
    }

    /// Of sequences that decode: the page of the position behind the step's, where each has one to take.
    fn cover_ahead(&mut self, placed: &[Share<'_>]) {
        let plenty = |pool: &PagePool| pool.available() as usize > placed.len();
        if !self.ahead || !self.pools.iter().all(plenty) {
            return;
        }
        for share in placed.iter().filter(|share| share.known == 1 && share.drafts.is_empty()) {
            let goes_on = |sequence: &Sequence| sequence.computed + 2 < sequence.limit;
            if self.sequences.get(&share.id).is_some_and(goes_on) {
                let _ = self.cover(share.id, 2);
            }
        }
    }

    /// Takes pages for the next `rows` positions of a running sequence, as far as there are any;
    /// returns the rows that have theirs in every class.
    fn cover(&mut self, id: SequenceId, rows: u32) -> Option<u32> {
        let sequence = self.sequences.get_mut(&id)?;
        let running = sequence.running.as_mut()?;
        let classes = || running.tables.iter().zip(&self.pools);
        let reach = classes().map(|(table, pool)| {
            table.covers().saturating_add(pool.available().saturating_mul(kvcache::PAGE_POSITIONS))
        });
        let end = reach.min().unwrap_or(0).min(sequence.computed + rows);
        for (class, (table, pool)) in running.tables.iter_mut().zip(&mut self.pools).enumerate() {
            let added = table.cover(end, pool).unwrap_or_default();
            self.deltas
                .extend(added.into_iter().map(|page| change(running.slot, class, TableChange::Append(page))));
        }
        Some(end.saturating_sub(sequence.computed))
    }

    /// The last in order. When that is who asks: the last of those that cannot move now, so that a
    /// stalled reader costs nobody else a page.
    fn gives_way(&self, asks: Order, ready: &BTreeSet<SequenceId>) -> Option<SequenceId> {
        let (last, id) = self.running.last_key_value()?;
        if *last > asks {
            return Some(*id);
        }
        self.running.values().rev().find(|id| !ready.contains(id)).copied()
    }

    /// Takes slot and pages from a running sequence; it waits in its old place.
    pub(crate) fn preempt(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(running) = sequence.running.take() else { return };
        (sequence.computed, sequence.preempted) = (0, true);
        self.running.remove(&sequence.order);
        self.waiting.insert(sequence.order, id);
        self.preempted.push(id);
        self.counters.preemptions += 1;
        self.give_up(running);
    }

    /// Gives back a slot and its pages.
    pub(crate) fn give_up(&mut self, running: Running) {
        for (class, (mut table, pool)) in running.tables.into_iter().zip(&mut self.pools).enumerate() {
            table.truncate(0, pool);
            self.deltas.push(change(running.slot, class, TableChange::Clear));
        }
        self.free_slots.push(running.slot);
    }
}
