//! A model that drafts for itself: with its first layers and its own head (LayerSkip, arXiv 2404.16710), or with all of
//! them over a window of its keys (MagicDec, arXiv 2408.11049).

use kvcache::HeadClass;
use request::{Sampling, TokenId};
use scheduler::Slot;
use speculation::Stop;

/// What a model offers for drafting by its own first layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layered {
    pub layers: u32,
    /// What a pass through the head costs, in layers.
    pub head: f64,
    /// What a draft costs besides its layers, in layers.
    pub draft: f64,
    /// Whether it also drafts over a window: its heads see everything otherwise.
    pub windows: bool,
}

/// Asks for drafts behind the last known token of a slot, which is not computed yet.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfDraft {
    pub slot: Slot,
    pub token: TokenId,
    /// Of `token`.
    pub position: u32,
    /// Layers that a draft passes: with a window all, else fewer.
    pub exit: u32,
    /// The keys that drafts see; what is computed over a window is of no use to the step.
    pub window: Option<HeadClass>,
    /// Most drafts, at most [`request::Del::MOST`]; 0: only watch.
    pub most: u32,
    /// Where to stop before that, by how sure the drafts are.
    pub stop: Option<Stop>,
    /// One of these is the last one.
    pub stop_ids: Vec<TokenId>,
    /// How drafts are drawn: as the target draws, with the noise of their places.
    pub sampling: Sampling,
    /// What other layers would have said is asked for after the next step ([`crate::Model::said`]).
    pub watch: bool,
}

impl SelfDraft {
    /// Whether nothing is drafted behind a draft of this confidence. `chance`: that all drafts so far are right, from 1.
    pub fn ends(&self, id: TokenId, confidence: f64, chance: &mut f64) -> bool {
        *chance = self.stop.map_or(*chance, |stop| stop.chance(*chance, confidence));
        self.stop_ids.contains(&id) || self.stop.is_some_and(|stop| *chance < stop.below)
    }
}

/// What one layer would have said at the picking rows of a slot, in row order.
#[derive(Clone, Debug, PartialEq)]
pub struct SaidBy {
    /// Layers passed.
    pub exit: u32,
    /// The token, and its probability.
    pub said: Vec<(TokenId, f64)>,
}
