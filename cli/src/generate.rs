//! `paceline generate`: text from one model in this process, without a cluster.

use clap::Args;

use crate::args::{RankArgs, SamplingArgs};

/// `paceline generate ...`
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// What to continue
    pub prompt: String,
    /// Model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub model: String,
    /// Continue the text as it is, without the chat template
    #[arg(long)]
    pub raw: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub rank: RankArgs,
}
