//! Keys and values of all sequences, in pages.
//!
//! Which page a position lies in is bookkeeping and comes from outside ([`Tables`] follow the step's
//! deltas); here are the bytes. Keys and values are kept as IEEE half floats, keys after RoPE: that
//! rounding is part of the numerics ([`KV_DTYPE`]).

mod tables;

#[cfg(feature = "cuda")]
pub(crate) use tables::Changed;
pub(crate) use tables::{Kept, Table, Tables, bound};

use std::ops::Range;

use engine::ModelError;
use half::f16;
use kvcache::{HeadClass, HeadMap, PAGE_POSITIONS, PageId};
use memmap2::MmapMut;

use crate::LoadError;
use crate::arch::Parameters;
use crate::quant::{F16, blocks};
use crate::simd::Halves;

/// Part of the numerics fingerprint.
pub(crate) const KV_DTYPE: &str = "f16";

const POSITIONS: usize = PAGE_POSITIONS as usize;

/// The pages of one head class: for each page and each (layer, KV head) of the class 16 keys and then 16
/// values of `head_dim` half floats. Values lie one after the other; keys side by side, element by element,
/// so that 16 scores are computed at once.
pub(crate) struct Storage {
    pub(crate) class: HeadClass,
    pub(crate) pages: u32,
    head_dim: usize,
    /// `[layer][KV head]`: which unit of the class it is; others have none.
    places: Vec<Vec<Option<u32>>>,
    /// Bytes of one page.
    page: usize,
    bytes: MmapMut,
}

/// One (layer, KV head) of a class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    pub(crate) layer: usize,
    pub(crate) kv_head: usize,
}

impl Storage {
    /// Bytes that one page of a class takes.
    pub(crate) fn page_bytes(map: &HeadMap, class: usize, p: &Parameters) -> usize {
        map.units(class) * p.head_dim * 2 * POSITIONS * size_of::<f16>()
    }

    /// Zeroed storage; the kernel hands out memory when a page is first written. `beyond`: pages after those of the
    /// tables, for the back end's own use.
    pub(crate) fn new(
        map: &HeadMap,
        index: usize,
        p: &Parameters,
        pages: u32,
        beyond: u32,
    ) -> Result<Self, LoadError> {
        let page = Self::page_bytes(map, index, p);
        let mut units = 0..;
        let mut place = |class: &u8| units.by_ref().take(usize::from(usize::from(*class) == index)).next();
        let places = map.class_of.iter().map(|heads| heads.iter().map(&mut place).collect()).collect();
        let too_large = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let bytes = page
            .checked_mul(pages as usize + beyond as usize)
            .filter(|b| isize::try_from(*b).is_ok())
            .ok_or_else(|| LoadError::Memory { bytes: usize::MAX, source: too_large() })?;
        // A class may have no heads on a rank; a map has at least a byte.
        let memory = MmapMut::map_anon(bytes.max(1)).map_err(|source| LoadError::Memory { bytes, source })?;
        Ok(Self { class: map.classes[index], pages, head_dim: p.head_dim, places, page, bytes: memory })
    }

    /// Keys of one unit in a page: `head_dim` times that element of all 16.
    #[inline]
    pub(crate) fn keys(&self, page: PageId, unit: Unit) -> &[Halves] {
        let start = self.start(page, unit);
        self.bytes.get(start..start + self.half()).unwrap_or_default().as_chunks().0
    }

    /// Values of one unit in a page: 16 rows of `head_dim`.
    #[inline]
    pub(crate) fn values(&self, page: PageId, unit: Unit) -> &[F16] {
        let start = self.start(page, unit) + self.half();
        blocks(self.bytes.get(start..start + self.half()).unwrap_or_default())
    }

