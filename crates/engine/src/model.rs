//! The seam between bookkeeping and arithmetic.

use kvcache::{ClassId, HeadClass, PageId};
use request::{Sampling, TokenId};
use sampling::{Draw, Drawn};
use scheduler::{Slot, Step};

use crate::{Layered, SaidBy, SelfDraft};

/// What the engine must know of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Most positions of one sequence.
    pub context: u32,
    /// Head classes and, for each, the pages its storage holds.
    pub classes: Vec<(HeadClass, u32)>,
    /// Slots whose page tables it can hold.
    pub slots: u32,
    /// Most rows of trees that one step may have; 0: it refuses them.
    pub tree_rows: u32,
    /// How it could draft with its own first layers; `None`: it refuses to.
    pub layered: Option<Layered>,
}

/// A step under way. It must be collected before the next one is submitted to a model that
/// computes in place; a model with a queue numbers them.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a submitted step must be collected"]
pub struct Ticket(pub u64);

/// What a row with `Output::Pick` gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// Index of the row in its step.
    pub row: u32,
    /// `drawn.token` is for that row's position + 1.
    pub drawn: Drawn,
}

/// Results of a step, in row order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picks(pub Vec<Pick>);

/// Executes steps. Logits stay inside: a row gives back an id (`architecture.md`, *The step*).
///
/// A step has two halves, so that the engine can prepare what is drawn (grammar masks, penalties) while
/// a device computes the layers. The twin without arithmetic is [`crate::ToyModel`].
pub trait Model {
    fn spec(&self) -> &ModelSpec;

    /// Rows that a step computes in the time of one: what is planned beside decodes fills the last so many.
    fn tile(&self) -> u32 {
        1
    }

    /// Layers in which a page can be read and written from outside; 0: not built for this back end.
    fn layers(&self) -> u32 {
        0
    }

    /// Reads the bytes of one layer of a page, for another rank of the same numerics; `into` is empty.
    fn export(&mut self, _: ClassId, _: PageId, _: u32, _into: &mut Vec<u8>) -> Result<(), ModelError> {
        Err(ModelError::Unsupported { what: "reading pages out" })
    }

    /// Writes what `export` read elsewhere into a page that no table holds.
    fn import(&mut self, _: ClassId, _: PageId, _: u32, _bytes: &[u8]) -> Result<(), ModelError> {
        Err(ModelError::Unsupported { what: "pages from elsewhere" })
    }

    /// Starts the layers of a step. Refuses variants it does not execute before it changes anything.
    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError>;

    /// Whether [`Model::expect`] is of use.
    fn begins_early(&self) -> bool {
        false
    }

    /// Says, between `submit` and `collect`, which step will most likely come next. Its tokens are what picking rows of the
    /// step under way give ([`RowToken::FromStep`](scheduler::RowToken)), each for the position behind its own, and it changes
    /// no table. A device begins its layers behind those of the step under way, before anybody knows the tokens; the next
    /// step, or some rows of it, find that done. If another one is submitted, time is lost and nothing else: what was
    /// written lies at positions that nobody reads before writing them.
    fn expect(&mut self, _next: &Step) {}

    /// Finishes a step: `draws` holds one entry for each row with `Output::Pick`, in row order.
    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError>;

    /// Drafts with the first layers and the head: tokens, and how sure the layer is of each. What it computes of the last known token and the drafts is the next
    /// step's, if that has the same rows: it goes on behind those layers, and gives what it would have given.
    fn self_draft(&mut self, _asked: &SelfDraft) -> Result<Vec<(TokenId, f64)>, ModelError> {
        Err(ModelError::Unsupported { what: "early exit" })
    }

    /// Of the first `rows` picking rows of a slot in the step that was collected last, if it was to be watched
    /// ([`SelfDraft::watch`]): what some layers would have said (DEL's shadow tokens), the lower ones first.
    fn said(&mut self, _slot: Slot, _rows: u32, _sampling: &Sampling) -> Result<Vec<SaidBy>, ModelError> {
        Err(ModelError::Unsupported { what: "early exit" })
    }
}

/// So that a process can choose among back ends when it starts.
impl<M: Model + ?Sized> Model for Box<M> {
    fn spec(&self) -> &ModelSpec {
        (**self).spec()
    }

    fn tile(&self) -> u32 {
        (**self).tile()
    }

    fn layers(&self) -> u32 {
        (**self).layers()
    }

    fn export(
        &mut self,
        class: ClassId,
        page: PageId,
        layer: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        (**self).export(class, page, layer, into)
    }

    fn import(&mut self, class: ClassId, page: PageId, layer: u32, bytes: &[u8]) -> Result<(), ModelError> {
        (**self).import(class, page, layer, bytes)
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        (**self).submit(step)
    }

    fn begins_early(&self) -> bool {
        (**self).begins_early()
    }

    fn expect(&mut self, next: &Step) {
        (**self).expect(next);
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        (**self).collect(ticket, draws)
    }

    fn self_draft(&mut self, asked: &SelfDraft) -> Result<Vec<(TokenId, f64)>, ModelError> {
        (**self).self_draft(asked)
    }

    fn said(&mut self, slot: Slot, rows: u32, sampling: &Sampling) -> Result<Vec<SaidBy>, ModelError> {
        (**self).said(slot, rows, sampling)
    }
}

/// Why a step was not executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error("this back end does not execute {what} yet")]
    Unsupported { what: &'static str },
    #[error("step names {what} {index}, of {bound}")]
    OutOfRange { what: &'static str, index: u64, bound: u64 },
    #[error("position {position} of slot {slot} has no page in its table")]
    NoPage { slot: u32, position: u32 },
    #[error("logits of row {row} are not finite: weights or arithmetic are broken")]
    NotFinite { row: u32 },
    #[error("{draws} draws were given for {rows} picking rows")]
    Draws { draws: usize, rows: usize },
    #[error("a layer of a page is {expected} bytes and {found} were given")]
    PageSize { expected: usize, found: usize },
    #[error("device: {0}")]
    Device(String),
    /// The model cannot go on: a rank of its group is gone. The engine ends without a word to its sequences, which are
    /// placed elsewhere.
    #[error("the worker group is lost: {0}")]
    Lost(String),
}
