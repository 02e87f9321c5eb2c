use speculation::{Drops, Way};

/// What a step did; processes turn these facts into metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub sequences: u32,
    /// Rows of known tokens.
    pub known_rows: u32,
    /// Rows of draft tokens.
    pub draft_rows: u32,
    pub accepted: u32,
    /// Sequences with at least one draft row.
    pub drafts: u32,
    /// Sequences that the model drafted for itself: the step's time has these passes in it.
    pub self_drafted: u32,
    /// Drafts of them that were made over a window.
    pub window_drafts: u32,
    /// Sequences that picked at least one token.
    pub decodes: u32,
    /// Decoding sequences without a draft row although they want drafts.
    pub undrafted: Undrafted,
    /// Of a step that only decodes, with a drafter that works as was measured to be faster: what that one did meanwhile.
    pub way: Option<Way>,
    /// Draft tokens that came since the step before and were not taken.
    pub dropped: Drops,
    /// Sequences that gave up slot and pages.
    pub preempted: u32,
    /// Prompt tokens of sequences that left the queue, and how many of them the prefix cache served.
    pub prefix_queries: u32,
    pub prefix_hits: u32,
    /// Sequences ended because the model, or a constraint, failed.
    pub failed: u32,
}

/// Why decodes had no draft to verify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Undrafted {
    /// No drafter is attached.
    pub absent: u32,
    /// One is attached and nothing has arrived.
    pub late: u32,
    /// Drafts were there and were not worth their rows, or found no room.
    pub spent: u32,
}
