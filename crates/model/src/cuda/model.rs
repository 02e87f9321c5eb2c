//! The model on a GPU: steps in, picks out.

use std::path::Path;
use std::rc::Rc;

use engine::{Model, ModelError, ModelSpec, Pick, Picks, Ticket};
use kvcache::{ClassId, HeadMap, PageId};
use sampling::{Draw, Drawn};
use scheduler::Step;

use super::draw::{Bounds, Drawer, Logits, Outcome, Place, encode};
use super::early::{Begun, Expected};
use super::elementwise::Elementwise;
use super::exchange::{self, Exchange};
use super::fine;
use super::forward::{self, Forward, Sizes};
use super::handoff::Layout;
use super::host_pages::HostPages;
use super::kv::Kv;
use super::matrix::Weights;
use super::persistent::Persist;
use super::ranks::{Rank, Ranks};
use super::shard::Shard;
use super::trees;
use super::weights::{self, DeviceDecoder};
use super::{Buffer, Cells, CudaError, Device, Dtype, KvKept, Mode};
use crate::arch::{Architecture, Config, Parameters};
use crate::check::{self, CheckedRow};
use crate::files::Opened;
use crate::{LoadError, Options, PageBudget};

/// How a model is laid on a GPU, besides [`Options`].
#[derive(Clone, Debug, PartialEq)]
pub struct CudaOptions {
    /// Which GPUs share the model; the first one draws. One that is named twice holds two parts, for tests.
    pub ordinals: Vec<usize>,
    /// Sum by NCCL though the GPUs can read each other's memory: for comparison.
    pub nccl: bool,
    pub dtype: Dtype,
    pub weights: Weights,
    pub kv: KvKept,
    pub mode: Mode,
    /// Most rows computed together; a longer step goes through the layers in pieces of this many.
    pub rows: u32,
    /// Replay steps of few rows as CUDA graphs.
    pub graphs: bool,
    pub persistent: Persist,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinals: vec![0],
            nccl: false,
            dtype: Dtype::Bf16,
            weights: Weights::Dequantised,
            kv: KvKept::Dtype,
            mode: Mode::Fast,
            rows: 2048,
            graphs: true,
            persistent: Persist::BySize,
        }
    }
}

/// A model on one NVIDIA GPU, or on several that share it.
///
/// `submit` queues the layers and returns; `collect` queues head and draws and waits for them: four bytes a row come
/// back. Rows that ask for more than a token (log-probabilities, the rejection rule) are drawn on the host from their
/// logits.
pub struct CudaModel {
    // Freed in this order, the device last.
    pub(super) ranks: Ranks,
    host_pages: HostPages,
    drawer: Drawer,
    logits: Buffer,
    spec: ModelSpec,
    /// Width of the output layer.
    width: u32,
    pub(super) layout: Layout,
    /// The first rank's.
    device: Rc<Device>,
    tickets: u64,
    submitted: Option<u64>,
    /// Picking rows of the submitted step, and how many rows it has.
    picking: Vec<CheckedRow>,
    rows: usize,
    /// What will most likely follow it.
    expected: Option<Expected>,
    /// What was begun behind the step that was collected last.
    begun: Option<Begun>,
    /// Steps that had begun when they came.
    adopted: u64,
}

/// Rows whose logits exist at the same time.
const HEAD_ROWS: u32 = 128;
/// Edits of the rows of one head piece.
const MOST_ENTRIES: usize = 1 << 16;
/// Entries that one write of the page tables takes.
const TABLE_ENTRIES: usize = 1 << 14;
/// GPU memory left to the driver and to graphs when the KV cache takes what is free.
const RESERVE: u64 = 1 << 30;

impl CudaModel {
    /// Lays a `.gguf` file or a folder on the GPU.
    pub fn load(path: &Path, options: &Options, cuda: &CudaOptions) -> Result<Self, LoadError> {
        options.validate()?;
        let opened = Opened::open(path)?;
        opened.weights.prefetch();
        let (_, parameters, decoder) = opened.decoder()?;
        weights::check(cuda.weights, &decoder)?;
        let tied = std::ptr::eq(decoder.head.bytes(), decoder.embedding.bytes());
        Self::build(&parameters, options, cuda, |device, _, shard| {
            DeviceDecoder::upload(device, cuda.dtype, cuda.weights, &decoder, tied, shard)
        })
    }

