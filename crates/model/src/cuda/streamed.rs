//! Products of the rows of a decode batch that stream their weights past all multiprocessors; see `kernels/streamed.cu`.

use super::linear::{Dense, Mode};
use super::tensor_map::TensorMap;
use super::{Arg, Buffer, CudaError, Device, Dtype, Kernel, Launch, Module};

/// The kernels of one model, and what their blocks tell each other.
pub(crate) struct Streamed {
    kernels: [Kernels; WIDTHS.len()],
    _module: Module,
    /// Sums of tiles that several clusters share.
    partials: Buffer,
    counters: Buffer,
    /// Sums of squares of the residual stream.
    squares: Buffer,
    clusters: u32,
}

/// For up to [`WIDTHS`] rows.
#[derive(Clone, Copy)]
struct Kernels {
    store: Kernel,
    gate: Kernel,
    add: Kernel,
}

/// Rows of activations in BF16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activations {
    pub(crate) address: u64,
    /// Rows that are there, padding included.
    pub(crate) room: u32,
    pub(crate) width: u32,
}

/// A norm that is not done yet: the rows that a product reads are x * weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unscaled {
    /// Sums of squares of every 128 values of x ([`Streamed::squares_bytes`]).
    pub(crate) squares: u64,
    pub(crate) epsilon: f32,
}

/// The norm that follows a sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    /// Its weights, of f32.
    pub(crate) weight: u64,
    /// x * weight of each row, in BF16.
    pub(crate) normed: u64,
    pub(crate) squares: u64,
}

/// What a product is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// out = y.
    Store { out: u64, norm: Option<Unscaled> },
    /// out = silu(first half of y) * second half.
    Gate { out: u64, norm: Option<Unscaled> },
    /// x += y, of float.
    Add { x: u64, next: Option<Next> },
}

// As in the kernels.
const WIDTHS: [u32; 3] = [16, 32, 64];
const CLUSTER: u32 = 2;
/// Outputs of a block; of a gate half as many of either half.
const TILE: u32 = 128;
const CHUNK: u32 = TensorMap::COLUMNS;
const THREADS: u32 = 288;
const SHARED: u32 = 226 << 10;
/// Clusters that may share a tile, two less than the kernel's state has bits for: shares need not begin with tiles.
const MOST_SHARERS: u32 = 22;
/// Tiles of a cluster that there are counters for: 262,144 outputs.
const MOST_TILES: u32 = 1024;

impl Streamed {
    /// Beyond, the sums of tiles that clusters share are so large that cuBLASLt is faster (docs/decisions/0031).
    pub(crate) const MOST_ROWS: u32 = 64;

    /// For a residual stream of `hidden` values. `None` where these kernels do not serve: other chips and types, and the
    /// invariant mode.
    pub(crate) fn new(
        device: &Device,
        dtype: Dtype,
        mode: Mode,
        hidden: u32,
    ) -> Result<Option<Self>, CudaError> {
        if !device.hopper || dtype != Dtype::Bf16 || mode != Mode::Fast {
            return Ok(None);
        }
        let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/streamed.fatbin")))?;
        let kernel = |name| module.kernel(name, SHARED);
        macro_rules! kernels {
            ($rows:literal) => {
                Kernels {
                    store: kernel(concat!("streamed_store_", $rows))?,
                    gate: kernel(concat!("streamed_gate_", $rows))?,
                    add: kernel(concat!("streamed_add_", $rows))?,
                }
            };
        }
        let kernels = [kernels!("16"), kernels!("32"), kernels!("64")];
        let full = Launch {
            grid: [device.multiprocessors / CLUSTER * CLUSTER, 1, 1],
            threads: THREADS,
            shared: SHARED,
        };
        let clusters = device.clusters_at_once(kernels[0].add, full, CLUSTER)?;
        if clusters == 0 {
            return Ok(None);
        }
        let zeros = |what, bytes: u32| Buffer::zeros(device, what, bytes as usize);
        Ok(Some(Self {
            kernels,
            _module: module,
            partials: zeros("partial sums", clusters * CLUSTER * 2 * Self::MOST_ROWS * TILE * 4)?,
            counters: zeros("counters of partial sums", MOST_TILES * CLUSTER * 8)?,
            squares: Buffer::zeros(device, "sums of squares", Self::squares_bytes(hidden))?,
            clusters,
        }))
    }

