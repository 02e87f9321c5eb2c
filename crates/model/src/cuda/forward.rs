//! The parts of a forward pass over the rows of a step, as one rank queues them; `ranks` puts them together.
//!
//! Steps of few rows are launched as CUDA graphs, one for each bucket of row counts, height of attention tiles and way to
//! merge them ([`Key`]): the rows lie at fixed addresses, so a graph serves every step of its bucket. Longer steps are
//! launched kernel by kernel. Few rows (`few`), batches (`streamed`) and large batches (`wide`) of large layers have kernels that do
//! more than one thing.

mod early;
mod few;
mod graphs;
mod streamed;

use std::collections::HashMap;
use std::rc::Rc;

use cudarc::driver::CudaGraph;

use super::attention::{self, Attention, View, Window};
use super::batch::{Batch, BatchArrays, Cut};
use super::elementwise::{Angles, Elementwise, Heads};
use super::exchange::Target;
use super::kv::Kv;
use super::linear::{Dense, Linear, Norm};
use super::matrix::{DeviceMatrix, Matmul};
use super::model::CudaOptions;
use super::persistent::{Persist, Persistent, Widths};
use super::streamed::{self as products, Streamed};
use super::trees::{self, Placed};
use super::weights::{DeviceDecoder, DeviceLayer};
use super::wide::{Wide, WideEnd};
use super::{Buffer, CudaError, Device, Dtype, Mode};
use crate::arch::{Parameters, RopeStyle};
use kvcache::HeadClass;

use few::dense;
pub(crate) use graphs::{BUCKETS, Key};
use graphs::{MOST_GRAPH, bucket};

/// What buffers must hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Most rows together.
    pub(crate) rows: u32,
    pub(crate) slots: u32,
    pub(crate) positions: u32,
    /// KV heads of the largest class in a layer.
    pub(crate) heads: u32,
}

/// Weights, kernels and activations of a rank.
pub(crate) struct Forward {
    graphs: HashMap<Key, CudaGraph>,
    weights: DeviceDecoder,
    linear: Matmul,
    elementwise: Elementwise,
    attention: Attention,
    /// Where a model's few rows go through all layers by it.
    persistent: Option<Persistent>,
    /// Where products of a decode batch do what lies between them too.
    streamed: Option<Streamed>,
    /// Where larger batches than those have kernels for matrices of many outputs.
    wide: Option<Wide>,
    /// Rows that the activations have room for.
    room: u32,
    /// Picked rows that there is room for.
    picks: u32,
    /// Rows of a step that is launched as a graph, and of one that is not.
    small: BatchArrays,
    large: BatchArrays,
    a: Activations,
    /// Cosines and sines.
    angles: Buffer,
    p: Parameters,
    sizes: Sizes,
    dtype: Dtype,
    mode: Mode,
    use_graphs: bool,
    device: Rc<Device>,
}

/// A step whose rows are on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) batch: Batch,
    /// Launched as a graph, from the small arrays.
    pub(crate) graph: bool,
}

/// Where the products at the end of a layer's halves go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sink {
    /// Added to the residual stream.
    Residual,
    /// Stored, to be summed over ranks: address and type.
    Partial(u64, Dtype),
}

/// Rows of activations; of the dtype but for the residual stream.
struct Activations {
    /// f32.
    x: Buffer,
    normed: Buffer,
    qkv: Buffer,
    attended: Buffer,
    both: Buffer,
    gated: Buffer,
    /// Normed rows that pick, of the whole step.
    picked: Buffer,
}

/// Room for partial results of attention, in rows of a query head (528 bytes each at 128 elements).
const PARTIAL_ROWS: u32 = 1 << 17;

impl Forward {
    /// Most picking rows of one step.
    pub(crate) const MOST_PICKS: u32 = 4096;

