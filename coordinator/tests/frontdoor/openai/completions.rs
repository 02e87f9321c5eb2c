//! Raw prompts.

use std::sync::atomic::Ordering;

use request::TokenId;
use serde_json::{Value, json};

use super::{Sse, post, send, stream};
use crate::cluster::{Act, Front, TEXT, front, text_of};

const PATH: &str = "/v1/completions";

fn body(fields: Value) -> Value {
    let mut body = json!({"model": "bytes", "prompt": "hi", "max_tokens": 100, "seed": 7});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn one_prompt() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let (status, answer) = post(&front, PATH, &body(json!({}))).await;
    assert_eq!((status, &answer["object"]), (200, &json!("text_completion")), "{answer}");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "text": TEXT, "logprobs": null, "finish_reason": "stop", "stop_reason": null}])
    );
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
    assert_eq!(worker.seen()[0].request.prompt, [TokenId(104), TokenId(105)], "no template");
    // OpenAI's default.
    let (_, answer) = post(&front, PATH, &body(json!({"max_tokens": null}))).await;
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(16), &json!("length"))
    );
}

#[tokio::test]
async fn prompts_times_n() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let fields = json!({"prompt": ["ab", [99], "d"], "n": 2, "echo": true});
    let (status, answer) = post(&front, PATH, &body(fields.clone())).await;
    assert_eq!(status, 200, "{answer}");
    let texts: Vec<_> =
        answer["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    let expected: Vec<String> =
        ["ab", "c", "d"].iter().flat_map(|p| (0..2).map(move |i| format!("{p}{}", text_of(i)))).collect();
    assert_eq!(texts, expected);
    assert_eq!(answer["usage"]["prompt_tokens"], 4, "each prompt once");
    let output = 3 * (text_of(0).len() + text_of(1).len() + 2);
    assert_eq!(answer["usage"]["completion_tokens"], output);
    let seen = worker.seen();
    assert!(seen.len() == 6 && seen.iter().all(|p| p.request.sampling.seed == 7));
    let mut streamed = fields;
    streamed["stream"] = json!(true);
    let events = stream(&front, PATH, &body(streamed), None).await;
    for (i, expected) in expected.iter().enumerate() {
        let of = events[..events.len() - 1].iter().map(Sse::json).filter(|c| c["choices"][0]["index"] == i);
        let text: String = of.map(|c| c["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(text, *expected);
    }
}

/// One prompt waits for its first token (a worker with fewer slots than prompts); the other's answer is
/// longer than what lies between worker and client. Unread, its worker would give it up.
#[tokio::test]
async fn what_has_begun_is_read_while_others_wait() {
    const LONG: u32 = 40_000;
    let front = front(|_| {}).await;
    let acts = [Act::Forever, Act::HangAt(0), Act::Forever, Act::HangAt(0)];
    let worker = front.worker_with("w0", |r| r.context = 2_000_000, acts).await;
    for (i, streamed) in [(1, false), (2, true)] {
        let fields = json!({"prompt": ["a", "b"], "max_tokens": LONG, "stream": streamed});
        let running = post_text(&front, body(fields));
        let released = async {
            let by = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
            while worker.shared.sent.load(Ordering::SeqCst) < i * LONG {
                assert!(tokio::time::Instant::now() < by, "{:?} tokens were read", worker.shared.sent);
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            worker.release();
        };
        let (answer, ()) = tokio::join!(running, released);
        assert!(answer.contains("\"length\"") && answer.contains("\"stop\""));
        worker.until_idle().await;
    }
}

async fn post_text(front: &Front, body: Value) -> String {
    send(front, PATH, &body, None).await.text().await.unwrap()
}

#[tokio::test]
async fn legacy_log_probabilities() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let (_, answer) = post(&front, PATH, &body(json!({"max_tokens": 4, "logprobs": 2}))).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["G", "r", "\u{fffd}", "\u{fffd}"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    let top = logprobs["top_logprobs"].as_array().unwrap();
    assert!(top.len() == 4 && top[0].get("G").is_some(), "the drawn token is there: {top:?}");
    assert_eq!(logprobs["token_logprobs"].as_array().map(Vec::len), Some(4));
}

#[tokio::test]
async fn gaps_need_tokens_for_them() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let (status, answer) = post(&front, PATH, &body(json!({"suffix": "}"}))).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("suffix")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("bytes has no tokens"), "{answer}");
}

#[tokio::test]
async fn refusals_name_their_field() {
    let front = front(|c| c.max_in_flight = 4).await;
    let _worker = front.worker("w0", []).await;
    for (fields, status, param) in [
        (json!({"prompt": [300]}), 400, "prompt[0]"),
        (json!({"prompt": ["a", [65, 300]]}), 400, "prompt[1][1]"),
        (json!({"prompt": "x".repeat(600)}), 400, "prompt"),
        (json!({"max_tokens": 600}), 400, "max_tokens"),
        (json!({"prompt": ["a", "b", "c", "d", "e"]}), 400, "n"),
        (json!({"logit_bias": {"300": 1}}), 400, "logit_bias"),
    ] {
        let (got, answer) = post(&front, PATH, &body(fields.clone())).await;
        assert_eq!((got, &answer["error"]["param"]), (status, &json!(param)), "{fields}: {answer}");
    }
}
