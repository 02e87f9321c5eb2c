//! Keys and values of all sequences, in pages.
//!
//! Which page a position lies in is bookkeeping and comes from outside ([`Tables`] follow the step's
//! deltas); here are the bytes. Keys (after RoPE) and values are kept as IEEE half floats, or as signed bytes with a
//! scale for each position and head: that rounding is part of the numerics ([`KvDtype`]).

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
use crate::quant::float::halves;
use crate::quant::{F16, blocks, half};
use crate::simd::{Halves, LANES, Lanes, Small};

/// What keys and values are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    #[default]
    F16,
    /// A byte an element and a scale for each (position, head): half the memory, other text.
    Int8,
}

/// Part of the numerics fingerprint; what else keys and values are kept in is added to it.
pub(crate) const KV_DTYPE: &str = "f16";

const POSITIONS: usize = PAGE_POSITIONS as usize;

/// The pages of one head class: for each page and each (layer, KV head) of the class 16 keys and then 16
/// values of `head_dim` elements, of bytes also their 16 and 16 scales. Values lie one after the other; keys side by
/// side, element by element, so that 16 scores are computed at once.
pub(crate) struct Storage {
    pub(crate) class: HeadClass,
    pub(crate) pages: u32,
    pub(crate) dtype: KvDtype,
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

/// Bytes of a page's keys and values of one unit.
fn unit_bytes(dtype: KvDtype, head_dim: usize) -> usize {
    2 * POSITIONS
        * match dtype {
            KvDtype::F16 => head_dim * size_of::<f16>(),
            KvDtype::Int8 => head_dim + size_of::<f32>(),
        }
}

impl Storage {
    /// Bytes that one page of a class takes.
    pub(crate) fn page_bytes(map: &HeadMap, class: usize, p: &Parameters, dtype: KvDtype) -> usize {
        map.units(class) * unit_bytes(dtype, p.head_dim)
    }

    /// Zeroed storage; the kernel hands out memory when a page is first written. `beyond`: pages after those of the
    /// tables, for the back end's own use.
    pub(crate) fn new(
        map: &HeadMap,
        index: usize,
        p: &Parameters,
        dtype: KvDtype,
        (pages, beyond): (u32, u32),
    ) -> Result<Self, LoadError> {
        let page = Self::page_bytes(map, index, p, dtype);
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
        let class = map.classes[index];
        Ok(Self { class, pages, dtype, head_dim: p.head_dim, places, page, bytes: memory })
    }

    /// Keys of one unit in a page: `head_dim` times that element of all 16.
    #[inline]
    pub(crate) fn keys<C: Cell>(&self, page: PageId, unit: Unit) -> &[C::Sixteen] {
        let start = self.start(page, unit);
        C::sixteens(self.bytes.get(start..start + self.half()).unwrap_or_default())
    }

    /// Values of one unit in a page: 16 rows of `head_dim`.
    #[inline]
    pub(crate) fn values<C: Cell>(&self, page: PageId, unit: Unit) -> &[C] {
        let start = self.start(page, unit) + self.half();
        C::cells(self.bytes.get(start..start + self.half()).unwrap_or_default())
    }

