//! `paceline drafter`: a draft rank: it runs ahead, in this process.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::args::RankArgs;

/// `paceline drafter ...`; what is left out comes from the environment, then from the file.
#[derive(Clone, Debug, Args, Serialize)]
pub struct DrafterArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL")]
    #[serde(skip)]
    pub model: Option<String>,
    /// Coordinators to join (host:port of their gRPC address); repeat for several
    #[arg(long = "coordinator", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub coordinators: Vec<String>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Bind more than loopback although there is no TLS yet
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub rank: RankArgs,
}
