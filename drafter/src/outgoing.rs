//! What waits to be sent to a worker: one entry a session, newest drafts only.

use std::sync::Arc;

use daemon::MergeQueue;
use engine::{DraftClosed, DraftEvent, Outlet, Room};
use proto::frame::{ClosedReason, FromDrafter, RefusedReason};
use speculation::Drafts;
use std::time::Duration;
use telemetry::trace;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::slot::Slot;

/// Frames of one session that were not sent yet. Newer drafts replace older ones: a frame carries the
/// whole unconfirmed tail.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) granted: bool,
    pub(crate) refused: Option<(RefusedReason, String)>,
    drafts: Option<Drafts>,
    resync: Option<u32>,
    pub(crate) closed: Option<(ClosedReason, String)>,
}

pub(crate) type Queue = Arc<MergeQueue<u64, Outgoing>>;

impl Outgoing {
    /// The frames, in the order in which the worker must see them.
    pub(crate) fn frames(self, session: u64, lease_ttl: Duration, draft_time: Duration) -> Vec<FromDrafter> {
        let mut frames = Vec::new();
        if self.granted {
            frames.push(FromDrafter::Granted { session, lease_ttl });
        }
        if let Some((reason, message)) = self.refused {
            frames.push(FromDrafter::Refused { session, reason, message });
        }
        if let Some(have) = self.resync {
            frames.push(FromDrafter::Resync { session, have });
        }
        if let Some(Drafts { at, prefix_hash, ids, q }) = self.drafts {
            let q = q.iter().map(|q| q.entries().to_vec()).collect();
            frames.push(FromDrafter::Drafts { session, at, prefix_hash, ids, q, draft_time });
        }
        if let Some((reason, message)) = self.closed {
            frames.push(FromDrafter::Closed { session, reason, message });
        }
        frames
    }
}

/// The engine's end of a session: never full, because newer drafts replace older ones.
#[derive(Debug)]
pub(crate) struct SessionOutlet {
    pub(crate) queue: Queue,
    pub(crate) session: u64,
    /// Cancelled when the worker closed the session, its stream is over or the engine ended it.
    pub(crate) gone: CancellationToken,
    pub(crate) slot: Slot,
    /// Of the session, in the trace of the request that it drafts for; ends with this.
    pub(crate) span: Span,
    /// Frames of drafts that the engine gave.
    pub(crate) frames: u64,
}

impl SessionOutlet {
    fn over(&self) {
        self.gone.cancel();
        self.slot.free();
    }
}

impl Drop for SessionOutlet {
    /// The engine has dropped the sequence, whyever.
    fn drop(&mut self) {
        trace::set(&self.span, "paceline.draft.frames", i64::try_from(self.frames).unwrap_or(i64::MAX));
        self.over();
    }
}

impl Outlet<DraftEvent> for SessionOutlet {
    fn room(&self) -> Room {
        if self.gone.is_cancelled() { Room::Gone } else { Room::Free }
    }

    fn deliver(&mut self, event: DraftEvent) {
        if self.gone.is_cancelled() {
            return; // Who ended it has told the worker, or there is none.
        }
        self.frames += u64::from(matches!(event, DraftEvent::Drafts(_)));
        if matches!(event, DraftEvent::Closed(_)) {
            trace::fail(&self.span, "CLOSED");
            // Before the worker hears of it and asks again.
            self.over();
        }
        self.queue.update(self.session, |out| match event {
            DraftEvent::Drafts(drafts) => out.drafts = Some(drafts),
            DraftEvent::Resync { have } => out.resync = Some(have),
            DraftEvent::Closed(why) => {
                let (reason, message) = match why {
                    DraftClosed::Diverged => {
                        (ClosedReason::Invalid, "commit: its past is not what was opened")
                    }
                    DraftClosed::TooLong => (ClosedReason::ContextFull, "commit: longer than was reserved"),
                    DraftClosed::Vocabulary => (ClosedReason::Invalid, "commit.ids: outside the vocabulary"),
                    DraftClosed::Failed => (ClosedReason::Failed, "the draft model failed"),
                };
                out.closed = Some((reason, message.into()));
            }
        });
    }
}
