//! The rows of a step as kernels read them: arrays at fixed addresses, so that captured launches serve every step.

use super::attention::{self, Attention, Limits, ManyRows, Run, Tile, TileRows, Tree, View};
use super::elementwise::Rows;
use super::trees::{self, Path, Placed, TREE_ROWS};
use super::{Buffer, CudaError, Device, Mode};

/// Device arrays for up to `most` rows, written by one copy a step.
pub(crate) struct BatchArrays {
    buffer: Buffer,
    most: u32,
}

/// What was written, and the geometry that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Padding included.
    pub(crate) rows: u32,
    /// Rows that pick; their indices are in the array.
    pub(crate) picks: u32,
    pub(crate) few: u32,
    pub(crate) many: u32,
    /// The largest that a sequence with few rows needs.
    pub(crate) tile: TileRows,
    /// Blocks that share one are launched in clusters.
    pub(crate) clusters: bool,
    pub(crate) many_tile: ManyRows,
}

/// What decides how rows are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) slots: u32,
    /// Positions of a page table's row.
    pub(crate) positions: u32,
    /// KV heads of the largest class.
    pub(crate) heads: u32,
    /// Tiles that a captured launch has blocks for; else as many as there are.
    pub(crate) tiles: Option<u32>,
    pub(crate) multiprocessors: u32,
    pub(crate) partial_rows: u32,
    pub(crate) mode: Mode,
}

const INT: usize = size_of::<i32>();
/// Ints of a header: tile count and split, padded to where tiles may begin.
const HEADER: usize = 4;
const TILE: usize = size_of::<Tile>() / INT;
/// Arrays of an int a row: tokens, positions, slots, indices of picking rows, positions where keys are stored.
const ARRAYS: usize = 5;
/// Ints of the masks of trees.
const MASKS: usize = TREE_ROWS as usize * size_of::<u64>() / INT;

impl BatchArrays {
    pub(crate) fn new(device: &Device, most: u32) -> Result<Self, CudaError> {
        // What lies behind the rows begins at multiples of 16 bytes.
        let most = most.next_multiple_of(4);
        let ints = (ARRAYS + 2 * TILE) * most as usize + 2 * HEADER + MASKS;
        Ok(Self { buffer: Buffer::zeros(device, "the rows of a step", ints * INT)?, most })
    }

    /// Writes `rows`, padded to `padded` rows.
    pub(crate) fn write(
        &mut self,
        device: &Device,
        rows: &[Placed],
        padded: u32,
        attention: &Attention,
        cut: Cut,
    ) -> Result<Batch, CudaError> {
        let most = self.most as usize;
        assert!(rows.len() <= padded as usize && padded <= self.most, "a batch of more rows than its arrays");
        let mut ints = vec![0i32; self.tiles() / INT];
        for (i, Placed { row, stored, .. }) in rows.iter().enumerate() {
            ints[i] = row.token.0 as i32;
            ints[most + i] = row.position as i32;
            ints[2 * most + i] = row.slot.0 as i32;
            ints[4 * most + i] = *stored as i32;
        }
        ints[2 * most + rows.len()..2 * most + padded as usize].fill(-1);
        let mut picks = 0;
        for (i, _) in rows.iter().enumerate().filter(|(_, placed)| placed.row.pick) {
            ints[3 * most + picks] = i as i32;
            picks += 1;
        }
        let masks = rows.iter().filter_map(|placed| Some(placed.path?.rows));
        for (i, mask) in masks.enumerate() {
            let at = self.masks() / INT + 2 * i;
            (ints[at], ints[at + 1]) = (mask as i32, (mask >> 32) as i32);
        }
        let Runs { few, many, tallest } = runs(rows, cut.mode);
        let limits =
            Limits { rows: rows.len() as u32, slots: cut.slots, positions: cut.positions, masks: TREE_ROWS };
        let tile = TileRows::holding(tallest, attention.group());
        let mut few = attention::tiles(&few, attention.few_rows(tile), limits)?;
        let many_tile =
            attention.many_tile(many.iter().map(|run| run.rows).sum(), cut.heads, cut.multiprocessors);
        let many = attention::tiles(&many, attention.many_rows(many_tile), limits)?;
        let longest = few.iter().map(|t| (t.position + t.rows) as u32).max().unwrap_or(1);
        let split_for = match cut.mode {
            Mode::Invariant => attention::span_split,
            Mode::Fast => attention::split_for,
        };
        let (count, clusters) =
            (cut.tiles.unwrap_or(few.len() as u32), attention::has_clusters(device, tile));
        let split = split_for(count, cut.heads, longest, clusters, cut.multiprocessors);
        attention::place_partials(&mut few, split.positions, cut.heads, attention.group(), cut.partial_rows);
        let whole = if cut.mode == Mode::Invariant { attention::SPAN } else { attention::WHOLE };
        for (which, tiles, split) in [(0, &few, split.positions), (1, &many, whole)] {
            assert!(tiles.len() <= most, "more tiles than rows");
            let at = self.header(which) / INT;
            (ints[at], ints[at + 1]) = (tiles.len() as i32, split as i32);
        }
        // The tiles for many rows come last and are few: nothing behind them is copied.
        for tile in &few {
            ints.extend(words(tile));
        }
        if !many.is_empty() {
            ints.resize(self.tiles() / INT + TILE * most, 0);
            ints.extend(many.iter().flat_map(words));
        }
        self.buffer.write(device, 0, &ints)?;
        Ok(Batch {
            rows: padded,
            picks: picks as u32,
            few: few.len() as u32,
            many: many.len() as u32,
            tile,
            clusters: split.clusters,
            many_tile,
        })
    }

