//! What `worker` and `drafter` do alike: configuration, identity, model.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use cluster::{NodeId, NodeRecord, Role, VocabHash};
use daemon::config::{Check, ENV_PREFIX, ENV_RESERVED, Valid};
use daemon::{Deadlines, Shutdown, Tasks};
use engine::{Model, Replay, ReplayError, Side, Trace};
use grammar::{Grammars, Vocabulary};
use kvcache::HeadMap;
use model::{Options, PageBudget, Pattern};
use request::Quality;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use text::Tokenizer;

use crate::args::{RankArgs, StoreArgs};
use crate::backend::Backend;
use crate::bench::compare::trace;
use crate::group::{NoGroup, Place};
use crate::site::site;

/// `paceline worker ...`, `paceline drafter ...`; what is left out comes from the environment, then
/// from the file.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Configuration file (TOML)
    #[arg(long, env = "PACELINE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Coordinators to join (host:port of their gRPC address); repeat for several
    #[arg(long = "coordinator", value_name = "ADDRESS")]
    pub coordinators: Vec<String>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Address under which others reach this node [default: the one it listens on]
    #[arg(long, value_name = "http://HOST:PORT")]
    pub advertise: Option<String>,
    /// Address of /metrics and of the health probes [default: none]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Bind more than loopback although there is no TLS yet
    #[arg(long)]
    pub insecure: bool,
    #[command(flatten)]
    pub rank: RankArgs,
    /// A worker: whether its drafters draft while it waits [default: where they share its cores; on its GPU if faster]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub drafters_take_turns: Option<bool>,
    /// Announce the addresses on standard output as JSON, and end when standard input does
    #[arg(long, hide = true)]
    pub supervised: bool,
    /// For measurements: compute everything, and say what `bench compare --record` wrote down
    #[arg(long, hide = true, value_name = "TRACE")]
    pub replay: Option<PathBuf>,
}

impl NodeArgs {
    /// The flags that were given, nested as the file is.
    pub fn settings(&self) -> Result<Value> {
        let Value::Object(mut settings) = serde_json::to_value(&self.rank)? else { return Ok(Value::Null) };
        let mut set = |key: &str, value: Value| settings.insert(key.to_owned(), value);
        if let Some(model) = &self.model {
            set("model", json!(model));
        }
        if !self.coordinators.is_empty() {
            set("join", json!({ "coordinators": self.coordinators }));
        }
        if let Some(listen) = self.listen {
            set("grpc", json!({ "listen": listen }));
        }
        if let Some(advertise) = &self.advertise {
            set("advertise", json!(advertise));
        }
        if let Some(admin) = self.admin {
            set("admin", json!(admin));
        }
        if self.insecure {
            set("insecure", json!(true));
        }
        let mut all = json!({ "rank": settings });
        if let Some(share) = self.drafters_take_turns {
            all["engine"] = json!({ "drafters_take_turns": share });
        }
        Ok(all)
    }
}

/// The model of a rank, found and described; not yet loaded.
#[derive(Debug)]
pub struct Prepared {
    pub identity: rank::Identity,
    pub constraints: rank::Constraints,
    pub path: PathBuf,
    pub options: Options,
    pub backend: Backend,
    /// The words to say instead of the model's own.
    pub words: Option<(Arc<Trace>, Side)>,
}

