//! Nodes of a real cluster in this process, over real gRPC on loopback, that tests can kill, drain,
//! pause and cut off.

mod byte_model;
mod node;
#[cfg(target_os = "linux")]
mod spilled;

pub(crate) use byte_model::{BYTES, byte_model};
pub(crate) use node::{
    Node, coordinator, coordinator_with, identity, start_drafter, start_worker, start_worker_over,
};
pub(crate) use proxy::{Link, Proxy};
#[cfg(target_os = "linux")]
pub(crate) use spilled::flip_bits;

use std::path::PathBuf;
use std::time::Duration;

/// Long enough that only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// The file of a model in the store, or `None` when it is not here: then the test says that it skips,
/// and fails if everything is required (CI).
#[expect(clippy::disallowed_methods, clippy::print_stderr, reason = "a test binary is a process edge")]
pub(crate) fn model_file(name: &str) -> Option<PathBuf> {
    let store = std::env::var_os("PACELINE_MODELS").map(PathBuf::from).or_else(|| {
        cli::models::Store::default_dir(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
    });
    let missing = match store.map(|store| store.join(format!("{name}.gguf"))) {
        Some(path) if path.is_file() => return Some(path),
        Some(path) => format!("{} is not there: run `paceline models pull {name}`", path.display()),
        None => "no place for models: set HOME or PACELINE_MODELS".to_owned(),
    };
    let required = std::env::var("PACELINE_REQUIRE").is_ok_and(|v| v == "all");
    assert!(!required, "{missing}");
    eprintln!("SKIP: {missing}");
    None
}

/// Asks until the answer is yes; panics with `what` when it never is.
pub(crate) async fn eventually(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + HANG;
    while !ask().await {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
