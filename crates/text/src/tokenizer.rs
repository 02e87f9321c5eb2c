mod folder;
mod header;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use request::TokenId;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use crate::vocabulary::{TOKENS, TokenKind, invalid};
use crate::{Detokenizer, TokenizerError, Vocabulary};

/// Text to token ids, as the model's training did it.
///
/// Merging is the crate `tokenizers`; finding control tokens and the way back to text are ours, so
/// that one instance serves both trusted and typed text.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Arc<Vocabulary>,
    words: tokenizers::Tokenizer,
    /// Control and user-defined tokens, found before words are cut.
    all_added: Added,
    /// User-defined tokens only.
    user_defined: Added,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    stop_ids: Vec<TokenId>,
}

/// Why a text was not encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("the model's vocabulary cannot spell {character:?} (U+{:04X}); remove it from the text", *.character as u32)]
    Unspellable { character: char },
    #[error("the text holds {found} white-space characters in a row, more than {most}; shorten them")]
    Whitespace { found: usize, most: usize },
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

/// Control tokens that end an answer wherever they exist: files often name only one of them.
const END_OF_TURN: [&str; 7] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
];

/// What merging gives for a byte without a token; longer than any vocabulary and written with a
/// character that the byte-level alphabet does not have.
const NO_TOKEN: (&str, u32) = ("\0", u32::MAX);

/// The word patterns backtrack over white space; past a million characters in a row they give up
/// and the crate `tokenizers` takes the rest as one word without saying so.
const MOST_WHITESPACE: usize = 100_000;

impl Tokenizer {
    /// Puts a tokenizer together; `merges` names where they are from, for errors.
    fn assemble(parts: Parts, merges: &'static str) -> Result<Self, TokenizerError> {
        let Parts { vocabulary, cutting, bos, eos, add_bos, mut stop_ids } = parts;
        stop_ids.extend(
            vocabulary
                .iter()
                .filter(|(_, token, kind)| *kind == TokenKind::Control && END_OF_TURN.contains(token))
                .map(|(id, ..)| id),
        );
        let mut seen = HashSet::new();
        stop_ids.retain(|id| seen.insert(*id));
        if stop_ids.is_empty() {
            return Err(TokenizerError::NoStop);
        }
        let words = words(cutting, &vocabulary, merges)?;
        Ok(Self {
            all_added: Added::new(&vocabulary, &[TokenKind::Control, TokenKind::UserDefined])?,
            user_defined: Added::new(&vocabulary, &[TokenKind::UserDefined])?,
            vocabulary: Arc::new(vocabulary),
            words,
            bos,
            eos,
            add_bos,
            stop_ids,
        })
    }

    /// The ids of a text. No BOS is added: a chat template writes its own; see [`Self::prompt`].
    ///
    /// `allow_special`: whether `<|im_start|>` in the text becomes the control token (a rendered
    /// template) or is spelled in ordinary tokens like anything else that someone typed. Rendering
    /// a chat and encoding the whole with control tokens allowed, which vLLM does and which our
    /// coordinator does, lets a message contain control tokens.
    ///
    /// Some 0.4 s a megabyte: long texts belong off the threads that serve others.
    pub fn encode(&self, text: &str, allow_special: bool) -> Result<Vec<TokenId>, EncodeError> {
        let added = if allow_special { &self.all_added } else { &self.user_defined };
        let mut ids = Vec::new();
        let mut from = 0;
        for found in added.matcher.find_iter(text) {
            self.encode_words(&text[from..found.start()], &mut ids)?;
            ids.push(added.ids[found.pattern().as_usize()]);
            from = found.end();
        }
        self.encode_words(&text[from..], &mut ids)?;
        Ok(ids)
    }

    /// The ids of a raw prompt (no chat template): with BOS in front where the model wants it.
    pub fn prompt(&self, text: &str, allow_special: bool) -> Result<Vec<TokenId>, EncodeError> {
        let mut ids: Vec<TokenId> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        ids.extend(self.encode(text, allow_special)?);
        Ok(ids)
    }

