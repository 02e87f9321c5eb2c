//! `paceline`: reads the command line, runs one subcommand, says what went wrong.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use cli::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Models(args) => cli::models::run(args, &cli.store.open()?).await,
    }
}

/// One line for each cause, the outermost first.
#[expect(clippy::print_stderr, reason = "the last word of a command goes to its terminal")]
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("paceline: {error:#}");
    ExitCode::FAILURE
}
