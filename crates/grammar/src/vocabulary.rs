use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;

use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{TokRxInfo, TokTrie};
use request::TokenId;
use sampling::Mask;
use text::{TokenKind, Tokenizer};

/// What a token is to a grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Adds these bytes to the text, which may be a part of a character.
    Text(Vec<u8>),
    /// Adds this text as a whole, such as Qwen's `<tool_call>`; a grammar may name it as well.
    Added(String),
    /// Adds nothing to the text: `<|im_start|>`. Only a grammar that names it allows it.
    Control(String),
}

/// The tokens of a model as a grammar sees them.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    words: Vec<Word>,
    stop: Vec<TokenId>,
}

/// Why no grammar can be compiled for a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyError {
    #[error("the vocabulary names no token that ends an answer: a grammar could not end")]
    NoStop,
    #[error("stop token {stop} is outside the vocabulary of {tokens} tokens")]
    StopOutside { stop: TokenId, tokens: usize },
    #[error("the vocabulary makes no trie: {0}")]
    Trie(String),
}

/// Begins the word of every token that is no text: a byte that valid UTF-8 does not contain.
const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// Bytes that no UTF-8 text has: a token with one is never allowed.
const NEVER: [u8; 13] = [0xC0, 0xC1, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF];

/// Longer tokens are never allowed: the trie holds words of up to 1,024 bytes.
const LONGEST: usize = 1_000;

impl Word {
    /// The bytes that it adds, if a text can have them.
    fn text(&self) -> Option<&[u8]> {
        let bytes = match self {
            Self::Text(bytes) => bytes.as_slice(),
            Self::Added(text) => text.as_bytes(),
            Self::Control(_) => return None,
        };
        let possible = (1..=LONGEST).contains(&bytes.len()) && !bytes.iter().any(|b| NEVER.contains(b));
        possible.then_some(bytes)
    }
}

impl Vocabulary {
    /// `words` by token id; `stop` are the tokens that end an answer.
    pub fn new(words: Vec<Word>, stop: Vec<TokenId>) -> Result<Self, VocabularyError> {
        if stop.is_empty() {
            return Err(VocabularyError::NoStop);
        }
        if let Some(stop) = stop.iter().find(|id| id.0 as usize >= words.len()) {
            return Err(VocabularyError::StopOutside { stop: *stop, tokens: words.len() });
        }
        Ok(Self { words, stop })
    }

    /// The vocabulary of a tokenizer, its padding left out, with all of its stop tokens.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self, VocabularyError> {
        let vocabulary = tokenizer.vocabulary();
        let word = |id| {
            let name = || vocabulary.token(id).unwrap_or_default().to_owned();
            match vocabulary.kind(id) {
                Some(TokenKind::Normal) => Word::Text(vocabulary.bytes(id).to_vec()),
                Some(TokenKind::UserDefined) => Word::Added(name()),
                Some(TokenKind::Control | TokenKind::Unknown | TokenKind::Unused) | None => {
                    Word::Control(name())
                }
            }
        };
        let words = (0..vocabulary.len()).map(|id| word(TokenId(id))).collect();
        Self::new(words, tokenizer.stop_ids().to_vec())
    }

    /// Tokens.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The tokens that end an answer.
    pub fn stop(&self) -> &[TokenId] {
        &self.stop
    }

    /// Ids of the added tokens by their text.
    pub(crate) fn added(&self) -> HashMap<String, TokenId> {
        let ids = (0..).map(TokenId);
        let added = self.words.iter().zip(ids).filter_map(|(word, id)| match word {
            Word::Added(text) => Some((text.clone(), id)),
            Word::Text(_) | Word::Control(_) => None,
        });
        added.collect()
    }

    /// What is text.
    pub(crate) fn text(&self) -> Mask {
        let mut text = Mask::none(self.words.len());
        let ids = (0..).map(TokenId).zip(&self.words);
        ids.filter(|(_, word)| word.text().is_some()).for_each(|(id, _)| text.allow(id));
        text
    }

    /// What is not.
    pub(crate) fn control(&self) -> impl Iterator<Item = TokenId> {
        let ids = (0..).map(TokenId).zip(&self.words);
        ids.filter(|(_, word)| word.text().is_none()).map(|(id, _)| id)
    }

    /// The trie that masks are walked along. Some 0.1 s for 150,000 tokens.
    pub(crate) fn trie(&self) -> Result<TokTrie, VocabularyError> {
        let (Some(first), Ok(size)) = (self.stop.first(), u32::try_from(self.words.len())) else {
            return Err(VocabularyError::NoStop);
        };
        let words = self.spelled();
        let stop: Vec<u32> = self.stop.iter().map(|id| id.0).collect();
        let build = || Ok(TokTrie::from(&TokRxInfo::new(size, first.0), &words).with_eos_tokens(&stop));
        catch_unwind(AssertUnwindSafe(build)).map_err(|e| VocabularyError::Trie(crate::compile::brief(&e)))
    }

    /// What each token is in the trie: the bytes of text, or the marker and a name in angle brackets.
    ///
    /// No word is empty: the parser would take a token without bytes anywhere.
    fn spelled(&self) -> Vec<Vec<u8>> {
        let mut names = HashSet::new();
        let mut marked = |name: &str, index: usize| {
            let named = name.len() <= LONGEST && name.starts_with('<') && name.ends_with('>');
            let name = match named && names.insert(name.to_owned()) {
                true => name.to_owned(),
                false => format!("<token {index}>"), // Holds a space: no grammar can write it.
            };
            [&[MARKER], name.as_bytes()].concat()
        };
        let spell = |(index, word): (usize, &Word)| match (word.text(), word) {
            (Some(text), _) => text.to_vec(),
            (None, Word::Control(name)) => marked(name, index),
            (None, Word::Text(_) | Word::Added(_)) => marked("", index),
        };
        self.words.iter().enumerate().map(spell).collect()
    }
}