    /// The text of all ids at once, control tokens left out; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        self.vocabulary.decode(ids)
    }

    /// For the text of ids as they come.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.vocabulary.clone())
    }

    /// Tokens that end an answer: the file's EOS, EOT and EOM, and the control tokens that do by
    /// their name.
    pub fn stop_ids(&self) -> &[TokenId] {
        &self.stop_ids
    }

    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// [`Vocabulary::len`].
    pub fn vocab_len(&self) -> u32 {
        self.vocabulary.len()
    }

    /// [`Vocabulary::hash`]: equal for a target and the drafters that can draft for it.
    pub fn vocab_hash(&self) -> [u8; 32] {
        self.vocabulary.hash()
    }

    fn encode_words(&self, text: &str, ids: &mut Vec<TokenId>) -> Result<(), EncodeError> {
        if text.is_empty() {
            return Ok(());
        }
        let found = longest_whitespace(text);
        if found > MOST_WHITESPACE {
            return Err(EncodeError::Whitespace { found, most: MOST_WHITESPACE });
        }
        let failed = |e: tokenizers::Error| EncodeError::Failed(e.to_string());
        let encoding = self.words.encode_fast(text, false).map_err(failed)?;
        if encoding.get_ids().contains(&NO_TOKEN.1) {
            return Err(self.name_unspellable(text));
        }
        ids.extend(encoding.get_ids().iter().copied().map(TokenId));
        Ok(())
    }

    /// Which character has no tokens, for the error.
    fn name_unspellable(&self, text: &str) -> EncodeError {
        let mut tried = HashSet::new();
        text.chars()
            .filter(|c| tried.insert(*c))
            .find(|c| {
                let alone = self.words.encode_fast(c.to_string(), false);
                alone.is_ok_and(|alone| alone.get_ids().contains(&NO_TOKEN.1))
            })
            .map_or_else(
                || EncodeError::Failed("a byte has no token".to_owned()),
                |character| EncodeError::Unspellable { character },
            )
    }
}

/// Tokens that are found in the text as they are written; at one place the longest wins.
#[derive(Debug)]
struct Added {
    matcher: AhoCorasick,
    /// Id by pattern.
    ids: Vec<TokenId>,
}

impl Added {
    fn new(vocabulary: &Vocabulary, kinds: &[TokenKind]) -> Result<Self, TokenizerError> {
        let (ids, tokens): (Vec<TokenId>, Vec<&str>) = vocabulary
            .iter()
            .filter(|(_, token, kind)| kinds.contains(kind) && !token.is_empty())
            .map(|(id, token, _)| (id, token))
            .unzip();
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&tokens)
            .map_err(|error| invalid(TOKENS, error.to_string()))?;
        Ok(Self { matcher, ids })
    }
}

/// What a model's files say of its tokenizer.
struct Parts {
    vocabulary: Vocabulary,
    cutting: Cutting,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    /// Those that the files name.
    stop_ids: Vec<TokenId>,
}

/// How text becomes words, and words tokens.
struct Cutting {
    normalizer: Option<NormalizerWrapper>,
    pre: PreTokenizerWrapper,
    /// Best first.
    merges: Vec<(String, String)>,
    /// A word that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
}

/// Cutting and merging; knows normal tokens only.
fn words(
    cutting: Cutting,
    vocabulary: &Vocabulary,
    key: &'static str,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut ids = HashMap::new();
    for (id, token, kind) in vocabulary.iter() {
        if kind == TokenKind::Normal
            && let Some(first) = ids.insert(token, id.0)
        {
            return Err(invalid(TOKENS, format!("{token:?} is both token {first} and token {id}")));
        }
    }
    // Checked here: `BPE::builder` panics on some bad merges.
    for (index, (a, b)) in cutting.merges.iter().enumerate() {
        let joined = format!("{a}{b}");
        if let Some(token) = [a, b, &joined].into_iter().find(|token| !ids.contains_key(token.as_str())) {
            return Err(invalid(key, format!("merge {index} needs {token:?}, which is not in {TOKENS}")));
        }
    }
    let ids = ids.into_iter().map(|(token, id)| (token.to_owned(), id)).chain([no_token()]);
    let build = || -> tokenizers::Result<tokenizers::Tokenizer> {
        let bpe = BPE::builder()
            .vocab_and_merges(ids.collect::<Vocab>(), cutting.merges)
            .unk_token(NO_TOKEN.0.to_owned())
            .ignore_merges(cutting.ignore_merges)
            .build()?;
        let mut words = tokenizers::Tokenizer::new(bpe);
        words.with_pre_tokenizer(Some(cutting.pre));
        if let Some(normalizer) = cutting.normalizer {
            words.with_normalizer(Some(normalizer))?;
        }
        Ok(words)
    };
    build().map_err(|error| invalid(key, error.to_string()))
}

fn no_token() -> (String, u32) {
    (NO_TOKEN.0.to_owned(), NO_TOKEN.1)
}

fn longest_whitespace(text: &str) -> usize {
    let (longest, _) = text.chars().fold((0, 0), |(longest, run), c| {
        let run = if c.is_whitespace() { run + 1 } else { 0 };
        (longest.max(run), run)
    });
    longest
}

#[cfg(test)]
mod tests;
