use gguf::write::Writer;
use gguf::{Array, TensorKind, Value};
use proptest::prelude::*;

use super::*;
use crate::models::store::Name;

fn small_model() -> Vec<u8> {
    Writer::new()
        .key("general.architecture", Value::Str("llama".into()))
        .key("general.name", Value::Str("Small".into()))
        .key("llama.block_count", Value::U32(2))
        .key("llama.attention.head_count", Value::U32(4))
        .key("llama.attention.head_count_kv", Value::U32(2))
        .key("tokenizer.ggml.model", Value::Str("gpt2".into()))
        .key("tokenizer.ggml.pre", Value::Str("smollm".into()))
        .key("tokenizer.ggml.tokens", Value::Array(Array::Str(vec!["a".into(), "b".into(), "c".into()])))
        .tensor("output_norm.weight", &[8], TensorKind::F32, &[0; 32])
        .tensor("blk.0.ffn_up.weight", &[32, 2], TensorKind::Q8_0, &[0; 68])
        .finish()
}

fn shown(bytes: &[u8], json: bool) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes)?;
    render(|| bail!("a path needs no store"), &Source::Path(path), json)
}

#[test]
fn a_file_is_described_for_people_and_for_scripts() {
    let text = shown(&small_model(), false).unwrap();
    for line in [
        "title         Small",
        "architecture  llama",
        "layers        2",
        "heads         4, key-value 2",
        "vocabulary    3 tokens",
        "tokenizer     gpt2 (smollm)",
        "chat template none",
        "tensors       Q8_0      1        68 B",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
    }
    assert!(!text.contains("hidden"), "what a file does not say is left out:\n{text}");

    let json: serde_json::Value = serde_json::from_str(&shown(&small_model(), true).unwrap()).unwrap();
    assert_eq!(json["supported"], false, "it has no embedding");
    assert!(json["unsupported"].as_str().unwrap().contains("token_embd.weight"), "{json}");
    assert_eq!(json["parameters"], 8 + 64);
    assert_eq!(json["hidden"], serde_json::Value::Null);
    assert_eq!(json["tensors"]["F32"]["bytes"], 32);
}

#[test]
fn a_part_of_a_split_model_is_refused_by_name() {
    // As the second of them is: no architecture, no tokenizer.
    let part = Writer::new().key("split.count", Value::U16(2)).key("split.no", Value::U16(1)).finish();
    let error = format!("{:#}", shown(&part, false).unwrap_err());
    assert!(error.contains("m.gguf") && error.contains("split GGUF files are not built yet"), "{error}");
}

#[test]
fn what_is_not_here_is_said_with_the_command_that_fetches_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for (source, says) in [
        (Source::Name(Name::parse("coder-1.5b").unwrap()), "`paceline models pull coder-1.5b`"),
        (Source::parse("hf:a/b").unwrap(), "paceline models pull"),
        (Source::parse("./no.gguf").unwrap(), "is not a file"),
    ] {
        let error = render(|| Ok(store.clone()), &source, false).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

proptest! {
    #[test]
    fn a_damaged_file_is_an_error_and_never_a_panic(at in 0usize..600, byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = small_model();
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        // Both outcomes are fine; what is shown must not depend on a crash.
        if let Err(error) = shown(&bytes, true) {
            prop_assert!(format!("{error:#}").contains("m.gguf"), "the file is named: {error:#}");
        }
    }
}

#[test]
fn a_folder_is_described_or_said_why_it_does_not_run() {
    let fixture = |name: &str| {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures").join(name)
    };
    let shown = |path: PathBuf, json: bool| {
        render(|| bail!("a path needs no store"), &Source::Path(path), json).unwrap()
    };
    let text = shown(fixture("yarn"), false);
    for line in
        ["architecture  qwen2", "layers        2", "context       32 tokens, with RoPE scaling up to 128"]
    {
        assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&shown(fixture("mistral"), true)).unwrap();
    assert_eq!((&json["architecture"], &json["window"]), (&"mistral".into(), &20.into()));
    assert_eq!(json["supported"], false);
    assert!(json["unsupported"].as_str().unwrap().contains("tokenizer.json is missing"), "{json}");

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{ "model_type": "mamba" }"#).unwrap();
    let text = shown(dir.path().to_owned(), false);
    assert!(text.contains("runs here     no: architecture \"mamba\" is not supported"), "{text}");
}
