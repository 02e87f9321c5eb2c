//! Pages of keys and values from one model to another, GPU to GPU: what a prefill computed is decoded elsewhere.
//!
//! A unit is (page, layer, class), or the heads of one that both ranks have. Units are gathered into a buffer on the
//! source, copied to the target's and scattered there, in chunks, each stage on a stream of its own beside the models'
//! work. Both ends compute each unit's checksum from the bytes that pass: a page counts as arrived only if all of its
//! units' are equal.

pub(super) mod plan;
mod rates;

use std::rc::Rc;

use cudarc::driver::{CudaEvent, sys};
use engine::ModelError;
use kvcache::{ClassId, HeadMap, PageId};

use self::plan::Run;
pub use self::rates::{TransferRate, host_rates, transfer_rates};
use super::error::Doing;
use super::kv::Kv;
use super::pages::{PagePool, Pages, Unit, Way};
use super::{Buffer, Cells, CudaError, CudaModel, Device};

/// What two models must have in common.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    pub(crate) map: HeadMap,
    pub(crate) cells: Cells,
}

/// A sealed page of one model, and where it goes in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMove {
    pub class: ClassId,
    pub from: PageId,
    pub to: PageId,
}

/// What was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub bytes: u64,
    pub units: usize,
    /// Of each page, in order: whether every unit arrived as it was sent. Others must not be used.
    pub intact: Vec<bool>,
}

/// The way from one model to another, of any number of GPUs each.
pub struct HandOff {
    lanes: Vec<Lane>,
    layout: Layout,
    most_pages: usize,
    /// Spoils some bytes under way.
    #[cfg(test)]
    spoil: bool,
}

/// From one rank to one rank.
struct Lane {
    source: usize,
    target: usize,
    runs: Vec<Run>,
    gather: Stage,
    /// On the source's GPU.
    copy: Device,
    scatter: Stage,
    gathered: Vec<CudaEvent>,
    copied: Vec<CudaEvent>,
    scattered: Vec<CudaEvent>,
}

/// One end of a lane.
struct Stage {
    pages: Pages,
    staging: Buffer,
    /// With a stream of its own.
    device: Device,
    home: Rc<Device>,
}

/// Pieces that are under way at the same time.
const UNDER_WAY: usize = 3;

impl HandOff {
    /// For at most `most_pages` pages at once.
    pub fn between(from: &CudaModel, to: &CudaModel, most_pages: usize) -> Result<Self, ModelError> {
        if from.layout != to.layout {
            return Err(ModelError::Unsupported { what: "a hand-off between models of unlike pages" });
        }
        let layout = from.layout.clone();
        let (sources, targets) = (from.ranks.all(), to.ranks.all());
        let all = plan::runs(&layout.map, sources.len(), targets.len());
        let mut lanes = Vec::new();
        for (source, from) in sources.iter().enumerate() {
            for (target, to) in targets.iter().enumerate() {
                let mut runs: Vec<Run> = all.clone();
                runs.retain(|run| (run.source, run.target) == (source, target));
                // Units of one size lie together.
                runs.sort_by_key(|run| run.heads);
                let Some(largest) = runs.last().map(|run| layout.bytes(run)) else { continue };
                let slot = plan::chunk_bytes(usize::MAX).min(largest * runs.len() * most_pages).max(largest);
                let (theirs, ours) = (&from.device, &to.device);
                super::exchange::peers(&[Rc::clone(theirs), Rc::clone(ours)])?;
                let units = runs.len() * most_pages;
                lanes.push(Lane {
                    source,
                    target,
                    runs,
                    gather: Stage::new(theirs, units, slot)?,
                    copy: theirs.beside()?,
                    scatter: Stage::new(ours, units, slot)?,
                    gathered: events(theirs)?,
                    copied: events(theirs)?,
                    scattered: events(ours)?,
                });
            }
        }
        Ok(Self {
            lanes,
            layout,
            most_pages,
            #[cfg(test)]
            spoil: false,
        })
    }