    /// Writes key and value of one position (`offset` in the page).
    pub(crate) fn write(&mut self, page: PageId, unit: Unit, offset: usize, key: &[F16], value: &[F16]) {
        let (start, half, offset) = (self.start(page, unit), self.half(), offset % POSITIONS);
        let Some((keys, values)) = self.bytes.get_mut(start..start + 2 * half).map(|b| b.split_at_mut(half))
        else {
            return;
        };
        for (to, key) in keys.as_chunks_mut::<{ 2 * POSITIONS }>().0.iter_mut().zip(key) {
            to.as_chunks_mut().0[offset] = *key;
        }
        let values = values.as_chunks_mut().0.iter_mut().skip(offset * self.head_dim);
        for (to, value) in values.zip(value) {
            *to = *value;
        }
    }

    /// All heads of the class in one layer of a page, as they lie: what is handed over to another rank.
    pub(crate) fn layer(&self, page: PageId, layer: usize) -> Result<&[u8], ModelError> {
        let range = self.layer_range(page, layer)?;
        Ok(self.bytes.get(range).unwrap_or_default())
    }

    pub(crate) fn layer_mut(&mut self, page: PageId, layer: usize) -> Result<&mut [u8], ModelError> {
        let range = self.layer_range(page, layer)?;
        Ok(self.bytes.get_mut(range).unwrap_or_default())
    }

    fn layer_range(&self, page: PageId, layer: usize) -> Result<Range<usize>, ModelError> {
        bound("page", page.0 as usize, self.pages as usize)?;
        bound("layer", layer, self.places.len())?;
        // Units of a class are counted layer by layer: those of one lie next to each other, if it has any.
        let mut places = self.places[layer].iter().flatten();
        let first = places.next().map_or(0, |first| *first as usize);
        let units = self.places[layer].iter().flatten().count();
        let start = page.0 as usize * self.page + first * 2 * self.half();
        Ok(start..start + units * 2 * self.half())
    }

    /// Every (layer, KV head) of the class.
    pub(crate) fn units(&self) -> Vec<Unit> {
        let layers = self.places.iter().enumerate();
        let of = |(layer, heads): (usize, &Vec<Option<u32>>)| {
            let own = heads.iter().enumerate().filter(|(_, place)| place.is_some());
            own.map(|(kv_head, _)| Unit { layer, kv_head }).collect::<Vec<_>>()
        };
        layers.flat_map(of).collect()
    }

    /// Keys and values of one unit of a page, as another page has them.
    pub(crate) fn copy(&mut self, from: PageId, to: PageId, unit: Unit) {
        let (from, to, size) = (self.start(from, unit), self.start(to, unit), 2 * self.half());
        if from + size <= self.bytes.len() && to + size <= self.bytes.len() {
            self.bytes.copy_within(from..from + size, to);
        }
    }

    /// Where a unit begins in a page; past the end for one of another class.
    fn start(&self, page: PageId, unit: Unit) -> usize {
        let place = self.places.get(unit.layer).and_then(|heads| *heads.get(unit.kv_head)?);
        let Some(place) = place else { return self.bytes.len() };
        page.0 as usize * self.page + place as usize * 2 * self.half()
    }

    /// Bytes of a page's keys (or values) of one unit.
    fn half(&self) -> usize {
        POSITIONS * self.head_dim * size_of::<f16>()
    }
}

/// The keys that a query at `position` sees, in order: [`HeadClass::sees`] as ranges, either of which
/// may be empty.
pub(crate) fn visible(class: HeadClass, position: u32) -> [Range<u32>; 2] {
    let keys = position + 1;
    match class {
        HeadClass::Full => [0..keys, keys..keys],
        HeadClass::Window { sink, recent } => {
            let sink = sink.min(keys);
            [0..sink, keys.saturating_sub(recent).max(sink)..keys]
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_what_the_class_sees(sink in 0u32..40, recent in 0u32..40, full: bool, position in 0u32..100) {
            let class = if full { HeadClass::Full } else { HeadClass::Window { sink, recent } };
            let found: Vec<u32> = visible(class, position).into_iter().flatten().collect();
            let expected: Vec<u32> = (0..200).filter(|key| class.sees(position, *key)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
