//! A chat completion request from bytes: every field is honoured, known to change nothing, or refused
//! by name.

use std::time::Duration;

use proto::bounds::MAX_CHAT_MESSAGES;
use request::{SamplingParams, Speculation, Strategy};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::{HONOURED, NO_EFFECT, NOT_BUILT};
use super::messages::RawMessage;
use crate::failure::{self, Failure, from_field, invalid, not_built};
use crate::question::{Prompt, Question};

/// How long one lockstep wait lasts at most when the request does not say.
const LOCKSTEP_DEADLINE: Duration = Duration::from_secs(1);

/// The honoured fields, checked.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) question: Question,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl ChatRequest {
    /// Reads a body of bounded size. The intermediate JSON tree can be several times the body; it lives
    /// only inside this call, so at most once per runtime thread.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Failure> {
        let mut object = object(body)?;
        object.retain(|_, value| !value.is_null());
        check_names(&object)?;
        object.retain(|name, _| HONOURED.iter().any(|(honoured, _)| name == honoured));
        let raw: Raw = serde_path_to_error::deserialize(Value::Object(object)).map_err(|e| {
            let path = e.path().to_string();
            let inner = e.into_inner();
            match path.as_str() {
                "." | "?" => failure::new(failure::Reason::InvalidField, inner.to_string()),
                _ => invalid(&path, format!("{path}: {inner}")),
            }
        })?;
        raw.check()
    }
}

/// The honoured fields as they are spelled.
#[derive(Deserialize)]
struct Raw {
    model: Option<String>,
    messages: Option<Vec<RawMessage>>,
    max_completion_tokens: Option<u32>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    seed: Option<Seed>,
    stream: Option<bool>,
    stream_options: Option<RawStreamOptions>,
    n: Option<u64>,
    speculation: Option<RawSpeculation>,
}

