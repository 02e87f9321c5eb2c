use ::request::Constraint;
use serde_json::json;
use text::ToolCall;

use super::*;
use crate::failure::Reason;

fn parse(fields: Value) -> Result<ResponseRequest, Failure> {
    let mut body = json!({"model": "m", "input": "hi"});
    if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
        body.extend(fields);
    }
    ResponseRequest::parse(body.to_string().as_bytes())
}

fn messages(fields: Value) -> Vec<Message> {
    match parse(fields).unwrap().question.prompt {
        Prompt::Chat(conversation) => conversation.messages,
        other => panic!("{other:?}"),
    }
}

#[test]
fn items_become_turns() {
    assert_eq!(messages(json!({})), [Message::new("user", "hi")]);
    let told = messages(json!({
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "Politely."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "rain?"}]},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
                {"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []},
            ]},
            // As openai's `model_dump()` writes an item of an answer.
            {
                "type": "function_call", "id": "fc_1", "status": "completed", "call_id": "a", "name": "f",
                "arguments": "{}", "async_": null, "caller": null, "namespace": null,
            },
            {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{\"x\": 1}"},
            {"type": "function_call_output", "call_id": "a", "output": "yes"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "no"}]},
        ],
    }));
    let call = |id: &str, name: &str, arguments: Value| ToolCall {
        id: id.into(),
        name: name.into(),
        arguments: arguments.as_object().unwrap().clone(),
    };
    let result =
        |id: &str, text: &str| Message { tool_call_id: Some(id.into()), ..Message::new("tool", text) };
    assert_eq!(
        told,
        [
            Message::new("system", "Be brief."),
            Message::new("system", "Politely."),
            Message::new("user", "rain?"),
            Message {
                tool_calls: vec![call("a", "f", json!({})), call("b", "g", json!({"x": 1}))],
                ..Message::new("assistant", "Let me see.")
            },
            result("a", "yes"),
            result("b", "no"),
        ]
    );
}

#[test]
fn other_fields_arrive() {
    let ResponseRequest { question, offer, form, stream, echoed } = parse(json!({
        "max_output_tokens": 9, "temperature": 0, "top_p": 0.5, "seed": 3, "stream": true,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": true}},
        "include": ["message.output_text.logprobs"], "top_logprobs": 2, "store": true, "metadata": {"a": "b"},
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
        "tool_choice": "none", "parallel_tool_calls": false,
    }))
    .unwrap();
    assert_eq!((question.max_tokens, question.params.temperature, question.seed), (Some(9), 0.0, Some(3)));
    assert_eq!(question.logprobs, Some(2));
    let form = form.unwrap();
    assert_eq!(
        (form.constraint, form.field),
        (Constraint::JsonSchema("{\"type\":\"object\"}".into()), "text.format.schema")
    );
    assert!(stream && offer.told().is_empty());
    assert_eq!((echoed.max_output_tokens, echoed.tool_choice), (Some(9), json!("none")));
}

#[test]
fn bad_values_name_their_field() {
    use Reason::{InvalidField, NotBuilt};
    let item = |item: Value| json!({"input": [item]});
    for (fields, field, reason) in [
        (json!({"model": null}), "model", InvalidField),
        (json!({"input": null}), "input", InvalidField),
        (json!({"input": []}), "input", InvalidField),
        (json!({"input": 1}), "input", InvalidField),
        (item(json!(1)), "input[0]", InvalidField),
        (item(json!({"role": "user"})), "input[0]", InvalidField),
        (item(json!({"role": "king", "content": "x"})), "input[0].role", InvalidField),
        (
            item(json!({"role": "user", "content": [{"type": "input_image"}]})),
            "input[0].content[0].type",
            NotBuilt,
        ),
        (item(json!({"type": "reasoning"})), "input[0].type", NotBuilt),
        (item(json!({"type": "item_reference", "id": "x"})), "input[0].type", NotBuilt),
        (
            item(json!({"type": "function_call", "call_id": "a", "name": "f", "arguments": "["})),
            "input[0].arguments",
            InvalidField,
        ),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id", NotBuilt),
        (json!({"conversation": "conv_1"}), "conversation", NotBuilt),
        (json!({"background": true}), "background", NotBuilt),
        (json!({"reasoning": {"effort": "high"}}), "reasoning", NotBuilt),
        (json!({"include": ["file_search_call.results"]}), "include", NotBuilt),
        (json!({"top_logprobs": 3}), "top_logprobs", InvalidField),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "x"}}}),
            "text.format.schema",
            InvalidField,
        ),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity", NotBuilt),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type", NotBuilt),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name", InvalidField),
        (
            json!({"tools": [
                {"type": "function", "name": "f", "defer_loading": false, "output_schema": null},
                {"type": "function", "name": "g", "defer_loading": true},
            ]}),
            "tools[1].defer_loading",
            NotBuilt,
        ),
        (json!({"max_output_tokens": 0}), "max_output_tokens", InvalidField),
        (json!({"messages": []}), "messages", InvalidField),
    ] {
        let failure = parse(fields.clone()).map(|_| ()).unwrap_err();
        assert_eq!((failure.field.as_deref(), failure.reason), (Some(field), reason), "{fields}: {failure}");
    }
}
