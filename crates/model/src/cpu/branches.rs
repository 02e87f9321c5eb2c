//! Tree rows: each sees the keys of its own path, and nothing of what its slot has is touched.
//!
//! Every tree row has two pages of its own. They stand in its page table where the tree's positions are, and hold what
//! the slot and the row's ancestors have there, each at the place of its position. So the row is computed as it would be
//! without the tree, bit for bit (the order of keys is part of the attention's contract), and keeping a path is copying
//! two pages.

use engine::ModelError;
use kvcache::{PAGE_POSITIONS, PageId};

use crate::cache::{Kept, Storage, Table, Tables, Unit};
use crate::check::{Branch, CheckedRow, DEEPEST};

/// Most tree rows of a step.
pub(super) const TREE_ROWS: u32 = 128;
/// Pages of a row: its tree begins anywhere in the first.
const OWN: u32 = (PAGE_POSITIONS - 1 + DEEPEST).div_ceil(PAGE_POSITIONS);

/// Pages beyond those of the tables that all tree rows take together, and each slot's drafts of the model's own
/// ([`super::exits`]). Untouched, they cost nothing.
pub(super) fn pages(slots: u32) -> u32 {
    (TREE_ROWS + slots) * OWN
}

/// The tree rows of the step under way, or of the last one.
#[derive(Default)]
pub(super) struct Branches {
    /// Index of the first one.
    first: u32,
    rows: Vec<Of>,
}

/// One row.
struct Of {
    /// Index in the step.
    row: u32,
    position: u32,
    branch: Branch,
    /// By class.
    tables: Vec<Table>,
}

impl Branches {
    /// Puts what is kept of the last step where the tables say.
    pub(super) fn keep(&self, kept: &[Kept], storage: &mut [Storage]) -> Result<(), ModelError> {
        for Kept { row, from, class, index, page } in kept {
            let unknown = ModelError::OutOfRange { what: "kept row", index: (*row).into(), bound: 0 };
            let of = self.rows.iter().find(|of| of.row == *row && of.branch.base == *from).ok_or(unknown)?;
            let storage = &mut storage[*class];
            if *index <= of.position / PAGE_POSITIONS
                && let Some(own) = of.branch.page(storage, *index)
            {
                storage.units().into_iter().for_each(|unit| storage.copy(own, *page, unit));
            }
        }
        Ok(())
    }

    /// Takes the tree rows of a step whose tables are in force.
    pub(super) fn set(&mut self, rows: &[CheckedRow], tables: &Tables, storage: &[Storage]) {
        self.first = 0;
        self.rows.clear();
        for row in rows {
            let Some(branch) = row.branch else { continue };
            let (first, last) = (branch.base / PAGE_POSITIONS, row.position / PAGE_POSITIONS);
            let table = |(class, storage): (usize, &Storage)| {
                let slot = tables.get(row.slot.0 as usize, class);
                let mut table = slot[..slot.len().min(first as usize)].to_vec();
                table.extend((first..=last).map(|index| branch.page(storage, index)));
                table
            };
            let tables = storage.iter().enumerate().map(table).collect();
            self.rows.push(Of { row: row.row, position: row.position, branch, tables });
        }
    }

    /// Of rows of a slot that follow each other from `base` on in pages of its own.
    pub(super) fn of_slot(slot: u32, base: u32, tables: &Tables, storage: &[Storage]) -> (Self, Branch) {
        let branch = Branch { index: TREE_ROWS + slot, parent: None, base };
        let first = base / PAGE_POSITIONS;
        let table = |(class, storage): (usize, &Storage)| {
            let slot = tables.get(slot as usize, class);
            let mut table = slot[..slot.len().min(first as usize)].to_vec();
            table.extend((first..first + OWN).map(|index| branch.page(storage, index)));
            table
        };
        let tables = storage.iter().enumerate().map(table).collect();
        let of = Of { row: 0, position: base + DEEPEST, branch, tables };
        (Self { first: branch.index, rows: vec![of] }, branch)
    }

    fn get(&self, index: u32) -> Option<&Of> {
        self.rows.get(index.checked_sub(self.first)? as usize)
    }

    /// The page table that a row reads and writes for a class.
    pub(super) fn table(&self, branch: Branch, class: usize) -> &[Option<PageId>] {
        self.get(branch.index).and_then(|of| of.tables.get(class)).map_or(&[], Vec::as_slice)
    }

    /// Gives a row what its parent sees, of one unit of a layer. `slot`: the slot's own table for the class.
    pub(super) fn inherit(
        &self,
        branch: Branch,
        (class, slot): (usize, &[Option<PageId>]),
        storage: &mut Storage,
        unit: Unit,
    ) {
        if branch.parent == Some(branch.index) {
            // The row before it is in the same pages.
            return;
        }
        let Some(of) = self.get(branch.index) else { return };
        let parent = branch.parent.and_then(|parent| self.get(parent));
        for index in branch.base / PAGE_POSITIONS..=of.position / PAGE_POSITIONS {
            let from = match parent {
                Some(parent) => parent.tables[class].get(index as usize).copied().flatten(),
                // A page that begins with the tree has nothing before it.
                None if index * PAGE_POSITIONS == branch.base => None,
                None => slot.get(index as usize).copied().flatten(),
            };
            if let (Some(from), Some(to)) = (from, branch.page(storage, index)) {
                storage.copy(from, to, unit);
            }
        }
    }
}

impl Branch {
    /// The row's own page for this index of its table.
    pub(super) fn page(self, storage: &Storage, index: u32) -> Option<PageId> {
        let own = index.checked_sub(self.base / PAGE_POSITIONS).filter(|own| *own < OWN)?;
        Some(PageId(storage.pages + self.index * OWN + own))
    }
}
