//! `paceline chat`: a conversation with a running cluster, on the terminal.

use clap::Args;

use crate::args::SamplingArgs;

/// `paceline chat ...`
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// The question; without it, questions are read line by line
    pub prompt: Option<String>,
    /// Address of the coordinator
    #[arg(long, env = "PACELINE_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Model to ask [default: the one that is served]
    #[arg(long)]
    pub model: Option<String>,
    /// System message
    #[arg(long)]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}
