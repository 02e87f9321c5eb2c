//! From a configuration to open ports, and back down.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use daemon::config::Valid;
use daemon::listen::{self, ListenError};
use daemon::registry::Registry;
use daemon::{Deadlines, Ended, Gate, Readiness, Shutdown, Tasks, admin, grpc};

use crate::Config;
use crate::api;
use crate::frontdoor::FrontDoor;
use crate::models::{ModelFileError, Models};
use crate::router::Router;

/// Connections beyond the requests under way: idle ones that clients keep for later, and the few that
/// wait to be told 429.
const SPARE_CONNECTIONS: usize = 1024;

/// For servers and tasks to end once nothing is under way.
const STOP: Duration = Duration::from_secs(5);

/// The process, not yet started.
#[derive(Debug)]
pub struct Coordinator;

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Model(#[from] ModelFileError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("http: the port that was bound is unknown: {0}")]
    Address(#[from] std::io::Error),
    #[error("reading the model files broke: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

/// A coordinator with open ports. Dropped without [`Running::join`], it stops at once.
#[derive(Debug)]
pub struct Running {
    http: SocketAddr,
    grpc: SocketAddr,
    admin: Option<SocketAddr>,
    door: Arc<FrontDoor>,
    readiness: Readiness,
    tasks: Tasks,
    drain: Duration,
}

impl Coordinator {
    /// Reads the model files, binds both ports and serves. Requests are answered with NO_WORKER until
    /// a worker has joined; `/health` says which model waits.
    pub async fn start(config: Valid<Config>, shutdown: Shutdown) -> Result<Running, StartError> {
        let config = config.into_inner();
        let files = config.models.clone();
        let models = tokio::task::spawn_blocking(|| Models::load(files)).await??;

        let listener = listen::bind("http", config.listen, config.insecure).await?;
        let http = listener.local_addr()?;
        let grpc_config = grpc::Config { listen: config.grpc_listen, ..grpc::Config::default() };
        let server = grpc::Server::bind(&grpc_config, config.insecure).await?;
        let grpc = server.address();
        let admin = match config.admin {
            Some(address) => Some(admin::Server::bind(address, config.insecure).await?),
            None => None,
        };

        let mut tasks = Tasks::new(shutdown.clone());
        let (registry, owner) = Registry::new(&config.registry, &shutdown);
        tasks.spawn("registry", owner);
        let router = Router::new(registry.view(), registry.prefixes(), config.split_at_tokens);
        let door = Arc::new(FrontDoor::new(&config, models, router));
        tasks.spawn("admission", close_at_drain(Arc::clone(&door), shutdown.clone()));

        let slow_client = config.slow_client_timeout;
        let inference = api::grpc::service(Arc::clone(&door), slow_client, server.max_message());
        let server = server.add(inference).add(registry.service());
        let readiness = Readiness::default();
        let gate = readiness.gate("workers", "no worker has joined");
        tasks.spawn("readiness", watch_workers(Arc::clone(&door), gate, shutdown.clone()));
        tasks.spawn("grpc", server.serve(readiness.clone(), shutdown.clone()));
        let admin = admin.map(|server| {
            let address = server.address();
            tasks.spawn("admin", server.serve(readiness.clone(), shutdown.clone()));
            address
        });

        let app = api::openai::routes(api::openai::Api {
            door: Arc::clone(&door),
            max_body_bytes: usize::try_from(config.max_body_bytes.as_u64()).unwrap_or(usize::MAX),
            slow_client,
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        })
        .layer(axum::middleware::from_fn(crate::observe::traced));
        let connections = config.max_in_flight as usize + SPARE_CONNECTIONS;
        tasks.spawn("http", crate::serve::serve(listener, app, connections, slow_client, shutdown));

        tracing::info!(%http, %grpc, models = config.models.len(), "coordinator serves");
        Ok(Running { http, grpc, admin, door, readiness, tasks, drain: config.drain_timeout })
    }
}

impl Running {
    /// Where the OpenAI API listens, with the actual port.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Where gRPC listens and nodes join, with the actual port.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc
    }

    /// Where `/metrics` is, with the actual port.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Ready while every served model has a worker; for the admin port.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// For tasks that live as long as the coordinator (signals, an admin port).
    pub fn tasks(&mut self) -> &mut Tasks {
        &mut self.tasks
    }

    /// Serves until the shutdown begins, lets what is under way end, and stops.
    pub async fn join(self) -> Ended {
        let Self { door, tasks, drain, .. } = self;
        let idle = async move { door.admission.idle().await };
        tasks.run(idle, Deadlines { drain, stop: STOP }).await
    }
}

async fn close_at_drain(door: Arc<FrontDoor>, shutdown: Shutdown) -> Result<(), Infallible> {
    shutdown.draining().await;
    door.admission.close();
    Ok(())
}

/// Keeps the gate as `/health` says.
async fn watch_workers(door: Arc<FrontDoor>, gate: Gate, shutdown: Shutdown) -> Result<(), Infallible> {
    let mut changes = door.changes();
    loop {
        match door.unserved().as_slice() {
            [] => gate.open(),
            models => gate.close(format!("no ready worker for {}", models.join(", "))),
        }
        tokio::select! {
            Ok(()) = changes.changed() => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}
