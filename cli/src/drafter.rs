//! `paceline drafter`: a draft rank: it runs ahead, in this process.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use cluster::Role;
use daemon::{Deadlines, Readiness, Shutdown, Tasks};

use crate::args::RankArgs;
use crate::models::Store;
use crate::rank::{Announcement, ended, flags, load, prepare, supervised};

/// `paceline drafter ...`; what is left out comes from the environment, then from the file.
#[derive(Clone, Debug, Args)]
pub struct DrafterArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Coordinators to join (host:port of their gRPC address); repeat for several
    #[arg(long = "coordinator", value_name = "ADDRESS")]
    pub coordinators: Vec<String>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Bind more than loopback although there is no TLS yet
    #[arg(long)]
    pub insecure: bool,
    #[command(flatten)]
    pub rank: RankArgs,
    /// Announce the addresses on standard output as JSON, and end when standard input does
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// Serves until a signal, then drains.
pub async fn run(args: DrafterArgs, store: &Store) -> Result<()> {
    let flags = flags(&args.rank, args.model.as_deref(), &args.coordinators, args.listen, args.insecure)?;
    let config = load::<drafter::Config>(args.config.as_deref(), &flags)?;
    let shutdown = Shutdown::default();
    let mut tasks = Tasks::new(shutdown.clone());
    tasks.spawn("signals", shutdown.signals()?);
    let prepared = prepare(&config.rank, Role::Drafter, store).await?;
    let readiness = Readiness::default();
    let make = prepared.make();
    let running = drafter::start(&config, prepared.identity, make, &readiness, &mut tasks).await?;
    tracing::info!(node = %running.record.id, endpoint = %running.record.endpoint, model = running.record.model, "drafter serves");
    if args.supervised {
        let node = running.record.id.to_string();
        let grpc = running.record.endpoint.to_string();
        supervised(&Announcement { node, grpc, http: None }, &mut tasks)?;
    }
    let deadlines = Deadlines { drain: config.rank.drain, ..Deadlines::default() };
    ended(&tasks.run(running.idle(), deadlines).await)
}