    pub(crate) fn new(
        device: Rc<Device>,
        p: &Parameters,
        weights: DeviceDecoder,
        elementwise: Elementwise,
        options: &CudaOptions,
        sizes: Sizes,
    ) -> Result<Self, CudaError> {
        let (dtype, mode) = (options.dtype, options.mode);
        // Rows are read and written several values at a time.
        if !p.hidden.is_multiple_of(4) || !p.feed_forward.is_multiple_of(8) {
            let why = format!("a hidden size of {} or a feed-forward of {}", p.hidden, p.feed_forward);
            return Err(CudaError::Arguments { kernel: "rms_norm and silu_mul", why });
        }
        let linear = Matmul::new(&device, dtype, mode, weights.matrices())?;
        let shape = attention::Shape {
            dtype,
            head_dim: p.head_dim as u32,
            q_heads: p.heads as u32,
            kv_heads: p.kv_heads as u32,
            kept: options.kv,
            mode,
        };
        let attention = Attention::new(&device, shape, sizes.rows.max(MOST_GRAPH), PARTIAL_ROWS)?;
        let widths = Widths {
            layers: p.layers as u32,
            hidden: p.hidden as u32,
            feed_forward: p.feed_forward as u32,
            heads: p.heads as u32,
            kv_heads: p.kv_heads as u32,
            head_dim: p.head_dim as u32,
        };
        let is_dense = weights.matrices().all(|matrix| matches!(matrix, DeviceMatrix::Dense(_)));
        let persistent = if is_dense {
            Persistent::new(&device, dtype, options.kv, mode, widths, options.persistent)?
        } else {
            None
        };
        let suits = options.persistent != Persist::Never && weights.layers.iter().all(streamed::suits);
        let streamed = if suits { Streamed::new(&device, dtype, mode, p.hidden as u32)? } else { None };
        let wide = Wide::new(&device, dtype, mode, options.persistent)?;
        let rows = Linear::padded(mode, sizes.rows.max(MOST_GRAPH)) as usize;
        let zeros = |what, elements: usize, bytes: usize| Buffer::zeros(&device, what, elements * bytes);
        let each = dtype.bytes();
        let picks = Linear::padded(mode, Self::MOST_PICKS) as usize + BUCKETS[15] as usize;
        let a = Activations {
            x: zeros("activations", rows * p.hidden, size_of::<f32>())?,
            normed: zeros("activations", rows * p.hidden, each)?,
            qkv: zeros("activations", rows * (p.heads + 2 * p.kv_heads) * p.head_dim, each)?,
            attended: zeros("activations", rows * p.heads * p.head_dim, each)?,
            both: zeros("activations", rows * 2 * p.feed_forward, each)?,
            gated: zeros("activations", rows * p.feed_forward, each)?,
            picked: zeros("activations", picks * p.hidden, each)?,
        };
        Ok(Self {
            graphs: HashMap::new(),
            weights,
            linear,
            elementwise,
            attention,
            persistent,
            streamed,
            wide,
            room: rows as u32,
            picks: picks as u32,
            small: BatchArrays::new(&device, MOST_GRAPH)?,
            large: BatchArrays::new(&device, sizes.rows.max(MOST_GRAPH))?,
            a,
            angles: Buffer::of(&device, "angles", &angles(p, sizes.positions))?,
            p: p.clone(),
            sizes,
            dtype,
            mode,
            use_graphs: options.graphs,
            device,
        })
    }

    pub(crate) fn most_rows(&self) -> u32 {
        self.sizes.rows
    }

    pub(crate) fn elementwise(&self) -> &Elementwise {
        &self.elementwise
    }

    pub(crate) fn step_bytes(&self) -> u64 {
        self.weights.step_bytes()
    }

    /// Writes checked rows, at most [`Self::most_rows`], to the device.
    pub(crate) fn plan(&mut self, rows: &[Placed], kv: &Kv) -> Result<Plan, CudaError> {
        let count = rows.len() as u32;
        let short = trees::runs(rows).all(|run| run[0].path.is_some() || run.len() <= trees::MOST_BEFORE);
        let graph = self.use_graphs && short && count <= MOST_GRAPH;
        let cut = Cut {
            slots: self.sizes.slots,
            positions: kv.stride * kvcache::PAGE_POSITIONS,
            heads: self.sizes.heads,
            tiles: graph.then(|| bucket(count)),
            multiprocessors: self.device.multiprocessors,
            partial_rows: PARTIAL_ROWS,
            mode: self.mode,
        };
        let (arrays, padded) =
            if graph { (&mut self.small, bucket(count)) } else { (&mut self.large, count) };
        let batch = arrays.write(&self.device, rows, padded, &self.attention, cut)?;
        Ok(Plan { batch, graph })
    }

