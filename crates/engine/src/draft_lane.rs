//! A sequence that runs ahead of a target elsewhere.

use request::TokenId;
use speculation::{Drafts, Reaction, Session};

use crate::{CommitFrame, Outlet};

/// What a draft sequence tells its shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftEvent {
    /// The whole unconfirmed tail.
    Drafts(Drafts),
    /// A commit is missing.
    Resync { have: u32 },
    /// The session ended here.
    Closed(DraftClosed),
}

/// Why a draft sequence ended on the drafter's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DraftClosed {
    /// The committed tokens are not those it was opened with.
    Diverged,
    /// A commit goes beyond the length that it was opened for.
    TooLong,
    /// A commit names a token outside the vocabulary.
    Vocabulary,
    /// The draft model failed.
    Failed,
}

/// The shell's side of a draft sequence.
pub trait DraftOutlet: Outlet<DraftEvent> {}
impl<T: Outlet<DraftEvent>> DraftOutlet for T {}

/// A draft sequence in the engine, beside what the scheduler knows of it.
pub(crate) struct DraftLane {
    pub(crate) session: Session,
    pub(crate) outlet: Box<dyn DraftOutlet>,
    pub(crate) stop_ids: Vec<TokenId>,
    /// Most tokens the sequence may ever have.
    pub(crate) longest: u32,
}

impl DraftLane {
    /// Whether its tail ends in a token after which the target would stop.
    pub(crate) fn stopped(&self, known: &[TokenId]) -> bool {
        known
            .last()
            .is_some_and(|t| known.len() as u32 > self.session.committed() && self.stop_ids.contains(t))
    }

    pub(crate) fn drafted(&mut self, known: &[TokenId], id: TokenId) {
        self.session.drafted(id);
        if let Some(frame) = self.session.frame(known) {
            self.outlet.deliver(DraftEvent::Drafts(frame));
        }
    }

    pub(crate) fn commit(&mut self, known: &[TokenId], frame: &CommitFrame) -> Reaction {
        let reaction = self.session.commit(known, frame.at, frame.prefix_hash, &frame.ids);
        match &reaction {
            Reaction::Resync { have } => self.outlet.deliver(DraftEvent::Resync { have: *have }),
            Reaction::Diverged => self.outlet.deliver(DraftEvent::Closed(DraftClosed::Diverged)),
            Reaction::Agreed | Reaction::Rewrite { .. } | Reaction::Known => {}
        }
        reaction
    }
}
