//! Long texts with passkeys in them: the needles that a head must find (Mohtashami and Jaggi, arXiv 2305.16300).
//!
//! Made of tokens piece by piece, so that a text with another question keeps every token before it.

use std::ops::Range;

use anyhow::{Result, ensure};
use fastrand::Rng;
use request::TokenId;
use text::Tokenizer;

/// Passkeys of a text, each at a depth of its own.
pub(super) const DEPTHS: usize = 10;

const VAULTS: [&str; DEPTHS] =
    ["red", "blue", "green", "yellow", "white", "black", "purple", "orange", "silver", "golden"];

/// A text, and what can be asked about it.
#[derive(Debug)]
pub(super) struct Haystack {
    pub(super) tokens: Vec<TokenId>,
    pub(super) needles: Vec<Needle>,
}

/// One passkey.
#[derive(Debug)]
pub(super) struct Needle {
    /// Where its number begins, as a share of the text.
    pub(super) depth: f64,
    /// Of the sentence that tells it.
    pub(super) place: Range<u32>,
    /// Tokens that ask for it, to follow the text.
    pub(super) question: Vec<TokenId>,
    /// What is to be said then.
    pub(super) answer: Vec<TokenId>,
    pub(super) number: String,
}

impl Haystack {
    /// About `length` tokens with ten passkeys, evenly spread from the first twentieth to the last.
    pub(super) fn new(tokenizer: &Tokenizer, length: u32, seed: u64) -> Result<Self> {
        ensure!(length >= 512, "a text of {length} tokens has no room for ten passkeys; take at least 512");
        let mut random = Rng::with_seed(seed);
        let mut vaults = VAULTS;
        random.shuffle(&mut vaults);
        let text = |text: &str| tokenizer.encode(text, false);
        let intro = "This is a long report. Here and there it names the passkey of a vault.\n\n";
        let mut tokens: Vec<TokenId> = tokenizer.bos().into_iter().chain(text(intro)?).collect();
        let mut needles = Vec::new();
        for (i, vault) in vaults.iter().enumerate() {
            let at = f64::from(length) * (0.05 + 0.9 * i as f64 / (DEPTHS - 1) as f64);
            while (tokens.len() as f64) < at {
                tokens.extend(text(&sentence(&mut random))?);
            }
            // Asked as it is told: a model of any size can go on with it.
            let told = format!(" The passkey of the {vault} vault is");
            let number = random.u32(10_000..100_000).to_string();
            let answer = text(&format!(" {number}"))?;
            let begin = tokens.len() as u32;
            tokens.extend(text(&told)?);
            let from = tokens.len() as u32;
            tokens.extend(&answer);
            tokens.extend(text(".")?);
            let place = begin..tokens.len() as u32;
            let question = text(&format!("\n\nAs the report says:{told}"))?;
            let depth = f64::from(from) / f64::from(length);
            needles.push(Needle { depth, place, question, answer, number });
        }
        while tokens.len() < length as usize {
            tokens.extend(text(&sentence(&mut random))?);
        }
        Ok(Self { tokens, needles })
    }
}

/// Of nothing in particular.
fn sentence(random: &mut Rng) -> String {
    const WHO: [&str; 12] = [
        "The committee",
        "A visitor",
        "The old engineer",
        "Our neighbour",
        "The night train",
        "A small company",
        "The harbour office",
        "Every teacher",
        "The second witness",
        "A young painter",
        "The museum",
        "Nobody",
    ];
    const DID: [&str; 12] = [
        "arrived late at",
        "wrote a letter about",
        "walked slowly past",
        "could not remember",
        "repaired",
        "bought a map of",
        "asked twice about",
        "complained about",
        "took photographs of",
        "was proud of",
        "spoke quietly of",
        "waited for hours near",
    ];
    const WHAT: [&str; 12] = [
        "the wooden bridge",
        "a broken clock",
        "the summer market",
        "the empty theatre",
        "an unpaid bill",
        "the northern road",
        "the flooded cellar",
        "a box of apples",
        "the new timetable",
        "the stone tower",
        "a pair of gloves",
        "the missing ladder",
    ];
    const WHEN: [&str; 12] = [
        "before the rain began",
        "on a Tuesday in March",
        "while the others were asleep",
        "for the third time",
        "without saying why",
        "as the paper reported",
        "after a long winter",
        "although it was forbidden",
        "in the year of the frost",
        "with a cup of tea",
        "because of the strike",
        "until the lamps went out",
    ];
    let mut one = |words: &[&'static str; 12]| words[random.usize(0..12)];
    format!(" {} {} {} {}.", one(&WHO), one(&DID), one(&WHAT), one(&WHEN))
}

#[cfg(test)]
pub(super) mod tests {
    use gguf::write::Writer;
    use gguf::{Array, Value};

    use super::*;

    /// A tokenizer whose tokens are bytes.
    pub(in super::super) fn bytes() -> Tokenizer {
        // GPT-2's alphabet: printable bytes are themselves, the others are numbered from U+0100.
        let mut next = '\u{100}'..;
        let names = (0..=255u8).map(|b| match b {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(b).to_string(),
            _ => next.next().unwrap().to_string(),
        });
        let names = names.chain(["<|endoftext|>".to_owned()]).collect();
        let file = Writer::new()
            .key("tokenizer.ggml.model", Value::Str("gpt2".into()))
            .key("tokenizer.ggml.pre", Value::Str("qwen2".into()))
            .key("tokenizer.ggml.tokens", Value::Array(Array::Str(names)))
            .key(
                "tokenizer.ggml.token_type",
                Value::Array(Array::I32((0..257).map(|i| 1 + 2 * i32::from(i == 256)).collect())),
            )
            .key("tokenizer.ggml.merges", Value::Array(Array::Str(Vec::new())))
            .key("tokenizer.ggml.eos_token_id", Value::U32(256))
            .finish();
        let header = gguf::Header::read(file.as_slice(), file.len() as u64).unwrap();
        Tokenizer::from_gguf(&header).unwrap()
    }

    #[test]
    fn needles_are_where_they_say() {
        let tokenizer = bytes();
        let text = Haystack::new(&tokenizer, 6000, 7).unwrap();
        assert!((6000..6200).contains(&text.tokens.len()), "{}", text.tokens.len());
        let mut depths = Vec::new();
        for needle in &text.needles {
            let from = (needle.depth * 6000.0).round() as usize;
            assert_eq!(text.tokens[from..from + needle.answer.len()], needle.answer);
            let told = &text.tokens[needle.place.start as usize..needle.place.end as usize];
            let told = tokenizer.decode(told);
            assert!(
                told.starts_with(" The passkey of the") && told.ends_with(&format!("{}.", needle.number))
            );
            assert!(tokenizer.decode(&needle.answer).ends_with(&needle.number));
            depths.push((needle.depth * 10.0).floor() as usize);
        }
        assert_eq!(depths, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(Haystack::new(&tokenizer, 6000, 7).unwrap().tokens, text.tokens, "a seed is a text");
        assert_ne!(Haystack::new(&tokenizer, 6000, 8).unwrap().tokens, text.tokens);
        assert!(Haystack::new(&tokenizer, 511, 7).unwrap_err().to_string().contains("at least 512"));
    }
}
