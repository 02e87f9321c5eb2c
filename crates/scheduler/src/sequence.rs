use std::cmp::Reverse;

use kvcache::{PageHash, PageTable, PrefixChain, PrefixRoot};
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

/// Who goes first: the higher priority, then the earlier arrival. The smaller value is the earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    pub(crate) priority: Reverse<i32>,
    pub(crate) arrival: u64,
}

/// A sequence while it waits or runs.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) order: Order,
    pub(crate) tokens: Vec<TokenId>,
    /// Hashes of its settled full pages.
    pub(crate) chain: PrefixChain,
    /// Positions whose keys and values are in the cache.
    pub(crate) computed: u32,
    pub(crate) settled: u32,
    pub(crate) limit: u32,
    pub(crate) longest: u32,
    /// Most positions by which what is computed may move in a step, or lie beyond what is settled.
    pub(crate) stride: u32,
    pub(crate) preempted: bool,
    pub(crate) running: Option<Running>,
}

/// What a sequence holds while it runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) slot: Slot,
    /// One per head class.
    pub(crate) tables: Vec<PageTable>,
    /// It had rows since it got its slot.
    pub(crate) started: bool,
}

impl Sequence {
    pub(crate) fn new(new: NewSequence, arrival: u64, stride: u32) -> Self {
        Self {
            order: Order { priority: Reverse(new.priority), arrival },
            tokens: new.tokens,
            chain: PrefixChain::new(new.root),
            computed: 0,
            settled: new.settled,
            limit: new.limit.min(new.longest),
            longest: new.longest,
            stride,
            preempted: false,
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

    /// Known positions to compute. The last one is computed only to pick the next token, so it waits
    /// while the sequence may not grow.
    pub(crate) fn wanted(&self) -> u32 {
        if self.grows() { self.len() } else { self.len() - 1 }
    }

    /// Of the wanted positions, those a step could compute now.
    pub(crate) fn behind(&self) -> u32 {
        self.wanted().saturating_sub(self.computed)
    }

    /// Positions to have pages for when it is admitted: all known ones and the next token's.
    pub(crate) fn known_and_next(&self) -> u32 {
        (self.len() + 1).min(self.longest)
    }

    /// Its pages that need not be computed. At least the last token is: its logits are wanted. What may be rewritten is
    /// not shared: it would be written.
    pub(crate) fn cacheable(&mut self) -> Vec<PageHash> {
        let most = (self.len() - 1).min(self.settled);
        self.chain.reach(&self.tokens[..most as usize]).to_vec()
    }

    /// Positions before this are computed and never written again: full pages may be sealed, window
    /// pages left behind.
    pub(crate) fn line(&self) -> u32 {
        self.computed.min(self.settled)
    }
}
