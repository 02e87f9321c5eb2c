//! The token budget of a step (SARATHI, arXiv 2403.02310): decodes first, then prompts.

use crate::SequenceId;
use crate::drafts::Drafts;
use crate::sequence::Order;

/// A running sequence that could move in this step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready<'a> {
    pub(crate) id: SequenceId,
    pub(crate) order: Order,
    /// Known positions to compute; 1: a decode.
    pub(crate) behind: u32,
    /// It had rows since it got its slot.
    pub(crate) started: bool,
    pub(crate) drafts: Drafts<'a>,
    /// Most positions behind its next one that its limit allows.
    pub(crate) room: u32,
}

/// A sequence's rows in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share<'a> {
    pub(crate) id: SequenceId,
    pub(crate) order: Order,
    /// Rows of known tokens, at least one.
    pub(crate) known: u32,
    pub(crate) drafts: Drafts<'a>,
}

/// Shares the budget. `ready` is in order; `trees`: most rows of trees.
pub(crate) fn share_out<'a>(mut budget: u32, mut trees: u32, ready: &[Ready<'a>]) -> Vec<Share<'a>> {
    let (decodes, mut prompts): (Vec<&Ready<'a>>, Vec<&Ready<'a>>) =
        ready.iter().partition(|ready| ready.behind == 1);
    // Decodes first; their own rows are never refused (running is bounded by the slots).
    budget = budget.saturating_sub(decodes.len() as u32);
    // Then their drafts, in equal shares; while a prompt is behind, half of what is left is its.
    let mut for_drafts = if prompts.is_empty() { budget } else { budget / 2 };
    let mut drafting = decodes.iter().filter(|ready| !ready.drafts.is_empty()).count() as u32;
    let mut shares = Vec::with_capacity(ready.len());
    for ready in decodes {
        let mut drafts = Drafts::default();
        if !ready.drafts.is_empty() {
            let most = for_drafts.div_ceil(drafting);
            let tree = ready.drafts.parents.is_some();
            drafts = ready.drafts.within(ready.room).first(if tree { most.min(trees) } else { most });
            let take = drafts.len();
            trees -= if tree { take } else { 0 };
            (for_drafts, budget, drafting) = (for_drafts - take, budget - take, drafting - 1);
        }
        shares.push(Share { id: ready.id, order: ready.order, known: 1, drafts });
    }
    // However many decode, a prompt moves: at least one row a step.
    budget = budget.max(u32::from(!prompts.is_empty()));
    // Of one priority, what is partly computed goes before what is new: fewer are half done.
    prompts.sort_by_key(|ready| (ready.order.priority, !ready.started, ready.order.arrival));
    for ready in prompts {
        let known = ready.behind.min(budget);
        if known > 0 {
            shares.push(Share { id: ready.id, order: ready.order, known, drafts: Drafts::default() });
            budget -= known;
        }
    }
    shares
}
