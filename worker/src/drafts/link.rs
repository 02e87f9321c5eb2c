//! One standing stream to one drafter.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cluster::{Incarnation, Nearness, Site, SiteDevice};
use daemon::MergeQueue;
use engine::{Command, CommitFrame, Drafter, Inbox};
use proto::Candidate;
use proto::draft::{DrafterFrame, WorkerFrame, draft_client::DraftClient};
use proto::frame::{Addressed, ClosedReason, FromDrafter, FromWorker, Hello, Open, RefusedReason};
use request::Speculation;
use sampling::Distribution;
use scheduler::SequenceId;
use speculation::{Acceptance, Drafts, Timing, window};
use telemetry::Label;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::Pace;
use super::link_error::LinkError;
use super::order::Known;
use super::outgoing::{Outgoing, frames, merge};
use super::round_trip::RoundTrip;

/// To connect, and for each answer of the drafter at the start of a stream.
const CONNECT: Duration = Duration::from_secs(2);
/// For a grant: the drafter answers between two of its steps.
const GRANT: Duration = Duration::from_secs(2);
/// Frames between the writer and the transport; then entries merge in the queue.
const FRAMES: usize = 16;
/// Sessions with something to say to a drafter that does not read; beyond it the link ends.
const WAITING: usize = 8192;
/// Widest window of a free-running drafter: what two steps of a large target and a small drafter's speed come to.
const MAX_WINDOW: u32 = Speculation::MAX_DRAFT;
/// Before anything is measured.
const FIRST_WINDOW: u32 = 8;

/// Who this worker is on the draft stream, and what links share.
#[derive(Clone, Debug)]
pub(crate) struct Me {
    pub(crate) hello: Hello,
    pub(crate) incarnation: Incarnation,
    /// Label of what the worker serves.
    pub(crate) model: [Label; 1],
    pub(crate) inbox: Inbox,
    /// Of one decode step of the target.
    pub(crate) step_time: Arc<Pace>,
    /// Where this worker computes; `None`: nobody could say.
    pub(crate) site: Option<Site>,
    /// Whether drafters work in turn with this worker; `None`: by where they say that they compute.
    pub(crate) take_turns: Option<bool>,
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the process stops.
    pub(crate) stop: CancellationToken,
}

impl Me {
    /// How a drafter of that nearness works for this worker.
    fn turns(&self, nearness: Nearness) -> Drafter {
        let on_gpu = matches!(self.site, Some(Site { device: SiteDevice::Gpus(_), .. }));
        match self.take_turns {
            Some(true) => Drafter::InTurn { together: on_gpu },
            Some(false) => Drafter::Ahead,
            None if nearness != Nearness::Colocated => Drafter::Ahead,
            None if on_gpu => Drafter::AsMeasured,
            None => Drafter::InTurn { together: false },
        }
    }
}

#[derive(Debug)]
struct Session {
    sequence: SequenceId,
    granted: Option<oneshot::Sender<Result<(), (RefusedReason, String)>>>,
    detached: CancellationToken,
    closed: Arc<OnceLock<ClosedReason>>,
    /// `None`: the window follows what is measured.
    fixed_window: Option<u32>,
    /// The window that the drafter was told last.
    window: u32,
    acceptance: Acceptance,
    /// The oldest commit that no drafts have followed yet: where it ends and when it was told.
    unanswered: Option<(u32, Instant)>,
}

#[derive(Debug)]
pub(crate) struct Link {
    peer: Candidate,
    queue: MergeQueue<u64, Outgoing>,
    sessions: Mutex<HashMap<u64, Session>>,
    next_session: AtomicU64,
    nearness: Nearness,
    turns: Drafter,
    round_trip: RoundTrip,
    draft_time: Pace,
    /// Of one decode step of the target.
    step_time: Arc<Pace>,
    /// Of all sessions: where the next one begins.
    acceptance: Mutex<Acceptance>,
    /// Cancelled when the stream is over.
    ended: CancellationToken,
}

/// A session that was asked for; dropped, the drafter gets its slot back, granted or not.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) link: Arc<Link>,
    pub(crate) session: u64,
    /// Cancelled when the drafter or the stream is gone.
    pub(crate) detached: CancellationToken,
    closed: Arc<OnceLock<ClosedReason>>,
}

