//! How the rows of a step are cut into tiles, and the positions into splits. Pure.

use super::super::buffer::Plain;
use super::{BLOCK, SPAN, Window, bad};
use crate::cuda::CudaError;

/// Consecutive rows of one sequence, as the kernels read it (`Tile` in kernels/attention.cuh).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Tile {
    pub(crate) first_row: i32,
    pub(crate) rows: i32,
    pub(crate) slot: i32,
    /// Where the first row's key is stored; the others follow.
    pub(crate) position: i32,
    /// Index of the first row's mask, or -1 for a chain.
    pub(crate) tree: i32,
    /// Position of the sequence's first tree row; of a chain that of its first row.
    pub(crate) tree_base: i32,
    /// First partial row of the workspace, or -1: one block walks all splits.
    pub(crate) partials: i32,
    /// Index of the mask of its one row, which stands at `position` ([`Tree::as_chain`]); or -1.
    pub(crate) path: i32,
}

impl Plain for Tile {}

/// Rows `first_row..first_row + rows` of a launch: one sequence, keys at consecutive positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    /// Row of the page table.
    pub(crate) slot: u32,
    pub(crate) position: u32,
    pub(crate) tree: Option<Tree>,
}

/// A run of tree rows. A row sees all keys before `base`, and the key at `base + b` if bit b of its mask is set: its
/// ancestors, which come before it, and itself. It stands at position `base` + its ancestors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Index of the first row's mask.
    pub(crate) mask: u32,
    /// Position of the sequence's first tree row; at most 64 rows.
    pub(crate) base: u32,
    /// The run is one row, and its position is its own. Keys from `base` on are read from where the rows of its mask are,
    /// in their order: it is computed as the last row of a chain, bit for bit. In the batch-invariant mode only.
    pub(crate) as_chain: bool,
}

/// What the buffers of a launch hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) rows: u32,
    pub(crate) slots: u32,
    /// Positions of a row of the page table.
    pub(crate) positions: u32,
    pub(crate) masks: u32,
}

/// Tree rows of a sequence: the bits of a mask.
pub(crate) const MOST_TREE_ROWS: u32 = 64;

/// Cuts runs into tiles of at most `rows_per_tile` rows, those that see most keys last. An error says which run would
/// read or write beyond the buffers.
pub(crate) fn tiles(runs: &[Run], rows_per_tile: u32, limits: Limits) -> Result<Vec<Tile>, CudaError> {
    let mut tiles = Vec::new();
    if rows_per_tile == 0 {
        return bad("a tile holds no row: more query heads share a key than the kernel has rows");
    }
    for run in runs {
        check(run, limits)?;
        for start in (0..run.rows).step_by(rows_per_tile as usize) {
            let signed = |x: u32| x as i32;
            let mask = |as_chain| match run.tree {
                Some(tree) if tree.as_chain == as_chain => signed(tree.mask + start),
                _ => -1,
            };
            tiles.push(Tile {
                first_row: signed(run.first_row + start),
                rows: signed(rows_per_tile.min(run.rows - start)),
                slot: signed(run.slot),
                position: signed(run.position + start),
                tree: mask(false),
                tree_base: signed(run.tree.map_or(run.position, |tree| tree.base)),
                partials: -1,
                path: mask(true),
            });
        }
    }
    tiles.sort_by_key(|tile| tile.position);
    Ok(tiles)
}

fn check(run: &Run, limits: Limits) -> Result<(), CudaError> {
    let within = |first: u32, rows: u32, limit: u32| {
        first.checked_add(rows).is_some_and(|end| end <= limit && end <= i32::MAX as u32)
    };
    if run.rows == 0 || !within(run.first_row, run.rows, limits.rows) {
        return bad(format!("{run:?} is not within {} rows", limits.rows));
    }
    if run.slot >= limits.slots || !within(run.position, run.rows, limits.positions) {
        return bad(format!(
            "{run:?}: the table has {} slots of {} positions",
            limits.slots, limits.positions
        ));
    }
    let Some(tree) = run.tree else { return Ok(()) };
    if !within(tree.mask, run.rows, limits.masks) {
        return bad(format!("{run:?}: there are {} masks", limits.masks));
    }
    if tree.base > run.position || run.position + run.rows - tree.base > MOST_TREE_ROWS {
        return bad(format!("{run:?}: a tree has at most {MOST_TREE_ROWS} rows from its base on"));
    }
    if tree.as_chain && (run.rows != 1 || !within(tree.base, MOST_TREE_ROWS, limits.positions)) {
        return bad(format!("{run:?}: one row of a tree whose rows are all in the table"));
    }
    Ok(())
}

