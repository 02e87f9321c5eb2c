//! What a client gets when all goes well.

use std::time::Duration;

use ::cluster::{NodeRecord, Role, VocabHash};
use daemon::{Shutdown, Tasks};
use request::{Speculation, Strategy};
use serde_json::{Value, json};

use crate::cluster::{Act, Front, TEXT, ask, front};
use crate::model_file;

/// The `data:` payloads of an event stream.
pub(crate) fn events(body: &str) -> Vec<String> {
    body.lines().filter_map(|line| line.strip_prefix("data: ")).map(String::from).collect()
}

/// The text of the chunks before `[DONE]` or an error.
pub(crate) fn content(events: &[String]) -> String {
    let chunks = events.iter().filter_map(|e| serde_json::from_str::<Value>(e).ok());
    chunks.filter_map(|c| c["choices"][0]["delta"]["content"].as_str().map(String::from)).collect()
}

/// Joins a drafter, so that the scripted worker counts drafts.
async fn drafter(front: &Front) -> (Tasks, Shutdown) {
    let joined = front.join(Front::record("d0", Role::Drafter));
    front.until(|members| members.contains(&"d0".to_owned())).await;
    joined
}

#[tokio::test]
async fn a_whole_answer() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let _drafter = drafter(&front).await;
    let response = front.send(&ask(json!({"max_tokens": 100, "temperature": 0}))).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-paceline-seed"], "7");
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["id"], id);
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "bytes");
    assert_eq!(body["system_fingerprint"], "fp_1");
    assert_eq!(body["choices"][0]["message"], json!({"role": "assistant", "content": TEXT, "refusal": null}));
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let (seen, prompt) = (worker.seen(), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    // Four control tokens in the prompt are one id each.
    let prompt_tokens = prompt.replace("<|im_start|>", "1").replace("<|im_end|>", "2").len();
    assert_eq!(
        body["usage"],
        json!({
            "prompt_tokens": prompt_tokens, "completion_tokens": TEXT.len() + 1,
            "total_tokens": prompt_tokens + TEXT.len() + 1,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details":
                {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0, "reasoning_tokens": 0},
        })
    );
    assert_eq!(
        body["metrics"]["speculative_decoding"],
        json!({
            "mean_acceptance_length": 3.0, "draft_acceptance_rate": 0.5, "acceptance_histogram": [0, 1, 0, 1],
            "num_spec_steps": 2, "num_accepted_draft_tokens": 4, "num_draft_tokens": 8, "num_spec_tokens": 64,
            "strategy": "draft",
            "sources": {"draft": {
                "num_spec_steps": 2, "num_accepted_draft_tokens": 4, "num_draft_tokens": 8,
            }},
        })
    );
    assert_eq!(body["paceline"], json!({"seed": 7}));
    let placed = &seen[0].request;
    assert_eq!((placed.prompt.len(), placed.attempt, placed.sampling.seed), (prompt_tokens, 0, 7));
    assert_eq!(placed.limits.stop_ids.first().map(|t| t.0), Some(model_file::IM_END));
}

#[tokio::test]
async fn a_streamed_answer() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let _drafter = drafter(&front).await;
    let fields = json!({"max_tokens": 100, "stream": true, "stream_options": {"include_usage": true}});
    let response = front.send(&ask(fields)).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["x-paceline-seed"], "7");
    let events = events(&response.text().await.unwrap());
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert_eq!(content(&events), TEXT);
    assert!(!events.iter().any(|e| e.contains('\u{fffd}')), "half a character was sent");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c["id"] == chunks[0]["id"]));
    let [.., finish, usage] = chunks.as_slice() else { panic!("{chunks:?}") };
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!((&finish["usage"], &usage["choices"]), (&Value::Null, &json!([])));
    assert_eq!(usage["usage"]["completion_tokens"], TEXT.len() + 1);
    assert_eq!(usage["metrics"]["speculative_decoding"]["num_draft_tokens"], 8);
    assert_eq!(usage["paceline"]["seed"], 7);
    assert!(chunks.iter().all(|c| c["paceline"]["segments"].is_null()), "flags were not asked for");
}

#[tokio::test]
async fn without_usage_the_finish_chunk_has_the_figures() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let _drafter = drafter(&front).await;
    let body = front.send(&ask(json!({"max_tokens": 5, "stream": true}))).await.text().await.unwrap();
    let events = events(&body);
    let finish: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(finish["choices"][0]["finish_reason"], "length");
    assert_eq!(finish["metrics"]["speculative_decoding"]["num_spec_steps"], 2);
    assert!(finish.get("usage").is_none());
}

