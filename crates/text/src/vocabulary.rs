use gguf::{Header, Metadata};
use request::TokenId;
use sha2::{Digest, Sha256};

use crate::byte_level::ToBytes;

/// The tokens of a model: their strings, what they are for and the bytes they stand for.
#[derive(Debug)]
pub struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<TokenKind>,
    /// The bytes of all tokens, one after the other; token i ends at `ends[i]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    len: usize,
    hash: [u8; 32],
}

/// What a token is for (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text, spelled in the byte-level alphabet.
    Normal,
    /// Stands for what cannot be spelled; never shown.
    Unknown,
    /// Structure, such as `<|im_start|>`; never shown, and typed text is not allowed to make one.
    Control,
    /// Added as a whole, such as `<tool_call>`; shown as it is written.
    UserDefined,
    /// Padding of the vocabulary; a model may have logits for it.
    Unused,
}

/// Why a file's tokenizer is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    #[error(transparent)]
    Folder(#[from] crate::FolderError),
    #[error("{key} is {found:?}, which is not built; supported: {supported}")]
    Unsupported { key: &'static str, found: String, supported: String },
    #[error("{key}: {why}; download the file again (`paceline models pull`)")]
    Invalid { key: &'static str, why: String },
    #[error(
        "the model names no token that ends an answer (tokenizer.ggml.eos_token_id; in a folder eos_token_id of \
         generation_config.json): answers would never end"
    )]
    NoStop,
}

pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

impl Vocabulary {
    pub(crate) fn from_gguf(header: &Header) -> Result<Self, TokenizerError> {
        let meta = &header.metadata;
        let tokens = meta.strs(TOKENS)?.to_vec();
        if tokens.is_empty() {
            return Err(invalid(TOKENS, "is empty"));
        }
        let kinds = kinds(meta, &tokens)?;
        Ok(Self::new(tokens, kinds))
    }

    /// `kinds` has an entry for each of `tokens`.
    pub(crate) fn new(tokens: Vec<String>, kinds: Vec<TokenKind>) -> Self {
        let to_bytes = ToBytes::new();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(tokens.len());
        for (token, kind) in tokens.iter().zip(&kinds) {
            match kind {
                TokenKind::Normal => to_bytes.append(token, &mut bytes),
                TokenKind::UserDefined => bytes.extend(token.as_bytes()),
                TokenKind::Unknown | TokenKind::Control | TokenKind::Unused => {}
            }
            ends.push(bytes.len());
        }
        let len = kinds.iter().rposition(|kind| *kind != TokenKind::Unused).map_or(0, |last| last + 1);
        let hash = hash(&tokens[..len]);
        Self { tokens, kinds, bytes, ends, len, hash }
    }

    /// Tokens, the padding at the end left out. A model's logits may be wider.
    pub fn len(&self) -> u32 {
        self.len as u32
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// SHA-256 over the token strings in id order, the padding at the end left out. Two models with
    /// equal hashes mean the same text by the same ids, whatever the width of their logits.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// The token as the file spells it; `None` for an id outside the vocabulary.
    pub fn token(&self, id: TokenId) -> Option<&str> {
        self.tokens.get(id.0 as usize).map(String::as_str)
    }

    pub fn kind(&self, id: TokenId) -> Option<TokenKind> {
        self.kinds.get(id.0 as usize).copied()
    }

    /// What the token adds to the shown text; empty for control tokens, padding and ids outside
    /// the vocabulary. A token may be a part of a UTF-8 character.
    pub fn bytes(&self, id: TokenId) -> &[u8] {
        let index = id.0 as usize;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(index).and_then(|end| self.bytes.get(start..*end)).unwrap_or(&[])
    }

    /// The first `count` tokens and those that are no text, in rising order. A vocabulary made by merges, as all that
    /// are read here, has them in the order in which they paid on its texts: the first are the most common.
    pub fn common(&self, count: u32) -> Vec<u32> {
        let kept = |id: &u32| *id < count || self.kinds[*id as usize] != TokenKind::Normal;
        (0..self.len()).filter(kept).collect()
    }

    /// The text of all ids; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.bytes(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All tokens with their ids and kinds, padding included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TokenId, &str, TokenKind)> {
        let ids = (0..).map(TokenId);
        ids.zip(&self.tokens).zip(&self.kinds).map(|((id, token), kind)| (id, token.as_str(), *kind))
    }
}

pub(crate) fn invalid(key: &'static str, why: impl Into<String>) -> TokenizerError {
    TokenizerError::Invalid { key, why: why.into() }
}

fn kinds(meta: &Metadata, tokens: &[String]) -> Result<Vec<TokenKind>, TokenizerError> {
    let numbers = meta.i32s(TYPES)?;
    if numbers.len() != tokens.len() {
        return Err(invalid(TYPES, format!("has {} entries for {} tokens", numbers.len(), tokens.len())));
    }
    let kind = |(index, number): (usize, &i32)| match number {
        1 => Ok(TokenKind::Normal),
        2 => Ok(TokenKind::Unknown),
        3 => Ok(TokenKind::Control),
        4 => Ok(TokenKind::UserDefined),
        5 => Ok(TokenKind::Unused),
        6 => {
            Err(invalid(TYPES, format!("token {index} is a byte token, which byte-level BPE does not have")))
        }
        _ => Err(invalid(TYPES, format!("token {index} has the unknown type {number}"))),
    };
    numbers.iter().enumerate().map(kind).collect()
}

fn hash(tokens: &[String]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for token in tokens {
        // The length first: "ab", "c" and "a", "bc" differ.
        hash.update((token.len() as u64).to_le_bytes());
        hash.update(token.as_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::Tiny;

    #[test]
    fn the_common_tokens_are_the_first_and_those_that_are_no_text() {
        let mut tiny = Tiny::new();
        tiny.add("rare", 1);
        tiny.add("", 5);
        let vocabulary = Vocabulary::from_gguf(&tiny.header()).unwrap();
        let expected: Vec<u32> = (0..258).chain(261..265).collect();
        assert_eq!(vocabulary.common(258), expected);
        assert_eq!(vocabulary.common(0), [261, 262, 263, 264]);
        assert_eq!(vocabulary.common(u32::MAX), (0..vocabulary.len()).collect::<Vec<_>>());
    }
}
