//! The side that answers: asks for a prompt, checks every unit, hands pages to the engine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::Incarnation;
use engine::{Command, Inbox, PageIn, PageRefused, pages_to_hand_over};
use kvcache::{ClassId, PageHash, PrefixChain, PrefixRoot};
use proto::bounds::MAX_FRAME_BYTES;
use proto::pages::PrefillResponse;
use proto::pages::pages_client::PagesClient;
use proto::{Candidate, PrefillAsked, PrefillSaid, UnitSealed};
use request::Request;
use scheduler::SequenceId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tonic::Streaming;
use transport::{Fabric, FabricError, Head, PageUnit};

use super::{Fault, Figures, HELLO, UNIT};

/// Units that arrived and were not checked yet.
const UNITS: usize = 256;
/// How often the link's thread looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(100);
/// The engine answers between two steps.
const ENGINE: Duration = Duration::from_secs(30);
/// Pages that the engine was given and did not answer for.
const IN_HAND: usize = 64;

/// What a hand-off needs besides the request.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) inbox: Inbox,
    pub(crate) fingerprint: String,
    /// Of this worker.
    pub(crate) incarnation: Incarnation,
    pub(crate) stall: Duration,
    pub(crate) figures: Figures,
}

/// Fills the prefix of a sequence to come with pages that `from` computes. Whatever happens, the request may be admitted afterwards;
/// should it never be, a `Command::Cancel` gives up what is held.
pub(crate) async fn fetch(with: &Fetch, sequence: SequenceId, request: &Request, from: &Candidate) {
    let started = Instant::now();
    let tokens = request.known();
    let wanted = pages_to_hand_over(tokens.len());
    let mut chain = PrefixChain::new(PrefixRoot::salted(&request.cache_salt));
    let hashes = chain.reach(&tokens)[..wanted as usize].to_vec();
    // Never 0, and of one sequence of one life of one worker: nobody else's units carry it.
    let transfer = ((with.incarnation.0 << 24) ^ (sequence.0 << 1)) | 1;
    let asked = PrefillAsked {
        request: request.id.clone(),
        transfer,
        incarnation: from.incarnation,
        fingerprint: with.fingerprint.clone(),
        tokens,
        cache_salt: request.cache_salt.clone(),
        priority: request.priority,
    };
    let mut take =
        Take { with, sequence, hashes, assembling: None, answers: VecDeque::new(), held: 0, bytes: 0 };
    let outcome = run(&mut take, asked, from).await;
    let settled = take.settle(0).await;
    let fault = outcome.and(settled).err();
    if let Some(fault) = fault {
        tracing::info!(
            request = %request.id, worker = %from.id, reason = fault.as_str(), pages = take.held, wanted,
            "pages are missing; they are computed here"
        );
    }
    with.figures.fetched(take.held, take.bytes, started.elapsed(), fault);
}

async fn run(take: &mut Take<'_>, asked: PrefillAsked, from: &Candidate) -> Result<(), Fault> {
    let (stall, transfer) = (take.with.stall, asked.transfer);
    let channel = daemon::grpc::dial(&from.endpoint, stall).map_err(|_| Fault::Unreachable)?.connect_lazy();
    let mut client = PagesClient::new(channel)
        .max_encoding_message_size(proto::bounds::MAX_REQUEST_BYTES)
        .max_decoding_message_size(MAX_FRAME_BYTES);
    let mut said = match timeout(stall, client.prefill(proto::pages::PrefillRequest::from(asked))).await {
        Ok(Ok(said)) => said.into_inner(),
        Ok(Err(status)) if status.code() == tonic::Code::Unavailable && status.details().is_empty() => {
            return Err(Fault::Unreachable);
        }
        Ok(Err(_)) => return Err(Fault::Refused),
        Err(_) => return Err(Fault::Hung),
    };
    let Some(PrefillSaid::Opened { generation, fabric, .. }) = next(&mut said, stall).await? else {
        return Err(Fault::Failed);
    };
    let (give, mut units) = mpsc::channel(UNITS);
    let stop = Stop(Arc::new(AtomicBool::new(false)));
    let reader = {
        let (ours, stop) = (take.with.fabric.clone(), stop.0.clone());
        move || read(&*ours, &fabric, transfer, stall, &give, &stop)
    };
    // Its own thread: it waits for bytes. It ends by itself within a slice of `stop`.
    std::thread::Builder::new().name("pages-in".into()).spawn(reader).map_err(|_| Fault::Failed)?;
    let mut described: VecDeque<UnitSealed> = VecDeque::new();
    let mut done = false;
    // The other worker says nothing more; what is on the link may say why.
    let mut silent = false;
    let mut arrived = Instant::now();
    loop {
        if described.is_empty() && done {
            return take.hand_in().await;
        }
        if described.is_empty() && silent {
            return Err(Fault::Closed);
        }
        // Bytes that were announced must come soon; while none is, the other worker says that it lives.
        let by = arrived + stall;
        tokio::select! {
            message = next(&mut said, stall), if !done && !silent => match message {
                Ok(Some(PrefillSaid::Sealed(units))) => {
                    if described.is_empty() {
                        arrived = Instant::now();
                    }
                    described.extend(units);
                }
                Ok(Some(PrefillSaid::Working)) => {}
                Ok(Some(PrefillSaid::Done { .. })) => done = true,
                Ok(Some(PrefillSaid::Opened { .. })) => return Err(Fault::Failed),
                Ok(None) | Err(Fault::Closed) => silent = true,
                Err(fault) => return Err(fault),
            },
            unit = units.recv(), if !described.is_empty() => {
                let (head, payload) = unit.unwrap_or(Err(FabricError::Closed)).map_err(|e| Fault::of(&e))?;
                let Some(due) = described.pop_front() else { return Err(Fault::Failed) };
                arrived = Instant::now();
                take.unit(&due, head, transfer, generation, &payload).await?;
            }
            () = tokio::time::sleep_until(by), if !described.is_empty() => return Err(Fault::Hung),
        }
    }
}

