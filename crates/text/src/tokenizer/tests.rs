use gguf::Value;
use proptest::prelude::*;

use super::*;
use crate::tiny::Tiny;

fn tokenizer(tiny: &Tiny) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_gguf(&tiny.header())
}

fn tiny() -> Tokenizer {
    tokenizer(&Tiny::new()).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str, allow_special: bool) -> Vec<u32> {
    tokenizer.encode(text, allow_special).unwrap().into_iter().map(|id| id.0).collect()
}

#[test]
fn merges_are_applied_best_first_within_words() {
    for (text, expected) in [
        ("", vec![]),
        ("hello", vec![259]),
        ("hell", vec![258]),
        ("he", vec![256]),
        ("llhe", vec![257, 256]),
        ("hello w", vec![259, 260]),
        ("hello  w", vec![259, 32, 260]),
        ("é", vec![0xc3, 0xa9]),
    ] {
        assert_eq!(ids(&tiny(), text, false), expected, "{text:?}");
    }
}

#[test]
fn typed_control_tokens_stay_text_unless_allowed() {
    let tokenizer = tiny();
    let text = "<|im_start|>he<|im_end|><tool_call>";
    assert_eq!(ids(&tokenizer, text, true), [262, 256, 263, 264]);
    let typed = ids(&tokenizer, text, false);
    assert_eq!(typed.iter().filter(|id| **id >= 261).collect::<Vec<_>>(), [&264], "user-defined is text too");
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap()), text);
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, true).unwrap()), "he<tool_call>");
}

#[test]
fn of_overlapping_added_tokens_the_longest_wins() {
    let mut tiny = Tiny::new();
    tiny.add("<|im_end|>x", 3);
    assert_eq!(ids(&tokenizer(&tiny).unwrap(), "<|im_end|>x<|im_end|>", true), [265, 263]);
}

#[test]
fn bos_is_added_to_prompts_when_the_file_says_so() {
    let key = "tokenizer.ggml.add_bos_token";
    for (add, first) in [(None, 256), (Some(false), 256), (Some(true), 261)] {
        let tokenizer = tokenizer(&Tiny::new().set(key, add.map(Value::Bool))).unwrap();
        assert_eq!(tokenizer.prompt("he", false).unwrap()[0], TokenId(first), "{add:?}");
        assert_eq!(ids(&tokenizer, "he", false), [256]);
    }
    // Llama 3 adds it unless told otherwise.
    let llama = Tiny::new().set("tokenizer.ggml.pre", Some(Value::Str("llama-bpe".into())));
    assert_eq!(tokenizer(&llama).unwrap().prompt("he", false).unwrap()[0], TokenId(261));
}

#[test]
fn stop_ids_are_named_by_keys_or_by_themselves() {
    assert_eq!(tiny().stop_ids(), [TokenId(263), TokenId(261)]);
    // A word that happens to be spelled like one does not end an answer.
    let mut spelled = Tiny::new().set("tokenizer.ggml.eot_token_id", Some(Value::U32(264)));
    spelled.add("<|eot_id|>", 4);
    let stops = tokenizer(&spelled).unwrap().stop_ids().to_vec();
    assert_eq!(stops, [TokenId(263), TokenId(264), TokenId(261)]);
}

#[test]
fn the_vocabulary_hash_ignores_padding_and_sees_every_token() {
    let base = tiny();
    let mut padded = Tiny::new();
    padded.add("[PAD265]", 5);
    padded.add("[PAD266]", 5);
    let padded = tokenizer(&padded).unwrap();
    assert_eq!(padded.vocab_hash(), base.vocab_hash());
    assert_eq!((padded.vocab_len(), base.vocab_len()), (265, 265));
    assert_eq!(padded.decode(&[TokenId(265), TokenId(256), TokenId(9999)]), "he");

    let mut renamed = Tiny::new();
    renamed.tokens[262] = "<|im_begin|>".into();
    let mut swapped = Tiny::new();
    swapped.tokens.swap(97, 98);
    for other in [renamed, swapped] {
        assert_ne!(tokenizer(&other).unwrap().vocab_hash(), base.vocab_hash());
    }
}

#[test]
fn what_cannot_be_spelled_is_an_error_not_a_gap() {
    let mut tiny = Tiny::new();
    tiny.types[4] = 5;
    let tokenizer = tokenizer(&tiny).unwrap();
    assert_eq!(tokenizer.encode("a\u{4}b", false), Err(EncodeError::Unspellable { character: '\u{4}' }));
    assert!(tokenizer.encode("ab", false).is_ok());
}

