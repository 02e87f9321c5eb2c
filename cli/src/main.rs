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
    let ended = runtime.block_on(run(cli));
    // A read of standard input cannot be cancelled; it must not keep a drained process alive.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn run(Cli { store, log, command }: Cli) -> anyhow::Result<()> {
    let log = log.config(&command);
    // A process that serves reads its configuration first, which says where spans and metrics go.
    let serves = matches!(command, Command::Coordinator(_) | Command::Worker(_) | Command::Drafter(_));
    let _telemetry = if serves { None } else { Some(telemetry::init(&log, None)?) };
    match command {
        Command::Up(args) => cli::up::run(args, &store).await,
        Command::Demo(args) => cli::demo::run(args, &store).await,
        Command::Coordinator(args) => cli::coordinator::run(args, &store, &log).await,
        Command::Worker(args) => cli::worker::run(args, &store, &log).await,
        Command::Drafter(args) => cli::drafter::run(args, &store, &log).await,
        Command::Chat(args) => cli::chat::run(args).await,
        Command::Generate(args) => cli::generate::run(args, &store).await,
        Command::Bench(args) => cli::bench::run(args, &store).await,
        Command::Status(args) => cli::status::run(args).await,
        Command::Heads(args) => cli::heads::run(args, &store).await,
        Command::Models(args) => cli::models::run(args, || store.open()).await,
    }
}

/// One line for each cause, the outermost first.
#[expect(clippy::print_stderr, reason = "the last word of a command goes to its terminal")]
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("paceline: {error:#}");
    ExitCode::FAILURE
}
