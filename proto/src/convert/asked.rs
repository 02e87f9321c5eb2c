use request::{Adjustments, Constraint, Quality, RequestId, SamplingParams, Speculation, TokenId};

use super::{constraint, logprobs, quality, sampling, tokens};
use crate::bounds::{
    MAX_CHAT_MESSAGES, MAX_CHOICES, MAX_KNOWN_TOKENS, MAX_OWN_STOP_IDS, MAX_PREDICTION, MAX_SALT_BYTES,
    MAX_STOP_BYTES, MAX_STOPS, MAX_TEXT_BYTES,
};
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
    pub min_tokens: u32,
    pub adjust: Adjustments,
    pub constraint: Option<Constraint>,
    /// Texts that end the answer; none is empty.
    pub stop: Vec<String>,
    /// Tokens that end the answer beside the model's own.
    pub stop_ids: Vec<TokenId>,
    /// The model's own end tokens do not end the answer.
    pub ignore_eos: bool,
    /// Choices, at least 1.
    pub n: u32,
    /// Alternatives reported per token.
    pub logprobs: Option<u8>,
    pub prediction: Option<Prediction>,
    pub priority: i32,
    pub cache_salt: String,
    pub quality: Quality,
    pub speculation: Speculation,
}

/// Output that the caller guesses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prediction {
    Text(String),
    Tokens(Vec<TokenId>),
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
        if from.model.is_empty() {
            return Err(WireError::missing("model"));
        }
        at_most("model", from.model.len(), 256)?;
        if from.max_tokens == Some(0) {
            return Err(WireError::invalid("max_tokens", "must be at least 1"));
        }
        let (params, adjust) = sampling::from_wire(from.sampling)?;
        let speculation = Speculation::try_from(from.speculation.unwrap_or_default())?;
        speculation.validate(&params)?;
        Ok(Self {
            id: if from.request_id.is_empty() { None } else { Some(RequestId::new(&from.request_id)?) },
            attempt: from.attempt,
            model: from.model,
            prompt: prompt(from.prompt.ok_or(WireError::missing("prompt"))?)?,
            committed: tokens("committed", from.committed, MAX_KNOWN_TOKENS)?,
            params,
            seed: from.seed,
            max_tokens: from.max_tokens,
            min_tokens: from.min_tokens,
            adjust,
            constraint: constraint::from_public(from.constraint)?,
            stop: stops(from.stop)?,
            stop_ids: tokens("stop_token_ids", from.stop_token_ids, MAX_OWN_STOP_IDS)?,
            ignore_eos: from.ignore_eos,
            n: choices(from.n)?,
            logprobs: logprobs("top_logprobs", from.top_logprobs)?,
            prediction: prediction(from.prediction)?,
            priority: from.priority,
            cache_salt: {
                at_most("cache_salt", from.cache_salt.len(), MAX_SALT_BYTES)?;
                from.cache_salt
            },
            quality: quality(from.quality)?,
            speculation,
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

fn stops(from: Vec<String>) -> Result<Vec<String>, WireError> {
    at_most("stop", from.len(), MAX_STOPS)?;
    for stop in &from {
        if stop.is_empty() {
            return Err(WireError::invalid("stop", "holds an empty text, which would end every answer"));
        }
        at_most("stop", stop.len(), MAX_STOP_BYTES)?;
    }
    Ok(from)
}

fn choices(n: Option<u32>) -> Result<u32, WireError> {
    match n {
        Some(0) => Err(WireError::invalid("n", "must be at least 1")),
        Some(n) if n > MAX_CHOICES => {
            Err(WireError::invalid("n", format!("{n} choices; at most {MAX_CHOICES} are taken")))
        }
        _ => Ok(n.unwrap_or(1)),
    }
}

fn prediction(from: Option<v1::Prediction>) -> Result<Option<Prediction>, WireError> {
    match from.and_then(|p| p.content) {
        None => Ok(None),
        Some(v1::prediction::Content::Text(text)) => {
            at_most("prediction", text.len(), MAX_TEXT_BYTES)?;
            Ok(Some(Prediction::Text(text)))
        }
        Some(v1::prediction::Content::Tokens(list)) => {
            Ok(Some(Prediction::Tokens(tokens("prediction", list.ids, MAX_PREDICTION)?)))
        }
    }
}
