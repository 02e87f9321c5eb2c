//! The coordinator's side of joining: an embedded registry.
//!
//! Nodes hold a Join stream each; one task owns the [`cluster::Table`] and publishes an immutable
//! [`View`] whenever something changed. Nothing is stored: after a restart the nodes come again.
//!
//! Start at [`Registry::new`]; `table` is the owner's loop, `service` the streams.

mod gauges;
mod prefixes;
mod service;
mod table;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use cluster::{Patience, View};
use proto::cluster::cluster_server::ClusterServer;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::Shutdown;
use crate::config::{Check, Wrong, duration};
use table::Command;

pub use prefixes::Prefixes;
pub use service::Service;

/// Longest message of a node; a record is far below a KiB.
const MAX_MESSAGE: usize = 64 << 10;

/// Updates waiting for the table's owner, over all streams. Full: a stream is not read on until there
/// is room, so its heartbeats come late; none is lost.
const UPDATES: usize = 1024;

/// How nodes are watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How often nodes are told to send a heartbeat.
    #[serde(with = "duration")]
    pub heartbeat: Duration,
    /// Silence after which a node gets no new work; at least twice `heartbeat`.
    #[serde(with = "duration")]
    pub suspect_after: Duration,
    /// Silence after which a node is forgotten and its stream closed; longer than `suspect_after`.
    #[serde(with = "duration")]
    pub forget_after: Duration,
    /// Most nodes (and half of the Join streams) at once; more are refused.
    pub max_nodes: u32,
    /// Pages of all workers' prefix caches that are remembered, to place requests where their beginning is cached; 0:
    /// none, requests are placed by load.
    pub prefix_pages: u32,
}

impl Default for Config {
    fn default() -> Self {
        let heartbeat = Duration::from_secs(1);
        let Patience { suspect_after, forget_after, max_nodes } = Patience::for_interval(heartbeat);
        let max_nodes = u32::try_from(max_nodes).unwrap_or(u32::MAX);
        Self { heartbeat, suspect_after, forget_after, max_nodes, prefix_pages: 1 << 20 }
    }
}

impl Check for Config {
    fn check(&self) -> Result<(), Wrong> {
        let bounds = Duration::from_millis(10)..=Duration::from_secs(3600);
        if !bounds.contains(&self.heartbeat) {
            return Err(Wrong::new("heartbeat", "must be 10ms to 1h"));
        }
        if self.suspect_after < self.heartbeat * 2 {
            return Err(Wrong::new(
                "suspect_after",
                "must be at least twice heartbeat: one late is no silence",
            ));
        }
        if self.forget_after <= self.suspect_after {
            return Err(Wrong::new("forget_after", "must be longer than suspect_after"));
        }
        if !(1..=1 << 16).contains(&self.max_nodes) {
            return Err(Wrong::new("max_nodes", "must be 1 to 65536"));
        }
        if self.prefix_pages > 1 << 26 {
            return Err(Wrong::new("prefix_pages", "must be at most 67108864; it takes some 20 bytes each"));
        }
        Ok(())
    }
}

/// The readers' end of the registry; cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    config: Config,
    started: Instant,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    prefixes: Arc<Prefixes>,
    /// One permit an open Join stream.
    streams: Arc<Semaphore>,
    next_stream: Arc<AtomicU64>,
    shutdown: Shutdown,
}

impl Registry {
    /// The registry and the task that owns its table, for [`Tasks::spawn`](crate::Tasks::spawn); it ends
    /// with the stop. Times in views count from this call ([`Registry::now`]).
    pub fn new(
        config: &Config,
        shutdown: &Shutdown,
    ) -> (Self, impl Future<Output = Result<(), std::convert::Infallible>> + use<>) {
        let started = Instant::now();
        // A node that joins again holds two streams until the old one is seen to break. Each stream
        // keeps one place of the queue for its own ending; updates share the rest.
        let streams = 2 * config.max_nodes as usize;
        let (commands, inbox) = mpsc::channel(streams + UPDATES);
        let (publish, view) = watch::channel(View::default());
        let prefixes = Arc::new(Prefixes::new(config.prefix_pages as usize));
        let owner = table::own(config.clone(), started, inbox, publish, prefixes.clone(), shutdown.clone());
        let registry = Self {
            config: config.clone(),
            started,
            commands,
            view,
            prefixes,
            streams: Arc::new(Semaphore::new(streams)),
            next_stream: Arc::default(),
            shutdown: shutdown.clone(),
        };
        (registry, owner)
    }

    /// The latest view, and a wake-up when there is a later one.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Which worker has which prefix in its cache.
    pub fn prefixes(&self) -> Arc<Prefixes> {
        self.prefixes.clone()
    }

    /// The clock of the views: time since the registry began.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// For [`grpc::Server::add`](crate::grpc::Server::add).
    pub fn service(&self) -> ClusterServer<Service> {
        ClusterServer::new(Service(self.clone())).max_decoding_message_size(MAX_MESSAGE)
    }
}

#[cfg(test)]
mod tests;
