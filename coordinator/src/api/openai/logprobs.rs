//! Log-probabilities of tokens, in the shapes of chat and of legacy completions.

use std::sync::Arc;

use request::{TokenId, TokenLogprobs};
use serde::Serialize;
use serde_json::{Map, Value};
use text::TokenKind;

use crate::models::Model;

/// A chat completion's token: `logprobs.content[]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    token: Spelled,
    top_logprobs: Vec<Spelled>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Spelled {
    /// A token that is a part of a character shows U+FFFD; `bytes` are exact.
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// A legacy completion's `logprobs`: lists of one length.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Legacy {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// By token text, so that two tokens of one text are one entry (as OpenAI). The token that was
    /// drawn is always there.
    top_logprobs: Vec<Map<String, Value>>,
    /// Where the token begins, in characters of the choice's text.
    text_offset: Vec<usize>,
}

/// What is reported for tokens, and for which.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    model: Arc<Model>,
    /// Tokens that end the answer and are not shown.
    hidden: Vec<TokenId>,
}

impl Reporter {
    /// `hidden`: stop tokens, unless the text shows what stopped it.
    pub(super) fn new(model: Arc<Model>, hidden: Vec<TokenId>) -> Self {
        Self { model, hidden }
    }

    pub(super) fn chat(&self, ids: &[TokenId], logprobs: &[TokenLogprobs]) -> Vec<Entry> {
        self.shown(ids, logprobs)
            .map(|(id, of)| Entry {
                token: self.spelled(id, of.logprob),
                top_logprobs: of.top.iter().map(|(id, logprob)| self.spelled(*id, *logprob)).collect(),
            })
            .collect()
    }

    /// `offset` goes on from where the last token ended.
    pub(super) fn legacy(&self, ids: &[TokenId], logprobs: &[TokenLogprobs], offset: &mut usize) -> Legacy {
        let mut all = Legacy::default();
        for (id, of) in self.shown(ids, logprobs) {
            let text = self.text(id);
            let mut top: Map<String, Value> =
                of.top.iter().map(|(id, logprob)| (self.text(*id), number(*logprob))).collect();
            top.insert(text.clone(), number(of.logprob));
            all.top_logprobs.push(top);
            all.token_logprobs.push(finite(of.logprob));
            all.text_offset.push(*offset);
            *offset += text.chars().count();
            all.tokens.push(text);
        }
        all
    }

    /// How far tokens move the offset of [`Self::legacy`].
    pub(super) fn characters(&self, ids: &[TokenId]) -> usize {
        ids.iter().filter(|id| !self.hidden.contains(id)).map(|id| self.text(*id).chars().count()).sum()
    }

    fn shown<'a>(
        &'a self,
        ids: &'a [TokenId],
        logprobs: &'a [TokenLogprobs],
    ) -> impl Iterator<Item = (TokenId, &'a TokenLogprobs)> {
        ids.iter().copied().zip(logprobs).filter(|(id, _)| !self.hidden.contains(id))
    }

    fn spelled(&self, id: TokenId, logprob: f32) -> Spelled {
        let bytes = bytes(&self.model, id);
        Spelled { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: finite(logprob), bytes }
    }

    fn text(&self, id: TokenId) -> String {
        String::from_utf8_lossy(&bytes(&self.model, id)).into_owned()
    }
}

impl Legacy {
    pub(super) fn append(&mut self, mut more: Self) {
        self.tokens.append(&mut more.tokens);
        self.token_logprobs.append(&mut more.token_logprobs);
        self.top_logprobs.append(&mut more.top_logprobs);
        self.text_offset.append(&mut more.text_offset);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// What a token stands for; control tokens, which the text leaves out, as they are spelled.
pub(super) fn bytes(model: &Model, id: TokenId) -> Vec<u8> {
    let vocabulary = model.text.tokenizer().vocabulary();
    match vocabulary.kind(id) {
        Some(TokenKind::Control) => vocabulary.token(id).unwrap_or_default().as_bytes().to_vec(),
        _ => vocabulary.bytes(id).to_vec(),
    }
}

/// JSON has no infinity: a token that a sampler could not have drawn gets vLLM's number for it.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// The number that an `f32` is written as. A `Value` holds an `f64` and would write its seventeen digits:
/// another number than that of the same token in `token_logprobs`.
fn number(logprob: f32) -> Value {
    let logprob = finite(logprob);
    Value::from(logprob.to_string().parse::<f64>().unwrap_or(logprob.into()))
}
