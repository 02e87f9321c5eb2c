//! The sessions of one worker.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cluster::{Incarnation, NodeId};
use engine::{Command, CommitFrame, DraftOpen, Refusal};
use proto::WireError;
use proto::draft::{DrafterFrame, WorkerFrame};
use proto::frame::{Addressed, BadFrame, ClosedReason, FromWorker, Open, Opening, RefusedReason};
use proto::reason::Reason;
use request::Limits;
use scheduler::{Refused, SequenceId};
use telemetry::{Label, trace};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::outgoing::{Queue, SessionOutlet};
use crate::service::Shared;
use crate::slot::Slot;

/// Opens whose tokens are still arriving; more are refused.
const MAX_OPENING: usize = 64;

/// One worker's stream.
#[derive(Clone)]
pub(crate) struct Stream {
    pub(crate) shared: Arc<Shared>,
    pub(crate) worker: NodeId,
    /// The worker's incarnation.
    pub(crate) peer: Incarnation,
    pub(crate) queue: Queue,
}

/// A granted session.
struct Session {
    sequence: SequenceId,
    heard: Instant,
    /// Cancelled by whoever ends it first: this stream, or the engine.
    gone: CancellationToken,
    slot: Slot,
}

/// Sessions by the worker's number.
#[derive(Default)]
struct Sessions {
    /// With the time of the last frame.
    opening: HashMap<u64, (Instant, Opening)>,
    open: HashMap<u64, Session>,
}

impl Stream {
    /// Carries frames until the worker leaves, the stream breaks or the process stops.
    pub(crate) async fn run(
        self,
        mut incoming: Streaming<WorkerFrame>,
        outgoing: mpsc::Sender<Result<DrafterFrame, Status>>,
    ) {
        let mut sessions = Sessions::default();
        let mut lease = tokio::time::interval((self.shared.lease / 4).max(Duration::from_millis(10)));
        let reading = async {
            loop {
                tokio::select! {
                    message = incoming.message() => match message {
                        Ok(Some(frame)) => {
                            if let Err(bad) = self.take(frame, &mut sessions) {
                                tracing::warn!(worker = %self.worker, %bad, "the worker sent nonsense; ending its stream");
                                return Err(Status::from(bad));
                            }
                        }
                        Ok(None) => return Ok(()),
                        // Mostly the worker is gone; if it sent what no decoder takes, it is told.
                        Err(status) => {
                            tracing::info!(worker = %self.worker, %status, "the stream broke");
                            return Err(status);
                        }
                    },
                    _ = lease.tick() => self.expire(&mut sessions),
                    () = self.shared.stop.cancelled() => return Ok(()),
                }
            }
        };
        let end = tokio::select! {
            end = reading => end,
            // The worker reads no more.
            () = self.write(&outgoing) => Ok(()),
        };
        self.queue.close();
        if let Err(status) = end {
            // A full channel means that the worker does not read; it sees the stream end all the same.
            let _ = outgoing.try_send(Err(status));
        }
        for (_, session) in sessions.open {
            self.cancel(&session);
        }
    }

