use kvcache::{HeadClass, PageTable, PrefixRoot, Reservation};
use request::TokenId;

use crate::Slot;

/// A sequence's name on this rank, given by whoever adds it; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A sequence to run.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSequence {
    pub id: SequenceId,
    /// Prompt and tokens committed before; at least one.
    pub tokens: Vec<TokenId>,
    /// Tokens may be added while there are fewer than this.
    pub limit: u32,
    /// Most tokens it will ever have; refused when alone it would never fit.
    pub longest: u32,
    /// Higher first; may preempt lower ones.
    pub priority: i32,
    /// First link of its hash chain: only sequences of one root share pages.
    pub root: PrefixRoot,
    /// Tokens before this are never rewritten, so their pages may be shared: `u32::MAX` for a target
    /// (all it has or gets), what is committed for a drafter. [`crate::Scheduler::settle`] moves it.
    pub settled: u32,
}

/// A sequence while it waits or runs.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<TokenId>,
    /// Positions whose keys and values are in the cache.
    pub(crate) computed: u32,
    pub(crate) limit: u32,
    pub(crate) longest: u32,
    pub(crate) settled: u32,
    pub(crate) running: Option<Running>,
}

/// What a sequence holds while it runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) slot: Slot,
    /// One per head class.
    pub(crate) tables: Vec<(PageTable, Reservation)>,
}

impl Sequence {
    pub(crate) fn new(new: NewSequence) -> Self {
        Self {
            tokens: new.tokens,
            computed: 0,
            limit: new.limit,
            longest: new.longest,
            settled: new.settled,
            running: None,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Whether one more token may be added.
    pub(crate) fn grows(&self) -> bool {
        self.len() < self.limit
    }

    /// Known positions that a step could compute now. The last one is computed only to pick the
    /// next token, so it waits while the sequence may not grow.
    pub(crate) fn behind(&self) -> u32 {
        let target = if self.grows() { self.len() } else { self.len() - 1 };
        target.saturating_sub(self.computed)
    }
}

/// Pages of each class that a sequence must reserve.
pub(crate) fn pages_needed(classes: &[(HeadClass, u32)], longest: u32, chunk: u32) -> Vec<u32> {
    classes.iter().map(|(class, _)| PageTable::worst_case(*class, longest, chunk)).collect()
}
