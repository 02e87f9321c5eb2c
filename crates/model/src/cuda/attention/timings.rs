//! What attention takes at the shape of Llama-3.1-8B: 32 query heads, 8 KV heads, head_dim 128, bf16; keys and values in bf16
//! and in FP8.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::*;
use crate::cuda::error::Doing;
use crate::cuda::fine;
use crate::cuda::timing::{Timing, time};

const HEAD_DIM: u32 = 128;
const Q_HEADS: u32 = 32;
const KV_HEADS: u32 = 8;
/// A batch of equal sequences.
#[derive(Clone, Copy)]
struct Batch {
    sequences: u32,
    /// Positions, the rows' own included.
    keys: u32,
    rows: u32,
    window: Window,
    kept: KvKept,
    mode: Mode,
}

/// Times decode, verification and prefill on `device`. Random numbers; every launch finds its keys and values outside
/// the L2 cache, as a step over many layers does.
pub(crate) fn timings(device: &Device) -> Result<Vec<Timing>, CudaError> {
    let full = |sequences, keys, rows, kept, mode| {
        let window = Window::FULL;
        Batch { sequences, keys, rows, window, kept, mode }
    };
    let mut timings = Vec::new();
    for (kept, mode) in
        [(KvKept::Dtype, Mode::Fast), (KvKept::Dtype, Mode::Invariant), (KvKept::Fp8, Mode::Fast)]
    {
        for (sequences, keys, rows) in [
            (1, 512, 1),
            (1, 2048, 1),
            (1, 8192, 1),
            (1, 32_768, 1),
            (8, 512, 1),
            (32, 512, 1),
            (128, 512, 1),
            (1, 2048, 8),
            (1, 32_768, 16),
            (32, 512, 5),
            (1, 2048, 2048),
            (1, 8192, 8192),
            (1, 8192, 512),
        ] {
            timings.push(one(device, full(sequences, keys, rows, kept, mode))?);
        }
    }
    let window = Window { sink: 64, recent: 1024 };
    for rows in [1, 2048] {
        timings.push(one(device, Batch { window, ..full(1, 32_768, rows, KvKept::Dtype, Mode::Fast) })?);
    }
    Ok(timings)
}

/// 2^20 numbers of bf16 between -2 and 2, and again.
fn numbers(count: usize) -> Vec<u16> {
    let mut state = 1_u32;
    let some: Vec<u16> = (0..1 << 20)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            half::bf16::from_f32((state >> 8) as f32 / 4_194_304.0 - 2.0).to_bits()
        })
        .collect();
    some.iter().copied().cycle().take(count).collect()
}