/// Why a rank has no model.
#[derive(Debug, thiserror::Error)]
pub enum NoModel {
    #[error(transparent)]
    Load(#[from] NoGroup),
    #[error("--replay: {0}")]
    Replay(#[from] ReplayError),
}

impl Prepared {
    /// For `worker::start` and `drafter::start`: builds the model on the thread that calls it.
    pub fn make(&self) -> impl FnOnce() -> Result<Box<dyn Model>, NoModel> + Send + 'static {
        let (path, options, words) = (self.path.clone(), self.options.clone(), self.words.clone());
        let backend = self.backend.clone();
        move || {
            let model = backend.load(&path, &options)?;
            Ok(match words {
                Some((trace, side)) => Box::new(Replay::new(model, trace, side)?),
                None => model,
            })
        }
    }

    /// Says the words of a trace, if there is one. Nobody may take the node for one of its model: its
    /// fingerprint is another.
    pub fn saying(mut self, file: Option<&Path>, side: Side) -> Result<Self> {
        if let Some(file) = file {
            self.words = Some((trace::File::read(file)?.trace(), side));
            self.identity.fingerprint.push_str("+replay");
        }
        Ok(self)
    }
}

/// Reads a process's settings: file, then environment, then `flags` (nested as the file is).
pub fn load<C>(file: Option<&Path>, flags: &Value) -> Result<Valid<C>>
where
    C: Check + Default + DeserializeOwned + Serialize,
{
    let own = sections::<C>()?;
    let mut others = sections::<coordinator::Config>()?;
    others.extend(sections::<worker::Config>()?);
    others.extend(sections::<drafter::Config>()?);
    others.retain(|section| !own.contains(section));
    Ok(daemon::config::load(file, settings(std::env::vars_os(), &others)?, flags)?)
}

/// Top-level keys of a process's configuration.
fn sections<C: Default + Serialize>() -> Result<Vec<String>> {
    let Value::Object(keys) = serde_json::to_value(C::default())? else { return Ok(Vec::new()) };
    Ok(keys.into_iter().map(|(key, _)| key).collect())
}

/// The variables that are settings of this process. Those of `others`, sections of the other
/// processes, are left to them: one environment serves a whole cluster, as under `paceline up`.
fn settings(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    others: &[String],
) -> Result<Vec<(String, String)>> {
    let mut ours = Vec::new();
    for (name, value) in variables {
        // Names are compared as text that may be damaged: a damaged one of ours is refused below.
        let shown = name.to_string_lossy();
        let Some(key) = shown.strip_prefix(ENV_PREFIX) else { continue };
        let section = key.split("__").next().unwrap_or_default().to_ascii_lowercase();
        if ENV_RESERVED.contains(&shown.as_ref()) || others.contains(&section) {
            continue;
        }
        match (name.to_str(), value.to_str()) {
            (Some(name), Some(value)) => ours.push((name.to_owned(), value.to_owned())),
            _ => bail!("environment variable {shown}: name or value is not UTF-8; set it anew or unset it"),
        }
    }
    Ok(ours)
}

/// Finds the model (fetching it when it has to) and says what the node is.
pub async fn prepare(config: &rank::Config, role: Role, store: &StoreArgs) -> Result<Prepared> {
    let asked = config.model.clone().context("no model is named: pass --model NAME, or set rank.model")?;
    let path = store.resolve(&asked).await?;
    let served_as = config.served_as.clone().unwrap_or_else(|| served_name(&path));
    let (file, tokens) = (path.clone(), config.shortlist);
    let read = tokio::task::spawn_blocking(move || describe(&file, tokens));
    let Described { fingerprint, vocab_hash, vocab, grammars, shortlist } = read.await??;
    let incarnation = rank::fresh_incarnation();
    let id = match &config.node {
        Some(id) => id.clone(),
        None => format!("{role}-{}-{:x}", std::process::id(), incarnation.0 & 0xfff_ffff),
    };
    let backend = Backend::of(config, shortlist)?;
    if config.head_map.is_some() && role == Role::Drafter {
        bail!("rank.head_map is for workers: drafting with window head classes is not built yet");
    }
    let heads = heads(config.head_map.as_deref(), config.sparsity)?;
    let numerics = heads.as_ref().map_or_else(String::new, |map| format!("+heads-{}", map.digest()));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = config.threads.or(config.cores.as_ref().map(Vec::len)).unwrap_or(cores);
    let identity = rank::Identity {
        role,
        quality: if heads.is_some() || config.kv_dtype != rank::KvDtype::F16 {
            Quality::Approximate
        } else {
            Quality::Exact
        },
        id: NodeId::new(&id)?,
        incarnation,
        model: served_as,
        fingerprint: format!("{fingerprint}{}{numerics}", backend.arithmetic()),
        vocab_hash,
        site: site(config, threads),
    };
    let options = Options {
        context: config.context,
        vocab: Some(vocab),
        slots: config.slots,
        pages: config.kv_memory.map_or(backend.pages(), |bytes| PageBudget::Bytes(bytes.as_u64())),
        threads,
        heads,
    };
    let backend = match &config.group {
        None => backend,
        Some(_) if role == Role::Drafter => bail!("rank.group is for workers: a drafter's model is small"),
        Some(group) => {
            let Options { context, slots, pages, .. } = options;
            let said = format!("{} context {context:?} slots {slots} {pages:?}", identity.fingerprint);
            let (config, insecure) = (group.clone(), config.insecure);
            backend.within(Place { config, insecure, said, token: incarnation.0 })?
        }
    };
    let constraints = rank::Constraints::new(Some(grammars));
    Ok(Prepared { identity, constraints, path, options, backend, words: None })
}

/// The head map that is asked for; none when it leaves every head what it has.
pub fn heads(folder: Option<&Path>, sparsity: Option<f64>) -> Result<Option<HeadMap>> {
    let (Some(folder), Some(sparsity)) = (folder, sparsity) else { return Ok(None) };
    let of = || format!("head map {}", folder.display());
    let map = Pattern::open(folder).and_then(|pattern| pattern.map(sparsity)).with_context(of)?;
    Ok(Some(map).filter(|map| !map.is_full()))
}

/// The tasks of a process, with signals among them from now on.
pub fn tasks() -> Result<Tasks> {
    let shutdown = Shutdown::default();
    let signals = shutdown.signals()?;
    let mut tasks = Tasks::new(shutdown);
    tasks.spawn("signals", signals);
    Ok(tasks)
}

/// Ports of a started rank.
#[derive(Clone, Copy, Debug)]
pub struct Listening {
    pub grpc: SocketAddr,
    pub admin: Option<SocketAddr>,
}

/// Says that a started rank serves, and stays until it has drained; `idle` resolves when nothing runs.
pub async fn serve(
    args: &NodeArgs,
    config: &rank::Config,
    record: &NodeRecord,
    at: Listening,
    idle: impl Future<Output = ()>,
    mut tasks: Tasks,
) -> Result<()> {
    let NodeRecord { id, role, endpoint, model, .. } = record;
    tracing::info!(node = %id, %endpoint, model, "{role} serves");
    if args.supervised {
        let announcement = Announcement {
            node: id.to_string(),
            grpc: endpoint.to_string(),
            listens: Some(at.grpc),
            http: None,
            admin: at.admin.map(|address| format!("http://{address}")),
        };
        supervised(&announcement, &mut tasks)?;
    }
    let deadlines = Deadlines { drain: config.drain, ..Deadlines::default() };
    ended(&tasks.run(idle, deadlines).await)
}

/// Name under which a model is served: the file's without its ending, or the folder's.
pub fn served_name(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "model".into(), |stem| stem.to_string_lossy().replace(' ', "-"))
}

