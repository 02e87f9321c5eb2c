//! A client whose connection broke comes back with the id of the last event it got.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Sse, send, stream};
use crate::cluster::{Act, ask, front, text_of};

/// All that a client makes of events, whatever pieces they came in: by choice the text, the calls, the
/// log-probabilities, and what came once.
fn joined(events: &[Sse]) -> BTreeMap<u64, [String; 4]> {
    let mut all: BTreeMap<u64, [String; 4]> = BTreeMap::new();
    for event in events {
        if event.data == "[DONE]" {
            all.entry(u64::MAX).or_default()[0].push_str("[DONE]");
            continue;
        }
        let chunk = event.json();
        for choice in chunk["choices"].as_array().unwrap() {
            let [text, calls, logprobs, once] = all.entry(choice["index"].as_u64().unwrap()).or_default();
            let delta = &choice["delta"];
            text.push_str(delta["content"].as_str().or(choice["text"].as_str()).unwrap_or_default());
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let function = &call["function"];
                if let Some(id) = call["id"].as_str() {
                    calls.push_str(&format!("|{} {id} {}", call["index"], function["name"]));
                }
                calls.push_str(function["arguments"].as_str().unwrap_or_default());
            }
            for entry in choice["logprobs"]["content"].as_array().into_iter().flatten() {
                logprobs.push_str(&format!("{} {};", entry["token"], entry["logprob"]));
            }
            let legacy = &choice["logprobs"];
            for (i, token) in legacy["tokens"].as_array().into_iter().flatten().enumerate() {
                logprobs.push_str(&format!("{token} {};", legacy["text_offset"][i]));
            }
            once.push_str(delta["role"].as_str().unwrap_or_default());
            once.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        }
        if chunk["usage"].is_object() {
            all.entry(u64::MAX).or_default()[1].push_str(&chunk["usage"].to_string());
        }
    }
    all
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

/// Cut behind every event: what was got before and what comes after the return are the whole.
async fn cut_everywhere(path: &str, body: Value, acts: fn() -> Vec<Act>) {
    let choices = acts().len();
    let front = front(|_| {}).await;
    let _worker = front.worker_with("w0", |r| r.context = 4096, (0..400).flat_map(|_| acts())).await;
    let whole = stream(&front, path, &body, None).await;
    let expected = joined(&whole);
    assert!(whole.len() > 6 && whole.iter().all(|e| !e.id.is_empty()), "{whole:?}");
    assert!(whole.len() < 400);
    for cut in 1..=whole.len() {
        let had = &whole[..cut];
        let rest = stream(&front, path, &body, Some(&had[cut - 1].id)).await;
        let both = [had, &rest].concat();
        let mut got = joined(&both);
        if cut == whole.len() {
            // Nothing was missing but the client did not know; it is told again.
            assert_eq!(rest.len(), 1, "{rest:?}");
            got.get_mut(&u64::MAX).unwrap()[0] = "[DONE]".into();
        }
        assert_eq!(got, expected, "{choices} choices, cut behind event {cut} of {}", whole.len());
        let ids: Vec<_> =
            both.iter().filter(|e| e.data != "[DONE]").map(|e| e.json()["id"].clone()).collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "one answer has one id");
    }
}

#[tokio::test]
async fn a_conversation_goes_on_behind_any_event() {
    let options = json!({"include_usage": true});
    let body = ask(json!({"max_tokens": 100, "stream": true, "stream_options": options, "logprobs": true}));
    cut_everywhere("/v1/chat/completions", body, || vec![Act::Answer]).await;
}

#[tokio::test]
async fn a_drawn_seed_is_in_the_id() {
    let body = ask(json!({"max_tokens": 20, "stream": true, "seed": null}));
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let whole = stream(&front, "/v1/chat/completions", &body, None).await;
    stream(&front, "/v1/chat/completions", &body, Some(&whole[3].id)).await;
    let seeds: Vec<u64> = worker.seen().iter().map(|p| p.request.sampling.seed).collect();
    assert_eq!(seeds[0], seeds[1]);
}

#[tokio::test]
async fn several_choices_go_on() {
    let body = ask(json!({"max_tokens": 30, "stream": true, "n": 3}));
    cut_everywhere("/v1/chat/completions", body, || vec![Act::Answer; 3]).await;
    assert_ne!(text_of(0), text_of(1));
}

