use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cluster::{NodeId, NodeRecord, PrefixGap, PrefixIndex, PrefixName, PrefixUpdate};
use telemetry::Label;

/// Which worker has which prefix, written by the table's owner and read for every request.
#[derive(Debug)]
pub struct Prefixes(Mutex<PrefixIndex>);

impl Prefixes {
    pub(super) fn new(most: usize) -> Self {
        Self(Mutex::new(PrefixIndex::new(most)))
    }

    /// By worker: how many pages of a request it has in a row, from the first one on; without those that have none.
    pub fn hits(&self, chain: &[PrefixName]) -> HashMap<NodeId, u32> {
        if chain.is_empty() { HashMap::new() } else { self.index().hits(chain) }
    }

    pub(super) fn apply(&self, node: &NodeRecord, update: &PrefixUpdate) -> Result<(), PrefixGap> {
        let applied = self.index().apply(&node.id, node.incarnation, update);
        let count = |event: &'static str, pages: usize| {
            let events = &telemetry::meters().kv_cache_events_applied;
            events.add(pages as u64, &[Label::event(event)]);
        };
        match applied {
            // A name that has room is counted although the worker told of it before.
            Ok(left_out) => {
                count("stored", update.stored.len() - left_out.min(update.stored.len()));
                count("left_out", left_out);
                count("removed", update.removed.len());
                count("reset", usize::from(update.reset));
                Ok(())
            }
            Err(gap) => {
                count("gap", 1);
                Err(gap)
            }
        }
    }

    pub(super) fn forget(&self, id: &NodeId) {
        self.index().forget(id);
    }

    pub(super) fn len(&self) -> usize {
        self.index().len()
    }

    /// Sets that are at worst out of date, whatever panicked while it held them.
    fn index(&self) -> MutexGuard<'_, PrefixIndex> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
