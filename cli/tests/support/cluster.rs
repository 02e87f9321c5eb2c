//! A cluster of `paceline up`, as a person starts it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use cli::models::Store;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

pub(crate) const PACELINE: &str = env!("CARGO_BIN_EXE_paceline");

/// Long enough that only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// A running `paceline up`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) up: Child,
    /// Of the API, without a path.
    pub(crate) url: String,
    /// What `up` had printed when it was ready.
    pub(crate) said: String,
}

impl Cluster {
    /// Starts a cluster on free ports.
    pub(crate) async fn start(target: &str, drafter: &str, environment: &[(&str, &str)]) -> Self {
        let mut up = Command::new(PACELINE)
            .args(["up", "--target", target, "--drafter", drafter, "--port", "0"])
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
        let mut said = String::new();
        let reading = async {
            loop {
                let line = lines.next_line().await.unwrap().unwrap_or_else(|| panic!("`up` ended: {said}"));
                said += &line;
                said.push('\n');
                if let Some((_, rest)) = line.split_once("base_url ") {
                    return rest.split("/v1").next().unwrap().to_owned();
                }
            }
        };
        let url = timeout(HANG, reading).await.unwrap();
        Self { up, url, said }
    }
}

/// Whether the model is here; without it the test says that it skips, or fails when all is required.
pub(crate) fn has_model(model: &str) -> bool {
    let store = std::env::var_os("PACELINE_MODELS")
        .map(PathBuf::from)
        .or_else(|| Store::default_dir(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")));
    let here = store.is_some_and(|dir| dir.join(format!("{model}.gguf")).is_file());
    here || skip(&format!("{model} is not there; run `paceline models pull {model}`"))
}

/// Says why a test skips; fails when all is required.
pub(crate) fn skip(why: &str) -> bool {
    let required = std::env::var("PACELINE_REQUIRE").is_ok_and(|v| v == "all");
    assert!(!required, "{why}");
    eprintln!("SKIP: {why}");
    false
}
