use request::{Quality, RequestId, SamplingParams, Speculation, TokenId};

use super::{quality, tokens};
use crate::bounds::{MAX_CHAT_MESSAGES, MAX_KNOWN_TOKENS, MAX_TEXT_BYTES};
use crate::error::{WireError, at_most};
use crate::v1::{self, generate_request as wire};

/// A request of the public API: `v1::GenerateRequest`. What depends on the model (context, template,
/// defaults of the server) is not checked yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// `None`: the server draws one.
    pub id: Option<RequestId>,
    pub attempt: u32,
    pub model: String,
    pub prompt: Prompt,
    /// Output that the client has already.
    pub committed: Vec<TokenId>,
    pub params: SamplingParams,
    /// `None`: the server draws one.
    pub seed: Option<u64>,
    /// `None`: the server's default.
    pub max_tokens: Option<u32>,
    pub quality: Quality,
    pub speculation: Speculation,
}

/// What a prompt is given as; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
    /// Role, in the words that chat templates use (`system`, `user`, `assistant`), and content.
    Chat(Vec<(&'static str, String)>),
}

impl TryFrom<v1::GenerateRequest> for Asked {
    type Error = WireError;

    fn try_from(from: v1::GenerateRequest) -> Result<Self, WireError> {
        refuse_unbuilt(&from)?;
        if from.model.is_empty() {
            return Err(WireError::missing("model"));
        }
        at_most("model", from.model.len(), 256)?;
        if from.max_tokens == Some(0) {
            return Err(WireError::invalid("max_tokens", "must be at least 1"));
        }
        Ok(Self {
            id: if from.request_id.is_empty() { None } else { Some(RequestId::new(&from.request_id)?) },
            attempt: from.attempt,
            model: from.model,
            prompt: prompt(from.prompt.ok_or(WireError::missing("prompt"))?)?,
            committed: tokens("committed", from.committed, MAX_KNOWN_TOKENS)?,
            params: from.sampling.unwrap_or_default().try_into()?,
            seed: from.seed,
            max_tokens: from.max_tokens,
            quality: quality(from.quality)?,
            speculation: from.speculation.unwrap_or_default().try_into()?,
        })
    }
}

fn prompt(from: wire::Prompt) -> Result<Prompt, WireError> {
    match from {
        wire::Prompt::Text(text) => {
            if text.is_empty() {
                return Err(WireError::invalid("text", "is empty"));
            }
            at_most("text", text.len(), MAX_TEXT_BYTES)?;
            Ok(Prompt::Text(text))
        }
        wire::Prompt::Tokens(list) => {
            if list.ids.is_empty() {
                return Err(WireError::invalid("tokens", "has no ids; at least one is needed"));
            }
            Ok(Prompt::Tokens(tokens("tokens", list.ids, MAX_KNOWN_TOKENS)?))
        }
        wire::Prompt::Chat(chat) => {
            if chat.messages.is_empty() {
                return Err(WireError::invalid("chat.messages", "is empty; at least one is needed"));
            }
            at_most("chat.messages", chat.messages.len(), MAX_CHAT_MESSAGES)?;
            at_most("chat.messages", chat.messages.iter().map(|m| m.content.len()).sum(), MAX_TEXT_BYTES)?;
            let messages = chat.messages.into_iter().map(|m| Ok((chat_role(m.role)?, m.content)));
            Ok(Prompt::Chat(messages.collect::<Result<_, WireError>>()?))
        }
    }
}

fn chat_role(value: i32) -> Result<&'static str, WireError> {
    match v1::ChatRole::try_from(value) {
        Ok(v1::ChatRole::Unspecified) => Err(WireError::missing("chat.messages.role")),
        Ok(v1::ChatRole::System) => Ok("system"),
        Ok(v1::ChatRole::User) => Ok("user"),
        Ok(v1::ChatRole::Assistant) => Ok("assistant"),
        Err(_) => Err(WireError::unknown("chat.messages.role", value)),
    }
}

/// Fields of features that are planned: anything but the neutral value is refused by name.
fn refuse_unbuilt(from: &v1::GenerateRequest) -> Result<(), WireError> {
    let constraint = from.constraint.as_ref().map(|c| match c {
        wire::Constraint::JsonObject(_) => "json_object",
        wire::Constraint::JsonSchema(_) => "json_schema",
        wire::Constraint::Regex(_) => "regex",
        wire::Constraint::Grammar(_) => "grammar",
    });
    if let Some(field) = constraint {
        return Err(WireError::not_built(field));
    }
    if from.n == Some(0) {
        return Err(WireError::invalid("n", "must be at least 1"));
    }
    for (set, field) in [
        (from.priority != 0, "priority"),
        (!from.cache_salt.is_empty(), "cache_salt"),
        (from.n.is_some_and(|n| n > 1), "n"),
        (!from.stop.is_empty(), "stop"),
        (from.top_logprobs.is_some(), "top_logprobs"),
    ] {
        if set {
            return Err(WireError::not_built(field));
        }
    }
    Ok(())
}
