//! Stop strings through the whole coordinator: never leaked, and the same over every replay.

use proto::reason::{Reason, parse};
use proto::v1;
use proto::v1::finish::StoppedBy;
use proto::v1::generate_response::Event;

use crate::cluster::{Act, TEXT, front, output};
use crate::grpc::{chat, events, text};
use crate::model_file::tokens;

fn stopping(strings: &[&str]) -> v1::GenerateRequest {
    v1::GenerateRequest { stop: strings.iter().map(ToString::to_string).collect(), ..chat() }
}

fn finish(events: &[Event]) -> &v1::Finish {
    let Some(Event::Finish(finish)) = events.last() else { panic!("{events:?}") };
    finish
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_and_the_workers_stream() {
    let front = front(|_| {}).await;
    let worker = front.worker_with("w0", |r| r.context = 2_000_000, [Act::Forever]).await;
    let request = v1::GenerateRequest { max_tokens: Some(1_000_000), ..stopping(&["Satz", "nowhere"]) };
    let events = events(&front, request).await.unwrap();
    assert_eq!(text(&events), "Grüße, 世界! Ein ");
    let finish = finish(&events);
    assert_eq!(
        (finish.reason(), &finish.stopped_by),
        (v1::FinishReason::Stop, &Some(StoppedBy::Stop("Satz".into())))
    );
    // Up to the token that completes it; the worker sends two at a time.
    let counted = TEXT.find("Satz").unwrap() + "Satz".len();
    assert_eq!(finish.usage.unwrap().completion_tokens as usize, counted);
    // The worker had no time to tell what it did; two drafts a message, the first of them right.
    let did = finish.speculation.as_ref().unwrap();
    let messages = counted.div_ceil(2) as u64;
    assert_eq!((did.drafts, did.draft_tokens, did.accepted_tokens), (messages, 2 * messages, messages));
    assert_eq!(finish.usage.unwrap().cached_tokens, 3);
    let ids: usize = events.iter().map(|e| if let Event::Tokens(t) = e { t.ids.len() } else { 0 }).sum();
    assert_eq!(ids, counted);
    worker.until_idle().await;
}

#[tokio::test]
async fn what_only_looked_like_one_is_given_at_the_end() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    for (strings, min_tokens) in [(&["Umlauten.."][..], 0), (&["Satz"], 99)] {
        let request = v1::GenerateRequest { min_tokens, ..stopping(strings) };
        let events = events(&front, request).await.unwrap();
        assert_eq!(text(&events), TEXT, "{strings:?}");
        assert_eq!(finish(&events).stopped_by, None);
    }
}

/// The stop string lies across every cut near it: what the lost worker's part held back comes with
/// the other's.
#[tokio::test]
async fn every_replay_says_the_same() {
    let shown = "Grüße, 世";
    let ends = shown.len() + "界! Ei".len();
    for at in 0..=ends {
        let front = front(|_| {}).await;
        let worker = front.worker("w0", [Act::EndAt(at)]).await;
        let events = events(&front, stopping(&["界! Ei"])).await.unwrap();
        assert_eq!(text(&events), shown, "broken at {at}");
        assert_eq!(finish(&events).usage.unwrap().completion_tokens as usize, ends);
        // At the end nothing is left to replay.
        assert_eq!(worker.seen().len(), if at < ends { 2 } else { 1 }, "broken at {at}");
    }
}

#[tokio::test]
async fn every_cut_of_the_client_says_the_same() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    for strings in [&["界! Ei", "en."][..], &["en..", "\n"], &[]] {
        let whole = events(&front, stopping(strings)).await.unwrap();
        let (mut committed, mut before) = (Vec::new(), String::new());
        for event in &whole {
            let Event::Tokens(said) = event else { continue };
            if said.ids.is_empty() {
                continue; // What only the end settles comes with the end.
            }
            committed.extend(&said.ids);
            before.push_str(&said.text);
            let asked = worker.seen().len();
            let request =
                v1::GenerateRequest { committed: committed.clone(), attempt: 1, ..stopping(strings) };
            let rest = events(&front, request).await.unwrap();
            assert_eq!(before.clone() + &text(&rest), text(&whole), "{strings:?} cut at {}", committed.len());
            assert_eq!(finish(&rest).stopped_by, finish(&whole).stopped_by);
            assert_eq!(
                finish(&rest).usage.unwrap().completion_tokens,
                finish(&whole).usage.unwrap().completion_tokens
            );
            let complete = committed.len() == finish(&whole).usage.unwrap().completion_tokens as usize;
            assert_eq!(worker.seen().len() - asked, usize::from(!complete), "a whole answer needs no worker");
        }
    }
}

#[tokio::test]
async fn tokens_after_the_end_are_refused() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let mut over: Vec<u32> = output().iter().map(|t| t.0).collect();
    over.push(65);
    let satz: Vec<u32> = tokens("Satz und").iter().map(|t| t.0).collect();
    for (committed, named) in [(over, "stop token 258"), (satz, "\"Satz u\"")] {
        let request = v1::GenerateRequest { committed, ..stopping(&["Satz u"]) };
        let failure = parse(&events(&front, request).await.unwrap_err());
        assert_eq!((failure.reason, failure.field.as_deref()), (Reason::InvalidField, Some("committed")));
        assert!(failure.message.contains(named), "{failure}");
    }
}

#[tokio::test]
async fn the_models_own_end_can_be_ignored() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let request = v1::GenerateRequest { ignore_eos: true, max_tokens: Some(4), ..chat() };
    events(&front, request).await.unwrap();
    assert!(worker.seen()[0].request.limits.stop_ids.is_empty());
}
