//! Which slot of the file holds which page; the one that was not asked for the longest is the next to go.

use std::collections::{BTreeMap, HashMap};

use kvcache::PageHash;

#[derive(Debug)]
pub(crate) struct Slots {
    free: Vec<u32>,
    /// Never iterated.
    pages: HashMap<PageHash, Entry>,
    /// By when they were used.
    used: BTreeMap<u64, PageHash>,
    clock: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: u32,
    checksum: u64,
    used: u64,
}

impl Slots {
    pub(crate) fn new(slots: u32) -> Self {
        Self { free: (0..slots).rev().collect(), pages: HashMap::new(), used: BTreeMap::new(), clock: 0 }
    }

    /// Slot and checksum of a page.
    pub(crate) fn find(&self, hash: &PageHash) -> Option<(u32, u64)> {
        self.pages.get(hash).map(|entry| (entry.slot, entry.checksum))
    }

    /// A page is of use again; whether it is there.
    pub(crate) fn touch(&mut self, hash: &PageHash) -> bool {
        let Some(entry) = self.pages.get_mut(hash) else { return false };
        self.used.remove(&entry.used);
        entry.used = self.clock;
        self.used.insert(self.clock, *hash);
        self.clock += 1;
        true
    }

    /// The slot for one more page, and whose it is until it is filled.
    pub(crate) fn next(&self) -> (u32, Option<PageHash>) {
        match self.free.last() {
            Some(slot) => (*slot, None),
            None => {
                let oldest = self.used.first_key_value().map(|(_, hash)| *hash);
                (oldest.and_then(|hash| self.find(&hash)).map_or(0, |(slot, _)| slot), oldest)
            }
        }
    }

    /// The slot that [`Slots::next`] named holds this page.
    pub(crate) fn fill(&mut self, slot: u32, hash: PageHash, checksum: u64) {
        let oldest = self.used.first_key_value().map(|(_, hash)| *hash);
        match oldest {
            _ if self.free.last() == Some(&slot) => drop(self.free.pop()),
            Some(oldest) => {
                self.forget(&oldest);
                self.free.pop();
            }
            None => {}
        }
        self.pages.insert(hash, Entry { slot, checksum, used: self.clock });
        self.used.insert(self.clock, hash);
        self.clock += 1;
    }

    pub(crate) fn forget(&mut self, hash: &PageHash) {
        if let Some(entry) = self.pages.remove(hash) {
            self.used.remove(&entry.used);
            self.free.push(entry.slot);
        }
    }
}