    /// Moves pages, behind all work that both models have queued; returns when they have arrived. `from` and `to` are
    /// the models that this was made for.
    pub fn move_pages(
        &mut self,
        from: &CudaModel,
        to: &CudaModel,
        pages: &[PageMove],
    ) -> Result<Moved, ModelError> {
        crate::cache::bound("page of a hand-off", pages.len(), self.most_pages + 1)?;
        for page in pages {
            let class = usize::from(page.class.0);
            crate::cache::bound("class", class, self.layout.map.classes.len())?;
            for (model, page) in [(from, page.from), (to, page.to)] {
                let count = model.ranks.first().kv.classes[class].pages;
                crate::cache::bound("page", page.0 as usize, count as usize)?;
            }
        }
        let mut moved = Moved { bytes: 0, units: 0, intact: vec![true; pages.len()] };
        let mut sent = Vec::new();
        for lane in &mut self.lanes {
            let (source, target) = (&from.ranks.all()[lane.source], &to.ranks.all()[lane.target]);
            let same = Rc::ptr_eq(&source.device, &lane.gather.home)
                && Rc::ptr_eq(&target.device, &lane.scatter.home);
            if !same {
                return Err(ModelError::Unsupported {
                    what: "a hand-off between other models than it was made for",
                });
            }
            #[cfg(test)]
            let spoil = self.spoil;
            #[cfg(not(test))]
            let spoil = false;
            sent.push(lane.send(&self.layout, [&source.kv, &target.kv], pages, spoil)?);
        }
        for (lane, units) in self.lanes.iter().zip(&sent) {
            moved.units += units.len();
            moved.bytes += units.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>();
            let before = lane.gather.pages.sums(&lane.gather.device, units.len())?;
            let after = lane.scatter.pages.sums(&lane.scatter.device, units.len())?;
            for ((page, _), (before, after)) in units.iter().zip(before.iter().zip(after)) {
                moved.intact[*page] &= *before == after;
            }
        }
        Ok(moved)
    }
}

