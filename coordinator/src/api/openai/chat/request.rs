//! A chat completion request from bytes: every field is honoured, known to change nothing, or refused
//! by name.

use ::request::Request;
use serde::Deserialize;
use serde_json::Value;
use text::Conversation;

use super::super::asking::{RawStreamOptions, include_usage};
use super::super::body::{fields, missing, typed};
use super::super::constraint::{Asked, response_format};
use super::super::fields::CHAT;
use super::super::messages;
use super::super::sampling::RawSampling;
use super::super::tools::Offer;
use super::SPELLING;
use crate::failure::{Failure, invalid};
use crate::question::{Prompt, Question, Spelling};

/// The honoured fields, checked.
#[derive(Debug)]
pub(super) struct ChatRequest {
    /// Without its constraint: that of tools depends on the model.
    pub(super) question: Question,
    pub(super) spelling: Spelling,
    pub(super) offer: Offer,
    pub(super) form: Option<Asked>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

/// The fields of this path alone, as they are spelled.
#[derive(Deserialize)]
struct Raw {
    model: Option<String>,
    messages: Option<Value>,
    max_completion_tokens: Option<u32>,
    max_tokens: Option<u32>,
    logprobs: Option<bool>,
    top_logprobs: Option<u8>,
    response_format: Option<Value>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<RawStreamOptions>,
}

impl ChatRequest {
    /// Reads a body of bounded size.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Failure> {
        let fields = fields(body, &CHAT)?;
        let raw: Raw = typed(&fields)?;
        let mut sampling = RawSampling::read(&fields)?;
        let model = raw.model.ok_or_else(|| missing("model", "name one of /v1/models"))?;
        let messages = raw.messages.ok_or_else(|| missing("messages", "send at least one message"))?;
        let messages = messages::read(&messages, "messages")?;
        let offer = Offer::of_chat(raw.tools.as_ref(), raw.tool_choice.as_ref(), raw.parallel_tool_calls)?;
        let format = raw.response_format.as_ref().map(response_format).transpose()?.flatten();
        let outputs = sampling.structured_outputs.take().map(|raw| raw.check()).transpose()?.flatten();
        if let (Some(_), Some(outputs)) = (&format, &outputs) {
            let why = format!("{}: contradicts response_format; send one of them", outputs.field);
            return Err(invalid(outputs.field, why));
        }
        let stream = raw.stream.unwrap_or(false);
        let conversation = Conversation { messages, tools: offer.told() };
        let mut question = Question::new(model, Prompt::Chat(conversation));
        sampling.apply(&mut question)?;
        question.max_tokens = max_tokens(raw.max_completion_tokens, raw.max_tokens)?;
        let older = raw.max_tokens.is_some() && raw.max_completion_tokens.is_none();
        let spelling = if older { Spelling { max_tokens: "max_tokens", ..SPELLING } } else { SPELLING };
        question.logprobs = logprobs(raw.logprobs.unwrap_or(false), raw.top_logprobs)?;
        Ok(Self {
            question,
            spelling,
            offer,
            form: format.or(outputs),
            stream,
            include_usage: include_usage(raw.stream_options, stream)?,
        })
    }
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

fn logprobs(asked: bool, top: Option<u8>) -> Result<Option<u8>, Failure> {
    match top {
        Some(n) if n > Request::MOST_LOGPROBS => Err(invalid(
            "top_logprobs",
            format!("top_logprobs: {n} is not between 0 and {}", Request::MOST_LOGPROBS),
        )),
        Some(n) if n > 0 && !asked => {
            Err(invalid("top_logprobs", "top_logprobs: only allowed when logprobs is true"))
        }
        top => Ok(asked.then(|| top.unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests;
