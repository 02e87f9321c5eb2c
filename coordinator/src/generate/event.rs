use request::{Finish, SpeculationStats, TokenId, TokenLogprobs, Usage};

use crate::text::Piece;

/// What one choice of an answer says, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// What follows comes from a worker of other numerics: still the model's distribution, no longer
    /// the text that the seed has on the first one.
    Crossed {
        fingerprint: String,
    },
    Tokens(TokensOut),
    /// The choice's last.
    Ended(Box<Ended>),
}

/// Committed output and the text that it settles.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TokensOut {
    /// Output index of the first id.
    pub(crate) index: u32,
    /// None in the text that only the end settles.
    pub(crate) ids: Vec<TokenId>,
    /// One per id: whether it was an accepted draft.
    pub(crate) drafted: Vec<bool>,
    /// One per id when they were asked for, else empty.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Whole characters that no stop string takes back: what may be the start of one comes later.
    pub(crate) pieces: Vec<Piece>,
}

impl TokensOut {
    pub(crate) fn text(&self) -> String {
        self.pieces.iter().map(|p| p.text.as_str()).collect()
    }
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    /// `Stop` or `Length`; everything else is a failure.
    pub(crate) finish: Finish,
    /// What the request named that ended it; `None`: the model's own end-of-turn token, or the length.
    pub(crate) stop_reason: Option<StopReason>,
    pub(crate) usage: Usage,
    /// Of all workers that had a part in it.
    pub(crate) speculation: SpeculationStats,
    pub(crate) seed: u64,
    /// `none`, `draft` or `lockstep`: what a drafter took part in.
    pub(crate) strategy: &'static str,
    /// Most drafts a step could verify.
    pub(crate) most_drafts: u32,
}

/// As JSON the string or the id (vLLM's `stop_reason`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// One of [`Stop::strings`](crate::question::Stop::strings).
    Text(String),
    /// One of [`Stop::ids`](crate::question::Stop::ids).
    Token(TokenId),
}

/// Figures of an answer, summed over its choices.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    /// The prompt counts once: all choices share it.
    pub(crate) usage: Usage,
    pub(crate) speculation: SpeculationStats,
    choices: u32,
}

impl Totals {
    pub(crate) fn add(&mut self, ended: &Ended) {
        let (sum, one) = (&mut self.usage, &ended.usage);
        // A choice finds the prompt of the one before it in the cache; what was there before all of
        // them is what the first found.
        sum.cached_tokens =
            if self.choices == 0 { one.cached_tokens } else { sum.cached_tokens.min(one.cached_tokens) };
        sum.prompt_tokens = one.prompt_tokens;
        sum.completion_tokens = sum.completion_tokens.saturating_add(one.completion_tokens);
        sum.accepted_prediction_tokens =
            sum.accepted_prediction_tokens.saturating_add(one.accepted_prediction_tokens);
        sum.rejected_prediction_tokens =
            sum.rejected_prediction_tokens.saturating_add(one.rejected_prediction_tokens);
        self.speculation.add(&ended.speculation);
        self.choices += 1;
    }
}

impl serde::Serialize for StopReason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Token(id) => serializer.serialize_u32(id.0),
        }
    }
}
