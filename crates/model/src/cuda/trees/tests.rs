use kvcache::{ClassId, HeadClass};
use request::TokenId;
use scheduler::{Slot, TableChange, TableDelta};

use super::*;
use crate::check::Branch;
use crate::cuda::kv::ClassLayer;
use crate::cuda::testing::{self, Random};
use crate::cuda::{Buffer, Cells, Device, Dtype, KvKept};

/// Rows of a step: for each slot its first position, rows before its tree, and the parents of the tree's rows.
fn step(slots: &[(u32, u32, u32, &[Option<u32>])]) -> Vec<CheckedRow> {
    let (mut rows, mut index) = (Vec::<CheckedRow>::new(), 0);
    for (slot, first, before, parents) in slots {
        let base = first + before;
        let row = |rows: &[CheckedRow], position, branch| CheckedRow {
            row: rows.len() as u32,
            slot: Slot(*slot),
            token: TokenId(0),
            position,
            pick: false,
            branch,
        };
        for position in *first..base {
            rows.push(row(&rows, position, None));
        }
        let tree = index;
        for parent in *parents {
            let parent = parent.map(|parent| tree + parent);
            let above = parent
                .and_then(|parent| rows.iter().find(|row| row.branch.is_some_and(|b| b.index == parent)));
            let position = above.map_or(base, |above| above.position + 1);
            rows.push(row(&rows, position, Some(Branch { index, parent, base })));
            index += 1;
        }
    }
    rows
}

/// A tree of `rows` rows, at most 16 deep.
fn parents(random: &mut Random, rows: u32) -> Vec<Option<u32>> {
    let mut depths: Vec<u32> = Vec::new();
    (0..rows)
        .map(|row| {
            // Mostly deep.
            let near = row.checked_sub(1 + random.below(2));
            let parent = near.filter(|parent| depths[*parent as usize] < 16 && random.below(6) > 0);
            depths.push(parent.map_or(1, |parent| depths[parent as usize] + 1));
            parent
        })
        .collect()
}

#[test]
fn rows_of_a_tree_are_stored_in_a_row() {
    let tree = [None, Some(0), None, Some(1), Some(2)];
    let rows = place(&step(&[(4, 9, 2, &tree), (1, 30, 1, &[None, Some(0)]), (2, 5, 1, &[])]));
    let stored: Vec<u32> = rows.iter().map(|row| row.stored).collect();
    assert_eq!(stored, [9, 10, 11, 12, 13, 14, 15, 30, 31, 32, 5]);
    let paths: Vec<_> = rows.iter().map(|row| row.path.map(|path| (path.base, path.rows))).collect();
    let first = [0b1, 0b11, 0b100, 0b1011, 0b10100].map(|rows| Some((11, rows)));
    let second = [0b1, 0b11].map(|rows| Some((31, rows)));
    assert_eq!(paths, [&[None; 2][..], &first, &[None], &second, &[None]].concat());
    let lengths: Vec<usize> = runs(&rows).map(<[Placed]>::len).collect();
    assert_eq!(lengths, [2, 5, 1, 2, 1]);
}

#[test]
fn a_tree_behind_many_rows_begins_another_piece() {
    let lengths = |rows: &[CheckedRow], most| -> Vec<usize> {
        pieces(&place(rows), most).into_iter().map(<[Placed]>::len).collect()
    };
    let tree = [None, Some(0), None];
    let short = step(&[(0, 0, 16, &tree), (1, 0, 16, &tree)]);
    assert_eq!(lengths(&short, 100), [38]);
    let long = step(&[(0, 0, 9, &[]), (1, 0, 17, &tree), (2, 3, 40, &[]), (3, 0, 1, &tree)]);
    assert_eq!(lengths(&long, 100), [26, 47]);
    assert_eq!(lengths(&long, 20), [20, 20, 20, 13]);
    assert_eq!(lengths(&long, 1), vec![1; 73]);
    assert!(lengths(&[], 5).is_empty());
}

