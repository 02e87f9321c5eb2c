//! `paceline coordinator`: the front door and the map, in this process.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

/// `paceline coordinator ...`; what is left out comes from the environment, then from the file.
#[derive(Clone, Debug, Args, Serialize)]
pub struct CoordinatorArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Models to serve: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long = "model", value_name = "MODEL")]
    #[serde(skip)]
    pub models: Vec<String>,
    /// Address of the OpenAI API
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Address of the gRPC API and of the nodes that join
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_listen: Option<SocketAddr>,
    /// Bind more than loopback although there is no TLS yet
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
}