    pub(crate) fn rows(&self, count: u32) -> Rows {
        let array = |index: usize| self.buffer.at(index * self.most as usize * INT);
        Rows { count, tokens: array(0), positions: array(1), slots: array(2), stored: array(4) }
    }

    /// Other rows pick, behind all queued work; at most as many as were written.
    pub(crate) fn pick(&mut self, device: &Device, rows: &[i32]) -> Result<(), CudaError> {
        assert!(rows.len() <= self.most as usize, "more picks than rows");
        self.buffer.write(device, 3 * self.most as usize * INT, rows)
    }

    /// Indices of the picking rows.
    pub(crate) fn picked(&self) -> u64 {
        self.buffer.at(3 * self.most as usize * INT)
    }

    /// The tiles of sequences with few rows (0) and with many (1), for launches of up to `most` of them.
    pub(crate) fn attention(&self, which: usize, most: u32) -> attention::Tiles<'_> {
        let view = |at| View { buffer: &self.buffer, at };
        let tiles = self.tiles() + which * TILE * self.most as usize * INT;
        attention::Tiles {
            tiles: view(tiles),
            header: view(self.header(which)),
            masks: view(self.masks()),
            most,
        }
    }

    fn header(&self, which: usize) -> usize {
        (ARRAYS * self.most as usize + which * HEADER) * INT
    }

    fn masks(&self) -> usize {
        self.header(2)
    }

    /// Where the tiles begin.
    fn tiles(&self) -> usize {
        self.masks() + MASKS * INT
    }
}

/// Rows as attention takes them.
struct Runs {
    few: Vec<Run>,
    many: Vec<Run>,
    /// Rows of the largest run of few.
    tallest: u32,
}

/// A tree is one run, whose rows see what their masks say. In the invariant mode each of its rows is a run that is
/// computed as a chain is.
fn runs(rows: &[Placed], mode: Mode) -> Runs {
    let mut runs = Runs { few: Vec::new(), many: Vec::new(), tallest: 1 };
    let (mut first_row, mut mask) = (0, 0);
    for rows in trees::runs(rows) {
        let (first, count) = (&rows[0], rows.len() as u32);
        let slot = first.row.slot.0;
        let run = Run { first_row, rows: count, slot, position: first.stored, tree: None };
        match (first.path, mode) {
            (None, _) if rows.len() > trees::MOST_BEFORE => runs.many.push(run),
            (None, _) => {
                runs.tallest = runs.tallest.max(count);
                runs.few.push(run);
            }
            (Some(Path { base, .. }), Mode::Fast) => {
                runs.tallest = runs.tallest.max(count);
                runs.few.push(Run { tree: Some(Tree { mask, base, as_chain: false }), ..run });
            }
            (Some(Path { base, .. }), Mode::Invariant) => {
                runs.few.extend((0..).zip(rows).map(|(i, placed)| Run {
                    first_row: first_row + i,
                    rows: 1,
                    position: placed.row.position,
                    tree: Some(Tree { mask: mask + i, base, as_chain: true }),
                    ..run
                }));
            }
        }
        first_row += count;
        mask += if first.path.is_some() { count } else { 0 };
    }
    runs
}

/// A tile as the kernels read it.
fn words(tile: &Tile) -> [i32; TILE] {
    let Tile { first_row, rows, slot, position, tree, tree_base, partials, path } = *tile;
    [first_row, rows, slot, position, tree, tree_base, partials, path]
}
