use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::CommitFrame;

use super::link::Link;

/// Where a sequence's commits go at the moment: to the session that is attached, or nowhere. Commits
/// that found nobody are asked for again by the next drafter (`Resync`).
#[derive(Debug, Default)]
pub(crate) struct Port {
    attached: Mutex<Option<(Arc<Link>, u64)>>,
}

impl Port {
    /// `verified` drafts were judged in that step, `accepted` of them stood.
    pub(crate) fn commit(&self, frame: CommitFrame, verified: usize, accepted: usize) {
        if let Some((link, session)) = &*self.lock() {
            link.commit(*session, frame, verified, accepted);
        }
    }

    /// The drafter may go so far past what is committed; `None`: as far as the link finds right.
    pub(crate) fn ask(&self, window: Option<u32>) {
        if let Some((link, session)) = &*self.lock() {
            link.ask(*session, window);
        }
    }

    pub(crate) fn attach(&self, link: Arc<Link>, session: u64) {
        *self.lock() = Some((link, session));
    }

    pub(crate) fn detach(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Arc<Link>, u64)>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
