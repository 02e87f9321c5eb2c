//! `paceline heads`: which heads of a model need to see everything, and what it costs when the others do not
//! (DuoAttention, arXiv 2410.10819).

mod identify;
mod needle;
mod passkey;
mod show;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::args::StoreArgs;

/// `paceline heads ...`
#[derive(Clone, Debug, Args)]
pub struct HeadsArgs {
    #[command(subcommand)]
    pub command: HeadsCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum HeadsCommand {
    /// Measure where each head's attention goes when something far back is asked for; write a pattern folder.
    Identify(identify::IdentifyArgs),
    /// Draw a pattern folder, layer by head.
    Show(show::ShowArgs),
    /// Whether passkeys at ten depths are found: with all heads full, with a pattern, and with one drawn at random.
    Passkey(passkey::PasskeyArgs),
}

/// Runs one.
pub async fn run(args: HeadsArgs, store: &StoreArgs) -> Result<()> {
    match args.command {
        HeadsCommand::Identify(args) => identify::run(args, store).await,
        HeadsCommand::Show(args) => show::run(&args),
        HeadsCommand::Passkey(args) => passkey::run(args, store).await,
    }
}
