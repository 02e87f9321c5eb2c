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

/// What happens to a rank in the middle of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    FollowerKilled,
    /// It is there, and does nothing more (SIGSTOP).
    FollowerStopped,
    LeaderStopped,
}

fn stop(child: &Child) {
    let id = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-STOP", &id]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_a_model_and_a_lost_one_costs_no_answer() {
    if !has_model(MODEL) {
        return;
    }
    for blow in [Blow::FollowerKilled, Blow::FollowerStopped, Blow::LeaderStopped] {
        strike(blow).await;
    }
}

async fn strike(blow: Blow) {
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
             shares = [1, 1]\naddress = \"{port}\"\nstart = \"60s\"\n"
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

    // An answer that is under way on the group when the blow falls, and a worker of one process that came since.
    let began = Instant::now();
    let (told, mut hears) = tokio::sync::mpsc::channel(1024);
    let broken = tokio::spawn({
        let (client, body) = (client.clone(), body(2, 400));
        let show = move |_: &_| {
            let _ = told.try_send(Instant::now());
        };
        async move { client.chat(body, show).await }
    });
    let first = timeout(HANG, hears.recv()).await.unwrap().unwrap() - began;
    for _ in 0..4 {
        timeout(HANG, hears.recv()).await.unwrap().unwrap();
    }
    let alone = ["--threads", "1", "--context", "2048"];
    let start = ["worker", "--model", MODEL, "--coordinator", &grpc, "--supervised"];
    let mut alone = spawn(&[&start[..], &alone].concat());
    announced(&mut alone).await;
    assert!(!broken.is_finished(), "the answer was too short for this test");
    let (struck, said) = (Instant::now(), hears.len());
    match blow {
        Blow::FollowerKilled => follower.kill().await.unwrap(),
        Blow::FollowerStopped => stop(&follower),
        Blow::LeaderStopped => stop(&leader),
    }
    let answer = timeout(HANG, broken).await.unwrap().unwrap().unwrap().text;
    // What was on its way still comes: the longest pause is the one that the blow made.
    let (mut last, mut pause, mut after) = (struck, Duration::ZERO, 0);
    while let Some(heard) = hears.recv().await {
        pause = pause.max(heard.saturating_duration_since(last));
        last = last.max(heard);
        after += 1;
    }
    assert!(after > said + 20, "{blow:?}: the answer was nearly over");
    // Besides, its prompt and what it had said are computed again.
    let bound = Duration::from_secs(5) + 4 * first;
    eprintln!("{blow:?}: no token for {pause:.1?}; the first one of a prompt takes {first:.1?}");
    assert!(pause < bound, "{blow:?}: {pause:?}, at most {bound:?}");
    // No rank's process outlives its group.
    let other = if blow == Blow::LeaderStopped { &mut follower } else { &mut leader };
    assert!(!timeout(HANG, other.wait()).await.unwrap().unwrap().success(), "{blow:?}");
    assert_eq!(client.chat(body(1, 40), |_| {}).await.unwrap().text, of_group, "{blow:?}");
    let undisturbed = client.chat(body(2, 400), |_| {}).await.unwrap().text;
    assert_eq!(undisturbed, answer, "{blow:?}: the undisturbed text");
}
