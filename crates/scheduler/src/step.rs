//! The step: what a rank is asked to compute, as plain data.
//!
//! A step is what the scheduler plans, a model executes, a log replays and a group's ranks receive.
//! Variants that no back end executes yet are refused by it with a clear error
//! (`engine::ModelError::Unsupported`); they are here so that they fit without a rebuild.

use kvcache::{ClassId, PageId};
use request::TokenId;

/// A place in the running batch; owns one page table per head class while a sequence runs in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// One forward pass: page-table changes first, then rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Applied in order, before any row.
    pub deltas: Vec<TableDelta>,
    /// Rows of one slot are consecutive and in position order, then those of its tree, parents before children.
    pub rows: Vec<Row>,
}

/// One position of one sequence to compute: prefill, decode and verification rows are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub slot: Slot,
    pub token: RowToken,
    /// Absolute position; keys and values are written here, RoPE uses it.
    pub position: u32,
    pub parent: Parent,
    pub layers: Layers,
    pub output: Output,
    pub adapter: Option<AdapterId>,
}

/// Where a row's token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowToken {
    Known(TokenId),
    /// The pick of that row of the step before, still on the device.
    FromStep(u32),
}

/// Which row holds the position before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The sequence's own previous position (a chain).
    Previous,
    /// That row of this step (a tree). The row sees what that row sees and itself; its keys and values are not
    /// the slot's until the next step keeps them ([`TableChange::Keep`]).
    Row(u32),
}

/// Which layers a row passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    All,
    /// Early exit after this many layers (DEL).
    First(u32),
}

/// What a row gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Only its keys and values.
    None,
    /// The token drawn for position + 1; how it is drawn is said when the step is collected.
    Pick,
    /// Hidden states after these layers (bit i = layer i).
    Hidden(u64),
    /// The pooled embedding of the sequence.
    Pooled,
}

/// A LoRA adapter loaded on the rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AdapterId(pub u32);

/// One change to the page table of (slot, class).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableDelta {
    pub slot: Slot,
    pub class: ClassId,
    pub change: TableChange,
}

/// The table maps page index (position / 16) to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableChange {
    /// The next page index maps to this page, fresh: what it held is gone.
    Append(PageId),
    /// The next page index maps to this page, whose 16 positions are valid and which this sequence only
    /// reads (a prefix hit).
    Share(PageId),
    /// The next page index exists without a page: no query of this sequence will see it (a window class
    /// after a prefix hit).
    Hole,
    /// Of the positions from `from` on, the keys and values that tree row `row` of the step before saw, its own
    /// included, are the slot's now: the path to it stood.
    Keep { row: u32, from: u32 },
    /// Entries from this page index on are gone (rollback).
    Truncate(u32),
    /// This entry is gone, its neighbours stay (a window moved on).
    Drop(u32),
    /// The whole table is gone: the slot is free.
    Clear,
}
