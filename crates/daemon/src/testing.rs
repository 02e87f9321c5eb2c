//! What the tests of this crate share: a coordinator that can be restarted, and a node's record.

use std::net::SocketAddr;
use std::time::Duration;

use cluster::{Endpoint, Incarnation, NodeId, NodeRecord, NodeState, Role, View, VocabHash};
use proto::cluster::cluster_client::ClusterClient;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::registry::{self, Registry};
use crate::{Deadlines, Ended, Readiness, Shutdown, Tasks, grpc};

/// Long enough that only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// Short, but long against scheduling on a busy machine.
pub(crate) fn fast() -> registry::Config {
    registry::Config {
        heartbeat: Duration::from_millis(20),
        suspect_after: Duration::from_millis(300),
        forget_after: Duration::from_millis(3000),
        max_nodes: 8,
        ..registry::Config::default()
    }
}

pub(crate) struct Coordinator {
    pub(crate) address: SocketAddr,
    pub(crate) registry: Registry,
    shutdown: Shutdown,
    tasks: Tasks,
}

impl Coordinator {
    /// On a free port when `port` is 0.
    pub(crate) async fn start(config: registry::Config, port: u16) -> Self {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        let (registry, table) = Registry::new(&config, &shutdown);
        tasks.spawn("table", table);
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        let server = grpc::Server::bind(&grpc::Config { listen, ..grpc::Config::default() }, false).await;
        let server = server.unwrap().add(registry.service());
        let address = server.address();
        tasks.spawn("grpc", server.serve(Readiness::default(), shutdown.clone()));
        Self { address, registry, shutdown, tasks }
    }

    pub(crate) async fn stop(self) -> Ended {
        self.shutdown.stop();
        self.tasks.run(std::future::ready(()), Deadlines::default()).await
    }

    pub(crate) async fn client(&self) -> ClusterClient<Channel> {
        let endpoint = Endpoint::try_from(self.address).unwrap();
        ClusterClient::new(grpc::dial(&endpoint, HANG).unwrap().connect().await.unwrap())
    }

    /// Waits until the view is as described.
    pub(crate) async fn sees(&self, what: &str, is: impl Fn(&View) -> bool) -> View {
        wait(&mut self.registry.view(), what, is).await
    }
}

pub(crate) async fn wait<T: Clone>(
    receiver: &mut watch::Receiver<T>,
    what: &str,
    is: impl Fn(&T) -> bool,
) -> T {
    match tokio::time::timeout(HANG, receiver.wait_for(is)).await {
        Ok(value) => value.expect("sender lives").clone(),
        Err(_) => panic!("never seen: {what}"),
    }
}

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A ready worker of model `m`.
pub(crate) fn record(name: &str, incarnation: u64) -> NodeRecord {
    NodeRecord {
        id: id(name),
        incarnation: Incarnation(incarnation),
        role: Role::Worker,
        endpoint: Endpoint::new("http://127.0.0.1:9001").unwrap(),
        model: "m".into(),
        fingerprint: "fp_1".into(),
        vocab_hash: VocabHash([1; 32]),
        context: 1024,
        slots: 4,
        state: NodeState::Ready,
        duty: cluster::Duty::Mixed,
    }
}
