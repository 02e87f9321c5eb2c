//! Folders that are refused, by name and never by a panic.

use std::path::Path;

use gguf::TensorKind;
use model::{Description, LoadError, fingerprint};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{load, twin};
use crate::steps::logits;
use crate::tiny::{Shape, Tiny, tokens};

fn tiny(architecture: &'static str) -> Tiny {
    Tiny::new(Shape::of(architecture, TensorKind::F32))
}

#[test]
fn what_a_config_asks_for_beyond_what_is_built_is_named() {
    let cases: [(&str, Value, &str); 24] = [
        (
            "model_type",
            json!("gemma3"),
            "architecture \"gemma3\" is not supported; supported: llama, mistral, qwen2, qwen3",
        ),
        ("model_type", Value::Null, "\"config.json model_type\" is missing"),
        ("architectures", json!(["LlamaForSequenceClassification"]), "without a language-modelling head"),
        ("hidden_act", json!("gelu"), "an activation other than silu is not built"),
        ("attention_bias", json!(true), "a bias in the attention of this architecture is not built"),
        ("mlp_bias", json!(true), "mlp_bias\" is true: a bias in the feed-forward is not built"),
        ("partial_rotary_factor", json!(0.5), "RoPE over a part of a head is not built"),
        ("num_key_value_heads", json!(3), "does not divide the 4 query heads"),
        ("num_hidden_layers", json!(0), "must be between 1"),
        ("num_hidden_layers", json!(3), "\"model.layers.2.self_attn.q_proj.weight\" is missing"),
        ("num_hidden_layers", json!(1), "\"model.layers.1.input_layernorm.weight\" is not part of"),
        ("hidden_size", json!("64"), "\"config.json hidden_size\" is \"64\": must be a whole number"),
        (
            "vocab_size",
            json!(131),
            "\"model.embed_tokens.weight\" has dimensions [130, 64], expected [131, 64]",
        ),
        ("rms_norm_eps", Value::Null, "rms_norm_eps\" is missing"),
        ("sliding_window", json!(64), "window attention in this architecture is not built"),
        ("tie_word_embeddings", json!(false), "\"lm_head.weight\" is missing"),
        (
            "rope_scaling",
            json!({ "type": "dynamic", "factor": 2.0 }),
            "rope_scaling.type\" is \"dynamic\": this RoPE scaling",
        ),
        (
            "rope_scaling",
            json!({ "rope_type": "llama3", "factor": 8.0 }),
            "rope_scaling.low_freq_factor\" is missing",
        ),
        (
            "rope_scaling",
            json!({ "rope_type": "linear", "factor": -1.0 }),
            "rope_scaling.factor\" is -1.0: must be above 0",
        ),
        (
            "rope_scaling",
            json!({ "rope_type": "linear", "factor": 2.0, "mrope_section": [1] }),
            "mrope_section",
        ),
        (
            "rope_parameters",
            json!({ "rope_theta": 0, "rope_type": "default" }),
            "rope_parameters.rope_theta\" is 0",
        ),
        (
            "num_local_experts",
            json!(8),
            "num_local_experts\" is 8: a key that this version does not know is not built",
        ),
        ("quantization_config", json!({ "quant_method": "awq" }), "quantization_config"),
        ("logit_scale", json!(0.0625), "logit_scale\" is 0.0625"),
    ];
    let dir = tempfile::tempdir().unwrap();
    twin::write(dir.path(), &tiny("llama"), &twin::config(&tiny("llama")));
    assert!(load(dir.path(), 1, None).is_ok());
    for (key, value, says) in cases {
        let mut config = twin::config(&tiny("llama"));
        config[key] = value;
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let error = load(dir.path(), 1, None).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
        assert_eq!(Description::read(dir.path()).unwrap_err().to_string(), error, "a description hides it");
    }
}

#[test]
fn windows_in_some_layers_are_refused_and_in_all_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let windowed = |first: Value, types: Value| {
        let mut config = twin::config(&tiny("qwen3"));
        config["use_sliding_window"] = true.into();
        config["sliding_window"] = 32.into();
        config["max_window_layers"] = first;
        config["layer_types"] = types;
        twin::write(dir.path(), &tiny("qwen3"), &config);
        Description::read(dir.path()).map(|found| found.window)
    };
    let (window, full) = ("sliding_attention", "full_attention");
    assert_eq!(windowed(json!(0), Value::Null).unwrap(), Some(32));
    assert_eq!(windowed(json!(2), Value::Null).unwrap(), None);
    assert_eq!(windowed(json!(2), json!([window, window])).unwrap(), Some(32));
    for (first, types) in [(json!(1), Value::Null), (json!(0), json!([window, full]))] {
        let error = windowed(first, types).unwrap_err().to_string();
        assert!(error.contains("window attention in some layers"), "{error}");
    }
}