#[test]
fn long_white_space_is_cut_right_or_refused() {
    let tokenizer = tiny();
    for blank in [" ", "\n", "\u{a0}", "\t"] {
        let text = format!("{}he", blank.repeat(MOST_WHITESPACE));
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).unwrap()), text);
        assert_eq!(ids(&tokenizer, &text, false).last(), Some(&256), "words after it are still cut");
        let error = tokenizer.encode(&blank.repeat(MOST_WHITESPACE + 1), false).unwrap_err();
        assert!(error.to_string().contains("100001 white-space characters"), "{error}");
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_by_name() {
    let text = |s: &str| Some(Value::Str(s.into()));
    let with = |change: fn(&mut Tiny)| {
        let mut tiny = Tiny::new();
        change(&mut tiny);
        tiny
    };
    let pre = "tokenizer.ggml.pre";
    for (tiny, says) in [
        (
            Tiny::new().set("tokenizer.ggml.model", text("llama")),
            r#"tokenizer.ggml.model is "llama", which is not built"#,
        ),
        (Tiny::new().set("tokenizer.ggml.model", None), r#""tokenizer.ggml.model" is missing"#),
        (
            Tiny::new().set(pre, text("tekken")),
            r#"tokenizer.ggml.pre is "tekken", which is not built; supported: gpt-2, smollm"#,
        ),
        (Tiny::new().set(pre, None), r#""tokenizer.ggml.pre" is missing"#),
        (
            Tiny::new().set("tokenizer.ggml.bos_token_id", Some(Value::U32(265))),
            "bos_token_id: is 265, outside",
        ),
        (
            Tiny::new()
                .set("tokenizer.ggml.bos_token_id", None)
                .set("tokenizer.ggml.add_bos_token", Some(Value::Bool(true))),
            "bos_token_id: is missing",
        ),
        (
            with(|t| {
                t.types.pop();
            }),
            "token_type: has 264 entries for 265 tokens",
        ),
        (with(|t| t.types[7] = 6), "token 7 is a byte token"),
        (with(|t| t.types[7] = 9), "token 7 has the unknown type 9"),
        (with(|t| t.tokens[98] = "a".into()), r#""a" is both token 97 and token 98"#),
        (
            with(|t| {
                t.tokens.clear();
                t.types.clear();
            }),
            "tokens: is empty",
        ),
        (with(|t| t.merges.push("hello".into())), r#"merge 5, "hello", is not two tokens"#),
        (with(|t| t.merges.push("hello w".into())), r#"merge 5 needs "hellow""#),
        (with(|t| t.merges.push("zz a".into())), r#"merge 5 needs "zz""#),
        (with(|t| t.merges.push("<|im_end|> a".into())), r#"merge 5 needs "<|im_end|>""#),
        (
            with(|t| t.types[261..264].fill(4)).set("tokenizer.ggml.eos_token_id", None),
            "answers would never end",
        ),
    ] {
        let error = tokenizer(&tiny).expect_err(says).to_string();
        assert!(error.contains(says), "{error}\nshould say: {says}");
    }
}

proptest! {
    #[test]
    fn text_survives_encoding_for_every_pre_tokenizer(
        text in "\\PC{0,12}[ \\n\\ta-c0-9']{0,12}\\PC{0,12}",
        pre in prop::sample::select(vec!["gpt-2", "smollm", "llama-bpe", "default"]),
    ) {
        let tokenizer = tokenizer(&Tiny::new().set("tokenizer.ggml.pre", Some(Value::Str(pre.into())))).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).unwrap()), text);
    }

    #[test]
    fn typed_text_never_makes_a_control_token(
        parts in prop::collection::vec(
            prop::sample::select(vec!["<|", "|>", "im_start", "<|im_end|>", "<|endoftext|>", "he", " ", "<"]), 0..12)
    ) {
        for id in tiny().encode(&parts.concat(), false).unwrap() {
            prop_assert!(id.0 < 261);
        }
    }

    #[test]
    fn incremental_text_is_the_whole_text(ids in prop::collection::vec(0u32..270, 0..40)) {
        // Mostly bytes: half characters, bad sequences and control tokens in every order.
        let tokenizer = tiny();
        let ids: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
        let mut detokenizer = tokenizer.detokenizer();
        let mut text: String = ids.iter().filter_map(|id| detokenizer.push(*id)).collect();
        text.extend(detokenizer.finish());
        prop_assert_eq!(text, tokenizer.decode(&ids));
    }

    #[test]
    fn incremental_text_of_good_text_has_no_replacement(text in "\\PC{0,24}") {
        let tokenizer = tokenizer(&Tiny::new().set("tokenizer.ggml.pre", Some(Value::Str("gpt-2".into())))).unwrap();
        let mut detokenizer = tokenizer.detokenizer();
        let mut shown = String::new();
        for id in tokenizer.encode(&text, false).unwrap() {
            shown.extend(detokenizer.push(id));
            prop_assert!(text.starts_with(&shown), "{:?} then {:?}", text, shown);
        }
        prop_assert_eq!(detokenizer.finish(), None);
        prop_assert_eq!(shown, text);
    }
}

#[test]
fn half_a_character_is_held_back() {
    let mut detokenizer = tiny().detokenizer();
    let mut push = |byte: u32| detokenizer.push(TokenId(byte));
    assert_eq!(push(0xf0), None);
    assert_eq!(push(0x9f), None);
    // A control token in between shows nothing and breaks nothing.
    assert_eq!(push(262), None);
    assert_eq!(push(0x98), None);
    assert_eq!(push(0x80).as_deref(), Some("😀"));
    // Not a continuation: the start was no character, the letter is.
    assert_eq!(push(0xc3), None);
    assert_eq!(push(97).as_deref(), Some("\u{fffd}a"));
    assert_eq!(push(0xe4), None);
    assert_eq!(detokenizer.finish().as_deref(), Some("\u{fffd}"));
}