impl Lease {
    /// Why the drafter closed it; `None` while it did not, or when the stream ended.
    pub(crate) fn closed(&self) -> Option<ClosedReason> {
        self.closed.get().copied()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.link.close(self.session);
    }
}

impl Link {
    /// Connects and pairs: versions and vocabularies must agree.
    pub(crate) async fn connect(peer: &Candidate, me: &Me) -> Result<Arc<Self>, LinkError> {
        let name = || peer.id.to_string();
        let status = |status: Status| LinkError::Status { drafter: name(), status: Box::new(status) };
        let pairing = |why: String| LinkError::Pairing { drafter: name(), why };
        let dialled = daemon::grpc::dial(&peer.endpoint, CONNECT).map_err(|e| pairing(e.to_string()))?;
        let late = || LinkError::Late(name());
        let channel = timeout(CONNECT, dialled.connect())
            .await
            .map_err(|_| late())?
            .map_err(|e| status(Status::from_error(Box::new(e))))?;
        let (outgoing, frames) = mpsc::channel::<WorkerFrame>(FRAMES);
        let said = Instant::now();
        let hello = Addressed {
            sender: me.incarnation,
            receiver: peer.incarnation,
            frame: FromWorker::Hello(me.hello.clone()),
        };
        // The channel is empty: this cannot wait.
        outgoing.send(hello.into()).await.map_err(|_| LinkError::Ended(name()))?;
        let mut client =
            DraftClient::new(channel.clone()).max_decoding_message_size(proto::bounds::MAX_FRAME_BYTES);
        let paired = async {
            let mut incoming =
                client.session(ReceiverStream::new(frames)).await.map_err(status)?.into_inner();
            let first = incoming.message().await.map_err(status)?.ok_or_else(|| LinkError::Ended(name()))?;
            let first = Addressed::<FromDrafter>::try_from(first).map_err(|e| pairing(e.to_string()))?;
            first.check(me.incarnation, Some(peer.incarnation)).map_err(|e| pairing(e.to_string()))?;
            let FromDrafter::Hello(theirs) = first.frame else {
                return Err(pairing("it did not say hello first".into()));
            };
            me.hello.agree(&theirs).map_err(|e| pairing(e.to_string()))?;
            Ok((incoming, theirs.site, said.elapsed()))
        };
        let (incoming, site, first) = timeout(CONNECT, paired).await.map_err(|_| late())??;
        let nearness = Nearness::between(me.site.as_ref(), site.as_ref());
        let round_trip = RoundTrip::new(first);
        let link = Arc::new(Self {
            peer: peer.clone(),
            queue: MergeQueue::new(WAITING),
            sessions: Mutex::default(),
            next_session: AtomicU64::new(1),
            nearness,
            turns: me.turns(nearness),
            round_trip,
            draft_time: Pace::default(),
            step_time: Arc::clone(&me.step_time),
            acceptance: Mutex::default(),
            ended: me.stop.child_token(),
        });
        tracing::info!(
            drafter = %peer.id, placement = nearness.as_str(), round_trip = ?link.round_trip.median(),
            turns = ?link.turns, "paired"
        );
        me.tasks.spawn(link.clone().measure(channel));
        me.tasks.spawn(link.clone().write(outgoing, me.incarnation));
        me.tasks.spawn(link.clone().read(incoming, me.clone()));
        Ok(link)
    }

    pub(super) fn known(&self) -> Known {
        Known { cost: self.round_trip.median() + self.draft_time.mean(), nearness: self.nearness }
    }

    /// How the drafter works for this worker.
    pub(super) fn turns(&self) -> Drafter {
        self.turns
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_cancelled()
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.peer.incarnation
    }

