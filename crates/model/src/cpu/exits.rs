//! What the model drafted with its first layers, until the next step goes on behind them.
//!
//! Drafts lie in two pages of their slot's own, as tree rows do ([`super::branches`]). A step that has the same tokens at
//! the same positions takes their keys and values into the slot's pages and their states where the drafts left: what it
//! computes is bit for bit what it would have been, as a row's arithmetic depends on nothing beside it. Any other step
//! forgets them.

use std::collections::BTreeMap;

use kvcache::PAGE_POSITIONS;
use request::TokenId;
use scheduler::{Step, TableChange};

use super::branches::Branches;
use crate::cache::{Storage, Tables};
use crate::check::CheckedRow;

/// What is drafted, and after which layers somebody may want to hear.
pub(super) struct Exits {
    by_slot: BTreeMap<u32, Drafted>,
    /// Layers passed, rising.
    heard: Vec<usize>,
}

/// The first rows of a slot's next step, as far as they are computed.
pub(super) struct Drafted {
    pub(super) base: u32,
    /// Layers that they passed.
    pub(super) exit: usize,
    pub(super) tokens: Vec<TokenId>,
    /// Their residual stream behind these layers, row after row.
    pub(super) states: Vec<f32>,
    /// Layers that are heard, by layers passed: the residual stream of the step's rows.
    pub(super) heard: BTreeMap<usize, Vec<f32>>,
    /// The step that they are for was computed.
    over: bool,
}

impl Exits {
    /// `trained`: the layers that were trained to speak; of a model where nobody says which, a few of its lower half are
    /// heard: what drafts behind more layers does not pay.
    pub(super) fn new(trained: Vec<usize>, layers: usize) -> Self {
        const FEW: usize = 8;
        let half = layers.div_ceil(2).min(layers.saturating_sub(1));
        let mut heard = trained;
        if heard.is_empty() {
            heard = (1..=FEW).map(|i| (i * half / FEW).max(1)).filter(|at| *at < layers).collect();
            heard.dedup();
        }
        Self { by_slot: BTreeMap::new(), heard }
    }

    pub(super) fn begin(&mut self, slot: u32, base: u32, exit: usize, watch: bool) {
        let heard = self.heard.iter().filter(|_| watch).map(|layers| (*layers, Vec::new())).collect();
        let (tokens, states) = (Vec::new(), Vec::new());
        self.by_slot.insert(slot, Drafted { base, exit, tokens, states, heard, over: false });
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Drafted> {
        self.by_slot.get_mut(&slot)
    }

    pub(super) fn forget(&mut self, slot: u32) {
        self.by_slot.remove(&slot);
    }

    /// What was watched in the step that is computed.
    pub(super) fn watched(&self, slot: u32) -> Option<&Drafted> {
        self.by_slot.get(&slot).filter(|drafted| drafted.over)
    }

    /// A step is about to be computed: of what fits it keys and values become the slots', the rest is forgotten.
    pub(super) fn take(
        &mut self,
        (step, rows): (&Step, &[CheckedRow]),
        hidden: usize,
        tables: &Tables,
        storage: &mut [Storage],
    ) {
        let less = |change: &TableChange| {
            matches!(change, TableChange::Truncate(_) | TableChange::Drop(_) | TableChange::Append(_))
        };
        self.by_slot.retain(|slot, drafted| {
            let same = step.deltas.iter().all(|delta| delta.slot.0 != *slot || less(&delta.change));
            let mut own = rows.iter().filter(|row| row.slot.0 == *slot && row.branch.is_none()).peekable();
            let begins = own.peek().is_some_and(|row| row.position == drafted.base);
            if drafted.over || !same || !begins {
                return false;
            }
            let fit = own.zip(&drafted.tokens).take_while(|(row, token)| row.token == **token).count();
            drafted.tokens.truncate(fit);
            drafted.states.truncate(fit * hidden);
            drafted.heard.values_mut().for_each(|states| states.truncate(fit * hidden));
            if fit == 0 {
                // It was only to be watched: nothing was written.
                return true;
            }
            let (_, branch) = Branches::of_slot(*slot, drafted.base, tables, storage);
            let end = drafted.base + fit as u32;
            for (class, storage) in storage.iter_mut().enumerate() {
                let table = tables.get(*slot as usize, class);
                for index in drafted.base / PAGE_POSITIONS..end.div_ceil(PAGE_POSITIONS) {
                    let to = table.get(index as usize).copied().flatten();
                    if let (Some(from), Some(to)) = (branch.page(storage, index), to) {
                        let units = storage.units().into_iter().filter(|unit| unit.layer < drafted.exit);
                        units.for_each(|unit| storage.copy(from, to, unit));
                    }
                }
            }
            true
        });
    }

    /// Where a row of the step begins: layers that it passed, and its state behind them.
    pub(super) fn start(&self, row: &CheckedRow, hidden: usize) -> Option<(usize, &[f32])> {
        let drafted = self.by_slot.get(&row.slot.0).filter(|_| row.branch.is_none())?;
        let at = row.position.checked_sub(drafted.base)? as usize;
        Some((drafted.exit, drafted.states.get(at * hidden..(at + 1) * hidden)?))
    }

    /// Rows passed so many layers; `x` is their residual stream.
    pub(super) fn hear(&mut self, passed: usize, rows: &[CheckedRow], x: &[f32]) {
        if self.by_slot.is_empty() {
            return;
        }
        for (row, x) in rows.iter().zip(x.chunks_exact(x.len() / rows.len().max(1))) {
            let drafted = self.by_slot.get_mut(&row.slot.0).filter(|_| row.pick);
            if let Some(states) = drafted.and_then(|drafted| drafted.heard.get_mut(&passed)) {
                states.extend_from_slice(x);
            }
        }
    }

    /// The step is computed.
    pub(super) fn over(&mut self) {
        self.by_slot.values_mut().for_each(|drafted| drafted.over = true);
    }
}
