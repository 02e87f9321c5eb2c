//! The model on a GPU: steps in, picks out.

use std::path::Path;
use std::rc::Rc;

use engine::{Model, ModelError, ModelSpec, Pick, Picks, Ticket};
use sampling::{Draw, Drawn};
use scheduler::Step;

use super::draw::{Bounds, Drawer, Logits, Outcome, encode};
use super::forward::{Forward, Sizes};
use super::kv::{HeadMap, Kv};
use super::matrix::Weights;
use super::weights::{self, DeviceDecoder};
use super::{Buffer, CudaError, Device, Dtype, Mode};
use crate::arch::{Architecture, Config, Parameters};
use crate::check::{self, CheckedRow};
use crate::files::Opened;
use crate::{LoadError, Options, PageBudget};

/// How a model is laid on a GPU, besides [`Options`].
#[derive(Clone, Debug, PartialEq)]
pub struct CudaOptions {
    /// Which GPU.
    pub ordinal: usize,
    pub dtype: Dtype,
    pub weights: Weights,
    pub mode: Mode,
    /// Most rows computed together; a longer step goes through the layers in pieces of this many.
    pub rows: u32,
    /// Which heads look back how far; `None`: as the model's files say. Anything else is approximate.
    pub heads: Option<HeadMap>,
    /// Replay steps of few rows as CUDA graphs.
    pub graphs: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            dtype: Dtype::Bf16,
            weights: Weights::Dequantised,
            mode: Mode::Fast,
            rows: 2048,
            heads: None,
            graphs: true,
        }
    }
}

