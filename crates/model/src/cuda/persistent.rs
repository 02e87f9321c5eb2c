//! A decode step's layers by a kernel that lives on every multiprocessor from one attention to the next; see
//! `kernels/persistent.cu`.

use std::sync::{Mutex, PoisonError};

use super::elementwise::{Angles, Heads, Pool, Rows};
use super::linear::Dense;
use super::{Arg, Buffer, CudaError, Device, Dtype, Kernel, KvKept, Launch, Mode, Module};

/// The kernels of one model, and what its blocks tell each other.
pub(crate) struct Persistent {
    between: Kernel,
    head: Kernel,
    _module: Module,
    /// Tiles that are stored of each head of q, k and v.
    done: Buffer,
    /// Two counts of each launch of a step, zero before it: units of gate and up that were taken beyond the blocks'
    /// shares, and blocks that came to a barrier. A launch sets those of the one before to zero.
    counts: Buffer,
    /// Sums of squares: `[rows][blocks]` of f32.
    squares: Buffer,
    widths: Widths,
    blocks: u32,
    _claim: Claim,
}

/// Whether few rows go through kernels that fill the GPU from one attention to the next, and a batch through products that do
/// more than multiply (`streamed`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persist {
    /// Few rows where a layer's weights take longer than its blocks wait for each other; batches wherever
    /// they can, large ones where their matrices have outputs enough.
    BySize,
    /// Wherever they can run.
    Always,
    /// Neither: kernel by kernel, for comparison.
    Never,
}

/// The sizes of a layer, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widths {
    pub(crate) layers: u32,
    pub(crate) hidden: u32,
    pub(crate) feed_forward: u32,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
}

impl Widths {
    /// Of weights of two bytes.
    fn layer_bytes(self) -> u64 {
        let of = |a: u32, b: u32| 2 * u64::from(a) * u64::from(b);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        of(self.hidden, 2 * (queries + keys)) + of(self.hidden, 3 * self.feed_forward)
    }
}

/// What a launch does before the next attention ends: the rest of a layer.
pub(crate) struct Front<'a> {
    pub(crate) o: &'a Dense,
    pub(crate) gate_up: &'a Dense,
    pub(crate) down: &'a Dense,
    /// Of the feed-forward.
    pub(crate) norm: u64,
    pub(crate) attended: u64,
    pub(crate) gated: u64,
}

/// And the beginning of the next one. Without a front, the rows in [`Between::normed`] are normed.
pub(crate) struct Back<'a> {
    pub(crate) qkv: &'a Dense,
    /// Of the attention.
    pub(crate) norm: u64,
    pub(crate) out: u64,
    pub(crate) rows: Rows,
    pub(crate) heads: Heads,
    pub(crate) angles: Angles,
    pub(crate) pools: [Pool; 2],
}

/// How a rank exchanges sums with the others that share the model; alone by default.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peers {
    /// Addresses of all ranks' words ([`Persistent::mailbox_bytes`]), by rank.
    pub(crate) mailboxes: u64,
    /// u32, an exchange count a block.
    pub(crate) epochs: u64,
    /// u32 of the host's memory: 1 + the rank that waited in vain.
    pub(crate) failed: u64,
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
}

impl Default for Peers {
    fn default() -> Self {
        Self { mailboxes: 0, epochs: 0, failed: 0, rank: 0, ranks: 1 }
    }
}

/// Rows that are on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Between {
    pub(crate) peers: Peers,
    pub(crate) rows: u32,
    /// f32, the residual stream.
    pub(crate) x: u64,
    pub(crate) normed: u64,
    pub(crate) epsilon: f32,
}

// As in the kernels.
const TILE: u32 = 8;
const TILES: u32 = 6;
const WARPS: u32 = 8;
const STAGE: u32 = TILE * (2048 + 64);
const ROW_PADDING: u32 = 32;
const THREADS: u32 = (WARPS + 1) * 32;
/// Shared memory of a block: nearly a multiprocessor's, so that each has one block.
const SHARED: u32 = 220 << 10;
/// At most so much of it holds a copy of the rows.
const MOST_ROW_BYTES: u32 = 68 << 10;
const MOST_STAGES: u32 = 16;
/// Weights of a layer from which on these kernels gain, on an H200: with 94 MB they lost 9 % at one row, with 154 MB they
/// won 3 %, with 436 MB 19 % (docs/benchmarks.md).
const LEAST_BYTES: u64 = 128 << 20;

impl Persistent {
    /// Beyond, a row costs more than the moments that are saved.
    pub(crate) const MOST_ROWS: u32 = 8;

