//! Ranks of a worker group: which model part is loaded where, and what a follower's process does.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use daemon::{Deadlines, Tasks};
use model::{CpuModel, CpuOptions, Group, GroupError, GroupPlan, Options};
use transport::tcp::TcpFabric;
use transport::{Fabric, FabricError};

use crate::rank::Prepared;

/// A place in a group, and what all of it must agree on.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub config: rank::Group,
    pub insecure: bool,
    /// Fingerprint and sizes, in words.
    pub said: String,
    /// Names this life of the group.
    pub token: u64,
}

/// Why a rank is in no group.
#[derive(Debug, thiserror::Error)]
pub enum NoGroup {
    #[error("rank.group: {0}")]
    Group(#[from] GroupError),
    #[error("rank.group.address: {0}")]
    Fabric(#[from] FabricError),
    #[error(transparent)]
    Load(#[from] model::LoadError),
}

impl Place {
    /// Meets the other ranks and loads this one's part. Blocks until all have.
    pub fn load(&self, path: &Path, options: &Options, cpu: &CpuOptions) -> Result<CpuModel, NoGroup> {
        let rank::Group { rank, shares, address, start, within } = &self.config;
        let plan =
            GroupPlan { memory: shares.clone(), said: self.said.clone(), start: *start, within: *within };
        let group = if *rank == 0 {
            Group::lead(&TcpFabric::listen(*address, self.insecure)?, plan, self.token)?
        } else {
            // It listens for nobody; the port is any.
            let own = TcpFabric::listen(([127, 0, 0, 1], 0).into(), self.insecure)?;
            let fabric: &dyn Fabric = &own;
            Group::follow(fabric, &address.to_string(), *rank, plan)?
        };
        Ok(CpuModel::load_in(path, options, cpu, group)?)
    }
}

/// A follower's process: it computes until rank 0 is gone, or a signal comes.
pub async fn follow(prepared: Prepared, mut tasks: Tasks) -> Result<()> {
    let (place, cpu) = prepared.backend.group().context("rank.group is not of this device")?;
    let (path, options) = (prepared.path.clone(), prepared.options.clone());
    let shutdown = tasks.shutdown().clone();
    let ended = Arc::new(tokio::sync::Notify::new());
    let over = ended.clone();
    // A thread that blocks in a read cannot be cancelled; it ends with the process.
    let following = tokio::task::spawn_blocking(move || {
        let mut model = place.load(&path, &options, &cpu)?;
        tracing::info!(rank = place.config.rank, "follows");
        model.follow().map_err(anyhow::Error::from)
    });
    tasks.spawn("follow", async move {
        let done = tokio::select! {
            done = following => done.map_err(anyhow::Error::from).and_then(|done| done),
            () = shutdown.stopping() => Ok(()),
        };
        over.notify_one();
        shutdown.drain();
        done.map_err(|error| format!("{error:#}"))
    });
    crate::rank::ended(&tasks.run(async move { ended.notified().await }, Deadlines::default()).await)
}
