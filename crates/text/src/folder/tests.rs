use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::byte_level::alphabet;
use crate::tiny::Tiny;
use crate::{Message, TokenKind};

/// The folder of the model that [`Tiny`] is the GGUF file of.
fn files() -> Vec<(&'static str, Value)> {
    let mut vocab: Map<String, Value> =
        alphabet().map(|(byte, c)| (c.to_string(), Value::from(byte))).collect();
    for (i, token) in ["he", "ll", "hell", "hello", "Ġw"].into_iter().enumerate() {
        vocab.insert(token.into(), (256 + i).into());
    }
    let added = |id: u32, content: &str, special: bool| {
        json!({ "id": id, "content": content, "special": special, "normalized": false, "lstrip": false,
                "rstrip": false, "single_word": false })
    };
    // As in Qwen's: cut by the pattern, then bytes.
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let cut = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
    ]});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        // <|im_start|> looks special although the file does not say so.
        "added_tokens": [added(261, "<|endoftext|>", true), added(262, "<|im_start|>", false),
                         added(263, "<|im_end|>", true), added(264, "<tool_call>", false)],
        "normalizer": { "type": "NFC" }, "pre_tokenizer": cut, "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                   "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
                   "merges": ["h e", ["l", "l"], "he ll", ["hell", "o"], "Ġ w"] },
    });
    vec![
        ("tokenizer.json", tokenizer),
        (
            "tokenizer_config.json",
            json!({
                "bos_token": null, "eos_token": { "content": "<|im_end|>" }, "add_bos_token": false,
                "chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}{{ eos_token }}{% endfor %}",
            }),
        ),
        ("config.json", json!({ "bos_token_id": 261, "eos_token_id": 263 })),
        ("generation_config.json", json!({ "eos_token_id": [263, 261] })),
    ]
}

