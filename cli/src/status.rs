//! `paceline status`: who is in the cluster and what they are doing.

use clap::Args;

/// `paceline status ...`
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// gRPC address of a coordinator
    #[arg(long, env = "PACELINE_COORDINATOR", default_value = "http://127.0.0.1:8081")]
    pub coordinator: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
