//! RAPID on real weights: a drafter with a context that holds a part of the prompt, and a target pulled towards it.

use cluster::Role;
use serde_json::{Value, json};

use super::exactness::{Cluster, DRAWS, MODEL, speculation, texts};
use super::model::Weights;
use crate::support::{model_file, start_drafter};

/// A document of some 900 tokens in which one sentence answers the question.
fn prompt() -> String {
    let facts = [
        "The mill by the river has ground corn since the year of the great flood.",
        "On market days the square is full of carts, and the baker sells out before noon.",
        "The school has two rooms and a bell that was cast in another town.",
        "In winter the pass is closed and letters come once a week.",
        "The old captain keeps bees behind the harbour wall.",
    ];
    let mut document: Vec<String> =
        (0..40).map(|i| format!("Note {}. {}", i + 1, facts[i % facts.len()])).collect();
    document.insert(23, "Note 99. The lighthouse keeper of Varnholm is called Matilda Oakes.".into());
    document.join("\n")
        + "\n\nQuestion: What is the name of the lighthouse keeper of Varnholm? Answer in one sentence."
}

fn bodies(fields: &Value) -> Vec<Value> {
    let body = |draw: (f64, u64)| {
        let mut body = json!({
            "model": MODEL, "messages": [{ "role": "user", "content": prompt() }],
            "temperature": draw.0, "seed": draw.1, "max_tokens": 24,
        });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    DRAWS.map(body).to_vec()
}

fn rapid(eta: f64, rule: &str) -> Value {
    json!({
        "quality": "approximate",
        "speculation": {
            "strategy": "rapid", "k": 4, "deadline_ms": 5000, "eta": eta, "rule": rule,
            "retrieval": { "head": 8, "question": 48, "chunk": 32, "budget": 128 },
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_pulled_towards_a_drafter_that_reads_a_part() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let cluster = Cluster::start(&weights, 512).await;
    let plain = cluster.ask(bodies(&json!({ "speculation": { "strategy": "none" } })), 1).await;
    let plain = texts(&plain);

    // Its context holds a third of the prompt.
    let identity = weights.identity(Role::Drafter, "drafter-small");
    let grpc = Some(cluster.grpc());
    let drafter =
        start_drafter(drafter::Config::default(), identity, weights.constraints(), grpc, weights.short(384))
            .await;
    cluster.has_drafter().await;

    // Without a pull it is ordinary speculation, to the byte.
    let answers = cluster.ask(bodies(&rapid(0.0, "coupled")), 1).await;
    assert_eq!(texts(&answers), plain);
    let (drafted, accepted, _) = speculation(&answers);
    assert!(accepted > 5 && drafted > accepted, "{accepted} of {drafted}");
    assert!(answers.iter().all(|a| a.speculation["augmented_tokens"].is_null()));

    for rule in ["coupled", "rejection"] {
        let answers = cluster.ask(bodies(&rapid(20.0, rule)), 1).await;
        for answer in &answers {
            let augmented = answer.speculation["augmented_tokens"].as_u64().unwrap();
            assert!(augmented > 5, "{rule}: {:?}", answer.speculation);
            assert_eq!(answer.speculation["strategy"], "rapid");
            assert!(!answer.text.is_empty());
        }
        let (_, pulled, _) = speculation(&answers);
        assert!(pulled > accepted / 2, "{rule}: {pulled} accepted, {accepted} without a pull");
    }
    // A drafter with the whole prompt has no place for it: it refuses, and the answer comes without.
    let ordinary = json!({ "speculation": { "strategy": "lockstep", "k": 4 } });
    let answers = cluster.ask(bodies(&ordinary), 1).await;
    assert_eq!((texts(&answers), speculation(&answers).1), (plain, 0));
    assert_eq!(drafter.drain().await.failed, []);
    cluster.stop().await;
}
