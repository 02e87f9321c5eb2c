//! Attention of one layer and one head class, over keys and values in pages.
//!
//! A step's rows are cut into tiles on the host ([`tiles()`]): sequences with few rows (decode, verification) for
//! [`Attention::few`], those with many (prefill) for [`Attention::many`]. Tiles, their count and the split lie in
//! device memory, so that a captured launch serves every step of its bucket.
//!
//! In the batch-invariant mode the split is [`SPAN`] everywhere: then a row's bits depend neither on its tile nor on
//! its batch nor on which of the two computed it. In F32 they never do.

mod geometry;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
mod tiles;
pub(crate) mod timings;

pub(crate) use geometry::{ManyRows, TileRows};
pub(crate) use tiles::{
    Limits, MOST_TREE_ROWS, Run, Split, Tile, Tree, cluster, place_partials, span_split, split_blocks,
    split_for, tiles,
};

use super::fine::FINE;
use super::{Arg, Buffer, Cells, CudaError, Device, Dtype, FP8_OF_OTHERS, Kernel, KvKept, Mode, Module};

/// Keys of a block, four pages: splits are multiples of it.
pub(crate) const BLOCK: u32 = 64;
/// The split of the batch-invariant mode.
pub(crate) const SPAN: u32 = 256;
/// A split that holds every context: no partial results.
pub(crate) const WHOLE: u32 = i32::MAX as u32 / BLOCK * BLOCK;
/// Positions of a page.
const PAGE: u32 = 16;
/// Floats of a partial row beside the values: maximum, sum, padding.
const PARTIAL_STATE: u32 = 4;
/// Bytes of the counters of a tile and head.
const COUNTERS: u64 = 16;

/// Which keys a head class sees from position i: those j <= i with j < sink or i - j < recent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) sink: u32,
    pub(crate) recent: u32,
}

impl Window {
    pub(crate) const FULL: Self = Self { sink: 0, recent: i32::MAX as u32 };
}

/// What is the same for all layers of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Of queries and outputs, and of keys and values before they are kept.
    pub(crate) dtype: Dtype,
    /// 64 or 128.
    pub(crate) head_dim: u32,
    pub(crate) q_heads: u32,
    pub(crate) kv_heads: u32,
    /// What keys and values are kept in.
    pub(crate) kept: KvKept,
    /// Invariant: one partial result a [`SPAN`], in both kernels.
    pub(crate) mode: Mode,
}

impl Shape {
    fn cells(self) -> Cells {
        Cells { dtype: self.dtype, kept: self.kept, head_dim: self.head_dim as usize }
    }
}

/// A place in a buffer, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) buffer: &'a Buffer,
    pub(crate) at: usize,
}

/// A layer's keys and values of a head class, and the rows' queries and outputs. Strides in elements, as they are stored.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    /// Row i at `i * q_stride`: [q_heads][head_dim].
    pub(crate) q: View<'a>,
    pub(crate) q_stride: u32,
    /// [rows][q_heads][head_dim].
    pub(crate) out: View<'a>,
    /// Rows that tiles may name.
    pub(crate) rows: u32,
    /// Page p at `p * page_stride`: [class heads][keys, values][16][head_dim]; of codes their scales follow the values.
    pub(crate) pool: View<'a>,
    pub(crate) pages: u32,
    pub(crate) page_stride: u64,
    /// i32 [slots][table_stride]: page ids by position / 16. The stride is a multiple of 4.
    pub(crate) table: View<'a>,
    pub(crate) slots: u32,
    pub(crate) table_stride: u32,
    /// i32 [class_heads]: the KV head of each head of the class. For codes then u8 [FINE]: the columns of keys that have
    /// a second code.
    pub(crate) heads: View<'a>,
    pub(crate) class_heads: u32,
    pub(crate) window: Window,
    /// On scores, times log2(e): 2^(score * scale) is a weight.
    pub(crate) scale: f32,
}

/// Tiles in device memory.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    /// [`Tile`] [most], made by [`tiles()`].
    pub(crate) tiles: View<'a>,
    /// i32 [2]: how many tiles there are, at most `most`; the split, a multiple of [`BLOCK`].
    pub(crate) header: View<'a>,
    /// u64: the masks of trees.
    pub(crate) masks: View<'a>,
    pub(crate) most: u32,
}

