//! Nodes and coordinators in one process, over real gRPC on loopback.

use cluster::{NodeState, View};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::Readiness;
use crate::testing::{Coordinator, HANG, fast, id, record, wait};

/// A node that joins in the background.
struct Joining {
    load: watch::Sender<Load>,
    prefixes: Prefixes,
    readiness: Readiness,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), Infallible>>,
}

impl Joining {
    fn start(seeds: &[SocketAddr], name: &str, incarnation: u64) -> Self {
        let list: Vec<String> = seeds.iter().map(|a| a.to_string()).collect();
        let config = Config {
            coordinators: list.join(",").parse().unwrap(),
            retry_min: Duration::from_millis(10),
            retry_max: Duration::from_millis(50),
            ..Config::default()
        };
        assert_eq!(config.check(), Ok(()));
        let (load, reported) = watch::channel(Load::default());
        let (readiness, shutdown) = (Readiness::default(), Shutdown::default());
        let prefixes = Prefixes::default();
        let node = Node { record: record(name, incarnation), load: reported, prefixes: prefixes.clone() };
        let gate = readiness.gate("joined", "starting");
        let task = tokio::spawn(join(config, node, gate, shutdown.clone()));
        Self { load, prefixes, readiness, shutdown, task }
    }

    async fn ready(&self, is: bool) {
        wait(&mut self.readiness.subscribe(), "readiness", |closed| closed.is_empty() == is).await;
    }

    async fn stopped(self) {
        self.shutdown.stop();
        timeout(HANG, self.task).await.expect("did not stop").unwrap().unwrap();
    }
}

fn works(view: &View, name: &str) -> bool {
    view.get(&id(name)).is_some_and(|m| m.takes_work())
}

#[test]
fn configurations_name_what_is_wrong() {
    let ok = Config { coordinators: "a:1".parse().unwrap(), ..Config::default() };
    assert_eq!(ok.check(), Ok(()));
    for (bad, key) in [
        (Config::default(), "coordinators"),
        (Config { resolve_every: Duration::ZERO, ..ok.clone() }, "resolve_every"),
        (Config { connect_timeout: Duration::ZERO, ..ok.clone() }, "connect_timeout"),
        (Config { retry_max: Duration::from_millis(1), ..ok.clone() }, "retry_max"),
    ] {
        assert_eq!(bad.check().unwrap_err().key, key);
    }
}

