//! Text to tokens and back: tokenizer, chat template, streaming detokenizer.
//!
//! Everything comes from the model itself: the metadata of its GGUF file, or the JSON files of its
//! Hugging Face folder. Byte-level BPE only (GPT-2's family: SmolLM2, Qwen 2.5 and 3, Llama 3); other
//! tokenizers are refused by name.
//!
//! Not here: stop strings and the OpenAI shapes of messages (`coordinator`), anything about logits.
//! Start at [`Tokenizer`]; a conversation goes through [`Chat::tokens`], the answer's ids through a
//! [`Detokenizer`], and where tools were offered its text through a [`CallParser`].
#![forbid(unsafe_code)]

mod byte_level;
mod chat;
mod detokenizer;
mod folder;
mod pre_tokenizer;
mod template;
#[cfg(test)]
mod tiny;
mod tokenizer;
mod vocabulary;

pub use chat::{CallParser, Chat, ChatError, Conversation, Heard, Message, Tool, ToolCall, ToolSyntax};
pub use detokenizer::Detokenizer;
pub use folder::FolderError;
pub use template::{ChatTemplate, TemplateError};
pub use tokenizer::{EncodeError, Tokenizer};
pub use vocabulary::{TokenKind, TokenizerError, Vocabulary};
