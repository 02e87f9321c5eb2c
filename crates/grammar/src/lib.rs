//! What an answer is held to: JSON schemas, regular expressions and Lark grammars as masks over tokens.
//!
//! A [`Vocabulary`] gives the bytes of each token; [`Grammars`] is built from it once per model and
//! compiles a `request::Constraint` into an `engine::Constraint`, which the engine asks for one mask a
//! picking row. The parsing is the crate `llguidance` (an Earley parser over a lexer of regular
//! expression derivatives, walked along a trie of the vocabulary); ours are the choices around it: which
//! tokens are text, what white space JSON may contain, which bounds hold, what is refused.
//!
//! Text is never forced: where only one text can follow, every way to spell it in tokens stays allowed, as
//! the model would have chosen among them. So a mask depends on the text so far alone, not on how it was
//! cut into tokens, and what is allowed step by step is what is allowed ahead.
//!
//! [`tools`] writes the grammar of a model's tool calls.
//!
//! Not here: drawing under a mask (`sampling`), when masks are computed (`engine`), the shape of the
//! public API's fields (`coordinator`). Start at [`Grammars::compile`].
#![forbid(unsafe_code)]

mod compile;
mod json;
mod lark;
mod matcher;
pub mod tools;
mod vocabulary;

pub use compile::{CompileError, Grammars};
pub use vocabulary::{Vocabulary, VocabularyError, Word};
