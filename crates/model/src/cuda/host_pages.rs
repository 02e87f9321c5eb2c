//! Pages to and from the host's memory, a layer at a time as the engine asks: on their way to other processes, and to
//! the tier.
//!
//! One layer's copy costs nearly as much time as a page's. So a page is gathered whole when its first layer is read, and
//! what is written is scattered when the last layer came, or before anything else is done with the pages.
//!
//! A unit (page, layer, class) is the heads of the class in that layer in their order, keys and then values of each. Ranks
//! have neighbouring heads: a unit is their parts one after the other, whatever the model is cut into.

use std::ops::Range;
use std::rc::Rc;

use engine::ModelError;
use kvcache::{ClassId, PageId};

use super::handoff::{Layout, plan};
use super::kv::Kv;
use super::pages::{PagePool, Pages, Unit, Way};
use super::ranks::Rank;
use super::{Buffer, CudaError, Device, Pinned};
use crate::cache::bound;

/// The way of a model's pages through the host's memory.
#[derive(Default)]
pub(crate) struct HostPages {
    /// One a rank; none before the first page.
    doors: Vec<Door>,
    held: Held,
}

/// What the doors hold.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// A page whose layers from `next` on were not read yet.
    Read { at: Place, next: usize },
    /// Layers of a page that are not in it yet.
    Written { at: Place, layers: Vec<bool> },
}

/// A page of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    class: usize,
    page: usize,
}

/// One rank's part of a page.
struct Door {
    pages: Pages,
    staging: Buffer,
    host: Pinned,
    /// By class and layer: where its bytes are in both.
    parts: Vec<Vec<Range<usize>>>,
    device: Rc<Device>,
}

impl HostPages {
    /// Appends one layer of a page to `into`.
    pub(crate) fn read(
        &mut self,
        ranks: &[Rank],
        layout: &Layout,
        (class, page, layer): (ClassId, PageId, u32),
        into: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let (at, layer) = self.open(ranks, layout, (class, page, layer))?;
        // Whoever starts anew gets the page as it is by now.
        if !matches!(self.held, Held::Read { at: held, next } if (held, next) == (at, layer)) {
            self.settle(ranks, layout)?;
            self.held = Held::Nothing;
            for (door, rank) in self.doors.iter_mut().zip(ranks) {
                door.pass(Way::Gather, layout, &rank.kv, at, |_| true)?;
                door.host.receive(&door.staging, door.page_bytes(at.class))?;
            }
        }
        self.held = Held::Read { at, next: layer + 1 };
        for door in &mut self.doors {
            let part = door.parts[at.class][layer].clone();
            into.extend_from_slice(&door.host.bytes()?[part]);
        }
        Ok(())
    }

    /// Takes one layer of a page.
    pub(crate) fn write(
        &mut self,
        ranks: &[Rank],
        layout: &Layout,
        (class, page, layer): (ClassId, PageId, u32),
        bytes: &[u8],
    ) -> Result<(), ModelError> {
        let (at, layer) = self.open(ranks, layout, (class, page, layer))?;
        let expected = self.doors.iter().map(|door| door.parts[at.class][layer].len()).sum();
        if expected != bytes.len() {
            return Err(ModelError::PageSize { expected, found: bytes.len() });
        }
        if !matches!(self.held, Held::Written { at: held, .. } if held == at) {
            self.settle(ranks, layout)?;
            self.held = Held::Written { at, layers: vec![false; layout.layers()] };
        }
        let mut left = bytes;
        for door in &mut self.doors {
            let part = door.parts[at.class][layer].clone();
            let (own, others) = left.split_at(part.len());
            door.host.bytes()?[part].copy_from_slice(own);
            left = others;
        }
        if let Held::Written { layers, .. } = &mut self.held {
            layers[layer] = true;
            if layers.iter().all(|came| *came) {
                self.settle(ranks, layout)?;
            }
        }
        Ok(())
    }

