//! The CPU back end: one rank's model, computed in place by a pool of threads of its own.

mod attention;
mod bandwidth;
mod branches;
mod elementwise;
mod exp;
mod forward;
mod inputs;
mod packed;
mod pool;
mod product;

pub use bandwidth::memory_bandwidth;

use std::path::Path;

use engine::{Model, ModelError, ModelSpec, Pick, Picks, Ticket};
use sampling::Draw;
use scheduler::Step;

use crate::arch::{Decoder, Parameters};
use crate::cache::{Storage, Tables};
use crate::files::Opened;
use crate::simd::Level;
use crate::{LoadError, Options, PageBudget};
use branches::Branches;
use forward::{CLASS, Forward, Picking, Scratch};
use packed::Packed;
use pool::Pool;

/// A model on the CPU.
///
/// `submit` computes the layers before it returns; `collect` the head, and draws, a few rows at a time:
/// the logits of a long step are never all in memory.
pub struct CpuModel {
    spec: ModelSpec,
    parameters: Parameters,
    decoder: Decoder,
    packed: Packed,
    storage: Storage,
    tables: Tables,
    branches: Branches,
    level: Level,
    pool: Pool,
    scratch: Scratch,
    tickets: u64,
    /// Of the step that was submitted last.
    picking: Picking,
    /// Its number, while it is not collected.
    submitted: Option<u64>,
}

impl CpuModel {
    /// Opens a `.gguf` file or a folder: weights are mapped, not read; the KV cache is reserved, not
    /// touched.
    pub fn load(path: &Path, options: &Options) -> Result<Self, LoadError> {
        options.validate()?;
        let opened = Opened::open(path)?;
        let context = context(options.context, &opened.parameters)?;
        opened.weights.prefetch();
        let (architecture, parameters, decoder) = opened.decoder()?;

        let pages = pages(options.pages, Storage::page_bytes(&parameters))?;
        let width = parameters.vocab as u32;
        let drawn = drawn(options.vocab, width)?;
        let storage = Storage::new(parameters.class(), &parameters, pages, branches::PAGES)?;
        let mut pool = Pool::new(options.threads).map_err(|e| LoadError::Threads(e.to_string()))?;
        let packed = Packed::new(&decoder, &mut pool)?;
        let level = Level::best();
        tracing::info!(
            architecture = architecture.name, layers = parameters.layers, context, pages,
            threads = options.threads, %level, "model loaded"
        );
        Ok(Self {
            spec: ModelSpec {
                vocab_size: drawn,
                context,
                classes: vec![(storage.class, storage.pages)],
                slots: options.slots,
                tree_rows: branches::TREE_ROWS,
            },
            decoder,
            packed,
            tables: Tables::new(options.slots, vec![(storage.class, pages)], context),
            storage,
            branches: Branches::default(),
            level,
            pool,
            scratch: Scratch::new(&parameters),
            parameters,
            tickets: 0,
            picking: Picking::default(),
            submitted: None,
        })
    }

    /// The instructions its kernels run with. They change the speed, never the bits.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Bytes of weights that a step reads, however many rows it has: with [`memory_bandwidth`] the least
    /// time that it can take.
    pub fn weight_bytes(&self) -> u64 {
        self.packed.bytes()
    }

    pub fn set_level(&mut self, level: Level) {
        self.level = level;
    }

    /// Executes a step and gives back the logits of its `Output::Pick` rows, by row index, instead
    /// of picks: the way out for tests and perplexity.
    pub fn logits(&mut self, step: &Step) -> Result<Vec<(u32, Vec<f32>)>, ModelError> {
        self.layers(step)?;
        let mut all = Vec::new();
        self.head(|_, found| {
            all.extend(found.iter().map(|f| (f.row, f.logits.to_vec())));
            Ok(())
        })?;
        Ok(all)
    }

    /// Checks a step and computes its layers.
    fn layers(&mut self, step: &Step) -> Result<(), ModelError> {
        if self.submitted.is_some() {
            return Err(ModelError::Unsupported { what: "a step before the last one is collected" });
        }
        let rows = crate::check::rows(step, &self.spec)?;
        let changed = self.tables.change(&step.deltas)?;
        for row in &rows {
            self.tables.covers(&changed, row.slot, row.position)?;
        }
        self.branches.keep(&changed.kept, &mut self.storage)?;
        self.tables.apply(changed);
        self.branches.set(&rows, &self.tables, CLASS, &self.storage);
        self.picking.clear();
        let forward = Forward {
            parameters: &self.parameters,
            decoder: &self.decoder,
            packed: &self.packed,
            drawn: self.spec.vocab_size as usize,
            tables: &self.tables,
            branches: &self.branches,
            level: self.level,
        };
        let (storage, scratch, picking) = (&mut self.storage, &mut self.scratch, &mut self.picking);
        forward.layers(&mut self.pool, &rows, storage, scratch, picking);
        Ok(())
    }