    /// Queues the norm of the picking rows' last states, which are kept from place `picked` on.
    pub(crate) fn pick(&self, plan: Plan, picked: u32) -> Result<(), CudaError> {
        if plan.batch.picks == 0 {
            return Ok(());
        }
        let hidden = self.p.hidden;
        let out = self.a.picked.at(picked as usize * hidden * self.dtype.bytes());
        let norm = Norm { weight: self.weights.norm.at(0), epsilon: self.p.epsilon };
        let (rows, count) = (self.arrays(plan).picked(), plan.batch.picks);
        self.elementwise.rms_norm(&self.device, self.a.x.at(0), Some(rows), count, norm, out, hidden as u32)
    }

    /// Queues the head for `count` picked rows from place `first` on: `logits` gets f32 rows of the output layer's
    /// width, and must have room for a bucket of them.
    pub(crate) fn head(&mut self, first: u32, count: u32, logits: u64) -> Result<(), CudaError> {
        let x = self.a.picked.at(first as usize * self.p.hidden * self.dtype.bytes());
        if let Some(persistent) = &self.persistent
            && Persistent::has_head(&self.weights.head, count)
        {
            return persistent.head(&self.device, &self.weights.head, x, logits, count);
        }
        let rows = match self.mode {
            Mode::Fast => bucket(count),
            Mode::Invariant => count,
        };
        if let Some(wide) = &self.wide
            && wide.takes(&self.weights.head, WideEnd::StoreFloat, rows)
        {
            let room = self.picks - first;
            let x = products::Activations { address: x, room, width: self.p.hidden as u32 };
            return wide.product(&self.device, &self.weights.head, x, rows, WideEnd::StoreFloat, logits);
        }
        self.linear.dense.tune(&self.device, &[&self.weights.head], [x, logits], rows, Dtype::F32, false)?;
        self.linear.dense.store_float(&self.device, &self.weights.head, x, logits, rows)
    }

    fn arrays(&self, plan: Plan) -> &BatchArrays {
        if plan.graph { &self.small } else { &self.large }
    }

    /// Chooses the algorithms of all products of `rows` rows. Activations are lost.
    pub(crate) fn tune(&self, rows: u32, sink: Sink) -> Result<(), CudaError> {
        if self.persists(rows) || self.streams(rows) {
            return Ok(());
        }
        let (a, dtype) = (&self.a, self.dtype);
        let (end, kind, add) = match sink {
            Sink::Residual => (a.x.at(0), Dtype::F32, true),
            Sink::Partial(address, kind) => (address, kind, false),
        };
        type Of = fn(&DeviceLayer) -> &DeviceMatrix;
        let products: [(Of, [u64; 2], Dtype, bool); 4] = [
            (|layer| &layer.qkv, [a.normed.at(0), a.qkv.at(0)], dtype, false),
            (|layer| &layer.o, [a.attended.at(0), end], kind, add),
            (|layer| &layer.gate_up, [a.normed.at(0), a.both.at(0)], dtype, false),
            (|layer| &layer.down, [a.gated.at(0), end], kind, add),
        ];
        for (index, (of, addresses, out, add)) in products.into_iter().enumerate() {
            if index == 2 && self.has_wide_gates(rows) {
                continue;
            }
            let matrices: Vec<&DeviceMatrix> = self.weights.layers.iter().map(of).collect();
            self.linear.tune(&self.device, &matrices, addresses, rows, out, add)?;
        }
        Ok(())
    }

    /// Queues the embedding of a batch's rows.
    pub(crate) fn embed(&self, plan: Plan) -> Result<(), CudaError> {
        let rows = self.arrays(plan).rows(plan.batch.rows);
        let hidden = self.p.hidden as u32;
        self.elementwise.embed(&self.device, &self.weights.embedding.weights, rows, self.a.x.at(0), hidden)
    }