/// Gives tiles their places in a workspace of `partial_rows`. Those that need none, or for which none is left, are
/// walked by one block each, with the same result. `heads`: of the largest class; the places suit every class.
pub(crate) fn place_partials(tiles: &mut [Tile], split: u32, heads: u32, group: u32, partial_rows: u32) {
    let mut next = 0_u64;
    // The longest first: they gain most.
    for tile in tiles.iter_mut().rev() {
        let splits = active_splits(tile, Window::FULL, split);
        let rows = u64::from(splits) * u64::from(heads) * u64::from(group) * tile.rows as u64;
        let fits = splits > 1 && next + rows <= u64::from(partial_rows.min(i32::MAX as u32));
        tile.partials = if fits { next as i32 } else { -1 };
        next += if fits { rows } else { 0 };
    }
}

/// Splits of `split` positions that hold a block of keys some row of the tile sees: the sum that `Walk` in
/// kernels/attention.cuh computes.
pub(crate) fn active_splits(tile: &Tile, window: Window, split: u32) -> u32 {
    let per = i64::from(split / BLOCK);
    let keys = i64::from(tile.position) + i64::from(tile.rows);
    let first = if tile.tree < 0 { i64::from(tile.position) } else { i64::from(tile.tree_base) - 1 };
    let block = i64::from(BLOCK);
    let end = (keys + block - 1) / block;
    let recent = (first - i64::from(window.recent) + 1).max(0) / block;
    let sinks = ((i64::from(window.sink).min(keys) + block - 1) / block).min(end);
    let before = (sinks + per - 1) / per;
    let after = (recent / per).max(before);
    (before + (end + per - 1) / per - after) as u32
}

/// How the keys of a launch's tiles are divided among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// A multiple of [`BLOCK`].
    pub(crate) positions: u32,
    /// The blocks of a tile are launched in clusters, which merge their partial results: worth it where one has them all.
    /// Clusters fill the multiprocessors less evenly.
    pub(crate) clusters: bool,
}

/// The split of the fast mode, where `tiles` tiles of up to `longest` keys are computed at once: about two blocks a
/// multiprocessor. Where there are `clusters`, contexts that are not long get no more splits than one merges; others no
/// shorter ones than pay for merging through memory (measured: at 2048 keys 128 are 12 % faster than 64).
pub(crate) fn split_for(tiles: u32, heads: u32, longest: u32, clusters: bool, multiprocessors: u32) -> Split {
    const LEAST: u32 = 2 * BLOCK;
    // What a block of a cluster takes in about the time of a merge through memory.
    const MOST: u32 = 4 * BLOCK;
    let splits = (2 * multiprocessors / (tiles * heads).max(1)).max(1);
    let together = longest.div_ceil(cluster(splits)).max(1).next_multiple_of(BLOCK);
    if clusters && together <= MOST {
        return Split { positions: together, clusters: cluster(splits) > 1 };
    }
    Split { positions: longest.div_ceil(splits).max(LEAST).next_multiple_of(BLOCK), clusters: false }
}

/// The split of the batch-invariant mode, for launches as those of [`split_for`].
pub(crate) fn span_split(
    tiles: u32,
    heads: u32,
    longest: u32,
    clusters: bool,
    multiprocessors: u32,
) -> Split {
    let merged = cluster(split_blocks(tiles, heads, multiprocessors));
    Split { positions: SPAN, clusters: clusters && merged > 1 && longest.div_ceil(SPAN) <= merged }
}

/// Blocks that share a tile's splits, for launches of up to `tiles` tiles: fixed in a graph, while the contexts grow.
/// As many as are computed at once: two a multiprocessor.
pub(crate) fn split_blocks(tiles: u32, heads: u32, multiprocessors: u32) -> u32 {
    (2 * multiprocessors / (tiles * heads).max(1)).clamp(1, 64)
}

