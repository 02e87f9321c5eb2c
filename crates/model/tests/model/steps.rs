//! Steps without a scheduler: page tables that only grow.

use engine::{Model as _, ModelError};
use kvcache::{ClassId, PageId, pages_for};
use model::CpuModel;
use request::TokenId;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

/// The sequences of a model under test; slot s uses pages `s * per_slot ..`.
pub(crate) struct Sequences {
    per_slot: u32,
    /// Positions that have a page, by slot.
    covered: Vec<u32>,
    /// Head classes, whose pages have the same numbers.
    classes: u8,
}

impl Sequences {
    pub(crate) fn new(slots: u32, per_slot: u32) -> Self {
        Self { per_slot, covered: vec![0; slots as usize], classes: 1 }
    }

    /// For a model with as many head classes as it has.
    pub(crate) fn of(self, model: &CpuModel) -> Self {
        Self { classes: model.spec().classes.len() as u8, ..self }
    }

    /// A step that computes `rows` = (slot, first position, tokens); every row picks.
    pub(crate) fn step(&mut self, rows: &[(u32, u32, &[u32])]) -> Step {
        let mut step = Step::default();
        for &(slot, first, tokens) in rows {
            let end = first + tokens.len() as u32;
            for index in pages_for(self.covered[slot as usize])..pages_for(end) {
                let append = append(slot, self.per_slot * slot + index);
                step.deltas.extend((0..self.classes).map(|class| in_class(append, class)));
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

pub(crate) fn in_class(delta: TableDelta, class: u8) -> TableDelta {
    TableDelta { class: ClassId(class), ..delta }
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
    let mut sequences = Sequences::new(1, 0).of(model);
    let mut all = Vec::new();
    let mut first = 0;
    for tokens in tokens.chunks(chunk) {
        let mut step = sequences.step(&[(0, first, tokens)]);
        if first == 0 {
            let classes = 0..model.spec().classes.len() as u8;
            step.deltas.splice(0..0, classes.map(|class| in_class(clear(0), class)));
        }
        all.extend(model.logits(&step)?.into_iter().map(|(_, l)| l));
        first += tokens.len() as u32;
    }
    Ok(all)
}