/// What a model's files say besides the weights.
struct Described {
    fingerprint: String,
    vocab_hash: VocabHash,
    vocab: u32,
    grammars: Grammars,
    shortlist: Option<Vec<u32>>,
}

/// `shortlist`: how many tokens of it are to be listed.
fn describe(path: &Path, shortlist: Option<u32>) -> Result<Described> {
    let of = || path.display().to_string();
    let tokenizer = Tokenizer::open(path).with_context(of)?;
    let fingerprint = model::fingerprint(path).with_context(of)?;
    Ok(Described {
        fingerprint: fingerprint.as_str().to_owned(),
        vocab_hash: VocabHash(tokenizer.vocab_hash()),
        vocab: tokenizer.vocab_len(),
        shortlist: shortlist.map(|tokens| tokenizer.vocabulary().common(tokens)),
        grammars: Grammars::new(&Vocabulary::of(&tokenizer).with_context(of)?).with_context(of)?,
    })
}

/// What a supervised process says of itself: one JSON line on standard output, once it serves.
#[derive(Debug, Serialize, serde::Deserialize)]
pub struct Announcement {
    /// Of the node, or "coordinator".
    pub node: String,
    /// Under which others reach it.
    pub grpc: String,
    /// Where a rank listens, which is another place behind a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listens: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Where `/metrics` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<String>,
}

/// Announces the process and drains it when its standard input ends: a child never outlives the
/// `paceline up` that started it.
pub fn supervised(announcement: &Announcement, tasks: &mut Tasks) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn bad() -> OsString {
        OsString::from_vec(vec![0xff, 0xfe])
    }

    #[test]
    fn only_own_variables_are_read_and_only_they_must_be_text() {
        let mut damaged = OsString::from("PACELINE_SLOTS");
        damaged.push(bad());
        let foreign = vec![
            ("LANG".into(), bad()),
            (bad(), "1".into()),
            ("PACELINE_MODELS".into(), bad()),
            ("PACELINE_RANK__SLOTS".into(), bad()),
        ];
        assert_eq!(settings(foreign, &["rank".into()]).unwrap(), []);
        for (name, value) in [("PACELINE_RANK__SLOTS".into(), bad()), (damaged, "1".into())] {
            let error = settings([(name, value)], &[]).unwrap_err().to_string();
            assert!(error.contains("PACELINE_") && error.contains("SLOTS"), "{error}");
        }
    }

    #[test]
    fn settings_of_other_processes_are_left_to_them() {
        let mut worker = sections::<worker::Config>().unwrap();
        // Their order depends on a feature of serde_json that other crates may turn on.
        worker.sort();
        assert_eq!(worker, ["engine", "pages", "rank", "telemetry"]);
        let given = |name: &str| vec![(name.into(), "1".into())];
        for (name, taken) in [
            ("PACELINE_RANK__SLOTS", false),
            ("PACELINE_RANK", false),
            ("PACELINE_ENGINE__OUTBOX", false),
            ("PACELINE_RANKS__SLOTS", true),
            ("PACELINE_TYPO", true),
        ] {
            assert_eq!(settings(given(name), &worker).unwrap().len(), usize::from(taken), "{name}");
        }
    }
}
