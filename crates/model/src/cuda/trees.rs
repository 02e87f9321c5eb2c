//! Draft trees: where the keys and values of their rows are stored, and how those that are kept come to their places.
//!
//! Rows that stand at one position cannot all be stored there. Row number i of a slot's tree is stored at position
//! base + i, whatever its depth, and attention is told which of them are in a row's path (`attention`). Where that is beyond
//! the slot's pages, it is lent some that no table has ([`LENT_PAGES`]). The next step copies what is kept from there to
//! where it would be without the tree (`keep`), before anything else.

mod keep;

use engine::ModelError;
use kvcache::{PAGE_POSITIONS, PageId};

pub(crate) use self::keep::{Keeper, Moves};
use crate::cache::{Kept, Tables};
use crate::check::CheckedRow;
use crate::cuda::attention::MOST_TREE_ROWS;

/// Most tree rows of a step: the bits of a mask.
pub(crate) const TREE_ROWS: u32 = MOST_TREE_ROWS;
/// Pages of each class that a step's trees take beyond those of their slots: the first row of each is in one of these.
/// Trees of two rows may take one each.
pub(crate) const LENT_PAGES: u32 = TREE_ROWS / 2;
/// Rows of a slot that may be computed together with its tree: kernels for few rows look at keys from so many positions
/// before a tree on only when the rows are stored.
pub(crate) const MOST_BEFORE: usize = 16;

/// A checked row, and where its keys and values are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) row: CheckedRow,
    /// A position: its own, but for a tree's row.
    pub(crate) stored: u32,
    pub(crate) path: Option<Path>,
}

/// The way to a tree's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// The first position of the tree.
    pub(crate) base: u32,
    /// Bit b: the row that is stored at base + b is this one, or one that it comes after.
    pub(crate) rows: u64,
}

/// Says where the rows of a step are stored.
pub(crate) fn place(rows: &[CheckedRow]) -> Vec<Placed> {
    // Of all tree rows so far, as `Branch::index` counts them.
    let mut paths: Vec<u64> = Vec::new();
    let (mut first, mut is_tree) = (0, false);
    let place = |row: &CheckedRow| {
        // A tree comes behind rows without one.
        let begins = !std::mem::replace(&mut is_tree, row.branch.is_some());
        let Some(branch) = row.branch else { return Placed { row: *row, stored: row.position, path: None } };
        if begins {
            first = branch.index;
        }
        let number = branch.index - first;
        let above = branch.parent.map_or(0, |parent| paths[parent as usize]);
        let path = Path { base: branch.base, rows: above | 1 << number };
        paths.push(path.rows);
        Placed { row: *row, stored: branch.base + number, path: Some(path) }
    };
    rows.iter().map(place).collect()
}

/// Rows of one slot, in a tree or not.
pub(crate) fn runs(rows: &[Placed]) -> impl Iterator<Item = &[Placed]> {
    rows.chunk_by(|a, b| a.row.slot == b.row.slot && a.path.is_some() == b.path.is_some())
}

/// A step in pieces of at most `most` rows. A tree that comes after many rows of its slot begins another one.
pub(crate) fn pieces(rows: &[Placed], most: usize) -> Vec<&[Placed]> {
    let (mut all, mut start) = (Vec::new(), 0);
    for end in 1..=rows.len() {
        let piece = &rows[start..end];
        let late = rows.get(end).is_some_and(|next| {
            let before = piece.iter().rev().take_while(|row| row.row.slot == next.row.slot);
            next.path.is_some() && piece[piece.len() - 1].path.is_none() && before.count() > MOST_BEFORE
        });
        if piece.len() == most.max(1) || late || end == rows.len() {
            all.push(piece);
            start = end;
        }
    }
    all
}

/// The trees of a step, as long as some of their rows may be kept.
#[derive(Default)]
pub(crate) struct Trees(Vec<Tree>);

struct Tree {
    slot: usize,
    base: u32,
    rows: Vec<TreeRow>,
    /// By class: those that hold the rows, from that of the base on.
    pages: Vec<Vec<PageId>>,
}

struct TreeRow {
    /// Index in the step.
    row: u32,
    position: u32,
    path: u64,
}

impl Trees {
    /// Of rows whose tables are in force. `pages`: how many there are of each class; those behind them are lent.
    pub(crate) fn of(rows: &[Placed], tables: &Tables, pages: &[u32]) -> Self {
        let (mut trees, mut lent) = (Vec::new(), 0);
        for run in runs(rows) {
            let Some(Path { base, .. }) = run[0].path else { continue };
            let slot = run[0].row.slot.0 as usize;
            let indices = base / PAGE_POSITIONS..(base + run.len() as u32).div_ceil(PAGE_POSITIONS);
            let of_class = |class: usize| {
                let table = tables.get(slot, class);
                let page = |index: u32| match table.get(index as usize) {
                    Some(Some(page)) => *page,
                    _ => PageId(pages[class] + lent + index - indices.start - 1),
                };
                indices.clone().map(page).collect()
            };
            trees.push(Tree {
                slot,
                base,
                rows: run.iter().map(TreeRow::of).collect(),
                pages: (0..pages.len()).map(of_class).collect(),
            });
            lent += indices.len() as u32 - 1;
        }
        debug_assert!(lent <= LENT_PAGES, "more pages are lent than there are");
        Self(trees)
    }

    /// The pages of a class that are lent: slot, page index and page.
    pub(crate) fn lent(&self, class: usize, pages: u32) -> Vec<(usize, usize, PageId)> {
        let of = |tree: &Tree| {
            let (slot, first) = (tree.slot, (tree.base / PAGE_POSITIONS) as usize);
            let all = tree.pages[class].iter().zip(first..).map(move |(page, index)| (slot, index, *page));
            all.filter(|(.., page)| page.0 >= pages).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }

    /// What is to be copied of each class so that the rows that are kept stand at their own positions.
    pub(crate) fn moves(&self, kept: &[Kept]) -> Result<Vec<(usize, Moves)>, ModelError> {
        let of = |kept: &[Kept]| {
            let Kept { row, from, class, .. } = kept[0];
            let of_base = self.0.iter().filter(|tree| tree.base == from);
            let mut all = of_base.flat_map(|tree| tree.rows.iter().map(move |row| (tree, row)));
            let Some((tree, row)) = all.find(|(_, of)| of.row == row) else {
                return Err(ModelError::OutOfRange { what: "kept row", index: row.into(), bound: 0 });
            };
            let mut moves = Moves::default();
            let stored = (0..TREE_ROWS).filter(|bit| row.path >> bit & 1 == 1).map(|bit| from + bit);
            for (stored, position) in stored.zip(from..=row.position) {
                let first = from / PAGE_POSITIONS;
                let source = tree.pages[class][(stored / PAGE_POSITIONS - first) as usize];
                let target = kept.iter().find(|kept| kept.index == position / PAGE_POSITIONS);
                // No page: a window has moved on.
                if let Some(target) = target {
                    moves.push((source, stored), (target.page, position));
                }
            }
            Ok((class, moves))
        };
        kept.chunk_by(|a, b| (a.row, a.from, a.class) == (b.row, b.from, b.class)).map(of).collect()
    }
}

impl TreeRow {
    fn of(placed: &Placed) -> Self {
        let path = placed.path.map_or(0, |path| path.rows);
        Self { row: placed.row.row, position: placed.row.position, path }
    }
}

#[cfg(test)]
mod tests;
