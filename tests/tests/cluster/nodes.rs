//! Workers and drafters with toy models that take time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster::{Endpoint, Load, NodeState, Role, Site};
use engine::{Model, ModelError, ModelSpec, Picks, Ticket, ToyModel};
use kvcache::{ClassId, PageId};
use proto::Candidate;
use proto::worker::StatusRequest;
use proto::worker::worker_client::WorkerClient;
use rank::{Constraints, Identity};
use request::Quality;
use sampling::Draw;
use scheduler::Step;
use tokio::time::timeout;
use tonic::transport::Channel;
use transport::Fabric;
use transport::tcp::TcpFabric;

use super::question::Question;
use crate::support::{HANG, Node, Proxy, eventually, identity, start_drafter, start_worker_over};

pub(crate) const VOCAB: u32 = 24;
pub(crate) const MODEL_SEED: u64 = 42;
pub(crate) const CONTEXT: u32 = 4096;
/// Name under which every worker here serves its toy.
pub(crate) const MODEL: &str = "toy";

/// How long a step of a toy takes: long enough that a drafter behind real sockets is ahead of it.
/// Can be changed while it runs.
#[derive(Clone, Debug)]
pub(crate) struct StepTime(Arc<AtomicU64>);

impl StepTime {
    pub(crate) fn new(time: Duration) -> Self {
        Self(Arc::new(AtomicU64::new(time.as_micros() as u64)))
    }

    pub(crate) fn set(&self, time: Duration) {
        self.0.store(time.as_micros() as u64, Ordering::Relaxed);
    }
}

/// A device that toys compute on. While several do, each of them gets a part of it, and `slower` times less than that.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    busy: Arc<AtomicU32>,
    slower: f64,
}

impl Device {
    pub(crate) fn new(slower: f64) -> Self {
        Self { busy: Arc::default(), slower }
    }

