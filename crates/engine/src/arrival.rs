//! Pages that another rank computed come in.

use kvcache::{ClassId, PageHash};
use scheduler::{SequenceId, Step};

use crate::{Engine, Model, ModelError};

/// One page index of a sequence that is still to come: bytes that were checked.
pub struct PageIn {
    /// The sequence it is held for. Once that is here, what comes late is refused.
    pub sequence: SequenceId,
    /// Position of its first token / 16.
    pub index: u32,
    /// Names all tokens up to its end.
    pub hash: PageHash,
    /// By head class; a class whose window passed the page has none.
    pub classes: Vec<(ClassId, Vec<Vec<u8>>)>,
    /// Called once: whether the page is held.
    pub taken: Box<dyn FnOnce(Result<(), PageRefused>) + Send>,
}

impl std::fmt::Debug for PageIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageIn")
            .field("sequence", &self.sequence)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// Why a page was not taken. What was taken before stays a hit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageRefused {
    #[error("the sequence is here already: the page comes too late")]
    Late,
    #[error("no page is free for it")]
    NoRoom,
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl<M: Model> Engine<M> {
    pub(crate) fn page_in(&mut self, page: PageIn) {
        let PageIn { sequence, index, hash, classes, taken } = page;
        taken(self.take_in(sequence, index, hash, &classes));
    }

    fn take_in(
        &mut self,
        id: SequenceId,
        index: u32,
        hash: PageHash,
        classes: &[(ClassId, Vec<Vec<u8>>)],
    ) -> Result<(), PageRefused> {
        if self.lanes.contains_key(&id) {
            return Err(PageRefused::Late);
        }
        classes.iter().try_for_each(|(class, layers)| self.hold_page(id, *class, index, hash, layers))
    }

    /// Has the model copy what it kept of trees, instead of in the next step: before a page is read or written
    /// outside of steps. A sequence that ended leaves pages into which rows are still to be copied.
    pub(crate) fn settle(&mut self) -> Result<(), ModelError> {
        let deltas = self.scheduler.take_kept();
        if deltas.is_empty() {
            return Ok(());
        }
        let step = Step { deltas, rows: Vec::new() };
        let done = self.model.submit(&step).and_then(|ticket| self.model.collect(ticket, &[]));
        done.map(|_| ()).inspect_err(|_| self.scheduler.put_back_kept(step.deltas))
    }

    /// Holds one page of one class for a sequence to come; writes it unless it is here already.
    pub(crate) fn hold_page(
        &mut self,
        id: SequenceId,
        class: ClassId,
        index: u32,
        hash: PageHash,
        bytes: &[Vec<u8>],
    ) -> Result<(), PageRefused> {
        let (at, layers, bound) = (usize::from(class.0), self.model.layers(), self.spec().classes.len());
        if at >= bound {
            let (index, bound) = (u64::from(class.0), bound as u64);
            return Err(ModelError::OutOfRange { what: "head class", index, bound }.into());
        }
        if bytes.len() != layers as usize {
            let (index, bound) = (bytes.len() as u64, u64::from(layers));
            return Err(ModelError::OutOfRange { what: "layers of a page", index, bound }.into());
        }
        if self.scheduler.hold_for(id, at, index, &hash) {
            return Ok(());
        }
        let page = self.scheduler.page_for_arrival(at).ok_or(PageRefused::NoRoom)?;
        // What it held may be wanted elsewhere, and is whole only then.
        if let Err(error) = self.settle() {
            self.scheduler.give_back(at, page);
            return Err(error.into());
        }
        self.look_at_pages();
        let mut layers = (0..).zip(bytes);
        match layers.try_for_each(|(layer, bytes)| self.model.import(class, page.id(), layer, bytes)) {
            Ok(()) => self.scheduler.arrived(id, at, index, hash, page),
            Err(error) => {
                self.scheduler.give_back(at, page);
                return Err(error.into());
            }
        }
        Ok(())
    }
}
