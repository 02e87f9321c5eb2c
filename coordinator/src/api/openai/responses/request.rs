//! A responses request from bytes.

use ::request::Request;
use serde::Deserialize;
use serde_json::{Value, json};
use text::{Conversation, Message};

use super::super::body::{fields, missing, shown, typed};
use super::super::constraint::{Asked, text_format};
use super::super::fields::RESPONSES;
use super::super::sampling::RawSampling;
use super::super::tools::Offer;
use super::input;
use super::object::Echoed;
use crate::failure::{Failure, invalid, not_built};
use crate::question::{Prompt, Question};

/// The honoured fields, checked.
#[derive(Debug)]
pub(super) struct ResponseRequest {
    /// Without its constraint: that of tools depends on the model.
    pub(super) question: Question,
    pub(super) offer: Offer,
    pub(super) form: Option<Asked>,
    pub(super) stream: bool,
    pub(super) echoed: Echoed,
}

#[derive(Deserialize)]
struct Raw {
    model: Option<String>,
    input: Option<Value>,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    top_logprobs: Option<u8>,
    include: Option<Vec<String>>,
    text: Option<RawText>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    stream: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawText {
    format: Option<Value>,
    verbosity: Option<String>,
}

const LOGPROBS: &str = "message.output_text.logprobs";

impl ResponseRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Failure> {
        let fields = fields(body, &RESPONSES)?;
        let raw: Raw = typed(&fields)?;
        let sampling = RawSampling::read(&fields)?;
        let model = raw.model.ok_or_else(|| missing("model", "name one of /v1/models"))?;
        let input = raw.input.ok_or_else(|| missing("input", "send a string or a list of items"))?;
        let system = raw.instructions.iter().map(|text| Message::new("system", text.as_str()));
        let mut messages: Vec<Message> = system.collect();
        messages.extend(input::read(&input)?);
        let offer =
            Offer::of_responses(raw.tools.as_ref(), raw.tool_choice.as_ref(), raw.parallel_tool_calls)?;
        let (format, verbosity) = raw.text.map_or((None, None), |text| (text.format, text.verbosity));
        if verbosity.is_some_and(|v| v != "medium") {
            return Err(not_built("text.verbosity", "text.verbosity: not built; say it in the instructions"));
        }
        let form = format.as_ref().map(text_format).transpose()?.flatten();
        let mut question = Question::new(model, Prompt::Chat(Conversation { messages, tools: offer.told() }));
        sampling.apply(&mut question)?;
        if raw.max_output_tokens == Some(0) {
            return Err(invalid("max_output_tokens", "max_output_tokens: must be at least 1"));
        }
        question.max_tokens = raw.max_output_tokens;
        question.logprobs = logprobs(&raw.include.unwrap_or_default(), raw.top_logprobs)?;
        let echoed = Echoed {
            instructions: raw.instructions,
            max_output_tokens: raw.max_output_tokens,
            parallel_tool_calls: raw.parallel_tool_calls.unwrap_or(true),
            temperature: as_written(question.params.temperature),
            top_p: as_written(question.params.top_p),
            top_logprobs: raw.top_logprobs.unwrap_or(0),
            format: format.unwrap_or_else(|| json!({"type": "text"})),
            tools: raw.tools.unwrap_or_else(|| json!([])),
            tool_choice: raw.tool_choice.unwrap_or_else(|| json!("auto")),
        };
        Ok(Self { question, offer, form, stream: raw.stream.unwrap_or(false), echoed })
    }
}

/// The number that an `f32` is written as: 0.7 comes back as 0.7 and not with the digits that an `f64` has
/// of it.
fn as_written(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}

fn logprobs(include: &[String], top: Option<u8>) -> Result<Option<u8>, Failure> {
    // Reasoning is never written here, so its encrypted form is nothing; SDKs ask for it by default.
    let known = |what: &&String| *what != LOGPROBS && *what != "reasoning.encrypted_content";
    if let Some(other) = include.iter().find(known) {
        let other = shown(other);
        return Err(not_built("include", format!("include: {other:?} is not built; only {LOGPROBS} is")));
    }
    let asked = include.iter().any(|what| what == LOGPROBS);
    match top {
        Some(n) if n > Request::MOST_LOGPROBS => Err(invalid(
            "top_logprobs",
            format!("top_logprobs: {n} is not between 0 and {}", Request::MOST_LOGPROBS),
        )),
        Some(n) if n > 0 && !asked => {
            Err(invalid("top_logprobs", format!("top_logprobs: only allowed when include names {LOGPROBS}")))
        }
        top => Ok(asked.then(|| top.unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests;
