//! A worker that is lost in mid-answer: the text goes on elsewhere, without a seam.

use std::time::Duration;

use proto::reason::Reason;
use request::Finish;
use serde_json::{Value, json};

use crate::answers::{content, events};
use crate::cluster::{Act, Fake, Front, TEXT, ask, front, output};
use crate::model_file::tokens;

/// Streams an answer; its events.
async fn stream(front: &Front, fields: Value) -> Vec<String> {
    let mut body = ask(json!({"stream": true, "max_tokens": 100}));
    if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
        body.extend(fields);
    }
    let response = front.send(&body).await;
    assert_eq!(response.status(), 200);
    events(&response.text().await.unwrap())
}

/// Both workers break at the same place, so whoever is asked first, the other one replays.
async fn pair(front: &Front, act: Act) -> (Fake, Fake) {
    let a = front.worker("w-a", [act.clone()]).await;
    let b = front.worker("w-b", [act]).await;
    (a, b)
}

#[tokio::test]
async fn a_dead_worker_is_replaced_without_a_seam() {
    // 3 is inside of "ü", 10 of "世": the bytes of a character come from two workers.
    for at in [0, 1, 3, 10, TEXT.len() - 1] {
        for act in [Act::DieAt(at), Act::EndAt(at), Act::SkipAt(at)] {
            let front = front(|_| {}).await;
            let first = front.worker("w-a", [act.clone()]).await;
            let (answer, second) = tokio::join!(stream(&front, json!({})), async {
                // Joins once the first has the request, so that it cannot be asked first.
                while first.seen().is_empty() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                front.worker("w-b", []).await
            });
            assert_eq!(content(&answer), TEXT, "{act:?}");
            assert_eq!(answer.last().unwrap(), "[DONE]");
            let (first, seen) = (first.seen(), second.seen());
            // `EndAt` and `SkipAt` leave the first worker alive, so it may be asked again.
            let replay = first.iter().chain(&seen).find(|p| p.request.attempt == 1).unwrap();
            let original = &first[0].request;
            assert_eq!(replay.request.committed, tokens(TEXT)[..at], "{act:?}");
            assert_eq!(replay.request.prompt, original.prompt);
            assert_eq!(replay.request.sampling, original.sampling);
            assert_eq!((replay.request.attempt, &replay.request.id), (1, &original.id));
        }
    }
}

#[tokio::test]
async fn the_other_worker_is_asked_first() {
    let front = front(|_| {}).await;
    let (a, b) = pair(&front, Act::EndAt(6)).await;
    let answer = stream(&front, json!({})).await;
    // Lost at 6 on one, replayed on the other, which has its own EndAt(6): at once lost again, and the
    // third placement is the first worker, which has nothing more scripted.
    assert_eq!(content(&answer), TEXT);
    let attempts = |f: &Fake| f.seen().iter().map(|p| p.request.attempt).collect::<Vec<_>>();
    let mut both = [attempts(&a), attempts(&b)];
    both.sort();
    assert_eq!(both, [vec![0, 2], vec![1]]);
}

#[tokio::test]
async fn the_same_worker_when_there_is_no_other() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", [Act::EndAt(4), Act::Refuse(Reason::Overloaded)]).await;
    assert_eq!(content(&stream(&front, json!({})).await), TEXT);
    assert_eq!(worker.seen().len(), 3);
}

#[tokio::test]
async fn a_whole_answer_is_replayed_too() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", [Act::EndAt(4)]).await;
    let (status, body) = front.post(&ask(json!({"max_tokens": 100}))).await;
    assert_eq!((status, &body["choices"][0]["message"]["content"]), (200, &json!(TEXT)));
    assert_eq!(body["usage"]["completion_tokens"], TEXT.len() + 1);
}

#[tokio::test]
async fn three_losses_are_an_error_without_done() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", [Act::EndAt(4), Act::EndAt(6), Act::EndAt(8), Act::Answer]).await;
    let answer = stream(&front, json!({})).await;
    assert_eq!(content(&answer), TEXT[..TEXT.floor_char_boundary(8)]);
    let last: Value = serde_json::from_str(answer.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "no_worker");
    assert!(last["error"]["message"].as_str().unwrap().contains("incomplete after 8 tokens"));
    assert_eq!(worker.seen().len(), 3);
}

