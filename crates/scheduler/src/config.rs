use kvcache::HeadClass;

use crate::{Policy, SequenceId};

/// Bounds of the scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Most rows of one step. Draft rows count; a decode's own row, and one row of a prompt, are planned
    /// even beyond it.
    pub token_budget: u32,
    /// Rows that cost as much as one: a step with prompts is filled up to a multiple of so many.
    /// 1 when every row costs.
    pub tile: u32,
    pub policy: Policy,
    /// Sequences that wait for a slot or for pages, preempted ones included; one more is refused.
    pub max_waiting: usize,
    /// Most positions of one sequence.
    pub context: u32,
    /// Sequences that run at once.
    pub slots: u32,
    /// Most rows of trees in one step; 0: the model takes none.
    pub tree_rows: u32,
    /// Head classes and the pages of each.
    pub classes: Vec<(HeadClass, u32)>,
    /// Keep pages of finished work for sequences that start with the same tokens.
    pub prefix_cache: bool,
}

/// Why a sequence was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a sequence needs at least one token")]
    Empty,
    #[error("{longest} tokens are asked for and the context holds {context}")]
    TooLong { longest: u32, context: u32 },
    #[error("{needed} pages are needed for {longest} tokens and this rank has {capacity} in all")]
    NeverFits { longest: u32, needed: u32, capacity: u32 },
    #[error("{waiting} sequences wait already")]
    QueueFull { waiting: usize },
    #[error("sequence {} is already here", .0.0)]
    Doubled(SequenceId),
}