async fn next(said: &mut Streaming<PrefillResponse>, stall: Duration) -> Result<Option<PrefillSaid>, Fault> {
    match timeout(stall, said.message()).await {
        Ok(Ok(Some(message))) => PrefillSaid::try_from(message).map(Some).map_err(|_| Fault::Failed),
        Ok(Ok(None)) => Ok(None),
        Ok(Err(status)) if status.details().is_empty() => Err(Fault::Closed),
        Ok(Err(_)) => Err(Fault::Failed),
        Err(_) => Err(Fault::Hung),
    }
}

/// Ends the link's thread when the hand-off is over, however it ends.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Arrived = Result<(Head, Vec<u8>), FabricError>;

/// Opens the link and passes on what comes, until it is told to stop or something is wrong.
fn read(
    fabric: &dyn Fabric,
    address: &str,
    transfer: u64,
    stall: Duration,
    give: &mpsc::Sender<Arrived>,
    stop: &AtomicBool,
) {
    let opened = fabric.connect(address, stall).and_then(|mut link| {
        link.send(Head { kind: HELLO, token: transfer, item: 0 }, &[], stall)?;
        Ok(link)
    });
    let mut link = match opened {
        Ok(link) => link,
        Err(error) => {
            let _ = give.blocking_send(Err(error));
            return;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let mut payload = Vec::new();
        match link.recv(&mut payload, SLICE) {
            Ok(head) => {
                if give.blocking_send(Ok((head, payload))).is_err() {
                    return;
                }
            }
            // Whether that is too long is said by who knows what is due.
            Err(FabricError::Deadline { .. }) => {}
            Err(error) => {
                let _ = give.blocking_send(Err(error));
                return;
            }
        }
    }
}

/// A page index, and the bytes of each class by layer.
type Assembling = (u32, Vec<(ClassId, Vec<Vec<u8>>)>);

/// Checked units on their way into the engine.
struct Take<'a> {
    with: &'a Fetch,
    sequence: SequenceId,
    hashes: Vec<PageHash>,
    /// The page whose units arrive.
    assembling: Option<Assembling>,
    answers: VecDeque<oneshot::Receiver<Result<(), PageRefused>>>,
    /// Pages that the engine holds.
    held: u32,
    bytes: u64,
}

impl Take<'_> {
    /// Checks a unit against what was described.
    async fn unit(
        &mut self,
        due: &UnitSealed,
        head: Head,
        transfer: u64,
        generation: u64,
        payload: &[u8],
    ) -> Result<(), Fault> {
        let (unit, bytes) = PageUnit::read(payload).ok_or(Fault::Truncated)?;
        if head.kind != UNIT || head.token != transfer || unit.generation != generation {
            return Err(Fault::Stale);
        }
        if (unit.page, unit.layer, unit.class) != (due.page, due.layer, due.class) {
            return Err(Fault::Order);
        }
        if bytes.len() as u64 != due.bytes || unit.checksum != due.checksum || !unit.holds(bytes) {
            return Err(Fault::Damaged);
        }
        let ours = self.hashes.get(due.page as usize).ok_or(Fault::Failed)?;
        if due.hash.is_some_and(|theirs| theirs != *ours.as_bytes()) {
            return Err(Fault::Prefix);
        }
        let class = ClassId(u8::try_from(due.class).map_err(|_| Fault::Failed)?);
        if self.assembling.as_ref().is_some_and(|(page, _)| *page != due.page) {
            self.hand_in().await?;
        }
        let (_, classes) = self.assembling.get_or_insert_with(|| (due.page, Vec::new()));
        if classes.last().is_none_or(|(last, _)| *last != class) {
            classes.push((class, Vec::new()));
        }
        let Some((_, layers)) = classes.last_mut().filter(|(_, layers)| layers.len() == due.layer as usize)
        else {
            return Err(Fault::Order);
        };
        layers.push(bytes.to_vec());
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Gives the page that is whole to the engine.
    async fn hand_in(&mut self) -> Result<(), Fault> {
        let Some((index, classes)) = self.assembling.take() else { return Ok(()) };
        let hash = *self.hashes.get(index as usize).ok_or(Fault::Failed)?;
        let (answer, taken) = oneshot::channel();
        let page = PageIn {
            sequence: self.sequence,
            index,
            hash,
            classes,
            taken: Box::new(move |taken| {
                // Whoever asked may be gone; then the sequence is given up.
                let _ = answer.send(taken);
            }),
        };
        self.with.inbox.send(Command::Page(Box::new(page))).map_err(|_| Fault::Failed)?;
        self.answers.push_back(taken);
        self.settle(IN_HAND).await
    }

    /// Hears from the engine until it owes no more than `owed` answers.
    async fn settle(&mut self, owed: usize) -> Result<(), Fault> {
        while self.answers.len() > owed {
            let Some(answer) = self.answers.pop_front() else { break };
            match timeout(ENGINE, answer).await {
                Ok(Ok(Ok(()))) => self.held += 1,
                Ok(Ok(Err(PageRefused::NoRoom))) => return Err(Fault::NoRoom),
                Ok(Ok(Err(PageRefused::Late | PageRefused::Model(_))) | Err(_)) | Err(_) => {
                    return Err(Fault::Failed);
                }
            }
        }
        Ok(())
    }
}