    /// Of bytes: what the 16 keys and the 16 values of one unit are to be multiplied with.
    #[inline]
    pub(crate) fn scales(&self, page: PageId, unit: Unit) -> [[f32; POSITIONS]; 2] {
        let start = self.start(page, unit) + 2 * self.half();
        let bytes = self.bytes.get(start..start + 2 * POSITIONS * size_of::<f32>()).unwrap_or_default();
        let mut scales = [[0.0; POSITIONS]; 2];
        for (to, from) in scales.as_flattened_mut().iter_mut().zip(bytes.as_chunks().0) {
            *to = f32::from_le_bytes(*from);
        }
        scales
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

    /// The same for [`KvDtype::Int8`]: each is rounded to its largest element's 127th part.
    pub(crate) fn write_bytes(
        &mut self,
        page: PageId,
        unit: Unit,
        offset: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let (start, half, offset) = (self.start(page, unit), self.half(), offset % POSITIONS);
        let Some(bytes) = self.bytes.get_mut(start..start + unit_bytes(KvDtype::Int8, self.head_dim)) else {
            return;
        };
        let (keys, rest) = bytes.split_at_mut(half);
        let (values, scales) = rest.split_at_mut(half);
        let scales = scales.as_chunks_mut().0;
        let (scale, inverse) = scale_of(key);
        scales[offset] = scale.to_le_bytes();
        for (to, key) in keys.as_chunks_mut::<POSITIONS>().0.iter_mut().zip(key) {
            to[offset] = to_byte(*key, inverse);
        }
        let (scale, inverse) = scale_of(value);
        scales[POSITIONS + offset] = scale.to_le_bytes();
        for (to, value) in values[offset * self.head_dim..].iter_mut().zip(value) {
            *to = to_byte(*value, inverse);
        }
    }

    /// Every (layer, KV head) of the class.
    pub(crate) fn units(&self) -> Vec<Unit> {
        let of = |(layer, heads): (usize, &Vec<Option<u32>>)| {
            let there = (0..heads.len()).filter(|kv_head| heads[*kv_head].is_some());
            there.map(|kv_head| Unit { layer, kv_head }).collect::<Vec<_>>()
        };
        self.places.iter().enumerate().flat_map(of).collect()
    }

    /// Keys and values of one unit of a page, as another page has them.
    pub(crate) fn copy(&mut self, from: PageId, to: PageId, unit: Unit) {
        let (from, to, size) = (self.start(from, unit), self.start(to, unit), self.unit());
        if from + size <= self.bytes.len() && to + size <= self.bytes.len() {
            self.bytes.copy_within(from..from + size, to);
        }
    }

    /// What the page holds is of no use any more: its memory goes back to the system, and reads as zeros. What it shares
    /// with its neighbours of the system's pages stays.
    pub(crate) fn discard(&mut self, page: PageId) {
        #[cfg(unix)]
        {
            const SYSTEM: usize = 4096;
            let start = (page.0 as usize * self.page).next_multiple_of(SYSTEM);
            let end = (page.0 as usize + 1).saturating_mul(self.page).min(self.bytes.len()) / SYSTEM * SYSTEM;
            if start < end {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                // SAFETY: the map is anonymous and private, so its bytes become zeros; `&mut self`: nobody looks at them.
                let done = unsafe { self.bytes.unchecked_advise_range(advice, start, end - start) };
                // It is memory that is not saved, no more.
                let _ = done;
            }
        }
        #[cfg(not(unix))]
        let _ = page;
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

    /// All layers of a page, one after the other.
    pub(crate) fn page(&self, page: PageId) -> Result<&[u8], ModelError> {
        bound("page", page.0 as usize, self.pages as usize)?;
        let start = page.0 as usize * self.page;
        Ok(self.bytes.get(start..start + self.page).unwrap_or_default())
    }

    fn layer_range(&self, page: PageId, layer: usize) -> Result<Range<usize>, ModelError> {
        bound("page", page.0 as usize, self.pages as usize)?;
        bound("layer", layer, self.places.len())?;
        // Units of a class are counted layer by layer: those of one lie next to each other, if it has any.
        let mut places = self.places[layer].iter().flatten();
        let first = places.next().map_or(0, |first| *first as usize);
        let units = self.places[layer].iter().flatten().count();
        let start = page.0 as usize * self.page + first * self.unit();
        Ok(start..start + units * self.unit())
    }

    /// Where a unit begins in a page; past the end for one of another class.
    fn start(&self, page: PageId, unit: Unit) -> usize {
        let place = self.places.get(unit.layer).and_then(|heads| *heads.get(unit.kv_head)?);
        let Some(place) = place else { return self.bytes.len() };
        page.0 as usize * self.page + place as usize * self.unit()
    }

    /// Bytes of a page's keys and values of one unit.
    pub(crate) fn unit(&self) -> usize {
        unit_bytes(self.dtype, self.head_dim)
    }

    /// Bytes of a page's keys (or values) of one unit, without scales.
    fn half(&self) -> usize {
        let element = match self.dtype {
            KvDtype::F16 => size_of::<f16>(),
            KvDtype::Int8 => 1,
        };
        POSITIONS * self.head_dim * element
    }
}

/// What stands for 1 when the largest of `x` is to be 127, and its inverse; zeros stay zeros, and what is not finite is
/// not hidden.
fn scale_of(x: &[f32]) -> (f32, f32) {
    let largest = x.iter().fold(0.0f32, |most, x| if x.abs() > most || x.is_nan() { x.abs() } else { most });
    if largest > 0.0 || largest.is_nan() { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) }
}

fn to_byte(x: f32, inverse: f32) -> u8 {
    // Rust's cast is to the nearest value that exists.
    ((x * inverse).round_ties_even() as i8) as u8
}

/// An element of a key or value.
pub(crate) trait Cell: Copy {
    /// That element of 16 keys.
    type Sixteen: Copy;
    /// It is multiplied with a scale.
    const SCALED: bool;

    fn sixteens(bytes: &[u8]) -> &[Self::Sixteen];
    fn cells(bytes: &[u8]) -> &[Self];
    fn sixteen<L: Lanes>(l: L, from: &Self::Sixteen) -> L::Floats;
    /// Sixteen elements of a value.
    fn lanes<L: Lanes>(l: L, from: &[Self; LANES]) -> L::Floats;
    fn one(self) -> f32;
}

impl Cell for F16 {
    type Sixteen = Halves;
    const SCALED: bool = false;

    #[inline(always)]
    fn sixteens(bytes: &[u8]) -> &[Halves] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn cells(bytes: &[u8]) -> &[Self] {
        blocks(bytes)
    }

    #[inline(always)]
    fn sixteen<L: Lanes>(l: L, from: &Halves) -> L::Floats {
        l.halves(from)
    }

    #[inline(always)]
    fn lanes<L: Lanes>(l: L, from: &[Self; LANES]) -> L::Floats {
        l.halves(halves(from))
    }

    #[inline(always)]
    fn one(self) -> f32 {
        half(self)
    }
}

impl Cell for u8 {
    type Sixteen = Small;
    const SCALED: bool = true;

    #[inline(always)]
    fn sixteens(bytes: &[u8]) -> &[Small] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn cells(bytes: &[u8]) -> &[Self] {
        bytes
    }

    #[inline(always)]
    fn sixteen<L: Lanes>(l: L, from: &Small) -> L::Floats {
        l.small(from)
    }

    #[inline(always)]
    fn lanes<L: Lanes>(l: L, from: &[Self; LANES]) -> L::Floats {
        l.small(from)
    }

    #[inline(always)]
    fn one(self) -> f32 {
        f32::from(self as i8)
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