    /// Asks for a session; `open.session` and `open.window` are set here.
    pub(crate) async fn open(
        self: &Arc<Self>,
        sequence: SequenceId,
        fixed_window: Option<u32>,
        open: Open,
    ) -> Result<Lease, LinkError> {
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        let acceptance = self.believed().carried_over();
        let window = fixed_window.unwrap_or_else(|| self.window(&acceptance).unwrap_or(FIRST_WINDOW));
        let (grant, granted) = oneshot::channel();
        let (detached, closed) = (self.ended.child_token(), Arc::default());
        // From here on: who stops waiting for the grant gives the slot back.
        let lease =
            Lease { link: self.clone(), session, detached: detached.clone(), closed: Arc::clone(&closed) };
        self.lock().insert(
            session,
            Session {
                sequence,
                granted: Some(grant),
                detached,
                closed,
                fixed_window,
                window,
                acceptance,
                unanswered: None,
            },
        );
        self.queue.update(session, |out| out.open = Some(Open { session, window, ..open }));
        let drafter = || self.peer.id.to_string();
        match timeout(GRANT, granted).await {
            Ok(Ok(Ok(()))) => Ok(lease),
            Ok(Ok(Err((reason, message)))) => Err(LinkError::Refused { drafter: drafter(), reason, message }),
            Ok(Err(_)) => Err(LinkError::Ended(drafter())),
            Err(_) => Err(LinkError::Late(drafter())),
        }
    }

    /// Tells the drafter what the target committed; what it has not been sent yet is merged.
    /// `verified` drafts were judged, `accepted` of them stood.
    pub(crate) fn commit(&self, session: u64, frame: CommitFrame, verified: usize, accepted: usize) {
        self.believed().record(verified, accepted);
        if let Some(session) = self.lock().get_mut(&session) {
            session.acceptance.record(verified, accepted);
            let end = frame.at.saturating_add(u32::try_from(frame.ids.len()).unwrap_or(u32::MAX));
            session.unanswered.get_or_insert_with(|| (end, Instant::now()));
        }
        self.queue.update(session, |out| merge(&mut out.commit, frame));
    }

    /// Tells the drafter how far it may go, where the engine decides that; `None`: the window follows what is measured.
    pub(crate) fn ask(&self, session: u64, window: Option<u32>) {
        let mut sessions = self.lock();
        let Some(open) = sessions.get_mut(&session) else { return };
        open.fixed_window = window;
        open.window = window.or_else(|| self.window(&open.acceptance)).unwrap_or(FIRST_WINDOW);
        let credit = open.window;
        self.queue.update(session, |out| out.credit = Some(credit));
    }

    fn close(&self, session: u64) {
        let Some(gone) = self.lock().remove(&session) else { return };
        gone.detached.cancel();
        self.queue.update(session, |out| *out = Outgoing { close: true, ..Outgoing::default() });
    }

    /// Sends what waits, entry by entry, until the stream is over.
    async fn write(self: Arc<Self>, outgoing: mpsc::Sender<WorkerFrame>, me: Incarnation) {
        let sending = async {
            while let Some((session, entry)) = self.queue.next().await {
                for frame in frames(session, entry) {
                    let frame = Addressed { sender: me, receiver: self.peer.incarnation, frame };
                    if outgoing.send(frame.into()).await.is_err() {
                        return;
                    }
                }
            }
        };
        tokio::select! {
            () = sending => (),
            () = self.ended.cancelled() => (),
        }
        self.end();
    }

    /// Keeps the round trip fresh until the stream is over.
    async fn measure(self: Arc<Self>, channel: Channel) {
        tokio::select! {
            () = self.round_trip.keep_fresh(&channel) => (),
            () = self.ended.cancelled() => (),
        }
    }

    async fn read(self: Arc<Self>, mut incoming: Streaming<DrafterFrame>, me: Me) {
        let reading = async {
            loop {
                match incoming.message().await {
                    Ok(Some(frame)) => {
                        if let Err(why) = self.take(frame, &me) {
                            tracing::warn!(drafter = %self.peer.id, %why, "the drafter sent nonsense; leaving it");
                            return;
                        }
                    }
                    Ok(None) => {
                        return tracing::info!(drafter = %self.peer.id, "the drafter ended the stream");
                    }
                    Err(status) => {
                        return tracing::info!(drafter = %self.peer.id, %status, "the drafter is gone");
                    }
                }
            }
        };
        tokio::select! {
            () = reading => (),
            () = self.ended.cancelled() => (),
        }
        self.end();
    }

