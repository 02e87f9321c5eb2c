use request::TokenId;
use serde::Serialize;

use super::ModelText;
use super::stop::StopStrings;

/// Text of one origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// Whether the token that completed it was an accepted draft.
    pub(crate) drafted: bool,
}

/// What ends an answer's text, and how much of it is shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopRules {
    pub(crate) strings: StopStrings,
    /// All that end it: the request's and the model's.
    pub(crate) ids: Vec<TokenId>,
    /// Whether the text shows the string, or the text of the token, that ended it.
    pub(crate) include: bool,
    /// A string that ends before so many tokens does not count. (A stop token cannot be drawn then.)
    pub(crate) min_tokens: u32,
    /// Control tokens that are shown, with their spelling.
    pub(crate) shown: Vec<(TokenId, String)>,
}

/// What ended an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    Id(TokenId),
    String(String),
}

/// An answer's tokens on their way to text. Gives whole characters only, and holds back what may be
/// the start of a stop string until it is one or cannot be any more.
///
/// What it gave after the first n tokens depends on those tokens alone, not on how they came: so an
/// answer that goes on elsewhere goes on exactly where its text stopped.
#[derive(Clone, Debug)]
pub(crate) struct Pieces {
    detokenizer: text::Detokenizer,
    rules: StopRules,
    /// Text that no one has yet; ends with what [`StopStrings::open`] counts.
    held: Vec<Piece>,
    tokens: u32,
    stopped: Option<Stopped>,
}

impl Pieces {
    pub(crate) fn new(model: &ModelText, rules: StopRules) -> Self {
        Self { detokenizer: model.tokenizer.detokenizer(), rules, held: Vec::new(), tokens: 0, stopped: None }
    }

    /// Takes the next token and appends the text that is settled by it. After the token that ends the
    /// answer ([`Self::stopped`]) nothing more is taken.
    pub(crate) fn push(&mut self, id: TokenId, drafted: bool, pieces: &mut Vec<Piece>) {
        if self.stopped.is_some() {
            return;
        }
        self.tokens = self.tokens.saturating_add(1);
        let ends = self.rules.ids.contains(&id);
        if ends {
            self.stopped = Some(Stopped::Id(id));
            if !self.rules.include {
                return;
            }
        }
        let shown = || self.rules.shown.iter().find(|(token, _)| *token == id).map(|(_, text)| text.clone());
        let Some(text) = self.detokenizer.push(id).or_else(shown) else { return };
        let mut rest = text.as_str();
        // The text of a stop token is shown as it is.
        while !ends && let Some(found) = self.rules.strings.push(rest) {
            let (matched, after) = rest.split_at(found.end);
            append(matched, drafted, &mut self.held);
            if self.tokens >= self.rules.min_tokens {
                let shown = if self.rules.include { 0 } else { found.string.len() };
                self.release(shown, pieces);
                self.held.clear();
                self.stopped = Some(Stopped::String(found.string));
                return;
            }
            rest = after;
        }
        append(rest, drafted, &mut self.held);
        self.release(self.rules.strings.open(), pieces);
    }

    /// What ended the answer, once it has ended by a token or a string.
    pub(crate) fn stopped(&self) -> Option<&Stopped> {
        self.stopped.as_ref()
    }

    /// The answer is over: what was held back, and what can be said of bytes that no token completed.
    pub(crate) fn finish(mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if !matches!(self.stopped, Some(Stopped::String(_))) {
            self.release(0, &mut pieces);
            if let Some(text) = self.detokenizer.finish() {
                append(&text, false, &mut pieces);
            }
        }
        pieces
    }

    /// Gives all but the last `keep` bytes that are held.
    fn release(&mut self, keep: usize, pieces: &mut Vec<Piece>) {
        let held: usize = self.held.iter().map(|p| p.text.len()).sum();
        let mut give = held.saturating_sub(keep);
        let mut whole = 0;
        for piece in &mut self.held {
            if give < piece.text.len() {
                // A stop string starts where a character does, so it is no cut through one already.
                while !piece.text.is_char_boundary(give) {
                    give -= 1;
                }
                let rest = piece.text.split_off(give);
                append(&piece.text, piece.drafted, pieces);
                piece.text = rest;
                break;
            }
            give -= piece.text.len();
            append(&piece.text, piece.drafted, pieces);
            whole += 1;
        }
        self.held.drain(..whole);
    }
}

/// Adds text to pieces; neighbours of one origin are one.
pub(crate) fn append(text: &str, drafted: bool, pieces: &mut Vec<Piece>) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(last) if last.drafted == drafted => last.text.push_str(text),
        _ => pieces.push(Piece { text: text.to_owned(), drafted }),
    }
}

#[cfg(test)]
mod tests;
