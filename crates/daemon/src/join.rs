//! The node's side of joining: one stream to every coordinator that the seed list names.
//!
//! `seeds` keeps the list of addresses fresh (names are looked up again, as a headless service of
//! Kubernetes needs), `stream` keeps one coordinator told. Losing a coordinator, or all of them, does
//! not touch running work: the node goes on and joins again when one is back.

mod seeds;
mod stream;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::{Load, NodeRecord, PrefixLog};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config::{Check, Wrong, duration};
use crate::{Gate, Shutdown};

pub use seeds::Seeds;

/// Which coordinators a node joins, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `host:port` of every coordinator's gRPC port, or one name that resolves to all of them.
    pub coordinators: Seeds,
    /// How often names are looked up.
    #[serde(with = "duration")]
    pub resolve_every: Duration,
    /// For a look-up, a connection and a coordinator's first answer, each.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// First pause after a lost stream; doubled each time, with jitter,
    #[serde(with = "duration")]
    pub retry_min: Duration,
    /// up to this one.
    #[serde(with = "duration")]
    pub retry_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            coordinators: Seeds::default(),
            resolve_every: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
        }
    }
}

impl Check for Config {
    fn check(&self) -> Result<(), Wrong> {
        if self.coordinators.is_empty() {
            return Err(Wrong::new("coordinators", "names none; give at least one host:port"));
        }
        for (key, value) in [
            ("resolve_every", self.resolve_every),
            ("connect_timeout", self.connect_timeout),
            ("retry_min", self.retry_min),
        ] {
            if value < Duration::from_millis(1) {
                return Err(Wrong::new(key, "must be at least 1ms"));
            }
        }
        if self.retry_max < self.retry_min {
            return Err(Wrong::new("retry_max", "must not be below retry_min"));
        }
        Ok(())
    }
}

/// What a node tells about itself.
#[derive(Clone, Debug)]
pub struct Node {
    /// `state` is what the node starts with; the drain sets it to draining.
    pub record: NodeRecord,
    /// Read at each heartbeat.
    pub load: watch::Receiver<Load>,
    /// Told to coordinators that want it, as it changes.
    pub prefixes: Prefixes,
}

/// What a node's prefix cache can serve, as its engine says it and its streams tell it.
pub type Prefixes = Arc<Mutex<PrefixLog>>;

/// Keeps every coordinator told until the stop: *draining* from the drain on, a clean goodbye at the
/// stop. `joined` is open while at least one coordinator has taken the node.
pub async fn join(config: Config, node: Node, joined: Gate, shutdown: Shutdown) -> Result<(), Infallible> {
    let (count, mut counted) = watch::channel(0usize);
    let mut streams: BTreeMap<SocketAddr, CancellationToken> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut seeds = seeds::Resolver::new(&config);
    joined.close("no coordinator has taken this node yet");
    loop {
        tokio::select! {
            addresses = seeds.next() => {
                streams.retain(|address, stop| {
                    let stays = addresses.contains(address);
                    if !stays {
                        tracing::info!(coordinator = %address, "no longer in the seed list; leaving it");
                        stop.cancel();
                    }
                    stays
                });
                for address in addresses {
                    streams.entry(address).or_insert_with(|| {
                        let stop = CancellationToken::new();
                        let hold = stream::hold(
                            address, config.clone(), node.clone(), count.clone(), stop.clone(), shutdown.clone(),
                        );
                        tasks.spawn(hold.instrument(tracing::info_span!("join", coordinator = %address)));
                        stop
                    });
                }
            }
            Ok(()) = counted.changed() => match *counted.borrow_and_update() {
                0 => joined.close("every coordinator is lost; joining again"),
                _ => joined.open(),
            },
            // Streams end only when told to; a panic in one is ours and takes the process down.
            Some(Err(error)) = tasks.join_next() => {
                if error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
            () = shutdown.stopping() => break,
        }
    }
    // Each says goodbye and ends by itself within its own deadline.
    while tasks.join_next().await.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests;
