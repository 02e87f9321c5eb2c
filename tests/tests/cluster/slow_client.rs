//! A client that does not read stalls only its own answer, and loses it in the end.

use std::time::Duration;

use proto::Answer;
use proto::worker::worker_client::WorkerClient;
use request::Finish;
use tokio::time::timeout;

use super::nodes::{Target, Toy};
use super::question::Question;
use crate::support::{HANG, eventually};

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_answer_and_nobody_else_does() {
    let mut config = worker::Config::default();
    config.engine.outbox = 4;
    config.engine.slow_client_timeout = Duration::from_millis(300);
    let toy = Toy { step: Duration::from_micros(200), ..Toy::TARGET };
    let worker = Target::with("worker", toy, config).await;
    // Small windows, so that little is on its way to a client that does not read; one connection for
    // both, so that the stalled stream could take the other's room.
    let dialled = daemon::grpc::dial(&worker.node.record.endpoint, HANG).unwrap();
    let channel = dialled.initial_stream_window_size(2048).connect().await.unwrap();
    let worker = Target { client: WorkerClient::new(channel), ..worker };

    let question = Question::numbered(3, 3000);
    let mut client = worker.client.clone();
    let mut stalled = client.generate(question.wire()).await.unwrap().into_inner();
    // Longer than the time-out, beside the stalled one, and neither held up nor cut off.
    let other = Question::numbered(5, 3000).ask(&worker).await;
    eventually("both run", async || worker.load().await.running == 2).await;
    other.right().await;
    // Its slot and pages are free although it has still not read anything.
    worker.empty().await;

    let (mut text, mut end) = (Vec::new(), None);
    while let Some(message) = timeout(HANG, stalled.message()).await.unwrap().unwrap() {
        match Answer::try_from(message).unwrap() {
            Answer::Accepted { .. } => {}
            Answer::Tokens { ids, .. } => text.extend(ids),
            Answer::Finish { finish, usage, .. } => end = Some((finish, usage.completion_tokens as usize)),
        }
    }
    // What it had been sent is right, and it is told that there is no more and why.
    assert_eq!(end, Some((Finish::SlowClient, text.len())));
    assert_eq!(text, question.answer().0[..text.len()]);
    assert!((1..3000).contains(&text.len()));
}
