//! Keys and values of all sequences on the device, in pages, and the page tables that kernels read.

use std::collections::BTreeMap;

use engine::ModelError;
use kvcache::{HeadClass, HeadMap, PageId, pages_for};
use scheduler::TableDelta;

use super::elementwise::{Elementwise, Pool};
use super::fine::{self, Columns};
use super::trees::{Keeper, LENT_PAGES, Moves, Placed, TREE_ROWS, Trees};
use super::{Buffer, Cells, CudaError, Device, KvKept};
use crate::cache::{Changed, Tables};

/// One class: its pages, layer after layer, and the page tables of all slots.
pub(crate) struct ClassKv {
    pub(crate) class: HeadClass,
    /// Those of the tables; behind them lie [`LENT_PAGES`] more.
    pub(crate) pages: u32,
    pub(crate) storage: Buffer,
    pub(crate) table: Buffer,
    pub(crate) layers: Vec<ClassLayer>,
}

/// Where a class lies in a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClassLayer {
    /// Bytes from the start of the storage.
    pub(crate) base: usize,
    pub(crate) heads: u32,
    /// Bytes from the start of [`Kv::heads`]: the KV head of each of them.
    pub(crate) list: usize,
    /// Bytes from one page to the next.
    pub(crate) page: usize,
}

/// Keys and values of a rank.
pub(crate) struct Kv {
    pub(crate) classes: Vec<ClassKv>,
    /// i32 lists of KV heads, by layer and class; of codes, behind each list, the [`Columns`].
    pub(crate) heads: Buffer,
    /// i32 pairs (class, index in it), `[layer][KV head]`.
    places: Buffer,
    kv_heads: usize,
    cells: Cells,
    /// Entries of a slot's page table.
    pub(crate) stride: u32,
    tables: Tables,
    /// Of the last step that had rows.
    trees: Trees,
    /// Entries of the device's tables that are not the host's, by class: slot and page index.
    lent: Vec<Vec<(usize, usize)>>,
    keeper: Keeper,
}

impl Kv {
    /// Room for `pages` of each class. Pages are zeroed: what nobody wrote is finite. `fine`: for pages of codes.
    pub(crate) fn new(
        device: &Device,
        map: &HeadMap,
        pages: &[u32],
        cells: Cells,
        fine: &Columns,
        slots: u32,
        context: u32,
    ) -> Result<Self, CudaError> {
        let (layers, kv_heads) = (map.class_of.len(), map.class_of.first().map_or(0, Vec::len));
        // Attention reads four entries at once. Rows of a tree may be stored beyond the context.
        let stride = pages_for(context + TREE_ROWS).next_multiple_of(4);
        let (mut lists, mut places) = (Vec::<i32>::new(), vec![0i32; layers * kv_heads * 2]);
        let mut classes = Vec::new();
        for (index, (class, &pages)) in map.classes.iter().zip(pages).enumerate() {
            let (mut base, mut parts) = (0, Vec::new());
            for layer in 0..layers {
                let list = lists.len() * size_of::<i32>();
                for (place, head) in map.heads(layer, index).enumerate() {
                    lists.push(head as i32);
                    let at = 2 * (layer * kv_heads + head);
                    (places[at], places[at + 1]) = (index as i32, place as i32);
                }
                if cells.kept == KvKept::Fp8 {
                    lists.extend(fine::ints(fine));
                }
                let heads = map.heads(layer, index).count();
                let page = heads * cells.head();
                parts.push(ClassLayer { base, heads: heads as u32, list, page });
                base += page * (pages + LENT_PAGES) as usize;
            }
            let empty = vec![NO_PAGE; (slots * stride) as usize];
            classes.push(ClassKv {
                class: *class,
                pages,
                storage: Buffer::zeros(device, "the KV cache", base)?,
                table: Buffer::of(device, "page tables", &empty)?,
                layers: parts,
            });
        }
        let sizes = map.classes.iter().copied().zip(pages.iter().copied()).collect();
        let layers: Vec<(u64, &[ClassLayer])> =
            classes.iter().map(|class| (class.storage.at(0), &class.layers[..])).collect();
        let keeper = Keeper::new(device, &layers, cells)?;
        Ok(Self {
            trees: Trees::default(),
            lent: vec![Vec::new(); classes.len()],
            keeper,
            classes,
            heads: Buffer::of(device, "lists of heads", &lists)?,
            places: Buffer::of(device, "places of heads", &places)?,
            kv_heads,
            cells,
            stride,
            tables: Tables::new(slots, sizes, context),
        })
    }

    /// The pools of a layer, for the kernel that writes keys and values.
    pub(crate) fn pools(&self, layer: usize) -> [Pool; 2] {
        let mut pools = [Pool::default(); 2];
        for (pool, class) in pools.iter_mut().zip(&self.classes) {
            let part = class.layers[layer];
            *pool = Pool {
                base: class.storage.at(part.base),
                page: self.elements(part),
                table: class.table.at(0),
                stride: u64::from(self.stride),
            };
        }
        pools
    }

    /// Stored elements from one page of a layer to the next: strides of kernels.
    pub(crate) fn elements(&self, part: ClassLayer) -> u64 {
        (part.page / self.cells.element()) as u64
    }

    /// Address of the places of a layer's heads.
    pub(crate) fn places(&self, layer: usize) -> u64 {
        self.places.at(layer * self.kv_heads * 2 * size_of::<i32>())
    }

    /// What a step's deltas make of the tables; nothing is changed yet.
    pub(crate) fn change(&self, deltas: &[TableDelta]) -> Result<Changed, ModelError> {
        self.tables.change(deltas)
    }