    /// Computes the head for the picking rows of the last layers and hands their logits, a few rows at a
    /// time and in row order, to `each`.
    fn head(
        &mut self,
        mut each: impl FnMut(&mut Pool, &[RowLogits<'_>]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let forward = Forward {
            parameters: &self.parameters,
            decoder: &self.decoder,
            packed: &self.packed,
            drawn: self.spec.vocab_size as usize,
            tables: &self.tables,
            branches: &self.branches,
            level: self.level,
        };
        forward.head(&mut self.pool, &self.picking, &mut self.scratch, &mut each)
    }
}

/// Logits of one picking row.
struct RowLogits<'a> {
    /// Index in the step.
    row: u32,
    position: u32,
    logits: &'a [f32],
}

impl Model for CpuModel {
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
        let rows = self.picking.rows.len();
        if draws.len() != rows {
            return Err(ModelError::Draws { draws: draws.len(), rows });
        }
        // Whatever comes of it: the next step may be submitted.
        self.submitted = None;
        let mut picks = Vec::with_capacity(rows);
        let mut left = draws;
        self.head(|pool, found| {
            let (now, later) = left.split_at(found.len());
            left = later;
            let mut drawn: Vec<Result<Pick, ModelError>> = Vec::new();
            drawn.resize_with(found.len(), || Err(ModelError::Device("not drawn".to_owned())));
            pool.pieces(&mut drawn, 1, |i, drawn| {
                let f = &found[i];
                // The position cannot overflow: it is below the context.
                drawn[0] = sampling::draw(f.logits, &now[i], f.position + 1)
                    .map(|drawn| Pick { row: f.row, drawn })
                    .ok_or(ModelError::NotFinite { row: f.row });
            });
            for drawn in drawn {
                picks.push(drawn?);
            }
            Ok(())
        })?;
        Ok(Picks(picks))
    }
}

impl std::fmt::Debug for CpuModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuModel")
            .field("spec", &self.spec)
            .field("parameters", &self.parameters)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

/// Token ids that are drawn of an output layer of `width`.
pub(crate) fn drawn(asked: Option<u32>, width: u32) -> Result<u32, LoadError> {
    let drawn = asked.unwrap_or(width);
    if drawn == 0 || drawn > width {
        return Err(LoadError::BadOption {
            option: "vocab",
            why: format!("{drawn} is not between 1 and the output layer's {width}"),
        });
    }
    Ok(drawn)
}

/// Most positions of one sequence: what is asked for, if the model reaches so far.
pub(crate) fn context(asked: Option<u32>, p: &Parameters) -> Result<u32, LoadError> {
    match asked {
        None => Ok(p.context),
        Some(asked) if asked <= p.longest => Ok(asked),
        Some(asked) => {
            let (option, longest) = ("context", p.longest);
            let why = if longest > p.context {
                format!("{asked} is more than the {longest} that the model's RoPE scaling reaches")
            } else {
                format!(
                    "{asked} is more than the model's {longest}, and its files have no RoPE scaling (such as \
                     YaRN) that would reach further; ask for {longest} or less"
                )
            };
            Err(LoadError::BadOption { option, why })
        }
    }
}

fn pages(budget: PageBudget, page_bytes: usize) -> Result<u32, LoadError> {
    let bad = |why| LoadError::BadOption { option: "pages", why };
    match budget {
        PageBudget::Pages(0) => Err(bad("must be at least 1".to_owned())),
        PageBudget::Pages(pages) => Ok(pages),
        PageBudget::Bytes(bytes) => match bytes / page_bytes as u64 {
            0 => Err(bad(format!("{bytes} bytes hold no page; this model's pages have {page_bytes} bytes"))),
            pages => Ok(pages.min(u64::from(u32::MAX)) as u32),
        },
        PageBudget::Free(_) => {
            Err(bad("what is free of the machine's memory is not the KV cache's to take; \
                                        name a number of bytes"
                .to_owned()))
        }
    }
}
