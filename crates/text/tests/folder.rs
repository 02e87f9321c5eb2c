//! A folder gives the ids that the GGUF file of the same model gives: the real tokenizers, written as
//! `tokenizer.json` the way their publishers do, against the golden files.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests; a skip is said aloud")]

use std::path::{Path, PathBuf};

use gguf::{Header, Metadata};
use request::Tokens;
use serde_json::{Map, Value, json};
use text::Tokenizer;

/// `None`, said aloud, when the file is not there.
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

/// Writes the files of a folder; `cutting` is the normalizer and the pre-tokenizer of the publisher's.
fn write(folder: &Path, meta: &Metadata, cutting: (Value, Value)) {
    let tokens = meta.strs("tokenizer.ggml.tokens").unwrap();
    let kinds = meta.i32s("tokenizer.ggml.token_type").unwrap();
    let (mut vocab, mut added) = (Map::new(), Vec::new());
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        match kind {
            5 => {}
            1 => drop(vocab.insert(token.clone(), id.into())),
            kind => added
                .push(json!({ "id": id, "content": token, "special": *kind == 3, "normalized": false,
                                       "single_word": false, "lstrip": false, "rstrip": false })),
        }
    }
    let (normalizer, pre_tokenizer) = cutting;
    let json = json!({
        "version": "1.0", "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab, "merges": meta.strs("tokenizer.ggml.merges").unwrap() },
    });
    std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
    let eos = meta.u32("tokenizer.ggml.eos_token_id").unwrap();
    let config = json!({ "eos_token": tokens[eos as usize] });
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("generation_config.json"), json!({ "eos_token_id": [eos] }).to_string())
        .unwrap();
}

#[test]
fn a_real_tokenizers_folder_gives_the_golden_ids() {
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let byte_level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let split =
        json!({ "type": "Split", "pattern": { "Regex": qwen }, "behavior": "Isolated", "invert": false });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let sequence =
        |first: Value, regex| json!({ "type": "Sequence", "pretokenizers": [first, byte_level(regex)] });
    for (model, cutting) in [
        ("smollm2-135m", (Value::Null, sequence(digits, true))),
        ("coder-0.5b", (json!({ "type": "NFC" }), sequence(split, false))),
    ] {
        let Some(header) = header(model) else { continue };
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &header.metadata, cutting);
        let folder = Tokenizer::open(dir.path()).unwrap();
        let file = Tokenizer::from_gguf(&header).unwrap();
        assert_eq!(folder.vocab_hash(), file.vocab_hash(), "{model}");
        assert_eq!(folder.vocab_len(), file.vocab_len(), "{model}");
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{model}.json"));
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in golden["encodings"].as_array().unwrap() {
            let (text, special) = (case["text"].as_str().unwrap(), case["special"].as_bool().unwrap());
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(folder.encode(text, special).unwrap().to_ids(), expected, "{model}: {text:?}");
        }
    }
}
