//! `/v1/responses`.

use serde_json::{Value, json};

use super::{Sse, post, stream};
use crate::cluster::{Act, TEXT, front};

const PATH: &str = "/v1/responses";

const CALL: &str = "Hm.<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";

fn body(fields: Value) -> Value {
    let mut body = json!({"model": "bytes", "input": "hi", "seed": 7});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn tools() -> Value {
    json!([{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": false}])
}

#[tokio::test]
async fn a_whole_response() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let (status, answer) =
        post(&front, PATH, &body(json!({"instructions": "Be brief.", "temperature": 0}))).await;
    assert_eq!(
        (status, &answer["object"], &answer["status"]),
        (200, &json!("response"), &json!("completed")),
        "{answer}"
    );
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
    let item = &answer["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    assert_eq!(
        item["content"],
        json!([{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}])
    );
    assert_eq!(answer["output"].as_array().map(Vec::len), Some(1));
    assert_eq!((&answer["instructions"], &answer["incomplete_details"]), (&json!("Be brief."), &Value::Null));
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["output_tokens"], &usage["input_tokens_details"]["cached_tokens"]),
        (&json!(TEXT.len() + 1), &json!(3))
    );
    let prompt: Vec<u8> =
        worker.seen()[0].request.prompt.iter().filter_map(|id| u8::try_from(id.0).ok()).collect();
    assert_eq!(String::from_utf8(prompt).unwrap(), "system\nBe brief.\nuser\nhi\nassistant\n");
    let (_, answer) = post(&front, PATH, &body(json!({"max_output_tokens": 2}))).await;
    assert_eq!(
        (&answer["status"], &answer["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[tokio::test]
async fn events_tell_the_response() {
    let front = front(|_| {}).await;
    let said = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    let _worker = front.worker("w0", [Act::Answer, Act::Say(CALL), Act::Say(said)]).await;
    for fields in [
        json!({"stream": true}),
        json!({"stream": true, "tools": tools()}),
        json!({"stream": true, "tools": tools()}),
    ] {
        let events = stream(&front, PATH, &body(fields), None).await;
        let last = events.last().unwrap().json();
        assert_eq!(last["type"], "response.completed", "no [DONE] here");
        for (i, event) in events.iter().map(|e| (e, e.json())).enumerate() {
            let (sse, json) = event;
            assert_eq!((&json["type"], &json["sequence_number"]), (&json!(sse.event), &json!(i)));
        }
        assert_eq!(rebuilt(&events), last["response"]["output"], "the events are the items");
    }
}

/// The items as a client makes them of the deltas, checked against every `done` on the way.
fn rebuilt(events: &[Sse]) -> Value {
    let mut items: Vec<Value> = Vec::new();
    for event in events.iter().map(Sse::json) {
        let index = event["output_index"].as_u64().map(|i| i as usize);
        match (event["type"].as_str().unwrap(), index) {
            ("response.output_item.added", Some(index)) => {
                assert_eq!((index, &event["item"]["status"]), (items.len(), &json!("in_progress")));
                items.push(event["item"].clone());
            }
            ("response.content_part.added", Some(i)) => items[i]["content"] = json!([event["part"]]),
            ("response.output_text.delta", Some(i)) => {
                assert_eq!(event["item_id"], items[i]["id"]);
                let text = items[i]["content"][0]["text"].as_str().unwrap().to_owned();
                items[i]["content"][0]["text"] = json!(text + event["delta"].as_str().unwrap());
            }
            ("response.output_text.done", Some(i)) => {
                assert_eq!(event["text"], items[i]["content"][0]["text"])
            }
            ("response.content_part.done", Some(i)) => assert_eq!(event["part"], items[i]["content"][0]),
            ("response.function_call_arguments.delta", Some(i)) => {
                let arguments = items[i]["arguments"].as_str().unwrap().to_owned();
                items[i]["arguments"] = json!(arguments + event["delta"].as_str().unwrap());
            }
            ("response.function_call_arguments.done", Some(i)) => {
                assert_eq!(event["arguments"], items[i]["arguments"])
            }
            ("response.output_item.done", Some(i)) => {
                items[i]["status"] = json!("completed");
                assert_eq!(event["item"], items[i]);
            }
            ("response.created" | "response.in_progress" | "response.completed", None) => {}
            other => panic!("{other:?}"),
        }
    }
    json!(items)
}

#[tokio::test]
async fn calls_are_items() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", [Act::Say(CALL)]).await;
    let (_, answer) = post(&front, PATH, &body(json!({"tools": tools()}))).await;
    let call = &answer["output"][1];
    assert_eq!(answer["output"][0]["content"][0]["text"], "Hm.");
    assert_eq!(
        (&call["type"], &call["name"], &call["arguments"]),
        (&json!("function_call"), &json!("f"), &json!("{\"a\": 1}"))
    );
    assert!(
        call["call_id"].as_str().unwrap().starts_with("call_")
            && call["id"].as_str().unwrap().starts_with("fc_")
    );
}

#[tokio::test]
async fn a_failure_on_the_way_is_one_event() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", [Act::FailAt(6)]).await;
    let events = stream(&front, PATH, &body(json!({"stream": true})), None).await;
    let last = events.last().unwrap();
    let error = last.json();
    assert_eq!(
        (last.event.as_str(), &error["code"], &error["message"]),
        ("error", &json!("internal_error"), &json!("scripted failure"))
    );
    assert_eq!(error["error"]["message"], "scripted failure");
    assert!(!events.iter().any(|e| e.event == "response.completed"));
}

/// The first token is half a character, the second the rest: neither may be missing.
#[tokio::test]
async fn log_probabilities_begin_with_the_first_token() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", [Act::Say("é"), Act::Say("é"), Act::Say(" x")]).await;
    let fields = json!({"include": ["message.output_text.logprobs"], "max_output_tokens": 1});
    let (_, cut) = post(&front, PATH, &body(fields)).await;
    let of = |answer: &Value| answer["output"][0]["content"][0]["logprobs"].as_array().map(Vec::len);
    assert_eq!(of(&cut), Some(1), "{cut}");
    let fields = json!({"include": ["message.output_text.logprobs"]});
    let (_, whole) = post(&front, PATH, &body(fields)).await;
    assert_eq!(of(&whole), Some(2), "{whole}");
    // White space, held back because a call may follow.
    let fields = json!({
        "include": ["message.output_text.logprobs"], "max_output_tokens": 1, "tools": tools(), "temperature": 0.7,
    });
    let (_, held) = post(&front, PATH, &body(fields)).await;
    assert_eq!((of(&held), &held["temperature"]), (Some(1), &json!(0.7)), "{held}");
}