    /// A model of the shape that a `config.json` describes, with weights made up from `seed`: it says nothing, at the
    /// speed of a real one.
    pub fn dummy(config: &Path, seed: u64, options: &Options, cuda: &CudaOptions) -> Result<Self, LoadError> {
        options.validate()?;
        let (architecture, parameters) = shape_of(config)?;
        if cuda.weights == Weights::Kept {
            let why = "kept needs a GGUF file; made-up weights are dequantised or fp8".to_owned();
            return Err(LoadError::BadOption { option: "weights", why });
        }
        Self::build(&parameters, options, cuda, |device, elementwise, shard| {
            let (dtype, weights) = (cuda.dtype, cuda.weights);
            DeviceDecoder::dummy(device, elementwise, dtype, weights, &parameters, architecture, seed, shard)
        })
    }

    fn build(
        p: &Parameters,
        options: &Options,
        cuda: &CudaOptions,
        weights: impl Fn(&Device, &Elementwise, Shard) -> Result<DeviceDecoder, CudaError>,
    ) -> Result<Self, LoadError> {
        cuda.weights.check(cuda.mode, cuda.ordinals.len())?;
        cuda.kv.check(cuda.dtype)?;
        let cells = Cells { dtype: cuda.dtype, kept: cuda.kv, head_dim: p.head_dim };
        let context = crate::cpu::context(options.context, p)?;
        let drawn = crate::cpu::drawn(options.vocab, p.vocab as u32)?;
        let map = crate::cpu::heads(options.heads.as_ref(), p)?;
        let shards = Shard::all(p, cuda.ordinals.len())?;
        let opened = cuda.ordinals.iter().map(|&ordinal| Device::open(ordinal).map(Rc::new));
        let devices = opened.collect::<Result<Vec<_>, _>>()?;
        let mut halves = Vec::new();
        for (device, &shard) in devices.iter().zip(&shards) {
            device.bind()?;
            let elementwise = Elementwise::new(device, cells)?;
            let weights = weights(device, &elementwise, shard)?;
            device.synchronize()?;
            let own = shard.heads(&map);
            let sizes =
                Sizes { rows: cuda.rows, slots: options.slots, positions: context, heads: own.most_heads() };
            let of = shard.parameters(p);
            halves.push((Forward::new(Rc::clone(device), &of, weights, elementwise, cuda, sizes)?, own));
        }
        let exchange = if devices.len() > 1 {
            let shape = exchange::Shape::new(p.hidden, cuda.rows, cuda.dtype, cuda.mode, cuda.nccl);
            Some(Exchange::new(&devices, shape)?)
        } else {
            None
        };
        // They exchange sums block by block, and by each other's memory; and each fills its GPU.
        let alike = devices.iter().all(|d| d.multiprocessors == devices[0].multiprocessors);
        let apart = (1..devices.len()).all(|i| !cuda.ordinals[..i].contains(&cuda.ordinals[i]));
        let all = halves.iter().all(|(forward, _)| forward.persists(1));
        if !all || !alike || !apart || exchange.as_ref().is_some_and(|exchange| exchange.peers(0).is_none()) {
            halves.iter_mut().for_each(|(forward, _)| forward.forget_persistent());
        }
        if exchange.is_some() {
            halves.iter_mut().for_each(|(forward, _)| forward.forget_streamed());
        }
        let device = Rc::clone(&devices[0]);
        device.bind()?;
        let bounds = Bounds {
            rows: HEAD_ROWS as usize,
            entries: MOST_ENTRIES,
            masks: HEAD_ROWS as usize,
            vocab: drawn as usize,
        };
        let drawer = Drawer::new(&device, bounds)?;
        let logits = |device: &Device, width: usize| {
            Buffer::zeros(device, "logits", HEAD_ROWS as usize * width * size_of::<f32>())
        };
        let whole = logits(&device, p.vocab)?;
        let mut parts = Vec::new();
        for (device, shard) in devices.iter().zip(&shards) {
            let columns = shard.columns(p.vocab);
            let part = if devices.len() > 1 { Some(logits(device, columns.len())?) } else { None };
            let entries = Buffer::zeros(device, "page table entries", TABLE_ENTRIES * size_of::<[i32; 4]>())?;
            parts.push((part, columns, entries));
        }
        // What is left is counted when all else is there; every rank has as many pages as the fullest GPU holds.
        let mut fewest: Option<Vec<u32>> = None;
        for (device, (_, own)) in devices.iter().zip(&halves) {
            device.bind()?;
            let pages = pages(device, options, context, own, cells)?;
            fewest = Some(match fewest {
                None => pages,
                Some(others) => others.into_iter().zip(pages).map(|(a, b)| a.min(b)).collect(),
            });
        }
        let pages = fewest.unwrap_or_default();
        let mut ranks = Vec::new();
        let fine = fine::columns(p.head_dim, &p.rope);
        for ((device, (forward, own)), (part, columns, entries)) in devices.iter().zip(halves).zip(parts) {
            let kv = Kv::new(device, &own, &pages, cells, &fine, options.slots, context)?;
            device.synchronize()?;
            ranks.push(Rank { forward, kv, entries, part, columns, device: Rc::clone(device) });
        }
        tracing::info!(
            layers = p.layers, context, ?pages, dtype = cuda.dtype.name(), weights = cuda.weights.name(),
            kv = cuda.kv.name(), gpus = ?cuda.ordinals, "model on the GPU"
        );
        let classes = &ranks[0].kv.classes;
        Ok(Self {
            spec: ModelSpec {
                vocab_size: drawn,
                context,
                classes: classes.iter().map(|c| (c.class, c.pages)).collect(),
                slots: options.slots,
                tree_rows: trees::TREE_ROWS,
                layered: None,
            },
            ranks: Ranks::new(ranks, exchange),
            host_pages: HostPages::default(),
            drawer,
            logits: whole,
            width: p.vocab as u32,
            layout: Layout { map, cells },
            device,
            tickets: 0,
            submitted: None,
            picking: Vec::new(),
            rows: 0,
            expected: None,
            begun: None,
            adopted: 0,
        })
    }

