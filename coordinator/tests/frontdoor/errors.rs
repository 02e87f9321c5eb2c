//! What a client gets when something is wrong before the first token.

use std::time::Duration;

use ::cluster::{NodeRecord, Role, VocabHash};
use proto::reason::Reason;
use request::Quality;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};

use crate::cluster::{Act, Front, TEXT, ask, front};

fn error(body: &Value) -> (&str, Option<&str>, &str) {
    let error = &body["error"];
    let text = |field: &str| error[field].as_str();
    (text("code").unwrap(), text("param"), text("message").unwrap())
}

#[tokio::test]
async fn requests_that_cannot_be_served_say_why() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let long = "x".repeat(600);
    for (fields, status, code, param, help) in [
        (json!({"model": "gpt-9"}), 404, "model_not_found", Some("model"), "bytes"),
        (json!({"functions": [{}]}), 400, "unsupported_parameter", Some("functions"), "not built"),
        (json!({"temperature": 3}), 400, "invalid_value", Some("temperature"), "3"),
        (
            json!({"messages": [{"role": "user", "content": long}]}),
            400,
            "context_length_exceeded",
            Some("messages"),
            "512",
        ),
        (json!({"max_tokens": 512}), 400, "context_length_exceeded", Some("max_tokens"), "512"),
    ] {
        let (got, body) = front.post(&ask(fields.clone())).await;
        assert_eq!(got, status, "{fields}: {body}");
        let error = error(&body);
        assert_eq!((error.0, error.1), (code, param), "{fields}: {body}");
        assert!(error.2.contains(help), "{fields}: {body}");
    }
}

#[tokio::test]
async fn bodies_and_routes() {
    let front = front(|c| c.max_body_bytes = daemon::config::ByteSize::kib(2)).await;
    let client = reqwest::Client::new();
    let url = front.url("/v1/chat/completions");
    let json_post = |body: String| client.post(&url).header("content-type", "application/json").body(body);

    let response = json_post("x".repeat(3000)).send().await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(error(&response.json().await.unwrap()).0, "request_too_large");

    // Without a length, so that only counting can tell.
    let chunks = futures::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>("y".repeat(1000))));
    let chunked = json_post(String::new()).body(reqwest::Body::wrap_stream(chunks)).send().await.unwrap();
    assert_eq!(chunked.status(), 413);

    let response = json_post("{nope".into()).send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert!(error(&response.json().await.unwrap()).2.contains("line 1"));

    let response = client.post(&url).body("{}").send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert!(error(&response.json().await.unwrap()).2.contains("content-type"));

    let (status, body) = front.get("/v1/chat/completions").await;
    assert_eq!((status, error(&body).0), (405, "method_not_allowed"));
    let (status, body) = front.get("/v2/else").await;
    assert_eq!((status, error(&body).0), (404, "unknown_url"));
    let (status, body) = front.get("/v1/models/none").await;
    assert_eq!((status, error(&body).0), (404, "model_not_found"));
}

#[tokio::test]
async fn no_worker_is_503_with_a_time_to_come_back() {
    let front = front(|_| {}).await;
    let response = front.send(&ask(json!({}))).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(error(&response.json().await.unwrap()).0, "no_worker");
}

#[tokio::test]
async fn a_refusal_goes_to_the_next_worker() {
    for reason in [Reason::Overloaded, Reason::Draining, Reason::ModelNotFound, Reason::Internal] {
        let front = front(|_| {}).await;
        let a = front.worker("w-a", [Act::Refuse(reason)]).await;
        let b = front.worker("w-b", [Act::Refuse(reason)]).await;
        let c = front.worker("w-c", []).await;
        let (status, body) = front.post(&ask(json!({"max_tokens": 100}))).await;
        assert_eq!((status, &body["choices"][0]["message"]["content"]), (200, &json!(TEXT)), "{reason}");
        // Two choices at random: it may have been lucky, but nobody is asked twice.
        assert!([&a, &b, &c].iter().all(|w| w.seen().len() <= 1));
    }
}

#[tokio::test]
async fn an_approximate_worker_leaves_exact_requests_to_others() {
    let front = front(|_| {}).await;
    let _a = front
        .worker("w-a", [Act::Refuse(Reason::ApproximateOnly), Act::Refuse(Reason::ApproximateOnly)])
        .await;
    let (status, body) = front.post(&ask(json!({}))).await;
    assert_eq!((status, error(&body).0), (400, "approximate_only"));
    let _b = front.worker("w-b", []).await;
    let (status, body) = front.post(&ask(json!({"max_tokens": 100}))).await;
    assert_eq!((status, &body["choices"][0]["message"]["content"]), (200, &json!(TEXT)));
}

#[tokio::test]
async fn what_is_accepted_is_told_to_the_worker() {
    let front = front(|_| {}).await;
    let worker = front.worker("w-a", []).await;
    for (quality, told) in [("exact", Quality::Exact), ("approximate", Quality::Approximate)] {
        front.post(&ask(json!({"quality": quality}))).await;
        assert_eq!(worker.seen().last().unwrap().request.quality, told);
    }
}

#[tokio::test]
async fn all_full_is_429_from_the_worker_that_said_so() {
    let front = front(|_| {}).await;
    let _a = front.worker("w-a", [Act::Refuse(Reason::Overloaded)]).await;
    let b = front.worker("w-b", []).await;
    b.kill();
    let response = front.send(&ask(json!({}))).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "3");
    assert_eq!(error(&response.json().await.unwrap()).0, "rate_limit_exceeded");
}

