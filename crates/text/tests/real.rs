//! The tokenizers and templates of real models, against golden files that `golden/make.py` wrote
//! with other code.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests; a skip is said aloud")]

use std::path::PathBuf;

use gguf::Header;
use proptest::prelude::*;
use request::{TokenId, Tokens};
use serde_json::Value;
use text::{Chat, ChatTemplate, Message, Tokenizer};

/// A model's header; `None`, said aloud, when the file is not there.
fn header(model: &str) -> Option<Header> {
    let var = std::env::var_os;
    let cache = || {
        var("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(var("HOME")?).join(".cache")))
    };
    let models = var("PACELINE_MODELS").map(PathBuf::from).or_else(|| Some(cache()?.join("paceline/models")));
    let path = models.expect("HOME is set").join(format!("{model}.gguf"));
    if !path.exists() {
        let required = var("PACELINE_REQUIRE").is_some_and(|what| what == "all");
        assert!(!required, "{} is missing: `paceline models pull {model}`", path.display());
        println!("skipped: {} is missing", path.display());
        return None;
    }
    Some(Header::open(&path).unwrap())
}

fn golden(model: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{model}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn encodings_and_prompts_are_the_references() {
    for model in ["smollm2-135m", "coder-0.5b"] {
        let Some(header) = header(model) else { continue };
        let golden = golden(model);
        let tokenizer = Tokenizer::from_gguf(&header).unwrap();
        let encodings = golden["encodings"].as_array().unwrap();
        assert!(encodings.len() >= 50);
        for case in encodings {
            let (text, special) = (case["text"].as_str().unwrap(), case["special"].as_bool().unwrap());
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let ids = tokenizer.encode(text, special).unwrap();
            assert_eq!(ids.to_ids(), expected, "{model}: {text:?}, special {special}");
        }
        let template = ChatTemplate::from_gguf(&header).unwrap();
        for case in golden["prompts"].as_array().unwrap() {
            let messages: Vec<(String, String)> = serde_json::from_value(case["messages"].clone()).unwrap();
            let messages: Vec<Message> = messages.into_iter().map(|(r, c)| Message::new(r, c)).collect();
            assert_eq!(
                template.render(&messages.into()).unwrap(),
                case["prompt"].as_str().unwrap(),
                "{model}"
            );
        }
        // Through the fence too, each text of the golden encodings as a message.
        let chat = Chat::new(ChatTemplate::from_gguf(&header).unwrap(), &tokenizer).unwrap();
        assert_eq!(chat.knows_tools(), model.starts_with("coder"));
        for case in encodings.iter().map(|case| case["text"].as_str().unwrap()).filter(|t| !t.contains("<|"))
        {
            let conversation = vec![Message::new("user", case), Message::new("assistant", case)].into();
            let whole = tokenizer.encode(&template.render(&conversation).unwrap(), true).unwrap();
            assert_eq!(chat.tokens(&conversation, &tokenizer).unwrap(), whole, "{model}: {case:?}");
        }
    }
}

#[test]
fn chat_markers_are_single_tokens_and_stop() {
    for (model, start, end, stops) in [
        ("smollm2-135m", 1, 2, vec![2, 0]),
        ("coder-0.5b", 151644, 151645, vec![151645, 151643]),
        ("coder-1.5b", 151644, 151645, vec![151645, 151643]),
    ] {
        let Some(header) = header(model) else { continue };
        let tokenizer = Tokenizer::from_gguf(&header).unwrap();
        let prompt = ChatTemplate::from_gguf(&header)
            .unwrap()
            .render(&vec![Message::new("user", "Hi")].into())
            .unwrap();
        assert!(prompt.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{prompt}");
        let ids = tokenizer.encode(&prompt, true).unwrap().to_ids();
        assert_eq!(ids.iter().filter(|id| **id == start).count(), 3, "system, user, assistant");
        assert_eq!(ids.iter().filter(|id| **id == end).count(), 2);
        assert_eq!(tokenizer.stop_ids().to_ids(), stops);
        // No BOS before a raw prompt either.
        assert_eq!(tokenizer.prompt("Hi", false), tokenizer.encode("Hi", false));
    }
}

#[test]
fn the_coder_pair_shares_a_vocabulary_and_smollm2_does_not() {
    let [Some(small), Some(large), Some(smol)] = ["coder-0.5b", "coder-1.5b", "smollm2-135m"].map(header)
    else {
        return;
    };
    let [small, large, smol] = [small, large, smol].map(|header| Tokenizer::from_gguf(&header).unwrap());
    assert_eq!(small.vocab_hash(), large.vocab_hash());
    assert_ne!(small.vocab_hash(), smol.vocab_hash());
    assert_eq!((small.vocab_len(), smol.vocab_len()), (151665, 49152));
}

#[test]
fn any_ids_stream_to_their_whole_text() {
    for model in ["smollm2-135m", "coder-0.5b"] {
        let Some(header) = header(model) else { continue };
        let tokenizer = Tokenizer::from_gguf(&header).unwrap();
        let width = 152_064u32; // Wider than both: a model may have logits beyond its vocabulary.
        proptest!(|(ids in prop::collection::vec((0..width).prop_map(TokenId), 0..64))| {
            let mut detokenizer = tokenizer.detokenizer();
            let mut text: String = ids.iter().filter_map(|id| detokenizer.push(*id)).collect();
            text.extend(detokenizer.finish());
            prop_assert_eq!(text, tokenizer.decode(&ids));
        });
        proptest!(|(text in "[a-zA-Z0-9 .,;:!?'\"(){}\\[\\]<>|/\\\\\n\t\u{e0}-\u{17f}\u{4e00}-\u{4fff}\u{1f300}-\u{1f6ff}]{0,64}")| {
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids), text);
        });
    }
}
