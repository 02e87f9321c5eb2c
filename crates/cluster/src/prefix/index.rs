use std::collections::{BTreeMap, HashMap, HashSet};

use super::{PrefixName, PrefixUpdate};
use crate::{Incarnation, NodeId};

/// An update that does not follow what is known of its worker, which is dropped: all of it must be told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("update {number} of the worker's prefixes does not follow what is known: tell all of them")]
pub struct PrefixGap {
    pub number: u64,
}

/// The coordinator's side: which worker has which prefixes. Equal updates give equal answers.
#[derive(Debug)]
pub struct PrefixIndex {
    workers: BTreeMap<NodeId, Told>,
    /// Names held, of all workers.
    held: usize,
    most: usize,
}

#[derive(Debug)]
struct Told {
    of: Incarnation,
    /// Number of the next update.
    next: u64,
    /// Never iterated.
    pages: HashSet<PrefixName>,
}

impl PrefixIndex {
    /// Holds at most `most` names; what comes beyond that is not remembered.
    pub fn new(most: usize) -> Self {
        Self { workers: BTreeMap::new(), held: 0, most }
    }

    /// Names held, of all workers.
    pub fn len(&self) -> usize {
        self.held
    }

    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes one message of a worker's incarnation; the number of names that found no room.
    ///
    /// # Errors
    /// It does not follow the one before: nothing is known of that worker any more.
    pub fn apply(&mut self, id: &NodeId, of: Incarnation, update: &PrefixUpdate) -> Result<usize, PrefixGap> {
        if update.reset {
            self.forget(id);
            self.workers.insert(id.clone(), Told { of, next: update.number, pages: HashSet::new() });
        }
        let told = self.workers.get_mut(id).filter(|told| (told.of, told.next) == (of, update.number));
        let Some(told) = told else {
            self.forget(id);
            return Err(PrefixGap { number: update.number });
        };
        // The number is the worker's to choose.
        told.next = told.next.wrapping_add(1);
        for name in &update.removed {
            self.held -= usize::from(told.pages.remove(name));
        }
        let mut left_out = 0;
        for name in &update.stored {
            if self.held < self.most {
                self.held += usize::from(told.pages.insert(*name));
            } else {
                left_out += usize::from(!told.pages.contains(name));
            }
        }
        Ok(left_out)
    }

    /// A worker is gone, or another life of it came.
    pub fn forget(&mut self, id: &NodeId) {
        if let Some(told) = self.workers.remove(id) {
            self.held -= told.pages.len();
        }
    }

    /// By worker: how many pages of a request it has in a row, from the first one on; without those that have none.
    pub fn hits(&self, chain: &[PrefixName]) -> HashMap<NodeId, u32> {
        let run = |told: &Told| chain.iter().take_while(|name| told.pages.contains(name)).count() as u32;
        let hits = self.workers.iter().map(|(id, told)| (id, run(told)));
        hits.filter(|(_, pages)| *pages > 0).map(|(id, pages)| (id.clone(), pages)).collect()
    }
}
