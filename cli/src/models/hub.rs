//! Fetching files from the Hugging Face hub, with resume.
//!
//! The crate `hf-hub` knows the hub's addresses and sends the token. Here: which file, at which
//! commit, and continuing where an earlier run stopped (`docs/decisions/0010-hf-hub-without-xet.md`).

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use futures::StreamExt;
use hf_hub::api::tokio::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Response, StatusCode, Url};

use super::catalogue::HubFile;
use super::progress::Stage;

mod access;
mod listing;

use access::Access;
use listing::Listing;

/// From asking to the head of the answer: connecting, TLS and redirects are in it, because the
/// crate's client has no deadline of its own.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two pieces of a download.
const READ: Duration = Duration::from_secs(60);
/// Interrupted downloads are continued so often before the user is asked to.
const CONTINUES: u32 = 5;
/// Before a try, times the number of failed ones.
const PAUSE: Duration = Duration::from_millis(250);
/// A listing of a hundred thousand files is smaller.
const MAX_LISTING: usize = 32 << 20;

/// The hub, or a mirror of it. Not `Debug`: the crate's client would print the token.
pub(crate) struct Hub {
    api: Api,
    endpoint: String,
}

/// One file at one commit: what a download continues must not change under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub file: HubFile,
    pub bytes: u64,
    /// Of the file's content; `None` where the hub does not tell (files outside its large-file
    /// storage).
    pub sha256: Option<String>,
    /// A hexadecimal hash.
    pub commit: String,
}

/// What a repository's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A GGUF file.
    File(Located),
    /// The files of a model in safetensors; their names hold no slash.
    Folder(Vec<Located>),
}

impl Hub {
    /// `endpoint`: `None` is `HF_ENDPOINT`, or huggingface.co.
    pub(crate) fn new(endpoint: Option<&str>) -> Result<Self> {
        // What is no UTF-8 becomes a value that is refused, not one that is overlooked.
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self::open(Access::new(endpoint, variable)?)
    }

    fn open(access: Access) -> Result<Self> {
        // Files go to our store; the crate's own default is a panic where there is no home directory.
        let unused = Cache::new("/nonexistent/hub".into());
        let api = ApiBuilder::from_cache(unused)
            .with_endpoint(access.endpoint.clone())
            .with_token(access.token)
            .with_user_agent("paceline", env!("CARGO_PKG_VERSION"))
            .build()
            .context("the hub's client cannot be made; is the token (HF_TOKEN) one line of ASCII?")?;
        Ok(Self { api, endpoint: access.endpoint })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Finds a GGUF file of a repository; without `file` there must be exactly one.
    pub(crate) async fn locate(&self, repo: &str, file: Option<&str>, deadline: Duration) -> Result<Located> {
        let look = async { self.list(repo).await?.locate(repo, file) };
        let located = tokio::time::timeout(deadline, look).await;
        located
            .with_context(|| format!("{} gave no answer within {} s", self.endpoint(), deadline.as_secs()))?
    }

    /// Finds what is meant: the GGUF file, or the files of a model in safetensors.
    pub(crate) async fn find(&self, repo: &str, file: Option<&str>, deadline: Duration) -> Result<Found> {
        let look = async { self.list(repo).await?.find(repo, file) };
        let found = tokio::time::timeout(deadline, look).await;
        found
            .with_context(|| format!("{} gave no answer within {} s", self.endpoint(), deadline.as_secs()))?
    }

    /// The files of the main branch, with their sizes and hashes, in one answer.
    async fn list(&self, repo: &str) -> Result<Listing> {
        let what = || format!("hf:{repo} at {}", self.endpoint());
        let handle = self.api.model(repo.to_owned());
        let ask = || handle.info_request().query(&[("blobs", "true")]).send();
        let mut answer = ask().await.with_context(what)?;
        if is_momentary(answer.status()) {
            tokio::time::sleep(PAUSE).await;
            answer = ask().await.with_context(what)?;
        }
        let mut pieces = accepted(answer).with_context(what)?.bytes_stream();
        let mut text = Vec::new();
        while let Some(piece) = pieces.next().await {
            text.extend_from_slice(&piece.with_context(what)?);
            ensure!(text.len() <= MAX_LISTING, "{}: the listing has more than {MAX_LISTING} bytes", what());
        }
        Listing::parse(&text).with_context(what)
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
        // The crate's client drops the token when the hub redirects to its storage.
        let request = self.api.client().get(self.address(located)?);
        let request = request.header(RANGE, format!("bytes={from}-{}", located.bytes - 1));
        let answer =
            tokio::time::timeout(ANSWER, request.send()).await.context("the hub gave no answer")??;
        let answer = accepted(answer)?;
        ensure!(
            from == 0 || starts_at(&answer, from),
            "the hub does not continue at byte {from}, as a mirror without ranges; choose another \
             (HF_ENDPOINT), or delete {} to start over",
            partial.display()
        );
        let mut out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(partial)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        let mut pieces = answer.bytes_stream();
        let mut at = from;
        while let Some(piece) =
            tokio::time::timeout(READ, pieces.next()).await.context("the hub went silent")?
        {
            let piece = piece?;
            at += piece.len() as u64;
            ensure!(at <= located.bytes, "the hub sent more than the file's {} bytes", located.bytes);
            out.write_all(&piece).with_context(|| format!("cannot write {}", partial.display()))?;
            stage.set(at);
        }
        ensure!(at == located.bytes, "the hub closed the connection at {at} of {} bytes", located.bytes);
        Ok(())
    }

    /// The crate's address of a file; it leaves the escaping of names to us.
    fn address(&self, located: &Located) -> Result<Url> {
        let HubFile { repo, file } = &located.file;
        let handle = self.at_commit(repo, &located.commit);
        let mut url = Url::parse(&handle.url("")).context("the address of the file")?;
        let mut segments = url.path_segments_mut().map_err(|()| anyhow!("the hub's address has no path"))?;
        segments.pop_if_empty().extend(file.split('/'));
        drop(segments);
        Ok(url)
    }

    fn at_commit(&self, repo: &str, commit: &str) -> ApiRepo {
        self.api.repo(Repo::with_revision(repo.to_owned(), RepoType::Model, commit.to_owned()))
    }
}

/// An answer that carries what was asked for; otherwise what to do about it.
fn accepted(answer: Response) -> Result<Response> {
    let status = answer.status();
    ensure!(
        status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN,
        "the hub answers {status}: there is no such thing, or it is private or gated; \
         set HF_TOKEN to a token of an account that may read it"
    );
    ensure!(status != StatusCode::NOT_FOUND, "the hub answers {status}: check the spelling");
    ensure!(!is_momentary(status), "the hub answers {status}; try again later");
    ensure!(status.is_success(), "the hub answers {status}");
    Ok(answer)
}

/// Worth asking again.
fn is_momentary(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

/// Whether this is the part of the file from byte `from` on.
fn starts_at(answer: &Response, from: u64) -> bool {
    let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    answer.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

#[cfg(test)]
pub(crate) mod tests;
