use request::TokenId;
use serde::Serialize;

use super::ModelText;

/// Text of one origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// Whether the token that completed it was an accepted draft.
    pub(crate) drafted: bool,
}

/// An answer's tokens on their way to text. Never gives half a character: its bytes wait for the
/// token that completes it.
#[derive(Debug)]
pub(crate) struct Pieces {
    detokenizer: text::Detokenizer,
}

impl Pieces {
    /// Goes on after `committed`, whose whole characters the client has.
    pub(crate) fn after(model: &ModelText, committed: &[TokenId]) -> Self {
        let mut detokenizer = model.tokenizer.detokenizer();
        for id in committed {
            detokenizer.push(*id);
        }
        Self { detokenizer }
    }

    /// Appends the text that `id` completes.
    pub(crate) fn push(&mut self, id: TokenId, drafted: bool, pieces: &mut Vec<Piece>) {
        if let Some(text) = self.detokenizer.push(id) {
            append(&text, drafted, pieces);
        }
    }

    /// What can be said of bytes that no token completed.
    pub(crate) fn finish(self) -> Option<Piece> {
        self.detokenizer.finish().map(|text| Piece { text, drafted: false })
    }
}

/// Adds text to pieces; neighbours of one origin are one.
pub(crate) fn append(text: &str, drafted: bool, pieces: &mut Vec<Piece>) {
    match pieces.last_mut() {
        Some(last) if last.drafted == drafted => last.text.push_str(text),
        _ => pieces.push(Piece { text: text.to_owned(), drafted }),
    }
}
