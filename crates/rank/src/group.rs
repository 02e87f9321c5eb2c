//! Several processes that share one model on CPUs.

use std::net::SocketAddr;
use std::time::Duration;

use daemon::config::{Check, Wrong, duration};
use serde::{Deserialize, Serialize};

/// A rank's place in a worker group. Rank 0 is the worker that others see; the others only compute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// This process's place, from 0.
    #[serde(default)]
    pub rank: usize,
    /// The share of each rank, alike on all of them: `[1, 1]` for two equal ones.
    pub shares: Vec<u32>,
    /// Where rank 0 listens for the others.
    pub address: SocketAddr,
    /// For all ranks to come, and to load the model.
    #[serde(default = "start", with = "duration")]
    pub start: Duration,
    /// A rank of which nothing is heard for so long, or that comes no further while others wait for it, ends the group.
    #[serde(default = "within", with = "duration")]
    pub within: Duration,
}

const fn start() -> Duration {
    Duration::from_secs(120)
}

const fn within() -> Duration {
    Duration::from_secs(3)
}

impl Check for Group {
    fn check(&self) -> Result<(), Wrong> {
        if !(2..=64).contains(&self.shares.len()) {
            return Err(Wrong::new("shares", "must have an entry for each rank, 2 to 64"));
        }
        if self.shares.contains(&0) {
            return Err(Wrong::new("shares", "must all be at least 1"));
        }
        if self.rank >= self.shares.len() {
            return Err(Wrong::new("rank", "must be below the number of shares"));
        }
        if self.address.port() == 0 {
            return Err(Wrong::new("address", "must name a port: every rank is told the same"));
        }
        if self.start.is_zero() || self.start > Duration::from_secs(3600) {
            return Err(Wrong::new("start", "must be more than 0 and at most 1h"));
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(600)).contains(&self.within) {
            return Err(Wrong::new("within", "must be 100ms to 10m"));
        }
        Ok(())
    }
}
