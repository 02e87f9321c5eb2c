//! Files that are refused, by name and never by a panic.

use gguf::{TensorKind, Value};
use model::{Description, LoadError};
use proptest::prelude::*;

use crate::steps::logits;
use crate::tiny::{Shape, Tensor, Tiny, load, tokens};

fn tiny() -> Tiny {
    Tiny::new(Shape::of("llama", TensorKind::Q4_1))
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    type Change = fn(&mut Tiny);
    let cases: [(Change, &str); 26] = [
        (
            |t| t.key("general.architecture", Value::Str("mamba".into())),
            "architecture \"mamba\" is not supported; supported: llama, qwen2, qwen3",
        ),
        (|t| drop(t.keys.remove("general.architecture")), "general.architecture"),
        (|t| drop(t.keys.remove("llama.block_count")), "llama.block_count"),
        (|t| t.key("llama.block_count", Value::U32(0)), "\"llama.block_count\" is 0: must be between 1"),
        (|t| t.key("llama.block_count", Value::U32(3)), "tensor \"blk.2.attn_q.weight\" is missing"),
        (|t| t.key("llama.block_count", Value::Str("2".into())), "llama.block_count"),
        (|t| t.key("llama.attention.head_count_kv", Value::U32(3)), "\"llama.attention.head_count_kv\" is 3"),
        (|t| t.key("llama.attention.value_length", Value::U32(8)), "llama.attention.value_length"),
        (|t| t.key("llama.rope.dimension_count", Value::U32(15)), "llama.rope.dimension_count"),
        (|t| t.key("llama.rope.freq_base", Value::F32(f32::NAN)), "llama.rope.freq_base"),
        (
            |t| t.key("llama.rope.scaling.type", Value::Str("longrope".into())),
            "\"longrope\": this RoPE scaling is not built",
        ),
        (|t| t.key("llama.rope.scaling.type", Value::Str("yarn".into())), "llama.rope.scaling.factor"),
        (
            |t| {
                t.key("llama.rope.scaling.type", Value::Str("linear".into()));
                t.key("llama.rope.scaling.factor", Value::F32(0.0));
            },
            "\"llama.rope.scaling.factor\" is 0: must be above 0",
        ),
        (
            |t| {
                t.vector("rope_freqs.weight", 8, 1.0);
                t.key("llama.rope.scale_linear", Value::F32(2.0));
            },
            "more than one RoPE scaling is not built",
        ),
        (|t| t.vector("rope_freqs.weight", 7, 1.0), "\"rope_freqs.weight\" has dimensions [7], expected [8]"),
        (|t| t.vector("rope_freqs.weight", 8, -1.0), "the divisor of a RoPE frequency must be above 0"),
        (|t| t.key("llama.rope.scaling.attn_factor", Value::F32(1.5)), "this variant of YaRN is not built"),
        (|t| t.key("llama.expert_count", Value::U32(8)), "a mixture of experts is not built"),
        (
            |t| t.key("llama.attention.sliding_window_pattern", Value::U32(6)),
            "window attention in some layers of a model is not built",
        ),
        (
            |t| t.key("split.count", Value::U16(3)),
            "one of the 3 files of a split GGUF; split GGUF files are not",
        ),
        (
            |t| {
                t.key("split.count", Value::U16(3));
                t.keys.remove("general.architecture");
            },
            "split GGUF files are not built yet",
        ),
        (|t| drop(t.tensors.remove("output_norm.weight")), "tensor \"output_norm.weight\" is missing"),
        (
            |t| t.tensors.get_mut("blk.1.ffn_up.weight").unwrap().dims = vec![128, 64],
            "tensor \"blk.1.ffn_up.weight\" has dimensions [128, 64], expected [64, 128]",
        ),
        (
            |t| {
                let tensor = Tensor { dims: vec![256, 1], kind: TensorKind::Q2_K, bytes: vec![0; 84] };
                t.key("llama.embedding_length", Value::U32(256));
                t.tensors.insert("token_embd.weight".into(), tensor);
            },
            "tensor \"token_embd.weight\" has type Q2_K, which has no kernel; supported: F32",
        ),
        (
            |t| {
                let tensor = t.tensors["output_norm.weight"].clone();
                t.tensors.insert("blk.0.attn_output.bias".into(), tensor);
            },
            "tensor \"blk.0.attn_output.bias\" is not part of",
        ),
        (
            |t| {
                t.tensors.get_mut("output_norm.weight").unwrap().bytes[..4]
                    .copy_from_slice(&f32::NAN.to_le_bytes())
            },
            "tensor \"output_norm.weight\" holds a value that is not finite",
        ),
    ];
    assert!(tiny().load(1).is_ok());
    for (change, expected) in cases {
        let mut tiny = tiny();
        change(&mut tiny);
        let error = tiny.load(1).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), tiny.bytes()).unwrap();
        assert_eq!(Description::read(file.path()).unwrap_err().to_string(), error, "a description hides it");
    }
}

#[test]
fn qwen2_needs_its_biases() {
    let mut tiny = Tiny::new(Shape::of("qwen2", TensorKind::F16));
    tiny.tensors.remove("blk.1.attn_k.bias");
    let error = tiny.load(1).unwrap_err();
    assert!(
        matches!(&error, LoadError::MissingTensor { name, .. } if name == "blk.1.attn_k.bias"),
        "{error}"
    );
}

/// Weights that are valid numbers but lead to NaN end a step with an error that names the row.
#[test]
fn broken_weights_end_a_step_with_an_error() {
    use engine::Model;
    let mut tiny = tiny();
    let up = tiny.tensors.get_mut("blk.0.ffn_up.weight").unwrap();
    up.bytes[..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let mut model = tiny.load(1).unwrap();
    let step = crate::steps::Sequences::new(1, 64).step(&[(0, 0, &[1, 2])]);
    let ticket = model.submit(&step).unwrap();
    let draws = vec![sampling::Draw::new(request::Sampling::GREEDY); 2];
    assert_eq!(model.collect(ticket, &draws), Err(engine::ModelError::NotFinite { row: 0 }));
    // And the model serves the next one.
    assert!(model.submit(&step).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_truncated_file_is_an_error(keep in 0.0f64..1.0) {
        let bytes = tiny().bytes();
        // The last tensor ends within the padding of the file.
        let len = ((bytes.len() - 32) as f64 * keep) as usize;
        prop_assert!(load(&bytes[..len], 1).is_err());
    }

    /// Whatever the damage: an error, or a model that computes or says why not.
    #[test]
    fn a_damaged_file_never_panics(damage in prop::collection::vec((0.0f64..1.0, any::<u8>()), 1..6), header: bool) {
        let mut bytes = tiny().bytes();
        let most = if header { 3000 } else { bytes.len() };
        for (at, value) in damage {
            bytes[(most as f64 * at) as usize] = value;
        }
        if let Ok(mut model) = load(&bytes, 1) {
            let _ = logits(&mut model, &tokens(5), 5);
        }
    }
}
