//! Pages that the prefix cache has no room for, somewhere else, and back.
//!
//! A page that is evicted is read out before anything else is written into it, and given to the [`Tier`]. A sequence that is
//! about to start, and of whose beginning the tier has more than the cache, is held until those pages are here again, or for
//! [`Tier::within`]: they come as pages from another worker do (`arrival`), held for that sequence. Whatever goes wrong is a
//! shorter hit and a count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use kvcache::{ClassId, HeadClass, PAGE_POSITIONS, PageHash, PageId};
use scheduler::SequenceId;

use crate::{Engine, Model, ModelError, PrefixChange};

/// Where evicted pages go. No call waits: what takes time is done elsewhere, and [`Tier::poll`] tells of it.
pub trait Tier: Send {
    /// By class, the bytes of each layer of a page; or why pages cannot be read out. Called once, before anything else.
    fn open(&mut self, sizes: Result<Vec<Vec<usize>>, String>);
    fn has(&self, class: ClassId, hash: &PageHash) -> bool;
    /// Whether one more page would be taken or fetched now.
    fn room(&self) -> bool;
    /// Takes a page, by layer.
    fn put(&mut self, class: ClassId, hash: PageHash, layers: &[Vec<u8>]) -> Put;
    /// Asks for a page; whether it will come, or why not, by [`Tier::poll`].
    fn fetch(&mut self, wanted: Fetch) -> bool;
    /// What came since.
    fn poll(&mut self) -> Option<Came>;
    /// How long a sequence waits for its pages.
    fn within(&self) -> Duration;
}

/// What became of a page that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// In the place of another one, if there was no room.
    Taken { pushed_out: Option<PageHash> },
    /// Too much waits to be written: it was not taken.
    Behind,
}

/// A page that a sequence needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub sequence: SequenceId,
    /// Position of its first token / 16.
    pub index: u32,
    pub class: ClassId,
    pub hash: PageHash,
}

/// What a tier tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// As it was put.
    Page { wanted: Fetch, layers: Vec<Vec<u8>> },
    /// It is not what was put (`checksum`), or could not be read (`io`).
    Damaged { wanted: Fetch, why: &'static str },
    /// A page that was taken could not be written.
    Lost { class: ClassId, hash: PageHash },
}

/// What a tier did; processes turn it into metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierFacts {
    /// Pages that went, and that came back and are in use.
    pub spilled: u32,
    pub restored: u32,
    /// Pages that were evicted and not taken: too much waited to be written.
    pub behind: u32,
    /// Pages that came back with another checksum.
    pub damaged: u32,
    /// Pages that could not be written or read.
    pub io: u32,
    /// Pages that came back too late, or found no room.
    pub late: u32,
}

/// The tier of a rank, and who waits for it.
pub(crate) struct Spill {
    tier: Box<dyn Tier>,
    waits: BTreeMap<SequenceId, Wait>,
    /// Waiting sequences that were looked at.
    seen: BTreeSet<SequenceId>,
    /// The model is gone: it is not asked, and waited for, page by page. Its next step says so.
    lost: bool,
    pub(crate) facts: TierFacts,
}

/// A sequence whose pages are on their way.
struct Wait {
    left: VecDeque<Fetch>,
    under_way: u32,
    until: Duration,
}

/// Of those that wait, so many are looked at: the next ones to start.
const NEXT: usize = 4;
/// Pages on their way for one sequence.
const AT_ONCE: u32 = 16;

impl<M: Model> Engine<M> {
    /// Gives the rank a tier.
    #[must_use]
    pub fn with_tier(mut self, mut tier: Box<dyn Tier>) -> Self {
        tier.open(self.page_sizes());
        self.scheduler.watch_pages();
        let (waits, seen) = (BTreeMap::new(), BTreeSet::new());
        self.spill = Some(Spill { tier, waits, seen, lost: false, facts: TierFacts::default() });
        self
    }

    fn page_sizes(&mut self) -> Result<Vec<Vec<usize>>, String> {
        let classes = 0..self.spec().classes.len() as u8;
        if self.model.layers() == 0 {
            return Err("it is not built".to_owned());
        }
        let sizes = classes.map(|class| {
            let layers = self.read_out(ClassId(class), PageId(0)).map_err(|error| error.to_string())?;
            Ok::<Vec<usize>, String>(layers.iter().map(Vec::len).collect())
        });
        sizes.collect()
    }

    fn read_out(&mut self, class: ClassId, page: PageId) -> Result<Vec<Vec<u8>>, ModelError> {
        let layers = self.model.layers();
        let model = &mut self.model;
        let read = |layer| {
            let mut bytes = Vec::new();
            model.export(class, page, layer, &mut bytes).map(|()| bytes)
        };
        (0..layers).map(read).collect()
    }

    /// Whether evicted pages go anywhere.
    pub(crate) fn spills(&self) -> bool {
        self.spill.is_some()
    }

    /// A page was evicted and is not written yet; whether it can still be found, and what cannot any more.
    pub(crate) fn spill_page(
        &mut self,
        class: ClassId,
        page: PageId,
        hash: PageHash,
    ) -> (bool, Option<PageHash>) {
        match &mut self.spill {
            None => return (false, None),
            Some(spill) if spill.lost => return (false, None),
            // Not even read.
            Some(spill) if !spill.tier.room() => {
                spill.facts.behind += 1;
                return (false, None);
            }
            Some(_) => {}
        }
        let layers = self.read_out(class, page);
        let Some(spill) = &mut self.spill else { return (false, None) };
        match layers.map(|layers| spill.tier.put(class, hash, &layers)) {
            Ok(Put::Taken { pushed_out }) => {
                spill.facts.spilled += 1;
                (true, pushed_out)
            }
            Ok(Put::Behind) => {
                spill.facts.behind += 1;
                (false, None)
            }
            Err(error) => {
                spill.lost = matches!(error, ModelError::Lost(_));
                spill.facts.io += 1;
                (false, None)
            }
        }
    }

