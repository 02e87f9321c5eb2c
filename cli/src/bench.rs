//! `paceline bench`: how fast a server answers, and how fast the engine computes.
//!
//! [`serve`] is a load generator for any server with OpenAI's API. Its metrics, their names and their
//! percentiles are those of AIPerf, so that figures can be laid beside each other.
//! [`engine`] times this machine's arithmetic without a network; [`compare`] lays drafting strategies side by
//! side; [`schedule`] replays traces through the scheduler with a clock of its own; [`shared`] lets two models decode on the
//! same cores. What they share: [`spread`], the statistics, [`drawing`], the plots, and [`hardware`], the line that
//! belongs beside every figure.

pub mod compare;
pub mod drawing;
pub mod engine;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod hardware;
pub mod schedule;
pub mod serve;
pub mod shared;
pub mod spread;
mod steps;

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Alignment, Padding, Style, object::Columns};

use crate::args::StoreArgs;

/// `paceline bench ...`
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// Put load on a server with OpenAI's API and measure its answers.
    Serve(Box<serve::ServeArgs>),
    /// Time the engine in this process: prefill, decode, and a step by its rows.
    Engine(engine::EngineArgs),
    /// Time a GPU: steps of a model of any shape and every kernel, beside their floors.
    #[cfg(feature = "cuda")]
    Gpu(gpu::GpuArgs),
    /// Replay a trace through the scheduler under several policies, with a model of what steps cost.
    Schedule(Box<schedule::ScheduleArgs>),
    /// Two models that decode at once on the same cores, beside each of them alone.
    Shared(shared::SharedArgs),
    /// Drafting strategies side by side, or the record of a pair of models.
    Compare(Box<compare::CompareArgs>),
}

pub async fn run(args: BenchArgs, store: &StoreArgs) -> Result<()> {
    match args.what {
        What::Serve(args) => serve::run(*args).await,
        What::Engine(args) => engine::run(args, store).await,
        #[cfg(feature = "cuda")]
        What::Gpu(args) => gpu::run(args).await,
        What::Schedule(args) => schedule::run(&args),
        What::Shared(args) => shared::run(args, store).await,
        What::Compare(args) => compare::run(*args, store).await,
    }
}

/// Writes JSON to a file, or to standard output when the file is `-`.
pub(crate) fn write_json(file: &Path, value: &impl Serialize) -> Result<()> {
    write_text(file, &(serde_json::to_string_pretty(value)? + "\n"))
}

fn write_text(file: &Path, text: &str) -> Result<()> {
    if file == Path::new("-") {
        let mut out = std::io::stdout().lock();
        return out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output");
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Columns aligned for people: the first to the left, figures to the right.
pub(crate) fn aligned(rows: Builder) -> String {
    let mut table = rows.build();
    table.with(Style::blank()).with(Padding::new(0, 2, 0, 0));
    table.modify(Columns::new(1..), Alignment::right());
    table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A figure with about four digits: enough to compare, few enough to read.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::args::Cli;

    /// Through the whole command line: its global flags share one space of names with these.
    #[test]
    fn both_are_read_beside_the_global_flags() {
        for words in ["engine --json", "engine --json x --log-json", "serve --json - --log-json --rate 2"] {
            let words = ["paceline", "bench"].into_iter().chain(words.split(' '));
            Cli::try_parse_from(words.collect::<Vec<_>>()).unwrap();
        }
    }

    #[test]
    fn figures_have_about_four_digits() {
        for (value, text) in
            [(0.0, "0"), (0.01234, "0.012"), (1.5, "1.50"), (123.45, "123.5"), (98_765.4, "98765")]
        {
            assert_eq!(super::figure(value), text);
        }
    }
}
