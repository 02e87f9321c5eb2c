//! A model's text: prompts to tokens on the way in, tokens to text on the way out.

use std::path::Path;

use cluster::VocabHash;
use request::TokenId;

use crate::failure::{self, Failure, Reason, invalid};
use crate::question::Prompt;

mod aside;
mod pieces;
mod stop;

pub(crate) use aside::Aside;
pub(crate) use pieces::{Piece, Pieces, StopRules, Stopped, append};
pub(crate) use stop::StopStrings;

/// Tokenizer and template, as the model's files describe them.
#[derive(Debug)]
pub(crate) struct ModelText {
    tokenizer: text::Tokenizer,
    /// `None`: the model has no template; chat prompts are refused, others are served.
    chat: Option<text::Chat>,
}

/// Why a model's file says too little of its text.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    Tokenizer(#[from] text::TokenizerError),
    #[error(transparent)]
    Template(#[from] text::TemplateError),
}

impl ModelText {
    /// Of a GGUF file or a Hugging Face folder; of neither the weights are read. Seconds for a large
    /// vocabulary.
    pub(crate) fn open(path: &Path) -> Result<Self, TextError> {
        let tokenizer = text::Tokenizer::open(path)?;
        match text::ChatTemplate::open(path) {
            Ok(template) => Ok(Self::new(tokenizer, Some(template))?),
            Err(text::TemplateError::Missing) => Ok(Self::new(tokenizer, None)?),
            Err(error) => Err(error.into()),
        }
    }

    fn new(
        tokenizer: text::Tokenizer,
        template: Option<text::ChatTemplate>,
    ) -> Result<Self, text::TokenizerError> {
        let chat = template.map(|template| text::Chat::new(template, &tokenizer)).transpose()?;
        Ok(Self { tokenizer, chat })
    }

    pub(crate) fn chat(&self) -> Option<&text::Chat> {
        self.chat.as_ref()
    }

    pub(crate) fn tokenizer(&self) -> &text::Tokenizer {
        &self.tokenizer
    }

    pub(crate) fn vocab_hash(&self) -> VocabHash {
        VocabHash(self.tokenizer.vocab_hash())
    }

    /// Token ids are below it.
    pub(crate) fn vocab_len(&self) -> u32 {
        self.tokenizer.vocab_len()
    }

    /// Tokens that end an answer.
    pub(crate) fn stop_ids(&self) -> &[TokenId] {
        self.tokenizer.stop_ids()
    }

    /// The tokens of a prompt; `field` names it in errors.
    pub(crate) fn tokens(&self, prompt: Prompt, field: &'static str) -> Result<Vec<TokenId>, Failure> {
        match prompt {
            Prompt::Tokens(ids) => Ok(ids),
            Prompt::Text(text) => self.tokenizer.prompt(&text, true).map_err(|e| unfit(field, &e)),
            Prompt::Chat(conversation) => {
                let Some(chat) = &self.chat else {
                    return Err(invalid(field, format!("{field}: {}", text::TemplateError::Missing)));
                };
                chat.tokens(&conversation, &self.tokenizer).map_err(|e| {
                    if e.is_request_fault() {
                        invalid(field, e.to_string())
                    } else {
                        failure::new(Reason::Internal, e.to_string())
                    }
                })
            }
        }
    }

    /// The tokens of text that stands within an answer: no BOS, control tokens spelled out.
    pub(crate) fn within(&self, text: &str, field: &'static str) -> Result<Vec<TokenId>, Failure> {
        self.tokenizer.encode(text, false).map_err(|e| unfit(field, &e))
    }
}

fn unfit(field: &'static str, error: &text::EncodeError) -> Failure {
    invalid(field, format!("{field}: {error}"))
}
