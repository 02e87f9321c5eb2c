//! The rows of a step as kernels read them: arrays at fixed addresses, so that captured launches serve every step.

use super::attention::{self, Attention, Limits, ManyRows, Run, Tile, TileRows, View};
use super::elementwise::Rows;
use super::{Buffer, CudaError, Device, Mode};
use crate::check::CheckedRow;

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
    pub(crate) multiprocessors: u32,
    pub(crate) partial_rows: u32,
    pub(crate) mode: Mode,
}

/// A sequence with at most so many rows goes to the kernel for few.
const MOST_FEW_ROWS: usize = 16;
const INT: usize = size_of::<i32>();
/// Ints of a header: tile count and split, padded to where tiles may begin.
const HEADER: usize = 4;
const TILE: usize = size_of::<Tile>() / INT;

impl BatchArrays {
    pub(crate) fn new(device: &Device, most: u32) -> Result<Self, CudaError> {
        let ints = (4 + 2 * TILE) * most as usize + 2 * HEADER;
        Ok(Self { buffer: Buffer::zeros(device, "the rows of a step", ints * INT)?, most })
    }

    /// Writes `rows`, padded to `padded` rows.
    pub(crate) fn write(
        &mut self,
        device: &Device,
        rows: &[CheckedRow],
        padded: u32,
        attention: &Attention,
        cut: Cut,
    ) -> Result<Batch, CudaError> {
        let most = self.most as usize;
        assert!(rows.len() <= padded as usize && padded <= self.most, "a batch of more rows than its arrays");
        let mut ints = vec![0i32; self.tiles() / INT];
        for (i, row) in rows.iter().enumerate() {
            ints[i] = row.token.0 as i32;
            ints[most + i] = row.position as i32;
            ints[2 * most + i] = row.slot.0 as i32;
        }
        ints[2 * most + rows.len()..2 * most + padded as usize].fill(-1);
        let mut picks = 0;
        for (i, _) in rows.iter().enumerate().filter(|(_, row)| row.pick) {
            ints[3 * most + picks] = i as i32;
            picks += 1;
        }
        let (mut few, mut many, mut tallest) = (Vec::new(), Vec::new(), 1);
        let mut first = 0;
        for sequence in rows.chunk_by(|a, b| a.slot == b.slot) {
            let count = sequence.len() as u32;
            let run = Run {
                first_row: first,
                rows: count,
                slot: sequence[0].slot.0,
                position: sequence[0].position,
                tree: None,
            };
            first += count;
            if sequence.len() <= MOST_FEW_ROWS {
                tallest = tallest.max(count);
                few.push(run);
            } else {
                many.push(run);
            }
        }
        let limits = Limits { rows: rows.len() as u32, slots: cut.slots, positions: cut.positions, masks: 0 };
        let tile = TileRows::holding(tallest, attention.group());
        let mut few = attention::tiles(&few, attention.few_rows(tile), limits)?;
        let many_tile =
            attention.many_tile(many.iter().map(|run| run.rows).sum(), cut.heads, cut.multiprocessors);
        let many = attention::tiles(&many, attention.many_rows(many_tile), limits)?;
        let longest = few.iter().map(|t| (t.position + t.rows) as u32).max().unwrap_or(1);
        let split = match cut.mode {
            Mode::Invariant => attention::SPAN,
            Mode::Fast => attention::split_for(few.len() as u32, cut.heads, longest, cut.multiprocessors),
        };
        attention::place_partials(&mut few, split, cut.heads, attention.group(), cut.partial_rows);
        let whole = if cut.mode == Mode::Invariant { attention::SPAN } else { attention::WHOLE };
        for (which, tiles, split) in [(0, &few, split), (1, &many, whole)] {
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
            many_tile,
        })
    }

    pub(crate) fn rows(&self, count: u32) -> Rows {
        let array = |index: usize| self.buffer.at(index * self.most as usize * INT);
        Rows { count, tokens: array(0), positions: array(1), slots: array(2) }
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
            // No trees: no masks are read.
            masks: view(0),
            most,
        }
    }

    fn header(&self, which: usize) -> usize {
        (4 * self.most as usize + which * HEADER) * INT
    }

    /// Where the tiles begin.
    fn tiles(&self) -> usize {
        (4 * self.most as usize + 2 * HEADER) * INT
    }
}

/// A tile as the kernels read it.
fn words(tile: &Tile) -> [i32; TILE] {
    let Tile { first_row, rows, slot, position, tree, tree_base, partials, .. } = *tile;
    [first_row, rows, slot, position, tree, tree_base, partials, 0]
}
