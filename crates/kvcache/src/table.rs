use crate::{HeadClass, OwnedPage, PAGE_POSITIONS, PageId, PagePool, Reservation, pages_for};

/// The pages of one sequence for one head class: page index (position / 16) to page.
///
/// A window class has holes: pages that no query can see any more are given back while their
/// neighbours stay (no ring, so a rollback never finds a page overwritten).
#[derive(Debug)]
pub struct PageTable {
    class: HeadClass,
    entries: Vec<Option<OwnedPage>>,
    /// Pages before this index were looked at by `commit` already.
    swept: usize,
}

impl PageTable {
    pub fn new(class: HeadClass) -> Self {
        Self { class, entries: Vec::new(), swept: 0 }
    }

    /// Most pages a sequence of at most `positions` positions holds at once in this class, when no
    /// step computes more than `chunk` positions of it.
    pub fn worst_case(class: HeadClass, positions: u32, chunk: u32) -> u32 {
        let full = pages_for(positions);
        match class {
            HeadClass::Full => full,
            // Sink pages, the pages that recent + chunk positions may straddle, and one at the edge.
            HeadClass::Window { sink, recent } => {
                full.min(pages_for(sink).saturating_add(pages_for(recent.saturating_add(chunk))) + 2)
            }
        }
    }

    /// Pages held now.
    pub fn held(&self) -> usize {
        self.entries.iter().flatten().count()
    }

    /// Appends pages until `positions` positions are covered; returns the new ones in order.
    /// `None` when the reservation does not cover them: the caller planned more than it reserved.
    pub fn cover(
        &mut self,
        positions: u32,
        pool: &mut PagePool,
        reservation: &mut Reservation,
    ) -> Option<Vec<PageId>> {
        let missing = (pages_for(positions) as usize).saturating_sub(self.entries.len());
        if missing > reservation.unused() as usize {
            return None;
        }
        let mut added = Vec::with_capacity(missing);
        for _ in 0..missing {
            let page = pool.take(reservation)?;
            added.push(page.id());
            self.entries.push(Some(page));
        }
        Some(added)
    }

    /// Gives back all pages beyond `positions` positions (rollback); returns the first page index
    /// that is gone, or `None` when nothing changed.
    pub fn truncate(
        &mut self,
        positions: u32,
        pool: &mut PagePool,
        reservation: &mut Reservation,
    ) -> Option<u32> {
        let keep = pages_for(positions) as usize;
        if keep >= self.entries.len() {
            return None;
        }
        for page in self.entries.drain(keep..).flatten() {
            pool.give_back(page, reservation);
        }
        self.swept = self.swept.min(keep);
        Some(keep as u32)
    }

    /// Gives back the pages that no query at `committed` or later sees; returns their page indices.
    /// Only this frees window pages: positions before `committed` are never rolled back.
    pub fn commit(&mut self, committed: u32, pool: &mut PagePool, reservation: &mut Reservation) -> Vec<u32> {
        let HeadClass::Window { sink, recent } = self.class else { return Vec::new() };
        let first = pages_for(sink) as usize;
        let end = (committed.saturating_sub(recent) / PAGE_POSITIONS) as usize;
        let end = end.min(self.entries.len());
        let mut dropped = Vec::new();
        for index in self.swept.max(first)..end {
            if let Some(page) = self.entries[index].take() {
                pool.give_back(page, reservation);
                dropped.push(index as u32);
            }
        }
        self.swept = self.swept.max(end);
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: HeadClass = HeadClass::Window { sink: 20, recent: 40 };

    #[test]
    fn a_full_table_grows_and_rolls_back_by_whole_pages() {
        let mut pool = PagePool::new(8);
        let mut reservation = pool.reserve(8).unwrap();
        let mut table = PageTable::new(HeadClass::Full);
        assert_eq!(table.cover(17, &mut pool, &mut reservation).unwrap(), [PageId(0), PageId(1)]);
        assert_eq!(table.cover(32, &mut pool, &mut reservation).unwrap(), []);
        assert_eq!(table.truncate(17, &mut pool, &mut reservation), None);
        assert_eq!(table.truncate(16, &mut pool, &mut reservation), Some(1));
        assert_eq!(table.held(), 1);
        assert!(table.commit(16, &mut pool, &mut reservation).is_empty());
        assert_eq!(table.cover(1000, &mut pool, &mut reservation), None, "more than was reserved");
    }

    #[test]
    fn a_window_keeps_sink_and_recent_pages() {
        let mut pool = PagePool::new(64);
        let mut reservation = pool.reserve(64).unwrap();
        let mut table = PageTable::new(WINDOW);
        table.cover(160, &mut pool, &mut reservation).unwrap();
        // Positions below 160 - 40 = 120 are out of sight: pages 2..7 (32..112); 0 and 1 hold the sink.
        assert_eq!(table.commit(160, &mut pool, &mut reservation), [2, 3, 4, 5, 6]);
        assert_eq!(table.held(), 5);
        assert!(table.commit(160, &mut pool, &mut reservation).is_empty());
    }

    proptest! {
        /// Whatever is done, no page is lost or doubled, everything a later query sees is still
        /// there, and the worst case holds.
        #[test]
        fn pages_are_conserved_and_visible_keys_are_kept(
            steps in prop::collection::vec((1u32..33, 0u32..6), 1..60),
            full: bool,
        ) {
            let class = if full { HeadClass::Full } else { WINDOW };
            let longest = 60 * 40;
            let mut pool = PagePool::new(400);
            let mut reservation = pool.reserve(PageTable::worst_case(class, longest, 40)).unwrap();
            let promised = reservation.unused();
            let mut table = PageTable::new(class);
            let mut committed = 0u32;
            for (grow, drafts) in steps {
                table.cover(committed + grow + drafts, &mut pool, &mut reservation).unwrap();
                prop_assert_eq!(table.held() as u32 + reservation.unused(), promised);
                committed += grow;
                table.truncate(committed, &mut pool, &mut reservation);
                table.commit(committed, &mut pool, &mut reservation);
                for key in 0..committed {
                    if class.sees(committed, key) {
                        prop_assert!(table.entries[(key / PAGE_POSITIONS) as usize].is_some());
                    }
                }
            }
            let mut ids: Vec<_> = table.entries.iter().flatten().map(|p| p.id()).collect();
            ids.sort();
            ids.dedup();
            prop_assert_eq!(ids.len(), table.held());
            table.truncate(0, &mut pool, &mut reservation);
            pool.release(reservation);
            prop_assert_eq!(pool.available(), 400);
        }
    }
}