impl Lane {
    /// Queues all units of `pages`; says which page each belongs to, and its bytes.
    fn send(
        &mut self,
        layout: &Layout,
        [source, target]: [&Kv; 2],
        pages: &[PageMove],
        spoil: bool,
    ) -> Result<Vec<(usize, usize)>, CudaError> {
        let (mut units, mut gathered, mut scattered) = (Vec::new(), Vec::new(), Vec::new());
        for run in &self.runs {
            let bytes = layout.bytes(run);
            for (index, page) in pages.iter().enumerate().filter(|(_, p)| usize::from(p.class.0) == run.class)
            {
                units.push((index, bytes));
                let unit = |kv: &Kv, place: usize, page: PageId| Unit {
                    pool: layout.pool(kv, run.class, run.layer, place),
                    page: page.0 as usize,
                };
                gathered.push(unit(source, run.from, page.from));
                scattered.push(unit(target, run.to, page.to));
            }
        }
        let sizes: Vec<usize> = units.iter().map(|(_, bytes)| *bytes).collect();
        let slot = self.gather.staging.bytes() / UNDER_WAY;
        let chunks = plan::chunks(&sizes, plan::chunk_bytes(sizes.iter().sum()).min(slot));
        let mut staged = vec![0; units.len()];
        for (number, chunk) in chunks.iter().enumerate() {
            for i in 0..chunk.count {
                staged[chunk.first + i] = number % UNDER_WAY * slot + i * chunk.bytes;
            }
        }
        let wait = "ordering a hand-off";
        self.gather.begin(&gathered, &sizes, &staged)?;
        for (number, chunk) in chunks.iter().enumerate() {
            let at = number % UNDER_WAY;
            let (range, bytes) = (chunk.first..chunk.first + chunk.count, chunk.bytes);
            let reused = number >= UNDER_WAY;
            if reused {
                self.gather.device.stream.wait(&self.copied[at]).doing(wait)?;
            }
            self.gather.run(Way::Gather, range.clone(), bytes)?;
            self.gathered[at].record(&self.gather.device.stream).doing(wait)?;
            if number == 0 {
                self.scatter.begin(&scattered, &sizes, &staged)?;
            }
            self.copy.stream.wait(&self.gathered[at]).doing(wait)?;
            if reused {
                self.copy.stream.wait(&self.scattered[at]).doing(wait)?;
            }
            let (from, to) = (&self.gather.staging, &self.scatter.staging);
            self.copy.bind()?;
            // SAFETY: a slot of both buffers, which have as many bytes; `chunks` fills none beyond its size.
            unsafe {
                sys::cuMemcpyPeerAsync(
                    to.at(at * slot),
                    self.scatter.device.context.cu_ctx(),
                    from.at(at * slot),
                    self.gather.device.context.cu_ctx(),
                    chunk.count * bytes,
                    self.copy.stream.cu_stream(),
                )
            }
            .result()
            .doing("copying pages to another GPU")?;
            if spoil && number == 0 {
                // SAFETY: inside the first slot.
                unsafe { sys::cuMemsetD8Async(to.at(5), 0xa5, 3, self.copy.stream.cu_stream()) }
                    .result()
                    .doing("spoiling pages")?;
            }
            self.copied[at].record(&self.copy.stream).doing(wait)?;
            self.scatter.device.stream.wait(&self.copied[at]).doing(wait)?;
            self.scatter.run(Way::Scatter, range, bytes)?;
            self.scattered[at].record(&self.scatter.device.stream).doing(wait)?;
        }
        // The models' next steps come behind.
        self.gather.end()?;
        self.scatter.end()?;
        Ok(units)
    }
}

impl Stage {
    fn new(home: &Rc<Device>, units: usize, slot: usize) -> Result<Self, CudaError> {
        let device = home.beside()?;
        let staging = Buffer::zeros(&device, "pages under way", slot * UNDER_WAY)?;
        Ok(Self { pages: Pages::new(&device, units)?, staging, device, home: Rc::clone(home) })
    }

    fn begin(&mut self, units: &[Unit], sizes: &[usize], staged: &[usize]) -> Result<(), CudaError> {
        self.device.stream.join(&self.home.stream).doing("ordering a hand-off")?;
        self.pages.list(&self.device, units, sizes, staged, &self.staging)
    }

    fn run(&self, way: Way, range: std::ops::Range<usize>, bytes: usize) -> Result<(), CudaError> {
        self.device.bind()?;
        self.pages.run(&self.device, way, range, bytes, &self.staging)
    }

    fn end(&self) -> Result<(), CudaError> {
        self.home.stream.join(&self.device.stream).doing("ordering a hand-off")
    }
}

impl Layout {
    pub(super) fn layers(&self) -> usize {
        self.map.class_of.len()
    }

    fn bytes(&self, run: &Run) -> usize {
        run.heads * self.cells.head()
    }

    /// The pages of a class in a layer on one rank, from the head in `place` on.
    pub(super) fn pool(&self, kv: &Kv, class: usize, layer: usize, place: usize) -> PagePool {
        let class = &kv.classes[class];
        let part = class.layers[layer];
        PagePool {
            base: class.storage.at(part.base + place * self.cells.head()),
            stride: part.page,
            pages: class.pages as usize,
        }
    }
}

impl std::fmt::Debug for HandOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandOff").field("lanes", &self.lanes.len()).finish_non_exhaustive()
    }
}

fn events(device: &Device) -> Result<Vec<CudaEvent>, CudaError> {
    let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
    (0..UNDER_WAY).map(|_| device.context.new_event(Some(flags)).doing("making an event")).collect()
}

#[cfg(test)]
mod tests;