    /// Takes in what came, asks for what the next sequences lack, and says who is to be held until when.
    pub(crate) fn restore(&mut self, now: Duration) -> BTreeMap<SequenceId, Duration> {
        while let Some(came) = self.spill.as_mut().and_then(|spill| spill.tier.poll()) {
            self.came(came);
        }
        if self.spill.is_some() {
            for id in self.scheduler.next_in_line(NEXT) {
                self.look_for(now, id);
            }
        }
        let Some(spill) = &mut self.spill else { return BTreeMap::new() };
        let scheduler = &self.scheduler;
        spill.seen.retain(|id| scheduler.is_waiting(*id));
        spill.waits.retain(|id, wait| {
            while wait.under_way < AT_ONCE
                && let Some(next) = wait.left.front()
                && spill.tier.fetch(*next)
            {
                wait.left.pop_front();
                wait.under_way += 1;
            }
            // Nothing is under way although something is left: the tier takes no more, or has it no more.
            scheduler.is_waiting(*id) && wait.under_way > 0 && now < wait.until
        });
        spill.waits.iter().map(|(id, wait)| (*id, wait.until)).collect()
    }

    /// Finds out what the tier has of a sequence beyond the cache, once each time that it waits.
    fn look_for(&mut self, now: Duration, id: SequenceId) {
        let Some(spill) = &mut self.spill else { return };
        if !spill.seen.insert(id) {
            return;
        }
        let chain = self.scheduler.cacheable(id);
        let classes: Vec<HeadClass> = self.model.spec().classes.iter().map(|(class, _)| *class).collect();
        let here = |class: usize, hash: &PageHash| self.scheduler.is_cached(class, hash);
        let there = |class: usize, hash: &PageHash| spill.tier.has(ClassId(class as u8), hash);
        let whole = |hash: &&PageHash| {
            let mut full = (0..classes.len()).filter(|class| classes[*class] == HeadClass::Full);
            full.all(|class| here(class, hash) || there(class, hash))
        };
        let reach = chain.iter().take_while(whole).count();
        // Of a window only what is seen from there.
        let line = reach as u32 * PAGE_POSITIONS;
        let mut pages: Vec<(u32, usize, PageHash)> = Vec::new();
        for (index, hash) in (0..).zip(&chain[..reach]) {
            let needed = (0..classes.len()).filter(|class| classes[*class].needs(line, index));
            pages.extend(needed.map(|class| (index, class, *hash)));
        }
        let left: VecDeque<Fetch> = pages
            .iter()
            .filter(|(_, class, hash)| !here(*class, hash) && there(*class, hash))
            .map(|&(index, class, hash)| Fetch { sequence: id, index, class: ClassId(class as u8), hash })
            .collect();
        if left.is_empty() {
            return;
        }
        // What is here must not be evicted for what comes.
        for (index, class, hash) in pages {
            self.scheduler.hold_for(id, class, index, &hash);
        }
        let until = now + spill.tier.within();
        spill.waits.insert(id, Wait { left, under_way: 0, until });
    }

    fn came(&mut self, came: Came) {
        let Some(spill) = &mut self.spill else { return };
        let (wanted, layers) = match came {
            Came::Lost { class, hash } => {
                spill.facts.io += 1;
                return self.gone(class, hash);
            }
            Came::Damaged { wanted, why } => {
                *(if why == "checksum" { &mut spill.facts.damaged } else { &mut spill.facts.io }) += 1;
                // What comes behind it is of no use.
                if let Some(wait) = spill.waits.get_mut(&wanted.sequence) {
                    wait.under_way = wait.under_way.saturating_sub(1);
                    wait.left.clear();
                }
                return self.gone(wanted.class, wanted.hash);
            }
            Came::Page { wanted, layers } => (wanted, layers),
        };
        let Some(wait) = spill.waits.get_mut(&wanted.sequence) else {
            spill.facts.late += 1;
            return;
        };
        wait.under_way = wait.under_way.saturating_sub(1);
        let taken = self.hold_page(wanted.sequence, wanted.class, wanted.index, wanted.hash, &layers);
        let Some(spill) = &mut self.spill else { return };
        match taken {
            Ok(()) => spill.facts.restored += 1,
            Err(_) => {
                spill.facts.late += 1;
                if let Some(wait) = spill.waits.get_mut(&wanted.sequence) {
                    wait.left.clear();
                }
            }
        }
    }

    /// The tier has a page no more.
    fn gone(&mut self, class: ClassId, hash: PageHash) {
        if usize::from(class.0) == self.telling_class() && !self.scheduler.is_cached(class.0.into(), &hash) {
            self.tell(PrefixChange::Removed(hash));
        }
    }

    /// What the tier did since the last call.
    pub(crate) fn tier_facts(&mut self) -> TierFacts {
        self.spill.as_mut().map(|spill| std::mem::take(&mut spill.facts)).unwrap_or_default()
    }
}