fn written(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in files {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

/// Opened after a change to one of the files.
fn changed(file: &str, change: impl FnOnce(&mut Value)) -> Result<Tokenizer, TokenizerError> {
    let mut files = files();
    change(&mut files.iter_mut().find(|(name, _)| *name == file).unwrap().1);
    Tokenizer::open(written(&files).path())
}

#[test]
fn a_folder_and_the_gguf_file_of_one_model_are_one_tokenizer() {
    let folder = Tokenizer::open(written(&files()).path()).unwrap();
    let file = Tokenizer::from_gguf(&Tiny::new().header()).unwrap();
    assert_eq!(folder.vocab_hash(), file.vocab_hash());
    assert_eq!((folder.bos(), folder.eos()), (file.bos(), file.eos()));
    assert_eq!(folder.stop_ids(), [TokenId(263), TokenId(261)]);
    for text in
        ["hello w", "hello  w", "é e\u{301}", "<|im_start|>he<|im_end|><tool_call>", "2024 DON'T\n\n x"]
    {
        for special in [false, true] {
            assert_eq!(
                folder.encode(text, special).unwrap(),
                file.encode(text, special).unwrap(),
                "{text:?}"
            );
        }
        assert_eq!(folder.prompt(text, true).unwrap(), file.prompt(text, true).unwrap());
    }
    for id in (0..300).map(TokenId) {
        assert_eq!(folder.vocabulary().bytes(id), file.vocabulary().bytes(id));
        assert_eq!(folder.vocabulary().kind(id), file.vocabulary().kind(id), "{id}");
    }
}

#[test]
fn bos_is_added_when_the_config_or_the_post_processor_says_so() {
    let first = |t: Result<Tokenizer, TokenizerError>| t.unwrap().prompt("he", false).unwrap()[0].0;
    assert_eq!(first(changed("tokenizer_config.json", |c| c["add_bos_token"] = true.into())), 261);
    let bare = |config: &mut Value| drop(config.as_object_mut().unwrap().remove("add_bos_token"));
    assert_eq!(first(changed("tokenizer_config.json", bare)), 256);
    // As Llama 3's folders have it.
    let mut files = files();
    bare(&mut files[1].1);
    files[0].1["post_processor"] = json!({ "type": "Sequence", "processors": [
        { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true },
        { "type": "TemplateProcessing", "pair": [], "special_tokens": {},
          "single": [{ "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } }, { "Sequence": { "id": "A" } }] },
    ]});
    assert_eq!(first(Tokenizer::open(written(&files).path())), 261);
}

#[test]
fn templates_come_from_their_own_file_first() {
    let messages = vec![Message::new("user", "hi")].into();
    let rendered = |files: &[(&str, Value)], own: Option<&str>| {
        let dir = written(files);
        if let Some(own) = own {
            std::fs::write(dir.path().join("chat_template.jinja"), own).unwrap();
        }
        ChatTemplate::open(dir.path()).and_then(|template| template.render(&messages))
    };
    assert_eq!(rendered(&files(), None).unwrap(), "<|im_start|>hi<|im_end|>");
    assert_eq!(rendered(&files(), Some("own {{ messages[0].content }}")).unwrap(), "own hi");
    let mut named = files();
    named[1].1["chat_template"] =
        json!([{ "name": "tool_use", "template": "x" }, { "name": "default", "template": "d" }]);
    assert_eq!(rendered(&named, None).unwrap(), "d");
    named.push(("chat_template.json", json!({ "chat_template": "j" })));
    assert_eq!(rendered(&named, None).unwrap(), "j");
    let none = rendered(&[("tokenizer_config.json", json!({}))], None);
    assert!(matches!(none, Err(TemplateError::Missing)), "{none:?}");
}

#[test]
fn what_is_not_built_or_not_right_is_named() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change, &str); 14] = [
        ("tokenizer.json", |t| t["model"]["type"] = "Unigram".into(), "a model whose type is Unigram"),
        ("tokenizer.json", |t| t["model"]["byte_fallback"] = true.into(), "byte_fallback is true"),
        ("tokenizer.json", |t| t["model"]["vocab"] = json!([]), "model.vocab is not an object"),
        ("tokenizer.json", |t| t["model"]["vocab"]["x"] = (-1).into(), "the id -1"),
        ("tokenizer.json", |t| t["model"]["vocab"]["x"] = u32::MAX.into(), "ids up to 4294967295"),
        ("tokenizer.json", |t| t["model"]["vocab"]["xx"] = 256.into(), "two tokens of id 256"),
        ("tokenizer.json", |t| t["model"]["merges"] = json!(["q"]), "is not two tokens"),
        ("tokenizer.json", |t| t["model"]["merges"] = json!(["q z"]), "merge 0 needs \"qz\""),
        ("tokenizer.json", |t| t["added_tokens"][0]["lstrip"] = true.into(), "lstrip of the added token"),
        ("tokenizer.json", |t| t["normalizer"] = json!({ "type": "Lowercase" }), "normalizer Lowercase"),
        ("tokenizer.json", |t| t["pre_tokenizer"] = json!({ "type": "Metaspace" }), "ends in Metaspace"),
        ("tokenizer_config.json", |t| t["eos_token"] = "<no>".into(), "eos_token is \"<no>\""),
        ("generation_config.json", |t| t["eos_token_id"] = 9999.into(), "eos_token_id is 9999"),
        ("config.json", |t| *t = json!([1]), "config.json: is not an object"),
    ];
    for (file, change, says) in cases {
        let error = changed(file, change).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
    let missing = Tokenizer::open(written(&files()[1..]).path()).unwrap_err();
    assert!(missing.to_string().contains("tokenizer.json is missing"), "{missing}");
}

#[test]
fn a_hole_in_the_ids_is_padding() {
    let holed = changed("tokenizer.json", |t| t["added_tokens"][3]["id"] = 266.into()).unwrap();
    assert_eq!(holed.vocab_len(), 267);
    assert_eq!(holed.vocabulary().kind(TokenId(265)), Some(TokenKind::Unused));
    assert_eq!(holed.vocabulary().token(TokenId(265)), Some("[PAD265]"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the damage: an error, or a tokenizer that encodes.
    #[test]
    fn a_damaged_folder_never_panics(which in 0usize..4, at in any::<prop::sample::Index>(), byte in 0x20u8..0x7f, cut: bool) {
        let files = files();
        let dir = written(&files);
        let (name, value) = &files[which];
        let mut text = value.to_string().into_bytes();
        let at = at.index(text.len());
        if cut { text.truncate(at) } else { text[at] = byte }
        std::fs::write(dir.path().join(name), text).unwrap();
        if let Ok(tokenizer) = Tokenizer::open(dir.path()) {
            let _ = tokenizer.encode("hello w<|im_end|>", true);
        }
        let _ = ChatTemplate::open(dir.path());
    }
}