    /// Where the sums behind half `slot` of layer `index` are added: 0 attention, 1 feed-forward. With the norm of
    /// the half that follows, unless that is done inside its product.
    pub(crate) fn target(&self, index: usize, slot: usize, rows: u32) -> Target {
        let next = match slot {
            0 => self.weights.layers.get(index).map(|l| (&l.feed_forward_norm, &l.gate_up)),
            _ => self.weights.layers.get(index + 1).map(|l| (&l.attention_norm, &l.qkv)),
        };
        let next = next.filter(|(_, matrix)| !self.linear.norms(matrix, rows));
        let norm = |weight: &Buffer| Norm { weight: weight.at(0), epsilon: self.p.epsilon };
        Target { x: self.a.x.at(0), norm: next.map(|(weight, _)| (norm(weight), self.a.normed.at(0))) }
    }

    /// Queues the attention of layer `index`. `is_normed`: the rows' norm is there already.
    pub(crate) fn attention_part(
        &self,
        index: usize,
        plan: Plan,
        kv: &Kv,
        is_normed: bool,
        sink: Sink,
    ) -> Result<(), CudaError> {
        let (layer, batch, arrays) = (&self.weights.layers[index], plan.batch, self.arrays(plan));
        let (p, a, device) = (&self.p, &self.a, &*self.device);
        let norm = Norm { weight: layer.attention_norm.at(0), epsilon: p.epsilon };
        let (x, normed, qkv) = (a.x.at(0), a.normed.at(0), a.qkv.at(0));
        if self.linear.norms(&layer.qkv, batch.rows) {
            self.linear.norm_store(device, &layer.qkv, norm, x, qkv, batch.rows)?;
        } else {
            if !is_normed {
                self.elementwise.rms_norm(device, x, None, batch.rows, norm, normed, p.hidden as u32)?;
            }
            self.linear.store(device, &layer.qkv, normed, qkv, batch.rows)?;
        }
        let rows = arrays.rows(batch.rows);
        let (heads, angles, pools) = (self.heads(index, kv), self.angles(), kv.pools(index));
        self.elementwise.rope_and_keep(device, qkv, rows, heads, angles, pools)?;
        self.attend(index, plan, kv)?;
        self.finish(&layer.o, a.attended.at(0), batch.rows, sink)
    }

    fn heads(&self, index: usize, kv: &Kv) -> Heads {
        let (layer, p) = (&self.weights.layers[index], &self.p);
        Heads {
            heads: p.heads as u32,
            kv_heads: p.kv_heads as u32,
            bias: layer.bias.as_ref().map_or(0, |b| b.at(0)),
            q_norm: layer.qk_norm.as_ref().map_or(0, |(q, _)| q.at(0)),
            k_norm: layer.qk_norm.as_ref().map_or(0, |(_, k)| k.at(0)),
            places: kv.places(index),
            epsilon: p.epsilon,
        }
    }

    fn angles(&self) -> Angles {
        let style = match self.p.rope.style {
            RopeStyle::Adjacent => 0,
            RopeStyle::Halves => 1,
            RopeStyle::HalvesToAdjacent => 2,
        };
        Angles { table: self.angles.at(0), dims: self.p.rope.dims as u32, style }
    }

    /// Queues the attention of layer `index` over rows whose q, k and v are there.
    fn attend(&self, index: usize, plan: Plan, kv: &Kv) -> Result<(), CudaError> {
        let (batch, arrays) = (plan.batch, self.arrays(plan));
        let (p, a, device) = (&self.p, &self.a, &*self.device);
        for class in &kv.classes {
            let part = class.layers[index];
            if part.heads == 0 {
                continue;
            }
            let layer = attention::Layer {
                q: View { buffer: &a.qkv, at: 0 },
                q_stride: ((p.heads + 2 * p.kv_heads) * p.head_dim) as u32,
                out: View { buffer: &a.attended, at: 0 },
                rows: batch.rows,
                pool: View { buffer: &class.storage, at: part.base },
                pages: class.pages,
                page_stride: kv.elements(part),
                table: View { buffer: &class.table, at: 0 },
                slots: self.sizes.slots,
                table_stride: kv.stride,
                heads: View { buffer: &kv.heads, at: part.list },
                class_heads: part.heads,
                window: match class.class {
                    HeadClass::Full => Window::FULL,
                    HeadClass::Window { sink, recent } => Window { sink, recent },
                },
                scale: std::f32::consts::LOG2_E / (p.head_dim as f32).sqrt(),
            };
            if batch.few > 0 {
                let blocks = attention::split_blocks(batch.few, part.heads, device.multiprocessors);
                let tiles = arrays.attention(0, batch.few);
                self.attention.few(device, &layer, &tiles, batch.tile, blocks, batch.clusters)?;
            }
            if batch.many > 0 {
                let tiles = arrays.attention(1, batch.many);
                self.attention.many(device, &layer, &tiles, batch.many_tile)?;
            }
        }
        Ok(())
    }

