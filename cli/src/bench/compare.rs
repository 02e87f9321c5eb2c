//! `paceline bench compare`: strategies side by side on the same prompts, and the record of a pair of models.

mod asked;
mod record;
pub mod trace;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::record::Recording;
use crate::args::StoreArgs;

/// `paceline bench compare ...`
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// Target model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub target: String,
    /// Drafter model; its vocabulary must be the target's
    #[arg(long, value_name = "MODEL", default_value = "coder-0.5b")]
    pub drafter: String,
    /// What to ask: humaneval, or a file as `bench serve` takes it
    #[arg(long, value_name = "humaneval|FILE", default_value = asked::HUMANEVAL)]
    pub prompts: String,
    /// So many of the prompts, from the first on
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=65536))]
    pub max_tokens: u32,
    /// Write what the target answers and what the drafter says at each place, for --replay, and compare nothing
    #[arg(long, value_name = "TRACE")]
    pub record: Option<PathBuf>,
    /// CPU threads of a model [default: the machine's cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

pub async fn run(args: CompareArgs, store: &StoreArgs) -> Result<()> {
    let file = args.record.clone().context("--record TRACE is what this command does so far")?;
    let questions = asked::questions(&args.prompts, args.limit as usize, store).await?;
    let (target, drafter) = (store.resolve(&args.target).await?, store.resolve(&args.drafter).await?);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let recorded = tokio::task::spawn_blocking(move || {
        record::record(&Recording {
            target: (&args.target, &target),
            drafter: (&args.drafter, &drafter),
            prompts: &args.prompts,
            questions: &questions,
            max_tokens: args.max_tokens,
            threads: args.threads.unwrap_or(cores),
        })
    });
    let recorded = recorded.await??;
    ensure!(file != PathBuf::from("-"), "--record needs a file");
    super::write_text(&file, &recorded.text()?)?;
    let tokens: usize = recorded.answers.iter().map(|a| a.recorded.target.len()).sum();
    let share = 100.0 * recorded.agreement();
    eprintln!(
        "{}: {} answers, {tokens} tokens, the drafter is right at {share:.1} % of the places",
        file.display(),
        recorded.answers.len()
    );
    Ok(())
}
