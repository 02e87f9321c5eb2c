//! What the prefix cache can serve, told as it changes: coordinators place requests by it.

use kvcache::{ClassId, HeadClass, PageHash, PoolChange};

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
    /// Looks at what happened to cached pages: what was evicted goes to the tier, if there is one. To be called before a page
    /// that was taken is written.
    pub(crate) fn look_at_pages(&mut self) {
        let tells = self.telling_class();
        for (class, change) in self.scheduler.page_changes() {
            let told = match change {
                PoolChange::Stored(hash) => PrefixChange::Stored(hash),
                PoolChange::Evicted { page, hash } => {
                    let (kept, pushed_out) = self.spill_page(ClassId(class as u8), page, hash);
                    let gone = if kept { pushed_out } else { Some(hash) };
                    // What the tier lost may be in the cache as well.
                    match gone.filter(|hash| !self.scheduler.is_cached(class, hash)) {
                        Some(hash) => PrefixChange::Removed(hash),
                        None => continue,
                    }
                }
                PoolChange::Forgotten => PrefixChange::Cleared,
            };
            if class == tells {
                self.tell(told);
            }
        }
    }

    /// One class tells: a page of a sequence is sealed in all of them at once, and what sees everything is kept longest.
    pub(crate) fn telling_class(&self) -> usize {
        self.spec().classes.iter().position(|(class, _)| *class == HeadClass::Full).unwrap_or(0)
    }

    pub(crate) fn tell(&mut self, change: PrefixChange) {
        if self.settings.tell_prefixes {
            self.prefixes.push(change);
        }
    }

    /// What changed since the last call, in order.
    pub(crate) fn prefix_changes(&mut self) -> Vec<PrefixChange> {
        std::mem::take(&mut self.prefixes)
    }
}
