//! Shared memory and grids of the attention kernels. Pure.

use super::{BLOCK, PAGE};
use crate::cuda::fine::FINE;
use crate::cuda::{Cells, KvKept, Launch};

/// Query rows (rows times the heads that share a key) of a tile for few rows a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TileRows {
    Sixteen,
    ThirtyTwo,
    SixtyFour,
}

impl TileRows {
    pub(crate) const ALL: [Self; 3] = [Self::Sixteen, Self::ThirtyTwo, Self::SixtyFour];

    /// The smallest that holds `rows` rows of a sequence, else the largest.
    pub(crate) fn holding(rows: u32, group: u32) -> Self {
        let needed = rows.saturating_mul(group);
        *Self::ALL.iter().find(|tile| tile.query_rows() >= needed).unwrap_or(&Self::SixtyFour)
    }

    pub(crate) fn query_rows(self) -> u32 {
        16 << self as u32
    }
}

/// Query rows of a tile for many rows a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ManyRows {
    /// Merges a partial result a split: the only one of the batch-invariant mode. Also the faster one for launches
    /// that cannot fill the GPU with larger tiles.
    SixtyFour,
    /// Runs through the keys whatever the split.
    OneTwentyEight,
}

impl ManyRows {
    pub(super) const ALL: [Self; 2] = [Self::SixtyFour, Self::OneTwentyEight];

    pub(crate) fn query_rows(self) -> u32 {
        64 << self as u32
    }

    /// The faster one for `query_rows` (rows times group) of `heads`: the larger as soon as there are two tiles for
    /// each multiprocessor.
    pub(super) fn fastest(query_rows: u32, heads: u32, multiprocessors: u32) -> Self {
        let tiles = query_rows.div_ceil(128).saturating_mul(heads);
        if tiles < 2 * multiprocessors { Self::SixtyFour } else { Self::OneTwentyEight }
    }
}

/// Bytes of shared memory for few rows: of attention_few.cu (`Few`), or of attention_many.cu with what each row sees.
pub(super) fn few_shared(cells: Cells, tile: TileRows) -> u32 {
    let m = tile.query_rows();
    let rows = m * 16;
    if tile == TileRows::SixtyFour {
        return many_shared(cells, ManyRows::SixtyFour) + rows;
    }
    let stages = 3 * stage(cells);
    // Queries, weights, what a row sees, maxima of four warps, sums of four warps' lanes.
    stages + queries(cells, m) + m * BLOCK * 2 + rows + m * 4 * 4 + m / 16 * 4 * 64 * 4
}

/// Bytes of shared memory of attention_many.cu (`Many`): codes also have a block in the dtype.
pub(super) fn many_shared(cells: Cells, tile: ManyRows) -> u32 {
    let unpacked = match cells.kept {
        KvKept::Dtype => 0,
        KvKept::Fp8 => stage(Cells { kept: KvKept::Dtype, ..cells }),
    };
    2 * stage(cells) + unpacked + queries(cells, tile.query_rows())
}

/// Bytes of query rows; for codes also of the elements that go with second codes.
fn queries(cells: Cells, rows: u32) -> u32 {
    let fine = if cells.kept == KvKept::Fp8 { FINE } else { 0 };
    rows * (cells.head_dim + fine) as u32 * 2
}

/// Bytes of a block of keys and values (`Stage`) of 16 bits or of codes: four pages.
fn stage(cells: Cells) -> u32 {
    BLOCK / PAGE * cells.head() as u32
}

pub(super) fn few_launch(blocks: u32, heads: u32, tiles: u32, shared: u32) -> Launch {
    Launch { grid: [blocks, heads, tiles], threads: 128, shared }
}

pub(super) fn many_launch(heads: u32, tiles: u32, shared: u32) -> Launch {
    Launch { grid: [heads, tiles, 1], threads: 128, shared }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Dtype;

    #[test]
    fn two_blocks_fit_a_multiprocessor_of_hopper() {
        for kept in [KvKept::Dtype, KvKept::Fp8] {
            let cells = Cells { kept, ..Cells::whole(Dtype::Bf16, 128) };
            for tile in TileRows::ALL {
                // 228 KiB, 1 KiB of them a block taken by the system, 128 bytes static.
                assert!(2 * (few_shared(cells, tile) + 1024 + 128) <= 228 * 1024, "{kept:?} {tile:?}");
            }
            for tile in ManyRows::ALL {
                assert!(2 * (many_shared(cells, tile) + 1024) <= 228 * 1024, "{kept:?} {tile:?}");
            }
        }
    }

    #[test]
    fn the_smallest_tile_that_holds_the_rows() {
        assert_eq!(TileRows::holding(1, 4), TileRows::Sixteen);
        assert_eq!(TileRows::holding(5, 4), TileRows::ThirtyTwo);
        assert_eq!(TileRows::holding(16, 4), TileRows::SixtyFour);
        assert_eq!(TileRows::holding(16, 7), TileRows::SixtyFour);
    }

    #[test]
    fn large_tiles_are_for_launches_that_fill_the_gpu() {
        assert_eq!(ManyRows::fastest(4 * 512, 8, 132), ManyRows::SixtyFour);
        assert_eq!(ManyRows::fastest(4 * 2048, 8, 132), ManyRows::OneTwentyEight);
    }
}
