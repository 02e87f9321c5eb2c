//! The side that computes: prompts in, descriptors and units out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cluster::{Duty, NodeRecord};
use daemon::Shutdown;
use engine::{Command, Inbox, Outlet, PageOut, PrefillEvent, PrefillOpen, Room};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kvcache::{PageHash, PrefixChain, PrefixRoot};
use proto::bounds::MAX_UNITS;
use proto::pages::pages_server::Pages;
use proto::pages::{DescribeRequest, DescribeResponse, PrefillRequest, PrefillResponse};
use proto::reason::{Reason, status};
use proto::{PrefillAsked, PrefillSaid, UnitSealed};
use scheduler::SequenceId;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Request, Response, Status};
use transport::{Fabric, FabricError, Head, Link, PageUnit, checksum};

use super::{HELLO, UNIT};

/// For a link to come after the prompt was taken.
const LEASE: Duration = Duration::from_secs(5);
/// One unit, or one message, to a reader that is alive.
const SEND: Duration = Duration::from_secs(5);
/// How often the asker hears that this worker lives.
const ALIVE: Duration = Duration::from_millis(500);
/// Events of the engine that wait for the link: a few steps' pages.
const EVENTS: usize = 4;
/// The pages of a step, and the end.
const STEP: usize = 2;
/// Links that were opened and did not say yet what for.
const GREETING: usize = 64;
const RETRY: Duration = Duration::from_secs(1);

/// `paceline.pages.v1`.
#[derive(Debug)]
pub(crate) struct Prefills {
    pub(crate) record: NodeRecord,
    pub(crate) inbox: Inbox,
    pub(crate) shutdown: Shutdown,
    pub(crate) next_sequence: Arc<AtomicU64>,
    /// The process does not leave while prompts are computed or pages not fetched.
    pub(crate) answers: TaskTracker,
    pub(crate) parcels: Arc<Parcels>,
    /// Where others open links.
    pub(crate) fabric: String,
}

/// Transfers whose link is still to come, by token.
#[derive(Debug)]
pub(crate) struct Parcels {
    waiting: Mutex<HashMap<u64, SyncSender<Box<dyn Link>>>>,
    under_way: AtomicUsize,
    most: usize,
}

impl Parcels {
    pub(crate) fn new(most: usize) -> Self {
        Self { waiting: Mutex::default(), under_way: AtomicUsize::new(0), most }
    }