/// How many of the blocks that share a tile merge their partial results without a way through memory
/// (attention_merge.cuh): the largest cluster that `blocks` fill.
pub(crate) fn cluster(blocks: u32) -> u32 {
    const MOST: u32 = 8;
    1 << blocks.clamp(1, MOST).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { rows: 100, slots: 4, positions: 1024, masks: 64 };

    fn run(first_row: u32, rows: u32, position: u32) -> Run {
        Run { first_row, rows, slot: 1, position, tree: None }
    }

    #[test]
    fn every_row_is_in_one_tile_at_its_position() {
        let runs = [run(0, 1, 700), run(1, 37, 5), run(38, 16, 100)];
        let mut seen = Vec::new();
        for tile in tiles(&runs, 4, LIMITS).unwrap() {
            assert!((1..=4).contains(&tile.rows));
            seen.extend((0..tile.rows).map(|r| (tile.first_row + r, tile.position + r)));
        }
        seen.sort_unstable();
        let each = |r: &Run| {
            let (first, position) = (r.first_row as i32, r.position as i32);
            (0..r.rows as i32).map(move |i| (first + i, position + i))
        };
        assert_eq!(seen, runs.iter().flat_map(each).collect::<Vec<_>>());
    }

    #[test]
    fn the_tiles_that_see_most_come_last() {
        let cut = tiles(&[run(0, 1, 700), run(1, 37, 5)], 16, LIMITS).unwrap();
        assert!(cut.is_sorted_by_key(|tile| tile.position));
    }

    #[test]
    fn tiles_of_a_tree_follow_its_masks() {
        let tree = Some(Tree { mask: 3, base: 50, as_chain: false });
        let cut = tiles(&[Run { tree, ..run(0, 10, 50) }], 4, LIMITS).unwrap();
        let masks: Vec<_> = cut.iter().map(|tile| (tile.tree, tile.tree_base, tile.position)).collect();
        assert_eq!(masks, [(3, 50, 50), (7, 50, 54), (11, 50, 58)]);
        // One row at its own position.
        let tree = Some(Tree { mask: 7, base: 50, as_chain: true });
        let cut = tiles(&[Run { tree, ..run(0, 1, 52) }], 4, LIMITS).unwrap()[0];
        assert_eq!((cut.tree, cut.path, cut.tree_base, cut.position), (-1, 7, 50, 52));
        assert!(tiles(&[Run { tree, ..run(0, 2, 52) }], 4, LIMITS).is_err());
    }

    #[test]
    fn what_lies_beyond_the_buffers_is_refused() {
        let tree = |mask, base| Some(Tree { mask, base, as_chain: false });
        for bad in [
            run(100, 1, 0),
            run(0, 0, 0),
            run(0, 101, 0),
            run(u32::MAX, 2, 0),
            run(0, 1, 1024),
            Run { slot: 4, ..run(0, 1, 0) },
            Run { tree: tree(64, 0), ..run(0, 1, 0) },
            Run { tree: tree(0, 10), ..run(0, 1, 9) },
            Run { tree: tree(0, 0), ..run(0, 2, 63) },
            Run { tree: Some(Tree { mask: 0, base: 1000, as_chain: true }), ..run(0, 1, 1000) },
        ] {
            assert!(tiles(&[bad], 4, LIMITS).is_err(), "{bad:?}");
        }
        assert!(tiles(&[run(0, 1, 0)], 0, LIMITS).is_err());
    }

    #[test]
    fn splits_are_counted_by_what_is_seen() {
        let tile = |rows, position| Tile { rows, position, tree: -1, path: -1, ..Tile::default() };
        assert_eq!(active_splits(&tile(1, 0), Window::FULL, 256), 1);
        assert_eq!(active_splits(&tile(1, 255), Window::FULL, 256), 1);
        assert_eq!(active_splits(&tile(2, 255), Window::FULL, 256), 2);
        assert_eq!(active_splits(&tile(1, 32_767), Window::FULL, 256), 128);
        let window = Window { sink: 64, recent: 512 };
        // Positions 0..64 and 32256..32768.
        assert_eq!(active_splits(&tile(1, 32_767), window, 256), 3);
        assert_eq!(active_splits(&tile(1, 32_767), window, 64), 9);
        assert_eq!(active_splits(&tile(1, 300), window, 256), 2);
    }

    #[test]
    fn partials_do_not_overlap_and_stay_inside() {
        let mut cut = tiles(&[run(0, 1, 700), run(1, 37, 5), run(38, 16, 500)], 4, LIMITS).unwrap();
        for room in [0, 100, 1000, 100_000] {
            place_partials(&mut cut, 64, 8, 4, room);
            let mut places: Vec<_> = cut.iter().filter(|t| t.partials >= 0).collect();
            places.sort_by_key(|tile| tile.partials);
            let mut end = 0;
            for tile in places {
                assert!(tile.partials >= end);
                end = tile.partials + active_splits(tile, Window::FULL, 64) as i32 * 8 * 4 * tile.rows;
            }
            assert!(end as u32 <= room);
        }
        let needed = cut.iter().filter(|t| active_splits(t, Window::FULL, 64) > 1);
        assert!(needed.into_iter().all(|t| t.partials >= 0), "with enough room all have a place");
    }

    #[test]
    fn splits_fill_the_multiprocessors() {
        let split = |tiles, longest, clusters| {
            let split = split_for(tiles, 8, longest, clusters, 132);
            (split.positions, split.clusters)
        };
        assert_eq!(split(1, 512, true), (64, true));
        assert_eq!(split(1, 512, false), (128, false));
        assert_eq!(split(1, 1500, true), (192, true));
        assert_eq!(split(8, 512, true), (128, true));
        assert_eq!(split(1, 2500, true), (128, false));
        assert_eq!(split(1, 32_768, true), (1024, false));
        assert_eq!(split(128, 500, true), (512, false));
        assert_eq!(split(0, 0, true), (64, true));
        let span = |tiles, longest, clusters| span_split(tiles, 8, longest, clusters, 132).clusters;
        assert!(span(1, 2048, true) && !span(1, 2049, true) && !span(1, 2048, false));
        assert!(span(8, 1024, true) && !span(8, 1025, true) && !span(128, 100, true));
        assert_eq!(split_blocks(1, 8, 132), 33);
        assert_eq!(split_blocks(128, 8, 132), 1);
    }

    #[test]
    fn clusters_are_powers_of_two() {
        assert_eq!([1, 2, 3, 4, 7, 8, 33, 64].map(cluster), [1, 2, 2, 4, 4, 8, 8, 8]);
    }
}