/// A pool of pages as a map, written and read as the kernels do: what is kept is where a chain's would be.
#[test]
fn what_is_kept_is_moved_to_where_a_chain_has_it() {
    let mut random = Random::new(7);
    let (pages, context) = (40, 400);
    for round in 0..300 {
        let classes = vec![(HeadClass::Full, pages), (HeadClass::Window { sink: 16, recent: 32 }, pages)];
        let mut tables = Tables::new(3, classes, context);
        let mut trees = Vec::new();
        let mut deltas = Vec::new();
        for slot in 0..3 {
            let rows = [1, 2, 2 + random.below(18)][random.below(3) as usize];
            let (first, before) = (random.below(90), 1 + random.below(3));
            let parents = parents(&mut random, rows);
            let deepest =
                place(&step(&[(slot, first, before, &parents)])).iter().map(|p| p.row.position).max();
            for class in 0..2u32 {
                // Pages for the deepest row only, in an order of the class's own.
                deltas.extend((0..=deepest.unwrap() / PAGE_POSITIONS).map(|index| {
                    let page = PageId((slot * 12 + index) * (1 + 2 * class) % pages);
                    TableDelta {
                        slot: Slot(slot),
                        class: ClassId(class as u8),
                        change: TableChange::Append(page),
                    }
                }));
            }
            trees.push((slot, first, before, parents));
        }
        let changed = tables.change(&deltas).unwrap();
        tables.apply(changed);
        let borrowed: Vec<_> = trees.iter().map(|(s, f, b, parents)| (*s, *f, *b, &parents[..])).collect();
        let rows = place(&step(&borrowed));
        let all = Trees::of(&rows, &tables, &[pages; 2]);
        for class in 0..2usize {
            // The device's tables: the host's and what is lent.
            let lent = all.lent(class, pages);
            let found: std::collections::BTreeSet<u32> = lent.iter().map(|(.., page)| page.0).collect();
            assert_eq!(found.len(), lent.len(), "a page is lent twice");
            assert!(found.iter().all(|page| (pages..pages + LENT_PAGES).contains(page)));
            let page = |slot: u32, index: u32| {
                let own = tables.get(slot as usize, class).get(index as usize).copied().flatten();
                let is_lent =
                    |(s, at, _): &&(usize, usize, PageId)| (*s, *at) == (slot as usize, index as usize);
                let lent = lent.iter().find(is_lent).map(|(.., page)| *page);
                assert!(own.is_none() || lent.is_none(), "a page is lent where one is");
                own.or(lent).expect("a row that is stored has a page")
            };
            let place_of = |slot: u32, position: u32| {
                page(slot, position / PAGE_POSITIONS).0 * PAGE_POSITIONS + position % PAGE_POSITIONS
            };
            let mut memory = std::collections::BTreeMap::new();
            for placed in &rows {
                let before = memory.insert(place_of(placed.row.slot.0, placed.stored), placed.row.row);
                assert_eq!(before, None, "two rows in one place");
            }
            // Some row of every tree is kept.
            let (mut keeps, mut kept_rows) = (Vec::new(), Vec::new());
            for slot in 0..3 {
                let of_slot: Vec<&Placed> =
                    rows.iter().filter(|p| p.row.slot.0 == slot && p.path.is_some()).collect();
                let leaf = of_slot[random.below(of_slot.len() as u32) as usize];
                let from = leaf.path.unwrap().base;
                keeps.push(TableDelta {
                    slot: Slot(slot),
                    class: ClassId(class as u8),
                    change: TableChange::Keep { row: leaf.row.row, from },
                });
                kept_rows.push(leaf);
            }
            let changed = tables.change(&keeps).unwrap();
            for (of_class, moves) in all.moves(&changed.kept).unwrap() {
                assert_eq!(of_class, class);
                let pairs = moves.pairs();
                assert!(pairs.len() <= crate::check::DEEPEST as usize);
                let read: Vec<u32> = pairs.iter().map(|(from, _)| memory[from]).collect();
                for ((_, to), row) in pairs.iter().zip(read) {
                    memory.insert(*to, row);
                }
            }
            for leaf in kept_rows {
                let Path { base, rows: mask } = leaf.path.unwrap();
                let slot = leaf.row.slot.0;
                let path: Vec<u32> = rows
                    .iter()
                    .filter(|p| p.row.slot.0 == slot && p.path.is_some())
                    .filter(|p| mask >> (p.stored - base) & 1 == 1)
                    .map(|p| p.row.row)
                    .collect();
                let found: Vec<u32> =
                    (base..=leaf.row.position).map(|position| memory[&place_of(slot, position)]).collect();
                assert_eq!(found, path, "round {round}, class {class}, slot {slot}");
            }
        }
        // What was never a row of a tree.
        for (row, from) in [(0, rows[0].stored + 1), (10_000, 5)] {
            let kept = Kept { row, from, class: 0, index: 0, page: PageId(0) };
            assert!(all.moves(&[kept]).is_err());
        }
        assert!(Trees::default().moves(&[]).unwrap().is_empty());
    }
}

