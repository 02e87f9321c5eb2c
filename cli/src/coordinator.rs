//! `paceline coordinator`: the front door and the map, in this process.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use coordinator::{Config, Coordinator};
use daemon::Shutdown;
use serde_json::{Map, Value, json};
use telemetry::{Log, Service};

use crate::args::StoreArgs;
use crate::rank::{Announcement, ended, load, served_name, supervised};

/// `paceline coordinator ...`; what is left out comes from the environment, then from the file.
#[derive(Clone, Debug, Args)]
pub struct CoordinatorArgs {
    /// Configuration file (TOML)
    #[arg(long, env = "PACELINE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Models to serve: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long = "model", value_name = "MODEL")]
    pub models: Vec<String>,
    /// Address of the OpenAI API
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Address of the gRPC API and of the nodes that join
    #[arg(long, value_name = "ADDRESS")]
    pub grpc_listen: Option<SocketAddr>,
    /// Address of /metrics and of the health probes [default: none]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Bind more than loopback although there is no TLS yet
    #[arg(long)]
    pub insecure: bool,
    /// Announce the addresses on standard output as JSON, and end when standard input does
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// Serves until a signal, then drains.
pub async fn run(args: CoordinatorArgs, store: &StoreArgs, log: &Log) -> Result<()> {
    let config = load::<Config>(args.config.as_deref(), &flags(&args, store).await?)?;
    let instance = format!("coordinator-{}", std::process::id());
    let _telemetry =
        telemetry::init(log, Some((&Service { role: "coordinator", instance }, &config.telemetry)))?;
    let shutdown = Shutdown::default();
    let signals = shutdown.signals()?;
    let mut running = Coordinator::start(config, shutdown).await?;
    running.tasks().spawn("signals", signals);
    if args.supervised {
        let announcement = Announcement {
            node: "coordinator".into(),
            grpc: format!("http://{}", running.grpc_addr()),
            listens: None,
            http: Some(format!("http://{}", running.http_addr())),
            admin: running.admin_addr().map(|address| format!("http://{address}")),
        };
        supervised(&announcement, running.tasks())?;
    }
    ended(&running.join().await)
}

async fn flags(args: &CoordinatorArgs, store: &StoreArgs) -> Result<Value> {
    let mut settings = Map::new();
    let mut set = |key: &str, value: Value| settings.insert(key.to_owned(), value);
    if let Some(listen) = args.listen {
        set("listen", json!(listen));
    }
    if let Some(listen) = args.grpc_listen {
        set("grpc_listen", json!(listen));
    }
    if let Some(admin) = args.admin {
        set("admin", json!(admin));
    }
    if args.insecure {
        set("insecure", json!(true));
    }
    let mut served = Vec::new();
    for model in &args.models {
        let path = store.resolve(model).await?;
        served.push(json!({ "name": served_name(&path), "path": path }));
    }
    if !served.is_empty() {
        set("models", json!(served));
    }
    Ok(Value::Object(settings))
}
