//! Steps without a scheduler: page tables that only grow.

use engine::ModelError;
use kvcache::{ClassId, PageId, pages_for};
use model::CpuModel;
use request::TokenId;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

/// The sequences of a model under test; slot s uses pages `s * per_slot ..`.
pub(crate) struct Sequences {
    per_slot: u32,
    /// Positions that have a page, by slot.
    covered: Vec<u32>,
}

impl Sequences {
    pub(crate) fn new(slots: u32, per_slot: u32) -> Self {
        Self { per_slot, covered: vec![0; slots as usize] }
    }

    /// A step that computes `rows` = (slot, first position, tokens); every row picks.
    pub(crate) fn step(&mut self, rows: &[(u32, u32, &[u32])]) -> Step {
        let mut step = Step::default();
        for &(slot, first, tokens) in rows {
            let end = first + tokens.len() as u32;
            for index in pages_for(self.covered[slot as usize])..pages_for(end) {
                step.deltas.push(append(slot, self.per_slot * slot + index));
            }
            self.covered[slot as usize] = self.covered[slot as usize].max(end);
            for (position, token) in (first..).zip(tokens) {
                step.rows.push(row(slot, position, *token));
            }
        }
        step
    }
}

pub(crate) fn append(slot: u32, page: u32) -> TableDelta {
    TableDelta { slot: Slot(slot), class: ClassId(0), change: TableChange::Append(PageId(page)) }
}

pub(crate) fn clear(slot: u32) -> TableDelta {
    TableDelta { change: TableChange::Clear, ..append(slot, 0) }
}

pub(crate) fn row(slot: u32, position: u32, token: u32) -> Row {
    Row {
        slot: Slot(slot),
        token: RowToken::Known(TokenId(token)),
        position,
        parent: Parent::Previous,
        layers: Layers::All,
        output: Output::Pick,
        adapter: None,
    }
}

/// Logits of `tokens` in slot 0, computed in chunks of `chunk`; one row of logits a token.
pub(crate) fn logits(
    model: &mut CpuModel,
    tokens: &[u32],
    chunk: usize,
) -> Result<Vec<Vec<f32>>, ModelError> {
    let mut sequences = Sequences::new(1, 0);
    let mut all = Vec::new();
    let mut first = 0;
    for tokens in tokens.chunks(chunk) {
        let mut step = sequences.step(&[(0, first, tokens)]);
        if first == 0 {
            step.deltas.insert(0, clear(0));
        }
        all.extend(model.logits(&step)?.into_iter().map(|(_, l)| l));
        first += tokens.len() as u32;
    }
    Ok(all)
}
