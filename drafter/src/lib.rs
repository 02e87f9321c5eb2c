//! A draft rank as a process: it runs ahead of targets elsewhere and sends what it guesses.
//!
//! `service` pairs with workers, `stream` carries the sessions of one worker between the wire and
//! the engine, `outgoing` is what waits to be sent. The sessions' rules (tail, rollback, window) are
//! `speculation`'s; the engine batches the sessions of all workers into its steps.
//!
//! Not here: whether a draft is right (the target's), retrieval (RAPID, issue 5). Start at [`start`].
#![forbid(unsafe_code)]

mod config;
mod outgoing;
mod service;
mod slot;
mod stream;

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use cluster::NodeRecord;
use daemon::{Readiness, Tasks};
use engine::Model;
use proto::bounds::MAX_FRAME_BYTES;
use proto::draft::draft_server::DraftServer;
use proto::frame::Hello;
use rank::{Constraints, Identity, Rank, StartError};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub use config::{Config, SessionsConfig};

use crate::service::{Service, Shared};

/// A drafter whose parts are tasks of the process.
#[derive(Debug)]
pub struct Running {
    pub record: NodeRecord,
    /// Where its gRPC port is bound; `record.endpoint` may advertise another address.
    pub address: SocketAddr,
    /// Where `/metrics` is, if an admin port was asked for.
    pub admin: Option<SocketAddr>,
    slots: Arc<Semaphore>,
}

impl Running {
    /// Resolves when no session runs.
    pub async fn idle(self) {
        // All slots at once: no session has one. An error is not possible, nobody closes it.
        let _ = self.slots.acquire_many(self.record.slots).await;
    }
}

/// Starts a drafter: `make` builds the model on the engine's thread; `constraints` compiles what targets
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
    let hello = Hello { site: identity.site.clone(), ..Hello::new(identity.id.clone(), identity.vocab_hash) };
    let incarnation = identity.incarnation;
    let settings = config.sessions.settings(&config.rank);
    let (rank, server) = Rank::start(&config.rank, identity, cluster::Duty::Mixed, settings, make).await?;
    let streams = TaskTracker::new();
    let stop = tasks.shutdown().stop_token();
    tasks.spawn("sessions", {
        let (stop, streams) = (stop.clone(), streams.clone());
        async move {
            stop.cancelled().await;
            streams.close();
            streams.wait().await;
            Ok::<_, std::convert::Infallible>(())
        }
    });
    let slots = Arc::new(Semaphore::new(rank.spec.slots as usize));
    let service = Service(Arc::new(Shared {
        hello,
        incarnation,
        inbox: rank.inbox.clone(),
        context: rank.spec.context,
        slots: slots.clone(),
        step_time: rank.step_time.clone(),
        lease: config.sessions.lease,
        constraints,
        documents: Mutex::default(),
        shutdown: tasks.shutdown().clone(),
        stop,
        streams,
        next_sequence: AtomicU64::new(1),
    }));
    let running = Running {
        record: rank.record.clone(),
        address: server.address(),
        admin: rank.admin_address(),
        slots,
    };
    let server = server.add(DraftServer::new(service).max_decoding_message_size(MAX_FRAME_BYTES));
    rank.serve(server, readiness, tasks);
    Ok(running)
}
