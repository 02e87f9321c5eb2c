//! Logits to tokens on the device: `sampling::draw` with `How::Pick`, to the token. The kernels are described in
//! `kernels/draw.cuh`, what they are asked in [`encode`].

mod encode;
#[cfg(test)]
mod tests;

pub(crate) use encode::{Bounds, Encoded, Place, encode};

use cudarc::driver::CudaEvent;

use super::error::Doing as _;
use super::timing::{Timing, time};
use super::{Arg, Buffer, CudaError, Device, HostMemory, Kernel, Launch, Module};

/// Threads of a block of the first two kernels; a thread owns a group of 32 logits.
const SCAN_THREADS: u32 = 256;
const FILTER_THREADS: u32 = 512;
/// Bins of weights of a row with top-p.
const BINS: usize = 2048;
/// Logits of a block.
const SPAN: usize = SCAN_THREADS as usize * 32;
/// The widest vocabulary: the last block of a row has a lane for each block, and rank keys have 18 bits of id.
const WIDEST: usize = 32 * SPAN;

/// Draws the rows of a step. Its arrays have fixed addresses, so that launches can be captured.
pub(crate) struct Drawer {
    _module: Module,
    _filter_module: Module,
    scan: Kernel,
    mass: Kernel,
    filter: Kernel,
    bounds: Bounds,
    asks: Buffer,
    entries: Buffer,
    masks: Buffer,
    /// Each group's highest logit, and weights in bins, for rows with filters.
    peaks: Buffer,
    bins: Buffer,
    partials: Buffer,
    tickets: Buffer,
    reached: Buffer,
    best: Buffer,
    results: Buffer,
    /// Of few rows, asks; of rows without filters, results: a copy would stand between the kernels for longer than they take.
    near_asks: HostMemory,
    near_results: HostMemory,
    /// Address of what was asked last.
    asked_at: u64,
    /// Behind the results: what is queued after them is not waited for.
    done: CudaEvent,
}

/// Logits on the device: f32, row after row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Logits {
    /// A multiple of 16.
    pub(crate) address: u64,
    /// Floats from `address` on that belong to them.
    pub(crate) elements: usize,
    /// Floats from one row to the next, a multiple of 4.
    pub(crate) stride: usize,
}

/// What a row gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Token(u32),
    /// NaN or +inf, in the logits as they came or as they were edited.
    NotFinite,
    /// Every token is impossible.
    Nothing,
    /// The row is the host's to draw ([`encode::Place::Host`]).
    Host,
    /// A row with filters, launched without them.
    Unfinished,
}

/// Rows whose asks are read from the host's memory: many would queue for the bus.
const NEAR_ROWS: usize = 16;

/// Blocks and padded groups of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    blocks: u32,
    groups: u32,
}

fn shape(vocab: usize) -> Shape {
    let blocks = vocab.div_ceil(SPAN).max(1) as u32;
    Shape { blocks, groups: blocks * SCAN_THREADS }
}