    /// Queues the feed-forward of layer `index`. `is_normed`: the rows' norm is there already.
    pub(crate) fn feed_forward(
        &self,
        index: usize,
        rows: u32,
        is_normed: bool,
        sink: Sink,
    ) -> Result<(), CudaError> {
        let layer = &self.weights.layers[index];
        let (p, a, device) = (&self.p, &self.a, &*self.device);
        let norm = Norm { weight: layer.feed_forward_norm.at(0), epsilon: p.epsilon };
        let (x, normed, gated) = (a.x.at(0), a.normed.at(0), a.gated.at(0));
        if self.linear.norms(&layer.gate_up, rows) {
            self.linear.norm_gate(device, &layer.gate_up, norm, x, gated, rows)?;
        } else {
            if !is_normed {
                self.elementwise.rms_norm(device, x, None, rows, norm, normed, p.hidden as u32)?;
            }
            if let Some((wide, matrix)) = self.wide_gate(layer, rows) {
                let x = products::Activations { address: normed, room: self.room, width: p.hidden as u32 };
                wide.product(device, matrix, x, rows, WideEnd::Gate, gated)?;
            } else {
                self.linear.store(device, &layer.gate_up, normed, a.both.at(0), rows)?;
                self.elementwise.silu_mul(device, a.both.at(0), gated, rows, p.feed_forward as u32)?;
            }
        }
        self.finish(&layer.down, gated, rows, sink)
    }

    /// What multiplies gate and up of so many rows in one product, SiLU inside; `None`: they go apart.
    fn wide_gate<'a>(&'a self, layer: &'a DeviceLayer, rows: u32) -> Option<(&'a Wide, &'a Dense)> {
        let (wide, matrix) = (self.wide.as_ref()?, dense(&layer.gate_up).ok()?);
        wide.takes(matrix, WideEnd::Gate, rows).then_some((wide, matrix))
    }

    /// Whether gates of so many rows open in their product, in every layer.
    pub(crate) fn has_wide_gates(&self, rows: u32) -> bool {
        self.weights.layers.iter().all(|layer| self.wide_gate(layer, rows).is_some())
    }

    fn finish(&self, matrix: &DeviceMatrix, from: u64, rows: u32, sink: Sink) -> Result<(), CudaError> {
        match sink {
            Sink::Residual => self.linear.add(&self.device, matrix, from, self.a.x.at(0), rows),
            Sink::Partial(to, Dtype::F32) => self.linear.store_float(&self.device, matrix, from, to, rows),
            Sink::Partial(to, _) => self.linear.store(&self.device, matrix, from, to, rows),
        }
    }

    pub(crate) fn layer_count(&self) -> usize {
        self.weights.layers.len()
    }
}

/// Cosine and sine of every position and pair.
fn angles(p: &Parameters, positions: u32) -> Vec<f32> {
    let (frequencies, amplitude) = (p.rope.frequencies(), p.rope.amplitude());
    let mut table = Vec::with_capacity(positions as usize * frequencies.len() * 2);
    for position in 0..positions {
        for frequency in &frequencies {
            let angle = f64::from(position) * frequency;
            table.extend([(angle.cos() * amplitude) as f32, (angle.sin() * amplitude) as f32]);
        }
    }
    table
}
