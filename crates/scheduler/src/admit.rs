//! From the queue to a slot.
//!
//! The head-of-line rule: the first in line that does not fit holds back those behind it, so a large
//! sequence is not passed by small ones for ever. It is admitted when there is a slot, and pages for
//! all it knows and its next token, beyond what those who run already lack for theirs, so
//! that a prompt is rarely thrown out half computed (what others grow by meanwhile can still do it). A sequence of strictly higher priority takes slot
//! and pages from lower ones, the last in order first; if that would not do, it takes nothing.

use kvcache::{PAGE_POSITIONS, PageHash, PageId, PageTable, hit_pages, longest_hit};

use crate::schedule::{Scheduler, change};
use crate::sequence::{Order, Running};
use crate::{Admitted, Ahead, SequenceId, TableChange};

/// What a waiting sequence needs to run.
struct Demand {
    /// The pages that the prefix cache has for it.
    chain: Vec<PageHash>,
    /// Beyond them something is left to compute.
    rows: bool,
    classes: Vec<ClassDemand>,
}

struct ClassDemand {
    hit: Vec<PageId>,
    /// Pages to take beyond the hit.
    fresh: u32,
}

impl Scheduler {
    /// Moves waiting sequences to slots while slots and pages last.
    pub(crate) fn admit<'a>(
        &mut self,
        ahead: &impl Fn(SequenceId) -> Ahead<'a>,
        admitted: &mut Vec<Admitted>,
    ) {
        let mut seen: Option<Order> = None;
        while let Some((order, id)) = self.next_waiting(seen) {
            seen = Some(order);
            // Who could not use a slot now is passed over, here and below; it keeps its place in the line.
            if ahead(id) == Ahead::Hold {
                continue;
            }
            let mut lower = self.lower_than(order);
            if self.free_slots.is_empty() && lower.is_empty() {
                return;
            }
            let Some(demand) = self.demand(id).filter(|demand| demand.rows) else { continue };
            if !self.fits(&demand, &[]) && !self.fits(&demand, &lower) && !self.give_up_holds(id, &demand) {
                return;
            }
            while !self.fits(&demand, &[]) {
                let Some(last) = lower.pop() else { return };
                self.preempt(last);
            }
            admitted.extend(self.start(id, &demand));
        }
    }

    /// When nobody runs, nobody will give a page back: what is held for others that are still to come is let go, the last of
    /// them first, until this one fits.
    fn give_up_holds(&mut self, id: SequenceId, demand: &Demand) -> bool {
        while self.running.is_empty() {
            if self.fits(demand, &[]) {
                return true;
            }
            let Some(last) = self.handed.keys().rev().find(|other| **other != id).copied() else { break };
            self.release_handed(last);
        }
        false
    }

    fn next_waiting(&self, seen: Option<Order>) -> Option<(Order, SequenceId)> {
        let mut line = match seen {
            None => self.waiting.range(..),
            Some(seen) => self.waiting.range((std::ops::Bound::Excluded(seen), std::ops::Bound::Unbounded)),
        };
        line.next().map(|(order, id)| (*order, *id))
    }

    /// Running sequences of lower priority, in order.
    fn lower_than(&self, order: Order) -> Vec<SequenceId> {
        // The order's field is reversed: a lower priority is the greater value.
        let lower = |(other, id): (&Order, &SequenceId)| (other.priority > order.priority).then_some(*id);
        self.running.iter().filter_map(lower).collect()
    }

    fn demand(&mut self, id: SequenceId) -> Option<Demand> {
        let handed = self.handed_positions(id);
        let sequence = self.sequences.get_mut(&id)?;
        // At least the last token is computed: its logits are wanted. What may be rewritten is not
        // shared: it would be written. Without a prefix cache, only what was handed over for it.
        let most = if self.config.prefix_cache { u32::MAX } else { handed };
        let most = most.min(sequence.len() - 1).min(sequence.settled);
        let chain = sequence.chain.reach(&sequence.tokens[..most as usize]);
        let chain = chain[..longest_hit(&self.pools, chain) as usize].to_vec();
        let rows = sequence.wanted() > chain.len() as u32 * PAGE_POSITIONS;
        let (positions, stride) = (sequence.known_and_next(), sequence.stride);
        let classes = self.pools.iter().map(|pool| {
            let hit = hit_pages(pool, &chain);
            let worst = PageTable::worst_case(pool.class(), positions, stride);
            ClassDemand { fresh: worst.saturating_sub(hit.len() as u32), hit }
        });
        let classes = classes.collect();
        Some(Demand { chain, rows, classes })
    }

    /// Whether slot and pages are there once `gone` gave up theirs.
    fn fits(&self, demand: &Demand, gone: &[SequenceId]) -> bool {
        let tables =
            |id: &SequenceId| Some((self.sequences.get(id)?, self.sequences.get(id)?.running.as_ref()?));
        (!self.free_slots.is_empty() || !gone.is_empty())
            && self.pools.iter().zip(&demand.classes).enumerate().all(|(class, (pool, demand))| {
                let mut freed = 0;
                let mut let_go: Vec<PageId> = Vec::new();
                for (_, running) in gone.iter().filter_map(tables) {
                    freed += running.tables[class].owned().count() as u32;
                    let_go.extend(running.tables[class].shared());
                }
                // A sealed page is freed when all its holders are among those that go.
                let_go.sort_unstable();
                let runs = let_go.chunk_by(|a, b| a == b);
                let whole = runs.filter(|run| pool.holders(run[0]) == run.len() as u32);
                let let_go: Vec<PageId> = whole.map(|run| run[0]).collect();
                // A hit takes its page from those that could be taken, if nobody else holds it.
                let revived = demand.hit.iter();
                let revived =
                    revived.filter(|page| pool.holders(**page) == 0 || let_go.binary_search(page).is_ok());
                let owed = self.owed(class, gone);
                pool.available() + freed + let_go.len() as u32 >= demand.fresh + owed + revived.count() as u32
            })
    }

    fn start(&mut self, id: SequenceId, demand: &Demand) -> Option<Admitted> {
        let sequence = self.sequences.get_mut(&id)?;
        let slot = self.free_slots.pop()?;
        let tables: Vec<PageTable> =
            self.pools.iter_mut().map(|pool| PageTable::resume(&demand.chain, pool)).collect();
        for (class, table) in tables.iter().enumerate() {
            self.deltas.extend(
                table
                    .pages()
                    .map(|page| change(slot, class, page.map_or(TableChange::Hole, TableChange::Share))),
            );
        }
        let cached = demand.chain.len() as u32 * PAGE_POSITIONS;
        let again = sequence.preempted;
        sequence.computed = cached;
        sequence.running = Some(Running { slot, tables, started: false });
        let order = sequence.order;
        let length = sequence.len();
        self.waiting.remove(&order);
        self.running.insert(order, id);
        self.release_handed(id);
        if again {
            self.counters.recovered += u64::from(cached);
        } else {
            self.counters.prefix_queries += u64::from(length);
            self.counters.prefix_hits += u64::from(cached);
        }
        Some(Admitted { sequence: id, cached, again })
    }
}
