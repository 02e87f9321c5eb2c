//! The form that an answer is held to: OpenAI's `response_format` and `text.format`, vLLM's
//! `structured_outputs`.

use request::Constraint;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::body::{missing, shown, within};
use crate::failure::{Failure, invalid, not_built};

/// A constraint and the field that asked for it: whoever compiles it does not know how it was spelled.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) constraint: Constraint,
    pub(super) field: &'static str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStructuredOutputs {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    structural_tag: Option<Value>,
    whitespace_pattern: Option<Value>,
    disable_any_whitespace: Option<bool>,
    disable_additional_properties: Option<bool>,
    disable_fallback: Option<bool>,
}

impl RawStructuredOutputs {
    pub(super) fn check(self) -> Result<Option<Asked>, Failure> {
        const AT: &str = "structured_outputs";
        for (name, set) in [
            ("structural_tag", self.structural_tag.is_some()),
            ("whitespace_pattern", self.whitespace_pattern.is_some()),
            ("disable_any_whitespace", self.disable_any_whitespace == Some(true)),
            ("disable_additional_properties", self.disable_additional_properties == Some(true)),
        ] {
            if set {
                let field = format!("{AT}.{name}");
                return Err(not_built(&field, format!("{field}: not built; leave it out")));
            }
        }
        // There is one back end, so nothing to fall back to.
        let _ = self.disable_fallback;
        let json = self.json.map(|schema| {
            let schema = match schema {
                // vLLM takes the document as text, too.
                Value::String(text) => text,
                schema => schema.to_string(),
            };
            Asked { constraint: Constraint::JsonSchema(schema), field: "structured_outputs.json" }
        });
        let object = (self.json_object == Some(true))
            .then_some(Asked { constraint: Constraint::JsonObject, field: "structured_outputs.json_object" });
        let regex = self
            .regex
            .map(|regex| Asked { constraint: Constraint::Regex(regex), field: "structured_outputs.regex" });
        let choice = match self.choice {
            Some(words) if words.is_empty() || words.contains(&String::new()) => {
                let field = "structured_outputs.choice";
                return Err(invalid(field, format!("{field}: must be a list of texts that are not empty")));
            }
            Some(words) => Some(Asked {
                constraint: Constraint::Regex(one_of(&words)),
                field: "structured_outputs.choice",
            }),
            None => None,
        };
        let grammar = self.grammar.map(|grammar| Asked {
            constraint: Constraint::Grammar(grammar),
            field: "structured_outputs.grammar",
        });
        let mut asked = [json, object, regex, choice, grammar].into_iter().flatten();
        match (asked.next(), asked.next()) {
            (_, Some(second)) => Err(invalid(
                AT,
                format!("{AT}: has {} beside another form; an answer has one form", second.field),
            )),
            (None, _) => Err(invalid(
                AT,
                format!("{AT}: is empty; send one of json, json_object, regex, choice, grammar"),
            )),
            (one, None) => Ok(one),
        }
    }
}

/// `response_format` (chat), where a schema lies in `json_schema`.
pub(super) fn response_format(format: &Value) -> Result<Option<Asked>, Failure> {
    let at = "response_format";
    let raw: RawFormat = within(format, at)?;
    match raw.kind(at)? {
        Kind::Text => raw.nothing_else(at).map(|()| None),
        Kind::JsonObject => raw.nothing_else(at).map(|()| Some(json_object(at))),
        Kind::JsonSchema => {
            let at = "response_format.json_schema";
            let Some(schema) = &raw.json_schema else {
                return Err(missing(at, "send {\"name\": .., \"schema\": {..}}"));
            };
            let schema: RawSchema = within(schema, at)?;
            schema.check(at, "response_format.json_schema.schema").map(Some)
        }
    }
}

/// `text.format` (responses), where a schema lies beside the type.
pub(super) fn text_format(format: &Value) -> Result<Option<Asked>, Failure> {
    let at = "text.format";
    let raw: RawFlatFormat = within(format, at)?;
    let RawFlatFormat { r#type, name, description, schema, strict } = raw;
    match kind(&r#type, at)? {
        Kind::Text => Ok(None),
        Kind::JsonObject => Ok(Some(json_object(at))),
        Kind::JsonSchema => {
            RawSchema { name, description, schema, strict }.check(at, "text.format.schema").map(Some)
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFormat {
    r#type: String,
    json_schema: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFlatFormat {
    r#type: String,
    name: Option<String>,
    description: Option<String>,
    schema: Option<Map<String, Value>>,
    strict: Option<bool>,
}

/// `strict` changes nothing: a schema is always kept.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read so that they are known fields")]
struct RawSchema {
    name: Option<String>,
    description: Option<String>,
    schema: Option<Map<String, Value>>,
    strict: Option<bool>,
}

enum Kind {
    Text,
    JsonObject,
    JsonSchema,
}

impl RawFormat {
    fn kind(&self, at: &str) -> Result<Kind, Failure> {
        kind(&self.r#type, at)
    }

    fn nothing_else(&self, at: &str) -> Result<(), Failure> {
        if self.json_schema.is_none() {
            return Ok(());
        }
        let field = format!("{at}.json_schema");
        Err(invalid(&field, format!("{field}: only allowed with type json_schema")))
    }
}

impl RawSchema {
    fn check(self, at: &str, field: &'static str) -> Result<Asked, Failure> {
        let name = format!("{at}.name");
        let good = |n: &String| {
            (1..=64).contains(&n.len())
                && n.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        if !self.name.as_ref().is_some_and(good) {
            return Err(invalid(&name, format!("{name}: must be 1 to 64 letters, digits, _ or -")));
        }
        let schema = self.schema.ok_or_else(|| missing(field, "send a JSON Schema object"))?;
        Ok(Asked { constraint: Constraint::JsonSchema(Value::Object(schema).to_string()), field })
    }
}

fn kind(kind: &str, at: &str) -> Result<Kind, Failure> {
    match kind {
        "text" => Ok(Kind::Text),
        "json_object" => Ok(Kind::JsonObject),
        "json_schema" => Ok(Kind::JsonSchema),
        "grammar" | "structural_tag" | "python" => {
            let field = format!("{at}.type");
            Err(not_built(&field, format!("{field}: {kind} is not built; use structured_outputs")))
        }
        other => {
            let (field, other) = (format!("{at}.type"), shown(other));
            Err(invalid(&field, format!("{field}: {other:?} is not one of text, json_object, json_schema")))
        }
    }
}

fn json_object(field: &'static str) -> Asked {
    Asked { constraint: Constraint::JsonObject, field }
}

/// The expression that matches these texts and no other.
fn one_of(words: &[String]) -> String {
    let mut out = String::from("(?:");
    for (i, word) in words.iter().enumerate() {
        if i > 0 {
            out.push('|');
        }
        for c in word.chars() {
            // Not all punctuation: an escaped `<` is a word's start.
            if r"\.+*?()|[]{}^$#&-~".contains(c) {
                out.push('\\');
            }
            out.push(c);
        }
    }
    out.push(')');
    out
}
