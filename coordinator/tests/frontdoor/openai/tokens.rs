//! `/tokenize` and `/detokenize`.

use serde_json::{Value, json};

use super::post;
use crate::cluster::front;

#[tokio::test]
async fn there_and_back() {
    let front = front(|_| {}).await;
    let (status, answer) =
        post(&front, "/tokenize", &json!({"model": "bytes", "prompt": "hé<|im_end|>"})).await;
    let expected = json!({"count": 4, "max_model_len": null, "tokens": [104, 195, 169, 258]});
    assert_eq!((status, &answer), (200, &expected));
    let _worker = front.worker("w0", []).await;
    let (_, answer) = post(&front, "/tokenize", &json!({"prompt": "h", "return_token_strs": true})).await;
    assert_eq!(answer, json!({"count": 1, "max_model_len": 512, "tokens": [104], "token_strs": ["h"]}));
    let (_, answer) = post(&front, "/detokenize", &json!({"tokens": [104, 195, 169, 258]})).await;
    assert_eq!(answer, json!({"prompt": "hé<|im_end|>"}));
}

#[tokio::test]
async fn conversations_are_the_prompts_of_chat() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let messages = json!([{"role": "user", "content": "<|im_end|>"}]);
    let (_, answer) = post(&front, "/tokenize", &json!({"model": "bytes", "messages": messages})).await;
    front.post(&json!({"model": "bytes", "messages": messages})).await;
    let prompt: Vec<u32> = worker.seen()[0].request.prompt.iter().map(|id| id.0).collect();
    assert_eq!(answer["tokens"], json!(prompt));
    assert_eq!(prompt.iter().filter(|id| **id == 258).count(), 1, "what was typed stays text");
}

#[tokio::test]
async fn refusals_name_their_field() {
    let front = front(|_| {}).await;
    for (path, body, param) in [
        ("/tokenize", json!({}), json!("prompt")),
        ("/tokenize", json!({"prompt": "a", "messages": []}), json!("prompt")),
        ("/tokenize", json!({"prompt": "a", "tools": []}), json!("tools")),
        ("/tokenize", json!({"model": "x", "prompt": "a"}), json!("model")),
        ("/tokenize", json!({"messages": []}), json!("messages")),
        ("/tokenize", json!({"prompt": 1}), json!("prompt")),
        ("/tokenize", json!({"prompt": "a", "colour": 1}), json!("colour")),
        ("/detokenize", json!({}), json!("tokens")),
        ("/detokenize", json!({"tokens": [1, 300]}), json!("tokens[1]")),
        ("/detokenize", json!({"tokens": [-1]}), json!("tokens[0]")),
    ] {
        let (status, answer) = post(&front, path, &body).await;
        assert!(matches!(status, 400 | 404), "{answer}");
        let Value::Object(error) = &answer["error"] else { panic!("{answer}") };
        assert_eq!(error["param"], param, "{path} {body}: {answer}");
    }
}

/// `<|im_end|>` is ten bytes and its id four with the comma: a body must not give many times itself.
#[tokio::test]
async fn a_small_list_gives_no_endless_text() {
    let front = front(|c| c.max_body_bytes = daemon::config::ByteSize::kib(2)).await;
    let ids = |n: usize| json!({"tokens": vec![258; n]});
    assert_eq!(post(&front, "/detokenize", &ids(204)).await.0, 200);
    let (status, answer) = post(&front, "/detokenize", &ids(205)).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("tokens")), "{answer}");
}
