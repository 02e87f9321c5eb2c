//! A drafter that does what a test tells it, through the real protocol.

use std::pin::Pin;
use std::sync::Mutex;

use cluster::{Endpoint, Incarnation, NodeId, VocabHash};
use proto::Candidate;
use proto::draft::draft_server::{Draft, DraftServer};
use proto::draft::drafter_frame::Frame;
use proto::draft::{self, DrafterFrame, WorkerFrame};
use proto::frame::{Addressed, FromDrafter, FromWorker, Hello};
use request::TokenId;
use speculation::PrefixHashes;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::support::HANG;

type Play = Pin<Box<dyn Future<Output = ()> + Send>>;
type Script = Box<dyn Fn(Talk) -> Play + Send + Sync>;

/// A server that plays its script on every stream.
pub(crate) struct FakeDrafter {
    pub(crate) candidate: Candidate,
    _serving: AbortOnDropHandle<()>,
}

impl FakeDrafter {
    pub(crate) async fn start<P>(id: &str, script: impl Fn(Talk) -> P + Send + Sync + 'static) -> Self
    where
        P: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let candidate = Candidate {
            id: NodeId::new(id).unwrap(),
            endpoint: Endpoint::try_from(listener.local_addr().unwrap()).unwrap(),
            incarnation: Incarnation(77),
        };
        let service = Service {
            me: candidate.clone(),
            script: Box::new(move |talk| Box::pin(script(talk)) as Play),
            playing: Mutex::default(),
        };
        let serving = tokio::spawn(async move {
            let server = Server::builder().add_service(DraftServer::new(service));
            server.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Self { candidate, _serving: AbortOnDropHandle::new(serving) }
    }
}

struct Service {
    me: Candidate,
    script: Script,
    playing: Mutex<JoinSet<()>>,
}

#[tonic::async_trait]
impl Draft for Service {
    type SessionStream = ReceiverStream<Result<DrafterFrame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (out, frames) = mpsc::channel(16);
        let talk = Talk {
            incoming: request.into_inner(),
            out,
            me: self.me.clone(),
            peer: Incarnation(0),
            session: 0,
            known: Vec::new(),
            longest: 0,
            window: 0,
        };
        // Not bound to the response: a script outlives its stream, to tell how that ended.
        self.playing.lock().unwrap().spawn((self.script)(talk));
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}

/// One stream with a worker, seen from the drafter. It follows one session.
pub(crate) struct Talk {
    incoming: Streaming<WorkerFrame>,
    out: mpsc::Sender<Result<DrafterFrame, Status>>,
    me: Candidate,
    peer: Incarnation,
    pub(crate) session: u64,
    /// Prompt and commits of the session so far.
    pub(crate) known: Vec<TokenId>,
    /// What the worker said the sequence may grow to.
    pub(crate) longest: u32,
    /// What it was opened with.
    pub(crate) window: u32,
}

/// What the worker did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// It left the stream.
    LeftStream,
    /// It closed the session and stays on the stream.
    ClosedSession,
}

impl Talk {
    /// Pairs, grants the first session and waits for its first commit.
    pub(crate) async fn granted(&mut self, vocab: u8) {
        self.hello(vocab).await;
        self.opened().await;
        self.grant().await;
        assert!(self.committed().await, "the session ended before its first commit");
    }

    pub(crate) async fn hello(&mut self, vocab: u8) {
        let Some(FromWorker::Hello(_)) = self.hear().await else { panic!("no hello") };
        self.say(FromDrafter::Hello(Hello::new(self.me.id.clone(), VocabHash([vocab; 32])))).await;
    }

    /// Waits for a session to be opened.
    pub(crate) async fn opened(&mut self) {
        loop {
            match self.hear().await {
                Some(FromWorker::Open(opening)) => {
                    let open = opening.complete().expect("prompts here fit one frame");
                    (self.session, self.longest, self.window) = (open.session, open.longest, open.window);
                    self.known = [open.prompt, open.committed].concat();
                    return;
                }
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    pub(crate) async fn grant(&mut self) {
        self.say(FromDrafter::Granted { session: self.session, lease_ttl: HANG }).await;
    }

    /// Waits for a commit of the session; `false` when the session or the stream is over.
    pub(crate) async fn committed(&mut self) -> bool {
        loop {
            match self.hear().await {
                Some(FromWorker::Commit { session, at, ids, .. }) if session == self.session => {
                    let at = at as usize;
                    if at > self.known.len() {
                        let have = self.known.len() as u32;
                        self.say(FromDrafter::Resync { session, have }).await;
                        continue;
                    }
                    self.known.truncate(at);
                    self.known.extend(ids);
                    return true;
                }
                Some(FromWorker::Close { session }) if session == self.session => return false,
                Some(_) => {}
                None => return false,
            }
        }
    }

    /// What the worker does next about the session, commits aside.
    pub(crate) async fn reaction(&mut self) -> Reaction {
        loop {
            match self.hear().await {
                None => return Reaction::LeftStream,
                Some(FromWorker::Close { session }) if session == self.session => {
                    return Reaction::ClosedSession;
                }
                Some(_) => {}
            }
        }
    }

    /// The next frame; `None` when the worker is gone.
    pub(crate) async fn hear(&mut self) -> Option<FromWorker> {
        let frame = timeout(HANG, self.incoming.message()).await.expect("the worker is silent");
        let frame = Addressed::<FromWorker>::try_from(frame.ok()??).expect("a worker is honest");
        assert_eq!(frame.receiver, self.me.incarnation);
        self.peer = frame.sender;
        Some(frame.frame)
    }

    pub(crate) async fn say(&mut self, frame: FromDrafter) {
        let frame = Addressed { sender: self.me.incarnation, receiver: self.peer, frame };
        self.raw(frame.into()).await;
    }

    /// A frame with right incarnations and anything in it.
    pub(crate) async fn say_raw(&mut self, frame: Frame) {
        let frame = self.frame(frame);
        self.raw(frame).await;
    }

    pub(crate) fn frame(&self, frame: Frame) -> DrafterFrame {
        DrafterFrame {
            sender_incarnation: self.me.incarnation.0,
            receiver_incarnation: self.peer.0,
            frame: Some(frame),
        }
    }

    pub(crate) async fn raw(&mut self, frame: DrafterFrame) {
        // The worker may have left by now; `reaction` says so.
        let _ = self.out.send(Ok(frame)).await;
    }

    /// Drafts that continue what is known: honest in everything but their ids.
    pub(crate) fn drafts(&self, ids: Vec<u32>) -> draft::Drafts {
        draft::Drafts {
            session: self.session,
            at: self.known.len() as u32,
            prefix_hash: PrefixHashes::new(&self.known).last(),
            ids,
            parents: Vec::new(),
            q: Vec::new(),
            draft_time_us: 500,
        }
    }
}

/// Never ends: for scripts that keep their stream open.
pub(crate) async fn silent(talk: Talk) {
    let _open = talk;
    std::future::pending().await
}
