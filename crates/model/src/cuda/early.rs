//! Steps that begin early: the layers of the step that most likely comes next, queued behind the draw of the one before.
//!
//! The host learns what was drawn, commits it and plans; meanwhile the device is at work already, with tokens that it took
//! from the draw itself. When the step comes and is the expected one, or some of its rows, only its head is left to queue.
//! When another one comes, what was begun is computed for nothing. That it writes keys and values harms nobody: they lie
//! behind all that its sequences know, whatever else is done with those pages is queued behind it.

use std::collections::BTreeSet;

use engine::ModelSpec;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange};

use super::forward::Plan;
use crate::check::CheckedRow;

/// Rows that were foretold: each in a slot of its own, all picking. Their tokens are indices of picking rows of the step
/// under way.
#[derive(Debug)]
pub(super) struct Expected(pub(super) Vec<CheckedRow>);

/// A step whose layers are queued.
#[derive(Debug)]
pub(super) struct Begun {
    rows: Vec<CheckedRow>,
    plan: Plan,
}

impl Expected {
    /// The rows of `next`, if each goes on where a picking row ended and no slot has more than that one. `picking`: the
    /// picking rows of the step under way; `all`: how many rows it has.
    pub(super) fn new(next: &Step, picking: &[CheckedRow], all: usize, spec: &ModelSpec) -> Option<Self> {
        let distinct = |slots: Vec<Slot>| {
            let mut seen = BTreeSet::new();
            slots.into_iter().all(|slot| seen.insert(slot.0))
        };
        let alone = all == picking.len() && distinct(picking.iter().map(|row| row.slot).collect());
        let slots = distinct(next.rows.iter().map(|row| row.slot).collect());
        if !alone || !slots || next.rows.is_empty() || !next.deltas.is_empty() {
            return None;
        }
        let row = |(index, row): (usize, &Row)| {
            let RowToken::FromStep(from) = row.token else { return None };
            let from = picking.iter().position(|picking| picking.row == from)?;
            let before = &picking[from];
            let follows = row.slot == before.slot && row.position == before.position + 1;
            (follows && is_plain(row) && row.position < spec.context).then_some(CheckedRow {
                row: index as u32,
                slot: row.slot,
                token: request::TokenId(from as u32),
                position: row.position,
                pick: true,
                branch: None,
            })
        };
        next.rows.iter().enumerate().map(row).collect::<Option<Vec<_>>>().map(Self)
    }
}

impl Begun {
    pub(super) fn new(Expected(rows): Expected, plan: Plan) -> Self {
        Self { rows, plan }
    }

    /// The draw gave these tokens. `None`: it gave something else, and no step goes on from it.
    pub(super) fn drew(mut self, tokens: &[Option<request::TokenId>]) -> Option<Self> {
        for row in &mut self.rows {
            row.token = tokens[row.token.0 as usize]?;
        }
        Some(self)
    }

    /// What was queued, and which of its rows a step consists of; `None`: it is another step.
    pub(super) fn is(&self, step: &Step) -> Option<(Plan, Vec<i32>)> {
        let mut begun = self.rows.iter().zip(0..);
        let mut picks = Vec::with_capacity(step.rows.len());
        for row in &step.rows {
            let (found, index) = begun.find(|(begun, _)| begun.slot == row.slot)?;
            let same = row.token == RowToken::Known(found.token) && row.position == found.position;
            if !same || !is_plain(row) {
                return None;
            }
            picks.push(index);
        }
        // What was computed read the tables as they were.
        let is_kept = |change: &TableChange| matches!(change, TableChange::Append(_) | TableChange::Drop(_));
        let changed = step.deltas.iter().filter(|delta| !is_kept(&delta.change));
        let mut own = changed.filter(|delta| step.rows.iter().any(|row| row.slot == delta.slot));
        (!picks.is_empty() && own.next().is_none()).then_some((self.plan, picks))
    }
}

fn is_plain(row: &Row) -> bool {
    row.parent == Parent::Previous
        && row.layers == Layers::All
        && row.output == Output::Pick
        && row.adapter.is_none()
}

#[cfg(test)]
mod tests;