    /// Chooses the algorithms and captures the graphs of steps of few rows now: otherwise each size does it when it is
    /// first met, and somebody's answer stands still meanwhile.
    ///
    /// # Errors
    /// Those of the device; and with a step under way.
    pub fn warm(&mut self) -> Result<(), CudaError> {
        if self.submitted.is_some() {
            return Err(CudaError::NotBuilt { what: "warming up during a step" });
        }
        let start = std::time::Instant::now();
        self.begun = None;
        self.ranks.warm()?;
        for rows in forward::BUCKETS.into_iter().filter(|rows| *rows <= HEAD_ROWS) {
            self.ranks.head(0, rows, &self.logits, self.width)?;
        }
        self.ranks.synchronize()?;
        tracing::info!(seconds = start.elapsed().as_secs_f64(), "steps of few rows are captured");
        Ok(())
    }

    /// How many steps had begun when they were submitted ([`Model::expect`]).
    pub fn adopted(&self) -> u64 {
        self.adopted
    }

    /// Bytes of weights that every step reads, on all GPUs together.
    pub fn step_bytes(&self) -> u64 {
        self.ranks.step_bytes()
    }

    /// Executes a step and gives back the logits of its `Output::Pick` rows, by row index: the way out for tests and
    /// perplexity.
    pub fn logits(&mut self, step: &Step) -> Result<Vec<(u32, Vec<f32>)>, ModelError> {
        self.queue_layers(step)?;
        let (drawn, width) = (self.spec.vocab_size as usize, self.width as usize);
        let mut all = Vec::new();
        let picking = std::mem::take(&mut self.picking);
        for (piece, rows) in picking.chunks(HEAD_ROWS as usize).enumerate() {
            self.ranks.head(piece as u32 * HEAD_ROWS, rows.len() as u32, &self.logits, self.width)?;
            for (i, row) in rows.iter().enumerate() {
                let found = self.logits.read(&self.device, i * width * size_of::<f32>(), drawn)?;
                all.push((row.row, found));
            }
        }
        self.ranks.check()?;
        Ok(all)
    }