/// Told at once and as it changes, to every coordinator that wants to know; forgotten with the node.
#[tokio::test]
async fn every_coordinator_hears_the_prefixes() {
    use cluster::{PageChange, PrefixName};

    let patient = crate::registry::Config { suspect_after: Duration::from_secs(2), ..fast() };
    let deaf = crate::registry::Config { prefix_pages: 0, ..patient.clone() };
    let a = Coordinator::start(patient.clone(), 0).await;
    let b = Coordinator::start(patient, 0).await;
    let c = Coordinator::start(deaf, 0).await;
    let worker = Joining::start(&[a.address, b.address, c.address], "w", 1);
    let record = |change| worker.prefixes.lock().unwrap().record(change);
    let chain: Vec<PrefixName> = (0..10_000).map(PrefixName).collect();
    chain.iter().for_each(|name| record(PageChange::Stored(*name)));
    let hears = async |coordinator: &Coordinator, pages: Option<u32>| {
        let prefixes = coordinator.registry.prefixes();
        let heard = async {
            while prefixes.hits(&chain).get(&id("w")).copied() != pages {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(HANG, heard).await.unwrap_or_else(|_| panic!("never heard of {pages:?} pages"));
    };
    for coordinator in [&a, &b] {
        hears(coordinator, Some(10_000)).await;
    }
    record(PageChange::Removed(PrefixName(7)));
    for coordinator in [&a, &b] {
        hears(coordinator, Some(7)).await;
    }
    record(PageChange::Stored(PrefixName(7)));
    hears(&a, Some(10_000)).await;
    c.sees("joined", |v| works(v, "w")).await;
    assert!(c.registry.prefixes().hits(&chain).is_empty(), "it did not ask");
    worker.stopped().await;
    for coordinator in [&a, &b] {
        hears(coordinator, None).await;
    }
    for coordinator in [a, b, c] {
        coordinator.stop().await;
    }
}

#[tokio::test]
async fn every_coordinator_hears_the_load() {
    // A busy machine may hold a heartbeat up for a while.
    let patient = crate::registry::Config { suspect_after: Duration::from_secs(2), ..fast() };
    let a = Coordinator::start(patient.clone(), 0).await;
    let b = Coordinator::start(patient.clone(), 0).await;
    let node = Joining::start(&[a.address, b.address], "w", 1);
    node.ready(true).await;
    for (running, coordinator) in [(3, &a), (5, &b), (7, &a), (7, &b)] {
        node.load.send_replace(Load { running, ..Load::default() });
        let heard = |v: &View| v.get(&id("w")).is_some_and(|m| m.load.running == running);
        coordinator.sees("load", heard).await;
    }
    // Heartbeats keep it alive for longer than silence would be borne.
    tokio::time::sleep(patient.forget_after + Duration::from_millis(200)).await;
    assert!(works(&a.registry.view().borrow(), "w"));
    node.stopped().await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_drain_is_told_at_once_and_the_end_removes() {
    // Heartbeats are an hour apart: only what is told at once can be seen.
    let rare = crate::registry::Config {
        heartbeat: Duration::from_secs(3600),
        suspect_after: Duration::from_secs(7200),
        forget_after: Duration::from_secs(7201),
        max_nodes: 8,
        ..crate::registry::Config::default()
    };
    let coordinator = Coordinator::start(rare, 0).await;
    let node = Joining::start(&[coordinator.address], "w", 1);
    coordinator.sees("joined", |v| works(v, "w")).await;
    node.ready(true).await;
    node.shutdown.drain();
    let draining = |v: &View| v.get(&id("w")).is_some_and(|m| m.record.state == NodeState::Draining);
    coordinator.sees("draining", draining).await;
    assert!(!node.task.is_finished(), "the stream lasts while work drains");
    node.stopped().await;
    coordinator.sees("left", |v| v.members().is_empty()).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_restarted_coordinator_is_joined_again() {
    let coordinator = Coordinator::start(fast(), 0).await;
    let address = coordinator.address;
    let node = Joining::start(&[address], "w", 1);
    coordinator.sees("joined", |v| works(v, "w")).await;
    node.ready(true).await;
    let ended = coordinator.stop().await;
    assert!(ended.failed.is_empty() && ended.late.is_empty(), "{ended:?}");
    node.ready(false).await;
    let coordinator = Coordinator::start(fast(), address.port()).await;
    coordinator.sees("joined again", |v| works(v, "w")).await;
    node.ready(true).await;
    node.stopped().await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_node_waits_for_a_coordinator_and_restarts_replace() {
    // Nobody listens on that port yet.
    let coordinator = Coordinator::start(fast(), 0).await;
    let address = coordinator.address;
    coordinator.stop().await;
    let first = Joining::start(&[address], "w", 1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!first.readiness.is_ready());
    let coordinator = Coordinator::start(fast(), address.port()).await;
    coordinator.sees("joined late", |v| works(v, "w")).await;

    let incarnation = |v: &View| v.get(&id("w")).map(|m| m.record.incarnation.0);
    let second = Joining::start(&[address], "w", 2);
    coordinator.sees("restarted", |v| works(v, "w") && incarnation(v) == Some(2)).await;
    // The first life is refused from now on and knows it; it never gets its place back.
    first.ready(false).await;
    tokio::time::sleep(fast().suspect_after).await;
    coordinator.sees("second life", |v| works(v, "w") && incarnation(v) == Some(2)).await;
    second.ready(true).await;
    first.stopped().await;
    second.stopped().await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_lost_node_is_disconnected_not_removed() {
    let coordinator = Coordinator::start(fast(), 0).await;
    let node = Joining::start(&[coordinator.address], "w", 1);
    coordinator.sees("joined", |v| works(v, "w")).await;
    // As a killed process: no goodbye.
    node.task.abort();
    let lost = |v: &View| {
        v.get(&id("w")).is_some_and(|m| matches!(m.presence, cluster::Presence::Disconnected { .. }))
    };
    coordinator.sees("disconnected", lost).await;
    coordinator.sees("forgotten", |v| v.members().is_empty()).await;
    coordinator.stop().await;
}
