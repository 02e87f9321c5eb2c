//! Clients that leave, clients that stall, and the coordinator's own end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::answers::events;
use crate::cluster::{Act, ask, front};

/// A context in which an answer does not end before its test does.
const ENDLESS: u32 = 2_000_000;

#[tokio::test]
async fn a_client_that_leaves_cancels_its_stream() {
    let front = front(|_| {}).await;
    let worker = front.worker_with("w0", |r| r.context = ENDLESS, [Act::Forever]).await;
    let response = front.send(&ask(json!({"stream": true, "max_tokens": 1_000_000}))).await;
    assert_eq!(response.status(), 200);
    drop(response);
    worker.until_idle().await;
    assert!(worker.shared.sent.load(Ordering::SeqCst) < 1_000_000);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_cancels_too() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", [Act::HangAt(0)]).await;
    let body = ask(json!({})).to_string();
    let mut socket = tokio::net::TcpStream::connect(front.http).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    while worker.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(socket);
    worker.until_idle().await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up() {
    let front = front(|c| c.slow_client_timeout = Duration::from_millis(300)).await;
    let worker = front.worker_with("w0", |r| r.context = ENDLESS, [Act::Forever]).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // Small, so that few tokens fill it.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(front.http).await.unwrap();
    let body = ask(json!({"stream": true, "max_tokens": 1_000_000})).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    while worker.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    worker.until_idle().await;
    let sent = worker.shared.sent.load(Ordering::SeqCst);
    assert!((16..1_000_000).contains(&sent), "{sent}");
    // Others are served meanwhile and after.
    assert_eq!(front.post(&ask(json!({"max_tokens": 2}))).await.0, 200);
}

#[tokio::test]
async fn the_drain_lets_answers_end_and_takes_no_new_ones() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", [Act::HangAt(4)]).await;
    let response = front.send(&ask(json!({"stream": true, "max_tokens": 100}))).await;
    front.shutdown.drain();
    let refused = loop {
        let (status, body) = front.post(&ask(json!({}))).await;
        if status == 503 {
            break body;
        }
    };
    assert_eq!(refused["error"]["code"], "draining");
    assert_eq!(front.get("/health").await.0, 503);
    assert!(!front.ended.is_finished(), "an answer is under way");
    // The worker breaks; the answer goes on and ends; then the coordinator is done.
    worker.release();
    let events = events(&response.text().await.unwrap());
    assert_eq!(events.last().unwrap(), "[DONE]");
    let ended = tokio::time::timeout(Duration::from_secs(10), front.ended).await.unwrap().unwrap();
    assert!(ended.drained && ended.failed.is_empty() && ended.late.is_empty(), "{ended:?}");
}

#[tokio::test]
async fn the_drain_has_a_deadline() {
    let front = front(|c| c.drain_timeout = Duration::from_millis(200)).await;
    let _worker = front.worker("w0", [Act::HangAt(4)]).await;
    let response = front.send(&ask(json!({"stream": true, "max_tokens": 100}))).await;
    front.shutdown.drain();
    let ended = tokio::time::timeout(Duration::from_secs(10), front.ended).await.unwrap().unwrap();
    assert!(!ended.drained && ended.late.is_empty(), "{ended:?}");
    let text = response.text().await.unwrap_or_default();
    assert!(!text.contains("[DONE]"));
    let _: Vec<Value> = events(&text).iter().filter_map(|e| serde_json::from_str(e).ok()).collect();
}
