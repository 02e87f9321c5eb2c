//! Products of decode batches that are too large for `streamed`, with matrices of many outputs: gate and up with SiLU inside,
//! and the output layer. See `kernels/wide.cu`.

use super::linear::{Dense, Mode};
use super::persistent::Persist;
use super::streamed::{Activations, Streamed};
use super::tensor_map::TensorMap;
use super::{Arg, CudaError, Device, Dtype, Kernel, Launch, Module};

/// The kernels of one model.
pub(crate) struct Wide {
    gate: Kernel,
    store_float: Kernel,
    _module: Module,
    /// Clusters that run at once.
    clusters: u32,
    persist: Persist,
}

/// What a product is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WideEnd {
    /// out (BF16) = silu(first half of y) * second half.
    Gate,
    /// out (f32) = y.
    StoreFloat,
}

// As in the kernels.
const CLUSTER: u32 = 4;
/// Rows of weights of a block.
const TILE: u32 = 256;
const ROWS: u32 = 128;
const THREADS: u32 = 288;
/// Leaves room for a block of the kernel in front, during which weights are copied already.
const SHARED: u32 = 194 << 10;

impl Wide {
    pub(crate) const FEWEST_ROWS: u32 = Streamed::MOST_ROWS + 1;
    pub(crate) const MOST_ROWS: u32 = ROWS;

    /// `None` where they do not serve: other chips and types, the invariant mode, and [`Persist::Never`].
    pub(crate) fn new(
        device: &Device,
        dtype: Dtype,
        mode: Mode,
        persist: Persist,
    ) -> Result<Option<Self>, CudaError> {
        if !device.hopper || dtype != Dtype::Bf16 || mode != Mode::Fast || persist == Persist::Never {
            return Ok(None);
        }
        let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/wide.fatbin")))?;
        let (gate, store_float) =
            (module.kernel("wide_gate", SHARED)?, module.kernel("wide_store_float", SHARED)?);
        let clusters = device.clusters_at_once(gate, launch(device.multiprocessors / CLUSTER), CLUSTER)?;
        Ok((clusters > 0).then_some(Self { gate, store_float, _module: module, clusters, persist }))
    }

    /// Whether it is to multiply so many rows by a matrix: by size, where its tiles are read no faster than they are multiplied.
    pub(crate) fn takes(&self, w: &Dense, end: WideEnd, rows: u32) -> bool {
        (Self::FEWEST_ROWS..=Self::MOST_ROWS).contains(&rows)
            && suits(w, end)
            && (self.persist == Persist::Always || is_worth_it(w.outputs, self.clusters))
    }

    /// Queues the product of `rows` rows with a matrix; see [`WideEnd`].
    pub(crate) fn product(
        &self,
        device: &Device,
        w: &Dense,
        x: Activations,
        rows: u32,
        end: WideEnd,
        out: u64,
    ) -> Result<(), CudaError> {
        let fits = (1..=ROWS).contains(&rows) && x.room >= ROWS && x.width == w.inputs;
        if !fits || !suits(w, end) {
            let why = format!("{rows} rows of {x:?} by {} x {}", w.outputs, w.inputs);
            return Err(CudaError::Arguments { kernel: "a wide product", why });
        }
        let tiles = w.outputs.div_ceil(CLUSTER * TILE);
        let (kernel, outputs) = match end {
            WideEnd::Gate => (self.gate, w.outputs / 2),
            WideEnd::StoreFloat => (self.store_float, w.outputs),
        };
        let args: [Arg; 7] = [
            TensorMap::of(w.weights.at(0), w.outputs, w.inputs, TILE / 2)?.into(),
            TensorMap::of(x.address, x.room, x.width, ROWS / CLUSTER)?.into(),
            (w.inputs / TensorMap::COLUMNS).into(),
            tiles.into(),
            rows.into(),
            outputs.into(),
            out.into(),
        ];
        // As many tiles each: fewer blocks read as fast, and end together.
        let turns = tiles.div_ceil(self.clusters);
        device.launch_clusters(kernel, launch(tiles.div_ceil(turns)), CLUSTER, &args)
    }
}

/// Whether the kernels take a matrix. Only tiles of a gate must be whole: its rows lie in two parts of it.
fn suits(w: &Dense, end: WideEnd) -> bool {
    w.inputs.is_multiple_of(TensorMap::COLUMNS)
        && w.outputs > 0
        && (end != WideEnd::Gate || w.outputs.is_multiple_of(CLUSTER * TILE))
}

/// An input of a tile is multiplied in 9 ns at the full clock, and the memory reads one of an output in half a picosecond: with
/// less than 18,000 outputs for each tile that a cluster takes one after the other, it would wait for the products. A third more,
/// since the clock falls under such load.
fn is_worth_it(outputs: u32, clusters: u32) -> bool {
    const OUTPUTS_A_TURN: u32 = 24_000;
    outputs >= OUTPUTS_A_TURN * outputs.div_ceil(CLUSTER * TILE).div_ceil(clusters)
}

fn launch(clusters: u32) -> Launch {
    Launch { grid: [clusters * CLUSTER, 1, 1], threads: THREADS, shared: SHARED }
}

#[cfg(test)]
mod tests;
