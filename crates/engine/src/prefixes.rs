//! What the prefix cache can serve, told as it changes: coordinators place requests by it.

use kvcache::{HeadClass, PageHash, PoolChange};

use crate::{Engine, Model};

/// A change of what a new sequence may start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixChange {
    /// A page of this content is there.
    Stored(PageHash),
    Removed(PageHash),
    /// None is there any more.
    Cleared,
}

impl<M: Model> Engine<M> {
    /// Looks at what happened to cached pages. To be called before a page that was taken is written.
    pub(crate) fn look_at_pages(&mut self) {
        // One class tells: a page of a sequence is sealed in all of them at once, and what sees everything is kept longest.
        let tells = self.spec().classes.iter().position(|(class, _)| *class == HeadClass::Full).unwrap_or(0);
        for (class, change) in self.scheduler.page_changes() {
            let told = match change {
                PoolChange::Stored(hash) => PrefixChange::Stored(hash),
                PoolChange::Evicted { hash, .. } => PrefixChange::Removed(hash),
                PoolChange::Forgotten => PrefixChange::Cleared,
            };
            if class == tells && self.settings.tell_prefixes {
                self.prefixes.push(told);
            }
        }
    }

    /// What changed since the last call, in order.
    pub(crate) fn prefix_changes(&mut self) -> Vec<PrefixChange> {
        std::mem::take(&mut self.prefixes)
    }
}