    fn expect(&self, transfer: u64) -> Option<Receiver<Box<dyn Link>>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.contains_key(&transfer) || self.under_way.load(Ordering::Relaxed) >= self.most {
            return None;
        }
        let (give, take) = sync_channel(1);
        waiting.insert(transfer, give);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Some(take)
    }

    /// A link said which transfer it is for.
    fn arrived(&self, transfer: u64, link: Box<dyn Link>) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&transfer);
        if let Some(waiting) = waiting {
            // Nobody waits any more: the link closes.
            let _ = waiting.try_send(link);
        }
    }

    fn over(&self, transfer: u64) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&transfer);
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts links on a thread of its own until the process stops.
pub(crate) fn accept(fabric: &dyn Fabric, parcels: &Arc<Parcels>, stopping: &(dyn Fn() -> bool + Sync)) {
    let greeting = Arc::new(AtomicUsize::new(0));
    while !stopping() {
        let mut link = match fabric.accept(ALIVE) {
            Ok(link) => link,
            Err(FabricError::Deadline { .. }) => continue,
            Err(FabricError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "a link of the data plane was not accepted");
                std::thread::sleep(ALIVE);
                continue;
            }
        };
        if greeting.load(Ordering::Relaxed) >= GREETING {
            continue;
        }
        greeting.fetch_add(1, Ordering::Relaxed);
        let (parcels, count) = (parcels.clone(), greeting.clone());
        // One that says nothing must not keep the others waiting.
        let spawned = std::thread::Builder::new().name("pages-hello".into()).spawn(move || {
            if let Ok(Head { kind: HELLO, token, .. }) = link.recv(&mut Vec::new(), LEASE) {
                parcels.arrived(token, link);
            }
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            greeting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[tonic::async_trait]
impl Pages for Prefills {
    type PrefillStream = BoxStream<'static, Result<PrefillResponse, Status>>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let why = "asking what a worker holds is not built yet; ask it to compute the prompt";
        Err(status(Reason::NotBuilt, why, Some("page_hashes"), None))
    }

    async fn prefill(
        &self,
        request: Request<PrefillRequest>,
    ) -> Result<Response<Self::PrefillStream>, Status> {
        let token = self.answers.token();
        let asked = PrefillAsked::try_from(request.into_inner())?;
        self.may(&asked)?;
        let links = self.parcels.expect(asked.transfer).ok_or_else(|| {
            status(
                Reason::Overloaded,
                "this worker computes as many prompts for others as it may",
                None,
                Some(RETRY),
            )
        })?;
        let (say, said) = mpsc::channel(16);
        let over = Over { parcels: self.parcels.clone(), transfer: asked.transfer, _answer: token };
        let transfer = asked.transfer;
        let generation = self.record.incarnation.0;
        let mut chain = PrefixChain::new(PrefixRoot::salted(&asked.cache_salt));
        let hashes = chain.reach(&asked.tokens).to_vec();
        let events = self.admit(asked).await?;
        let opened = PrefillSaid::Opened { generation, fabric: self.fabric.clone(), lease: LEASE };
        // The channel is empty.
        let _ = say.try_send(Ok(opened.into()));
        let shutdown = self.shutdown.clone();
        let parcel = Parcel { transfer, generation, hashes, say, events, sent: 0, shutdown };
        let spawned = std::thread::Builder::new().name("pages-out".into()).spawn(move || {
            let _over = over;
            if let Err(why) = parcel.run(&links) {
                tracing::debug!(transfer, why, "a hand-off ended early");
            }
        });
        if let Err(error) = spawned {
            return Err(status(
                Reason::Overloaded,
                &format!("no thread for the hand-off: {error}"),
                None,
                Some(RETRY),
            ));
        }
        Ok(Response::new(ReceiverStream::new(said).boxed()))
    }
}

impl Prefills {
    fn may(&self, asked: &PrefillAsked) -> Result<(), Status> {
        if self.shutdown.is_draining() {
            return Err(status(Reason::Draining, "this worker is draining; ask another", None, Some(RETRY)));
        }
        if asked.incarnation != self.record.incarnation {
            let why = format!("this is incarnation {}", self.record.incarnation);
            return Err(status(Reason::StaleIncarnation, &why, Some("incarnation"), None));
        }
        if asked.fingerprint != self.record.fingerprint {
            let why = format!("pages here are of numerics {}", self.record.fingerprint);
            return Err(status(Reason::InvalidField, &why, Some("fingerprint"), None));
        }
        if self.record.duty == Duty::Decode {
            let why = "this worker computes no prompts for others (pages.duty is decode)";
            return Err(status(Reason::InvalidField, why, Some("incarnation"), None));
        }
        Ok(())
    }

    async fn admit(&self, asked: PrefillAsked) -> Result<Events, Status> {
        let (give, take) = sync_channel(EVENTS);
        let (queued, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (answer, admitted) = oneshot::channel();
        let open = PrefillOpen {
            sequence: SequenceId(self.next_sequence.fetch_add(1, Ordering::Relaxed)),
            prompt: asked.tokens,
            priority: asked.priority,
            cache_salt: asked.cache_salt,
            outlet: Box::new(PagesOutlet { give, queued: queued.clone(), gone: gone.clone() }),
            admitted: Box::new(move |admission| {
                let _ = answer.send(admission);
            }),
        };
        let events = Events { take, queued, gone };
        if self.inbox.send(Command::Prefill(Box::new(open))).is_err() {
            return Err(status(Reason::Overloaded, "this worker's inbox is full", None, Some(RETRY)));
        }
        match tokio::time::timeout(crate::service::ADMISSION, admitted).await {
            Ok(Ok(Ok(()))) => Ok(events),
            Ok(Ok(Err(refusal))) => Err(crate::service::refused(&refusal)),
            Ok(Err(_)) => Err(status(Reason::Internal, "the engine ended", None, None)),
            Err(_) => Err(status(Reason::Overloaded, "the engine did not answer in time", None, Some(RETRY))),
        }
    }
}

/// Counted until the thread of a transfer is over.
struct Over {
    parcels: Arc<Parcels>,
    transfer: u64,
    _answer: TaskTrackerToken,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.parcels.over(self.transfer);
    }
}

/// The engine's end.
struct PagesOutlet {
    give: SyncSender<PrefillEvent>,
    queued: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
}

impl Outlet<PrefillEvent> for PagesOutlet {
    fn room(&self) -> Room {
        if self.gone.load(Ordering::Relaxed) {
            Room::Gone
        } else if self.queued.load(Ordering::Relaxed) + STEP > EVENTS {
            Room::Full
        } else {
            Room::Free
        }
    }

    fn deliver(&mut self, event: PrefillEvent) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        // There is room; closed: the reader left, which `room` says next.
        let _ = self.give.try_send(event);
    }
}

/// The link's end of what the engine gives; dropping it ends the sequence.
struct Events {
    take: Receiver<PrefillEvent>,
    queued: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// One transfer on its thread: waits for the link, then describes and sends what the engine gives.
struct Parcel {
    transfer: u64,
    generation: u64,
    hashes: Vec<PageHash>,
    say: mpsc::Sender<Result<PrefillResponse, Status>>,
    events: Events,
    sent: u64,
    shutdown: Shutdown,
}

impl Parcel {
    fn run(mut self, links: &Receiver<Box<dyn Link>>) -> Result<(), String> {
        let mut link = links.recv_timeout(LEASE).map_err(|_| "the asker opened no link".to_owned())?;
        let mut pages = 0;
        loop {
            if self.shutdown.is_stopping() {
                return Err("the process stops".into());
            }
            match self.events.take.recv_timeout(ALIVE) {
                Ok(PrefillEvent::Pages(out)) => {
                    self.events.queued.fetch_sub(1, Ordering::Relaxed);
                    pages = out.last().map_or(pages, |page| page.index + 1);
                    self.send(&mut *link, &out)?;
                }
                Ok(PrefillEvent::Done) => {
                    self.tell(PrefillSaid::Done { pages })?;
                    // The asker closes when it has everything, or is tired of waiting.
                    return match link.recv(&mut Vec::new(), SEND * 2) {
                        Ok(_) | Err(FabricError::Closed) => Ok(()),
                        Err(error) => Err(error.to_string()),
                    };
                }
                Ok(PrefillEvent::Failed) => {
                    let failed = status(Reason::Internal, "the model failed", None, None);
                    let _ = self.say.try_send(Err(failed));
                    return Err("the model failed".into());
                }
                Err(RecvTimeoutError::Timeout) => self.tell(PrefillSaid::Working)?,
                Err(RecvTimeoutError::Disconnected) => return Err("the engine ended".into()),
            }
        }
    }

    fn send(&mut self, link: &mut dyn Link, pages: &[PageOut]) -> Result<(), String> {
        let mut sealed = Vec::new();
        for page in pages {
            for (layer, bytes) in (0..).zip(&page.layers) {
                let hash = self.hashes.get(page.index as usize).filter(|_| layer == 0);
                sealed.push(UnitSealed {
                    hash: hash.map(|hash| *hash.as_bytes()),
                    page: page.index,
                    layer,
                    class: page.class.0.into(),
                    bytes: bytes.len() as u64,
                    checksum: checksum(bytes),
                });
            }
        }
        let units = pages.iter().flat_map(|page| &page.layers);
        let mut payload = Vec::new();
        let described = sealed.clone();
        for some in sealed.chunks(MAX_UNITS) {
            self.tell(PrefillSaid::Sealed(some.to_vec()))?;
        }
        for (unit, bytes) in described.iter().zip(units) {
            let (generation, checksum) = (self.generation, unit.checksum);
            let head =
                PageUnit { page: unit.page, layer: unit.layer, class: unit.class, generation, checksum };
            head.write(bytes, &mut payload);
            let head = Head { kind: UNIT, token: self.transfer, item: self.sent };
            self.sent += 1;
            link.send(head, &payload, SEND).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// The asker always reads; one that does not for so long is gone.
    fn tell(&self, said: PrefillSaid) -> Result<(), String> {
        let until = Instant::now() + SEND;
        let mut message = Ok(PrefillResponse::from(said));
        loop {
            match self.say.try_send(message) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err("the asker left".into()),
                Err(mpsc::error::TrySendError::Full(_)) if Instant::now() >= until => {
                    return Err("the asker reads nothing".into());
                }
                Err(mpsc::error::TrySendError::Full(back)) => message = back,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
