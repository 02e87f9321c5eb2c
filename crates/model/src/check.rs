use engine::{ModelError, ModelSpec};
use request::TokenId;
use scheduler::{Layers, Output, Parent, RowToken, Slot, Step};

use crate::cache::bound;

/// A row that the back ends execute, checked against the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckedRow {
    /// Index in the step.
    pub(crate) row: u32,
    pub(crate) slot: Slot,
    pub(crate) token: TokenId,
    pub(crate) position: u32,
    /// Otherwise only its keys and values are wanted.
    pub(crate) pick: bool,
}

/// Checks every row without changing anything.
///
/// Rows of a slot must be consecutive positions next to each other: with that, computing a step in
/// pieces gives the same bits, and no two rows write the same place.
pub(crate) fn rows(step: &Step, spec: &ModelSpec) -> Result<Vec<CheckedRow>, ModelError> {
    let refuse = |what| Err(ModelError::Unsupported { what });
    let mut rows: Vec<CheckedRow> = Vec::with_capacity(step.rows.len());
    let mut seen = vec![false; spec.slots as usize];
    for (index, row) in step.rows.iter().enumerate() {
        let RowToken::Known(token) = row.token else { return refuse("tokens of the step before") };
        if row.parent != Parent::Previous {
            return refuse("token trees");
        }
        if row.layers != Layers::All {
            return refuse("early exit");
        }
        if row.adapter.is_some() {
            return refuse("adapters");
        }
        let pick = match row.output {
            Output::None => false,
            Output::Pick => true,
            Output::Hidden(_) => return refuse("hidden states"),
            Output::Pooled => return refuse("pooled embeddings"),
        };
        bound("slot", row.slot.0 as usize, seen.len())?;
        bound("token", token.0 as usize, spec.vocab_size as usize)?;
        bound("position", row.position as usize, spec.context as usize)?;
        match rows.last() {
            Some(last) if last.slot == row.slot => {
                if row.position != last.position + 1 {
                    return refuse("rows of a slot that are not consecutive positions");
                }
            }
            _ => {
                if std::mem::replace(&mut seen[row.slot.0 as usize], true) {
                    return refuse("rows of a slot that are apart in the step");
                }
            }
        }
        rows.push(CheckedRow { row: index as u32, slot: row.slot, token, position: row.position, pick });
    }
    Ok(rows)
}
