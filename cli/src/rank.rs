//! What `worker` and `drafter` do alike: configuration, identity, model.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cluster::{NodeId, Role, VocabHash};
use daemon::config::Valid;
use model::{CpuModel, LoadError, Options, PageBudget};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use text::Tokenizer;

use crate::args::RankArgs;
use crate::models::{self, Progress, Store};

/// The model of a rank, found and described; not yet loaded.
#[derive(Debug)]
pub struct Prepared {
    pub identity: rank::Identity,
    pub path: PathBuf,
    pub options: Options,
}

impl Prepared {
    /// For `worker::start` and `drafter::start`: builds the model on the thread that calls it.
    pub fn make(&self) -> impl FnOnce() -> Result<CpuModel, LoadError> + Send + 'static {
        let (path, options) = (self.path.clone(), self.options.clone());
        move || CpuModel::load(&path, &options)
    }
}

/// Reads a process's settings: file, then environment, then `flags` (nested as the file is).
pub fn load<C>(file: Option<&Path>, flags: &Value) -> Result<Valid<C>>
where
    C: DeserializeOwned + daemon::config::Check,
{
    Ok(daemon::config::load(file, std::env::vars(), flags)?)
}

/// The flags of a rank as its settings.
pub fn flags(
    rank: &RankArgs,
    model: Option<&str>,
    coordinators: &[String],
    listen: Option<std::net::SocketAddr>,
    insecure: bool,
) -> Result<Value> {
    let Value::Object(mut settings) = serde_json::to_value(rank)? else { return Ok(Value::Null) };
    let mut set = |key: &str, value: Value| settings.insert(key.to_owned(), value);
    if let Some(model) = model {
        set("model", json!(model));
    }
    if !coordinators.is_empty() {
        set("join", json!({ "coordinators": coordinators }));
    }
    if let Some(listen) = listen {
        set("grpc", json!({ "listen": listen }));
    }
    if insecure {
        set("insecure", json!(true));
    }
    let mut root = Map::new();
    root.insert("rank".into(), Value::Object(settings));
    Ok(Value::Object(root))
}

/// Finds the model (fetching it when it has to) and says what the node is.
pub async fn prepare(config: &rank::Config, role: Role, store: &Store) -> Result<Prepared> {
    let asked = config.model.clone().context("no model is named: pass --model NAME, or set rank.model")?;
    let path = models::resolve(store, &asked, &Progress::stderr()).await?;
    let served_as = config.served_as.clone().unwrap_or_else(|| served_name(&path));
    let file = path.clone();
    let read = tokio::task::spawn_blocking(move || describe(&file));
    let (fingerprint, vocab_hash) = read.await??;
    let incarnation = rank::fresh_incarnation();
    let id = match &config.node {
        Some(id) => id.clone(),
        None => format!("{role}-{}-{:x}", std::process::id(), incarnation.0 & 0xfff_ffff),
    };
    let identity = rank::Identity {
        role,
        id: NodeId::new(&id)?,
        incarnation,
        model: served_as,
        fingerprint,
        vocab_hash,
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = Options {
        context: config.context,
        slots: config.slots,
        pages: PageBudget::Bytes(config.kv_memory.as_u64()),
        threads: config.threads.unwrap_or(cores),
    };
    Ok(Prepared { identity, path, options })
}

/// Name under which a model file is served: the file's, without its ending.
pub fn served_name(path: &Path) -> String {
    path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().replace(' ', "-"))
}

fn describe(path: &Path) -> Result<(String, VocabHash)> {
    let header = gguf::Header::open(path).with_context(|| path.display().to_string())?;
    let vocab_hash = VocabHash(Tokenizer::from_gguf(&header)?.vocab_hash());
    let fingerprint = model::fingerprint(path).with_context(|| path.display().to_string())?;
    Ok((fingerprint.as_str().to_owned(), vocab_hash))
}

/// What a supervised process says of itself: one JSON line on standard output, once it serves.
#[derive(Debug, Serialize, serde::Deserialize)]
pub struct Announcement {
    /// Of the node, or "coordinator".
    pub node: String,
    pub grpc: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
}

/// Announces the process and drains it when its standard input ends: a child never outlives the
/// `paceline up` that started it.
pub fn supervised(announcement: &Announcement, tasks: &mut daemon::Tasks) -> Result<()> {
    println!("{}", serde_json::to_string(announcement)?);
    let shutdown = tasks.shutdown().clone();
    tasks.spawn("supervisor", async move {
        let (mut stdin, mut sink) = (tokio::io::stdin(), tokio::io::sink());
        tokio::select! {
            _ = tokio::io::copy(&mut stdin, &mut sink) => shutdown.drain(),
            () = shutdown.stopping() => (),
        }
        Ok::<_, io::Error>(())
    });
    Ok(())
}

/// The process's exit: an error when a part failed.
pub fn ended(ended: &daemon::Ended) -> Result<()> {
    if let Some((task, why)) = ended.failed.first() {
        anyhow::bail!("{task} failed: {why}");
    }
    Ok(())
}
