//! A model that two ranks share gives the text of one, and a rank that is lost costs no answer.

use std::time::{Duration, Instant};

use cli::client::Client;
use cluster::Role;
use serde_json::json;
use transport::local::Network;

use super::exactness::MODEL;
use super::hand_over::count;
use super::model::Weights;
use crate::support::{coordinator, eventually, model_file, start_worker};

#[tokio::test(flavor = "multi_thread")]
async fn two_ranks_give_the_text_of_one_and_a_lost_one_costs_no_answer() {
    let Some(path) = model_file("smollm2-135m") else { return };
    let weights = Weights::open(MODEL, &path);
    let running = coordinator(MODEL, &path).await;
    let client = Client::new(&format!("http://{}", running.http_addr())).unwrap();
    let grpc = Some(running.grpc_addr());
    let identity = |id| weights.identity(Role::Worker, id);
    let body = |n: u32, tokens: u32| {
        json!({
            "model": MODEL, "messages": [{ "role": "user", "content": format!("Tell story number {n}.") }],
            "temperature": 0.8, "seed": n, "max_tokens": tokens, "speculation": { "strategy": "none" },
        })
    };
    let network = Network::new();
    let (make, following) = weights.shared(&network);
    let config = worker::Config::default();
    let group = start_worker(config.clone(), identity("group"), weights.constraints(), grpc, make).await;
    eventually("the group joins", || async { client.ready().await.is_ok() }).await;
    let mut of_group = Vec::new();
    for n in 0..3 {
        of_group.push(client.chat(body(n, 40), |_| {}).await.unwrap().text);
    }
    // The answer that will lose its worker: alone on the group until it is under way.
    let began = Instant::now();
    let (told, mut hears) = tokio::sync::mpsc::channel(1024);
    let broken = tokio::spawn({
        let (client, body) = (client.clone(), body(9, 120));
        async move {
            client
                .chat(body, move |_| {
                    let _ = told.try_send(Instant::now());
                })
                .await
        }
    });
    let first = hears.recv().await.unwrap() - began;
    for _ in 0..4 {
        hears.recv().await.unwrap();
    }
    let make = weights.make();
    let alone = start_worker(config, identity("alone"), weights.constraints(), grpc, make).await;
    network.kill("rank-1");
    let killed = Instant::now();
    let answer = broken.await.unwrap().unwrap();
    // What was on its way still comes: the longest pause is the one that the kill made.
    let (mut last, mut pause) = (killed, Duration::ZERO);
    while let Some(heard) = hears.recv().await {
        pause = pause.max(heard.saturating_duration_since(last));
        last = last.max(heard);
    }
    // Besides, its prompt and what it had said are computed again.
    let bound = Duration::from_secs(5) + 4 * first;
    println!("a follower killed: no token for {pause:.1?}; the first one of a prompt takes {first:.1?}");
    assert!(pause < bound, "{pause:?}, at most {bound:?}");
    following.join().unwrap();
    // Now one rank alone says them all.
    for (n, of_group) in (0..3).zip(&of_group) {
        assert_eq!(&client.chat(body(n, 40), |_| {}).await.unwrap().text, of_group, "story {n}");
    }
    assert_eq!(answer.text, client.chat(body(9, 120), |_| {}).await.unwrap().text, "the undisturbed text");
    let ended = group.kill().await;
    assert!(ended.failed.iter().any(|(task, _)| *task == "engine"), "{ended:?}");
    assert_eq!(alone.drain().await.failed, []);
}

/// SmolLM2 has three KV heads. Prompts reach over several spans, and the second ones find the first ones' pages.
#[tokio::test(flavor = "multi_thread")]
async fn four_ranks_share_sequences_and_give_the_text_of_one() {
    let Some(path) = model_file("smollm2-135m") else { return };
    let weights = Weights::open(MODEL, &path);
    let story =
        "Once more a story of a fox who owns the night, and of a heron who owns the pond. ".repeat(55);
    let body = |n: u32| {
        json!({
            "model": MODEL, "messages": [{ "role": "user", "content": format!("{story}Tell story number {n}.") }],
            "temperature": 0.8, "seed": n, "max_tokens": 12, "speculation": { "strategy": "none" },
        })
    };
    let mut texts = Vec::new();
    for ranks in [1, 4] {
        let running = coordinator(MODEL, &path).await;
        let client = Client::new(&format!("http://{}", running.http_addr())).unwrap();
        let (grpc, config) = (Some(running.grpc_addr()), worker::Config::default());
        let identity = weights.identity(Role::Worker, "group");
        let network = Network::new();
        let (make, followers) = weights.shared_by(&network, ranks);
        let group = start_worker(config, identity, weights.constraints(), grpc, make).await;
        eventually("the group joins", || async { client.ready().await.is_ok() }).await;
        let (mut of_ranks, before) = (Vec::new(), count("paceline_prefix_cache_hits_total"));
        for n in 0..2 {
            of_ranks.push(client.chat(body(n), |_| {}).await.unwrap().text);
        }
        let cached = count("paceline_prefix_cache_hits_total") - before;
        assert!(cached > 1024.0, "the second prompt finds most of the first, in three spans: {cached}");
        texts.push(of_ranks);
        assert_eq!(group.drain().await.failed, []);
        followers.into_iter().for_each(|follower| follower.join().unwrap());
    }
    assert_eq!(texts[0], texts[1]);
}