impl Drawer {
    /// Room for what `bounds` says.
    pub(crate) fn new(device: &Device, bounds: Bounds) -> Result<Self, CudaError> {
        if bounds.vocab > WIDEST {
            return Err(CudaError::NotBuilt { what: "drawing from more than 262144 logits" });
        }
        let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/draw.fatbin")))?;
        let filter_module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/draw_filter.fatbin")))?;
        let Shape { blocks, groups } = shape(bounds.vocab);
        let groups = bounds.rows * groups as usize;
        let zeros = |bytes| Buffer::zeros(device, "the arrays of the sampler", bytes);
        let near = |bytes| HostMemory::new(device, "memory that the sampler shares with the host", bytes);
        let near_asks = near((NEAR_ROWS.min(bounds.rows) + 1) * encode::WORDS * 4)?;
        Ok(Self {
            scan: module.kernel("draw_scan", 0)?,
            mass: filter_module.kernel("draw_mass", 0)?,
            filter: filter_module.kernel("draw_filter", 0)?,
            _module: module,
            _filter_module: filter_module,
            bounds,
            asks: zeros((bounds.rows + 1) * encode::WORDS * 4)?,
            entries: zeros(bounds.entries * encode::ENTRY_WORDS * 4)?,
            masks: zeros(bounds.masks * bounds.words() * 4)?,
            peaks: zeros(groups * 4)?,
            bins: zeros(bounds.rows * BINS * 8)?,
            partials: zeros(bounds.rows * blocks as usize * 16)?,
            tickets: zeros(bounds.rows * 4)?,
            reached: zeros(bounds.rows * 8)?,
            best: zeros(bounds.rows * 4)?,
            results: zeros(bounds.rows * 8)?,
            asked_at: near_asks.at(0),
            near_asks,
            near_results: near(bounds.rows * 8)?,
            done: device.context.new_event(None).doing("making an event")?,
        })
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Hands over what the rows of the next launch ask for, behind all queued work.
    pub(crate) fn write(&mut self, device: &Device, draws: &Encoded) -> Result<(), CudaError> {
        // Each is within its buffer, or `write` refuses it.
        if draws.asks.len() <= (NEAR_ROWS + 1) * encode::WORDS {
            self.near_asks.write(0, &draws.asks);
            self.asked_at = self.near_asks.at(0);
        } else {
            self.asks.write(device, 0, &draws.asks)?;
            self.asked_at = self.asks.at(0);
        }
        if !draws.entries.is_empty() {
            self.entries.write(device, 0, &draws.entries)?;
        }
        if !draws.masks.is_empty() {
            self.masks.write(device, 0, &draws.masks)?;
        }
        Ok(())
    }

    /// Queues the draw of as many rows as were written, at most `rows`. Without `filters`, rows that have some stay
    /// [`Outcome::Unfinished`]. Logits that are edited are changed where they lie.
    pub(crate) fn launch(
        &self,
        device: &Device,
        logits: Logits,
        rows: usize,
        filters: bool,
    ) -> Result<(), CudaError> {
        assert!(rows <= self.bounds.rows, "more rows than the sampler has room for");
        assert!(
            logits.address.is_multiple_of(16) && logits.stride.is_multiple_of(4),
            "logits off their grid"
        );
        if rows == 0 {
            return Ok(());
        }
        let end = (rows - 1) * logits.stride + self.bounds.vocab;
        assert!(self.bounds.vocab <= logits.stride && end <= logits.elements, "rows beyond the logits");
        let Shape { blocks, groups } = shape(self.bounds.vocab);
        let results = if filters { self.results.at(0) } else { self.near_results.at(0) };
        let shared: [Arg; 11] = [
            logits.address.into(),
            (logits.stride as u64).into(),
            (self.bounds.vocab as u32).into(),
            self.asked_at.into(),
            (self.asked_at + encode::WORDS as u64 * 4).into(),
            self.masks.at(0).into(),
            (self.bounds.words() as u32).into(),
            self.peaks.at(0).into(),
            self.bins.at(0).into(),
            self.best.at(0).into(),
            results.into(),
        ];
        let with = |more: &[Arg]| [&shared, more].concat();
        let own: [Arg; 4] =
            [&self.entries, &self.partials, &self.tickets, &self.reached].map(|b| b.at(0).into());
        let spread = Launch { grid: [blocks, rows as u32, 1], threads: SCAN_THREADS, shared: 0 };
        device.launch(self.scan, spread, &with(&own))?;
        if filters {
            device.launch(self.mass, spread, &shared)?;
            let whole = Launch { grid: [rows as u32, 1, 1], threads: FILTER_THREADS, shared: 0 };
            device.launch(self.filter, whole, &with(&[groups.into()]))?;
            self.near_results.copy(device, &self.results, 8 * rows)?;
        }
        self.done.record(&device.stream).doing("drawing")
    }

    /// Where the rows of the last launch leave (token, status) pairs, for kernels queued behind it.
    pub(crate) fn drawn(&self) -> u64 {
        self.near_results.at(0)
    }

    /// Waits for the last launch and reads what its first `rows` rows gave.
    pub(crate) fn read(&self, rows: usize) -> Result<Vec<Outcome>, CudaError> {
        self.done.synchronize().doing("waiting for the GPU")?;
        let raw: Vec<i32> = self.near_results.read(0, 2 * rows);
        Ok(raw.as_chunks().0.iter().map(|pair| Outcome::of(*pair)).collect())
    }

    /// Rows of a Llama-3.1-8B: logits that the output layer has just written.
    pub(crate) fn timings(device: &Device) -> Result<Vec<Timing>, CudaError> {
        use request::{Sampling, SamplingParams};
        let (vocab, most) = (128_256, 128);
        let mut drawer = Self::new(device, Bounds { rows: most, entries: 16, masks: 1, vocab })?;
        let mut timings = Vec::new();
        for (law, spread, favourites) in [("peaked", 1.5, 200), ("flat", 2.5, 0)] {
            let values = logits(vocab, 16, spread, favourites);
            let mut buffer = Buffer::zeros(device, "logits", most * vocab * 4)?;
            for copy in 0..most / 16 {
                buffer.write(device, copy * size_of_val(&values[..]), &values)?;
            }
            let at = Logits { address: buffer.at(0), elements: most * vocab, stride: vocab };
            let all = SamplingParams::at(0.8);
            for (kernel, params) in [
                ("draw greedy", SamplingParams::GREEDY),
                ("draw temperature", all),
                ("draw min-p 0.05", SamplingParams { min_p: 0.05, ..all }),
                ("draw top-k 20 top-p 0.8", SamplingParams { top_k: 20, top_p: 0.8, ..all }),
                ("draw top-p 0.95", SamplingParams { top_p: 0.95, ..all }),
            ] {
                let filters = params.top_k != 0 || params.top_p < 1.0 || params.min_p > 0.0;
                for rows in [1, 8, 32, most] {
                    let draws: Vec<_> = (0..rows as u64)
                        .map(|seed| sampling::Draw::new(Sampling { params, seed, choice: 0 }))
                        .collect();
                    let Ok(encoded) = encode(&draws, &vec![9; rows], drawer.bounds) else { continue };
                    drawer.write(device, &encoded)?;
                    let run = || drawer.launch(device, at, rows, filters);
                    let microseconds = time(device, 7, 20, run)?;
                    timings.push(Timing {
                        kernel,
                        shape: format!("{rows} x {vocab} {law}"),
                        microseconds,
                        bytes: (rows * vocab * 4) as u64,
                        operations: 0,
                    });
                }
            }
        }
        Ok(timings)
    }
}

/// Rows of nearly normal logits, of which `favourites` a row are up to 14 higher.
fn logits(vocab: usize, rows: usize, spread: f32, favourites: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0
    };
    let mut values: Vec<f32> =
        (0..rows * vocab).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * spread).collect();
    for row in values.chunks_exact_mut(vocab) {
        for rank in 0..favourites {
            row[(uniform() * vocab as f32) as usize % vocab] += 14.0 - 3.0 * (1.0 + rank as f32).ln();
        }
    }
    values
}

impl Outcome {
    pub(crate) fn of([token, status]: [i32; 2]) -> Self {
        match status {
            1 if token >= 0 => Self::Token(token as u32),
            0 => Self::Host,
            2 => Self::NotFinite,
            3 => Self::Nothing,
            _ => Self::Unfinished,
        }
    }
}
