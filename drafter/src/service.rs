//! `paceline.draft.v1`: pairing with a worker.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::Incarnation;
use daemon::{MergeQueue, Shutdown};
use engine::Inbox;
use proto::draft::draft_server::Draft;
use proto::draft::{DrafterFrame, WorkerFrame};
use proto::frame::{Addressed, FromDrafter, FromWorker, Hello};
use proto::reason::{Reason, status};
use rank::{Constraints, Pace};
use speculation::Documents;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::stream::Stream;

/// For a worker's hello.
const HELLO: Duration = Duration::from_secs(5);
/// Sessions with something to say to a worker that does not read; beyond it the stream ends.
const WAITING: usize = 8192;
/// Frames between the writer and the transport; then entries merge in the queue.
const FRAMES: usize = 16;

/// What the streams of a drafter share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) hello: Hello,
    pub(crate) incarnation: Incarnation,
    pub(crate) inbox: Inbox,
    pub(crate) context: u32,
    /// One permit a session.
    pub(crate) slots: Arc<Semaphore>,
    /// Of one draft step.
    pub(crate) step_time: Arc<Pace>,
    pub(crate) lease: Duration,
    pub(crate) constraints: Constraints,
    /// Long prompts that were cut into chunks.
    pub(crate) documents: Mutex<Documents>,
    pub(crate) shutdown: Shutdown,
    pub(crate) stop: CancellationToken,
    pub(crate) streams: TaskTracker,
    pub(crate) next_sequence: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Service(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl Draft for Service {
    type SessionStream = ReceiverStream<Result<DrafterFrame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let shared = &self.0;
        let mut incoming = request.into_inner();
        let late = |_| status(Reason::Deadline, "no hello in time", None, None);
        let first = timeout(HELLO, incoming.message()).await.map_err(late)??;
        let first = first.ok_or_else(|| Status::cancelled("the worker left before its hello"))?;
        let first = Addressed::<FromWorker>::try_from(first)?;
        first.check(shared.incarnation, None)?;
        let FromWorker::Hello(theirs) = first.frame else {
            return Err(status(Reason::InvalidField, "the first frame must be hello", Some("frame"), None));
        };
        shared.hello.agree(&theirs)?;
        tracing::info!(worker = %theirs.node, "paired");

        let (outgoing, frames) = mpsc::channel(FRAMES);
        let hello = Addressed {
            sender: shared.incarnation,
            receiver: first.sender,
            frame: FromDrafter::Hello(shared.hello.clone()),
        };
        // The channel is empty: this cannot wait.
        let _ = outgoing.send(Ok(hello.into())).await;
        let stream = Stream {
            shared: shared.clone(),
            worker: theirs.node,
            peer: first.sender,
            queue: Arc::new(MergeQueue::new(WAITING)),
        };
        shared.streams.spawn(stream.run(incoming, outgoing));
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}