    /// What a rank's words take for exchanges with `ranks` ranks.
    pub(crate) fn mailbox_bytes(ranks: usize, hidden: usize) -> usize {
        2 * ranks * Self::MOST_ROWS as usize * (hidden / 2) * 16
    }

    /// `None` where these kernels do not serve: other chips, types and sizes, the invariant mode, and a GPU that
    /// another model of this process uses so already (two kernels that each need all multiprocessors would wait for
    /// each other).
    pub(crate) fn new(
        device: &Device,
        dtype: Dtype,
        kept: KvKept,
        mode: Mode,
        widths: Widths,
        persist: Persist,
    ) -> Result<Option<Self>, CudaError> {
        let Widths { hidden, feed_forward, heads, kv_heads, head_dim, .. } = widths;
        let is_wanted = match persist {
            Persist::BySize => widths.layer_bytes() >= LEAST_BYTES,
            Persist::Always => true,
            Persist::Never => false,
        };
        let suits = [hidden, feed_forward, heads * head_dim].iter().all(|width| width.is_multiple_of(32));
        // The launches of a shallower model are too few for one to clean up behind another.
        let is_deep = widths.layers >= 2;
        if !is_wanted || !is_deep || !device.hopper || dtype != Dtype::Bf16 || mode != Mode::Fast || !suits {
            return Ok(None);
        }
        if device.is_shared {
            // Two such kernels that each need all multiprocessors would wait for each other.
            tracing::info!("MPS shares this GPU among processes: layers are launched kernel by kernel");
            return Ok(None);
        }
        let Some(claim) = Claim::of(device.context.ordinal()) else {
            tracing::info!(
                "another model holds this GPU's multiprocessors: layers are launched kernel by kernel"
            );
            return Ok(None);
        };
        let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/persistent.fatbin")))?;
        let between = match (head_dim, kept) {
            (64, KvKept::Dtype) => "between_64",
            (128, KvKept::Dtype) => "between_128",
            (64, KvKept::Fp8) => "between_64_fp8",
            (128, KvKept::Fp8) => "between_128_fp8",
            _ => return Ok(None),
        };
        let blocks = device.multiprocessors;
        let zeros = |what, bytes: u32| Buffer::zeros(device, what, bytes as usize);
        Ok(Some(Self {
            between: module.kernel(between, SHARED)?,
            head: module.kernel("head", SHARED)?,
            _module: module,
            done: zeros("counts of heads", (heads + 2 * kv_heads) * 4)?,
            counts: zeros("counts of launches", (widths.layers + 1) * 8)?,
            squares: zeros("sums of squares", Self::MOST_ROWS * blocks * 4)?,
            widths,
            blocks,
            _claim: claim,
        }))
    }