/// A model on one NVIDIA GPU.
///
/// `submit` queues the layers and returns; `collect` queues head and draws and waits for them: four bytes a row come
/// back. Rows that ask for more than a token (log-probabilities, the rejection rule) are drawn on the host from their
/// logits.
pub struct CudaModel {
    // Freed in this order, the device last.
    forward: Forward,
    kv: Kv,
    drawer: Drawer,
    logits: Buffer,
    /// Table entries on their way to the device.
    entries: Buffer,
    spec: ModelSpec,
    /// Width of the output layer.
    width: u32,
    device: Rc<Device>,
    tickets: u64,
    submitted: Option<u64>,
    /// Picking rows of the submitted step: index in the step, position.
    picking: Vec<(u32, u32)>,
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
        Self::build(&parameters, options, cuda, |device, _| {
            DeviceDecoder::upload(device, cuda.dtype, cuda.weights, &decoder, tied)
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
        Self::build(&parameters, options, cuda, |device, forward| {
            DeviceDecoder::dummy(device, forward, cuda.dtype, cuda.weights, &parameters, architecture, seed)
        })
    }

    fn build(
        p: &Parameters,
        options: &Options,
        cuda: &CudaOptions,
        weights: impl FnOnce(&Device, &super::elementwise::Elementwise) -> Result<DeviceDecoder, CudaError>,
    ) -> Result<Self, LoadError> {
        cuda.weights.check(cuda.mode)?;
        let context = crate::cpu::context(options.context, p)?;
        let width = p.vocab as u32;
        let drawn = crate::cpu::drawn(options.vocab, width)?;
        let device = Rc::new(Device::open(cuda.ordinal)?);
        let map = cuda.heads.clone().unwrap_or_else(|| HeadMap::uniform(p.class(), p.layers, p.kv_heads));
        map.check(p.layers, p.kv_heads)?;
        let heads = (0..p.layers)
            .flat_map(|layer| (0..map.classes.len()).map(move |class| (layer, class)))
            .map(|(layer, class)| map.heads(layer, class).count())
            .max();
        let sizes = Sizes {
            rows: cuda.rows,
            slots: options.slots,
            positions: context,
            heads: heads.unwrap_or(0) as u32,
        };
        let elementwise = super::elementwise::Elementwise::new(&device, cuda.dtype, p.head_dim)?;
        let weights = weights(&device, &elementwise)?;
        device.synchronize()?;
        let forward = Forward::new(Rc::clone(&device), p, weights, elementwise, cuda, sizes)?;
        let bounds = Bounds {
            rows: HEAD_ROWS as usize,
            entries: MOST_ENTRIES,
            masks: HEAD_ROWS as usize,
            vocab: drawn as usize,
        };
        let drawer = Drawer::new(&device, bounds)?;
        let logits = Buffer::zeros(&device, "logits", HEAD_ROWS as usize * p.vocab * size_of::<f32>())?;
        let entries = Buffer::zeros(&device, "page table entries", TABLE_ENTRIES * size_of::<[i32; 4]>())?;
        // What is left is counted when all else is there.
        let pages = pages(&device, options.pages, &map, p.head_dim, cuda.dtype)?;
        let kv = Kv::new(&device, &map, &pages, p.head_dim, cuda.dtype, options.slots, context)?;
        device.synchronize()?;
        tracing::info!(
            layers = p.layers,
            context,
            ?pages,
            dtype = cuda.dtype.name(),
            weights = cuda.weights.name(),
            gpu = cuda.ordinal,
            "model on the GPU"
        );
        Ok(Self {
            spec: ModelSpec {
                vocab_size: drawn,
                context,
                classes: kv.classes.iter().map(|c| (c.class, c.pages)).collect(),
                slots: options.slots,
            },
            forward,
            kv,
            drawer,
            logits,
            entries,
            width,
            device,
            tickets: 0,
            submitted: None,
            picking: Vec::new(),
        })
    }

    /// Bytes of weights that every step reads.
    pub fn step_bytes(&self) -> u64 {
        self.forward.step_bytes()
    }

    /// Executes a step and gives back the logits of its `Output::Pick` rows, by row index: the way out for tests and
    /// perplexity.
    pub fn logits(&mut self, step: &Step) -> Result<Vec<(u32, Vec<f32>)>, ModelError> {
        self.layers(step)?;
        let (drawn, width) = (self.spec.vocab_size as usize, self.width as usize);
        let mut all = Vec::new();
        let picking = std::mem::take(&mut self.picking);
        for (piece, rows) in picking.chunks(HEAD_ROWS as usize).enumerate() {
            self.forward.head(piece as u32 * HEAD_ROWS, rows.len() as u32, self.logits.at(0))?;
            for (i, (row, _)) in rows.iter().enumerate() {
                let found = self.logits.read(&self.device, i * width * size_of::<f32>(), drawn)?;
                all.push((*row, found));
            }
        }
        Ok(all)
    }

    /// Checks a step and queues its layers.
    fn layers(&mut self, step: &Step) -> Result<(), ModelError> {
        if self.submitted.is_some() {
            return Err(ModelError::Unsupported { what: "a step before the last one is collected" });
        }
        let rows = check::rows(step, &self.spec)?;
        let picks = rows.iter().filter(|row| row.pick).count();
        crate::cache::bound("picking row", picks, Forward::MOST_PICKS as usize + 1)?;
        let changed = self.kv.change(&step.deltas)?;
        for row in &rows {
            self.kv.tables().covers(&changed, row.slot, row.position)?;
        }
        self.kv.apply(&self.device, self.forward.elementwise(), &mut self.entries, changed)?;
        self.picking.clear();
        let picking = rows.iter().filter(|row| row.pick).map(|row| (row.row, row.position));
        self.picking.extend(picking);
        let mut picked = 0;
        for piece in pieces(&rows, self.forward.most_rows() as usize) {
            picked += self.forward.layers(piece, &self.kv, picked)?;
        }
        Ok(())
    }

    /// Draws one piece of the head's rows, whose logits are on the device.
    fn draw(&mut self, rows: &[(u32, u32)], draws: &[Draw], picks: &mut Vec<Pick>) -> Result<(), ModelError> {
        let positions: Vec<u32> = rows.iter().map(|(_, position)| position + 1).collect();
        let width = self.width as usize;
        let encoded = encode(draws, &positions, self.drawer.bounds());
        let outcomes = match &encoded {
            Ok(encoded) => {
                self.drawer.write(&self.device, encoded)?;
                let logits = Logits {
                    address: self.logits.at(0),
                    elements: HEAD_ROWS as usize * width,
                    stride: width,
                };
                self.drawer.launch(&self.device, logits, rows.len(), encoded.filters())?;
                self.drawer.read(&self.device, rows.len())?
            }
            // More edits than the arrays hold: all of these rows are the host's.
            Err(_) => vec![Outcome::Host; rows.len()],
        };
        for (i, (((row, _), draw), outcome)) in rows.iter().zip(draws).zip(outcomes).enumerate() {
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
            let drawn = drawn.ok_or(ModelError::NotFinite { row: *row })?;
            picks.push(Pick { row: *row, drawn });
        }
        Ok(())
    }
}

impl Model for CudaModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        self.layers(step)?;
        self.tickets += 1;
        self.submitted = Some(self.tickets);
        Ok(Ticket(self.tickets))
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
            self.forward.head(piece as u32 * HEAD_ROWS, rows.len() as u32, self.logits.at(0))?;
            self.draw(rows, draws, &mut picks)?;
        }
        if rows == 0 {
            // Nothing was read back; what went wrong must not surface in a later step.
            self.device.synchronize()?;
        }
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

/// A step in pieces of at most `most` rows.
fn pieces(rows: &[CheckedRow], most: usize) -> impl Iterator<Item = &[CheckedRow]> {
    rows.chunks(most.max(1))
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
    budget: PageBudget,
    map: &HeadMap,
    head_dim: usize,
    dtype: Dtype,
) -> Result<Vec<u32>, LoadError> {
    let sizes: Vec<u64> =
        (0..map.classes.len()).map(|class| map.page_bytes(class, head_dim, dtype) as u64).collect();
    let bytes = match budget {
        PageBudget::Pages(0) => {
            return Err(LoadError::BadOption { option: "pages", why: "must be at least 1".to_owned() });
        }
        PageBudget::Pages(pages) => return Ok(vec![pages; sizes.len()]),
        PageBudget::Bytes(bytes) => bytes,
        PageBudget::Free(percent) => {
            let (free, _) = device.memory()?;
            free.saturating_sub(RESERVE) / 100 * u64::from(percent.min(100))
        }
    };
    let together: u64 = sizes.iter().sum();
    match bytes / together.max(1) {
        0 => {
            let why = format!("{bytes} bytes hold no page; this model's pages have {together} bytes");
            Err(LoadError::BadOption { option: "pages", why })
        }
        pages => Ok(vec![pages.min(1 << 30) as u32; sizes.len()]),
    }
}

#[cfg(test)]
mod tests;
