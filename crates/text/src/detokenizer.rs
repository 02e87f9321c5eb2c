use std::sync::Arc;

use request::TokenId;

use crate::Vocabulary;

/// Text of one answer as its tokens come. Never gives half a character: bytes that may still become
/// one are held back.
///
/// What [`Self::push`] and [`Self::finish`] give, joined, is [`Vocabulary::decode`] of all the ids.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    /// The start of a character, at most 3 bytes between calls.
    held: Vec<u8>,
}

impl Detokenizer {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self { vocabulary, held: Vec::new() }
    }

    /// The text that this token completes; `None` when it completes none (a control token, a part
    /// of a character).
    pub fn push(&mut self, token: TokenId) -> Option<String> {
        self.held.extend(self.vocabulary.bytes(token));
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let rest = chunk.invalid();
            // At the very end, bytes that only lack their continuation may still be completed.
            if rest.is_empty() || (done + rest.len() == self.held.len() && is_incomplete(rest)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += rest.len();
        }
        self.held.drain(..done);
        (!text.is_empty()).then_some(text)
    }

    /// What is left at the end: U+FFFD for a character that was never completed.
    pub fn finish(self) -> Option<String> {
        (!self.held.is_empty()).then(|| String::from_utf8_lossy(&self.held).into_owned())
    }
}

/// Whether more bytes could make a character of these.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
