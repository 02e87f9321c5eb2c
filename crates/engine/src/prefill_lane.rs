//! A prompt that is computed for another rank: its pages go out, nothing is drawn.

use kvcache::{ClassId, PAGE_POSITIONS, PrefixRoot};
use request::{InvalidField, TokenId};
use scheduler::{NewSequence, SequenceId};

use crate::open::in_vocabulary;
use crate::step::Lane;
use crate::{Engine, Model, ModelError, Outlet, Refusal, Room};

/// A prompt whose pages are wanted elsewhere.
pub struct PrefillOpen {
    pub sequence: SequenceId,
    pub prompt: Vec<TokenId>,
    pub priority: i32,
    pub cache_salt: String,
    pub outlet: Box<dyn PrefillOutlet>,
    /// Called once: whether the engine took it.
    pub admitted: Box<dyn FnOnce(Result<(), Refusal>) + Send>,
}

impl std::fmt::Debug for PrefillOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrefillOpen").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// What a prompt that is computed for another rank tells its shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefillEvent {
    /// Pages that the last step filled, in order; at most [`PAGES_AT_ONCE`].
    Pages(Vec<PageOut>),
    /// The last page went out.
    Done,
    /// The model failed, or cannot export pages.
    Failed,
}

/// One page of one head class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageOut {
    /// Position of its first token / 16.
    pub index: u32,
    pub class: ClassId,
    /// Its bytes, by layer.
    pub layers: Vec<Vec<u8>>,
}

/// The shell's side; takes as many pages as a step may bring.
pub trait PrefillOutlet: Outlet<PrefillEvent> {}
impl<T: Outlet<PrefillEvent>> PrefillOutlet for T {}

/// Page indices in one event: a prefix hit of a long prompt goes out in pieces.
pub const PAGES_AT_ONCE: u32 = 16;

/// Full pages of a prompt that another rank can use: it computes the last token itself.
pub fn pages_to_hand_over(prompt_len: usize) -> u32 {
    (prompt_len.saturating_sub(1) / PAGE_POSITIONS as usize) as u32
}

/// Such a prompt in the engine.
pub(crate) struct PrefillLane {
    pub(crate) outlet: Box<dyn PrefillOutlet>,
    /// Page indices that are wanted, and that went out.
    pages: u32,
    sent: u32,
}

impl<M: Model> Engine<M> {
    pub(crate) fn open_prefill(&mut self, open: PrefillOpen) {
        let PrefillOpen { sequence, mut prompt, priority, cache_salt, outlet, admitted } = open;
        let pages = pages_to_hand_over(prompt.len());
        let mut checked = in_vocabulary("prompt", &prompt, self.spec().vocab_size);
        if checked.is_ok() && self.model.layers() == 0 {
            checked = Err(InvalidField::not_built("model", "this back end does not export pages yet"));
        }
        if checked.is_ok() && pages == 0 {
            checked = Err(InvalidField::new("prompt", "is shorter than a page and a token"));
        }
        if let Err(invalid) = checked {
            drop(outlet);
            return admitted(Err(invalid.into()));
        }
        // One token more than the pages: a sequence whose whole text is cached would never get a slot.
        prompt.truncate((pages * PAGE_POSITIONS) as usize + 1);
        let longest = prompt.len() as u32 + 1;
        let root = PrefixRoot::salted(&cache_salt);
        let new = NewSequence {
            id: sequence,
            tokens: prompt,
            limit: longest,
            longest,
            priority,
            root,
            settled: u32::MAX,
        };
        let added = self.scheduler.add(new).map_err(Refusal::from);
        match &added {
            Ok(()) => {
                let lane = PrefillLane { outlet, pages, sent: 0 };
                self.lanes.insert(sequence, Lane::Prefill(Box::new(lane)));
            }
            Err(_) => drop(outlet),
        }
        admitted(added);
    }

    /// Sends the pages that are full by now to those outlets that have room.
    pub(crate) fn export(&mut self) -> Vec<SequenceId> {
        let mut over = Vec::new();
        let (layers, classes) = (self.model.layers(), self.spec().classes.len());
        for (id, lane) in &mut self.lanes {
            let Lane::Prefill(lane) = lane else { continue };
            let full = (self.scheduler.computed(*id) / PAGE_POSITIONS).min(lane.pages);
            // A sequence that gave way lost its pages and computes them again: these went out already.
            let upto = full.min(lane.sent + PAGES_AT_ONCE);
            if upto <= lane.sent || lane.outlet.room() != Room::Free {
                continue;
            }
            let mut out = Vec::new();
            let mut failed = None;
            for index in lane.sent..upto {
                for class in 0..classes {
                    // A hole: a window has moved on, so nobody reads it.
                    let Some(page) = self.scheduler.page_of(*id, class, index) else { continue };
                    let class = ClassId(class as u8);
                    let read = (0..layers).map(|layer| {
                        let mut bytes = Vec::new();
                        self.model.export(class, page, layer, &mut bytes).map(|()| bytes)
                    });
                    match read.collect::<Result<_, ModelError>>() {
                        Ok(layers) => out.push(PageOut { index, class, layers }),
                        Err(error) => failed = Some(error),
                    }
                }
            }
            if failed.is_some() {
                lane.outlet.deliver(PrefillEvent::Failed);
                over.push(*id);
                continue;
            }
            lane.sent = upto;
            lane.outlet.deliver(PrefillEvent::Pages(out));
            if lane.sent == lane.pages {
                lane.outlet.deliver(PrefillEvent::Done);
                over.push(*id);
            }
        }
        over
    }
}
