use request::TokenId;

use crate::{SequenceId, Slot, Step};

/// One step and which of its rows belong to whom. Plain data: logged, compared in golden tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub step: Step,
    pub slices: Vec<Slice>,
    /// Sequences that gave up slot and pages, in that order; they wait and come back by themselves.
    pub preempted: Vec<SequenceId>,
    /// Sequences that got a slot, after the preemptions. They may have no rows yet.
    pub admitted: Vec<Admitted>,
}

/// A sequence that got a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub sequence: SequenceId,
    /// Positions that the prefix cache serves: they are not computed.
    pub cached: u32,
    /// It ran before and was preempted.
    pub again: bool,
}

/// The rows of one sequence in a step: first known tokens, then drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub sequence: SequenceId,
    pub slot: Slot,
    /// Index of its first row in the step.
    pub first_row: u32,
    /// Position of its first row.
    pub position: u32,
    /// Rows with known tokens.
    pub known: u32,
    /// Rows with draft tokens, after the known ones.
    pub drafts: u32,
    /// The drafts are a tree: a row's place is by its depth, and what stands is kept by the next step.
    pub tree: bool,
    /// Whether its last known row and its draft rows pick: the known tokens end here.
    pub picks: bool,
}

impl Slice {
    pub fn rows(&self) -> u32 {
        self.known + self.drafts
    }
}

/// What the engine says of a sequence at plan time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead<'a> {
    /// Leave it out of this step (its reader is slow, or it waits for its drafter).
    Hold,
    /// Plan it, with these drafts after its last token.
    Go(&'a [TokenId]),
    /// Plan it, with a tree of drafts: by draft, which earlier one it comes after; `None`: the last token.
    Tree(&'a [TokenId], &'a [Option<u32>]),
}
