//! A model's text: prompts to tokens on the way in, tokens to whole characters on the way out.

use std::sync::Arc;

use cluster::VocabHash;
use proto::Prompt;
use request::TokenId;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::failure::{self, Failure, Reason, invalid};
use crate::frontdoor::known_ids;
use crate::models::Model;

mod pieces;

pub(crate) use pieces::{Piece, Pieces, append};

/// Prompts of at most this many bytes are tokenized where they are: a millisecond or two, less than
/// handing them to another thread is worth under load.
const SHORT: usize = 4 << 10;

/// Long prompts tokenized at once; more wait here, bounded by admission and by their deadline. The
/// work cannot be interrupted, so it must not take every core.
const LONG_AT_ONCE: usize = 2;

/// Tokenizer and template, as the model's GGUF file describes them.
#[derive(Debug)]
pub(crate) struct ModelText {
    tokenizer: text::Tokenizer,
    /// `None`: the file has none; chat prompts are refused, others are served.
    template: Option<text::ChatTemplate>,
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
    pub(crate) fn new(header: &gguf::Header) -> Result<Self, TextError> {
        let tokenizer = text::Tokenizer::from_gguf(header)?;
        let template = match text::ChatTemplate::from_gguf(header) {
            Ok(template) => Some(template),
            Err(text::TemplateError::Missing) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { tokenizer, template })
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
    fn tokens(&self, prompt: Prompt, field: &'static str) -> Result<Vec<TokenId>, Failure> {
        let unfit = |e: text::EncodeError| invalid(field, format!("{field}: {e}"));
        match prompt {
            Prompt::Tokens(ids) => Ok(ids),
            Prompt::Text(text) => self.tokenizer.prompt(&text, true).map_err(unfit),
            Prompt::Chat(messages) => {
                self.tokenizer.encode(&self.render(messages, field)?, true).map_err(unfit)
            }
        }
    }

    fn render(&self, messages: Vec<(&'static str, String)>, field: &'static str) -> Result<String, Failure> {
        let Some(template) = &self.template else {
            return Err(invalid(field, format!("{field}: {}", text::TemplateError::Missing)));
        };
        let messages: Vec<_> =
            messages.into_iter().map(|(role, content)| text::Message::new(role, content)).collect();
        template.render(&messages).map_err(|e| {
            if e.is_request_fault() {
                invalid(field, e.to_string())
            } else {
                failure::new(Reason::Internal, e.to_string())
            }
        })
    }
}

/// Turns prompts into tokens, long ones away from the runtime's threads.
#[derive(Debug)]
pub(crate) struct Tokenizing {
    long: Arc<Semaphore>,
}

impl Default for Tokenizing {
    fn default() -> Self {
        Self { long: Arc::new(Semaphore::new(LONG_AT_ONCE)) }
    }
}

impl Tokenizing {
    pub(crate) async fn tokens(
        &self,
        model: &Arc<Model>,
        prompt: Prompt,
        field: &'static str,
        deadline: Instant,
    ) -> Result<Vec<TokenId>, Failure> {
        if let Prompt::Tokens(ids) = &prompt {
            known_ids(field, ids, model)?;
        }
        if bytes(&prompt) <= SHORT {
            return model.text.tokens(prompt, field);
        }
        let broken = |why: String| failure::new(Reason::Internal, format!("tokenizing: {why}"));
        let long = async {
            let turn = Arc::clone(&self.long).acquire_owned().await.map_err(|e| broken(e.to_string()))?;
            let model = Arc::clone(model);
            let work = move || {
                let _turn = turn;
                model.text.tokens(prompt, field)
            };
            tokio::task::spawn_blocking(work).await.map_err(|e| broken(e.to_string()))?
        };
        timeout_at(deadline, long).await.unwrap_or_else(|_| {
            Err(failure::new(
                Reason::Deadline,
                format!("{field}: the deadline passed before the prompt was tokenized"),
            ))
        })
    }
}

fn bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Tokens(_) => 0,
        Prompt::Text(text) => text.len(),
        Prompt::Chat(messages) => messages.iter().map(|(role, content)| role.len() + content.len()).sum(),
    }
}
