//! One coordinator, kept told.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use cluster::{Endpoint, Load, NodeRecord, NodeState, NodeUpdate, PrefixCursor};
use proto::cluster as wire;
use proto::cluster::cluster_client::ClusterClient;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{Config, Node, Prefixes};
use crate::{Shutdown, grpc};

/// Updates not yet taken by the connection. Full means that the coordinator does not read: heartbeats
/// are then left out (and not numbered), and it will rightly suspect this node.
const OUTBOX: usize = 4;

/// Changes of the prefix cache are told so many times a heartbeat.
const TELLS: u32 = 8;

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a stream ended.
enum Ended {
    /// We ended it.
    Left,
    /// It broke or was never there.
    Lost(String),
    /// The coordinator refused this node.
    Refused(Status),
}

/// Holds a stream to `address`, again and again, until `stop` or the shutdown's stop.
pub(super) async fn hold(
    address: SocketAddr,
    config: Config,
    node: Node,
    count: watch::Sender<usize>,
    stop: CancellationToken,
    shutdown: Shutdown,
) {
    let fresh = || {
        ExponentialBuilder::new()
            .with_min_delay(config.retry_min)
            .with_max_delay(config.retry_max)
            .with_jitter()
            .without_max_times()
            .build()
    };
    let mut pauses = fresh();
    loop {
        let mut stream =
            Stream { config: &config, node: &node, stop: &stop, shutdown: &shutdown, taken: None };
        let ended = tokio::select! {
            ended = stream.run(address, &count) => ended,
            () = aborted(&stop, &shutdown) => Ended::Left,
        };
        if stream.taken.take().is_some() {
            pauses = fresh();
        }
        let pause = pauses.next().unwrap_or(config.retry_max);
        match ended {
            Ended::Left => return,
            Ended::Lost(why) => tracing::warn!(why, retry_in = ?pause, "no stream to the coordinator"),
            Ended::Refused(status) => {
                let (code, why) = (status.code(), status.message());
                tracing::error!(?code, why, retry_in = ?pause, "the coordinator refuses this node");
            }
        }
        tokio::select! {
            () = sleep(pause) => (),
            () = stop.cancelled() => return,
            () = shutdown.stopping() => return,
        }
    }
}

/// Until `stop` or the shutdown's stop is older than a goodbye may take.
async fn aborted(stop: &CancellationToken, shutdown: &Shutdown) {
    tokio::select! {
        () = stop.cancelled() => (),
        () = shutdown.stopping() => (),
    }
    sleep(GOODBYE).await;
}

struct Stream<'a> {
    config: &'a Config,
    node: &'a Node,
    stop: &'a CancellationToken,
    shutdown: &'a Shutdown,
    /// Once the coordinator has answered.
    taken: Option<Counted>,
}

impl Stream<'_> {
    async fn run(&mut self, address: SocketAddr, count: &watch::Sender<usize>) -> Ended {
        let patience = self.config.connect_timeout;
        let mut outbox = Outbox::new(self.node, self.shutdown.is_draining());
        let opened = timeout(patience, open(address, patience, &mut outbox)).await;
        let (mut answers, first) = match opened {
            Err(_) => return Ended::Lost(format!("no answer within {patience:?}")),
            Ok(Err(ended)) => return ended,
            Ok(Ok(opened)) => opened,
        };
        let mut every = first.every;
        tracing::info!(heartbeat = ?every, "joined");
        self.taken = Some(Counted::new(count));
        let (mut beats, mut tells) = (ticks(every), ticks(every / TELLS));
        loop {
            tokio::select! {
                answer = answers.message() => match read(answer) {
                    Ok(answer) => {
                        if answer.every != every {
                            every = answer.every;
                            (beats, tells) = (ticks(every), ticks(every / TELLS));
                        }
                        outbox.wanted(&answer);
                    }
                    Err(ended) => return ended,
                },
                _ = beats.tick() => outbox.beat(),
                _ = tells.tick(), if outbox.cursor.is_some() => outbox.tell(),
                // Not a heartbeat late: new work goes elsewhere at once.
                () = self.shutdown.draining(), if !outbox.is_draining() => {
                    outbox.drain();
                    outbox.beat();
                }
                () = self.stop.cancelled() => break,
                () = self.shutdown.stopping() => break,
            }
        }
        // A stream that ends after *draining* is a node that left, not one that was lost.
        outbox.drain();
        outbox.beat();
        drop(outbox);
        let _ = timeout(GOODBYE, async { while let Ok(Some(_)) = answers.message().await {} }).await;
        Ended::Left
    }
}