/// OpenAI's seeds are signed; ours are not. A negative one names the same noise as its two's complement.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a 64-bit integer")]
enum Seed {
    Unsigned(u64),
    Signed(i64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStreamOptions {
    include_usage: Option<bool>,
    include_obfuscation: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpeculation {
    strategy: Option<RawStrategy>,
    max_draft: Option<u32>,
    k: Option<u32>,
    deadline_ms: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawStrategy {
    Auto,
    None,
    Draft,
    Lockstep,
}

impl Raw {
    fn check(self) -> Result<ChatRequest, Failure> {
        let model = self.model.ok_or_else(|| missing("model", "name one of /v1/models"))?;
        let messages = self.messages.ok_or_else(|| missing("messages", "send at least one message"))?;
        if messages.is_empty() {
            return Err(invalid("messages", "messages: is empty; send at least one message"));
        }
        if messages.len() > MAX_CHAT_MESSAGES {
            let why = format!("messages: has {}; at most {MAX_CHAT_MESSAGES} are taken", messages.len());
            return Err(invalid("messages", why));
        }
        let messages: Vec<_> =
            messages.into_iter().enumerate().map(|(i, m)| m.check(i)).collect::<Result<_, _>>()?;
        let messages: Vec<_> =
            messages.into_iter().map(|(role, content)| text::Message::new(role, content)).collect();
        let messages = messages.into();
        match self.n {
            None | Some(1) => {}
            Some(0) => return Err(invalid("n", "n: must be 1")),
            Some(n) => {
                return Err(not_built(
                    "n",
                    format!("n: {n} choices are not built yet; send {n} requests with different seeds"),
                ));
            }
        }
        let stream = self.stream.unwrap_or(false);
        let include_usage = match self.stream_options {
            Some(_) if !stream => {
                return Err(invalid("stream_options", "stream_options: only allowed when stream is true"));
            }
            Some(RawStreamOptions { include_obfuscation: Some(true), .. }) => {
                return Err(not_built(
                    "stream_options.include_obfuscation",
                    "stream_options.include_obfuscation: not built yet; leave it out or send false",
                ));
            }
            Some(options) => options.include_usage.unwrap_or(false),
            None => false,
        };
        let question = Question {
            params: params(self.temperature, self.top_p, self.top_k, self.min_p)?,
            seed: self.seed.map(|s| match s {
                Seed::Unsigned(s) => s,
                Seed::Signed(s) => s.cast_unsigned(),
            }),
            max_tokens: max_tokens(self.max_completion_tokens, self.max_tokens)?,
            speculation: self.speculation.map(RawSpeculation::check).transpose()?.unwrap_or_default(),
            ..Question::new(model, Prompt::Chat(messages))
        };
        Ok(ChatRequest { question, stream, include_usage })
    }
}

impl RawSpeculation {
    fn check(self) -> Result<Speculation, Failure> {
        let strategy = match self.strategy {
            Some(RawStrategy::Lockstep) => {
                let k = self.k.ok_or_else(|| {
                    invalid(
                        "speculation.k",
                        "speculation.k: needed with strategy lockstep: how many drafts to wait for",
                    )
                })?;
                let deadline =
                    self.deadline_ms.map_or(LOCKSTEP_DEADLINE, |ms| Duration::from_millis(ms.into()));
                Strategy::Lockstep { k, deadline }
            }
            other => {
                for (field, value) in
                    [("speculation.k", self.k), ("speculation.deadline_ms", self.deadline_ms)]
                {
                    if value.is_some() {
                        return Err(invalid(field, format!("{field}: only allowed with strategy lockstep")));
                    }
                }
                match other {
                    Some(RawStrategy::None) => Strategy::None,
                    Some(RawStrategy::Draft) => Strategy::Draft,
                    _ => Strategy::Auto,
                }
            }
        };
        let speculation = Speculation { strategy, max_draft: self.max_draft, ..Speculation::default() };
        speculation.validate(&SamplingParams::GREEDY).map_err(|e| {
            let field = match e.field {
                "speculation.lockstep.k" => "speculation.k",
                "speculation.lockstep.deadline" => "speculation.deadline_ms",
                other => other,
            };
            invalid(field, format!("{field}: {}", e.why))
        })?;
        Ok(speculation)
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Failure> {
    let wrong = |why: String| failure::new(failure::Reason::InvalidField, why);
    let text = std::str::from_utf8(body)
        .map_err(|e| wrong(format!("the body is not UTF-8: invalid byte at offset {}", e.valid_up_to())))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("the body is not a JSON object".into())),
        Err(e) => Err(wrong(format!("the body is not valid JSON: {e}"))),
    }
}

/// Fields that are unknown, or known and not built. `null` was dropped before: it asks for nothing.
fn check_names(object: &Map<String, Value>) -> Result<(), Failure> {
    for (name, value) in object {
        let known = |table: &[(&str, &str)]| table.iter().any(|(n, _)| n == name);
        if known(HONOURED) || known(NO_EFFECT) {
            continue;
        }
        match NOT_BUILT.iter().find(|(n, _)| n == name) {
            Some((_, neutral)) if neutral.holds(value) => {}
            Some((_, neutral)) => {
                return Err(not_built(
                    name,
                    format!("{name}: not built yet; leave it out or send its neutral value ({neutral})"),
                ));
            }
            None => {
                // A name can be as long as the body; the error shows what a person needs to find it.
                let shown: String = name.chars().take(80).collect();
                return Err(invalid(
                    &shown,
                    format!("{shown}: unknown field; docs/openai-api.md lists the fields that are taken"),
                ));
            }
        }
    }
    Ok(())
}

fn missing(field: &str, what: &str) -> Failure {
    invalid(field, format!("{field}: is missing; {what}"))
}

fn params(
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
) -> Result<SamplingParams, Failure> {
    let top_k = match top_k {
        None | Some(-1) => 0,
        Some(k) => u32::try_from(k)
            .map_err(|_| invalid("top_k", format!("top_k: {k} is not -1 or between 0 and {}", u32::MAX)))?,
    };
    let params = SamplingParams {
        temperature: temperature.unwrap_or(1.0),
        top_k,
        top_p: top_p.unwrap_or(1.0),
        min_p: min_p.unwrap_or(0.0),
        typical_p: 1.0,
    };
    params.validate().map_err(|e| from_field(&e))?;
    Ok(params)
}

fn max_tokens(newer: Option<u32>, older: Option<u32>) -> Result<Option<u32>, Failure> {
    let (field, chosen) = match (newer, older) {
        (Some(a), Some(b)) if a != b => {
            return Err(invalid(
                "max_tokens",
                format!("max_tokens: {b} contradicts max_completion_tokens {a}; send one of them"),
            ));
        }
        (Some(_), _) => ("max_completion_tokens", newer),
        _ => ("max_tokens", older),
    };
    if chosen == Some(0) {
        return Err(invalid(field, format!("{field}: must be at least 1")));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests;
