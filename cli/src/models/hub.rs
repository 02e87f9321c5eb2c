//! Fetching a GGUF file from the Hugging Face hub, with resume.
//!
//! The crate `hf-hub` knows the hub's addresses, tokens (`HF_TOKEN`), retries and mirrors
//! (`HF_ENDPOINT`). Here: which file, at which commit, and continuing where an earlier run stopped.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFRepository, RepoTypeModel};

use super::catalogue::HubFile;
use super::progress::Stage;

/// A connection that is not there by then is not there.
const CONNECT: Duration = Duration::from_secs(5);
/// Between two pieces of a download.
const READ: Duration = Duration::from_secs(60);
/// Interrupted downloads are continued so often before the user is asked to.
const CONTINUES: u32 = 5;
/// Before a try, times the number of failed ones.
const PAUSE: Duration = Duration::from_millis(250);

/// The hub, or a mirror of it.
#[derive(Debug)]
pub(crate) struct Hub {
    client: HFClient,
    /// Asks for headers only, and does not follow the hub's redirect to its storage.
    head: reqwest::Client,
}

/// One file at one commit: what a download continues must not change under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub file: HubFile,
    pub bytes: u64,
    /// Of the file's content; `None` where the hub does not tell (files outside its large-file
    /// storage, repositories that need a token).
    pub sha256: Option<String>,
    pub commit: String,
}

impl Hub {
    /// `endpoint`: `None` is `HF_ENDPOINT`, or huggingface.co.
    pub(crate) fn new(endpoint: Option<&str>) -> Result<Self> {
        let http = || {
            reqwest::Client::builder()
                .user_agent(concat!("paceline/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT)
                .read_timeout(READ)
        };
        let mut builder =
            HFClient::builder().client(http().build()?).cache_enabled(false).retry_max_attempts(2);
        if let Some(endpoint) = endpoint {
            builder = builder.endpoint(endpoint);
        }
        let client =
            builder.build().context("the hub's address or token is not usable (HF_ENDPOINT, HF_TOKEN)")?;
        let head = http().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { client, head })
    }

    pub(crate) fn endpoint(&self) -> &str {
        self.client.endpoint()
    }

    /// Finds a GGUF file of a repository; without `file` there must be exactly one.
    pub(crate) async fn locate(&self, repo: &str, file: Option<&str>, deadline: Duration) -> Result<Located> {
        let located = tokio::time::timeout(deadline, self.look(repo, file)).await;
        located
            .with_context(|| format!("{} gave no answer within {} s", self.endpoint(), deadline.as_secs()))?
    }

    async fn look(&self, repo: &str, file: Option<&str>) -> Result<Located> {
        let handle = self.repository(repo);
        let info = handle.info().send().await.with_context(|| format!("hf:{repo} at {}", self.endpoint()))?;
        let commit = info.sha.with_context(|| format!("hf:{repo}: the hub names no commit"))?;
        let tree = handle.list_tree().revision(commit.clone()).recursive(true).send()?;
        let files: Vec<(String, u64)> = tree
            .try_filter_map(|entry| async move {
                Ok(match entry {
                    RepoTreeEntry::File { path, size, .. } if path.ends_with(".gguf") => Some((path, size)),
                    _ => None,
                })
            })
            .try_collect()
            .await
            .with_context(|| format!("the files of hf:{repo}"))?;
        let (path, bytes) = choose(repo, file, &files)?;
        let sha256 = self.linked_sha256(repo, &commit, &path).await;
        Ok(Located { file: HubFile { repo: repo.to_owned(), file: path }, bytes, sha256, commit })
    }

    /// The hub names the SHA-256 of a large file in a header of its redirect; `hf-hub` 1.0 does not
    /// hand it out.
    async fn linked_sha256(&self, repo: &str, commit: &str, path: &str) -> Option<String> {
        let url = format!("{}/{repo}/resolve/{commit}/{path}", self.endpoint());
        let answer = self.head.head(url).send().await.ok()?;
        let tag = answer.headers().get("x-linked-etag")?.to_str().ok()?.trim_matches('"').to_owned();
        (tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit())).then(|| tag.to_lowercase())
    }