#[tokio::test]
async fn calls_go_on_with_their_ids() {
    const SAID: &str = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"ü\"}}\n</tool_call>\n\
                        <tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>";
    let body = ask(json!({"max_tokens": 300, "stream": true, "tools": [tool("f"), tool("g")]}));
    cut_everywhere("/v1/chat/completions", body, || vec![Act::Say(SAID)]).await;
}

#[tokio::test]
async fn prompts_of_one_request_go_on() {
    let body = json!({
        "model": "bytes", "prompt": ["a", "b"], "n": 2, "max_tokens": 12, "stream": true, "seed": 1, "echo": true,
        "stream_options": {"include_usage": true},
    });
    cut_everywhere("/v1/completions", body, || vec![Act::Answer; 4]).await;
    let body = json!({"model": "bytes", "prompt": "a", "max_tokens": 12, "stream": true, "logprobs": 1});
    cut_everywhere("/v1/completions", body, || vec![Act::Answer]).await;
}

#[tokio::test]
async fn stop_strings_hold_across_the_cut() {
    let body = ask(json!({"max_tokens": 100, "stream": true, "stop": "Satz mit"}));
    cut_everywhere("/v1/chat/completions", body, || vec![Act::Answer]).await;
}

#[tokio::test]
async fn ids_that_are_not_this_answers_are_refused() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let body = ask(json!({"max_tokens": 20, "stream": true}));
    let path = "/v1/chat/completions";
    let id = stream(&front, path, &body, None).await[4].id.clone();
    let rejection = json!({"rule": "rejection"});
    let other = ask(json!({"max_tokens": 20, "stream": true, "speculation": rejection}));
    let other_id = stream(&front, path, &other, None).await[4].id.clone();
    let three = ask(json!({"max_tokens": 20, "stream": true, "n": 3}));
    let responses = json!({"model": "bytes", "input": "hi", "stream": true});
    for (path, body, id, code, help) in [
        (path, &body, "17", "invalid_value", "no id of an event"),
        (path, &body, "", "invalid_value", "no id of an event"),
        (path, &body, &id.replace("p1.", "p2."), "invalid_value", "no id of an event"),
        (path, &body, &format!("{id}_1-1-1"), "invalid_value", "another request"),
        (path, &ask(json!({"max_tokens": 21, "stream": true})), &id, "invalid_value", "unchanged"),
        (path, &ask(json!({"max_tokens": 20, "stream": true, "seed": 8})), &id, "invalid_value", "unchanged"),
        (path, &three, &id, "invalid_value", "unchanged"),
        (path, &ask(json!({"max_tokens": 20})), &id, "invalid_value", "stream true"),
        (path, &other, &other_id, "unsupported_parameter", "rejection"),
        ("/v1/responses", &responses, &id, "unsupported_parameter", "/v1/responses"),
    ] {
        let response = send(&front, path, body, Some(id)).await;
        let (status, error) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("Last-Event-ID")), "{error}");
        assert_eq!(error["error"]["code"], code, "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(help), "{error}");
    }
}

#[tokio::test]
async fn other_numerics_do_not_go_on_with_it() {
    let front = front(|_| {}).await;
    let body = ask(json!({"max_tokens": 20, "stream": true}));
    let path = "/v1/chat/completions";
    let first = front.worker("w0", []).await;
    let id = stream(&front, path, &body, None).await[4].id.clone();
    first.kill();
    let _worker = front.worker_with("w1", |r| r.fingerprint = "fp_2".into(), []).await;
    let response = send(&front, path, &body, Some(&id)).await;
    assert_eq!(response.status(), 503);
    let error: Value = response.json().await.unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("other numerics"), "{error}");
}

/// An error tells its place, too.
#[tokio::test]
async fn an_answer_that_broke_off_goes_on() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", [Act::FailAt(9)]).await;
    let body = ask(json!({"max_tokens": 100, "stream": true}));
    let path = "/v1/chat/completions";
    let mut had = stream(&front, path, &body, None).await;
    let error = had.pop().unwrap();
    assert_eq!(error.json()["error"]["message"], "scripted failure");
    had.extend(stream(&front, path, &body, Some(&error.id)).await);
    assert_eq!(joined(&had)[&0][0], text_of(0));
}
