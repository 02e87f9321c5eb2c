//! A vocabulary of all bytes and some longer words, and walks through a grammar by it.

use std::sync::LazyLock;

use grammar::{Grammars, Vocabulary, Word};
use proptest::test_runner::TestCaseError;
use request::{Constraint, TokenId};
use sampling::Mask;
use serde_json::Value;

/// Longer words: spellings that cross the symbols of JSON, halves of characters, white space.
const WORDS: &[&str] = &[
    "{\"", "\":", "\": ", "\": \"", "\", \"", "\"}", "},{", "}}", "]]", "[[", "[]", "{}", "{\n", "\n\n",
    "\n  ", "   ", "        ", "true", "fal", "se", "null", "name", "na", "red", "green", "ed\"", "12", "00",
    "-1", ".5", "1e", "é", "日本", "😀", "\\u", "\\n", "\\\"", "tool", "<tool", "_call>", "abc", "bc",
    "the end", "```",
];

/// Tokens of the toy that are no text.
pub(crate) const CALL: TokenId = TokenId(256);
pub(crate) const END: TokenId = TokenId(257);
pub(crate) const END_OF_TEXT: TokenId = TokenId(258);
pub(crate) const START: TokenId = TokenId(259);
pub(crate) const UNNAMED: TokenId = TokenId(260);

pub(crate) static TOY: LazyLock<Toy> = LazyLock::new(Toy::new);

pub(crate) struct Toy {
    words: Vec<Word>,
    grammars: Grammars,
}

impl Toy {
    pub(crate) fn new() -> Self {
        let mut words: Vec<Word> = (0..=255).map(|byte| Word::Text(vec![byte])).collect();
        words.push(Word::Added("<tool_call>".to_owned()));
        let control = ["<|im_end|>", "<|endoftext|>", "<|im_start|>", "[UNUSED]"];
        words.extend(control.map(|name| Word::Control(name.to_owned())));
        words.extend(WORDS.iter().map(|word| Word::Text(word.as_bytes().to_vec())));
        // Characters cut in two.
        words.push(Word::Text(vec![0xE6, 0x97]));
        words.push(Word::Text(vec![0xA5, b'"']));
        let vocabulary = Vocabulary::new(words.clone(), vec![END, END_OF_TEXT]).unwrap();
        Self { words, grammars: Grammars::new(&vocabulary).unwrap() }
    }

    pub(crate) fn tokens(&self) -> u32 {
        self.words.len() as u32
    }

    pub(crate) fn compile(&self, constraint: &Constraint) -> Result<Box<dyn engine::Constraint>, String> {
        self.grammars.compile(constraint).map_err(|e| e.to_string())
    }

    pub(crate) fn text(&self, ids: &[TokenId]) -> Vec<u8> {
        let bytes = ids.iter().flat_map(|id| match &self.words[id.0 as usize] {
            Word::Text(bytes) => bytes.clone(),
            Word::Added(text) => text.as_bytes().to_vec(),
            Word::Control(_) => Vec::new(),
        });
        bytes.collect()
    }

    /// The longest words that spell the text.
    pub(crate) fn spell(&self, text: &str) -> Vec<TokenId> {
        let mut rest = text.as_bytes();
        let mut ids = Vec::new();
        while !rest.is_empty() {
            let fits = |(index, word): (usize, &Word)| match word {
                Word::Text(bytes) if rest.starts_with(bytes) => Some((bytes.len(), index as u32)),
                _ => None,
            };
            let (bytes, id) = self.words.iter().enumerate().filter_map(fits).max().unwrap();
            ids.push(TokenId(id));
            rest = &rest[bytes..];
        }
        ids
    }

    /// Whether the text passes: `Err` is the part that does, or the whole with what else must come.
    pub(crate) fn check(&self, constraint: &Constraint, text: &str) -> Result<(), String> {
        // In single bytes and in the longest words: how a text is cut must not matter.
        let bytes = text.bytes().map(|byte| TokenId(byte.into())).collect();
        let outcomes = [bytes, self.spell(text)].map(|ids: Vec<TokenId>| self.check_ids(constraint, &ids));
        assert_eq!(outcomes[0].is_ok(), outcomes[1].is_ok(), "{text}: {outcomes:?}");
        let [outcome, _] = outcomes;
        outcome
    }

    pub(crate) fn check_ids(&self, constraint: &Constraint, ids: &[TokenId]) -> Result<(), String> {
        let mut matcher = self.compile(constraint).unwrap();
        for (at, id) in ids.iter().enumerate() {
            let mask = one(matcher.masks(&[]).unwrap());
            let passed = matcher.commit(&[*id]);
            assert_eq!(mask.allows(*id), passed.is_ok(), "the mask and commit disagree on {id}");
            if passed.is_err() {
                return Err(String::from_utf8_lossy(&self.text(&ids[..at])).into_owned());
            }
        }
        let mask = one(matcher.masks(&[]).unwrap());
        assert_eq!(mask.allows(END), mask.allows(END_OF_TEXT), "all stop tokens or none");
        if mask.allows(END) { Ok(()) } else { Err("more has to come".to_owned()) }
    }

    pub(crate) fn accepts(&self, constraint: &Constraint, texts: &[&str]) {
        for text in texts {
            let outcome = self.check(constraint, text);
            assert_eq!(outcome, Ok(()), "{constraint:?} should pass {text:?}");
        }
    }

    pub(crate) fn refuses(&self, constraint: &Constraint, texts: &[&str]) {
        for text in texts {
            assert!(self.check(constraint, text).is_err(), "{constraint:?} should not pass {text:?}");
        }
    }

    /// An answer drawn under the masks: by `choices` first, then whatever closes it soonest. Without the
    /// stop token; `None` when it did not end in 600 tokens.
    pub(crate) fn draw(&self, matcher: &mut dyn engine::Constraint, choices: &[u32]) -> Option<Vec<TokenId>> {
        let closing: Vec<TokenId> =
            [END.0].into_iter().chain("\"}],:/".bytes().map(u32::from)).map(TokenId).collect();
        let mut ids = Vec::new();
        let mut choices = choices.iter();
        while ids.len() < 600 {
            let mask = one(matcher.masks(&[]).unwrap());
            let allowed = allowed(&mask, self.tokens());
            assert!(!allowed.is_empty());
            assert!(!mask.allows(START) && !mask.allows(UNNAMED), "control tokens are no text");
            let id = match choices.next() {
                Some(choice) => allowed[*choice as usize % allowed.len()],
                None => *closing
                    .iter()
                    .find(|id| mask.allows(**id))
                    .unwrap_or(&allowed[ids.len() * 31 % allowed.len()]),
            };
            if [END, END_OF_TEXT].contains(&id) {
                return Some(ids);
            }
            matcher.commit(&[id]).unwrap();
            ids.push(id);
        }
        None
    }
}

pub(crate) fn one(masks: Vec<Mask>) -> Mask {
    let [mask] = <[Mask; 1]>::try_from(masks).unwrap();
    mask
}

pub(crate) fn allowed(mask: &Mask, tokens: u32) -> Vec<TokenId> {
    (0..tokens).map(TokenId).filter(|id| mask.allows(*id)).collect()
}

pub(crate) fn schema(text: impl ToString) -> Constraint {
    Constraint::JsonSchema(text.to_string())
}

/// The JSON value of a drawn text. `None` where a number is too large to be read: JSON bounds none.
pub(crate) fn read(text: &str) -> Result<Option<Value>, TestCaseError> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.to_string().contains("number out of range") => Ok(None),
        Err(error) => Err(TestCaseError::fail(format!("{text}: {error}"))),
    }
}
