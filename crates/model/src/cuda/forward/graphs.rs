//! Steps that are launched as CUDA graphs: which there are, how they are captured and kept.

use cudarc::driver::{CudaGraph, sys};

use super::super::CudaError;
use super::super::attention::{self, ManyRows, TileRows};
use super::super::batch::Batch;
use super::super::error::Doing;
use super::{Forward, Plan};

/// Which captured launch serves a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    rows: u32,
    tile: TileRows,
    clusters: bool,
}

/// Row counts that have a graph.
pub(crate) const BUCKETS: [u32; 16] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
pub(super) const MOST_GRAPH: u32 = 256;
impl Forward {
    /// One step of each kind that is launched as a graph.
    pub(crate) fn graph_plans(&self) -> Vec<Plan> {
        if !self.use_graphs {
            return Vec::new();
        }
        let group = self.attention.group();
        let plan = |rows, tile, clusters| {
            let many_tile = ManyRows::SixtyFour;
            Plan {
                batch: Batch { rows, picks: 0, few: rows, many: 0, tile, clusters, many_tile },
                graph: true,
            }
        };
        let of_tile = |tile: TileRows| {
            // Rows of which one sequence alone needs the tile.
            let fewest = (1..=MOST_GRAPH).find(|rows| TileRows::holding(*rows, group) == tile);
            BUCKETS.into_iter().filter(move |rows| fewest.is_some_and(|fewest| *rows >= fewest))
        };
        let sizes = TileRows::ALL.into_iter().flat_map(|tile| of_tile(tile).map(move |rows| (rows, tile)));
        let kinds = sizes.flat_map(|(rows, tile)| {
            let blocks = attention::split_blocks(rows, self.sizes.heads, self.device.multiprocessors);
            let clusters = attention::has_clusters(&self.device, tile) && attention::cluster(blocks) > 1;
            [Some(plan(rows, tile, false)), clusters.then(|| plan(rows, tile, true))]
        });
        kinds.flatten().collect()
    }

    /// Whether the graph of a batch has been captured.
    pub(crate) fn has(&self, key: Key) -> bool {
        self.graphs.contains_key(&key)
    }

    /// What is queued from here on becomes a graph; choose algorithms before.
    pub(crate) fn begin(&self) -> Result<(), CudaError> {
        // Relaxed: graphs are made of one rank's launches while another's are still captured.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        self.device.stream.begin_capture(mode).doing("capturing a step")
    }

    /// The graph of what was queued since [`Self::begin`].
    pub(crate) fn end(&self) -> Result<CudaGraph, CudaError> {
        let captured = self.device.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        captured.doing("capturing a step")?.ok_or(CudaError::NotBuilt { what: "a step without kernels" })
    }

    pub(crate) fn keep(&mut self, key: Key, graph: CudaGraph) {
        self.graphs.insert(key, graph);
    }

    pub(crate) fn forget_graphs(&mut self) {
        self.graphs.clear();
    }

    /// Launches the graph of a batch in the small arrays.
    pub(crate) fn launch(&self, key: Key) -> Result<(), CudaError> {
        match self.graphs.get(&key) {
            Some(graph) => graph.launch().doing("launching a step"),
            None => Err(CudaError::NotBuilt { what: "a graph of this size" }),
        }
    }
}

impl Key {
    pub(crate) fn of(batch: Batch) -> Self {
        Self { rows: batch.rows, tile: batch.tile, clusters: batch.clusters }
    }
}

/// The smallest row count with a graph that holds `rows`.
pub(super) fn bucket(rows: u32) -> u32 {
    BUCKETS.into_iter().find(|b| *b >= rows).unwrap_or(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_count_has_a_bucket_that_holds_it() {
        for rows in 1..=MOST_GRAPH {
            assert!((rows..=rows * 3 / 2 + 1).contains(&bucket(rows)), "{rows}");
        }
    }
}