fn one(device: &Device, batch: Batch) -> Result<Timing, CudaError> {
    const WHAT: &str = "timing attention";
    let Batch { sequences, keys, rows, window, kept, mode } = batch;
    let shape =
        Shape { dtype: Dtype::Bf16, head_dim: HEAD_DIM, q_heads: Q_HEADS, kv_heads: KV_HEADS, kept, mode };
    let page_bytes = u64::from(KV_HEADS) * shape.cells().head() as u64;
    let pages_each = keys.div_ceil(PAGE);
    let pages = sequences * pages_each;
    let page_stride = page_bytes / shape.cells().element() as u64;
    let pool_bytes = u64::from(pages) * page_bytes;
    // Layers that the launches take in turn: more than the L2 holds.
    let layers = (256_u64 << 20).div_ceil(pool_bytes).clamp(1, 64);
    let row = (Q_HEADS * HEAD_DIM) as usize;
    let of = |what, count: usize| Buffer::of(device, what, &numbers(count));
    let pool = of("keys and values", (layers * pool_bytes / 2) as usize)?;
    let q = of("queries", (sequences * rows) as usize * row)?;
    let out = Buffer::zeros(device, "outputs", (sequences * rows) as usize * row * 2)?;
    let table_stride = pages_each.next_multiple_of(4);
    // Pages far apart: 97 has no factor in common with a number of pages that is a power of two.
    let page = |slot, i| {
        if i < pages_each { ((slot * pages_each + i) as u64 * 97 % u64::from(pages)) as i32 } else { -1 }
    };
    let table: Vec<i32> =
        (0..sequences).flat_map(|slot| (0..table_stride).map(move |i| page(slot, i))).collect();
    let table = Buffer::of(device, "page table", &table)?;
    let heads: Vec<i32> = (0..KV_HEADS as i32).chain(fine::ints(&[0; FINE])).collect();
    let heads = Buffer::of(device, "heads", &heads)?;

    let attention = Attention::new(device, shape, 1024, 1 << 16)?;
    let tile = TileRows::holding(rows, attention.group());
    let few = rows <= 16;
    let many = attention.many_tile(sequences * rows, KV_HEADS, device.multiprocessors);
    let rows_per_tile = if few { attention.few_rows(tile) } else { attention.many_rows(many) };
    let runs: Vec<Run> = (0..sequences)
        .map(|slot| Run { first_row: slot * rows, rows, slot, position: keys - rows, tree: None })
        .collect();
    let limits =
        Limits { rows: sequences * rows, slots: sequences, positions: table_stride * PAGE, masks: 0 };
    let mut cut = tiles(&runs, rows_per_tile, limits)?;
    let count = cut.len() as u32;
    let longest = cut.iter().map(|tile| active_keys(tile, window)).max().unwrap_or(0);
    let clusters = few && has_clusters(device, tile);
    let split_for = if mode == Mode::Invariant { span_split } else { split_for };
    let split = if few || mode == Mode::Invariant {
        split_for(count, KV_HEADS, longest, clusters, device.multiprocessors)
    } else {
        Split { positions: WHOLE, clusters: false }
    };
    place_partials(&mut cut, split.positions, KV_HEADS, attention.group(), 1 << 16);
    let tile_buffer = Buffer::of(device, "tiles", &cut)?;
    let header = Buffer::of(device, "header", &[count as i32, split.positions as i32])?;
    let view = |buffer, at| View { buffer, at };
    let tiles = Tiles {
        tiles: view(&tile_buffer, 0),
        header: view(&header, 0),
        masks: view(&header, 0),
        most: count,
    };
    let blocks = split_blocks(count, KV_HEADS, device.multiprocessors);

    let launch = |layer: u64| {
        let layer = Layer {
            q: view(&q, 0),
            q_stride: Q_HEADS * HEAD_DIM,
            out: view(&out, 0),
            rows: sequences * rows,
            pool: view(&pool, (layer % layers * pool_bytes) as usize),
            pages,
            page_stride,
            table: view(&table, 0),
            slots: sequences,
            table_stride,
            heads: view(&heads, 0),
            class_heads: KV_HEADS,
            window,
            scale: 0.1275,
        };
        if few {
            attention.few(device, &layer, &tiles, tile, blocks, split.clusters)
        } else {
            attention.many(device, &layer, &tiles, many)
        }
    };
    // In a graph, as in a step: otherwise short kernels take as long as their launch by the host.
    let repeats = if few { 64 } else { 8 };
    launch(0)?;
    device.synchronize()?;
    device.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).doing(WHAT)?;
    let queued = (0..repeats).try_for_each(launch);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let captured = device.stream.end_capture(flags).doing(WHAT);
    queued?;
    let graph = captured?.ok_or(CudaError::NotBuilt { what: WHAT })?;
    let whole = time(device, 9, 1, || graph.launch().doing(WHAT))?;

    let seen: u64 = (0..rows).map(|row| seen_by(keys - rows + row, window)).sum();
    let read = u64::from(longest) * page_bytes / u64::from(PAGE);
    Ok(Timing {
        kernel: match (few, kept, mode) {
            (true, KvKept::Dtype, Mode::Fast) => "attention few",
            (true, KvKept::Dtype, Mode::Invariant) => "attention few spans",
            (false, KvKept::Dtype, Mode::Fast) => "attention many",
            (false, KvKept::Dtype, Mode::Invariant) => "attention many spans",
            (true, KvKept::Fp8, Mode::Fast) => "attention few fp8",
            (true, KvKept::Fp8, Mode::Invariant) => "attention few fp8 spans",
            (false, KvKept::Fp8, Mode::Fast) => "attention many fp8",
            (false, KvKept::Fp8, Mode::Invariant) => "attention many fp8 spans",
        },
        shape: format!("{sequences} x {rows} rows, {keys} keys, sees {longest}"),
        microseconds: whole / repeats as f64,
        bytes: u64::from(sequences) * (read + 2 * u64::from(rows) * row as u64 * 2),
        operations: u64::from(sequences) * seen * 4 * row as u64,
    })
}

/// Keys that the row at `position` sees.
fn seen_by(position: u32, window: Window) -> u64 {
    u64::from(position + 1).min(u64::from(window.sink) + u64::from(window.recent))
}

/// Keys that the last row of a tile sees.
fn active_keys(tile: &Tile, window: Window) -> u32 {
    seen_by((tile.position + tile.rows - 1) as u32, window) as u32
}
