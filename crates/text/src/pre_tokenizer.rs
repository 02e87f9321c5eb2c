//! How text is cut into words before merges: one table row for each `tokenizer.ggml.pre`.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// GPT-2's own pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// One digit is one word.
const DIGIT: &str = r"\p{N}";
/// Qwen2's: contractions in any case, one digit a word, line breaks kept together.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's: as Qwen2's with up to three digits a word.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One way to cut words.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    names: &'static [&'static str],
    /// Each cuts the pieces that the one before left; text between matches is a piece too.
    patterns: &'static [&'static str],
    /// Unicode NFC first, as the model's original tokenizer does.
    pub(crate) nfc: bool,
    /// A word that is a token is taken whole, whatever the merges say.
    pub(crate) ignore_merges: bool,
    /// Whether a prompt starts with the BOS token when the file does not say.
    pub(crate) add_bos: bool,
}

const PLAIN: PreTokenizer =
    PreTokenizer { names: &[], patterns: &[], nfc: false, ignore_merges: false, add_bos: false };

const TABLE: &[PreTokenizer] = &[
    PreTokenizer { names: &["gpt-2"], patterns: &[GPT2], ..PLAIN },
    PreTokenizer { names: &["smollm"], patterns: &[DIGIT, GPT2], ..PLAIN },
    PreTokenizer { names: &["qwen2"], patterns: &[QWEN2], nfc: true, ..PLAIN },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    // What llama.cpp writes and uses when its converter did not recognise the tokenizer.
    PreTokenizer {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..PLAIN
    },
];

impl PreTokenizer {
    /// The row of a `tokenizer.ggml.pre`.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        TABLE.iter().find(|row| row.names.contains(&name))
    }

    /// All names, for an error.
    pub(crate) fn supported() -> String {
        let names: Vec<&str> = TABLE.iter().flat_map(|row| row.names).copied().collect();
        names.join(", ")
    }

    /// Cuts by the patterns, then writes bytes in the byte-level alphabet.
    pub(crate) fn build(&self) -> tokenizers::Result<Sequence> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(steps))
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        PreTokenizer::named(pre).unwrap().build().unwrap().pre_tokenize(&mut cut).unwrap();
        cut.get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, (from, to), _)| text[from..to].to_owned())
            .collect()
    }

    #[test]
    fn each_row_cuts_as_its_model_was_trained() {
        for (pre, text, expected) in [
            ("gpt-2", "Hello world  2024!", vec!["Hello", " world", " ", " 2024", "!"]),
            ("gpt-2", "don't DON'T", vec!["don", "'t", " DON", "'", "T"]),
            ("smollm", "in 2024.", vec!["in", " ", "2", "0", "2", "4", "."]),
            ("smollm", "a  1 b", vec!["a", "  ", "1", " b"]),
            ("qwen2", "in 2024.", vec!["in", " ", "2", "0", "2", "4", "."]),
            ("qwen2", "DON'T stop\n\n  x", vec!["DON", "'T", " stop", "\n\n", " ", " x"]),
            ("qwen2", "if(x){\n}", vec!["if", "(x", "){\n", "}"]),
            ("llama-bpe", "123456 7", vec!["123", "456", " ", "7"]),
            ("default", "a==b 12345", vec!["a", "==", "b", " ", "123", "45"]),
        ] {
            assert_eq!(words(pre, text), expected, "{pre}: {text:?}");
        }
    }

    #[test]
    fn every_row_builds_and_an_unknown_name_is_none() {
        for row in TABLE {
            row.build().unwrap();
        }
        assert!(PreTokenizer::named("tekken").is_none());
        assert!(PreTokenizer::supported().contains("smollm"));
    }
}