    /// Checks a step and queues its layers.
    fn queue_layers(&mut self, step: &Step) -> Result<(), ModelError> {
        if self.submitted.is_some() {
            return Err(ModelError::Unsupported { what: "a step before the last one is collected" });
        }
        let rows = check::rows(step, &self.spec)?;
        let picks = rows.iter().filter(|row| row.pick).count();
        crate::cache::bound("picking row", picks, Forward::MOST_PICKS as usize + 1)?;
        let placed = trees::place(&rows);
        self.host_pages.settle(self.ranks.all(), &self.layout)?;
        self.ranks.tables(&step.deltas, &placed)?;
        self.picks(&rows);
        let mut picked = 0;
        let most = self.ranks.first().forward.most_rows() as usize;
        for piece in trees::pieces(&placed, most) {
            picked += self.ranks.layers(piece, picked)?;
        }
        Ok(())
    }

    /// Remembers the rows of the step that is submitted.
    fn picks(&mut self, rows: &[CheckedRow]) {
        self.picking.clear();
        self.picking.extend(rows.iter().filter(|row| row.pick));
        self.rows = rows.len();
        (self.expected, self.begun) = (None, None);
    }

    /// Goes on with the step that was begun early, if `step` is that one or some of its rows; says whether it is.
    fn adopt(&mut self, step: &Step) -> Result<bool, ModelError> {
        let Some((plan, picks)) = self.begun.as_ref().and_then(|begun| begun.is(step)) else {
            return Ok(false);
        };
        let rows = check::rows(step, &self.spec)?;
        self.host_pages.settle(self.ranks.all(), &self.layout)?;
        self.ranks.tables(&step.deltas, &trees::place(&rows))?;
        self.picks(&rows);
        self.ranks.adopt(plan, &picks)?;
        self.adopted += 1;
        Ok(true)
    }

    /// Draws one piece of the head's rows, whose logits are on the device.
    fn draw(&mut self, rows: &[CheckedRow], draws: &[Draw], picks: &mut Vec<Pick>) -> Result<(), ModelError> {
        let positions: Vec<u32> = rows.iter().map(|row| row.position + 1).collect();
        let width = self.width as usize;
        let encoded = encode(draws, &positions, self.drawer.bounds());
        let mut begun = Ok(None);
        let outcomes = match &encoded {
            Ok(encoded) => {
                self.drawer.write(&self.device, encoded)?;
                let logits = Logits {
                    address: self.logits.at(0),
                    elements: HEAD_ROWS as usize * width,
                    stride: width,
                };
                self.drawer.launch(&self.device, logits, rows.len(), encoded.filters())?;
                // What the host draws from these logits does not wait for another step.
                let own = encoded.places.iter().all(|place| *place == Place::Device);
                if let Some(expected) = self.expected.take().filter(|_| own) {
                    let plan = self.ranks.begin_early(&trees::place(&expected.0), self.drawer.drawn());
                    begun = plan.map(|plan| plan.map(|plan| Begun::new(expected, plan)));
                }
                self.drawer.read(rows.len())?
            }
            // More edits than the arrays hold: all of these rows are the host's.
            Err(_) => vec![Outcome::Host; rows.len()],
        };
        self.ranks.check()?;
        let token = |outcome: &Outcome| match outcome {
            Outcome::Token(token) => Some(request::TokenId(*token)),
            _ => None,
        };
        let tokens: Vec<_> = outcomes.iter().map(token).collect();
        self.begun = begun?.and_then(|begun| begun.drew(&tokens));
        for (i, ((row, draw), outcome)) in rows.iter().zip(draws).zip(outcomes).enumerate() {
            let drawn = match outcome {
                Outcome::Token(token) => {
                    Some(Drawn { token: request::TokenId(token), logprobs: None, q: None })
                }
                Outcome::Host | Outcome::Unfinished => {
                    let at = i * width * size_of::<f32>();
                    let logits = self.logits.read(&self.device, at, self.spec.vocab_size as usize)?;
                    sampling::draw(&logits, draw, positions[i])
                }
                Outcome::NotFinite | Outcome::Nothing => None,
            };
            let drawn = drawn.ok_or(ModelError::NotFinite { row: row.row })?;
            picks.push(Pick { row: row.row, drawn });
        }
        Ok(())
    }
}

