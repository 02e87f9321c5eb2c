//! Pages that another rank computed, for sequences that are still to come: a prefix-cache hit that arrived by wire.
//!
//! They are held for one sequence until it starts or is given up, so that nothing takes them meanwhile. Afterwards they
//! are cached pages like others; with the prefix cache off, only that sequence looks for them.

use kvcache::{OwnedPage, PAGE_POSITIONS, PageHash, PageId, PageTable, SharedPage};

use crate::SequenceId;
use crate::schedule::Scheduler;

/// Holds for one sequence.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    /// By class.
    pages: Vec<Vec<SharedPage>>,
    /// Positions up to which some class has a page.
    positions: u32,
}

impl Scheduler {
    /// Holds the page of this content if it is here already.
    pub fn hold_for(&mut self, id: SequenceId, class: usize, index: u32, hash: &PageHash) -> bool {
        let held = self.pools.get_mut(class).and_then(|pool| pool.share(hash));
        let there = held.is_some();
        if let Some(page) = held {
            self.keep(id, class, index, page);
        }
        there
    }

    /// A page to write what arrived into; `None` when those that run may need all there are.
    pub fn page_for_arrival(&mut self, class: usize) -> Option<OwnedPage> {
        let owed = self.owed(class, &[]);
        let pool = self.pools.get_mut(class)?;
        if pool.available() > owed { pool.take() } else { None }
    }

    /// The page holds what `hash` names; it is held for the sequence.
    pub fn arrived(&mut self, id: SequenceId, class: usize, index: u32, hash: PageHash, page: OwnedPage) {
        if let Some(pool) = self.pools.get_mut(class) {
            let page = pool.seal(page, hash);
            self.keep(id, class, index, page);
        }
    }

    /// The page could not be written.
    pub fn give_back(&mut self, class: usize, page: OwnedPage) {
        if let Some(pool) = self.pools.get_mut(class) {
            pool.give_back(page);
        }
    }

    /// Ends the holds of a sequence that started, or never will.
    pub fn release_handed(&mut self, id: SequenceId) {
        let Some(handed) = self.handed.remove(&id) else { return };
        for (pages, pool) in handed.pages.into_iter().zip(&mut self.pools) {
            pages.into_iter().for_each(|page| pool.release(page));
        }
    }

    /// Positions computed of a sequence.
    pub fn computed(&self, id: SequenceId) -> u32 {
        self.sequences.get(&id).map_or(0, |sequence| sequence.computed)
    }

    /// The page that a running sequence has at an index; `None` for a hole too.
    pub fn page_of(&self, id: SequenceId, class: usize, index: u32) -> Option<PageId> {
        let running = self.sequences.get(&id)?.running.as_ref()?;
        running.tables.get(class)?.pages().nth(index as usize)?
    }

    pub(crate) fn handed_positions(&self, id: SequenceId) -> u32 {
        self.handed.get(&id).map_or(0, |handed| handed.positions)
    }

    /// Pages of a class that running sequences may still take for what they know, but for those that go.
    pub(crate) fn owed(&self, class: usize, gone: &[SequenceId]) -> u32 {
        let Some(pool) = self.pools.get(class) else { return 0 };
        let running = self.running.values().filter(|id| !gone.contains(id));
        let running = running
            .filter_map(|id| Some((self.sequences.get(id)?, self.sequences.get(id)?.running.as_ref()?)));
        running
            .map(|(sequence, running)| {
                let positions = sequence.known_and_next();
                PageTable::worst_case(pool.class(), positions, sequence.stride)
                    .saturating_sub(running.tables[class].held())
            })
            .sum()
    }

    fn keep(&mut self, id: SequenceId, class: usize, index: u32, page: SharedPage) {
        let classes = self.pools.len();
        let handed = self.handed.entry(id).or_default();
        handed.pages.resize_with(classes, Vec::new);
        handed.pages[class].push(page);
        handed.positions = handed.positions.max((index + 1) * PAGE_POSITIONS);
    }
}

#[cfg(test)]
mod tests {
    use kvcache::{HeadClass, PrefixChain, PrefixRoot};
    use request::TokenId;

    use super::*;
    use crate::{Ahead, Config, NewSequence, Policy};

    fn scheduler(pages: u32, prefix_cache: bool) -> Scheduler {
        Scheduler::new(Config {
            token_budget: 64,
            tile: 1,
            policy: Policy::Sarathi,
            max_waiting: 8,
            context: 1024,
            slots: 4,
            tree_rows: 0,
            classes: vec![(HeadClass::Full, pages)],
            prefix_cache,
        })
    }

    fn sequence(id: u64, tokens: &[TokenId]) -> NewSequence {
        let longest = tokens.len() as u32 + 4;
        let (tokens, root) = (tokens.to_vec(), PrefixRoot::salted(""));
        NewSequence {
            id: SequenceId(id),
            tokens,
            limit: longest,
            longest,
            priority: 0,
            root,
            settled: u32::MAX,
        }
    }

