//! A worker group as a person starts it: two processes that share one model.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr)]

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "what `up` needs")]
mod cluster;

use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cli::client::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use cluster::{HANG, PACELINE, has_model};

const MODEL: &str = "smollm2-135m";

fn spawn(arguments: &[&str]) -> Child {
    let mut command = Command::new(PACELINE);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap()
}

/// What a process says of itself once it serves.
async fn announced(child: &mut Child) -> Value {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(HANG, lines.next_line()).await.unwrap().unwrap().unwrap();
    serde_json::from_str(&line).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_a_model_and_a_killed_one_costs_no_answer() {
    if !has_model(MODEL) {
        return;
    }
    let any = "127.0.0.1:0";
    let mut coordinator =
        spawn(&["coordinator", "--model", MODEL, "--listen", any, "--grpc-listen", any, "--supervised"]);
    let said = announced(&mut coordinator).await;
    let client = Client::new(said["http"].as_str().unwrap()).unwrap();
    let grpc = said["grpc"].as_str().unwrap().trim_start_matches("http://").to_owned();

    let folder = tempfile::tempdir().unwrap();
    // Nobody else takes it in the moment until rank 0 listens, but for bad luck.
    let port = TcpListener::bind(any).unwrap().local_addr().unwrap();
    let rank = |rank: u32| {
        let file = folder.path().join(format!("rank-{rank}.toml"));
        let config = format!(
            "[rank]\nnode = \"group-{rank}\"\nthreads = 1\ncontext = 2048\n[rank.group]\nrank = {rank}\n\
             shares = [1, 1]\naddress = \"{port}\"\nstart = \"60s\"\nwithin = \"3s\"\n"
        );
        std::fs::write(&file, config).unwrap();
        let file = file.to_str().unwrap();
        spawn(&["worker", "--config", file, "--model", MODEL, "--coordinator", &grpc, "--supervised"])
    };
    let (mut follower, mut leader) = (rank(1), rank(0));
    assert_eq!(announced(&mut leader).await["node"], "group-0");
    let ready = async {
        while client.ready().await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(HANG, ready).await.unwrap();
    let body = |n: u32, tokens: u32| {
        json!({
            "model": MODEL, "messages": [{ "role": "user", "content": format!("Tell story number {n}.") }],
            "temperature": 0.8, "seed": n, "max_tokens": tokens, "ignore_eos": true,
            "speculation": { "strategy": "none" },
        })
    };
    let of_group = client.chat(body(1, 40), |_| {}).await.unwrap().text;

    // An answer that is under way on the group when its follower is killed, and a worker of one process that came since.
    let (told, mut hears) = tokio::sync::mpsc::channel(1024);
    let broken = tokio::spawn({
        let (client, body) = (client.clone(), body(2, 200));
        let show = move |_: &_| {
            let _ = told.try_send(());
        };
        async move { client.chat(body, show).await }
    });
    for _ in 0..5 {
        timeout(HANG, hears.recv()).await.unwrap().unwrap();
    }
    let alone = ["--threads", "1", "--context", "2048"];
    let start = ["worker", "--model", MODEL, "--coordinator", &grpc, "--supervised"];
    let mut alone = spawn(&[&start[..], &alone].concat());
    announced(&mut alone).await;
    assert!(!broken.is_finished(), "the answer was too short for this test");
    let killed = Instant::now();
    follower.kill().await.unwrap();
    let answer = broken.await.unwrap().unwrap().text;
    eprintln!("the whole answer came {:.1?} after its follower was killed", killed.elapsed());
    // Rank 0's process does not outlive its group.
    assert!(!timeout(HANG, leader.wait()).await.unwrap().unwrap().success());
    assert_eq!(client.chat(body(1, 40), |_| {}).await.unwrap().text, of_group);
    assert_eq!(client.chat(body(2, 200), |_| {}).await.unwrap().text, answer, "the undisturbed text");
}
