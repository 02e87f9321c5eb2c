//! Pages out of the storage and into it: for other ranks of the same numerics. In a group each rank has its heads of a
//! page; outside it is the page of one rank.

use engine::ModelError;
use kvcache::{ClassId, PageId};

use super::CpuModel;
use super::group::{Asked, Group, Part};
use crate::cache::Storage;

impl CpuModel {
    pub(super) fn page_out(
        &mut self,
        class: ClassId,
        page: PageId,
        layer: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let storage = storage_of(&mut self.storage, class)?;
        let own = storage.layer(page, layer as usize)?;
        let Some((group, part)) = leading(&mut self.scratch.group)? else {
            into.extend_from_slice(own);
            return Ok(());
        };
        let (unit, at) = (storage.unit(), into.len());
        into.resize(at + unit * part.units(layer as usize, class), 0);
        part.put_units(0, layer as usize, class, own, &mut into[at..], unit);
        for (rank, bytes) in (1..).zip(group.parts(class, page)?) {
            // All layers of it; those before this one have so many units.
            let before: usize = (0..layer as usize).map(|l| part.places(l, class, rank).len()).sum();
            let count = part.places(layer as usize, class, rank).len();
            let bytes = bytes.get(before * unit..(before + count) * unit);
            let bytes = bytes.ok_or_else(|| ModelError::Lost(format!("rank {rank} sent half a page")))?;
            part.put_units(rank, layer as usize, class, bytes, &mut into[at..], unit);
        }
        Ok(())
    }

    pub(super) fn page_in(
        &mut self,
        class: ClassId,
        page: PageId,
        layer: u32,
        bytes: &[u8],
    ) -> Result<(), ModelError> {
        let storage = storage_of(&mut self.storage, class)?;
        let Some((group, part)) = leading(&mut self.scratch.group)? else {
            return write(storage, page, layer, bytes);
        };
        let (at, unit) = (layer as usize, storage.unit());
        let own = storage.layer(page, at)?.len();
        let expected = unit * part.units(at, class);
        if expected != bytes.len() {
            return Err(ModelError::PageSize { expected, found: bytes.len() });
        }
        let take = |rank: usize| -> Vec<u8> {
            let places = part.places(at, class, rank);
            places.iter().flat_map(|place| &bytes[place * unit..(place + 1) * unit]).copied().collect()
        };
        let mine = take(0);
        debug_assert_eq!(mine.len(), own, "rank 0's heads");
        write(storage, page, layer, &mine)?;
        (1..group.ranks()).try_for_each(|rank| group.give(rank, (class, page, layer), &take(rank)))
    }

    /// A follower's answer to rank 0; gives back a step to execute.
    pub(super) fn serve(&mut self, asked: Asked) -> Result<Option<scheduler::Step>, ModelError> {
        let Some((group, _)) = &mut self.scratch.group else { return Ok(None) };
        match asked {
            Asked::Step(step) => return Ok(Some(step)),
            Asked::Export { class, page } => {
                let storage = storage_of(&mut self.storage, class)?;
                group.answer(storage.page(page)?)?;
            }
            Asked::Import { class, page, layer, bytes } => {
                write(storage_of(&mut self.storage, class)?, page, layer, &bytes)?;
            }
        }
        Ok(None)
    }
}

/// The group that this rank leads; `None` without a group.
fn leading(group: &mut Option<(Group, Part)>) -> Result<Option<(&mut Group, &Part)>, ModelError> {
    match group {
        None => Ok(None),
        Some((group, part)) if group.rank() == 0 => Ok(Some((group, part))),
        Some(_) => Err(ModelError::Unsupported { what: "pages of a follower" }),
    }
}

fn storage_of(storage: &mut [Storage], class: ClassId) -> Result<&mut Storage, ModelError> {
    let (index, classes) = (usize::from(class.0), storage.len());
    storage.get_mut(index).ok_or(ModelError::OutOfRange {
        what: "head class",
        index: index as u64,
        bound: classes as u64,
    })
}

fn write(storage: &mut Storage, page: PageId, layer: u32, bytes: &[u8]) -> Result<(), ModelError> {
    let to = storage.layer_mut(page, layer as usize)?;
    if to.len() != bytes.len() {
        return Err(ModelError::PageSize { expected: to.len(), found: bytes.len() });
    }
    to.copy_from_slice(bytes);
    Ok(())
}
