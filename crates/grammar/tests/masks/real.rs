//! Real vocabularies: what a mask and a compilation cost.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gguf::Header;
use grammar::tools::{Calls, Choice, Tool};
use grammar::{Grammars, Vocabulary};
use request::{Constraint, TokenId};
use serde_json::json;
use text::{Tokenizer, ToolSyntax};

use crate::toy::{one, schema};

/// A model's tokenizer; `None`, said aloud, when its file is not there.
fn tokenizer(model: &str) -> Option<Tokenizer> {
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
    Some(Tokenizer::from_gguf(&Header::open(&path).unwrap()).unwrap())
}

/// Constraints with an answer for each, spelled as the tokenizer spells it.
fn answers() -> Vec<(&'static str, Constraint, String)> {
    let person = json!({"type": "object", "additionalProperties": false, "required": ["name", "age", "tags", "address"], "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                    "required": ["street", "zip"], "additionalProperties": false}}});
    let ada = json!({"name": "Ada Lovelace — 日本", "age": 36, "tags": ["red", "blue"], "address": {"street": "12 St James's Square", "zip": "01234"}});
    let weather = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tools = [Tool { name: "weather", parameters: Some(&weather) }];
    let calls = |choice| {
        let calls = Calls { syntax: ToolSyntax::Hermes, marker: None, tools: &tools, choice, parallel: true };
        Constraint::Grammar(calls.lark().unwrap())
    };
    let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\"}}\n</tool_call>";
    vec![
        ("json_schema", schema(&person), serde_json::to_string_pretty(&ada).unwrap()),
        ("json_object", Constraint::JsonObject, serde_json::to_string_pretty(&ada).unwrap()),
        (
            "regex",
            Constraint::Regex(r"\d{4}-\d{2}-\d{2}: [A-Z][a-z ]+\.".to_owned()),
            "2024-02-29: A leap day.".to_owned(),
        ),
        ("tools, required", calls(Choice::Required), format!("{call}\n{call}")),
        (
            "tools, auto",
            calls(Choice::Auto),
            format!("I will look up the weather in Ulm, as you asked.\n{call}"),
        ),
    ]
}

#[test]
fn masks_of_real_vocabularies() {
    for model in ["smollm2-135m", "coder-0.5b"] {
        let Some(tokenizer) = tokenizer(model) else { continue };
        let began = Instant::now();
        let grammars = Grammars::new(&Vocabulary::of(&tokenizer).unwrap()).unwrap();
        println!("{model}: {} tokens, tables in {:.0?}", tokenizer.vocab_len(), began.elapsed());
        let control = tokenizer.encode("<|im_start|>", true).unwrap();
        for (what, constraint, answer) in answers() {
            let ids = tokenizer.encode(&answer, true).unwrap();
            let (mut compiles, mut masks) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                let began = Instant::now();
                let mut matcher = grammars.compile(&constraint).unwrap();
                compiles.push(began.elapsed());
                for (at, id) in ids.iter().enumerate() {
                    let began = Instant::now();
                    let mask = one(matcher.masks(&[]).unwrap());
                    masks.push(began.elapsed());
                    assert!(
                        mask.allows(*id),
                        "{model}, {what}: {:?} at {at} of {answer}",
                        tokenizer.decode(&[*id])
                    );
                    assert!(!mask.allows(control[0]), "{model}, {what}: a control token at {at}");
                    matcher.commit(&[*id]).unwrap();
                }
                let mask = one(matcher.masks(&[]).unwrap());
                assert!(tokenizer.stop_ids().iter().all(|id| mask.allows(*id)), "{model}, {what}: the end");
                // A chain of drafts costs its masks, and leaves no trace.
                matcher.rollback(ids.len());
                assert_eq!(matcher.masks(&ids).unwrap().len(), ids.len() + 1);
                assert_eq!(matcher.allowed(&ids), ids.len());
            }
            compiles.sort();
            masks.sort();
            println!(
                "{model:14} {what:16} compile {:>9.2?}   mask p50 {:>9.1?}  p99 {:>9.1?}  ({} masks)",
                compiles[compiles.len() / 2],
                masks[masks.len() / 2],
                masks[masks.len() * 99 / 100],
                masks.len(),
            );
            assert!(masks[masks.len() / 2] < Duration::from_millis(50), "{model}, {what}");
        }
    }
}

#[test]
fn tokens_of_qwen_are_named_and_hidden() {
    let Some(tokenizer) = tokenizer("coder-0.5b") else { return };
    let grammars = Grammars::new(&Vocabulary::of(&tokenizer).unwrap()).unwrap();
    let id = |text: &str| -> TokenId { tokenizer.encode(text, true).unwrap()[0] };
    let mut matcher = grammars
        .compile(&Constraint::Grammar("start: <tool_call> <|fim_prefix|> /[a-z]+/".to_owned()))
        .unwrap();
    for name in ["<tool_call>", "<|fim_prefix|>"] {
        let mask = one(matcher.masks(&[]).unwrap());
        let allowed: Vec<u32> = (0..tokenizer.vocab_len()).filter(|i| mask.allows(TokenId(*i))).collect();
        assert_eq!(allowed, [id(name).0]);
        matcher.commit(&[id(name)]).unwrap();
    }
}