/// A tied model may store its head: it is not used. Old checkpoints store RoPE's frequencies.
#[test]
fn what_folders_store_without_use_is_passed_over() {
    let tiny = tiny("llama");
    let dir = tempfile::tempdir().unwrap();
    twin::write(dir.path(), &tiny, &twin::config(&tiny));
    let expected = logits(&mut load(dir.path(), 1, None).unwrap(), &tokens(9), 9).unwrap();
    let mut tensors = twin::tensors(&tiny);
    let embedding = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("lm_head.weight".into(), (embedding.0, vec![0; embedding.1.len()]));
    tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (vec![8], vec![0; 32]));
    std::fs::write(dir.path().join("model.safetensors"), twin::safetensors(&tensors)).unwrap();
    assert_eq!(logits(&mut load(dir.path(), 1, None).unwrap(), &tokens(9), 9).unwrap(), expected);
}

/// Writes the tensors as two shards and an index, changed by `change`.
fn sharded(folder: &Path, change: impl FnOnce(&mut Value)) -> Result<(), LoadError> {
    let tiny = tiny("qwen2");
    std::fs::write(folder.join("config.json"), twin::config(&tiny).to_string()).unwrap();
    let tensors = twin::tensors(&tiny);
    let (mut map, mut shards) = (serde_json::Map::new(), [const { std::collections::BTreeMap::new() }; 2]);
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), format!("{}.safetensors", i % 2).into());
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        std::fs::write(folder.join(format!("{i}.safetensors")), twin::safetensors(shard)).unwrap();
    }
    let mut index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    change(&mut index);
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    load(folder, 1, None).map(drop)
}

#[test]
fn shards_and_their_index_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path(), |_| {}).unwrap();
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 6] = [
        (|i| i["weight_map"] = json!([]), "has no object weight_map"),
        (
            |i| i["weight_map"]["x"] = json!("../0.safetensors"),
            "names something that is no .safetensors file",
        ),
        (|i| i["weight_map"]["x"] = json!("2.safetensors"), "2.safetensors"),
        (|i| i["weight_map"]["x"] = json!("0.safetensors"), "tensor \"x\" is missing"),
        (
            |i| i["weight_map"]["model.norm.weight"] = json!("0.safetensors"),
            "which the index has in 0.safetensors",
        ),
        (
            |i| drop(i["weight_map"].as_object_mut().unwrap().remove("model.norm.weight")),
            "which the index does not name",
        ),
    ];
    for (change, says) in cases {
        let error = sharded(dir.path(), change).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    assert!(matches!(load(dir.path(), 1, None), Err(LoadError::NoWeights)));
}

#[test]
fn headers_that_claim_too_much_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = tiny("llama");
    let refused = |bytes: &[u8]| {
        twin::write(dir.path(), &tiny, &twin::config(&tiny));
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        load(dir.path(), 1, None).unwrap_err().to_string()
    };
    let with_header = |header: String, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    };
    assert!(refused(b"short").contains("is shorter than 8 bytes"));
    assert!(refused(&u64::MAX.to_le_bytes()).contains("claims a header of 18446744073709551615 bytes"));
    assert!(refused(&with_header("{".into(), 0)).contains("model.safetensors EOF"));
    // Eight tensors whose sizes add up to nearly 2^64.
    let huge: serde_json::Map<String, Value> = (0..8u64)
        .map(|i| {
            let (from, to) = (i << 61, (i + 1).checked_shl(61).filter(|_| i < 7).unwrap_or(u64::MAX));
            (format!("t{i}"), json!({ "dtype": "U8", "shape": [to - from], "data_offsets": [from, to] }))
        })
        .collect();
    let error = refused(&with_header(Value::Object(huge).to_string(), 0));
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn a_fingerprint_follows_every_file_that_decides() {
    let dir = tempfile::tempdir().unwrap();
    twin::write(dir.path(), &tiny("llama"), &twin::config(&tiny("llama")));
    let mut seen = vec![fingerprint(dir.path()).unwrap()];
    std::fs::write(dir.path().join("README.md"), "words").unwrap();
    assert_eq!(fingerprint(dir.path()).unwrap(), seen[0]);
    for (file, text) in [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{}"),
        ("chat_template.jinja", "x"),
        ("generation_config.json", "{}"),
        ("config.json", "{}"),
        ("model.safetensors", "x"),
    ] {
        std::fs::write(dir.path().join(file), text).unwrap();
        let now = fingerprint(dir.path()).unwrap();
        assert!(!seen.contains(&now), "{file}");
        seen.push(now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever the damage: an error, or a model that computes or says why not.
    #[test]
    fn a_damaged_folder_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        which in 0usize..3,
        cut: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        sharded(dir.path(), |_| {}).unwrap();
        let file = dir.path().join(["config.json", "model.safetensors.index.json", "0.safetensors"][which]);
        let mut bytes = std::fs::read(&file).unwrap();
        // Of a shard, the header mostly.
        let most = if which == 2 { bytes.len().min(2000) } else { bytes.len() };
        for (at, value) in &damage {
            bytes[at.index(most)] = *value;
        }
        if cut {
            bytes.truncate(damage[0].0.index(bytes.len()));
        }
        std::fs::write(&file, bytes).unwrap();
        if let Ok(mut model) = load(dir.path(), 1, None) {
            let _ = logits(&mut model, &tokens(5), 5);
        }
    }
}
