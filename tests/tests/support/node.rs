use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cluster::{NodeId, NodeRecord, Role, VocabHash};
use coordinator::{Coordinator, ModelConfig};
use daemon::config::Valid;
use daemon::{Deadlines, Ended, Readiness, Shutdown, Tasks, join, registry};
use engine::Model;
use rank::{Constraints, Identity};
use request::Quality;
use tokio::task::JoinHandle;
use transport::Fabric;
use transport::tcp::TcpFabric;

/// A worker or drafter whose parts run in this process.
pub(crate) struct Node {
    pub(crate) record: NodeRecord,
    /// Where its gRPC port is bound, whatever it advertises.
    pub(crate) address: SocketAddr,
    /// Where its `/metrics` are, if it was told to have some.
    pub(crate) admin: Option<SocketAddr>,
    shutdown: Shutdown,
    life: JoinHandle<Ended>,
}

impl Node {
    /// Gone at once, as by SIGKILL: streams break.
    pub(crate) async fn kill(self) -> Ended {
        self.shutdown.abort();
        self.life.await.unwrap()
    }

    /// Takes nothing new, finishes what runs, leaves.
    pub(crate) async fn drain(self) -> Ended {
        self.shutdown.drain();
        self.life.await.unwrap()
    }

    /// Begins the drain without waiting for its end.
    pub(crate) fn begin_drain(&self) {
        self.shutdown.drain();
    }
}

/// A node's identity; every call is another incarnation.
pub(crate) fn identity(role: Role, id: &str, model: &str, vocab: u8) -> Identity {
    static INCARNATION: AtomicU64 = AtomicU64::new(1);
    Identity {
        quality: Quality::Exact,
        role,
        id: NodeId::new(id).unwrap(),
        incarnation: cluster::Incarnation(INCARNATION.fetch_add(1, Ordering::Relaxed)),
        model: model.into(),
        fingerprint: "fp_test".into(),
        vocab_hash: VocabHash([vocab; 32]),
        site: None,
    }
}

/// Where a node joins; without a coordinator it dials a port that nobody serves.
fn joining(mut rank: rank::Config, coordinator: Option<SocketAddr>) -> rank::Config {
    rank.join = join::Config {
        coordinators: coordinator.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 1))).into(),
        ..join::Config::default()
    };
    rank
}

const DEADLINES: Deadlines = Deadlines { drain: Duration::from_secs(30), stop: Duration::from_secs(5) };

pub(crate) async fn start_worker<M: Model + 'static>(
    config: worker::Config,
    identity: Identity,
    constraints: Constraints,
    coordinator: Option<SocketAddr>,
    make: impl FnOnce() -> M + Send + 'static,
) -> Node {
    let tcp = TcpFabric::listen(config.pages.listen, config.rank.insecure).unwrap();
    start_worker_over(Arc::new(tcp), config, identity, constraints, coordinator, make).await
}

/// The same over a data plane of a test's own.
pub(crate) async fn start_worker_over<M: Model + 'static>(
    fabric: Arc<dyn Fabric>,
    mut config: worker::Config,
    identity: Identity,
    constraints: Constraints,
    coordinator: Option<SocketAddr>,
    make: impl FnOnce() -> M + Send + 'static,
) -> Node {
    config.rank = joining(config.rank, coordinator);
    let shutdown = Shutdown::default();
    let mut tasks = Tasks::new(shutdown.clone());
    let make = || Ok::<_, std::convert::Infallible>(make());
    let readiness = Readiness::default();
    let running = worker::start_over(fabric, &config, identity, constraints, make, &readiness, &mut tasks)
        .await
        .unwrap();
    let (record, address, admin) = (running.record.clone(), running.address, running.admin);
    Node { record, address, admin, shutdown, life: tokio::spawn(tasks.run(running.idle(), DEADLINES)) }
}

pub(crate) async fn start_drafter<M: Model + 'static>(
    mut config: drafter::Config,
    identity: Identity,
    constraints: Constraints,
    coordinator: Option<SocketAddr>,
    make: impl FnOnce() -> M + Send + 'static,
) -> Node {
    config.rank = joining(config.rank, coordinator);
    let shutdown = Shutdown::default();
    let mut tasks = Tasks::new(shutdown.clone());
    let make = || Ok::<_, std::convert::Infallible>(make());
    let readiness = Readiness::default();
    let running = drafter::start(&config, identity, constraints, make, &readiness, &mut tasks).await.unwrap();
    let (record, address, admin) = (running.record.clone(), running.address, running.admin);
    Node { record, address, admin, shutdown, life: tokio::spawn(tasks.run(running.idle(), DEADLINES)) }
}

/// A coordinator that serves one model file, on free ports, with short heartbeats.
pub(crate) async fn coordinator(model: &str, file: &Path) -> coordinator::Running {
    coordinator_with(model, file, coordinator::Config::default()).await
}

/// The same with settings of a test's own; addresses, models and registry are set here.
pub(crate) async fn coordinator_with(
    model: &str,
    file: &Path,
    config: coordinator::Config,
) -> coordinator::Running {
    let config = coordinator::Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        grpc_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        admin: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        models: vec![ModelConfig { name: model.into(), path: file.into(), aliases: Vec::new() }],
        registry: registry::Config {
            heartbeat: Duration::from_millis(50),
            suspect_after: Duration::from_secs(5),
            forget_after: Duration::from_secs(20),
            max_nodes: 16,
            ..config.registry
        },
        ..config
    };
    Coordinator::start(Valid::new(config).unwrap(), Shutdown::default()).await.unwrap()
}
