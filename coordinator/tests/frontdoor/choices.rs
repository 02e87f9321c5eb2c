//! Several choices of one question.

use std::time::Duration;

use proto::reason::{Reason, parse};
use proto::v1;
use proto::v1::generate_response::Event;

use crate::cluster::{Act, front, text_of};
use crate::grpc::{chat, client, events};

fn three() -> v1::GenerateRequest {
    v1::GenerateRequest { n: Some(3), ..chat() }
}

fn text(events: &[Event], choice: u32) -> String {
    let of = events.iter().filter_map(|e| match e {
        Event::Tokens(t) if t.choice == choice => Some(t.text.as_str()),
        _ => None,
    });
    of.collect()
}

#[tokio::test]
async fn choices_share_prompt_and_seed_and_each_has_its_text() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let events = events(&front, three()).await.unwrap();
    let accepted = events.iter().filter(|e| matches!(e, Event::Accepted(_))).count();
    assert_eq!(accepted, 1);
    for choice in 0..3 {
        assert_eq!(text(&events, choice), text_of(choice));
    }
    let mut finished: Vec<(u32, u32)> = events
        .iter()
        .filter_map(|e| {
            if let Event::Finish(f) = e { Some((f.choice, f.usage?.completion_tokens)) } else { None }
        })
        .collect();
    finished.sort_unstable();
    let expected = (0..3).map(|c| (c, text_of(c).len() as u32 + 1));
    assert!(finished.iter().copied().eq(expected), "{finished:?}");
    let seen = worker.seen();
    let mut choices: Vec<u32> = seen.iter().map(|p| p.request.sampling.choice).collect();
    choices.sort_unstable();
    assert_eq!(choices, [0, 1, 2]);
    assert!(seen.iter().all(|p| p.request.prompt == seen[0].request.prompt && p.request.sampling.seed == 7));
}

#[tokio::test]
async fn choices_are_replayed_alone() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", [Act::Answer, Act::EndAt(6)]).await;
    let events = events(&front, three()).await.unwrap();
    assert!((0..3).all(|c| text(&events, c) == text_of(c)), "{events:?}");
    let attempts: u32 = worker.seen().iter().map(|p| p.request.attempt).sum();
    assert_eq!((worker.seen().len(), attempts), (4, 1));
}

#[tokio::test]
async fn a_choice_that_fails_fails_them_all() {
    // Refused before anything was said.
    let full = front(|_| {}).await;
    let worker = full.worker("w0", [Act::HangAt(4), Act::Full(5), Act::HangAt(4)]).await;
    let refused = parse(&events(&full, three()).await.unwrap_err());
    assert_eq!(refused.reason, Reason::Overloaded);
    assert!(refused.retry_after.is_some_and(|after| after > Duration::from_secs(4)), "{refused:?}");
    worker.until_idle().await;
    // Broken in the middle.
    let broken = front(|_| {}).await;
    let worker = broken.worker("w0", [Act::HangAt(4), Act::FailAt(4), Act::HangAt(4)]).await;
    let failure = parse(&events(&broken, three()).await.unwrap_err());
    assert_eq!(failure.message, "scripted failure");
    worker.until_idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_all_choices() {
    let front = front(|_| {}).await;
    let worker = front.worker_with("w0", |r| r.context = 2_000_000, vec![Act::Forever; 3]).await;
    let endless = v1::GenerateRequest { max_tokens: Some(1_000_000), ..three() };
    let stream = client(&front).await.generate(endless).await.unwrap();
    assert_eq!(worker.seen().len(), 3);
    drop(stream);
    worker.until_idle().await;
}

#[tokio::test]
async fn each_choice_takes_a_place() {
    let front = front(|c| c.max_in_flight = 2).await;
    let worker = front.worker("w0", [Act::HangAt(2)]).await;
    let many = parse(&events(&front, three()).await.unwrap_err());
    assert_eq!((many.reason, many.field.as_deref()), (Reason::InvalidField, Some("n")));
    let running = client(&front).await.generate(chat()).await.unwrap();
    let two = v1::GenerateRequest { n: Some(2), ..chat() };
    assert_eq!(parse(&events(&front, two.clone()).await.unwrap_err()).reason, Reason::Overloaded);
    drop(running);
    worker.until_idle().await;
    events(&front, two).await.unwrap();
}
