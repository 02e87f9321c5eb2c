//! Which worker has which prefix in its cache, told by numbered events.
//!
//! ```text
//! worker:  cache --PageChange--> PrefixLog --(PrefixCursor, one a coordinator)--> PrefixUpdate
//! coordinator:                                     PrefixIndex <--apply--+   hits(chain) --> place
//! ```
//!
//! It is advice: a page that is not there any more is computed again. So nothing is awaited and nothing is kept for long:
//! an update that does not follow the one before is a gap, what was known of that worker is dropped, and the worker is
//! asked to tell all it has. (As Dynamo's router and llm-d's index have it; theirs are told over a message broker.)

mod index;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use index::{PrefixGap, PrefixIndex};

/// Names a page and everything before it: eight bytes of its hash. Two that collide make worse advice, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixName(pub u64);

/// What happened to a worker's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageChange {
    Stored(PrefixName),
    Removed(PrefixName),
    /// Nothing is there any more.
    Cleared,
}

/// One message to a coordinator. What is in `stored` is not in `removed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixUpdate {
    /// Of this message; one more than that of the message before.
    pub number: u64,
    /// All that was told before is void.
    pub reset: bool,
    pub stored: Vec<PrefixName>,
    pub removed: Vec<PrefixName>,
}

impl PrefixUpdate {
    /// Most names in one message: 32 KiB.
    pub const MOST: usize = 4096;
}

/// The worker's side: what is in its cache, and what changed lately.
#[derive(Debug)]
pub struct PrefixLog {
    pages: BTreeSet<PrefixName>,
    /// The latest changes, oldest first: `true` for stored.
    recent: VecDeque<(PrefixName, bool)>,
    /// Number of the last change.
    number: u64,
    bounds: Bounds,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    pages: usize,
    recent: usize,
}

impl Default for PrefixLog {
    /// A million tokens are told of; of more pages those that came first.
    fn default() -> Self {
        Self::new(1 << 16, 1 << 14)
    }
}

impl PrefixLog {
    /// Tells of at most `pages` pages, and of at most `recent` changes one by one.
    pub fn new(pages: usize, recent: usize) -> Self {
        let bounds = Bounds { pages, recent };
        Self { pages: BTreeSet::new(), recent: VecDeque::new(), number: 0, bounds }
    }

    pub fn record(&mut self, change: PageChange) {
        let told = match change {
            PageChange::Stored(name) => {
                let room = self.pages.len() < self.bounds.pages;
                (room && self.pages.insert(name)).then_some((name, true))
            }
            PageChange::Removed(name) => self.pages.remove(&name).then_some((name, false)),
            PageChange::Cleared => {
                self.pages.clear();
                // Nobody is at this number: whoever looks tells all again.
                self.recent.clear();
                self.number += 1;
                None
            }
        };
        if let Some(change) = told {
            self.number += 1;
            self.recent.push_back(change);
            if self.recent.len() > self.bounds.recent {
                self.recent.pop_front();
            }
        }
    }

    /// What happened after change `number`, as the states that it left; `None`: too long ago.
    fn since(&self, number: u64, most: usize) -> Option<(BTreeMap<PrefixName, bool>, u64)> {
        let behind = self.number - number;
        let start = self.recent.len().checked_sub(usize::try_from(behind).ok()?)?;
        let end = self.recent.len().min(start + most);
        let net = self.recent.range(start..end).copied().collect();
        Some((net, number + (end - start) as u64))
    }
}

/// How far one coordinator has been told. It begins with everything.
#[derive(Debug, Default)]
pub struct PrefixCursor {
    /// Of the next message.
    message: u64,
    /// The last change told; `None`: everything is to be told.
    told: Option<u64>,
    /// Of everything, what is still to be told.
    left: VecDeque<PrefixName>,
}

impl PrefixCursor {
    /// Everything is to be told again.
    pub fn reset(&mut self) {
        (self.told, self.left) = (None, VecDeque::new());
    }

    /// The next message; `None` when there is nothing to tell.
    pub fn next(&mut self, log: &PrefixLog) -> Option<PrefixUpdate> {
        let since = self.told.and_then(|told| log.since(told, PrefixUpdate::MOST));
        let mut update = PrefixUpdate { number: self.message, ..PrefixUpdate::default() };
        match since {
            // While everything is told it may get old; then it begins anew.
            None => {
                self.left = log.pages.iter().copied().collect();
                self.told = Some(log.number);
                update.reset = true;
                update.stored = self.part();
            }
            Some(_) if !self.left.is_empty() => update.stored = self.part(),
            Some((net, _)) if net.is_empty() => return None,
            Some((net, upto)) => {
                let of = |stored: bool| net.iter().filter(move |(_, s)| **s == stored).map(|(name, _)| *name);
                (update.stored, update.removed) = (of(true).collect(), of(false).collect());
                self.told = Some(upto);
            }
        }
        self.message += 1;
        Some(update)
    }

    fn part(&mut self) -> Vec<PrefixName> {
        let count = self.left.len().min(PrefixUpdate::MOST);
        self.left.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests;
