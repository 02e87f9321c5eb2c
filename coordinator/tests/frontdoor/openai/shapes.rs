//! Chat completions field by field: what reaches the worker, what comes back.

use request::{Constraint, Rule, TokenId};
use serde_json::{Value, json};

use super::{post, stream};
use crate::cluster::{Act, TEXT, ask, front, text_of};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn every_field_reaches_the_worker() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let (status, body) = post(
        &front,
        PATH,
        &ask(json!({
            "max_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "typical_p": 0.7,
            "presence_penalty": 1, "frequency_penalty": 0.5, "repetition_penalty": 1.5, "logit_bias": {"65": 3},
            "stop_token_ids": [66], "priority": 5, "cache_salt": "s", "logprobs": true, "top_logprobs": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"z": 1, "a": 2}}},
            "prediction": {"type": "content", "content": "ab"}, "speculation": {"rule": "strict"},
        })),
    )
    .await;
    assert_eq!(status, 200, "{body}");
    let request = worker.seen()[0].request.clone();
    let params = request.sampling.params;
    assert_eq!((params.temperature, params.top_k, params.typical_p), (0.5, 40, 0.7));
    let penalties = request.adjust.penalties;
    assert_eq!((penalties.presence, penalties.frequency, penalties.repetition), (1.0, 0.5, 1.5));
    assert_eq!(request.adjust.logit_bias, [(TokenId(65), 3.0)]);
    assert!(request.limits.stop_ids.contains(&TokenId(66)));
    assert_eq!((request.limits.min_tokens, request.limits.max_tokens), (2, 9));
    assert_eq!((request.priority, request.cache_salt.as_str(), request.logprobs), (5, "s", Some(2)));
    assert_eq!(
        request.constraint,
        Some(Constraint::JsonSchema("{\"z\":1,\"a\":2}".into())),
        "in the caller's order"
    );
    assert_eq!(request.prediction, [TokenId(97), TokenId(98)]);
    assert_eq!(request.speculation.rule, Rule::Strict);
    let usage = &body["usage"];
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 3);
    assert!(
        usage["completion_tokens_details"]["accepted_prediction_tokens"].as_u64().unwrap() > 0,
        "{usage}"
    );
}

#[tokio::test]
async fn choices_come_in_order_and_are_counted_once() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let (_, body) = post(&front, PATH, &ask(json!({"max_tokens": 100, "n": 3}))).await;
    let choices = body["choices"].as_array().unwrap();
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], i);
        assert_eq!(choice["message"]["content"], text_of(u32::try_from(i).unwrap()));
    }
    let output: usize = (0..3).map(|i| text_of(i).len() + 1).sum();
    assert_eq!((choices.len(), &body["usage"]["completion_tokens"]), (3, &json!(output)));
    let events = stream(&front, PATH, &ask(json!({"max_tokens": 100, "n": 3, "stream": true})), None).await;
    for i in 0..3 {
        let of =
            events[..events.len() - 1].iter().map(super::Sse::json).filter(|c| c["choices"][0]["index"] == i);
        let text: String =
            of.filter_map(|c| c["choices"][0]["delta"]["content"].as_str().map(String::from)).collect();
        assert_eq!(text, text_of(i));
    }
    let figures = events.iter().filter(|e| e.data.contains("speculative_decoding")).count();
    assert_eq!(figures, 1, "only the last choice's end has them");
}

#[tokio::test]
async fn log_probabilities_of_every_shown_token() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let fields = json!({"max_tokens": 100, "logprobs": true, "top_logprobs": 2});
    let (_, body) = post(&front, PATH, &ask(fields)).await;
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = content.iter().map(|e| e["bytes"][0].as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), TEXT, "the token that ended it is not shown");
    assert_eq!((&content[0]["token"], &content[2]["token"]), (&json!("G"), &json!("\u{fffd}")));
    for entry in content {
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
    }
    let fields = json!({"max_tokens": 100, "logprobs": true, "stream": true});
    let events = stream(&front, PATH, &ask(fields), None).await;
    let streamed: usize = events[..events.len() - 1]
        .iter()
        .map(|e| e.json()["choices"][0]["logprobs"]["content"].as_array().map_or(0, Vec::len))
        .sum();
    assert_eq!(streamed, TEXT.len());
}

#[tokio::test]
async fn what_stopped_it_is_said() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    for (fields, text, finish, reason) in [
        (json!({"stop": ["Satz", "xyz"]}), "Grüße, 世界! Ein ", "stop", json!("Satz")),
        (
            json!({"stop": "Satz", "include_stop_str_in_output": true}),
            "Grüße, 世界! Ein Satz",
            "stop",
            json!("Satz"),
        ),
        (json!({"stop_token_ids": [33]}), "Grüße, 世界", "stop", json!(33)),
        (json!({}), TEXT, "stop", Value::Null),
        (json!({"max_tokens": 2}), "Gr", "length", Value::Null),
    ] {
        let (_, body) = post(&front, PATH, &ask(fields.clone())).await;
        let choice = &body["choices"][0];
        assert_eq!(choice["message"]["content"], text, "{fields}");
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!(finish), &reason), "{fields}");
    }
}

/// A worker that compiles the constraint names its field as the wire does; the client sees its own.
#[tokio::test]
async fn a_constraint_that_does_not_compile_is_named_as_the_client_spelled_it() {
    let front = front(|_| {}).await;
    let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "teapot"}}});
    let _worker = front.worker("w0", ["json_schema", "regex"].map(Act::RefuseField)).await;
    for (fields, param) in [
        (json!({"response_format": schema}), "response_format.json_schema.schema"),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs.regex"),
    ] {
        let (status, body) = post(&front, PATH, &ask(fields)).await;
        assert_eq!((status, &body["error"]["param"]), (400, &json!(param)), "{body}");
        assert_eq!(body["error"]["message"], format!("{param}: does not compile"));
    }
}

#[tokio::test]
async fn paths_that_are_not_built_say_why() {
    let front = front(|_| {}).await;
    for (path, status, code, help) in [
        ("/v1/embeddings", 501, "not_implemented", "embeddings are not built"),
        ("/v1/audio/speech", 501, "not_implemented", "audio"),
        ("/v1/files", 501, "not_implemented", "nothing is stored"),
        ("/v1/fine_tuning/jobs", 501, "not_implemented", "fine-tuning"),
        ("/v1/threads/x/runs", 501, "not_implemented", "threads"),
        ("/v1/responses/resp_1", 404, "unknown_url", "not stored"),
        ("/v1/nothing", 404, "unknown_url", "/v1/chat/completions"),
    ] {
        let (got, body) = post(&front, path, &json!({})).await;
        assert_eq!((got, &body["error"]["code"]), (status, &json!(code)), "{path}: {body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(help), "{body}");
    }
}