    /// Brings `partial` to the file's full length, continuing what is there.
    pub(crate) async fn download(&self, located: &Located, partial: &Path, stage: &Stage) -> Result<()> {
        let mut tries = 0;
        loop {
            let before = length(partial);
            if before >= located.bytes {
                ensure!(before == located.bytes, "{} is longer than the file; delete it", partial.display());
                return Ok(());
            }
            stage.set(before);
            let Err(error) = self.stream(located, partial, before, stage).await else { continue };
            // Progress resets the count: a slow line that keeps breaking still gets there.
            tries = if length(partial) > before { 1 } else { tries + 1 };
            if tries >= CONTINUES {
                let what = located.file.describe();
                return Err(error)
                    .with_context(|| format!("{what} broke off; run this again to continue it"));
            }
            tokio::time::sleep(PAUSE * tries).await;
        }
    }

    async fn stream(&self, located: &Located, partial: &Path, from: u64, stage: &Stage) -> Result<()> {
        let HubFile { repo, file } = &located.file;
        let handle = self.repository(repo);
        let request = handle.download_file_stream().filename(file).revision(located.commit.clone());
        let start = request.range(from..located.bytes).send();
        let (_, mut pieces) = tokio::time::timeout(READ, start).await.context("the hub gave no answer")??;
        let mut out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(partial)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        let mut at = from;
        while let Some(piece) =
            tokio::time::timeout(READ, pieces.next()).await.context("the hub went silent")?
        {
            let piece = piece?;
            at += piece.len() as u64;
            // A mirror without ranges would send the file from its start.
            ensure!(at <= located.bytes, "the hub sent more than the file; does this mirror support ranges?");
            out.write_all(&piece).with_context(|| format!("cannot write {}", partial.display()))?;
            stage.set(at);
        }
        ensure!(at == located.bytes, "the hub closed the connection at {at} of {} bytes", located.bytes);
        Ok(())
    }

    fn repository(&self, repo: &str) -> HFRepository<RepoTypeModel> {
        let (owner, name) = hf_hub::split_id(repo);
        self.client.model(owner, name)
    }
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// Which of a repository's GGUF files is meant.
fn choose(repo: &str, wanted: Option<&str>, files: &[(String, u64)]) -> Result<(String, u64)> {
    let listed = || files.iter().map(|(path, _)| format!("\n  hf:{repo}:{path}")).collect::<String>();
    let found = match (wanted, files) {
        (Some(wanted), _) => match files.iter().find(|(path, _)| path == wanted) {
            Some(found) => found.clone(),
            None if files.is_empty() => {
                bail!("hf:{repo} holds no GGUF file; Paceline reads GGUF only so far")
            }
            None => bail!("hf:{repo} has no file \"{wanted}\"; its GGUF files are:{}", listed()),
        },
        (None, [one]) => one.clone(),
        (None, []) => bail!("hf:{repo} holds no GGUF file; Paceline reads GGUF only so far"),
        (None, _) => bail!("hf:{repo} holds {} GGUF files; name one:{}", files.len(), listed()),
    };
    ensure!(
        !is_split(&found.0),
        "{} is one part of a split GGUF; reading those is not built yet, choose a file in one piece",
        found.0
    );
    Ok(found)
}

/// `model-00001-of-00003.gguf`.
fn is_split(path: &str) -> bool {
    let Some(stem) = path.strip_suffix(".gguf") else { return false };
    let mut words = stem.rsplit('-');
    let number = |w: Option<&str>| w.is_some_and(|w| w.len() == 5 && w.bytes().all(|b| b.is_ascii_digit()));
    number(words.next()) && words.next() == Some("of") && number(words.next())
}

#[cfg(test)]
pub(crate) mod tests;