    async fn write(&self, outgoing: &mpsc::Sender<Result<DrafterFrame, Status>>) {
        while let Some((session, entry)) = self.queue.next().await {
            for frame in entry.frames(session, self.shared.lease, self.shared.step_time.mean()) {
                let frame = Addressed { sender: self.shared.incarnation, receiver: self.peer, frame };
                if outgoing.send(Ok(frame.into())).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Takes one frame. Nonsense in a session ends that session; an error ends the stream.
    fn take(&self, frame: WorkerFrame, sessions: &mut Sessions) -> Result<(), BadFrame> {
        let frame = match Addressed::<FromWorker>::try_from(frame) {
            Ok(frame) => frame,
            Err(bad) => {
                let Some(session) = bad.session else { return Err(bad) };
                tracing::warn!(worker = %self.worker, %bad, "bad frame; ending its session");
                sessions.opening.remove(&session);
                match sessions.open.remove(&session) {
                    Some(open) => {
                        self.cancel(&open);
                        self.close(session, ClosedReason::Invalid, bad.error.to_string());
                    }
                    None => {
                        let reason = match bad.error.reason {
                            Reason::NotBuilt => RefusedReason::NotBuilt,
                            _ => RefusedReason::Invalid,
                        };
                        self.refuse(session, reason, bad.error.to_string());
                    }
                }
                return Ok(());
            }
        };
        frame.check(self.shared.incarnation, Some(self.peer))?;
        if let Some(open) = frame.frame.session().and_then(|s| sessions.open.get_mut(&s)) {
            open.heard = Instant::now();
        }
        match frame.frame {
            FromWorker::Hello(_) => {
                return Err(WireError::new(Reason::InvalidField, "frame", "a second hello").into());
            }
            FromWorker::Open(opening) => self.opening(opening, sessions),
            FromWorker::Known { session, at, ids } => {
                let Some((_, mut opening)) = sessions.opening.remove(&session) else { return Ok(()) };
                match opening.add(at, &ids) {
                    Ok(()) => self.opening(opening, sessions),
                    Err(why) => self.refuse(session, RefusedReason::Invalid, why.to_string()),
                }
            }
            // A full inbox drops a commit: the next one shows the gap and the drafter asks for it.
            FromWorker::Commit { session, at, prefix_hash, ids } => {
                if let Some(open) = sessions.open.get(&session) {
                    let frame = CommitFrame { at, prefix_hash, ids };
                    let _ = self.shared.inbox.send(Command::Commit(open.sequence, frame));
                }
            }
            FromWorker::Credit { session, window } => {
                if let Some(open) = sessions.open.get(&session) {
                    let _ = self.shared.inbox.send(Command::Window { sequence: open.sequence, window });
                }
            }
            FromWorker::Close { session } => {
                sessions.opening.remove(&session);
                if let Some(open) = sessions.open.remove(&session) {
                    self.cancel(&open);
                }
            }
        }
        Ok(())
    }

    fn opening(&self, opening: Opening, sessions: &mut Sessions) {
        let session = opening.session();
        // The engine may have ended some meanwhile; the worker was told then.
        sessions.open.retain(|_, open| !open.gone.is_cancelled());
        if sessions.open.contains_key(&session) {
            return self.refuse(session, RefusedReason::Invalid, "session: this number is in use".into());
        }
        // Before the rest of its tokens is waited for.
        let known = opening.known_len();
        if opening.reads_all() && known >= self.shared.context as usize {
            let why = format!("{known} tokens and the drafter's context holds {}", self.shared.context);
            return self.refuse(session, RefusedReason::TooLong, why);
        }
        match opening.complete() {
            Ok(open) => self.open(open, sessions),
            Err(_) if sessions.opening.len() >= MAX_OPENING => {
                self.refuse(session, RefusedReason::NoSlot, "too many sessions are being opened".into());
            }
            Err(opening) => {
                sessions.opening.insert(session, (Instant::now(), *opening));
            }
        }
    }

    fn open(&self, open: Open, sessions: &mut Sessions) {
        let session = open.session;
        if self.shared.shutdown.is_draining() {
            return self.refuse(session, RefusedReason::Draining, "this drafter is draining".into());
        }
        let Ok(slot) = self.shared.slots.clone().try_acquire_owned().map(Slot::new) else {
            return self.refuse(session, RefusedReason::NoSlot, "all slots are taken".into());
        };
        let span = telemetry::span!("draft.session", otel.kind = "server", paceline.worker = %self.worker);
        trace::continue_from_text(&span, &open.traceparent);
        let sequence = SequenceId(self.shared.next_sequence.fetch_add(1, Ordering::Relaxed));
        let gone = self.shared.stop.child_token();
        let queue = self.queue.clone();
        // A lock that is held while one prompt is cut: a few milliseconds for the longest.
        let retrieved = open.retrieval.map(|wanted| {
            let mut documents = self.shared.documents.lock().unwrap_or_else(PoisonError::into_inner);
            documents.retrieve(&open.cache_salt, &open.prompt, &wanted)
        });
        let skipped = retrieved.as_ref().map_or(0, |read| open.prompt.len() - read.len()) as u32;
        let mut opened = Box::new(DraftOpen {
            sequence,
            prompt: open.prompt,
            retrieved,
            committed: open.committed,
            longest: open.longest.min(self.shared.context.saturating_add(skipped)),
            sampling: open.sampling,
            adjust: open.adjust,
            constraint: None,
            rule: open.rule,
            limits: Limits { min_tokens: open.min_tokens, ..Limits::new(u32::MAX, open.stop_ids) },
            window: open.window,
            cache_salt: open.cache_salt,
            outlet: Box::new(SessionOutlet {
                queue: queue.clone(),
                session,
                gone: gone.clone(),
                slot: slot.clone(),
                span,
                frames: 0,
            }),
            admitted: Box::new(move |admitted| {
                queue.update(session, |out| match admitted {
                    Ok(()) => out.granted = true,
                    Err(refusal) => {
                        let reason = reason(&refusal);
                        count(reason);
                        out.refused = Some((reason, refusal.to_string()));
                    }
                });
            }),
        });
        match open.constraint {
            None => self.draft(session, opened),
            Some(wanted) => {
                // Commits that come meanwhile find no sequence; the first one after asks for them again.
                let this = self.clone();
                self.shared.streams.spawn(async move {
                    match this.shared.constraints.compile(&wanted).await {
                        Ok(constraint) => opened.constraint = Some(constraint),
                        Err(why) => tracing::debug!(%why, "drafting without the constraint"),
                    }
                    this.draft(session, opened);
                });
            }
        }
        sessions.open.insert(session, Session { sequence, heard: Instant::now(), gone, slot });
    }

    fn draft(&self, session: u64, open: Box<DraftOpen>) {
        if self.shared.inbox.send(Command::Draft(open)).is_err() {
            self.refuse(session, RefusedReason::NoSlot, "the drafter's inbox is full".into());
        }
    }

    fn expire(&self, sessions: &mut Sessions) {
        let lease = self.shared.lease;
        sessions.opening.retain(|session, (heard, _)| {
            let live = heard.elapsed() < lease;
            if !live {
                self.refuse(
                    *session,
                    RefusedReason::Invalid,
                    format!("the rest of it did not come in {lease:?}"),
                );
            }
            live
        });
        sessions.open.retain(|session, open| {
            let live = open.heard.elapsed() < lease;
            if !live {
                self.cancel(open);
                self.close(*session, ClosedReason::LeaseExpired, format!("no frame for {lease:?}"));
            }
            live
        });
    }

    fn cancel(&self, session: &Session) {
        // Either is enough; the token also when the inbox is full.
        session.gone.cancel();
        session.slot.free();
        let _ = self.shared.inbox.send(Command::Cancel(session.sequence));
    }

    fn refuse(&self, session: u64, reason: RefusedReason, message: String) {
        count(reason);
        self.queue.update(session, |out| out.refused = Some((reason, message)));
    }

    fn close(&self, session: u64, reason: ClosedReason, message: String) {
        self.queue.update(session, |out| out.closed = Some((reason, message)));
    }
}

/// Counts a session that was refused.
fn count(reason: RefusedReason) {
    let reason = match reason {
        RefusedReason::NoSlot => Reason::Overloaded,
        RefusedReason::TooLong => Reason::ContextLengthExceeded,
        RefusedReason::Draining => Reason::Draining,
        RefusedReason::NotBuilt => Reason::NotBuilt,
        RefusedReason::Invalid => Reason::InvalidField,
        RefusedReason::Unknown => Reason::Internal,
    };
    let labels = [Label::role("drafter"), Label::reason(reason.as_str())];
    telemetry::meters().request_failure.add(1, &labels);
}

fn reason(refusal: &Refusal) -> RefusedReason {
    match refusal {
        Refusal::Invalid(field) if field.not_built => RefusedReason::NotBuilt,
        Refusal::Invalid(_) | Refusal::Scheduler(Refused::Empty | Refused::Doubled(_)) => {
            RefusedReason::Invalid
        }
        Refusal::Scheduler(Refused::TooLong { .. } | Refused::NeverFits { .. }) => RefusedReason::TooLong,
        Refusal::Scheduler(Refused::QueueFull { .. }) | Refusal::Wait { .. } => RefusedReason::NoSlot,
    }
}
