//! The CPU back end: one rank's model, computed in place by a pool of threads of its own.

mod attention;
mod bandwidth;
mod branches;
mod cores;
mod elementwise;
mod exits;
mod exp;
mod forward;
mod group;
mod inputs;
mod packed;
mod pages;
mod pool;
mod probe;
mod product;
mod self_draft;

pub use bandwidth::memory_bandwidth;
pub use group::{Group, GroupError, GroupPlan};
pub use probe::Asked;

use std::path::Path;

use engine::{Layered, Model, ModelError, ModelSpec, Pick, Picks, SaidBy, SelfDraft, Ticket};
use kvcache::{ClassId, HeadClass, HeadMap, PageId};
use request::{Sampling, TokenId};
use sampling::Draw;
use scheduler::{Slot, Step, TableChange, TableDelta};

use crate::arch::{Decoder, Parameters};
use crate::cache::{KvDtype, Storage, Tables};
use crate::files::Opened;
use crate::simd::Level;
use crate::{LoadError, Options, PageBudget};
use branches::Branches;
use cores::Cores;
use exits::Exits;
use forward::{Picking, Scratch, forward};
use group::Part;
use packed::Packed;
use pool::Pool;

/// How a model is loaded on a CPU, besides [`Options`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// A core for each thread, the first for the one that submits steps; empty leaves them to the operating system.
    pub cores: Vec<usize>,
    /// Tokens, in rising order, that alone are drawn: for a drafter, whose head is much of its work (FR-Spec, arXiv
    /// 2502.14856). `None`: all.
    pub shortlist: Option<Vec<u32>>,
    /// What keys and values are kept in.
    pub kv: KvDtype,
}

/// A model on the CPU.
///
/// `submit` computes the layers before it returns; `collect` the head, and draws, a few rows at a time:
/// the logits of a long step are never all in memory.
pub struct CpuModel {
    spec: ModelSpec,
    parameters: Parameters,
    decoder: Decoder,
    packed: Packed,
    /// Which class each head is of.
    heads: HeadMap,
    /// By class.
    storage: Vec<Storage>,
    tables: Tables,
    branches: Branches,
    exits: Exits,
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
    /// Opens a `.gguf` file or a folder: the matrices of the layers are read and laid out for the kernels, the
    /// embedding stays mapped; the KV cache is reserved, not touched.
    pub fn load(path: &Path, options: &Options) -> Result<Self, LoadError> {
        Self::load_as(path, options, &CpuOptions::default())
    }

    /// As [`Self::load`], with what only a CPU can be told.
    pub fn load_as(path: &Path, options: &Options, cpu: &CpuOptions) -> Result<Self, LoadError> {
        Self::load_part(path, options, cpu, None)
    }

    /// This rank's part of a model that a group shares. Pages are counted as if the whole model were here, so that all
    /// ranks have as many. Rank 0 is then a model like any other; the others [`follow`](Self::follow).
    pub fn load_in(
        path: &Path,
        options: &Options,
        cpu: &CpuOptions,
        group: Group,
    ) -> Result<Self, LoadError> {
        let mut model = Self::load_part(path, options, cpu, Some(group))?;
        if let Some((group, _)) = &mut model.scratch.group {
            group.ready().map_err(|error| LoadError::Group(error.to_string()))?;
        }
        Ok(model)
    }

    /// A follower's life: executes what rank 0 sends until rank 0 is gone.
    ///
    /// # Errors
    /// The group is lost, or this rank is none of a group's followers.
    pub fn follow(&mut self) -> Result<(), ModelError> {
        loop {
            let asked = match &mut self.scratch.group {
                Some((group, _)) if group.rank() > 0 => group.next()?,
                _ => return Err(ModelError::Unsupported { what: "following without a group" }),
            };
            let Some(asked) = asked else { return Ok(()) };
            let Some(step) = self.serve(asked)? else { continue };
            self.pool.enter();
            self.layers(&step)?;
            self.head(|_, _| Ok(()))?;
        }
    }

