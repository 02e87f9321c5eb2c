//! A model that two ranks share gives the text of one, and a rank that is lost costs no answer.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cli::client::Client;
use cluster::Role;
use model::{CpuModel, CpuOptions, Group, GroupPlan, Options, PageBudget};
use serde_json::json;
use transport::local::{LocalFabric, Network};

use super::exactness::MODEL;
use super::model::Weights;
use crate::support::{coordinator, eventually, model_file, start_worker};

const OPTIONS: Options = Options {
    context: Some(2048),
    vocab: None,
    slots: 8,
    pages: PageBudget::Pages(600),
    threads: 1,
    heads: None,
};

fn plan() -> GroupPlan {
    GroupPlan {
        memory: vec![1, 1],
        said: "smollm2".into(),
        start: Duration::from_secs(60),
        within: Duration::from_secs(3),
    }
}

/// SmolLM2 has 3 KV heads: the ranks have 2 and 1, and the other way round in the next layer.
fn follower(path: PathBuf, fabric: LocalFabric) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let group = Group::follow(&fabric, "rank-0", 1, plan()).unwrap();
        let mut model = CpuModel::load_in(&path, &OPTIONS, &CpuOptions::default(), group).unwrap();
        // An error where the network is cut.
        let _ = model.follow();
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ranks_give_the_text_of_one_and_a_lost_one_costs_no_answer() {
    let Some(path) = model_file("smollm2-135m") else { return };
    let weights = Weights::open(MODEL, &path);
    let running = coordinator(MODEL, &path).await;
    let client = Client::new(&format!("http://{}", running.http_addr())).unwrap();
    let start = async |id: &str, network: Option<Network>| {
        let (path, vocab) = (path.clone(), text::Tokenizer::open(&path).unwrap().vocab_len());
        let make = move || {
            let options = Options { vocab: Some(vocab), ..OPTIONS };
            match network {
                None => CpuModel::load(&path, &options).unwrap(),
                Some(network) => {
                    let group = Group::lead(&network.fabric("rank-0"), plan(), 1).unwrap();
                    CpuModel::load_in(&path, &options, &CpuOptions::default(), group).unwrap()
                }
            }
        };
        let identity = weights.identity(Role::Worker, id);
        let grpc = Some(running.grpc_addr());
        start_worker(worker::Config::default(), identity, weights.constraints(), grpc, make).await
    };
    let body = |n: u32, tokens: u32| {
        json!({
            "model": MODEL, "messages": [{ "role": "user", "content": format!("Tell story number {n}.") }],
            "temperature": 0.8, "seed": n, "max_tokens": tokens, "speculation": { "strategy": "none" },
        })
    };
    let network = Network::new();
    let following = follower(path.clone(), network.fabric("rank-1"));
    let group = start("group", Some(network.clone())).await;
    eventually("the group joins", || async { client.ready().await.is_ok() }).await;
    let mut of_group = Vec::new();
    for n in 0..3 {
        of_group.push(client.chat(body(n, 40), |_| {}).await.unwrap().text);
    }
    // The answer that will lose its worker: alone on the group until it is under way.
    let (told, mut hears) = tokio::sync::mpsc::channel(1024);
    let broken = tokio::spawn({
        let (client, body) = (client.clone(), body(9, 120));
        async move {
            client
                .chat(body, move |_| {
                    let _ = told.try_send(());
                })
                .await
        }
    });
    for _ in 0..5 {
        hears.recv().await.unwrap();
    }
    let alone = start("alone", None).await;
    network.kill("rank-1");
    let killed = Instant::now();
    let answer = broken.await.unwrap().unwrap();
    println!("answered {:?} after a rank was killed", killed.elapsed());
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
