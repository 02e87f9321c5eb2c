//! What a model would see: tables that change only by a step's deltas, and for every position of
//! every page which tokens it was computed from. It refuses what would make a wrong answer.

use std::collections::{BTreeMap, BTreeSet};

use kvcache::{PAGE_POSITIONS, PageId, PrefixRoot};

use super::*;

/// Stands for a root and all tokens up to a position.
type Content = u64;

#[derive(Debug, Default)]
pub(super) struct Mirror {
    roots: BTreeMap<SequenceId, Content>,
    /// By slot and class.
    tables: BTreeMap<(Slot, usize), Vec<Option<PageId>>>,
    /// By class and page; `None` = not written since it was fresh.
    cells: BTreeMap<(usize, PageId), [Option<Content>; PAGE_POSITIONS as usize]>,
    /// By tree row of the last step: what its positions hold, from the first of its tree on.
    branches: BTreeMap<u32, (u32, Vec<Content>)>,
    pub(super) kept: u32,
}

fn mix(content: Content, token: TokenId) -> Content {
    let x = (content ^ (u64::from(token.0) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 31)
}

impl Mirror {
    pub(super) fn open(&mut self, id: SequenceId, root: PrefixRoot) {
        // A root is opaque; its debug text tells two apart.
        let content = format!("{root:?}").bytes().fold(0, |content, byte| mix(content, TokenId(byte.into())));
        self.roots.insert(id, content);
    }

    /// The page table of a sequence, one line a class.
    pub(super) fn show(&self, scheduler: &Scheduler, id: SequenceId) -> String {
        let slot = scheduler.sequences[&id].running.as_ref().unwrap().slot;
        let line = |class| {
            let pages = self.tables.get(&(slot, class)).into_iter().flatten();
            let pages: Vec<String> = pages.map(|p| p.map_or(".".into(), |p| p.0.to_string())).collect();
            pages.join(" ") + "\n"
        };
        (0..scheduler.pools.len()).map(line).collect()
    }

    /// Applies a step's deltas, then writes its rows, then reads what each row sees.
    pub(super) fn execute(&mut self, scheduler: &Scheduler, plan: &Plan) {
        for delta in &plan.step.deltas {
            self.apply(delta);
        }
        if plan.slices.is_empty() {
            // No step: what is to be kept waits for the next one.
            return;
        }
        self.branches.clear();
        for slice in &plan.slices {
            let rows = &plan.step.rows[slice.first_row as usize..(slice.first_row + slice.rows()) as usize];
            let known = &scheduler.tokens(slice.sequence).unwrap()[..slice.position as usize];
            let (rows, tree) = rows.split_at(if slice.tree { slice.known as usize } else { rows.len() });
            let mut contents = vec![self.roots[&slice.sequence]];
            for token in known.iter().copied().chain(rows.iter().map(tokens_of)) {
                contents.push(mix(*contents.last().unwrap(), token));
            }
            let content = |position: u32| contents[position as usize + 1];
            let base = slice.position + slice.known;
            for (index, row) in tree.iter().enumerate() {
                let index = slice.first_row + slice.known + index as u32;
                let Parent::Row(parent) = row.parent else { panic!("a tree row without a parent: {row:?}") };
                assert!(parent < index && parent + 1 >= slice.first_row + slice.known, "{row:?}");
                let mut path = self.branches.get(&parent).map(|(_, path)| path.clone()).unwrap_or_default();
                assert_eq!(row.position, base + path.len() as u32, "{row:?}");
                path.push(mix(path.last().copied().unwrap_or_else(|| content(base - 1)), tokens_of(row)));
                self.branches.insert(index, (base, path));
                // What stands is kept there.
                for class in 0..scheduler.pools.len() {
                    let _ = self.page(slice.slot, class, row.position);
                }
            }
            for class in 0..scheduler.pools.len() {
                for row in rows {
                    assert_eq!(row.slot, slice.slot);
                    let page = self.page(slice.slot, class, row.position);
                    self.writable(scheduler, class, page);
                    let cell = (row.position % PAGE_POSITIONS) as usize;
                    self.cells.get_mut(&(class, page)).unwrap()[cell] = Some(content(row.position));
                }
                for row in rows {
                    for key in (0..=row.position)
                        .filter(|key| scheduler.pools[class].class().sees(row.position, *key))
                    {
                        let page = self.page(slice.slot, class, key);
                        let cell = self.cells[&(class, page)][(key % PAGE_POSITIONS) as usize];
                        assert_eq!(
                            cell,
                            Some(content(key)),
                            "key {key} of {:?}, page {page:?}",
                            slice.sequence
                        );
                    }
                }
            }
        }
    }

    fn apply(&mut self, delta: &TableDelta) {
        let class = usize::from(delta.class.0);
        let table = self.tables.entry((delta.slot, class)).or_default();
        match delta.change {
            TableChange::Append(page) => {
                self.cells.insert((class, page), [None; PAGE_POSITIONS as usize]);
                table.push(Some(page));
            }
            TableChange::Share(page) => {
                assert!(
                    self.cells[&(class, page)].iter().all(Option::is_some),
                    "{page:?} is shared unwritten"
                );
                table.push(Some(page));
            }
            TableChange::Hole => table.push(None),
            TableChange::Keep { row, from } => {
                let (base, path) = &self.branches[&row];
                assert_eq!(*base, from);
                for (at, content) in (from..).zip(path) {
                    let page = table[(at / PAGE_POSITIONS) as usize].expect("kept where there is a page");
                    let cell = (at % PAGE_POSITIONS) as usize;
                    self.cells.get_mut(&(class, page)).unwrap()[cell] = Some(*content);
                    self.kept += 1;
                }
            }
            TableChange::Truncate(from) => {
                assert!((from as usize) < table.len());
                table.truncate(from as usize);
            }
            TableChange::Drop(index) => assert!(table[index as usize].take().is_some()),
            TableChange::Clear => table.clear(),
        }
    }

    fn page(&self, slot: Slot, class: usize, position: u32) -> PageId {
        let entry = self.tables.get(&(slot, class)).and_then(|t| t.get((position / PAGE_POSITIONS) as usize));
        entry
            .copied()
            .flatten()
            .unwrap_or_else(|| panic!("{slot:?} has no page at {position} in class {class}"))
    }

    /// A page that is written is in one table only, and nobody finds it by its hash.
    fn writable(&self, scheduler: &Scheduler, class: usize, page: PageId) {
        assert_eq!(scheduler.pools[class].holders(page), 0, "{page:?} is sealed");
        let in_class = self.tables.iter().filter(|((_, other), _)| *other == class);
        let entries = in_class.flat_map(|(_, table)| table.iter().flatten());
        assert_eq!(entries.filter(|other| **other == page).count(), 1, "{page:?} has two tables");
    }
}

fn tokens_of(row: &Row) -> TokenId {
    let RowToken::Known(token) = row.token else { panic!("no row of these plans waits for a device") };
    token
}

/// No page is lost or doubled, owned pages have one owner, and slots are conserved.
pub(super) fn audit(scheduler: &Scheduler) {
    for (class, pool) in scheduler.pools.iter().enumerate() {
        let tables: Vec<_> = scheduler
            .sequences
            .values()
            .filter_map(|sequence| Some(&sequence.running.as_ref()?.tables[class]))
            .collect();
        let owned: Vec<PageId> = tables.iter().flat_map(|table| table.owned()).collect();
        let mut shared: BTreeMap<PageId, u32> = BTreeMap::new();
        for page in tables.iter().flat_map(|table| table.shared()) {
            *shared.entry(page).or_default() += 1;
        }
        let distinct: BTreeSet<PageId> = owned.iter().chain(shared.keys()).copied().collect();
        assert_eq!(distinct.len(), owned.len() + shared.len(), "an owned page has one owner");
        for (page, holders) in &shared {
            assert_eq!(pool.holders(*page), *holders);
        }
        assert_eq!(
            pool.available() as usize + distinct.len(),
            pool.capacity() as usize,
            "pages are conserved"
        );
    }
    let slots: BTreeSet<Slot> =
        scheduler.sequences.values().filter_map(|s| Some(s.running.as_ref()?.slot)).collect();
    assert_eq!(slots.len(), scheduler.running.len());
    assert_eq!(slots.len() + scheduler.free_slots.len(), scheduler.config.slots as usize);
    assert_eq!(scheduler.running.len() + scheduler.waiting.len(), scheduler.sequences.len());
}