    /// Where the sums of squares of the residual stream have their place.
    pub(crate) fn squares(&self) -> u64 {
        self.squares.at(0)
    }

    /// What the sums of squares of rows of `width` take.
    fn squares_bytes(width: u32) -> usize {
        (width / TILE * Self::MOST_ROWS) as usize * size_of::<f32>()
    }

    /// Whether the kernels take a matrix, of a gate two in one.
    pub(crate) fn suits(w: &Dense) -> bool {
        let tile = CLUSTER * TILE;
        w.inputs.is_multiple_of(TILE) && w.outputs.is_multiple_of(tile) && w.outputs / tile <= MOST_TILES
    }

    /// Queues a product of `rows` rows with a matrix that [suits](Self::suits).
    pub(crate) fn product(
        &self,
        device: &Device,
        w: &Dense,
        x: Activations,
        rows: u32,
        end: End,
    ) -> Result<(), CudaError> {
        let found =
            WIDTHS.into_iter().zip(&self.kernels).find(|(width, _)| rows <= *width && *width <= x.room);
        let suits = rows > 0 && x.width == w.inputs && Self::suits(w);
        let Some((width, kernels)) = found.filter(|_| suits) else {
            let why = format!("{rows} rows of {x:?} by {} x {}", w.outputs, w.inputs);
            return Err(CudaError::Arguments { kernel: "a streamed product", why });
        };
        let (tiles, chunks) = (w.outputs / (CLUSTER * TILE), w.inputs / CHUNK);
        let share = share(tiles, chunks, self.clusters);
        let launch = Launch {
            grid: [(tiles * chunks).div_ceil(share) * CLUSTER, 1, 1],
            threads: THREADS,
            shared: SHARED,
        };
        let (kernel, outputs, out, residual, next, norm) = match end {
            End::Store { out, norm } => (kernels.store, w.outputs, out, 0, None, norm),
            End::Gate { out, norm } => (kernels.gate, w.outputs / 2, out, 0, None, norm),
            End::Add { x, next } => (kernels.add, w.outputs, 0, x, next, None),
        };
        let next = next.unwrap_or(Next { weight: 0, normed: 0, squares: 0 });
        let norm = norm.unwrap_or(Unscaled { squares: 0, epsilon: 0.0 });
        let args: [Arg; 16] = [
            TensorMap::of(w.weights.at(0), w.outputs, w.inputs, TILE / 2)?.into(),
            TensorMap::of(x.address, x.room, x.width, width / CLUSTER)?.into(),
            chunks.into(),
            tiles.into(),
            share.into(),
            rows.into(),
            outputs.into(),
            out.into(),
            residual.into(),
            next.weight.into(),
            next.normed.into(),
            next.squares.into(),
            norm.squares.into(),
            norm.epsilon.into(),
            self.partials.at(0).into(),
            self.counters.at(0).into(),
        ];
        device.launch_clusters(kernel, launch, CLUSTER, &args)
    }
}

/// Chunks that each of at most `clusters` clusters takes of `tiles` tiles. As even as can be; where a cluster has less than a
/// tile, a few more if shares then end where tiles do: fewer sums go through memory.
fn share(tiles: u32, chunks: u32, clusters: u32) -> u32 {
    let even = (tiles * chunks).div_ceil(clusters).max(chunks.div_ceil(MOST_SHARERS)).max(1);
    (even..=even + even / 16).find(|share| chunks.is_multiple_of(*share)).unwrap_or(even)
}

#[cfg(test)]
mod tests;
