//! Shared memory and grids of the attention kernels. Pure.

use super::BLOCK;
use crate::cuda::{Dtype, Launch, Mode};

/// Query rows (rows times the heads that share a key) of a tile for few rows a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TileRows {
    Sixteen,
    ThirtyTwo,
    SixtyFour,
}

impl TileRows {
    pub(super) const ALL: [Self; 3] = [Self::Sixteen, Self::ThirtyTwo, Self::SixtyFour];

    /// The smallest that holds `rows` rows of a sequence, else the largest.
    pub(crate) fn holding(rows: u32, group: u32) -> Self {
        let needed = rows.saturating_mul(group);
        *Self::ALL.iter().find(|tile| tile.query_rows() >= needed).unwrap_or(&Self::SixtyFour)
    }

    pub(crate) fn query_rows(self) -> u32 {
        16 << self as u32
    }
}

/// Query rows of a tile for many rows a sequence: with one partial result a split (batch-invariant), or without.
pub(super) fn many_rows(dtype: Dtype, mode: Mode) -> u32 {
    if dtype == Dtype::F32 || mode == Mode::Invariant { 64 } else { 128 }
}

/// Bytes of shared memory of attention_few.cu (`Few`).
pub(super) fn few_shared(head_dim: u32, tile: TileRows) -> u32 {
    let m = tile.query_rows();
    let stages = if tile == TileRows::SixtyFour { 2 } else { 3 };
    let stage = 2 * BLOCK * head_dim * 2;
    // Queries, weights, what a row sees, maxima of four warps, sums of four warps' lanes.
    stages * stage + m * head_dim * 2 + m * BLOCK * 2 + m * 16 + m * 4 * 4 + m / 16 * 4 * 64 * 4
}

/// Bytes of shared memory of attention_many.cu (`Many`).
pub(super) fn many_shared(head_dim: u32, m: u32) -> u32 {
    2 * 2 * BLOCK * head_dim * 2 + m * head_dim * 2
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

    #[test]
    fn two_blocks_fit_a_multiprocessor_of_hopper() {
        for tile in TileRows::ALL {
            // 228 KiB, 1 KiB of them a block taken by the system, 128 bytes static.
            assert!(2 * (few_shared(128, tile) + 1024 + 128) <= 228 * 1024, "{tile:?}");
        }
        assert!(2 * (many_shared(128, 128) + 1024) <= 228 * 1024);
    }

    #[test]
    fn the_smallest_tile_that_holds_the_rows() {
        assert_eq!(TileRows::holding(1, 4), TileRows::Sixteen);
        assert_eq!(TileRows::holding(5, 4), TileRows::ThirtyTwo);
        assert_eq!(TileRows::holding(16, 4), TileRows::SixtyFour);
        assert_eq!(TileRows::holding(16, 7), TileRows::SixtyFour);
    }
}
