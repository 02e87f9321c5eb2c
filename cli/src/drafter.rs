//! `paceline drafter`: a draft rank: it runs ahead, in this process.

use anyhow::Result;
use cluster::Role;
use daemon::Readiness;
use engine::Side;
use telemetry::{Log, Service};

use crate::args::StoreArgs;
use crate::rank::{Listening, NodeArgs, Prepared, load, prepare, serve, tasks};

/// Serves until a signal, then drains.
pub async fn run(args: NodeArgs, store: &StoreArgs, log: &Log) -> Result<()> {
    let config = load::<drafter::Config>(args.config.as_deref(), &args.settings()?)?;
    let mut tasks = tasks()?;
    let prepared = prepare(&config.rank, Role::Drafter, store).await?;
    let prepared = prepared.saying(args.replay.as_deref(), Side::Drafter)?;
    let instance = prepared.identity.id.to_string();
    let _telemetry = telemetry::init(log, Some((&Service { role: "drafter", instance }, &config.telemetry)))?;
    let readiness = Readiness::default();
    let make = prepared.make();
    let Prepared { identity, constraints, .. } = prepared;
    let running = drafter::start(&config, identity, constraints, make, &readiness, &mut tasks).await?;
    let at = Listening { grpc: running.address, admin: running.admin };
    let record = running.record.clone();
    serve(&args, &config.rank, &record, at, running.idle(), tasks).await
}
