//! The messages of a chat completion request.

use serde::Deserialize;
use serde::de::{self, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::failure::{Failure, invalid, not_built};

/// Roles that a chat template knows, as OpenAI spells them, and what the template is told.
const ROLES: [(&str, &str); 4] =
    [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")];

/// Part types of OpenAI's that carry something other than text.
const OTHER_PARTS: [&str; 4] = ["image_url", "input_audio", "file", "refusal"];

/// A message as it is spelled. Fields of tools and audio are read so that they can be refused by name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMessage {
    role: String,
    content: Option<Content>,
    /// Taken without effect: the templates of the models we serve have no place for it.
    #[serde(rename = "name")]
    _name: Option<String>,
    tool_calls: Option<Value>,
    tool_call_id: Option<Value>,
    function_call: Option<Value>,
    refusal: Option<Value>,
    audio: Option<Value>,
}

impl RawMessage {
    /// The message for the template; `index` is its place, for the errors.
    pub(super) fn check(self, index: usize) -> Result<(&'static str, String), Failure> {
        let at = |field: &str| format!("messages[{index}].{field}");
        let Some((_, role)) = ROLES.iter().find(|(spelled, _)| *spelled == self.role) else {
            let field = at("role");
            let shown: String = self.role.chars().take(40).collect();
            return Err(match self.role.as_str() {
                "tool" | "function" => {
                    not_built(&field, format!("{field}: {shown:?} is not built yet (tools are not)"))
                }
                _ => invalid(
                    &field,
                    format!("{field}: {shown:?} is not one of system, developer, user, assistant"),
                ),
            });
        };
        for (name, value) in [
            ("tool_calls", &self.tool_calls),
            ("tool_call_id", &self.tool_call_id),
            ("function_call", &self.function_call),
            ("refusal", &self.refusal),
            ("audio", &self.audio),
        ] {
            // `null` is `None` already; SDKs echo an empty list.
            if value.as_ref().is_some_and(|v| !v.as_array().is_some_and(Vec::is_empty)) {
                let field = at(name);
                return Err(not_built(&field, format!("{field}: not built yet; leave it out")));
            }
        }
        let content = match self.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts
                .iter()
                .enumerate()
                .map(|(i, part)| text_of(part, || at(&format!("content[{i}]"))))
                .collect::<Result<Vec<_>, _>>()?
                // OpenAI does not say what stands between parts; like vLLM we put a line break.
                .join("\n"),
            None => {
                let field = at("content");
                return Err(invalid(&field, format!("{field}: is missing; send a string or text parts")));
            }
        };
        Ok((*role, content))
    }
}

enum Content {
    Text(String),
    Parts(Vec<Map<String, Value>>),
}

fn text_of(part: &Map<String, Value>, at: impl Fn() -> String) -> Result<&str, Failure> {
    let field = |name: &str| format!("{}.{name}", at());
    match part.get("type") {
        Some(Value::String(kind)) if kind == "text" => {}
        Some(Value::String(kind)) => {
            let field = field("type");
            let shown: String = kind.chars().take(40).collect();
            return Err(if OTHER_PARTS.contains(&kind.as_str()) {
                not_built(
                    &field,
                    format!("{field}: {shown:?} parts are not built yet; only text parts are taken"),
                )
            } else {
                invalid(&field, format!("{field}: {shown:?} is no part type; only text parts are taken"))
            });
        }
        _ => return Err(invalid(field("type"), format!("{}: must be \"text\"", field("type")))),
    }
    if let Some(other) = part.keys().find(|k| !matches!(k.as_str(), "type" | "text")) {
        let shown: String = other.chars().take(80).collect();
        let field = field(&shown);
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
