//! The command line as clap sees it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::chat::ChatArgs;
use crate::coordinator::CoordinatorArgs;
use crate::demo::DemoArgs;
use crate::generate::GenerateArgs;
use crate::heads::HeadsArgs;
use crate::models::{self, ModelsArgs, Progress, Store};
use crate::rank::NodeArgs;
use crate::status::StatusArgs;
use crate::up::UpArgs;

/// Distributed LLM inference: drafters run ahead, targets verify, the text is exactly the target's.
#[derive(Debug, Parser)]
#[command(name = "paceline", version, about, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a whole cluster on this machine.
    Up(UpArgs),
    /// Start a cluster, stream an answer, show what drafting did, stop.
    Demo(DemoArgs),
    /// The front door and the map: takes requests, places them on workers.
    Coordinator(CoordinatorArgs),
    /// A target rank: verifies and commits.
    Worker(NodeArgs),
    /// A draft rank: runs ahead of workers.
    Drafter(NodeArgs),
    /// Talk with a running cluster.
    Chat(ChatArgs),
    /// Text from one model in this process, without a cluster.
    Generate(GenerateArgs),
    /// Measure a server under load, or this machine's arithmetic.
    Bench(BenchArgs),
    /// Who is in the cluster and what they are doing.
    Status(StatusArgs),
    /// Which heads need to see everything: find them, draw them, test them.
    Heads(HeadsArgs),
    /// Fetch, list and describe models.
    Models(ModelsArgs),
}

/// Where models are kept.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Directory of models [default: $XDG_CACHE_HOME/paceline/models or ~/.cache/paceline/models]
    #[arg(long, env = "PACELINE_MODELS", hide_env_values = true, global = true, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
}

impl StoreArgs {
    /// Opens the store; the environment is read here, at the edge.
    pub fn open(&self) -> Result<Store> {
        let default = || Store::default_dir(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"));
        let dir = self.models_dir.clone().or_else(default);
        Store::open(dir.context("no place for models: set HOME, or give --models-dir")?)
    }

    /// The GGUF file of a model that a user named, fetched if need be. A path needs no store.
    pub async fn resolve(&self, model: &str) -> Result<PathBuf> {
        models::resolve(|| self.open(), model, &Progress::stderr()).await
    }
}

/// How this process logs.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// What is logged: error, warn, info, debug, or directives such as info,worker=debug
    /// [default: info for coordinator, worker and drafter, else warn]
    #[arg(long = "log", env = "PACELINE_LOG", global = true, value_name = "FILTER")]
    pub filter: Option<String>,
    /// One JSON object a line instead of text for people
    #[arg(long = "log-json", global = true)]
    pub json: bool,
}

impl LogArgs {
    pub fn config(&self, command: &Command) -> telemetry::Log {
        let format = if self.json { telemetry::Format::Json } else { telemetry::Format::Human };
        // What `up` starts shares its terminal with `up`'s own words.
        let serves = match command {
            Command::Coordinator(args) => !args.supervised,
            Command::Worker(args) | Command::Drafter(args) => !args.supervised,
            _ => false,
        };
        let default = if serves { "info" } else { "warn" };
        telemetry::Log { format, filter: self.filter.clone().unwrap_or_else(|| default.to_owned()) }
    }
}

/// What one rank computes with; the same for targets and drafters.
#[derive(Clone, Debug, Default, Args, serde::Serialize)]
pub struct RankArgs {
    /// CPU threads of the model [default: the machine's cores]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Cores of the model's threads, one each (Linux) [default: wherever the system puts them]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<Vec<usize>>,
    /// A drafter: it draws of so many tokens only, the most common ones [default: all]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shortlist: Option<u32>,
    /// Most tokens of one sequence, prompt included [default: the model's context]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Sequences that run at once
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Where the model computes: cpu, cuda, cuda:1, or cuda:0,1 [default: cpu]
    // `up` and `bench compare` have to know as well what the environment says to the ranks that they start.
    #[arg(long, value_name = "DEVICE", env = "PACELINE_RANK__DEVICE", hide_env = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<rank::Device>,
    /// On a GPU: the same text alone and in any batch, for some speed
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub batch_invariant: bool,
    /// A worker's folder with a DuoAttention pattern (paceline heads identify): answers are approximate
    #[arg(long, value_name = "FOLDER", requires = "sparsity")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_map: Option<PathBuf>,
    /// With --head-map: the share of all heads that see only a window
    #[arg(long, value_name = "SHARE", requires = "head_map")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
    /// On a GPU, for measurements: weights made up in the shape of this config.json
    #[arg(long, value_name = "CONFIG")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dummy_weights: Option<PathBuf>,
}

/// How an answer is drawn; left out, the server decides.
#[derive(Clone, Debug, Default, Args)]
pub struct SamplingArgs {
    /// 0 takes the most likely token
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Keep the smallest set of tokens whose probability reaches P
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// The same seed gives the same text
    #[arg(long)]
    pub seed: Option<u64>,
    /// Most tokens of the answer
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn processes_started_by_hand_say_what_they_do() {
        for (words, filter) in [
            (vec!["worker"], "info"),
            (vec!["coordinator"], "info"),
            (vec!["drafter", "--supervised"], "warn"),
            (vec!["status"], "warn"),
            (vec!["worker", "--log", "debug"], "debug"),
        ] {
            let Cli { log, command, .. } = Cli::try_parse_from(["paceline"].iter().chain(&words)).unwrap();
            // A developer's own PACELINE_LOG goes before the default.
            if std::env::var_os("PACELINE_LOG").is_none() {
                assert_eq!(log.config(&command).filter, filter, "{words:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_path_needs_no_store() {
        let file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
        let store = StoreArgs { models_dir: Some("/dev/null/no-directory".into()) };
        let path = file.path().to_str().unwrap();
        assert_eq!(store.resolve(path).await.unwrap(), file.path());
        let error = store.resolve("coder-1.5b").await.unwrap_err().to_string();
        assert!(error.contains("cannot create the models directory"), "{error}");
    }

    #[test]
    fn the_models_directory_can_be_given_anywhere() {
        for words in [
            ["paceline", "--models-dir", "/m", "models", "list"],
            ["paceline", "models", "list", "--models-dir", "/m"],
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            assert_eq!(cli.store.models_dir, Some(PathBuf::from("/m")));
        }
    }
}
