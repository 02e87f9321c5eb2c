//! Input items to the turns of a conversation.

use proto::bounds::MAX_CHAT_MESSAGES;
use serde::Deserialize;
use serde_json::Value;
use text::{Message, ToolCall};

use super::super::body::{shown, within};
use super::super::messages::{Content, arguments};
use crate::failure::{Failure, invalid, not_built};

/// An item's type; messages may leave theirs out.
#[derive(Deserialize)]
struct RawType {
    r#type: Option<String>,
}

/// `id`, `status` and `phase` come back with our own answers and say nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read so that they are known fields")]
struct RawMessage {
    r#type: Option<String>,
    role: String,
    content: Content,
    id: Option<String>,
    status: Option<String>,
    phase: Option<String>,
}

/// A client that sends items back as its SDK dumps them has `null` for what we never say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read so that they are known fields")]
struct RawCall {
    r#type: String,
    call_id: String,
    name: String,
    arguments: String,
    id: Option<String>,
    status: Option<String>,
    caller: Option<()>,
    namespace: Option<()>,
    r#async: Option<()>,
    async_: Option<()>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read so that they are known fields")]
struct RawOutput {
    r#type: String,
    call_id: String,
    output: Content,
    name: Option<String>,
    id: Option<String>,
    status: Option<String>,
    caller: Option<()>,
    namespace: Option<()>,
}

pub(super) fn read(input: &Value) -> Result<Vec<Message>, Failure> {
    const AT: &str = "input";
    let items = match input {
        Value::String(text) => return Ok(vec![Message::new("user", text.as_str())]),
        Value::Array(items) if items.is_empty() => {
            return Err(invalid(AT, "input: is empty; send at least one item"));
        }
        Value::Array(items) if items.len() > MAX_CHAT_MESSAGES => {
            let why = format!("input: has {} items; at most {MAX_CHAT_MESSAGES} are taken", items.len());
            return Err(invalid(AT, why));
        }
        Value::Array(items) => items,
        _ => return Err(invalid(AT, "input: must be a string or a list of items")),
    };
    let mut messages: Vec<Message> = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let at = format!("{AT}[{i}]");
        let kind: RawType = within(item, &at)?;
        match kind.r#type.as_deref().unwrap_or("message") {
            "message" => messages.push(message(within(item, &at)?, &at)?),
            "function_call" => call(within(item, &at)?, &at, &mut messages)?,
            "function_call_output" => {
                let RawOutput { call_id, output, .. } = within(item, &at)?;
                let content = output.text(&format!("{at}.output"), &["input_text"])?;
                let message = Message::new("tool", content);
                messages.push(Message { tool_call_id: Some(call_id), ..message });
            }
            other => {
                let (field, other) = (format!("{at}.type"), shown(other));
                return Err(not_built(
                    &field,
                    format!(
                        "{field}: {other:?} items are not built; taken are message, function_call, \
                         function_call_output"
                    ),
                ));
            }
        }
    }
    Ok(messages)
}

fn message(raw: RawMessage, at: &str) -> Result<Message, Failure> {
    let role = match raw.role.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        other => {
            let (field, other) = (format!("{at}.role"), shown(other));
            let why = format!("{field}: {other:?} is not one of system, developer, user, assistant");
            return Err(invalid(&field, why));
        }
    };
    Ok(Message::new(role, raw.content.text(&format!("{at}.content"), &["input_text", "output_text"])?))
}

/// Calls of one turn are one message, together with the text before them.
fn call(raw: RawCall, at: &str, messages: &mut Vec<Message>) -> Result<(), Failure> {
    let arguments = arguments(&raw.arguments, &format!("{at}.arguments"))?;
    let call = ToolCall { id: raw.call_id, name: raw.name, arguments };
    match messages.last_mut().filter(|last| last.role == "assistant") {
        Some(last) => last.tool_calls.push(call),
        None => {
            messages.push(Message { role: "assistant".into(), tool_calls: vec![call], ..Message::default() })
        }
    }
    Ok(())
}
