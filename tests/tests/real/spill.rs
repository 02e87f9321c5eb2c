//! Keys and values that went to a file and came back give the text that they gave before.
#![cfg(target_os = "linux")]

use std::time::Duration;

use cli::client::Client;
use cluster::Role;
use serde_json::{Value, json};

use super::exactness::MODEL;
use super::model::{Size, Weights};
use crate::support::{Node, coordinator, eventually, flip_bits, model_file, start_worker};

fn body(n: u32) -> Value {
    let story =
        format!("Story {n}: a fox and an owl share a wood, and neither of them sleeps at night. ").repeat(9);
    json!({
        "model": MODEL, "messages": [{ "role": "user", "content": format!("{story}Who sleeps?") }],
        "temperature": 0.8, "seed": n, "max_tokens": 16, "ignore_eos": true,
        "speculation": { "strategy": "none" },
    })
}

/// A counter of this process; nothing else of this test adds to it.
fn count(name: &str) -> f64 {
    let (_, text) = telemetry::meters().render().unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn texts(client: &Client) -> Vec<String> {
    let mut texts = Vec::new();
    for n in 0..3 {
        texts.push(client.chat(body(n), |_| {}).await.unwrap().text);
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn text_does_not_depend_on_where_its_pages_were() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let running = coordinator(MODEL, &file).await;
    let client = Client::new(&format!("http://{}", running.http_addr())).unwrap();
    let start = async |id: &str, size: Size, config: worker::Config| -> Node {
        let (identity, grpc) = (weights.identity(Role::Worker, id), Some(running.grpc_addr()));
        let node = start_worker(config, identity, weights.constraints(), grpc, weights.sized(size)).await;
        eventually("the worker joins", async || client.ready().await.is_ok()).await;
        node
    };
    let mut config = worker::Config::default();
    config.engine.prefix_cache = false;
    let plain = start("plain", Size::LARGE, config).await;
    let reference = texts(&client).await;
    assert_eq!(plain.drain().await.failed, []);
    eventually("it has left", async || client.ready().await.is_err()).await;

    let folder = tempfile::tempdir().unwrap();
    let mut config = worker::Config::default();
    config.rank.kv_spill = Some(rank::Spill {
        folder: folder.path().into(),
        bytes: daemon::config::ByteSize::mib(64),
        within: Duration::from_secs(20),
    });
    // One text takes more than half of the pages.
    let worker = start("spills", Size { slots: 2, pages: 24 }, config).await;
    for round in 0..2 {
        assert_eq!(texts(&client).await, reference, "round {round}");
    }
    let restored = count("paceline_kv_restored_pages_total");
    println!("{restored} pages came back of {} spilled", count("paceline_kv_spilled_pages_total"));
    assert!(restored > 10.0, "{restored} pages came back");
    assert_eq!(count("paceline_kv_spill_faults_total{"), 0.0);
    assert_eq!(flip_bits(folder.path()), 1);
    assert_eq!(texts(&client).await, reference, "damaged");
    assert!(count("paceline_kv_spill_faults_total{") > 0.0, "it was found");
    assert_eq!(worker.drain().await.failed, []);
}