#[tokio::test]
async fn the_soonest_of_full_workers_is_told() {
    let front = front(|_| {}).await;
    let _workers = [
        front.worker("w-a", [Act::Full(9)]).await,
        front.worker("w-b", [Act::Full(2)]).await,
        front.worker("w-c", [Act::Full(5)]).await,
    ];
    let response = front.send(&ask(json!({}))).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (429, &HeaderValue::from(2))
    );
}

/// A flood on full workers is refused here; they are asked now and then whether they still are. What is
/// under way does not feel it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_refused_without_asking() {
    const FLOOD: usize = 8000;
    let front = front(|c| c.max_in_flight = 1000).await;
    let worker = front.worker("w0", [Act::HangAt(4), Act::AlwaysFull]).await;
    let running = front.send(&ask(json!({"stream": true, "max_tokens": 100}))).await;
    let client = reqwest::Client::new();
    let begun = std::time::Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, url) = (client.clone(), front.url("/v1/chat/completions"));
        clients.spawn(async move {
            for _ in 0..FLOOD / 8 {
                let response = client.post(&url).json(&ask(json!({}))).send().await.unwrap();
                assert_eq!(
                    (response.status().as_u16(), &response.headers()["retry-after"]),
                    (429, &HeaderValue::from(1))
                );
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let took = begun.elapsed();
    let asked = worker.seen().len() - 1;
    eprintln!("{FLOOD} refusals in {took:?}, the worker was asked {asked} times");
    // Every 50 ms one asks; at the very start all eight may.
    let most = 8 + 2 * (took.as_millis() / 50) as usize;
    assert!(asked <= most, "asked {asked} times in {took:?}, at most {most} expected");
    worker.release();
    assert!(running.text().await.unwrap().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn what_no_worker_can_serve_is_not_asked_twice() {
    let front = front(|_| {}).await;
    let a = front.worker("w-a", [Act::Refuse(Reason::InvalidField)]).await;
    let b = front.worker("w-b", [Act::Refuse(Reason::InvalidField)]).await;
    let (status, body) = front.post(&ask(json!({}))).await;
    assert_eq!((status, error(&body).0), (400, "invalid_value"));
    assert_eq!(a.seen().len() + b.seen().len(), 1);
}

#[tokio::test]
async fn too_many_under_way_is_429() {
    let front = front(|c| c.max_in_flight = 1).await;
    let worker = front.worker("w0", [Act::HangAt(4)]).await;
    let running = front.send(&ask(json!({"stream": true, "max_tokens": 400}))).await;
    assert_eq!(running.status(), 200);
    let response = front.send(&ask(json!({}))).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    drop(running);
    worker.until_idle().await;
    assert_eq!(front.post(&ask(json!({"max_tokens": 1}))).await.0, 200);
}

#[tokio::test]
async fn the_deadline_is_kept_before_the_first_token() {
    let front = front(|c| c.request_timeout = Duration::from_millis(300)).await;
    let worker = front.worker("w0", [Act::HangAt(0)]).await;
    let (status, body) = front.post(&ask(json!({}))).await;
    assert_eq!((status, error(&body).0), (504, "deadline_exceeded"));
    worker.until_idle().await;
}

#[tokio::test]
async fn the_deadline_is_kept_before_accepted() {
    let front = front(|c| c.request_timeout = Duration::from_millis(300)).await;
    let _worker = front.worker("w0", [Act::Mute]).await;
    let response = front.send(&ask(json!({}))).await;
    assert_eq!(response.status(), 504);
    assert!(response.headers()["x-request-id"].to_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(error(&response.json().await.unwrap()).0, "deadline_exceeded");
}

/// On every path that generates: as long as the client says, no longer than the server takes.
#[tokio::test]
async fn the_clients_own_deadline_is_kept() {
    const HEADER: &str = "x-request-timeout-ms";
    let paths = [
        ("/v1/chat/completions", ask(json!({}))),
        ("/v1/completions", json!({"model": "bytes", "prompt": "hi"})),
        ("/v1/responses", json!({"model": "bytes", "input": "hi"})),
    ];
    let server = Duration::from_secs(2);
    for (limit, asked) in [(server, "200"), (Duration::from_millis(200), "18446744073709551615")] {
        let front = front(|c| c.request_timeout = limit).await;
        let worker = front.worker("w0", paths.iter().map(|_| Act::HangAt(0))).await;
        for (path, body) in &paths {
            let post = |timeout: &'static str| {
                reqwest::Client::new().post(front.url(path)).header(HEADER, timeout).json(body).send()
            };
            let begun = std::time::Instant::now();
            let late = post(asked).await.unwrap();
            assert_eq!(late.status(), 504, "{path} {asked}");
            assert!(begun.elapsed() < server, "{path} {asked}");
            assert_eq!(error(&late.json().await.unwrap()).0, "deadline_exceeded");
            let malformed = post("1s").await.unwrap();
            assert_eq!(malformed.status(), 400);
            assert_eq!(error(&malformed.json().await.unwrap()).1, Some(HEADER));
        }
        worker.until_idle().await;
    }
}

#[tokio::test]
async fn a_worker_of_another_vocabulary_gets_nothing() {
    let front = front(|_| {}).await;
    let record = NodeRecord { vocab_hash: VocabHash([0; 32]), ..Front::record("w-other", Role::Worker) };
    let (_tasks, _shutdown) = front.join(record);
    front.until(|members| !members.is_empty()).await;
    let (status, body) = front.post(&ask(json!({}))).await;
    assert_eq!((status, error(&body).0), (503, "no_worker"));
    assert_eq!(front.get("/health").await.0, 503);
}
