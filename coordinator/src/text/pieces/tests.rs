//! Tokens are bytes here (and control tokens), so that any cut of a text can be a cut between tokens.

use gguf::write::Writer;
use gguf::{Array, Header, Value};
use proptest::prelude::*;

use super::*;

const END: u32 = 256;

fn model() -> ModelText {
    // GPT-2's alphabet: printable bytes are themselves, the others are numbered from U+0100.
    let mut next = '\u{100}'..;
    let mut names: Vec<String> = (0..=255u8)
        .map(|b| match b {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(b),
            _ => next.next().unwrap(),
        })
        .map(String::from)
        .collect();
    names.extend(["<|im_end|>", "[TOOL_CALLS]"].map(String::from));
    let kinds = (0..names.len()).map(|i| if i < 256 { 1 } else { 3 }).collect();
    let file = Writer::new()
        .key("tokenizer.ggml.model", Value::Str("gpt2".into()))
        .key("tokenizer.ggml.pre", Value::Str("qwen2".into()))
        .key("tokenizer.ggml.tokens", Value::Array(Array::Str(names)))
        .key("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)))
        .key("tokenizer.ggml.merges", Value::Array(Array::Str(Vec::new())))
        .key("tokenizer.ggml.eos_token_id", Value::U32(END))
        .finish();
    let header = Header::read(file.as_slice(), file.len() as u64).unwrap();
    ModelText::new(text::Tokenizer::from_gguf(&header).unwrap(), None).unwrap()
}

fn rules(strings: &[&str]) -> StopRules {
    StopRules {
        strings: StopStrings::new(strings.iter().map(ToString::to_string).collect()),
        ids: vec![TokenId(END)],
        ..StopRules::default()
    }
}

/// Mistral's calls begin with a control token.
#[test]
fn control_tokens_are_shown_where_asked() {
    let output = [&[TokenId(END + 1)][..], &ids(b"[]")].concat();
    for (shown, text) in [(vec![], "[]"), (vec![(TokenId(END + 1), "[TOOL_CALLS]".into())], "[TOOL_CALLS][]")]
    {
        let mut pieces = Pieces::new(&model(), StopRules { shown, ..rules(&[]) });
        assert_eq!(push(&mut pieces, &output).0, text);
    }
}

fn ids(bytes: &[u8]) -> Vec<TokenId> {
    bytes.iter().map(|b| TokenId((*b).into())).collect()
}

/// Gives tokens until the answer ends; the text, and how many were taken.
fn push(pieces: &mut Pieces, ids: &[TokenId]) -> (String, usize) {
    let mut told = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        pieces.push(*id, false, &mut told);
        if pieces.stopped().is_some() {
            return (joined(told), i + 1);
        }
    }
    (joined(told), ids.len())
}

fn joined(pieces: Vec<Piece>) -> String {
    pieces.into_iter().map(|p| p.text).collect()
}

/// The whole text, what ended it, and after how many tokens.
fn whole(model: &ModelText, rules: StopRules, ids: &[TokenId]) -> (String, Option<Stopped>, usize) {
    let mut pieces = Pieces::new(model, rules);
    let (told, taken) = push(&mut pieces, ids);
    let stopped = pieces.stopped().cloned();
    (told + &joined(pieces.finish()), stopped, taken)
}

#[test]
fn what_ends_an_answer_and_what_is_shown() {
    let model = model();
    let string = |s: &str| Some(Stopped::String(s.into()));
    for (strings, min_tokens, include, said, shown, stopped, taken) in [
        (&["STOP"][..], 0, false, "go STOP on", "go ", string("STOP"), 7),
        (&["STOP"], 0, true, "go STOP on", "go STOP", string("STOP"), 7),
        (&["STOP"], 0, false, "no STO", "no STO", None, 6),
        (&["STOP"], 7, false, "go STOP on", "go ", string("STOP"), 7),
        (&["STOP"], 8, false, "go STOP on", "go STOP on", None, 10),
        // The second of three overlapping ones is the first that counts.
        (&["aa"], 3, false, "aaaa", "a", string("aa"), 3),
        (&["界"], 0, false, "世界!", "世", string("界"), 6),
        (&["ü", "x"], 0, false, "Grüß", "Gr", string("ü"), 4),
    ] {
        let rules = StopRules { min_tokens, include, ..rules(strings) };
        let got = whole(&model, rules, &ids(said.as_bytes()));
        assert_eq!(got, (shown.to_owned(), stopped, taken), "{strings:?} in {said:?}");
    }
}

#[test]
fn a_stop_token_ends_it_and_gives_what_was_held() {
    let model = model();
    let mut tokens = ids(b"go STO");
    tokens.push(TokenId(END));
    let got = whole(&model, rules(&["STOP"]), &tokens);
    assert_eq!(got, ("go STO".into(), Some(Stopped::Id(TokenId(END))), 7));
    // One with a text of its own is shown only when that is asked for, and is no part of a stop string.
    let dot = StopRules { ids: vec![TokenId(b'.'.into())], ..rules(&["o."]) };
    let got = whole(&model, dot.clone(), &ids(b"go. on"));
    assert_eq!(got, ("go".into(), Some(Stopped::Id(TokenId(b'.'.into()))), 3));
    let got = whole(&model, StopRules { include: true, ..dot }, &ids(b"go. on"));
    assert_eq!(got.0, "go.");
}

#[test]
fn held_text_keeps_its_origin() {
    let mut pieces = Pieces::new(&model(), rules(&["abc"]));
    let mut told = Vec::new();
    for (id, drafted) in ids(b"xabd").into_iter().zip([false, true, false, true]) {
        pieces.push(id, drafted, &mut told);
    }
    let told: Vec<_> = told.iter().map(|p| (p.text.as_str(), p.drafted)).collect();
    assert_eq!(told, [("x", false), ("a", true), ("b", false), ("d", true)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// At every cut of an answer: the text that a client had before it, and what one that goes on from
    /// the tokens before it says, are the whole text. Bytes that are no UTF-8 included.
    #[test]
    fn every_cut_goes_on_where_the_text_stopped(
        strings in prop::collection::vec("[abé]{1,4}", 0..4),
        said in prop::collection::vec(prop_oneof![
            6 => "[abéc]".prop_map(String::into_bytes),
            1 => any::<u8>().prop_map(|b| vec![b]),
            1 => Just("界".into()),
        ], 0..24),
        ends in any::<bool>(),
        include in any::<bool>(),
        min_tokens in 0u32..12,
    ) {
        let model = model();
        let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
        let rules = StopRules { include, min_tokens, ..rules(&strings) };
        let mut tokens = ids(&said.concat());
        tokens.extend(ends.then_some(TokenId(END)));
        let (expected, stopped, taken) = whole(&model, rules.clone(), &tokens);
        for cut in 0..=taken {
            let mut first = Pieces::new(&model, rules.clone());
            let (before, _) = push(&mut first, &tokens[..cut]);
            let mut second = Pieces::new(&model, rules.clone());
            push(&mut second, &tokens[..cut]);
            let (after, rest) = push(&mut second, &tokens[cut..taken]);
            prop_assert_eq!(cut + rest, taken);
            prop_assert_eq!(second.stopped(), stopped.as_ref());
            prop_assert_eq!(before + &after + &joined(second.finish()), &*expected, "cut at {}", cut);
        }
        // Never a part of what ended it.
        if let (Some(Stopped::String(string)), false) = (&stopped, include) {
            let text = String::from_utf8_lossy(&said.concat()).into_owned();
            prop_assert!(text.starts_with(&(expected + string)));
        }
    }
}
