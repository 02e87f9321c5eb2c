use request::TokenId;

use crate::{SequenceId, Slot, Step};

/// One step and which of its rows belong to whom. Plain data: logged, compared in golden tests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub step: Step,
    pub slices: Vec<Slice>,
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
}
