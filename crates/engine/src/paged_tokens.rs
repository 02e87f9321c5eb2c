//! The tokens behind a model's pages: what a model without arithmetic reads its context from.

use std::collections::HashMap;

use kvcache::{ClassId, PAGE_POSITIONS, PageId};
use request::TokenId;
use scheduler::{Slot, TableChange, TableDelta};

use crate::{ModelError, ModelSpec};

const PAGE: usize = PAGE_POSITIONS as usize;

/// For every page, the token at each of its positions; for every slot, its page tables. Kept as a back
/// end keeps keys and values, so a page that was mapped wrong or given back too early shows.
#[derive(Debug)]
pub(crate) struct PagedTokens {
    /// Per class; `None` = never written since it was mapped.
    pages: Vec<Vec<[Option<TokenId>; PAGE]>>,
    tables: HashMap<(Slot, u8), Vec<Option<Entry>>>,
    /// By tree row of the last step: the tokens of its path.
    pub(crate) branches: HashMap<u32, Vec<TokenId>>,
}

/// A page in a table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    page: PageId,
    /// Its content came from another sequence: writing it would change that one's context.
    shared: bool,
}

impl PagedTokens {
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let pages = spec.classes.iter().map(|(_, pages)| vec![[None; PAGE]; *pages as usize]).collect();
        Self { pages, tables: HashMap::new(), branches: HashMap::new() }
    }

    pub(crate) fn apply(&mut self, deltas: &[TableDelta]) -> Result<(), ModelError> {
        for delta in deltas {
            let class = delta.class.0;
            if let TableChange::Keep { row, from } = delta.change {
                let kept = self.branches.get(&row).cloned();
                let unknown = ModelError::OutOfRange { what: "kept row", index: row.into(), bound: 0 };
                for (position, token) in (from..).zip(kept.ok_or(unknown)?) {
                    self.write(delta.slot, usize::from(class), position, token)?;
                }
                continue;
            }
            let table = self.tables.entry((delta.slot, class)).or_default();
            match delta.change {
                TableChange::Append(page) => {
                    let storage = self.pages.get_mut(class as usize).and_then(|p| p.get_mut(page.0 as usize));
                    let Some(storage) = storage else {
                        return Err(ModelError::OutOfRange { what: "page", index: page.0.into(), bound: 0 });
                    };
                    *storage = [None; PAGE];
                    table.push(Some(Entry { page, shared: false }));
                }
                TableChange::Share(page) => table.push(Some(Entry { page, shared: true })),
                TableChange::Hole => table.push(None),
                TableChange::Truncate(keep) => table.truncate(keep as usize),
                TableChange::Drop(index) => {
                    if let Some(entry) = table.get_mut(index as usize) {
                        *entry = None;
                    }
                }
                TableChange::Clear => table.clear(),
                TableChange::Keep { .. } => {}
            }
        }
        Ok(())
    }

    /// A page as bytes has two layers, the low and the high halves of its tokens: so that one without the other is
    /// no page.
    pub(crate) const LAYERS: u32 = 2;

    pub(crate) fn export(
        &self,
        class: ClassId,
        page: PageId,
        layer: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let cells = self.pages.get(usize::from(class.0)).and_then(|pages| pages.get(page.0 as usize));
        let cells = cells.filter(|_| layer < Self::LAYERS).ok_or(out_of_range(page))?;
        // No token is all ones: ids are below the vocabulary.
        let halves = cells.iter().map(|cell| (cell.map_or(u32::MAX, |token| token.0) >> (16 * layer)) as u16);
        into.extend(halves.flat_map(u16::to_le_bytes));
        Ok(())
    }

    pub(crate) fn import(
        &mut self,
        class: ClassId,
        page: PageId,
        layer: u32,
        bytes: &[u8],
    ) -> Result<(), ModelError> {
        let cells = self.pages.get_mut(usize::from(class.0)).and_then(|pages| pages.get_mut(page.0 as usize));
        let cells = cells.filter(|_| layer < Self::LAYERS).ok_or(out_of_range(page))?;
        if bytes.len() != 2 * PAGE {
            return Err(ModelError::PageSize { expected: 2 * PAGE, found: bytes.len() });
        }
        for (cell, half) in cells.iter_mut().zip(bytes.as_chunks().0) {
            let half = u32::from(u16::from_le_bytes(*half)) << (16 * layer);
            let kept = cell.map_or(u32::MAX, |token| token.0) & !(0xffff << (16 * layer));
            *cell = Some(TokenId(kept | half)).filter(|token| token.0 != u32::MAX);
        }
        Ok(())
    }

    fn entry(&self, slot: Slot, class: usize, position: u32) -> Result<Entry, ModelError> {
        let missing = ModelError::NoPage { slot: slot.0, position };
        let table = self.tables.get(&(slot, class as u8)).ok_or(missing.clone())?;
        table.get((position / PAGE_POSITIONS) as usize).copied().flatten().ok_or(missing)
    }

    pub(crate) fn read(&self, slot: Slot, class: usize, position: u32) -> Result<TokenId, ModelError> {
        let page = self.entry(slot, class, position)?.page;
        let storage = self.pages.get(class).and_then(|pages| pages.get(page.0 as usize));
        let cell = storage.and_then(|cells| cells[position as usize % PAGE]);
        cell.ok_or(ModelError::NoPage { slot: slot.0, position })
    }

    pub(crate) fn write(
        &mut self,
        slot: Slot,
        class: usize,
        position: u32,
        token: TokenId,
    ) -> Result<(), ModelError> {
        let Entry { page, shared } = self.entry(slot, class, position)?;
        if shared {
            let why = format!("position {position} of slot {} is in a shared page", slot.0);
            return Err(ModelError::Device(why));
        }
        self.pages[class][page.0 as usize][position as usize % PAGE] = Some(token);
        Ok(())
    }
}

fn out_of_range(page: PageId) -> ModelError {
    ModelError::OutOfRange { what: "page", index: page.0.into(), bound: 0 }
}