    fn load_part(
        path: &Path,
        options: &Options,
        cpu: &CpuOptions,
        group: Option<Group>,
    ) -> Result<Self, LoadError> {
        options.validate()?;
        let cores = Cores::new(&cpu.cores)?;
        let opened = Opened::open(path)?;
        let context = context(options.context, &opened.parameters)?;
        opened.weights.prefetch();
        let early = opened.early.clone();
        let (architecture, parameters, mut decoder) = opened.decoder()?;

        let heads = heads(options.heads.as_ref(), &parameters)?;
        let classes = 0..heads.classes.len();
        let sizes: Vec<u64> = classes
            .clone()
            .map(|class| Storage::page_bytes(&heads, class, &parameters, cpu.kv) as u64)
            .collect();
        let pages = pages(options.pages, &heads, &sizes, options.slots, context)?;
        let group = group.map(|group| {
            let part = Part::new(&parameters, &heads, context, group.memory(), group.rank())?;
            Ok::<_, LoadError>((group, part))
        });
        let group = group.transpose()?;
        let (heads, rows) = match &group {
            None => (heads, None),
            Some((_, part)) => {
                part.cut_biases(&mut decoder);
                (part.map(&heads), Some(part))
            }
        };
        let width = parameters.vocab as u32;
        let drawn = drawn(options.vocab, width)?;
        // Padding is not drawn, whoever lists it.
        let shortlist =
            cpu.shortlist.as_ref().map(|ids| ids.iter().copied().filter(|id| *id < drawn).collect());
        let beyond = branches::pages(options.slots);
        let storage =
            classes.map(|class| Storage::new(&heads, class, &parameters, cpu.kv, (pages[class], beyond)));
        let storage = storage.collect::<Result<Vec<_>, _>>()?;
        let classes: Vec<_> = storage.iter().map(|storage| (storage.class, storage.pages)).collect();
        let mut pool =
            Pool::on_cores(options.threads, cores).map_err(|e| LoadError::Threads(e.to_string()))?;
        if let Some((group, _)) = &group {
            group.seen_by(Box::new(pool.sight()));
        }
        // A drafter and the ranks of a group do not draft with their first layers.
        let alone = shortlist.is_none() && group.is_none();
        let drafted = Some(early.tokens.into_iter().filter(|id| *id < drawn).collect());
        let drafted = drafted.filter(|ids: &Vec<u32>| alone && !ids.is_empty());
        let packed = Packed::new(&decoder, shortlist, drafted, rows, &mut pool)?;
        let windows = heads.classes == [HeadClass::Full];
        let layered = if alone { layered(&packed, windows) } else { None };
        let mut scratch = Scratch::new(&parameters);
        scratch.group = group;
        let (level, layers) = (Level::best(), parameters.layers);
        tracing::info!(
            architecture = architecture.name, layers = parameters.layers, context, ?pages,
            threads = options.threads, %level, "model loaded"
        );
        Ok(Self {
            spec: ModelSpec {
                vocab_size: drawn,
                context,
                classes: classes.clone(),
                slots: options.slots,
                tree_rows: branches::TREE_ROWS,
                layered,
            },
            decoder,
            packed,
            heads,
            tables: Tables::new(options.slots, classes, context),
            storage,
            branches: Branches::default(),
            exits: Exits::new(early.layers, layers),
            level,
            pool,
            scratch,
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

    /// Bytes of weights that a step of up to 16 rows reads: with [`memory_bandwidth`] the least time that it can
    /// take. The head is read again for every 16 rows that pick; keys and values come on top.
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
        if let Some((group, _)) = &mut self.scratch.group
            && group.rank() == 0
        {
            group.begin(step)?;
        }
        self.branches.keep(&changed.kept, &mut self.storage)?;
        self.tables.apply(changed);
        self.give_up(step);
        if rows.is_empty() {
            // Only tables changed, and what was kept of trees was copied.
            self.picking.clear();
            return Ok(());
        }
        self.branches.set(&rows, &self.tables, &self.storage);
        self.exits.take((step, &rows), self.parameters.hidden, &self.tables, &mut self.storage);
        self.picking.clear();
        let forward = forward!(self, &self.branches);
        let (storage, scratch, picking) = (&mut self.storage, &mut self.scratch, &mut self.picking);
        forward.layers(&mut self.pool, &rows, storage, &mut self.exits, scratch, picking)?;
        self.exits.over();
        Ok(())
    }

    /// Where sequences are shared out: what pages held that now stand at another rank's positions is of no use here.
    fn give_up(&mut self, step: &Step) {
        let Some((_, part)) = self.scratch.group.as_ref().filter(|(_, part)| part.spans().is_some()) else {
            return;
        };
        for TableDelta { slot, class, change } in &step.deltas {
            let (TableChange::Append(page) | TableChange::Share(page)) = change else { continue };
            let (slot, class) = (slot.0 as usize, usize::from(class.0));
            let index = self.tables.get(slot, class).iter().rposition(|held| *held == Some(*page));
            let kept = index.is_some_and(|index| part.keeps(index as u32 * kvcache::PAGE_POSITIONS));
            if let Some(storage) = self.storage.get_mut(class).filter(|_| !kept) {
                storage.discard(*page);
            }
        }
    }

    /// Computes the head for the picking rows of the last layers and hands their logits, a few rows at a
    /// time and in row order, to `each`.
    fn head(
        &mut self,
        mut each: impl FnMut(&mut Pool, &[RowLogits<'_>]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let forward = forward!(self, &self.branches);
        forward.head((&self.packed.head, true), &mut self.pool, &self.picking, &mut self.scratch, &mut each)
    }
}

/// Logits of one picking row.
struct RowLogits<'a> {
    /// Index in the step.
    row: u32,
    position: u32,
    /// By token; nothing where only the listed ones were asked for.
    logits: &'a [f32],
    /// Those of them that are above nothing, with their tokens, where a head has not all.
    listed: Option<(&'a [u32], &'a [f32])>,
}

impl Model for CpuModel {
    /// Of the widest kernels (`product`); the others have a divisor of it.
    fn tile(&self) -> u32 {
        8
    }

    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn layers(&self) -> u32 {
        // Pages of a sequence that is shared out lie on one rank each; reading them from outside is not built.
        let shared = self.scratch.group.as_ref().is_some_and(|(_, part)| part.spans().is_some());
        if shared { 0 } else { self.parameters.layers as u32 }
    }

    fn export(
        &mut self,
        class: ClassId,
        page: PageId,
        layer: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        if Model::layers(self) == 0 {
            return Err(ModelError::Unsupported { what: "pages of a group with fewer KV heads than ranks" });
        }
        self.page_out(class, page, layer, into)
    }

    fn import(&mut self, class: ClassId, page: PageId, layer: u32, bytes: &[u8]) -> Result<(), ModelError> {
        if Model::layers(self) == 0 {
            return Err(ModelError::Unsupported { what: "pages of a group with fewer KV heads than ranks" });
        }
        self.page_in(class, page, layer, bytes)
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        self.pool.enter();
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

    fn self_draft(&mut self, asked: &SelfDraft) -> Result<Vec<(TokenId, f64)>, ModelError> {
        self.draft(asked)
    }

    fn said(&mut self, slot: Slot, rows: u32, sampling: &Sampling) -> Result<Vec<SaidBy>, ModelError> {
        self.shadows(slot, rows, sampling)
    }
}

/// What the heads cost in layers: all read their weights once a step.
fn layered(packed: &Packed, windows: bool) -> Option<Layered> {
    let (layers, head) = (packed.layers.len(), packed.head.bytes() as f64);
    let layer = (packed.bytes() as f64 - head) / layers.max(1) as f64;
    let draft = packed.drafting_head().bytes() as f64 / layer;
    (layers >= 2 && layer > 0.0).then(|| Layered {
        layers: layers as u32,
        head: head / layer,
        draft,
        windows,
    })
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

/// The heads of a model: as its files say, or as it is asked.
pub(crate) fn heads(asked: Option<&HeadMap>, p: &Parameters) -> Result<HeadMap, LoadError> {
    let bad = |why| Err(LoadError::BadOption { option: "heads", why });
    let Some(map) = asked else { return Ok(HeadMap::uniform(p.class(), p.layers, p.kv_heads)) };
    if let Err(why) = map.check(p.layers, p.kv_heads) {
        return bad(format!("the head map is not this model's: {why}"));
    }
    if p.window.is_some() {
        let why = "the model's own window under a head map is not built yet; leave the head map out";
        return bad(why.to_owned());
    }
    Ok(map.clone())
}

/// Pages of each class, of which one has `sizes` bytes.
pub(crate) fn pages(
    budget: PageBudget,
    map: &HeadMap,
    sizes: &[u64],
    slots: u32,
    context: u32,
) -> Result<Vec<u32>, LoadError> {
    let bad = |why| LoadError::BadOption { option: "pages", why };
    match budget {
        PageBudget::Pages(0) => Err(bad("must be at least 1".to_owned())),
        PageBudget::Pages(pages) => Ok(vec![pages; sizes.len()]),
        PageBudget::Bytes(bytes) => map.share_out(bytes, sizes, slots, context).ok_or_else(|| {
            let page: u64 = sizes.iter().sum();
            bad(format!("{bytes} bytes hold no page; this model's pages have {page} bytes"))
        }),
        PageBudget::Free(_) => {
            Err(bad("what is free of the machine's memory is not the KV cache's to take; \
                                        name a number of bytes"
                .to_owned()))
        }
    }
}