    /// Queues what lies between two attentions: before layer `index`, or behind the last. With neither front nor back
    /// nothing is done.
    pub(crate) fn between(
        &self,
        device: &Device,
        index: u32,
        b: Between,
        front: Option<&Front<'_>>,
        back: Option<&Back<'_>>,
    ) -> Result<(), CudaError> {
        assert!((1..=Self::MOST_ROWS).contains(&b.rows), "rows of a persistent kernel");
        let Widths { layers, hidden, feed_forward, heads, kv_heads, head_dim } = self.widths;
        let queries = heads * head_dim;
        if let Some(front) = front {
            check(front.o, hidden, queries);
            check(front.gate_up, 2 * feed_forward, hidden);
            check(front.down, hidden, feed_forward);
        }
        if let Some(back) = back {
            check(back.qkv, queries + 2 * kv_heads * head_dim, hidden);
        }
        let weights = |dense: Option<&Dense>| Arg::from(dense.map_or(0, |d| d.weights.at(0)));
        let of_front = |value: fn(&Front<'_>) -> u64| Arg::from(front.map_or(0, value));
        let of_back = |value: fn(&Back<'_>) -> u64| Arg::from(back.map_or(0, value));
        let [full, window] = back.map_or_else(Default::default, |back| back.pools);
        let [stages, row_bytes] = room(b.rows, feed_forward.max(hidden).max(queries));
        let counts = |launch: u32| self.counts.at(launch as usize * 8);
        let args: [Arg; 47] = [
            weights(front.map(|f| f.o)),
            weights(front.map(|f| f.gate_up)),
            weights(front.map(|f| f.down)),
            of_front(|f| f.norm),
            of_front(|f| f.attended),
            of_front(|f| f.gated),
            weights(back.map(|b| b.qkv)),
            of_back(|b| b.norm),
            of_back(|b| b.out),
            of_back(|b| b.heads.bias),
            of_back(|b| b.heads.q_norm),
            of_back(|b| b.heads.k_norm),
            of_back(|b| b.rows.positions),
            of_back(|b| b.rows.slots),
            of_back(|b| b.rows.stored),
            of_back(|b| b.angles.table),
            of_back(|b| b.angles.dims.into()),
            of_back(|b| b.angles.style.into()),
            full.base.into(),
            full.page.into(),
            full.table.into(),
            full.stride.into(),
            window.base.into(),
            window.page.into(),
            window.table.into(),
            window.stride.into(),
            of_back(|b| b.heads.places),
            heads.into(),
            kv_heads.into(),
            b.x.into(),
            b.normed.into(),
            self.squares.at(0).into(),
            (counts(index) + 4).into(),
            self.done.at(0).into(),
            counts(index).into(),
            // The launch before has ended when this one writes.
            counts((index + layers) % (layers + 1)).into(),
            b.rows.into(),
            hidden.into(),
            feed_forward.into(),
            stages.into(),
            row_bytes.into(),
            b.epsilon.into(),
            b.peers.mailboxes.into(),
            b.peers.epochs.into(),
            b.peers.failed.into(),
            b.peers.rank.into(),
            b.peers.ranks.into(),
        ];
        let launch = Launch { grid: [self.blocks, 1, 1], threads: THREADS, shared: SHARED };
        device.launch(self.between, launch, &args)
    }

    /// Whether [`Self::head`] takes so many rows of this output layer.
    pub(crate) fn has_head(w: &Dense, rows: u32) -> bool {
        (1..=Self::MOST_ROWS).contains(&rows) && w.outputs.is_multiple_of(TILE) && w.inputs.is_multiple_of(32)
    }

    /// out (of float) = x W^T; only where [`Self::has_head`].
    pub(crate) fn head(
        &self,
        device: &Device,
        w: &Dense,
        x: u64,
        out: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        assert!(Self::has_head(w, rows), "an output layer that this kernel does not take");
        let launch = Launch { grid: [self.blocks, 1, 1], threads: THREADS, shared: SHARED };
        let [stages, row_bytes] = room(rows, w.inputs);
        let args: [Arg; 8] = [
            w.weights.at(0).into(),
            x.into(),
            out.into(),
            rows.into(),
            w.inputs.into(),
            w.outputs.into(),
            stages.into(),
            row_bytes.into(),
        ];
        device.launch(self.head, launch, &args)
    }
}

/// Stages of the ring and bytes for a copy of the rows, of products of at most `inputs` k.
fn room(rows: u32, inputs: u32) -> [u32; 2] {
    let sums = WARPS * TILES * rows * TILE * size_of::<f32>() as u32;
    let copy = (rows * (inputs + ROW_PADDING) * 2).min(MOST_ROW_BYTES);
    [((SHARED - sums - copy) / STAGE).min(MOST_STAGES), copy]
}

fn check(w: &Dense, outputs: u32, inputs: u32) {
    assert!((w.outputs, w.inputs) == (outputs, inputs), "a matrix of another size than the model's");
}

/// The right to fill a GPU's multiprocessors, held by one model of a process.
struct Claim(usize);

static CLAIMED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

impl Claim {
    fn of(ordinal: usize) -> Option<Self> {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.contains(&ordinal) {
            return None;
        }
        claimed.push(ordinal);
        Some(Self(ordinal))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).retain(|ordinal| *ordinal != self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_of_rows_leaves_a_ring_of_several_stages() {
        for rows in 1..=Persistent::MOST_ROWS {
            for inputs in [64, 4096, 14336, 27648] {
                let [stages, copy] = room(rows, inputs);
                assert!((8..=MOST_STAGES).contains(&stages) && copy <= MOST_ROW_BYTES, "{rows} of {inputs}");
            }
        }
        // What blocks may have of a multiprocessor of Hopper.
        const { assert!(2 * SHARED > 227 << 10) };
    }

    #[test]
    fn large_layers_are_worth_it() {
        let bytes = |hidden, feed_forward, heads, kv_heads, head_dim| {
            Widths { layers: 1, hidden, feed_forward, heads, kv_heads, head_dim }.layer_bytes()
        };
        assert_eq!(bytes(4096, 14336, 32, 8, 128), 436_207_616);
        assert!(bytes(1536, 8960, 12, 2, 128) < LEAST_BYTES && LEAST_BYTES < bytes(2048, 11008, 16, 2, 128));
    }

    #[test]
    fn one_model_at_a_time_fills_a_gpu() {
        let first = Claim::of(1000);
        assert!(first.is_some());
        assert!(Claim::of(1000).is_none());
        assert!(Claim::of(1001).is_some());
        drop(first);
        assert!(Claim::of(1000).is_some());
    }
}