/// The attention kernels for one shape, and the workspace of their partial results.
pub(crate) struct Attention {
    shape: Shape,
    few: [Kernel; 3],
    many: [Kernel; 2],
    partials: Buffer,
    counters: Buffer,
    _modules: Vec<Module>,
}

impl Attention {
    /// Refuses shapes it is not built for. `few_tiles`: the most of a launch of [`few`](Self::few); `partial_rows`:
    /// room for partial results, one a query row and split (see [`place_partials`]).
    pub(crate) fn new(
        device: &Device,
        shape: Shape,
        few_tiles: u32,
        partial_rows: u32,
    ) -> Result<Self, CudaError> {
        let Shape { dtype, head_dim, q_heads, kv_heads, .. } = shape;
        if kv_heads == 0 || q_heads == 0 || q_heads % kv_heads != 0 {
            return bad(format!("{q_heads} query heads are not shared evenly by {kv_heads} key heads"));
        }
        if q_heads / kv_heads > 64 {
            return bad(format!("{} query heads a key head; at most 64 are built", q_heads / kv_heads));
        }
        if shape.kept == KvKept::Fp8 && dtype != Dtype::Bf16 {
            return Err(CudaError::NotBuilt { what: FP8_OF_OTHERS });
        }
        let names = names(shape.cells(), shape.mode)
            .ok_or(CudaError::NotBuilt { what: "attention with a head_dim other than 64 and 128" })?;
        let load = |image| device.module(image);
        let (few_module, many_module) = if dtype == Dtype::F32 {
            let plain = include_bytes!(concat!(env!("OUT_DIR"), "/attention_plain.fatbin"));
            (load(plain)?, load(plain)?)
        } else {
            (
                load(include_bytes!(concat!(env!("OUT_DIR"), "/attention_few.fatbin")))?,
                load(include_bytes!(concat!(env!("OUT_DIR"), "/attention_many.fatbin")))?,
            )
        };
        let shared = |tile| if dtype == Dtype::F32 { 0 } else { geometry::few_shared(shape.cells(), tile) };
        let [a, b, c] = TileRows::ALL;
        let few = [
            few_module.kernel(names[0], shared(a))?,
            few_module.kernel(names[1], shared(b))?,
            many_module.kernel(names[2], shared(c))?,
        ];
        let shared = |tile| if dtype == Dtype::F32 { 0 } else { geometry::many_shared(shape.cells(), tile) };
        let [a, b] = ManyRows::ALL;
        let many = [many_module.kernel(names[3], shared(a))?, many_module.kernel(names[4], shared(b))?];
        let partial = u64::from(head_dim + PARTIAL_STATE) * 4;
        let bytes = |count: u64, each: u64| (count * each) as usize;
        Ok(Self {
            shape,
            few,
            many,
            partials: Buffer::zeros(
                device,
                "partial results of attention",
                bytes(u64::from(partial_rows), partial),
            )?,
            counters: Buffer::zeros(
                device,
                "counters of attention",
                bytes(u64::from(few_tiles) * u64::from(kv_heads), COUNTERS),
            )?,
            _modules: vec![few_module, many_module],
        })
    }

    /// Query heads that share a key head.
    pub(crate) fn group(&self) -> u32 {
        self.shape.q_heads / self.shape.kv_heads
    }

    /// Rows of a sequence that fit a tile of `tile`.
    pub(crate) fn few_rows(&self, tile: TileRows) -> u32 {
        tile.query_rows() / self.group()
    }

    /// Rows of a sequence that fit a tile of `tile`.
    pub(crate) fn many_rows(&self, tile: ManyRows) -> u32 {
        tile.query_rows() / self.group()
    }

    /// The tile for a launch of [`many`](Self::many) with `rows` rows and `heads` heads: in the batch-invariant mode
    /// the only one, else the faster one.
    pub(crate) fn many_tile(&self, rows: u32, heads: u32, multiprocessors: u32) -> ManyRows {
        match self.shape.mode {
            Mode::Invariant => ManyRows::SixtyFour,
            Mode::Fast => ManyRows::fastest(rows.saturating_mul(self.group()), heads, multiprocessors),
        }
    }

