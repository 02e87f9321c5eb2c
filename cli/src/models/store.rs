//! The store: a directory that holds `NAME.gguf`, or the folder `NAME` with safetensors, and beside it
//! `NAME.json` with its origin.
//!
//! A model appears under its final name only when it is complete and checked; what is on its way
//! has another name (`NAME.gguf.*.partial`, `NAME.*.partial/`, `parts/NAME/`). One lock file per model keeps two
//! processes from pulling the same one.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// A model's name in the store; it is also a file name, so it is kept plain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Where a model came from; `NAME.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// `hf:...` or `pip:...`.
    pub source: String,
    /// Of the GGUF file, lower-case hex. Of a folder: over a line for each file, by name, as `sha256sum`
    /// prints it.
    pub sha256: String,
    pub bytes: u64,
    /// When it was pulled, RFC 3339 in UTC.
    pub date: String,
}

/// A model that is in the store.
#[derive(Clone, Debug)]
pub struct Installed {
    pub name: Name,
    /// A `.gguf` file, or a folder.
    pub path: PathBuf,
    /// Of all its files.
    pub bytes: u64,
    /// `None`: the model was put there by hand.
    pub record: Option<Record>,
}

/// A directory of models.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// The right to change one model; given back when dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock lives as long as the file is open")] File);

