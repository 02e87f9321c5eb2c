//! The same F32 weights as a GGUF file and as a folder give the same bits.

use std::collections::BTreeMap;
use std::path::Path;

use gguf::{TensorKind, Value as Gguf};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::load;
use crate::bits::assert_equal;
use crate::steps::logits;
use crate::tiny::{CONTEXT, EPSILON, LAYERS, ROPE_BASE, Shape, Tiny, VOCAB, tokens};

/// `config.json` of a model's twin.
pub(super) fn config(tiny: &Tiny) -> Value {
    let (shape, kind) = (&tiny.shape, tiny.shape.architecture);
    let class = match kind {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        _ => "Qwen3ForCausalLM",
    };
    json!({
        "architectures": [class], "model_type": kind, "vocab_size": VOCAB, "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward, "num_hidden_layers": LAYERS,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "hidden_act": "silu", "max_position_embeddings": CONTEXT, "rms_norm_eps": EPSILON,
        "rope_theta": ROPE_BASE, "rope_scaling": null, "tie_word_embeddings": shape.tied,
        // As found in folders, without effect.
        "attention_dropout": 0.0, "torch_dtype": "float32", "initializer_range": 0.02, "use_cache": true,
        "rope_interleaved": false, "use_sliding_window": false, "sliding_window": null,
    })
}

/// The tensors under the names of a folder: (shape, bytes).
pub(super) fn tensors(tiny: &Tiny) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for (name, tensor) in &tiny.tensors {
        let Some(folder) = folder_name(name) else { continue };
        assert_eq!(tensor.kind, TensorKind::F32);
        let mut bytes = tensor.bytes.clone();
        // The converter of llama's GGUF files puts rows i and i + dims / 2 of a head side by side.
        let part = name.rsplit('.').nth(1).unwrap_or_default();
        if tiny.shape.architecture == "llama" && ["attn_q", "attn_k"].contains(&part) {
            let row = tensor.dims[0] as usize * 4;
            let (head_dim, rows) = (tiny.shape.head_dim, bytes.len() / row);
            for i in 0..rows {
                let (head, j) = (i / head_dim * head_dim, i % head_dim);
                let from = head + if j < head_dim / 2 { 2 * j } else { 2 * (j - head_dim / 2) + 1 };
                bytes[i * row..(i + 1) * row].copy_from_slice(&tensor.bytes[from * row..(from + 1) * row]);
            }
        }
        all.insert(folder, (tensor.dims.iter().rev().map(|d| *d as usize).collect(), bytes));
    }
    all
}

fn folder_name(name: &str) -> Option<String> {
    let Some(rest) = name.strip_prefix("blk.") else {
        return Some(match name {
            "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
            "output_norm.weight" => "model.norm.weight".to_owned(),
            "output.weight" => "lm_head.weight".to_owned(),
            _ => return None,
        });
    };
    let (layer, part) = rest.split_once('.').unwrap();
    let (part, end) = part.split_once('.').unwrap();
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("{other}"),
    };
    Some(format!("model.layers.{layer}.{part}.{end}"))
}

pub(super) fn safetensors(tensors: &BTreeMap<String, (Vec<usize>, Vec<u8>)>) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

pub(super) fn write(folder: &Path, tiny: &Tiny, config: &Value) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), safetensors(&tensors(tiny))).unwrap();
}

#[test]
fn a_folder_and_a_file_of_the_same_weights_give_the_same_bits() {
    let tokens = tokens(70);
    let none = |_: &mut Tiny, _: &mut Value| {};
    type Change = fn(&mut Tiny, &mut Value);
    let cases: [(&str, bool, Change); 7] = [
        ("llama", true, none),
        ("llama", false, none),
        ("qwen2", true, none),
        ("qwen3", false, none),
        ("qwen2", false, |tiny, config| {
            let key = |name: &str| format!("qwen2.rope.scaling.{name}");
            tiny.key(&key("type"), Gguf::Str("yarn".into()));
            tiny.key(&key("factor"), Gguf::F32(4.0));
            tiny.key(&key("original_context_length"), Gguf::U32(64));
            config["rope_scaling"] =
                json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 });
        }),
        ("llama", true, |tiny, config| {
            // What llama.cpp's converter computes from the config.
            let factors = (0..8).flat_map(|i| {
                let wavelength = std::f64::consts::TAU * f64::from(ROPE_BASE).powf(2.0 * f64::from(i) / 16.0);
                let (factor, low, high, original) = (8.0, 1.0, 4.0, 512.0);
                let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
                ((1.0 / ((1.0 - smooth) / factor + smooth)) as f32).to_le_bytes()
            });
            let bytes = factors.collect();
            let tensor = crate::tiny::Tensor { dims: vec![8], kind: TensorKind::F32, bytes };
            tiny.tensors.insert("rope_freqs.weight".into(), tensor);
            config["rope_scaling"] = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 512 });
        }),
        // GGUF files of Mistral are called llama's.
        ("llama", false, |tiny, config| {
            tiny.key("llama.attention.sliding_window", Gguf::U32(24));
            config["model_type"] = "mistral".into();
            config["architectures"] = json!(["MistralForCausalLM"]);
            config["sliding_window"] = 24.into();
        }),
    ];
    for (i, (architecture, tied, change)) in cases.into_iter().enumerate() {
        let mut tiny = Tiny::new(Shape { tied, ..Shape::of(architecture, TensorKind::F32) });
        let mut config = config(&tiny);
        let plain = logits(&mut tiny.load(1).unwrap(), &tokens, 70).unwrap();
        change(&mut tiny, &mut config);
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &tiny, &config);
        let file = logits(&mut tiny.load(2).unwrap(), &tokens, 30).unwrap();
        let folder = logits(&mut load(dir.path(), 1, None).unwrap(), &tokens, 70).unwrap();
        assert_equal(&folder, &file, &format!("case {i}, {architecture}"));
        assert_eq!(i < 4, plain == file, "case {i}: the change would go unseen");
    }
}
