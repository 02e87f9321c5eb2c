//! Messages as OpenAI spells them, to the conversation that a chat template reads.

use proto::bounds::MAX_CHAT_MESSAGES;
use serde::Deserialize;
use serde::de::{self, SeqAccess, Visitor};
use serde_json::{Map, Value};
use text::{Message, ToolCall};

use super::body::{shown, within};
use crate::failure::{Failure, invalid, not_built};

/// Part types of OpenAI's that carry something other than text.
const OTHER_PARTS: [&str; 9] = [
    "image_url",
    "input_audio",
    "file",
    "video_url",
    "audio_url",
    "refusal",
    "input_image",
    "input_file",
    "thinking",
];

/// A message as it is spelled. Fields that are not taken are read so that they can be refused by name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMessage {
    role: String,
    content: Option<Content>,
    name: Option<String>,
    tool_calls: Option<Vec<RawCall>>,
    tool_call_id: Option<String>,
    function_call: Option<Value>,
    refusal: Option<Value>,
    audio: Option<Value>,
    /// Ours and vLLM's answers have them; SDKs send answers back as they came.
    annotations: Option<Value>,
    reasoning: Option<Value>,
    reasoning_content: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCall {
    id: String,
    #[serde(default = "function")]
    r#type: String,
    function: Option<RawFunction>,
    /// In streamed deltas; some clients leave it in.
    #[serde(rename = "index")]
    _index: Option<u32>,
}

fn function() -> String {
    "function".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFunction {
    name: String,
    arguments: String,
}

/// The messages of a request; `at` is the field they stand in.
pub(super) fn read(messages: &Value, at: &str) -> Result<Vec<Message>, Failure> {
    let raw: Vec<RawMessage> = within(messages, at)?;
    if raw.is_empty() {
        return Err(invalid(at, format!("{at}: is empty; send at least one message")));
    }
    if raw.len() > MAX_CHAT_MESSAGES {
        let why = format!("{at}: has {}; at most {MAX_CHAT_MESSAGES} are taken", raw.len());
        return Err(invalid(at, why));
    }
    raw.into_iter().enumerate().map(|(i, message)| message.check(&format!("{at}[{i}]"))).collect()
}

impl RawMessage {
    fn check(self, at: &str) -> Result<Message, Failure> {
        let of = |field: &str| format!("{at}.{field}");
        let role = match self.role.as_str() {
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            "tool" => "tool",
            "function" => {
                let field = of("role");
                return Err(not_built(
                    &field,
                    format!("{field}: \"function\" is deprecated and not built; use role tool"),
                ));
            }
            other => {
                let (field, other) = (of("role"), shown(other));
                return Err(invalid(
                    &field,
                    format!("{field}: {other:?} is not one of system, developer, user, assistant, tool"),
                ));
            }
        };
        for (name, value) in [
            ("function_call", &self.function_call),
            ("refusal", &self.refusal),
            ("audio", &self.audio),
            ("annotations", &self.annotations),
            ("reasoning", &self.reasoning),
            ("reasoning_content", &self.reasoning_content),
        ] {
            // `null` is `None` already; SDKs echo an empty list.
            if value.as_ref().is_some_and(|v| !v.as_array().is_some_and(Vec::is_empty)) {
                let field = of(name);
                return Err(not_built(&field, format!("{field}: not built; leave it out")));
            }
        }
        let calls = self.tool_calls.unwrap_or_default();
        if role != "assistant" && !calls.is_empty() {
            let field = of("tool_calls");
            return Err(invalid(&field, format!("{field}: only an assistant's message has them")));
        }
        match (role == "tool", &self.tool_call_id) {
            (true, None) => {
                let field = of("tool_call_id");
                return Err(invalid(&field, format!("{field}: is missing; name the call that this answers")));
            }
            (false, Some(_)) => {
                let field = of("tool_call_id");
                return Err(invalid(&field, format!("{field}: only allowed with role tool")));
            }
            _ => {}
        }
        let tool_calls: Vec<ToolCall> = calls
            .into_iter()
            .enumerate()
            .map(|(i, call)| call.check(&of(&format!("tool_calls[{i}]"))))
            .collect::<Result<_, _>>()?;
        let content = match self.content {
            Some(content) => Some(content.text(&of("content"), &["text"])?),
            None if !tool_calls.is_empty() => None,
            None => {
                let field = of("content");
                return Err(invalid(&field, format!("{field}: is missing; send a string or text parts")));
            }
        };
        let Self { tool_call_id, name, .. } = self;
        Ok(Message { role: role.into(), content, tool_calls, tool_call_id, name })
    }
}

impl RawCall {
    fn check(self, at: &str) -> Result<ToolCall, Failure> {
        if self.r#type != "function" {
            let (field, kind) = (format!("{at}.type"), shown(&self.r#type));
            return Err(not_built(&field, format!("{field}: {kind:?} is not built; only function is")));
        }
        let Some(RawFunction { name, arguments }) = self.function else {
            let field = format!("{at}.function");
            return Err(invalid(&field, format!("{field}: is missing")));
        };
        let arguments = self::arguments(&arguments, &format!("{at}.function.arguments"))?;
        Ok(ToolCall { id: self.id, name, arguments })
    }
}

/// The arguments of a call, which templates want as an object.
pub(super) fn arguments(text: &str, field: &str) -> Result<Map<String, Value>, Failure> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(arguments)) => Ok(arguments),
        Ok(_) => Err(invalid(field, format!("{field}: is not a JSON object"))),
        Err(e) => Err(invalid(field, format!("{field}: is not valid JSON: {e}"))),
    }
}