    /// Takes one frame; an error ends the link.
    fn take(&self, frame: DrafterFrame, me: &Me) -> Result<(), String> {
        let frame = match Addressed::<FromDrafter>::try_from(frame) {
            Ok(frame) => frame,
            // Nonsense in one session closes that session; the others go on.
            Err(bad) => match bad.session {
                Some(session) => {
                    tracing::warn!(drafter = %self.peer.id, why = %bad, "bad frame; closing its session");
                    self.close(session);
                    return Ok(());
                }
                None => return Err(bad.to_string()),
            },
        };
        frame.check(me.incarnation, Some(self.peer.incarnation)).map_err(|e| e.to_string())?;
        match frame.frame {
            FromDrafter::Hello(_) => return Err("a second hello".into()),
            FromDrafter::Granted { session, .. } => self.answer(session, Ok(())),
            FromDrafter::Refused { session, reason, message } => self.answer(session, Err((reason, message))),
            FromDrafter::Drafts { session, at, prefix_hash, ids, q, draft_time } => {
                let Some(sequence) = self.sequence(session) else { return Ok(()) };
                let Ok(q) = q.into_iter().map(Distribution::new).collect::<Result<_, _>>() else {
                    tracing::warn!(drafter = %self.peer.id, "drafts.q is no distribution; closing its session");
                    self.close(session);
                    return Ok(());
                };
                if let Some(time) = self.round_trip_of(session, at) {
                    let labels = [me.model[0].clone(), Label::placement(self.nearness.as_str())];
                    telemetry::meters().draft_round_trip.record(time.as_secs_f64(), &labels);
                }
                // A full inbox drops the frame; the next one repeats it.
                let _ = me.inbox.send(Command::Drafts(sequence, Drafts { at, prefix_hash, ids, q }));
                self.draft_time.record(draft_time);
                self.widen(session);
            }
            FromDrafter::Resync { session, have } => {
                let Some(sequence) = self.sequence(session) else { return Ok(()) };
                let _ = me.inbox.send(Command::Resync { sequence, have });
            }
            FromDrafter::Closed { session, reason, message } => {
                tracing::debug!(drafter = %self.peer.id, session, ?reason, message, "session closed");
                if let Some(gone) = self.lock().remove(&session) {
                    let _ = gone.closed.set(reason);
                    gone.detached.cancel();
                }
            }
        }
        Ok(())
    }

    fn answer(&self, session: u64, answer: Result<(), (RefusedReason, String)>) {
        let granted = self.lock().get_mut(&session).and_then(|s| s.granted.take());
        if let Some(granted) = granted {
            // Who asked may have given up by now.
            let _ = granted.send(answer);
        }
    }

    fn sequence(&self, session: u64) -> Option<SequenceId> {
        self.lock().get(&session).map(|s| s.sequence)
    }

    /// Since the oldest unanswered commit, if drafts for position `at` follow it.
    fn round_trip_of(&self, session: u64, at: u32) -> Option<Duration> {
        let mut sessions = self.lock();
        let unanswered = &mut sessions.get_mut(&session)?.unanswered;
        unanswered.take_if(|(end, _)| at >= *end).map(|(_, told)| told.elapsed())
    }

    /// Applies the window rule to what is measured and tells the session when it changed.
    fn widen(&self, session: u64) {
        let mut sessions = self.lock();
        let Some(open) = sessions.get_mut(&session).filter(|s| s.fixed_window.is_none()) else { return };
        let Some(new) = self.window(&open.acceptance) else { return };
        // One token more or less is noise of the measurement.
        if new.abs_diff(open.window) >= 2 {
            open.window = new;
            self.queue.update(session, |out| out.credit = Some(new));
        }
    }

    /// What the window rule gives; `None` before both sides were timed.
    fn window(&self, acceptance: &Acceptance) -> Option<u32> {
        let (target_step, draft_step) = (self.step_time.mean(), self.draft_time.mean());
        let timing = Timing { target_step, draft_step, round_trip: self.round_trip.median() };
        let timed = !target_step.is_zero() && !draft_step.is_zero();
        timed.then(|| window(timing, acceptance, MAX_WINDOW))
    }

    fn believed(&self) -> MutexGuard<'_, Acceptance> {
        self.acceptance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.ended.cancel();
        self.queue.close();
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