    /// Takes as long as `work` needs.
    fn compute(&self, mut work: Duration) {
        const SLICE: Duration = Duration::from_micros(500);
        self.busy.fetch_add(1, Ordering::SeqCst);
        while !work.is_zero() {
            let start = Instant::now();
            std::thread::sleep(work.min(SLICE));
            let share = match self.busy.load(Ordering::SeqCst) {
                0 | 1 => 1.0,
                several => f64::from(several) * self.slower,
            };
            work = work.saturating_sub(start.elapsed().div_f64(share));
        }
        self.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A toy that takes time.
pub(crate) struct Paced {
    toy: ToyModel,
    step: StepTime,
    device: Option<Device>,
}

impl Model for Paced {
    fn spec(&self) -> &ModelSpec {
        self.toy.spec()
    }

    fn layers(&self) -> u32 {
        self.toy.layers()
    }

    fn export(
        &mut self,
        class: ClassId,
        page: PageId,
        layer: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        self.toy.export(class, page, layer, into)
    }

    fn import(&mut self, class: ClassId, page: PageId, layer: u32, bytes: &[u8]) -> Result<(), ModelError> {
        self.toy.import(class, page, layer, bytes)
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        let work = Duration::from_micros(self.step.0.load(Ordering::Relaxed));
        match &self.device {
            Some(device) => device.compute(work),
            None => std::thread::sleep(work),
        }
        self.toy.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        self.toy.collect(ticket, draws)
    }
}

/// What a toy is like.
#[derive(Clone, Debug)]
pub(crate) struct Toy {
    pub(crate) slots: u32,
    pub(crate) step: Duration,
    /// Share of contexts in which it is wrong (a drafter).
    pub(crate) noise: f64,
    pub(crate) context: u32,
    /// Of the node: two of them do not pair when it differs.
    pub(crate) vocab: u8,
    /// `None`: one of its own.
    pub(crate) device: Option<Device>,
}

impl Toy {
    pub(crate) const TARGET: Self = Self {
        slots: 16,
        step: Duration::from_millis(5),
        noise: 0.0,
        context: CONTEXT,
        vocab: 1,
        device: None,
    };
    pub(crate) const DRAFTER: Self = Self {
        slots: 16,
        step: Duration::from_micros(500),
        noise: 0.2,
        context: CONTEXT,
        vocab: 1,
        device: None,
    };

    fn make(&self, step: StepTime) -> impl FnOnce() -> Paced + Send + use<> {
        let Self { slots, noise, context, .. } = *self;
        let device = self.device.clone();
        let spec = ToyModel::spec(VOCAB, context, slots, slots * context / kvcache::PAGE_POSITIONS);
        move || Paced { toy: ToyModel::new(spec, MODEL_SEED).with_noise(noise), step, device }
    }
}

/// A worker and a client of it.
pub(crate) struct Target {
    pub(crate) node: Node,
    pub(crate) client: WorkerClient<Channel>,
    pub(crate) step: StepTime,
}

impl Target {
    pub(crate) async fn start(id: &str, toy: Toy) -> Self {
        Self::with(id, toy, worker::Config::default()).await
    }

    pub(crate) async fn with(id: &str, toy: Toy, config: worker::Config) -> Self {
        let fabric = TcpFabric::listen(config.pages.listen, false).unwrap();
        Self::over(Arc::new(fabric), id, toy, config).await
    }

    /// One that says of its texts that they are of this quality.
    pub(crate) async fn of_quality(id: &str, quality: Quality) -> Self {
        let identity = Identity { quality, ..identity(Role::Worker, id, MODEL, Toy::TARGET.vocab) };
        let config = worker::Config::default();
        let fabric = TcpFabric::listen(config.pages.listen, false).unwrap();
        Self::named(Arc::new(fabric), identity, Toy::TARGET, config).await
    }

    /// One that says where it computes.
    pub(crate) async fn computing_on(site: Option<Site>, toy: Toy, config: worker::Config) -> Self {
        let identity = Identity { site, ..identity(Role::Worker, "worker", MODEL, toy.vocab) };
        let fabric = TcpFabric::listen(config.pages.listen, false).unwrap();
        Self::named(Arc::new(fabric), identity, toy, config).await
    }

    /// Over a data plane of a test's own.
    pub(crate) async fn over(fabric: Arc<dyn Fabric>, id: &str, toy: Toy, config: worker::Config) -> Self {
        let identity = identity(Role::Worker, id, MODEL, toy.vocab);
        Self::named(fabric, identity, toy, config).await
    }

    async fn named(
        fabric: Arc<dyn Fabric>,
        identity: Identity,
        toy: Toy,
        mut config: worker::Config,
    ) -> Self {
        config.rank.slots = toy.slots;
        let step = StepTime::new(toy.step);
        let make = toy.make(step.clone());
        let node = start_worker_over(fabric, config, identity, Constraints::new(None), None, make).await;
        let dialled = daemon::grpc::dial(&node.record.endpoint, HANG).unwrap();
        let client = WorkerClient::new(dialled.connect().await.unwrap());
        Self { node, client, step }
    }

    /// From here on it computes as fast as it can.
    pub(crate) fn hurry(&self) {
        self.step.set(Duration::ZERO);
    }

    /// What the worker says about itself; it always answers.
    pub(crate) async fn load(&self) -> Load {
        self.status().await.1
    }

    pub(crate) async fn state(&self) -> NodeState {
        self.status().await.0
    }

    async fn status(&self) -> (NodeState, Load) {
        let mut client = self.client.clone();
        let asked = timeout(HANG, client.status(StatusRequest {})).await.expect("the worker is stuck");
        let status = asked.unwrap().into_inner();
        let record = cluster::NodeRecord::try_from(status.node.unwrap()).unwrap();
        (record.state, status.load.unwrap().into())
    }

    /// Waits until every slot and page is free.
    pub(crate) async fn empty(&self) {
        eventually("all slots and pages of the worker are free", async || {
            let load = self.load().await;
            let pages = self.node.record.slots * self.node.record.context / kvcache::PAGE_POSITIONS;
            (load.running, load.waiting, load.free_pages) == (0, 0, pages)
        })
        .await;
    }

    /// The process lives: it answers a plain question rightly, and nothing of others is left in it.
    pub(crate) async fn is_well(&self) {
        Question::new(&[3, 1, 4], 12).ask(self).await.right().await;
        self.empty().await;
    }
}

pub(crate) async fn drafter(id: &str, toy: Toy) -> Node {
    let mut config = drafter::Config::default();
    config.rank.slots = toy.slots;
    drafter_with(id, toy, config).await
}

pub(crate) async fn drafter_with(id: &str, toy: Toy, config: drafter::Config) -> Node {
    drafter_named(identity(Role::Drafter, id, MODEL, toy.vocab), toy, config).await
}

/// One that says where it computes.
pub(crate) async fn drafter_computing_on(site: Option<Site>, toy: Toy) -> Node {
    let identity = Identity { site, ..identity(Role::Drafter, "drafter", MODEL, toy.vocab) };
    drafter_named(identity, toy, drafter::Config::default()).await
}

async fn drafter_named(identity: Identity, toy: Toy, mut config: drafter::Config) -> Node {
    config.rank.slots = toy.slots;
    let make = toy.make(StepTime::new(toy.step));
    start_drafter(config, identity, Constraints::new(None), None, make).await
}

/// The drafter as a coordinator would name it.
pub(crate) fn at(node: &Node) -> Candidate {
    Candidate::from(&node.record)
}

/// The drafter, reached through a proxy.
pub(crate) async fn through_proxy(node: &Node) -> (Proxy, Candidate) {
    let (proxy, connect) = Proxy::bind().await.unwrap();
    connect(node.record.endpoint.authority().parse().unwrap());
    let endpoint = Endpoint::try_from(proxy.address).unwrap();
    (proxy, Candidate { endpoint, ..at(node) })
}
