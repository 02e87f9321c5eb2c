//! The CPU back end: one rank's model, computed in place by a pool of threads of its own.

mod attention;
mod check;
mod elementwise;
mod exp;
mod forward;
mod product;

use std::path::Path;

use engine::{Model, ModelError, ModelSpec, Pick, Picks, Ticket};
use gguf::Header;
use kvcache::HeadClass;
use request::Sampling;
use scheduler::{Output, Step};

use crate::arch::{Architecture, Decoder, Parameters, RopeStyle};
use crate::cache::{Storage, Tables};
use crate::simd::Level;
use crate::weights::Weights;
use crate::{LoadError, Options, PageBudget};
use forward::Scratch;

/// A model on the CPU.
///
/// `submit` computes the whole step before it returns; `collect` hands out what it found.
pub struct CpuModel {
    spec: ModelSpec,
    parameters: Parameters,
    rope: RopeStyle,
    decoder: Decoder,
    storage: Storage,
    tables: Tables,
    level: Level,
    pool: rayon::ThreadPool,
    scratch: Scratch,
    tickets: u64,
    /// The step that was submitted and not collected yet.
    ready: Option<(u64, Picks)>,
}

impl CpuModel {
    /// Opens a GGUF file: weights are mapped, not read; the KV cache is reserved, not touched.
    pub fn load(path: &Path, options: &Options) -> Result<Self, LoadError> {
        options.validate()?;
        let header = Header::open(path)?;
        let (architecture, parameters) = Architecture::read(&header)?;
        let context = match options.context {
            None => parameters.context,
            Some(asked) if asked <= parameters.context => asked,
            Some(asked) => {
                return Err(LoadError::BadOption {
                    option: "context",
                    why: format!("{asked} is more than the model's {}", parameters.context),
                });
            }
        };
        let mut weights = Weights::open(path, header, architecture.name)?;
        weights.prefetch();
        let decoder = Decoder::take(&mut weights, architecture, &parameters)?;
        weights.finish()?;

        let pages = pages(options.pages, Storage::page_bytes(&parameters))?;
        let width = parameters.vocab as u32;
        let drawn = options.vocab.unwrap_or(width);
        if drawn == 0 || drawn > width {
            return Err(LoadError::BadOption {
                option: "vocab",
                why: format!("{drawn} is not between 1 and the output layer's {width}"),
            });
        }
        let storage = Storage::new(HeadClass::Full, &parameters, pages)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .thread_name(|i| format!("model-{i}"))
            .build()
            .map_err(|e| LoadError::Threads(e.to_string()))?;
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
            },
            rope: architecture.rope,
            decoder,
            tables: Tables::new(options.slots, vec![pages], context),
            storage,
            level,
            pool,
            scratch: Scratch::new(&parameters),
            parameters,
            tickets: 0,
            ready: None,
        })
    }

    /// The instructions its kernels run with. They change the speed, never the bits.
    pub fn level(&self) -> Level {
        self.level
    }

    pub fn set_level(&mut self, level: Level) {
        self.level = level;
    }

    /// Executes a step and gives back the logits of its `Output::Pick` rows, by row index, instead
    /// of picks: the way out for tests and perplexity.
    pub fn logits(&mut self, step: &Step) -> Result<Vec<(u32, Vec<f32>)>, ModelError> {
        let mut all = Vec::new();
        self.execute(step, |found| {
            all.extend(found.iter().map(|f| (f.row, f.logits.to_vec())));
            Ok(())
        })?;
        Ok(all)
    }

    /// Checks a step, computes it and hands the logits of its picking rows, a few rows at a time and
    /// in row order, to `each` (which runs on the pool).
    fn execute(
        &mut self,
        step: &Step,
        mut each: impl FnMut(&[RowLogits<'_>]) -> Result<(), ModelError> + Send,
    ) -> Result<(), ModelError> {
        if self.ready.is_some() {
            return Err(ModelError::Unsupported { what: "a step before the last one is collected" });
        }
        let rows = check::rows(step, &self.spec)?;
        let changed = self.tables.change(&step.deltas)?;
        for row in &rows {
            self.tables.covers(&changed, row.slot, row.position)?;
        }
        self.tables.apply(changed);
        let forward = forward::Forward {
            parameters: &self.parameters,
            rope: self.rope,
            decoder: &self.decoder,
            drawn: self.spec.vocab_size as usize,
            tables: &self.tables,
            level: self.level,
        };
        let (storage, scratch) = (&mut self.storage, &mut self.scratch);
        self.pool.install(|| forward.run(&rows, storage, scratch, &mut each))
    }
}

/// Logits of one picking row.
struct RowLogits<'a> {
    /// Index in the step.
    row: u32,
    position: u32,
    sampling: Sampling,
    logits: &'a [f32],
}

impl Model for CpuModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        use rayon::prelude::*;
        let mut picks =
            Vec::with_capacity(step.rows.iter().filter(|r| matches!(r.output, Output::Pick(_))).count());
        self.execute(step, |found| {
            let found: Result<Vec<Pick>, ModelError> = found
                .par_iter()
                .map(|f| {
                    // The position cannot overflow: it is below the context.
                    let token = sampling::pick(f.logits, &f.sampling, f.position + 1)
                        .ok_or(ModelError::NotFinite { row: f.row })?;
                    Ok(Pick { row: f.row, token })
                })
                .collect();
            picks.extend(found?);
            Ok(())
        })?;
        self.tickets += 1;
        self.ready = Some((self.tickets, Picks(picks)));
        Ok(Ticket(self.tickets))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Picks, ModelError> {
        match self.ready.take() {
            Some((number, picks)) if number == ticket.0 => Ok(picks),
            other => {
                self.ready = other;
                Err(ModelError::Device(format!("ticket {} does not name the submitted step", ticket.0)))
            }
        }
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

fn pages(budget: PageBudget, page_bytes: usize) -> Result<u32, LoadError> {
    let bad = |why| LoadError::BadOption { option: "pages", why };
    match budget {
        PageBudget::Pages(0) => Err(bad("must be at least 1".to_owned())),
        PageBudget::Pages(pages) => Ok(pages),
        PageBudget::Bytes(bytes) => match bytes / page_bytes as u64 {
            0 => Err(bad(format!("{bytes} bytes hold no page; this model's pages have {page_bytes} bytes"))),
            pages => Ok(pages.min(u64::from(u32::MAX)) as u32),
        },
    }
}
