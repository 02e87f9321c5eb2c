use std::collections::BTreeMap;

use engine::ModelError;
use kvcache::{HeadClass, PAGE_POSITIONS, PageId};
use scheduler::{Slot, TableChange, TableDelta};

use super::visible;

/// Page tables of all slots; they change only by a step's deltas.
pub(crate) struct Tables {
    /// By slot, then by class.
    slots: Vec<Vec<Table>>,
    /// What each class looks back on, and the pages it has.
    classes: Vec<(HeadClass, u32)>,
    /// Most entries of a table.
    longest: usize,
}

/// Page index (position / 16) to page; `None` where a window has moved on, or never was.
pub(crate) type Table = Vec<Option<PageId>>;

/// Tables as they will be after a step's deltas, not in force yet: a step that turns out to be
/// wrong leaves no trace.
pub(crate) struct Changed {
    tables: BTreeMap<(usize, usize), Table>,
    /// What tree rows of the step before leave to their slots.
    pub(crate) kept: Vec<Kept>,
}

/// A page whose positions from some on are those that a tree row saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) row: u32,
    /// The first position that is kept.
    pub(crate) from: u32,
    /// Index of the page in the slot's table.
    pub(crate) index: u32,
    pub(crate) page: PageId,
}

impl Tables {
    /// Empty tables for `slots` slots.
    pub(crate) fn new(slots: u32, classes: Vec<(HeadClass, u32)>, context: u32) -> Self {
        Self {
            slots: (0..slots).map(|_| vec![Table::new(); classes.len()]).collect(),
            classes,
            longest: kvcache::pages_for(context) as usize,
        }
    }

    /// What the deltas make of the tables.
    pub(crate) fn change(&self, deltas: &[TableDelta]) -> Result<Changed, ModelError> {
        let mut changed = Changed { tables: BTreeMap::new(), kept: Vec::new() };
        for delta in deltas {
            let (slot, class) = (delta.slot.0 as usize, usize::from(delta.class.0));
            bound("slot", slot, self.slots.len())?;
            bound("head class", class, self.classes.len())?;
            let table = changed.tables.entry((slot, class)).or_insert_with(|| self.get(slot, class).to_vec());
            match delta.change {
                // A page that is shared holds its keys and values already: nothing to do for a rank
                // that keeps all its pages in one place.
                TableChange::Append(page) | TableChange::Share(page) => {
                    bound("page", page.0 as usize, self.classes[class].1 as usize)?;
                    bound("page index", table.len(), self.longest)?;
                    table.push(Some(page));
                }
                TableChange::Hole => {
                    bound("page index", table.len(), self.longest)?;
                    table.push(None);
                }
                TableChange::Truncate(from) => {
                    bound("page index", from as usize, table.len() + 1)?;
                    table.truncate(from as usize);
                }
                TableChange::Drop(index) => {
                    bound("page index", index as usize, table.len())?;
                    table[index as usize] = None;
                }
                TableChange::Clear => table.clear(),
                TableChange::Keep { row, from } => {
                    // Every page that the slot has from there on; how far the row reaches the back end knows.
                    let pages = (0..).zip(table.iter()).skip((from / PAGE_POSITIONS) as usize);
                    let kept =
                        pages.filter_map(|(index, page)| Some(Kept { row, from, index, page: (*page)? }));
                    changed.kept.extend(kept);
                }
            }
        }
        Ok(changed)
    }

    /// The entries that a change makes different: slot, class, page index and the page there.
    #[cfg(feature = "cuda")]
    pub(crate) fn differences(&self, changed: &Changed) -> Vec<(usize, usize, usize, Option<PageId>)> {
        let mut found = Vec::new();
        for (&(slot, class), table) in &changed.tables {
            let old = self.get(slot, class);
            for index in 0..old.len().max(table.len()) {
                let at = |table: &[Option<PageId>]| table.get(index).copied().flatten();
                if at(old) != at(table) {
                    found.push((slot, class, index, at(table)));
                }
            }
        }
        found
    }

    /// Puts a change in force.
    pub(crate) fn apply(&mut self, changed: Changed) {
        for ((slot, class), table) in changed.tables {
            if let Some(old) = self.slots.get_mut(slot).and_then(|classes| classes.get_mut(class)) {
                *old = table;
            }
        }
    }

    /// The table of a slot for a class; empty for a slot that does not exist.
    pub(crate) fn get(&self, slot: usize, class: usize) -> &[Option<PageId>] {
        self.slots.get(slot).and_then(|classes| classes.get(class)).map_or(&[], Vec::as_slice)
    }

    /// Checks that every class of `slot` has the pages that a query at `position` reads and writes,
    /// with `changed` in force.
    pub(crate) fn covers(&self, changed: &Changed, slot: Slot, position: u32) -> Result<(), ModelError> {
        bound("slot", slot.0 as usize, self.slots.len())?;
        for (index, (class, _)) in self.classes.iter().enumerate() {
            let key = (slot.0 as usize, index);
            let table = changed.tables.get(&key).map_or_else(|| self.get(key.0, index), Vec::as_slice);
            for seen in visible(*class, position) {
                let mut pages = seen.start / PAGE_POSITIONS..seen.end.div_ceil(PAGE_POSITIONS);
                let there = |page: u32| table.get(page as usize).is_some_and(Option::is_some);
                if let Some(missing) = pages.find(|page| !there(*page)) {
                    let position = missing * PAGE_POSITIONS;
                    return Err(ModelError::NoPage { slot: slot.0, position });
                }
            }
        }
        Ok(())
    }
}

/// `index` must be below `bound`.
pub(crate) fn bound(what: &'static str, index: usize, bound: usize) -> Result<(), ModelError> {
    if index < bound {
        return Ok(());
    }
    Err(ModelError::OutOfRange { what, index: index as u64, bound: bound as u64 })
}
