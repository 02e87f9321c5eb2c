//! A target rank as a process: it admits requests, verifies and commits.
//!
//! `service` takes requests from coordinators into the engine; `answer` is one answer's way out;
//! `drafts` keeps drafters attached to sequences. The engine itself is `engine`, on its own thread;
//! what a worker shares with a drafter is in `rank`.
//!
//! Not here: text (the coordinator's), which requests come here (`cluster::place`), how drafts are
//! judged (`speculation`). Start at [`start`].
#![forbid(unsafe_code)]

mod answer;
mod config;
mod drafts;
mod service;
mod stages;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cluster::NodeRecord;
use daemon::{Readiness, Tasks};
use engine::Model;
use proto::bounds::MAX_REQUEST_BYTES;
use proto::frame::Hello;
use proto::worker::worker_server::WorkerServer;
use rank::{Constraints, Identity, Rank, StartError};
use tokio_util::task::TaskTracker;

pub use config::{Config, EngineConfig};

use crate::drafts::{Links, Me};
use crate::service::Service;

/// A worker whose parts are tasks of the process.
#[derive(Debug)]
pub struct Running {
    pub record: NodeRecord,
    /// Where its gRPC port is bound; `record.endpoint` may advertise another address.
    pub address: SocketAddr,
    /// Where `/metrics` is, if an admin port was asked for.
    pub admin: Option<SocketAddr>,
    answers: TaskTracker,
}

impl Running {
    /// Resolves when no answer is being generated.
    pub async fn idle(self) {
        self.answers.close();
        self.answers.wait().await;
    }
}

/// Starts a worker: `make` builds the model on the engine's thread; `constraints` compiles what requests
/// are held to.
///
/// # Errors
/// A port that cannot be bound, a model that cannot be loaded, a record that is not valid.
pub async fn start<M, E>(
    config: &Config,
    identity: Identity,
    constraints: Constraints,
    make: impl FnOnce() -> Result<M, E> + Send + 'static,
    readiness: &Readiness,
    tasks: &mut Tasks,
) -> Result<Running, StartError<E>>
where
    M: Model + 'static,
    E: Send + 'static,
{
    let hello = Hello::new(identity.id.clone(), identity.vocab_hash);
    let (incarnation, quality) = (identity.incarnation, identity.quality);
    let (rank, server) =
        Rank::start(&config.rank, identity, config.engine.settings(&config.rank.device), make).await?;
    let sessions = TaskTracker::new();
    let stop = tasks.shutdown().stop_token();
    let links = Links::new(Me {
        hello,
        incarnation,
        model: [telemetry::Label::model(&rank.record.model)],
        inbox: rank.inbox.clone(),
        step_time: rank.step_time.clone(),
        share_cores: config.engine.drafters_share_cores,
        tasks: sessions.clone(),
        stop: stop.clone(),
    });
    // The tracker's tasks end with the stop; this task awaits them for the process.
    tasks.spawn("drafts", async move {
        stop.cancelled().await;
        sessions.close();
        sessions.wait().await;
        Ok::<_, std::convert::Infallible>(())
    });
    let answers = TaskTracker::new();
    let service = Service {
        record: rank.record.clone(),
        quality,
        inbox: rank.inbox.clone(),
        links: Arc::new(links),
        load: rank.load.clone(),
        shutdown: tasks.shutdown().clone(),
        outbox: config.engine.outbox,
        constraints,
        clock: rank.clock,
        next_sequence: AtomicU64::new(1),
        answers: answers.clone(),
    };
    let running = Running {
        record: rank.record.clone(),
        address: server.address(),
        admin: rank.admin_address(),
        answers,
    };
    let server = server.add(WorkerServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES));
    rank.serve(server, readiness, tasks);
    Ok(running)
}
