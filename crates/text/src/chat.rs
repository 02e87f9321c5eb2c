use request::TokenId;

use crate::{ChatTemplate, EncodeError, TemplateError, Tokenizer, TokenizerError};

mod calls;
mod fence;
mod message;
mod syntax;

pub use calls::{CallParser, Heard};
use fence::Fence;
pub use message::{Conversation, Message, Tool, ToolCall};
pub use syntax::ToolSyntax;
pub(crate) use syntax::ToolUse;

/// What a model makes of conversations: a template, and the tokens that texts must not forge.
#[derive(Debug)]
pub struct Chat {
    template: ChatTemplate,
    fence: Fence,
}

/// Why a conversation has no prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("messages: use all of U+FDD0 to U+FDEF, which Unicode sets aside; remove them")]
    NoGap,
}

impl ChatError {
    /// Whether other messages could succeed: an invalid request, not a broken model.
    pub fn is_request_fault(&self) -> bool {
        match self {
            Self::Template(error) => error.is_request_fault(),
            Self::Encode(EncodeError::Failed(_)) => false,
            Self::Encode(_) | Self::NoGap => true,
        }
    }
}

impl Chat {
    /// `tokenizer` is the template's own: one model.
    pub fn new(template: ChatTemplate, tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        Ok(Self { template, fence: Fence::new(tokenizer)? })
    }

    /// How the model writes tool calls.
    pub fn syntax(&self) -> ToolSyntax {
        self.template.tools().syntax
    }

    /// Whether the template itself knows tools; otherwise they are explained in the system message.
    pub fn knows_tools(&self) -> bool {
        self.template.tools().native
    }

    /// The prompt's tokens, up to the start of the assistant's turn. Control tokens come from the
    /// template only: where a message spells one, it stays text.
    pub fn tokens(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<TokenId>, ChatError> {
        let mut guarded = conversation.clone();
        let gap = self.fence.guard(&mut guarded).ok_or(ChatError::NoGap)?;
        if !self.template.tools().native {
            guarded = syntax::without_tools(guarded);
        }
        let prompt = self.template.render(&guarded)?;
        Ok(self.fence.encode(tokenizer, &prompt, gap)?)
    }
}

#[cfg(test)]
mod tests;