    fn arrive(scheduler: &mut Scheduler, id: u64, hashes: &[PageHash]) -> usize {
        let mut took = 0;
        for (index, hash) in (0..).zip(hashes) {
            if !scheduler.hold_for(SequenceId(id), 0, index, hash) {
                let Some(page) = scheduler.page_for_arrival(0) else { break };
                scheduler.arrived(SequenceId(id), 0, index, *hash, page);
                took += 1;
            }
        }
        took
    }

    #[test]
    fn what_arrived_is_a_hit_with_and_without_a_prefix_cache() {
        let tokens: Vec<TokenId> = (0..50).map(TokenId).collect();
        let hashes = PrefixChain::new(PrefixRoot::salted("")).reach(&tokens).to_vec();
        for prefix_cache in [true, false] {
            let mut scheduler = scheduler(16, prefix_cache);
            assert_eq!(arrive(&mut scheduler, 1, &hashes[..2]), 2);
            assert_eq!(scheduler.free_pages(), 14, "nobody else takes them");
            // Another sequence of the same text does not see them without a prefix cache.
            scheduler.add(sequence(2, &tokens)).unwrap();
            scheduler.add(sequence(1, &tokens)).unwrap();
            let plan = scheduler.plan(|_| Ahead::Go(&[]));
            let cached: Vec<u32> = plan.admitted.iter().map(|a| a.cached).collect();
            assert_eq!(cached, [if prefix_cache { 32 } else { 0 }, 32]);
            for slice in &plan.slices {
                scheduler.commit(slice, 0, &[]);
            }
            scheduler.remove(SequenceId(1));
            scheduler.remove(SequenceId(2));
            assert_eq!(scheduler.free_pages(), 16, "nothing is held any more");
        }
    }

    #[test]
    fn a_whole_prompt_that_arrived_leaves_its_last_token_to_compute() {
        let tokens: Vec<TokenId> = (0..48).map(TokenId).collect();
        let hashes = PrefixChain::new(PrefixRoot::salted("")).reach(&tokens).to_vec();
        let mut scheduler = scheduler(16, false);
        arrive(&mut scheduler, 1, &hashes);
        scheduler.add(sequence(1, &tokens)).unwrap();
        assert_eq!(scheduler.plan(|_| Ahead::Go(&[])).admitted[0].cached, 32);
    }

    #[test]
    fn a_sequence_that_never_comes_gives_its_pages_up() {
        let tokens: Vec<TokenId> = (0..64).map(TokenId).collect();
        let hashes = PrefixChain::new(PrefixRoot::salted("")).reach(&tokens).to_vec();
        let mut scheduler = scheduler(3, true);
        assert_eq!(arrive(&mut scheduler, 1, &hashes), 3, "no more than there are");
        assert_eq!((scheduler.free_pages(), arrive(&mut scheduler, 2, &hashes)), (0, 0));
        scheduler.remove(SequenceId(1));
        assert_eq!(scheduler.free_pages(), 0, "the other holds them too");
        scheduler.release_handed(SequenceId(2));
        assert_eq!(scheduler.free_pages(), 3);
    }

    #[test]
    fn arrivals_never_take_what_running_sequences_need() {
        let tokens: Vec<TokenId> = (0..100).map(TokenId).collect();
        let mut scheduler = scheduler(8, true);
        scheduler.add(sequence(1, &tokens)).unwrap();
        scheduler.plan(|_| Ahead::Go(&[]));
        // 7 pages for 101 positions, of which 4 are held after 64 rows.
        let other: Vec<TokenId> = (500..600).map(TokenId).collect();
        let hashes = PrefixChain::new(PrefixRoot::salted("")).reach(&other).to_vec();
        assert_eq!(arrive(&mut scheduler, 2, &hashes), 1);
    }

    /// Held pages never keep the first in line from running when nobody else does.
    #[test]
    fn holds_give_way_when_nobody_runs() {
        let tokens: Vec<TokenId> = (0..100).map(TokenId).collect();
        let other: Vec<TokenId> = (500..600).map(TokenId).collect();
        let hashes = PrefixChain::new(PrefixRoot::salted("")).reach(&other).to_vec();
        let mut scheduler = scheduler(8, true);
        // Pages are held for the second before the first, which needs seven of the eight, has come.
        assert_eq!(arrive(&mut scheduler, 2, &hashes), 6);
        scheduler.add(sequence(1, &tokens)).unwrap();
        scheduler.add(sequence(2, &other)).unwrap();
        let plan = scheduler.plan(|_| Ahead::Go(&[]));
        let admitted: Vec<u64> = plan.admitted.iter().map(|a| a.sequence.0).collect();
        assert_eq!(admitted, [1]);
    }
}