/// Connects, sends the snapshot and waits for the first answer.
async fn open(
    address: SocketAddr,
    patience: Duration,
    outbox: &mut Outbox,
) -> Result<(Streaming<wire::JoinResponse>, Answer), Ended> {
    let lost = |error: &dyn std::error::Error| Ended::Lost(chain(error));
    let endpoint = Endpoint::try_from(address).map_err(|e| lost(&e))?;
    let channel = grpc::dial(&endpoint, patience).map_err(|e| lost(&e))?;
    let channel = channel.connect().await.map_err(|e| lost(&e))?;
    let Some(updates) = outbox.open() else { return Err(Ended::Lost("opened twice".into())) };
    let mut answers =
        ClusterClient::new(channel).join(ReceiverStream::new(updates)).await.map_err(failed)?.into_inner();
    let first = read(answers.message().await)?;
    outbox.wanted(&first);
    Ok((answers, first))
}

struct Answer {
    every: Duration,
    want_snapshot: bool,
    want_prefixes: bool,
}

fn read(answer: Result<Option<wire::JoinResponse>, Status>) -> Result<Answer, Ended> {
    let answer = answer.map_err(failed)?.ok_or_else(|| Ended::Lost("the coordinator closed it".into()))?;
    let every = proto::convert::heartbeat_interval(&answer)
        .map_err(|e| Ended::Lost(format!("the coordinator's answer is wrong: {e}")))?;
    Ok(Answer { every, want_snapshot: answer.want_snapshot, want_prefixes: answer.want_prefixes })
}

fn failed(status: Status) -> Ended {
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted | Code::Unimplemented => {
            Ended::Refused(status)
        }
        _ => Ended::Lost(status.message().to_owned()),
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    // After a pause one heartbeat says all that several would.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The numbered updates of one stream.
struct Outbox {
    record: NodeRecord,
    load: watch::Receiver<Load>,
    prefixes: Prefixes,
    /// How far the coordinator was told; `None`: it does not want to know.
    cursor: Option<PrefixCursor>,
    /// A message about prefixes that had no room.
    stuck: Option<wire::NodeUpdate>,
    sender: mpsc::Sender<wire::NodeUpdate>,
    receiver: Option<mpsc::Receiver<wire::NodeUpdate>>,
    /// Of the last update sent.
    number: u64,
    /// A snapshot is owed; it goes out before anything else does.
    owed: bool,
}

impl Outbox {
    fn new(node: &Node, draining: bool) -> Self {
        let (sender, receiver) = mpsc::channel(OUTBOX);
        let (record, load) = (node.record.clone(), node.load.clone());
        let mut outbox = Self {
            record,
            load,
            prefixes: node.prefixes.clone(),
            cursor: None,
            stuck: None,
            sender,
            receiver: Some(receiver),
            number: 0,
            owed: true,
        };
        if draining {
            outbox.drain();
        }
        outbox.beat();
        outbox
    }

    /// The receiving end, once.
    fn open(&mut self) -> Option<mpsc::Receiver<wire::NodeUpdate>> {
        self.receiver.take()
    }

    fn is_draining(&self) -> bool {
        self.record.state == NodeState::Draining
    }

    fn drain(&mut self) {
        self.record.state = NodeState::Draining;
    }

    /// What the coordinator wants beyond heartbeats.
    fn wanted(&mut self, answer: &Answer) {
        if answer.want_snapshot {
            self.snapshot();
        }
        if answer.want_prefixes {
            self.cursor.get_or_insert_default().reset();
            self.tell();
        }
    }

    /// Tells what changed in the prefix cache, as far as there is room; the rest waits for the next time.
    fn tell(&mut self) {
        let Some(cursor) = &mut self.cursor else { return };
        loop {
            let message = self.stuck.take().or_else(|| {
                let log = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
                cursor.next(&log).map(|update| (&update).into())
            });
            let Some(message) = message else { return };
            if let Err(full) = self.sender.try_send(message) {
                self.stuck = Some(full.into_inner());
                return;
            }
        }
    }

    fn snapshot(&mut self) {
        self.owed = true;
        self.beat();
    }

    /// Sends what is due: the owed snapshot, or a delta. When the outbox is full nothing is numbered,
    /// and the next beat carries the then current state.
    fn beat(&mut self) {
        let load = *self.load.borrow();
        let update = if self.owed {
            NodeUpdate::Snapshot { number: self.number, record: self.record.clone(), load }
        } else {
            NodeUpdate::Delta { number: self.number + 1, state: self.record.state, load }
        };
        if self.sender.try_send((&update).into()).is_ok() {
            match update {
                NodeUpdate::Snapshot { .. } => self.owed = false,
                NodeUpdate::Delta { number, .. } => self.number = number,
            }
        }
    }
}

/// Counts a coordinator that has taken this node, as long as it lives.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|n| *n += 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n = n.saturating_sub(1));
    }
}