#[tokio::test]
async fn nowhere_to_go_ends_within_the_patience() {
    let front = front(|c| c.replay_timeout = Duration::from_millis(300)).await;
    let _worker = front.worker("w0", [Act::DieAt(4)]).await;
    let answer = stream(&front, json!({})).await;
    let last: Value = serde_json::from_str(answer.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "no_worker");
}

#[tokio::test]
async fn a_failure_of_the_model_is_not_replayed() {
    let front = front(|_| {}).await;
    let (a, b) = pair(&front, Act::FailAt(4)).await;
    let answer = stream(&front, json!({})).await;
    let last: Value = serde_json::from_str(answer.last().unwrap()).unwrap();
    assert_eq!(
        (&last["error"]["code"], &last["error"]["message"]),
        (&json!("internal_error"), &json!("scripted failure"))
    );
    assert_eq!(a.seen().len() + b.seen().len(), 1);
}

#[tokio::test]
async fn complete_but_for_the_word_finish_is_complete() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", [Act::EndAt(5)]).await;
    let answer = stream(&front, json!({"max_tokens": 5})).await;
    // max_tokens cut "ß" in two, which the end of the answer shows.
    assert_eq!(content(&answer), "Grü\u{fffd}");
    let finish: Value = serde_json::from_str(&answer[answer.len() - 2]).unwrap();
    assert_eq!(finish["choices"][0]["finish_reason"], "length");
    assert_eq!(worker.seen().len(), 1);
}

#[tokio::test]
async fn equal_numerics_are_preferred_and_a_crossing_shows() {
    for (others, expected) in [(&["fp_2", "fp_1"][..], "fp_1"), (&["fp_2"], "fp_2")] {
        let front = front(|_| {}).await;
        let first = front.worker("w-a", [Act::HangThenDie(4)]).await;
        let response = front.send(&ask(json!({"stream": true, "max_tokens": 100}))).await;
        let mut joined = Vec::new();
        for (name, fingerprint) in ["w-b", "w-c"].into_iter().zip(others) {
            joined.push(front.worker_with(name, |r| r.fingerprint = (*fingerprint).into(), []).await);
        }
        first.release();
        let answer = events(&response.text().await.unwrap());
        assert_eq!(content(&answer), TEXT);
        let fingerprint =
            |event: &str| serde_json::from_str::<Value>(event).unwrap()["system_fingerprint"].clone();
        assert_eq!(
            (fingerprint(&answer[0]), fingerprint(&answer[answer.len() - 2])),
            (json!("fp_1"), json!(expected))
        );
    }
}

#[tokio::test]
async fn an_end_that_is_none_is_replayed() {
    let whole = output().len();
    for (act, asked) in [
        (Act::FinishAt(4, Finish::Stop, 0), 2),
        (Act::FinishAt(4, Finish::Length, 0), 2),
        (Act::FinishAt(0, Finish::Stop, 0), 2),
        // All was said, only the end is told wrongly: nothing is left to replay.
        (Act::FinishAt(whole, Finish::Length, 0), 1),
        (Act::FinishAt(whole, Finish::Stop, 5), 1),
        // In one message with the stop token, so that none of it counts.
        (Act::OnAndOn, 2),
    ] {
        let front = front(|_| {}).await;
        let worker = front.worker("w0", [act.clone()]).await;
        let (status, body) = front.post(&ask(json!({"max_tokens": 100}))).await;
        assert_eq!((status, &body["choices"][0]["message"]["content"]), (200, &json!(TEXT)), "{act:?}");
        assert_eq!(body["choices"][0]["finish_reason"], "stop", "{act:?}");
        assert_eq!(body["usage"]["completion_tokens"], whole, "{act:?}");
        assert_eq!(worker.seen().len(), asked, "{act:?}");
    }
}

#[tokio::test]
async fn the_patience_is_kept_when_nobody_answers() {
    let front = front(|c| c.replay_timeout = Duration::from_millis(300)).await;
    let _worker = front.worker("w0", [Act::EndAt(4), Act::Mute, Act::Mute, Act::Mute]).await;
    // accept_timeout is longer.
    let begun = tokio::time::Instant::now();
    let answer = stream(&front, json!({})).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let last: Value = serde_json::from_str(answer.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "no_worker");
}
