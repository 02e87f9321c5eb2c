use request::{Finish, SpeculationStats, TokenId, Usage};

use crate::text::Piece;

/// What an answer says, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// What follows comes from a worker of other numerics: still the model's distribution, no longer
    /// the text that the seed has on the first one.
    Crossed {
        fingerprint: String,
    },
    Tokens(TokensOut),
    /// Last.
    Ended(Ended),
}

/// Committed output and the whole characters it completes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TokensOut {
    /// Output index of the first id.
    pub(crate) index: u32,
    pub(crate) ids: Vec<TokenId>,
    /// One per id: whether it was an accepted draft.
    pub(crate) drafted: Vec<bool>,
    pub(crate) pieces: Vec<Piece>,
}

impl TokensOut {
    pub(crate) fn text(&self) -> String {
        self.pieces.iter().map(|p| p.text.as_str()).collect()
    }
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    /// `Stop` or `Length`; everything else is a failure.
    pub(crate) finish: Finish,
    pub(crate) usage: Usage,
    /// Of the worker that finished it.
    pub(crate) speculation: SpeculationStats,
    pub(crate) seed: u64,
    /// `none`, `draft` or `lockstep`: what a drafter took part in.
    pub(crate) strategy: &'static str,
    /// Most drafts a step could verify.
    pub(crate) most_drafts: u32,
}