    /// The host's copy of the tables.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// What a change keeps of the trees of the last step, by class; an error says what it never had.
    pub(crate) fn kept(&self, changed: &Changed) -> Result<Vec<(usize, Moves)>, ModelError> {
        self.trees.moves(&changed.kept)
    }

    /// Copies kept rows to their places, behind all queued work.
    pub(crate) fn keep(&mut self, device: &Device, kept: &[(usize, Moves)]) -> Result<(), CudaError> {
        for class in 0..self.classes.len() {
            let of_class = kept.iter().filter(|(of, _)| *of == class);
            let moves: Vec<&Moves> = of_class.map(|(_, moves)| moves).collect();
            self.keeper.keep(device, class, &moves)?;
        }
        Ok(())
    }

    /// Puts a change in force, on the host and behind all queued work on the device, for a step of `rows`. `entries` is a
    /// buffer for them.
    pub(crate) fn apply(
        &mut self,
        device: &Device,
        elementwise: &Elementwise,
        entries: &mut Buffer,
        changed: Changed,
        rows: &[Placed],
    ) -> Result<(), CudaError> {
        let differences = self.tables.differences(&changed);
        self.tables.apply(changed);
        if !rows.is_empty() {
            let pages: Vec<u32> = self.classes.iter().map(|class| class.pages).collect();
            self.trees = Trees::of(rows, &self.tables, &pages);
        }
        let most = entries.bytes() / size_of::<[i32; 4]>();
        for (index, class) in self.classes.iter().enumerate() {
            // What was lent to trees goes back, and what is lent now is written last.
            let mut all: BTreeMap<(usize, usize), Option<PageId>> = BTreeMap::new();
            for (slot, at) in std::mem::take(&mut self.lent[index]) {
                all.insert((slot, at), self.tables.get(slot, index).get(at).copied().flatten());
            }
            let own = differences.iter().filter(|(_, class, ..)| *class == index);
            all.extend(own.map(|(slot, _, at, page)| ((*slot, *at), *page)));
            if !rows.is_empty() {
                for (slot, at, page) in self.trees.lent(index, class.pages) {
                    self.lent[index].push((slot, at));
                    all.insert((slot, at), Some(page));
                }
            }
            let entry = |((slot, at), page): ((usize, usize), Option<PageId>)| {
                [slot as i32, at as i32, page.map_or(NO_PAGE, |p| p.0 as i32), 0]
            };
            let all: Vec<i32> = all.into_iter().flat_map(entry).collect();
            for some in all.chunks(most * 4) {
                entries.write(device, 0, some)?;
                elementwise.write_table(
                    device,
                    &class.table,
                    self.stride,
                    entries.at(0),
                    some.len() as u32 / 4,
                )?;
            }
        }
        Ok(())
    }
}

/// As in kernels/common.cuh.
const NO_PAGE: i32 = -1;

#[cfg(test)]
mod tests {
    use kvcache::{ClassId, PAGE_POSITIONS, PageId};
    use scheduler::{Slot, TableChange};

    use super::*;
    use crate::cuda::Dtype;
    use crate::cuda::fine::FINE;
    use crate::cuda::testing::{self, Random};

    #[test]
    fn tables_on_the_device_are_those_of_the_host() {
        let Some(device) = testing::device() else { return };
        let mut random = Random::new(std::process::id().into());
        let (slots, pages, context) = (5, 900, 300 * PAGE_POSITIONS);
        let mut map = HeadMap::half_windows(1, 2, 16, 64);
        map.classes[1] = HeadClass::Full;
        let cells = Cells::whole(Dtype::Bf16, 64);
        let mut kv = Kv::new(&device, &map, &[pages; 2], cells, &[0; FINE], slots, context).unwrap();
        let elementwise = Elementwise::new(&device, cells).unwrap();
        // Room for few entries: longer changes go in several writes.
        let mut entries = Buffer::zeros(&device, "entries", 300 * size_of::<[i32; 4]>()).unwrap();
        for count in [1, 0, 250, 3, 299, 1] {
            let mut deltas = Vec::new();
            for slot in 0..slots {
                for class in 0..2 {
                    let of = |change| TableDelta { slot: Slot(slot), class: ClassId(class), change };
                    if random.below(3) == 0 {
                        continue;
                    }
                    let kept = random.below(kv.tables.get(slot as usize, class.into()).len() as u32 + 1);
                    deltas.push(of(TableChange::Truncate(kept)));
                    deltas.extend((0..count.min(300 - kept)).map(|_| match random.below(9) {
                        0 => of(TableChange::Hole),
                        _ => of(TableChange::Append(PageId(random.below(pages)))),
                    }));
                }
            }
            let changed = kv.change(&deltas).unwrap();
            kv.apply(&device, &elementwise, &mut entries, changed, &[]).unwrap();
            for (index, class) in kv.classes.iter().enumerate() {
                let found: Vec<i32> = class.table.read(&device, 0, (slots * kv.stride) as usize).unwrap();
                for slot in 0..slots as usize {
                    let mut expected = vec![NO_PAGE; kv.stride as usize];
                    for (to, page) in expected.iter_mut().zip(kv.tables.get(slot, index)) {
                        *to = page.map_or(NO_PAGE, |p| p.0 as i32);
                    }
                    let stride = kv.stride as usize;
                    let found = &found[slot * stride..(slot + 1) * stride];
                    assert_eq!(found, expected, "slot {slot}, class {index}");
                }
            }
        }
    }
}