    /// Queues attention of tiles of up to [`few_rows`](Self::few_rows) rows. `blocks` share the splits of a tile
    /// ([`split_blocks`]), in clusters or not ([`Split::clusters`]). The tiles' partials must have been placed by
    /// [`place_partials`] in this workspace, for the split in the header, for at least as many heads as the class has.
    pub(crate) fn few(
        &self,
        device: &Device,
        layer: &Layer<'_>,
        tiles: &Tiles<'_>,
        tile: TileRows,
        blocks: u32,
        clusters: bool,
    ) -> Result<(), CudaError> {
        self.check(layer, tiles)?;
        if blocks == 0 || tiles.most > 65_535 {
            return bad(format!("a launch of {blocks} blocks for each of {} tiles", tiles.most));
        }
        if COUNTERS as usize * tiles.most as usize * layer.class_heads as usize > self.counters.bytes() {
            return bad(format!("{} tiles are more than the workspace was made for", tiles.most));
        }
        let (heads, kernel) = (layer.class_heads, self.few[tile as usize]);
        if self.shape.dtype == Dtype::F32 {
            return self.plain(device, layer, tiles, kernel);
        }
        let shared = geometry::few_shared(self.shape.cells(), tile);
        let size = if clusters && has_clusters(device, tile) { cluster(blocks) } else { 1 };
        // Blocks beyond the splits return.
        let launch = geometry::few_launch(blocks.next_multiple_of(size), heads, tiles.most, shared);
        let mut args = self.args(layer, tiles);
        args.extend([address(tiles.masks), self.partials.at(0).into(), self.counters.at(0).into()]);
        args.extend(self.last_args(layer));
        device.launch_clusters(kernel, launch, size, &args)
    }

    /// Queues attention of tiles of up to [`many_rows`](Self::many_rows) rows; no trees. The split in the header is
    /// [`SPAN`] in the batch-invariant mode and [`WHOLE`] in the fast one.
    pub(crate) fn many(
        &self,
        device: &Device,
        layer: &Layer<'_>,
        tiles: &Tiles<'_>,
        tile: ManyRows,
    ) -> Result<(), CudaError> {
        self.check(layer, tiles)?;
        let kernel = self.many[tile as usize];
        if self.shape.mode == Mode::Invariant && tile == ManyRows::OneTwentyEight {
            return bad("tiles of 128 query rows are not batch-invariant");
        }
        if tiles.most > 65_535 {
            return bad(format!("a launch of {} tiles", tiles.most));
        }
        if self.shape.dtype == Dtype::F32 {
            return self.plain(device, layer, tiles, kernel);
        }
        let shared = geometry::many_shared(self.shape.cells(), tile);
        let launch = geometry::many_launch(layer.class_heads, tiles.most, shared);
        let mut args = self.args(layer, tiles);
        args.extend(self.last_args(layer));
        device.launch(kernel, launch, &args)
    }

    fn plain(
        &self,
        device: &Device,
        layer: &Layer<'_>,
        tiles: &Tiles<'_>,
        kernel: Kernel,
    ) -> Result<(), CudaError> {
        let launch = geometry::many_launch(layer.class_heads, tiles.most, 0);
        let mut args = self.args(layer, tiles);
        args.push(address(tiles.masks));
        args.extend(self.last_args(layer));
        device.launch(kernel, launch, &args)
    }

    fn args(&self, layer: &Layer<'_>, tiles: &Tiles<'_>) -> Vec<Arg> {
        vec![
            address(layer.q),
            u64::from(layer.q_stride).into(),
            address(layer.out),
            address(layer.pool),
            layer.page_stride.into(),
            address(layer.table),
            layer.table_stride.into(),
            address(layer.heads),
            address(tiles.tiles),
            address(tiles.header),
        ]
    }

    fn last_args(&self, layer: &Layer<'_>) -> [Arg; 5] {
        let Window { sink, recent } = layer.window;
        [self.shape.q_heads.into(), self.group().into(), sink.into(), recent.into(), layer.scale.into()]
    }

