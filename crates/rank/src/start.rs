use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, SystemTime};

use cluster::{Duty, Endpoint, Incarnation, Load, NodeId, NodeRecord, NodeState, Role, Site, VocabHash};
use daemon::join::Prefixes;
use daemon::listen::ListenError;
use daemon::{Readiness, Shutdown, Tasks, admin, grpc, join};
use engine::{EngineThread, Inbox, Model, ModelSpec, Settings, Tier};
use request::{InvalidField, Quality};
use tier::FileTier;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::observe::{Numbers, Rates, observe};
use crate::{Config, Pace, Spill};

/// Commands that wait for the engine between two of its steps.
const INBOX: usize = 4096;

/// What a node is, besides its addresses.
#[derive(Clone, Debug)]
pub struct Identity {
    pub role: Role,
    pub id: NodeId,
    pub incarnation: Incarnation,
    /// Name under which the model is served.
    pub model: String,
    /// Numerics fingerprint.
    pub fingerprint: String,
    pub vocab_hash: VocabHash,
    /// Whether its texts are the model's own, or those of a model whose heads see less.
    pub quality: Quality,
    /// Where it computes; `None`: nobody could say.
    pub site: Option<Site>,
}

/// Why a rank did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError<E> {
    #[error("model: {0}")]
    Model(E),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    #[error("the engine's thread ended while the model was loaded")]
    Engine,
}

/// A number that grows from one start of a node to the next: microseconds since 1970.
pub fn fresh_incarnation() -> Incarnation {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::from_secs(1));
    Incarnation(u64::try_from(since.as_micros()).unwrap_or(u64::MAX).max(1))
}

/// A started rank; its port is bound but not yet served.
#[derive(Debug)]
pub struct Rank {
    pub record: NodeRecord,
    pub spec: ModelSpec,
    pub inbox: Inbox,
    pub load: watch::Receiver<Load>,
    /// Of steps without prompt chunks: what a drafter must keep up with.
    pub step_time: Arc<Pace>,
    /// Prompt tokens a second whose pages came from other workers: told with the load; 0 until somebody sets it.
    pub handed_rate: Arc<AtomicU32>,
    /// Zero of the engine's clock.
    pub clock: Instant,
    /// What the prefix cache can serve.
    prefixes: Prefixes,
    config: Config,
    admin: Option<admin::Server>,
    thread: EngineThread,
    /// Cancelled when the engine's thread is over.
    ended: CancellationToken,
}

impl Rank {
    /// Binds the ports and loads the model on the thread that will own it. Add the process's services
    /// to the server, then hand it to [`Rank::serve`].
    pub async fn start<M, E>(
        config: &Config,
        identity: Identity,
        duty: Duty,
        settings: Settings,
        make: impl FnOnce() -> Result<M, E> + Send + 'static,
    ) -> Result<(Self, grpc::Server), StartError<E>>
    where
        M: Model + 'static,
        E: Send + 'static,
    {
        let server = grpc::Server::bind(&config.grpc, config.insecure).await?;
        let admin = match config.admin {
            Some(address) => Some(admin::Server::bind(address, config.insecure).await?),
            None => None,
        };
        let own = format!("http://{}", server.address());
        let endpoint = Endpoint::new(config.advertise.as_deref().unwrap_or(&own)).map_err(|wrong| {
            InvalidField::new(
                "rank.advertise",
                format!("{}; pass --advertise http://HOST:PORT, as others reach this node", wrong.why),
            )
        })?;

        let (publish, load) = watch::channel(Load::default());
        let (step_time, ended) = (Arc::new(Pace::default()), CancellationToken::new());
        let numbers = Numbers::new(telemetry::meters(), identity.role, &identity.model);
        let handed_rate = Arc::new(AtomicU32::new(0));
        let rates = Rates::new(handed_rate.clone());
        let prefixes = Prefixes::default();
        let told = prefixes.clone();
        let observer = observe(publish, step_time.clone(), rates, config.slots, ended.clone(), numbers, told);
        let clock = Instant::now();
        let tier = match &config.kv_spill {
            None => None,
            Some(Spill { folder, bytes, within }) => Some(
                FileTier::new(folder, bytes.as_u64(), *within)
                    .map_err(|why| InvalidField::new("rank.kv_spill", why.to_string()))?,
            ),
        };
        let opened = tier.as_ref().map(FileTier::opened);
        let tier = tier.map(|tier| Box::new(tier) as Box<dyn Tier>);
        let started = tokio::task::spawn_blocking(move || {
            let clock = Box::new(move || clock.elapsed());
            EngineThread::start(make, settings, tier, INBOX, clock, observer)
        });
        let (thread, inbox, spec) = match started.await {
            Ok(started) => started.map_err(StartError::Model)?,
            Err(_) => return Err(StartError::Engine),
        };
        if let Some(Err(why)) = opened.as_ref().and_then(|opened| opened.get()) {
            return Err(InvalidField::new("rank.kv_spill", why.to_string()).into());
        }
        let Identity { role, id, incarnation, model, fingerprint, vocab_hash, quality: _, site: _ } =
            identity;
        let record = NodeRecord {
            id,
            incarnation,
            role,
            endpoint,
            model,
            fingerprint,
            vocab_hash,
            context: spec.context,
            slots: spec.slots,
            state: NodeState::Ready,
            duty,
        };
        record.validate()?;
        let rank = Self {
            record,
            spec,
            inbox,
            load,
            step_time,
            handed_rate,
            clock,
            prefixes,
            config: config.clone(),
            admin,
            thread,
            ended,
        };
        Ok((rank, server))
    }

    /// Where the admin port is bound, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(admin::Server::address)
    }

    /// Serves `server`, joins the coordinators and watches the
    /// engine, all as tasks of the process. Drop every inbox when the process stops: that ends the engine.
    pub fn serve(self, server: grpc::Server, readiness: &Readiness, tasks: &mut Tasks) {
        let shutdown: Shutdown = tasks.shutdown().clone();
        tasks.spawn("grpc", server.serve(readiness.clone(), shutdown.clone()));
        if let Some(admin) = self.admin {
            tasks.spawn("admin", admin.serve(readiness.clone(), shutdown.clone()));
        }
        let node = join::Node { record: self.record, load: self.load, prefixes: self.prefixes };
        let gate = readiness.gate("join", "not joined yet");
        tasks.spawn("join", join::join(self.config.join, node, gate, shutdown.clone()));
        let (thread, ended) = (self.thread, self.ended);
        tasks.spawn("engine", async move {
            let asked = tokio::select! {
                biased;
                () = shutdown.stopping() => true,
                () = ended.cancelled() => false,
            };
            ended.cancelled().await;
            let joined = tokio::task::spawn_blocking(|| thread.join()).await;
            match joined {
                Ok(Ok(())) if asked => Ok(()),
                Ok(Ok(())) => Err("the engine's thread ended by itself".to_owned()),
                Ok(Err(panic)) => Err(format!("the engine's thread panicked: {}", said(&*panic))),
                Err(error) => Err(error.to_string()),
            }
        });
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("nothing")
}
