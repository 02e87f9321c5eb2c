//! `paceline up`: a whole cluster on this machine, one process a role.

use clap::Args;

use crate::args::RankArgs;

/// `paceline up ...`
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Target model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub target: String,
    /// Drafter model, or none; its vocabulary must be the target's
    #[arg(long, value_name = "MODEL|none", default_value = "coder-0.5b")]
    pub drafter: String,
    /// Target workers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Drafters
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=64))]
    pub drafters: u16,
    /// HTTP port of the OpenAI API on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    #[command(flatten)]
    pub rank: RankArgs,
}