    /// Whether the kernels stay within the buffers, as far as the host knows: tiles and the table's page ids are on
    /// the device, and are right if [`tiles()`] and the page tables made them.
    fn check(&self, layer: &Layer<'_>, tiles: &Tiles<'_>) -> Result<(), CudaError> {
        let Shape { dtype, head_dim, q_heads, kv_heads, .. } = self.shape;
        let (element, row) = (dtype.bytes() as u64, u64::from(q_heads) * u64::from(head_dim));
        let cells = self.shape.cells();
        let (stored, head) = (cells.element() as u64, (cells.head() / cells.element()) as u64);
        let (heads, rows, q_stride) =
            (u64::from(layer.class_heads), u64::from(layer.rows), u64::from(layer.q_stride));
        if heads == 0 || heads > u64::from(kv_heads) || tiles.most == 0 {
            return bad(format!("{heads} heads of {kv_heads}, {} tiles", tiles.most));
        }
        if q_stride < row || layer.page_stride < heads * head {
            return bad(format!("strides of {q_stride} and {} are too small", layer.page_stride));
        }
        if !layer.table_stride.is_multiple_of(BLOCK / PAGE) || layer.table_stride > i32::MAX as u32 / PAGE {
            return bad(format!("a page table of {} pages a slot", layer.table_stride));
        }
        let last = |count: u64, stride: u64, size: u64| count.saturating_sub(1) * stride + size;
        let int = 4;
        let fine = if cells.kept == KvKept::Fp8 { FINE as u64 } else { 0 };
        for (what, view, bytes, align) in [
            ("q", layer.q, element * last(rows, q_stride, row), 16),
            ("out", layer.out, element * rows * row, 16),
            (
                "the pool",
                layer.pool,
                stored * last(u64::from(layer.pages), layer.page_stride, heads * head),
                16,
            ),
            ("the table", layer.table, int * u64::from(layer.slots) * u64::from(layer.table_stride), 16),
            ("the heads", layer.heads, heads * int + fine, 4),
            ("the tiles", tiles.tiles, u64::from(tiles.most) * size_of::<Tile>() as u64, 16),
            ("the header", tiles.header, 2 * int, 4),
            ("the masks", tiles.masks, 0, 8),
        ] {
            let room = view.buffer.bytes().checked_sub(view.at).map(|room| room as u64);
            if view.at % align != 0 || room.is_none_or(|room| room < bytes) {
                return bad(format!("{what} at {} needs {bytes} bytes of {}", view.at, view.buffer.bytes()));
            }
        }
        if !(q_stride * element).is_multiple_of(16) || !(layer.page_stride * stored).is_multiple_of(16) {
            return bad("rows and pages must begin at multiples of 16 bytes");
        }
        if i32::try_from(layer.window.recent.max(layer.window.sink)).is_err() || layer.window.recent == 0 {
            return bad(format!("{:?}", layer.window));
        }
        Ok(())
    }
}

/// Whether blocks that share a tile may merge in a cluster: the kernel of the largest tiles does not.
pub(crate) fn has_clusters(device: &Device, tile: TileRows) -> bool {
    device.hopper && tile != TileRows::SixtyFour
}

/// The kernels' names: for few rows, tiles of 16, 32 and 64 query rows; for many, of 64 and 128. Rows of trees are computed
/// as chains ([`Tree::as_chain`]) in the batch-invariant mode alone: only its kernels look for paths.
fn names(cells: Cells, mode: Mode) -> Option<[&'static str; 5]> {
    macro_rules! names {
        ($suffix:literal) => {
            match mode {
                Mode::Fast => names!($suffix, ""),
                Mode::Invariant => names!($suffix, "_paths"),
            }
        };
        ($suffix:literal, $paths:literal) => {
            [
                concat!("attention_few16_", $suffix, $paths),
                concat!("attention_few32_", $suffix, $paths),
                concat!("attention_few64_", $suffix, $paths),
                concat!("attention_splits_", $suffix),
                concat!("attention_many_", $suffix),
            ]
        };
    }
    Some(match (cells.head_dim, cells.dtype) {
        (64, _) if cells.kept == KvKept::Fp8 => names!("64_fp8"),
        (128, _) if cells.kept == KvKept::Fp8 => names!("128_fp8"),
        (64, Dtype::Bf16) => names!("64_bf16"),
        (128, Dtype::Bf16) => names!("128_bf16"),
        (64, Dtype::F16) => names!("64_f16"),
        (128, Dtype::F16) => names!("128_f16"),
        (64, Dtype::F32) => ["attention_plain_64_f32"; 5],
        (128, Dtype::F32) => ["attention_plain_128_f32"; 5],
        _ => return None,
    })
}

fn address(view: View<'_>) -> Arg {
    view.buffer.at(view.at).into()
}

fn bad<T>(why: impl Into<String>) -> Result<T, CudaError> {
    Err(CudaError::Arguments { kernel: "attention", why: why.into() })
}
