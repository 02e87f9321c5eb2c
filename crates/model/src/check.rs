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
    /// Of a tree's row.
    pub(crate) branch: Option<Branch>,
}

/// Where a row stands in its tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Branch {
    /// Among the tree rows of the step.
    pub(crate) index: u32,
    /// The parent's index; `None`: the slot's last row before the tree.
    pub(crate) parent: Option<u32>,
    /// The first position of the tree.
    pub(crate) base: u32,
}

/// Most positions that a tree reaches beyond the slot's last row.
pub(crate) const DEEPEST: u32 = 16;

/// Checks every row without changing anything.
///
/// Rows of a slot must be consecutive positions next to each other: with that, computing a step in
/// pieces gives the same bits, and no two rows write the same place. Those of its tree come after them.
pub(crate) fn rows(step: &Step, spec: &ModelSpec) -> Result<Vec<CheckedRow>, ModelError> {
    let refuse = |what| Err(ModelError::Unsupported { what });
    let mut rows: Vec<CheckedRow> = Vec::with_capacity(step.rows.len());
    let mut seen = vec![false; spec.slots as usize];
    let mut branches = 0;
    for (index, row) in step.rows.iter().enumerate() {
        let RowToken::Known(token) = row.token else { return refuse("tokens of the step before") };
        if row.parent != Parent::Previous && spec.tree_rows == 0 {
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
        let mut branch = None;
        match rows.last() {
            Some(last) if last.slot == row.slot => {
                if let Parent::Row(parent) = row.parent {
                    bound("tree row", branches as usize, spec.tree_rows as usize)?;
                    let parent_row = above(&rows, parent, row.slot)?;
                    let base = parent_row.branch.map_or(parent_row.position + 1, |branch| branch.base);
                    if row.position != parent_row.position + 1 || row.position - base >= DEEPEST {
                        return refuse("tree rows that are not right behind their parents, or too far");
                    }
                    branch =
                        Some(Branch { index: branches, parent: parent_row.branch.map(|b| b.index), base });
                    branches += 1;
                } else if last.branch.is_some() || row.position != last.position + 1 {
                    return refuse("rows of a slot that are not consecutive positions");
                }
            }
            _ => {
                if row.parent != Parent::Previous {
                    return refuse("trees without a row before them");
                }
                if std::mem::replace(&mut seen[row.slot.0 as usize], true) {
                    return refuse("rows of a slot that are apart in the step");
                }
            }
        }
        rows.push(CheckedRow {
            row: index as u32,
            slot: row.slot,
            token,
            position: row.position,
            pick,
            branch,
        });
    }
    Ok(rows)
}

/// The row that a tree row comes after: another one of the tree, or the slot's last before it.
fn above(rows: &[CheckedRow], parent: u32, slot: Slot) -> Result<CheckedRow, ModelError> {
    bound("parent row", parent as usize, rows.len())?;
    let above = rows[parent as usize];
    let last = rows.iter().rev().find(|row| row.branch.is_none()).map(|row| row.row);
    if above.slot != slot || (above.branch.is_none() && last != Some(parent)) {
        return Err(ModelError::Unsupported {
            what: "tree rows behind another sequence or an earlier position",
        });
    }
    Ok(above)
}
