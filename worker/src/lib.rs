//! A target rank as a process: it admits requests, verifies and commits.
//!
//! `service` takes requests from coordinators into the engine; `answer` is one answer's way out;
//! `drafts` keeps drafters attached to sequences; `pages` computes prompts for other workers and takes theirs. The engine itself is `engine`, on its own thread;
//! what a worker shares with a drafter is in `rank`.
//!
//! Not here: text (the coordinator's), which requests come here (`cluster::place`), how drafts are
//! judged (`speculation`). Start at [`start`].
#![forbid(unsafe_code)]

mod answer;
mod config;
mod drafts;
pub mod pages;
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
use proto::pages::pages_server::PagesServer;
use proto::worker::worker_server::WorkerServer;
use rank::{Constraints, Identity, Rank, StartError};
use request::InvalidField;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::Fabric;
use transport::tcp::TcpFabric;

pub use config::{Config, EngineConfig};
pub use pages::PagesConfig;

use crate::drafts::{Links, Me};
use crate::pages::{Fetch, Figures, Parcels, Prefills, accept};
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

/// Starts a worker whose data plane is TCP; see [`start_over`].
///
/// # Errors
/// Those of [`start_over`], and a data port that cannot be bound.
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
    let fabric = TcpFabric::listen(config.pages.listen, config.rank.insecure)
        .map_err(|e| InvalidField::new("pages.listen", e.to_string()))?;
    start_over(Arc::new(fabric), config, identity, constraints, make, readiness, tasks).await
}

/// Starts a worker over a data plane: `make` builds the model on the engine's thread; `constraints` compiles what requests
/// are held to.
///
/// # Errors
/// A port that cannot be bound, a model that cannot be loaded, a record that is not valid.
pub async fn start_over<M, E>(
    fabric: Arc<dyn Fabric>,
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
    let (incarnation, quality, site) = (identity.incarnation, identity.quality, identity.site.clone());
    let (rank, server) = Rank::start(
        &config.rank,
        identity,
        config.pages.duty,
        config.engine.settings(&config.rank.device),
        make,
    )
    .await?;
    let sessions = TaskTracker::new();
    let stop = tasks.shutdown().stop_token();
    let links = Links::new(Me {
        hello,
        incarnation,
        model: [telemetry::Label::model(&rank.record.model)],
        inbox: rank.inbox.clone(),
        step_time: rank.step_time.clone(),
        site,
        take_turns: config.engine.drafters_take_turns,
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
    let next_sequence = Arc::new(AtomicU64::new(1));
    let prefills = prefills(config, &rank, &fabric, &answers, &next_sequence, tasks);
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
        next_sequence,
        fetch: Arc::new(Fetch {
            figures: Figures::new(telemetry::meters(), &rank.record.model, rank.handed_rate.clone()),
            fabric,
            inbox: rank.inbox.clone(),
            fingerprint: rank.record.fingerprint.clone(),
            incarnation: rank.record.incarnation,
            stall: config.pages.stall,
        }),
        answers: answers.clone(),
    };
    let running = Running {
        record: rank.record.clone(),
        address: server.address(),
        admin: rank.admin_address(),
        answers,
    };
    let server = server
        .add(WorkerServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add(PagesServer::new(prefills).max_decoding_message_size(MAX_REQUEST_BYTES));
    rank.serve(server, readiness, tasks);
    Ok(running)
}

/// The service that computes prompts for others, and the task that accepts their links.
fn prefills(
    config: &Config,
    rank: &Rank,
    fabric: &Arc<dyn Fabric>,
    answers: &TaskTracker,
    next_sequence: &Arc<AtomicU64>,
    tasks: &mut Tasks,
) -> Prefills {
    let parcels = Arc::new(Parcels::new(config.pages.transfers as usize));
    let (links, shutdown) = (parcels.clone(), tasks.shutdown().clone());
    let listening = fabric.clone();
    let owned = CancellationToken::new();
    let (given_up, (ended, end)) = (owned.clone(), oneshot::channel::<()>());
    // A thread of its own, as it waits for links; it ends with the process's stop, or with the task that owns it.
    let thread = std::thread::Builder::new().name("pages".into()).spawn(move || {
        accept(&*listening, &links, &|| shutdown.is_stopping() || given_up.is_cancelled());
        drop(ended);
    });
    tasks.spawn("pages", async move {
        let _owned = owned.drop_guard();
        thread?;
        // Nothing is ever sent: it ends.
        let _ = end.await;
        Ok::<_, std::io::Error>(())
    });
    Prefills {
        record: rank.record.clone(),
        inbox: rank.inbox.clone(),
        shutdown: tasks.shutdown().clone(),
        next_sequence: next_sequence.clone(),
        answers: answers.clone(),
        parcels,
        fabric: config.pages.advertise.clone().unwrap_or_else(|| fabric.address()),
    }
}
