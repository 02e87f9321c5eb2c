//! A worker that says to a drafter what a test tells it.

use cluster::{Incarnation, NodeId, VocabHash};
use proto::draft::draft_client::DraftClient;
use proto::draft::worker_frame::Frame;
use proto::draft::{self, WorkerFrame};
use proto::frame::{Addressed, FromDrafter, FromWorker, Hello, Open};
use request::{Adjustments, Rule, Sampling, TokenId};
use speculation::PrefixHashes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::support::{HANG, Node};

pub(crate) const ME: Incarnation = Incarnation(5);

/// One stream to a drafter, seen from the worker.
pub(crate) struct FakeWorker {
    out: mpsc::Sender<WorkerFrame>,
    incoming: Streaming<draft::DrafterFrame>,
    drafter: Incarnation,
}

/// A hello that pairs.
pub(crate) fn hello() -> Hello {
    Hello::new(NodeId::new("fake-worker").unwrap(), VocabHash([1; 32]))
}

/// A session over `tokens` that a drafter of toys grants.
pub(crate) fn open(session: u64, tokens: &[u32]) -> Open {
    Open {
        session,
        prompt: tokens.iter().copied().map(TokenId).collect(),
        committed: Vec::new(),
        sampling: Sampling::GREEDY,
        adjust: Adjustments::default(),
        constraint: None,
        rule: Rule::Coupled,
        window: 4,
        stop_ids: Vec::new(),
        min_tokens: 0,
        longest: 64,
        cache_salt: String::new(),
        retrieval: None,
        traceparent: String::new(),
    }
}

/// A commit of `ids` right after `past`.
pub(crate) fn commit(session: u64, past: &[u32], ids: &[u32]) -> draft::Commit {
    let tokens: Vec<TokenId> = past.iter().copied().map(TokenId).collect();
    draft::Commit {
        session,
        at: past.len() as u32,
        prefix_hash: PrefixHashes::new(&tokens).last(),
        ids: ids.to_vec(),
    }
}

/// Begins a stream with `first`; the drafter's answer to it, or why it refused.
pub(crate) async fn dial(drafter: &Node, first: WorkerFrame) -> Result<(FakeWorker, FromDrafter), Status> {
    let dialled = daemon::grpc::dial(&drafter.record.endpoint, HANG).unwrap();
    let mut client = DraftClient::new(dialled.connect().await.unwrap());
    let (out, frames) = mpsc::channel(64);
    out.send(first).await.unwrap();
    let started = timeout(HANG, client.session(ReceiverStream::new(frames))).await;
    let incoming = started.expect("the drafter is stuck")?.into_inner();
    let mut worker = FakeWorker { out, incoming, drafter: drafter.record.incarnation };
    match worker.hear().await {
        Ok(first) => Ok((worker, first)),
        Err(end) => Err(end.expect("the stream ended without saying why")),
    }
}

impl FakeWorker {
    /// Pairs.
    pub(crate) async fn pair(drafter: &Node) -> Self {
        let first = addressed(drafter.record.incarnation, FromWorker::Hello(hello()));
        let (worker, first) = dial(drafter, first).await.unwrap();
        assert!(matches!(first, FromDrafter::Hello(_)), "{first:?}");
        worker
    }

    pub(crate) async fn open(&mut self, open: Open) {
        for frame in open.into_frames() {
            self.say(frame).await;
        }
    }

    /// Opens a session, is granted it and commits a first token; the drafter then drafts.
    pub(crate) async fn run(&mut self, session: u64, tokens: &[u32]) {
        self.open(open(session, tokens)).await;
        // Drafts of other sessions may be on their way.
        let granted = self.hear_but_drafts().await.unwrap();
        assert!(
            matches!(granted, FromDrafter::Granted { session: s, .. } if s == session),
            "session {session}: {granted:?}"
        );
        self.say_raw(Frame::Commit(commit(session, tokens, &[1]))).await;
        self.drafts(session, tokens.len() as u32 + 1).await;
    }

    /// Waits for drafts of a session that begin there.
    pub(crate) async fn drafts(&mut self, session: u64, start: u32) -> Vec<TokenId> {
        loop {
            match self.hear().await.unwrap() {
                FromDrafter::Drafts { session: s, at, ids, .. } if (s, at) == (session, start) => return ids,
                FromDrafter::Drafts { .. } => {}
                other => panic!("session {session}: {other:?}"),
            }
        }
    }

    pub(crate) async fn say(&mut self, frame: FromWorker) {
        self.raw(addressed(self.drafter, frame)).await;
    }

    /// A frame with right incarnations and anything in it.
    pub(crate) async fn say_raw(&mut self, frame: Frame) {
        let frame = WorkerFrame {
            sender_incarnation: ME.0,
            receiver_incarnation: self.drafter.0,
            frame: Some(frame),
        };
        self.raw(frame).await;
    }

    pub(crate) async fn raw(&mut self, frame: WorkerFrame) {
        // The drafter may have ended the stream; `hear` says so.
        let _ = self.out.send(frame).await;
    }

    /// The next frame, or how the stream ended (`None`: without an error).
    pub(crate) async fn hear(&mut self) -> Result<FromDrafter, Option<Status>> {
        let frame = timeout(HANG, self.incoming.message()).await.expect("the drafter is silent");
        let frame = frame.map_err(Some)?.ok_or(None)?;
        let frame = Addressed::<FromDrafter>::try_from(frame).expect("a drafter is honest");
        assert_eq!((frame.sender, frame.receiver), (self.drafter, ME));
        Ok(frame.frame)
    }

    /// The next frame that is no draft.
    pub(crate) async fn hear_but_drafts(&mut self) -> Result<FromDrafter, Option<Status>> {
        loop {
            match self.hear().await {
                Ok(FromDrafter::Drafts { .. }) => {}
                other => return other,
            }
        }
    }
}

/// A frame as an honest worker sends it.
pub(crate) fn addressed(drafter: Incarnation, frame: FromWorker) -> WorkerFrame {
    Addressed { sender: ME, receiver: drafter, frame }.into()
}