/// Page, and place in it.
type Place = (u32, u32);

#[test]
fn the_kernel_moves_what_it_is_told() {
    let Some(device) = testing::device() else { return };
    let mut random = Random::new(std::process::id().into());
    let whole = |dtype, head_dim| Cells::whole(dtype, head_dim);
    let codes = |head_dim| Cells { kept: KvKept::Fp8, ..whole(Dtype::Bf16, head_dim) };
    for cells in [
        whole(Dtype::Bf16, 64),
        whole(Dtype::Bf16, 128),
        whole(Dtype::F32, 64),
        whole(Dtype::F32, 128),
        codes(64),
        codes(128),
    ] {
        let (pages, layers) = (9usize, [2usize, 0, 3]);
        let head = cells.head();
        let bytes: usize = layers.iter().map(|heads| heads * head * pages).sum();
        let memory: Vec<u8> = (0..bytes).map(|_| random.bits() as u8).collect();
        let pool = Buffer::of(&device, "a pool", &memory).unwrap();
        let mut base = 0;
        let list = layers.map(|heads| {
            let of = ClassLayer { base, heads: heads as u32, list: 0, page: heads * head };
            base += heads * head * pages;
            of
        });
        let mut keeper = Keeper::new(&device, &[(pool.at(0), &list)], cells).unwrap();
        // Two trees in pages of their own; rows go where others come from.
        let paths: [&[(Place, Place)]; 2] = [
            &[((0, 3), (0, 2)), ((0, 5), (0, 3)), ((4, 0), (0, 4)), ((4, 15), (0, 5))],
            &[((7, 1), (6, 15)), ((7, 2), (7, 0)), ((7, 9), (7, 1))],
        ];
        let mut expected = memory.clone();
        let mut moves = Vec::new();
        for path in paths {
            let mut of = Moves::default();
            for ((from_page, from), (to_page, to)) in path {
                of.push((PageId(*from_page), *from), (PageId(*to_page), *to));
                for ClassLayer { base, heads, page, .. } in list {
                    for (nth, (start, row)) in
                        (0..heads as usize).flat_map(|h| cells.parts().into_iter().map(move |part| (h, part)))
                    {
                        let at = |p: u32, place: u32| {
                            base + p as usize * page + nth * head + start + place as usize * row
                        };
                        let (from, to) = (at(*from_page, *from), at(*to_page, *to));
                        expected[to..to + row].copy_from_slice(&memory[from..from + row]);
                    }
                }
            }
            of.push((PageId(3), 7), (PageId(3), 7));
            moves.push(of);
        }
        moves.push(Moves::default());
        keeper.keep(&device, 0, &moves.iter().collect::<Vec<_>>()).unwrap();
        assert!(read(&device, &pool) == expected, "{cells:?}");
        keeper.keep(&device, 0, &[]).unwrap();
        assert!(read(&device, &pool) == expected);
    }
}

fn read(device: &Device, pool: &Buffer) -> Vec<u8> {
    pool.read(device, 0, pool.bytes()).unwrap()
}
