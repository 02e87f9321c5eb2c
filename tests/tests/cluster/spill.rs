//! Pages that the cache had no room for come back from a file; damaged ones are found, and computed again.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::time::Duration;

use super::nodes::{Target, Toy, VOCAB};
use super::question::Question;
use crate::support::flip_bits;

/// Texts that begin differently.
fn prompt(n: u32) -> Vec<u32> {
    let token = |i: u32| ((u64::from(n) << 32) | u64::from(i)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..300).map(|i| token(i + 1) as u32 % VOCAB).collect()
}

/// A counter of this process; other tests of it may add to it.
fn count(name: &str, label: &str) -> f64 {
    let (_, text) = telemetry::meters().render().unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn start(folder: &Path) -> Target {
    // Forty pages; a text takes twenty.
    let toy = Toy { slots: 1, context: 640, step: Duration::from_millis(1), ..Toy::TARGET };
    let mut config = worker::Config::default();
    config.rank.kv_spill = Some(rank::Spill {
        folder: folder.into(),
        bytes: daemon::config::ByteSize::mib(1),
        within: Duration::from_secs(10),
    });
    Target::with("worker", toy, config).await
}

/// Tokens of each text that the cache served.
async fn round(worker: &Target) -> Vec<u32> {
    let mut cached = Vec::new();
    for n in 0..4 {
        let end = Question::new(&prompt(n), 20).ask(worker).await.right_end().await;
        cached.push(end.usage.cached_tokens);
    }
    cached
}

/// Pages that go, come back, and come back damaged: for tests that look at metrics.
pub(super) async fn some() {
    let folder = tempfile::tempdir().unwrap();
    let worker = start(folder.path()).await;
    round(&worker).await;
    round(&worker).await;
    flip_bits(folder.path());
    round(&worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_evicted_comes_back_and_a_flipped_bit_is_a_shorter_hit() {
    let folder = tempfile::tempdir().unwrap();
    let worker = start(folder.path()).await;
    let restored = || count("paceline_kv_restored_pages_total", "");
    let damaged = || count("paceline_kv_spill_faults_total", "\"damaged\"");
    let (before, faults) = (restored(), damaged());
    assert_eq!(round(&worker).await, [0; 4]);
    // Two texts fit the cache, four do not.
    assert_eq!(round(&worker).await, [288; 4], "all but the last tokens");
    let came = restored() - before;
    assert!(came >= 36.0, "{came} pages came back");
    assert_eq!(damaged() - faults, 0.0);
    assert_eq!(flip_bits(folder.path()), 1);
    let cached = round(&worker).await;
    assert!(cached.iter().any(|cached| *cached < 288), "{cached:?}");
    assert!(damaged() - faults > 0.0);
    worker.is_well().await;
}