    /// Puts what was written into its page, behind all queued work; forgets what was read. To be called before pages are
    /// read or written in any other way.
    pub(crate) fn settle(&mut self, ranks: &[Rank], layout: &Layout) -> Result<(), CudaError> {
        let Held::Written { at, layers } = std::mem::take(&mut self.held) else { return Ok(()) };
        for (door, rank) in self.doors.iter_mut().zip(ranks) {
            door.host.send(&door.staging, door.page_bytes(at.class))?;
            door.pass(Way::Scatter, layout, &rank.kv, at, |layer| layers[layer])?;
        }
        Ok(())
    }

    /// Checks which layer of which page is meant, and makes the doors when they are first needed.
    fn open(
        &mut self,
        ranks: &[Rank],
        layout: &Layout,
        (class, page, layer): (ClassId, PageId, u32),
    ) -> Result<(Place, usize), ModelError> {
        let at = Place { class: class.0.into(), page: page.0 as usize };
        let classes = ranks.first().map_or(&[][..], |rank| &rank.kv.classes);
        bound("head class", at.class, classes.len())?;
        bound("page", at.page, classes[at.class].pages as usize)?;
        bound("layer", layer as usize, layout.layers())?;
        if self.doors.is_empty() {
            self.doors = ranks.iter().map(|rank| Door::new(rank, layout)).collect::<Result<_, _>>()?;
        }
        Ok((at, layer as usize))
    }
}

impl Door {
    fn new(rank: &Rank, layout: &Layout) -> Result<Self, CudaError> {
        let parts: Vec<_> = (0..rank.kv.classes.len()).map(|class| parts(layout, &rank.kv, class)).collect();
        let bytes = parts.iter().filter_map(|parts| Some(parts.last()?.end)).max().unwrap_or(0);
        rank.device.bind()?;
        Ok(Self {
            pages: Pages::new(&rank.device, layout.layers())?,
            staging: Buffer::zeros(&rank.device, "a page under way", bytes)?,
            host: Pinned::zeros(&rank.device, "a page under way", bytes)?,
            parts,
            device: Rc::clone(&rank.device),
        })
    }

    fn page_bytes(&self, class: usize) -> usize {
        self.parts[class].last().map_or(0, |part| part.end)
    }

    /// Queues the copy of a page's layers between its pool and the staging buffer.
    fn pass(
        &mut self,
        way: Way,
        layout: &Layout,
        kv: &Kv,
        at: Place,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Result<(), CudaError> {
        let parts = &self.parts[at.class];
        let mut layers: Vec<usize> =
            (0..parts.len()).filter(|layer| is_wanted(*layer) && !parts[*layer].is_empty()).collect();
        if layers.is_empty() {
            return Ok(());
        }
        // A launch copies units of one size.
        layers.sort_by_key(|layer| parts[*layer].len());
        let pool = |layer: &usize| layout.pool(kv, at.class, *layer, 0);
        let units: Vec<Unit> = layers.iter().map(|layer| Unit { pool: pool(layer), page: at.page }).collect();
        let sizes: Vec<usize> = layers.iter().map(|layer| parts[*layer].len()).collect();
        let staged: Vec<usize> = layers.iter().map(|layer| parts[*layer].start).collect();
        self.device.bind()?;
        self.pages.list(&self.device, &units, &sizes, &staged, &self.staging)?;
        for run in plan::chunks(&sizes, usize::MAX) {
            let range = run.first..run.first + run.count;
            self.pages.run(&self.device, way, range, run.bytes, &self.staging)?;
        }
        Ok(())
    }
}

/// Where the layers of a class are in a page that lies in one piece.
fn parts(layout: &Layout, kv: &Kv, class: usize) -> Vec<Range<usize>> {
    let mut end = 0;
    let part = |layer| {
        let PagePool { stride, .. } = layout.pool(kv, class, layer, 0);
        end += stride;
        end - stride..end
    };
    (0..layout.layers()).map(part).collect()
}
