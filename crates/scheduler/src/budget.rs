//! Who gets the rows of a step: by SARATHI (arXiv 2403.02310) decodes first, then prompts.

use crate::drafts::Drafts;
use crate::sequence::Order;
use crate::{Policy, SequenceId};

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

/// How many rows there are, and for whom first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) budget: u32,
    /// A step with prompts is filled up to a multiple of so many rows.
    pub(crate) tile: u32,
    pub(crate) policy: Policy,
    /// Most rows of trees.
    pub(crate) trees: u32,
}

/// Shares the budget. `ready` is in order.
pub(crate) fn share_out<'a>(rows: Rows, ready: &[Ready<'a>]) -> Vec<Share<'a>> {
    let (decodes, mut prompts): (Vec<&Ready<'a>>, Vec<&Ready<'a>>) =
        ready.iter().partition(|ready| ready.behind == 1);
    // Of one priority, what is partly computed goes before what is new: fewer are half done.
    prompts.sort_by_key(|ready| (ready.order.priority, !ready.started, ready.order.arrival));
    match rows.policy {
        Policy::Sarathi => {
            let (mut shares, used) = decode(rows, &decodes, !prompts.is_empty());
            shares.extend(chunks(room(rows, used), &prompts));
            shares
        }
        Policy::PrefillFirst if !prompts.is_empty() => whole(rows.budget, &prompts),
        Policy::DecodeFirst if decodes.is_empty() => whole(rows.budget, &prompts),
        Policy::PrefillFirst | Policy::DecodeFirst => decode(rows, &decodes, false).0,
    }
}

/// What decodes and their drafts leave of a step to prompts. However many decode, a prompt moves: at least one row a
/// step, and all that the last tile has room for.
fn room(rows: Rows, used: u32) -> u32 {
    let tile = rows.tile.clamp(1, rows.budget.max(1));
    let last = (used + 1).next_multiple_of(tile);
    // Over the budget only where decodes are.
    let last = if used < rows.budget { last.min(rows.budget) } else { last };
    (rows.budget / tile * tile).max(last) - used
}

/// All decodes, and drafts as far as the budget goes; the rows that they take.
fn decode<'a>(rows: Rows, decodes: &[&Ready<'a>], beside_prompts: bool) -> (Vec<Share<'a>>, u32) {
    // Decodes first; their own rows are never refused (running is bounded by the slots).
    let mut used = decodes.len() as u32;
    let left = rows.budget.saturating_sub(used);
    let mut trees = rows.trees;
    // Then their drafts, in equal shares; while a prompt is behind, half of what is left is its.
    let mut for_drafts = if beside_prompts { left / 2 } else { left };
    let mut drafting = decodes.iter().filter(|ready| !ready.drafts.is_empty()).count() as u32;
    let mut shares = Vec::with_capacity(decodes.len());
    for ready in decodes {
        let mut drafts = Drafts::default();
        if !ready.drafts.is_empty() {
            let most = for_drafts.div_ceil(drafting);
            let tree = ready.drafts.parents.is_some();
            drafts = ready.drafts.within(ready.room).first(if tree { most.min(trees) } else { most });
            let take = drafts.len();
            trees -= if tree { take } else { 0 };
            (for_drafts, used, drafting) = (for_drafts - take, used + take, drafting - 1);
        }
        shares.push(Share { id: ready.id, order: ready.order, known: 1, drafts });
    }
    (shares, used)
}

/// Chunks of prompts, in order, that fill `room`.
fn chunks<'a>(mut room: u32, prompts: &[&Ready<'a>]) -> Vec<Share<'a>> {
    let mut shares = Vec::new();
    for ready in prompts {
        let known = ready.behind.min(room);
        if known == 0 {
            break;
        }
        shares.push(Share { id: ready.id, order: ready.order, known, drafts: Drafts::default() });
        room -= known;
    }
    shares
}

/// Whole prompts, in order, while they fit; the first one however long it is.
fn whole<'a>(budget: u32, prompts: &[&Ready<'a>]) -> Vec<Share<'a>> {
    let mut shares: Vec<Share<'a>> = Vec::new();
    let mut rows = 0;
    for ready in prompts {
        rows += ready.behind;
        if rows > budget && !shares.is_empty() {
            break;
        }
        shares.push(Share {
            id: ready.id,
            order: ready.order,
            known: ready.behind,
            drafts: Drafts::default(),
        });
    }
    shares
}