impl Name {
    pub fn parse(text: &str) -> Result<Self> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        ensure!(
            plain && (1..=128).contains(&text.len()) && !text.starts_with(['.', '-']),
            "\"{text}\" is not a model name: 1 to 128 letters, digits, '.', '_' or '-', not starting with '.' or '-'"
        );
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Record {
    pub fn new(source: String, sha256: String, bytes: u64) -> Self {
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { source, sha256, bytes, date }
    }
}

impl Store {
    /// Opens (and creates) a directory of models.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).with_context(|| {
            format!(
                "cannot create the models directory {}; choose another with --models-dir or PACELINE_MODELS",
                dir.display()
            )
        })?;
        Ok(Self { dir })
    }

    /// Where models are kept unless the user says otherwise: the cache directory of the XDG base
    /// directory specification. `None`: neither variable is set to an absolute path.
    pub fn default_dir(xdg_cache_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
        let absolute = |v: Option<OsString>| v.map(PathBuf::from).filter(|p| p.is_absolute());
        let cache = absolute(xdg_cache_home).or_else(|| Some(absolute(home)?.join(".cache")))?;
        Some(cache.join("paceline").join("models"))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of a complete model.
    pub fn gguf(&self, name: &Name) -> PathBuf {
        self.dir.join(format!("{name}.gguf"))
    }

    /// The file of a model on its way. The identity (its SHA-256) is part of the name, so that a
    /// resumed download never continues other bytes.
    pub fn partial(&self, name: &Name, identity: &str) -> PathBuf {
        let short: String = identity.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        self.dir.join(format!("{name}.gguf.{short}.partial"))
    }

    /// The folder of a complete model in safetensors.
    pub fn folder(&self, name: &Name) -> PathBuf {
        self.dir.join(name.as_str())
    }

    /// The folder of a model on its way; see [`Self::partial`].
    pub fn partial_folder(&self, name: &Name, identity: &str) -> PathBuf {
        let short: String = identity.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        self.dir.join(format!("{name}.{short}.partial"))
    }

    /// Where downloaded parts of a model wait to be joined.
    pub fn parts(&self, name: &Name) -> PathBuf {
        self.dir.join("parts").join(name.as_str())
    }

    /// A model of the store, if it is there.
    pub fn find(&self, name: &Name) -> Result<Option<Installed>> {
        let file = self.gguf(name);
        let (path, bytes) = match fs::metadata(&file) {
            Ok(meta) if meta.is_file() => (file, meta.len()),
            Ok(_) => bail!("{} is not a file; move it away and pull the model again", file.display()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let folder = self.folder(name);
                if !is_model(&folder) {
                    return Ok(None);
                }
                let bytes = folder_bytes(&folder)?;
                (folder, bytes)
            }
            Err(e) => return Err(e).with_context(|| format!("cannot look at {}", file.display())),
        };
        let record = self.record(name)?;
        if let Some(record) = &record {
            ensure!(
                record.bytes == bytes,
                "{} has {bytes} bytes, {} were pulled: delete it and run `paceline models pull {name}`",
                path.display(),
                record.bytes
            );
        }
        Ok(Some(Installed { name: name.clone(), path, bytes, record }))
    }

    /// All models of the store, by name.
    pub fn list(&self) -> Result<Vec<Installed>> {
        let mut found = Vec::new();
        let entries =
            fs::read_dir(&self.dir).with_context(|| format!("cannot list {}", self.dir.display()))?;
        for entry in entries {
            let file = entry.with_context(|| format!("cannot list {}", self.dir.display()))?.file_name();
            let Some(file) = file.to_str() else { continue };
            let stem = match file.strip_suffix(".gguf") {
                Some(stem) => stem,
                // Once, although a file of the same name goes before the folder.
                None if is_model(&self.dir.join(file)) && !self.dir.join(format!("{file}.gguf")).exists() => {
                    file
                }
                None => continue,
            };
            if stem.ends_with(".partial") {
                continue;
            }
            let Ok(name) = Name::parse(stem) else { continue };
            found.extend(self.find(&name)?);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Makes a complete, checked file or folder the model `name`. The record is written first: a model
    /// without one would be taken for one put there by hand.
    pub fn install(&self, name: &Name, complete: &Path, record: &Record) -> Result<PathBuf> {
        self.write_record(name, record)?;
        File::open(complete)
            .and_then(|f| f.sync_all())
            .with_context(|| format!("cannot flush {}", complete.display()))?;
        let path = if complete.is_dir() { self.folder(name) } else { self.gguf(name) };
        fs::rename(complete, &path).with_context(|| format!("cannot rename to {}", path.display()))?;
        Ok(path)
    }

    pub fn write_record(&self, name: &Name, record: &Record) -> Result<()> {
        let path = self.record_path(name);
        let partial = path.with_extension("json.partial");
        let text = serde_json::to_string_pretty(record)? + "\n";
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Waits for the right to change a model. `waiting` is called once if another process has it.
    pub async fn lock(&self, name: &Name, deadline: Duration, waiting: impl FnOnce()) -> Result<Lock> {
        let path = self.dir.join(format!(".{name}.lock"));
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let end = Instant::now() + deadline;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
            ensure!(
                Instant::now() < end,
                "another process has been pulling {name} for more than {}; stop it, or wait and run this again",
                humantime::format_duration(deadline)
            );
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Refuses to start what will not fit.
    pub fn require_space(&self, bytes: u64) -> Result<()> {
        let stat = rustix::fs::statvfs(&self.dir)
            .with_context(|| format!("cannot read the free space of {}", self.dir.display()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        ensure!(
            free >= bytes,
            "{} more are needed in {}, {} are free: make room, or choose another place with --models-dir",
            indicatif::DecimalBytes(bytes),
            self.dir.display(),
            indicatif::DecimalBytes(free)
        );
        Ok(())
    }

    fn record_path(&self, name: &Name) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    fn record(&self, name: &Name) -> Result<Option<Record>> {
        let path = self.record_path(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let record = serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged: delete it and run `paceline models pull {name}`", path.display())
        })?;
        Ok(Some(record))
    }
}

/// Whether a folder is a model's, and not `parts` or something else that lies there.
pub(super) fn is_model(path: &Path) -> bool {
    path.join("config.json").is_file()
}

/// Bytes of the files directly in a folder.
pub(super) fn folder_bytes(folder: &Path) -> Result<u64> {
    let cannot = || format!("cannot list {}", folder.display());
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(cannot)? {
        let meta = entry.and_then(|entry| fs::metadata(entry.path())).with_context(cannot)?;
        if meta.is_file() {
            bytes += meta.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