/// A string or parts.
pub(super) enum Content {
    Text(String),
    Parts(Vec<Map<String, Value>>),
}

impl Content {
    /// As one text; `kinds` are the parts that are taken. Between parts stands a line break, as in vLLM:
    /// OpenAI does not say what.
    pub(super) fn text(self, at: &str, kinds: &[&str]) -> Result<String, Failure> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Parts(parts) => {
                let texts = parts
                    .iter()
                    .enumerate()
                    .map(|(i, part)| text_of(part, kinds, &format!("{at}[{i}]")))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(texts.join("\n"))
            }
        }
    }
}

fn text_of<'a>(part: &'a Map<String, Value>, kinds: &[&str], at: &str) -> Result<&'a str, Failure> {
    let field = |name: &str| format!("{at}.{name}");
    let taken = kinds.join(", ");
    match part.get("type") {
        Some(Value::String(kind)) if kinds.contains(&kind.as_str()) => {}
        Some(Value::String(kind)) => {
            let (field, shown) = (field("type"), shown(kind));
            return Err(if OTHER_PARTS.contains(&kind.as_str()) {
                not_built(
                    &field,
                    format!("{field}: {shown:?} parts are not built; taken are text parts ({taken})"),
                )
            } else {
                invalid(&field, format!("{field}: {shown:?} is no part type; taken are text parts ({taken})"))
            });
        }
        _ => return Err(invalid(field("type"), format!("{}: must be {taken}", field("type")))),
    }
    // What our own answers carry beside the text may come back with it.
    let known = |key: &str| matches!(key, "type" | "text" | "annotations" | "logprobs");
    if let Some(other) = part.keys().find(|key| !known(key)) {
        let field = field(&shown(other));
        return Err(invalid(&field, format!("{field}: unknown field of a text part")));
    }
    match part.get("text") {
        Some(Value::String(text)) => Ok(text),
        _ => Err(invalid(field("text"), format!("{}: must be a string", field("text")))),
    }
}

/// By hand, because serde's untagged enums lose the path and the reason of an error inside.
impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringOrParts;

        impl<'de> Visitor<'de> for StringOrParts {
            type Value = Content;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or a list of text parts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }

        deserializer.deserialize_any(StringOrParts)
    }
}