impl Model for CudaModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn layers(&self) -> u32 {
        self.layout.layers() as u32
    }

    fn export(
        &mut self,
        class: ClassId,
        page: PageId,
        layer: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        self.host_pages.read(self.ranks.all(), &self.layout, (class, page, layer), into)
    }

    fn import(&mut self, class: ClassId, page: PageId, layer: u32, bytes: &[u8]) -> Result<(), ModelError> {
        self.host_pages.write(self.ranks.all(), &self.layout, (class, page, layer), bytes)
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        if self.submitted.is_some() || !self.adopt(step)? {
            self.queue_layers(step)?;
        }
        self.tickets += 1;
        self.submitted = Some(self.tickets);
        Ok(Ticket(self.tickets))
    }

    fn begins_early(&self) -> bool {
        self.ranks.is_alone() && self.ranks.first().forward.captures()
    }

    fn expect(&mut self, next: &Step) {
        let expected = self.submitted.and_then(|_| Expected::new(next, &self.picking, self.rows, &self.spec));
        // One head piece, so that the draw behind which it begins gives all its tokens.
        let fits = self.picking.len() <= HEAD_ROWS as usize;
        self.expected =
            expected.filter(|expected| fits && expected.0.iter().all(|row| self.ranks.covers(row)));
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        if self.submitted != Some(ticket.0) {
            let why = format!("ticket {} does not name the submitted step", ticket.0);
            return Err(ModelError::Device(why));
        }
        let rows = self.picking.len();
        if draws.len() != rows {
            return Err(ModelError::Draws { draws: draws.len(), rows });
        }
        // Whatever comes of it: the next step may be submitted.
        self.submitted = None;
        let picking = std::mem::take(&mut self.picking);
        let mut picks = Vec::with_capacity(rows);
        let pieces = picking.chunks(HEAD_ROWS as usize).zip(draws.chunks(HEAD_ROWS as usize));
        for (piece, (rows, draws)) in pieces.enumerate() {
            self.ranks.head(piece as u32 * HEAD_ROWS, rows.len() as u32, &self.logits, self.width)?;
            self.draw(rows, draws, &mut picks)?;
        }
        if rows == 0 {
            // Nothing was read back; what went wrong must not surface in a later step.
            self.ranks.synchronize()?;
        }
        self.ranks.check()?;
        self.picking = picking;
        Ok(Picks(picks))
    }
}

impl std::fmt::Debug for CudaModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaModel").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl From<CudaError> for ModelError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.to_string())
    }
}

/// What a `config.json`, or the folder that it lies in, says of a model without weights.
pub(crate) fn shape_of(config: &Path) -> Result<(&'static Architecture, Parameters), LoadError> {
    let path = if config.is_dir() { config.join("config.json") } else { config.to_owned() };
    let io = |source| LoadError::Io { what: format!("reading {}", path.display()), source };
    Config::parse(&std::fs::read(&path).map_err(io)?)?.read()
}

/// Pages of each class within the budget. A class with a window needs few: it gets what its slots can hold at once.
fn pages(
    device: &Device,
    options: &Options,
    context: u32,
    map: &HeadMap,
    cells: Cells,
) -> Result<Vec<u32>, LoadError> {
    let bytes = match options.pages {
        PageBudget::Free(percent) => {
            let (free, _) = device.memory()?;
            PageBudget::Bytes(free.saturating_sub(RESERVE) / 100 * u64::from(percent.min(100)))
        }
        named => named,
    };
    let page = |class| (map.units(class) * cells.head()) as u64;
    let sizes: Vec<u64> = (0..map.classes.len()).map(page).collect();
    crate::cpu::pages(bytes, map, &sizes, options.slots, context)
}

#[cfg(test)]
mod tests;