#[tokio::test]
async fn draft_flags_when_asked() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let client = reqwest::Client::new();
    let request = client.post(front.url("/v1/chat/completions")).header("x-paceline-draft-flags", "1");
    let body = request.json(&ask(json!({"max_tokens": 100, "stream": true}))).send().await.unwrap();
    let events = events(&body.text().await.unwrap());
    let chunks: Vec<Value> = events.iter().filter_map(|e| serde_json::from_str(e).ok()).collect();
    let segments: Vec<&Value> =
        chunks.iter().filter_map(|c| c["paceline"]["segments"].as_array()).flatten().collect();
    let text: String = segments.iter().map(|s| s["text"].as_str().unwrap()).collect();
    assert_eq!(text, TEXT);
    // "Gr": the second token of a message is the draft.
    assert_eq!(*segments[0], json!({"text": "G", "drafted": false}));
    assert_eq!(*segments[1], json!({"text": "r", "drafted": true}));
}

#[tokio::test]
async fn drafters_of_the_vocabulary_are_named_to_the_worker() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let other = NodeRecord { vocab_hash: VocabHash([0; 32]), ..Front::record("d-other", Role::Drafter) };
    let _joined = [front.join(Front::record("d-same", Role::Drafter)), front.join(other)];
    front.until(|members| members.len() == 3).await;
    let speculation = json!({"strategy": "lockstep", "k": 3, "max_draft": 5});
    let (_, body) = front.post(&ask(json!({"speculation": speculation}))).await;
    let metrics = &body["metrics"]["speculative_decoding"];
    assert_eq!((&metrics["strategy"], &metrics["num_spec_tokens"]), (&json!("lockstep"), &json!(3)));
    let (_, body) = front.post(&ask(json!({}))).await;
    assert_eq!(body["metrics"]["speculative_decoding"]["strategy"], "draft");
    // Named, but nothing of it was verified.
    let idle = front.worker_with("w1", |r| r.context = 1024, [Act::IdleDrafter]).await;
    let (_, body) = front.post(&ask(json!({"max_tokens": 600}))).await;
    assert_eq!(body["metrics"]["speculative_decoding"]["strategy"], "none");
    assert_eq!(idle.seen().len(), 1);
    let placed = worker.seen();
    assert!(placed.iter().all(|p| p.drafters.iter().map(|d| d.id.as_str()).eq(["d-same"])), "{placed:?}");
    let asked = placed[0].request.speculation;
    assert_eq!(
        (asked.strategy, asked.max_draft),
        (Strategy::Lockstep { k: 3, deadline: Duration::from_secs(1) }, Some(5))
    );
    assert_eq!(placed[1].request.speculation, Speculation::default());
}

#[tokio::test]
async fn seeds_are_drawn_and_returned() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let mut seeds = Vec::new();
    for _ in 0..3 {
        let response = front.send(&ask(json!({"seed": null, "max_tokens": 1}))).await;
        let header: u64 = response.headers()["x-paceline-seed"].to_str().unwrap().parse().unwrap();
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["paceline"]["seed"], header);
        seeds.push(header);
    }
    assert_eq!(worker.seen().iter().map(|p| p.request.sampling.seed).collect::<Vec<_>>(), seeds);
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 3);
}

#[tokio::test]
async fn max_tokens_default_is_what_the_context_leaves() {
    let front = front(|c| c.default_max_tokens = 20).await;
    let worker = front.worker("w0", []).await;
    front.post(&ask(json!({}))).await;
    // The fake's context is 512.
    front.post(&ask(json!({"messages": [{"role": "user", "content": "x".repeat(480)}]}))).await;
    let placed = worker.seen();
    assert_eq!(placed[0].request.limits.max_tokens, 20);
    assert_eq!(placed[1].request.limits.max_tokens as usize, 512 - placed[1].request.prompt.len());
    assert!(placed[1].request.limits.max_tokens < 20);
}

#[tokio::test]
async fn models_health_and_version() {
    let front = front(|_| {}).await;
    assert_eq!(front.get("/version").await.1["name"], "paceline");
    let (status, health) = front.get("/health").await;
    assert_eq!((status, &health["models"]["bytes"]["ready_workers"]), (503, &json!(0)));
    assert_eq!(front.get("/v1/models").await.1["data"][0]["max_model_len"], Value::Null);
    let _worker = front.worker("w0", []).await;
    assert_eq!(front.get("/health").await.0, 200);
    let (_, models) = front.get("/v1/models").await;
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&json!("bytes"), &json!(512))
    );
    let (status, model) = front.get("/v1/models/org/alias").await;
    assert_eq!((status, &model["id"]), (200, &json!("bytes")));
    let (status, body) = front.post(&ask(json!({"model": "org/alias", "max_tokens": 2}))).await;
    assert_eq!((status, &body["model"]), (200, &json!("bytes")));
}
