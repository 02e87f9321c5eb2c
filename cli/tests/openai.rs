//! The official `openai` Python client against `paceline up`: the contract suite of `tests/openai/`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr)]

#[path = "support/cluster.rs"]
mod cluster;

use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use cluster::{Cluster, HANG, has_model, skip};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/openai.sh");
/// Under a minute on two idle cores; tests beside it may slow it down.
const SUITE: Duration = Duration::from_secs(400);
/// Few choices at once, so that it costs little to fill the server.
const SMALL: (&str, &str) = ("PACELINE_MAX_IN_FLIGHT", "8");
/// Each suite wants the whole machine.
static ONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_finds_its_contract_kept() {
    suite("smollm2-135m", "none", &[SMALL], "not drafts and not calls and not deadline").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_finds_its_contract_kept_beside_a_drafter() {
    suite("smollm2-135m", "smollm2-135m", &[SMALL], "drafts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_sees_the_servers_timeout() {
    let environment = [("PACELINE_REQUEST_TIMEOUT", "2s")];
    suite("smollm2-135m", "none", &environment, "deadline").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_sees_a_model_call_tools() {
    suite("coder-0.5b", "none", &[], "calls").await;
}

/// Runs the tests that `marks` select against a cluster of its own. All must pass: what a variable could
/// skip is given here.
async fn suite(target: &str, drafter: &str, environment: &[(&str, &str)], marks: &str) {
    if !(has_model(target) && has_packages().await) {
        return;
    }
    let _one = ONE.lock().await;
    let mut cluster = Cluster::start(target, drafter, environment).await;
    // Every process's, out of the lines of its table.
    let metrics: Vec<&str> =
        cluster.said.split_whitespace().filter(|word| word.ends_with("/metrics")).collect();
    let python = Command::new(SCRIPT)
        .args(["-m", marks, "--tb=short", "--durations=5"])
        .env("OPENAI_BASE_URL", format!("{}/v1", cluster.url))
        .env("PACELINE_METRICS", metrics.join(" "))
        .env("NO_PROXY", "127.0.0.1")
        .env_remove("OPENAI_API_KEY")
        .env_remove("OPENAI_MODEL")
        .envs(environment.iter().copied())
        .kill_on_drop(true)
        .output();
    let output = timeout(SUITE, python).await.expect("the suite hangs").unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let counts = out.lines().find_map(|line| line.strip_prefix("contract: ")).unwrap_or_default();
    eprintln!("{target}, {marks:?}: {counts}");
    assert!(output.status.success() && counts.ends_with("failed=0 error=0 skipped=0"), "{out}\n{err}");
    // After all of that the cluster still ends as it should.
    let pid = cluster.up.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(timeout(HANG, cluster.up.wait()).await.unwrap().unwrap().success());
}

/// Whether the Python packages were fetched; a test does not fetch.
async fn has_packages() -> bool {
    let fetched = Command::new(SCRIPT).arg("--fetched").output().await;
    fetched.is_ok_and(|output| output.status.success())
        || skip("the Python packages of tests/openai are not there; run `scripts/openai.sh --fetch`")
}
