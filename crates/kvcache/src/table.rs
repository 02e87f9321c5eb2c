use crate::{HeadClass, OwnedPage, PAGE_POSITIONS, PageHash, PageId, PagePool, SharedPage, pages_for};

/// The pages of one sequence for one head class: page index (position / 16) to page.
///
/// Sealed pages come first, then pages the sequence still writes. A window class has holes: pages
/// that no query can see any more are given back while their neighbours stay (no ring, so a rollback
/// never finds a page overwritten).
///
/// Every call takes the pool of the class; a table is cleared before it is dropped.
#[derive(Debug, Default)]
pub struct PageTable {
    entries: Vec<Entry>,
    /// Entries that are not holes.
    held: u32,
    /// Pages before this index are sealed or holes.
    sealed: usize,
    /// Pages before this index were looked at by `commit` already.
    swept: usize,
}

#[derive(Debug)]
enum Entry {
    Hole,
    Owned(OwnedPage),
    Shared(SharedPage),
}

impl Entry {
    fn page(&self) -> Option<PageId> {
        match self {
            Self::Hole => None,
            Self::Owned(page) => Some(page.id()),
            Self::Shared(page) => Some(page.id()),
        }
    }

    fn give_back(self, pool: &mut PagePool) -> bool {
        match self {
            Self::Hole => return false,
            Self::Owned(page) => pool.give_back(page),
            Self::Shared(page) => pool.release(page),
        }
        true
    }
}

impl PageTable {
    pub fn new() -> Self {
        Self::default()
    }

    /// A table that goes on after the pages of `chain`, which the pool has as far as they are needed
    /// ([`crate::longest_hit`]).
    pub fn resume(chain: &[PageHash], pool: &mut PagePool) -> Self {
        let (class, line) = (pool.class(), chain.len() as u32 * PAGE_POSITIONS);
        let mut entry = |hash, index| match class.needs(line, index).then(|| pool.share(hash)) {
            None => Entry::Hole,
            Some(Some(page)) => Entry::Shared(page),
            Some(None) => {
                // A model that reads it says so; it never reads something else.
                debug_assert!(false, "page {index} of a hit is not there");
                Entry::Hole
            }
        };
        let entries: Vec<Entry> = chain.iter().zip(0..).map(|(hash, index)| entry(hash, index)).collect();
        Self {
            held: entries.iter().filter_map(Entry::page).count() as u32,
            sealed: entries.len(),
            swept: (class.reach(line) as usize).min(entries.len()),
            entries,
        }
    }

    /// Most pages a sequence of at most `positions` positions holds at once in this class, when no
    /// step computes more than `chunk` positions of it and `commit` follows every step.
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
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Positions that its pages cover.
    pub fn covers(&self) -> u32 {
        self.entries.len() as u32 * PAGE_POSITIONS
    }

    /// The page of every index; `None` for a hole.
    pub fn pages(&self) -> impl Iterator<Item = Option<PageId>> {
        self.entries.iter().map(Entry::page)
    }

    /// The pages that only this sequence holds and may write.
    pub fn owned(&self) -> impl Iterator<Item = PageId> {
        self.entries[self.sealed..].iter().filter_map(Entry::page)
    }

    /// The sealed pages it holds.
    pub fn shared(&self) -> impl Iterator<Item = PageId> {
        self.entries[..self.sealed].iter().filter_map(Entry::page)
    }

    /// Pages to take so that `positions` positions are covered.
    pub fn missing(&self, positions: u32) -> u32 {
        pages_for(positions).saturating_sub(self.entries.len() as u32)
    }

    /// Appends pages until `positions` positions are covered; returns the new ones in order. `None`,
    /// and nothing changed, when the pool has not enough of them.
    pub fn cover(&mut self, positions: u32, pool: &mut PagePool) -> Option<Vec<PageId>> {
        let missing = self.missing(positions);
        if missing > pool.available() {
            return None;
        }
        let mut added = Vec::with_capacity(missing as usize);
        for _ in 0..missing {
            let page = pool.take()?;
            added.push(page.id());
            self.entries.push(Entry::Owned(page));
            self.held += 1;
        }
        Some(added)
    }

    /// Gives back all pages beyond `positions` positions (rollback), the deepest first; returns the
    /// first page index that is gone, or `None` when nothing changed.
    pub fn truncate(&mut self, positions: u32, pool: &mut PagePool) -> Option<u32> {
        let keep = pages_for(positions) as usize;
        if keep >= self.entries.len() {
            return None;
        }
        for entry in self.entries.drain(keep..).rev() {
            self.held -= u32::from(entry.give_back(pool));
        }
        (self.sealed, self.swept) = (self.sealed.min(keep), self.swept.min(keep));
        Some(keep as u32)
    }

    /// Seals the pages of `chain`: all their positions are computed and never written again.
    pub fn seal(&mut self, chain: &[PageHash], pool: &mut PagePool) {
        for (entry, hash) in self.entries.iter_mut().zip(chain).skip(self.sealed) {
            *entry = match std::mem::replace(entry, Entry::Hole) {
                Entry::Owned(page) => Entry::Shared(pool.seal(page, *hash)),
                other => other,
            };
        }
        self.sealed = self.sealed.max(chain.len().min(self.entries.len()));
    }

    /// Gives back the pages that no query at `line` or later sees, the deepest first; returns their page
    /// indices. Only this frees window pages: positions before `line` are never rolled back.
    pub fn commit(&mut self, line: u32, pool: &mut PagePool) -> Vec<u32> {
        let class = pool.class();
        let end = (class.reach(line) as usize).min(self.entries.len());
        let mut dropped = Vec::new();
        for index in (self.swept..end).rev() {
            if !class.needs(line, index as u32)
                && std::mem::replace(&mut self.entries[index], Entry::Hole).give_back(pool)
            {
                self.held -= 1;
                dropped.push(index as u32);
            }
        }
        self.swept = self.swept.max(end);
        dropped
    }
}

#[cfg(test)]
mod tests;
