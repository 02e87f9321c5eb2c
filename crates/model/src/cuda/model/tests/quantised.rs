//! Models whose layers stay quantised, against the same weights in the dtype.

use gguf::write::Writer;
use gguf::{TensorKind, Value};
use half::f16;

use super::super::super::testing::relative;
use super::*;

const HIDDEN: usize = 256;
const FFN: usize = 768;
const LAYERS: usize = 3;

/// A GGUF file of a small Llama whose layers mix kinds: Q, K and V alike in all but the first, whose V is another.
fn file(random: &mut Random) -> tempfile::NamedTempFile {
    let mut writer = Writer::new().key("general.architecture", Value::Str("llama".into()));
    for (key, value) in [
        ("block_count", LAYERS),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 64),
        ("context_length", 4096),
    ] {
        writer = writer.key(&format!("llama.{key}"), Value::U32(value as u32));
    }
    writer = writer
        .key("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5))
        .key("llama.rope.freq_base", Value::F32(1e4));
    let ones: Vec<u8> = [1.0f32; HIDDEN].iter().flat_map(|v| v.to_le_bytes()).collect();
    let embedding = random.normals(VOCAB as usize * HIDDEN);
    let embedding: Vec<u8> = embedding.into_iter().flat_map(|v| f16::from_f32(v).to_le_bytes()).collect();
    writer = writer
        .tensor("token_embd.weight", &[HIDDEN as u64, u64::from(VOCAB)], TensorKind::F16, &embedding)
        .tensor("output_norm.weight", &[HIDDEN as u64], TensorKind::F32, &ones);
    for layer in 0..LAYERS {
        let (q4, q8) = (TensorKind::Q4_K, TensorKind::Q8_0);
        let v = if layer == 0 { TensorKind::Q6_K } else { q4 };
        let down = if layer == 1 { q8 } else { q4 };
        for (name, kind, inputs, outputs) in [
            ("attn_q", q4, HIDDEN, HIDDEN),
            ("attn_k", q4, HIDDEN, 128),
            ("attn_v", v, HIDDEN, 128),
            ("attn_output", q8, HIDDEN, HIDDEN),
            ("ffn_gate", q4, HIDDEN, FFN),
            ("ffn_up", q4, HIDDEN, FFN),
            ("ffn_down", down, FFN, HIDDEN),
        ] {
            let dims = [inputs as u64, outputs as u64];
            let bytes = blocks(random, kind, inputs, outputs);
            writer = writer.tensor(&format!("blk.{layer}.{name}.weight"), &dims, kind, &bytes);
        }
        for name in ["attn_norm", "ffn_norm"] {
            writer = writer.tensor(
                &format!("blk.{layer}.{name}.weight"),
                &[HIDDEN as u64],
                TensorKind::F32,
                &ones,
            );
        }
    }
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), writer.finish()).unwrap();
    file
}

/// Any quants, with scales that keep activations near 1.
fn blocks(random: &mut Random, kind: TensorKind, inputs: usize, outputs: usize) -> Vec<u8> {
    let (elements, bytes) = (kind.block_elems() as usize, kind.block_bytes() as usize);
    let scale = 2.0 / (inputs as f32).sqrt();
    let mut all: Vec<u8> = (0..inputs * outputs / elements * bytes).map(|_| random.bits() as u8).collect();
    for block in all.chunks_exact_mut(bytes) {
        let mut put =
            |at: usize, value: f32| block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        match kind {
            TensorKind::Q4_K => {
                put(0, scale / 7.5 / 32.0);
                put(2, scale / 32.0);
            }
            TensorKind::Q6_K => put(208, scale / 32.0 / 64.0),
            _ => put(0, scale / 128.0),
        }
    }
    all
}

/// All logits of a prompt in steps of 100, 40, 16, 5 and 1 rows, then of 1 to 40 sequences a step, of one row or two:
/// every way through a quantised matrix, by graphs too.
fn logits(mut model: CudaModel) -> Vec<f32> {
    let prompt = tokens(11, 165);
    let mut all = all_logits(|step| model.logits(step).unwrap(), &prompt, &[100, 40, 16, 5], 1).concat();
    for (count, each) in [(1, 1), (5, 1), (16, 1), (40, 1), (40, 2)] {
        let mut step = Step::default();
        for slot in 0..count {
            step.deltas.push(TableDelta { slot: Slot(slot), class: ClassId(0), change: TableChange::Clear });
            step.deltas.extend(table(slot, 16, 1));
        }
        // The second of each has the graph of the first.
        for n in 0..2 {
            let of = |slot: u32| rows(slot, n * each, &tokens(slot.into(), each), true);
            step.rows = (0..count).flat_map(of).collect();
            for (_, logits) in model.logits(&step).unwrap() {
                all.extend(logits);
            }
            step.deltas.clear();
        }
    }
    all
}

fn wide(logits: &[f32]) -> Vec<f64> {
    logits.iter().copied().map(f64::from).collect()
}

/// In F32 kept blocks mean what the dequantised ones mean; in 16 bits they are as near to that, or nearer: their weights
/// are not rounded.
#[test]
fn kept_blocks_say_what_dequantised_ones_say() {
    if device().is_none() {
        return;
    }
    let file = file(&mut Random::new(std::process::id().into()));
    let load = |dtype, weights, graphs| {
        let cuda = CudaOptions { dtype, weights, graphs, ..CudaOptions::default() };
        CudaModel::load(file.path(), &Made::options(), &cuda).unwrap()
    };
    let (kept, all) = (load(Dtype::Bf16, Weights::Kept, true), load(Dtype::Bf16, Weights::Dequantised, true));
    assert!(kept.step_bytes() * 2 < all.step_bytes(), "{} of {}", kept.step_bytes(), all.step_bytes());
    let exact = wide(&logits(load(Dtype::F32, Weights::Dequantised, false)));
    for (dtype, bound) in [(Dtype::F32, 2e-5), (Dtype::F16, 6e-3), (Dtype::Bf16, 5e-2)] {
        let rounded = relative(&logits(load(dtype, Weights::Dequantised, true)), &exact);
        for graphs in [true, false] {
            let off = relative(&logits(load(dtype, Weights::Kept, graphs)), &exact);
            println!("{dtype:?}, graphs {graphs}: kept {off:.2e}, dequantised {rounded:.2e}");
            assert!(off < bound && off < rounded * 1.2 + 2e-5, "{dtype:?}: {off}, dequantised {rounded}");
        }
    }
}

/// FP8 keeps four bits of a weight: near, on both ways through the matrix the same, and not the dtype's weights.
#[test]
fn fp8_is_near_the_dtype() {
    if device().is_none() {
        return;
    }
    let made = Made::new("qwen2", 64, 4, 2, false);
    let load = |dtype, weights| made.gpu(&CudaOptions { dtype, weights, ..CudaOptions::default() });
    let exact = wide(&logits(load(Dtype::F32, Weights::Dequantised)));
    let fp8 = logits(load(Dtype::F32, Weights::Fp8));
    let off = relative(&fp8, &exact);
    let rounded = relative(&logits(load(Dtype::Bf16, Weights::Fp8)), &wide(&fp8));
    println!("fp8 against f32 {off:.2e}, in bf16 against f32 {rounded:.2e}");
    assert!((5e-3..0.1).contains(&off), "{off}");
    assert!(rounded < 5e-2, "{rounded}");
    // The same prompt through the dequantised matrices and through the fused products.
    let prompt = tokens(12, 80);
    let of = |chunk: u32| {
        let mut model = load(Dtype::F32, Weights::Fp8);
        all_logits(|step| model.logits(step).unwrap(), &prompt, &vec![chunk; 80], 1).concat()
    };
    let (many, few) = (of(80), of(7));
    assert!(relative(&few, &wide(&many)) < 2e-5, "{}", relative(&few, &wide(&many)));
}

/// Made-up weights are the same before they are quantised.
#[test]
fn made_up_weights_can_be_fp8() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 128, 2, 1, true);
    let load = |weights| {
        let cuda = CudaOptions { dtype: Dtype::F32, weights, ..CudaOptions::default() };
        CudaModel::dummy(&made.path(), 5, &Made::options(), &cuda).unwrap()
    };
    let off = relative(&logits(load(Weights::Fp8)), &wide(&logits(load(Weights::Dequantised))));
    println!("made-up fp8 against f32 {off:.2e}");
    assert!((5e-3..0.1).contains(&off), "{off}");
}

#[test]
fn weights_that_cannot_be_had_are_refused_by_name() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 64, 4, 2, true);
    let load = |weights, mode| {
        let cuda = CudaOptions { weights, mode, ..CudaOptions::default() };
        CudaModel::load(&made.path(), &Made::options(), &cuda).unwrap_err().to_string()
    };
    let error = load(Weights::Fp8, Mode::Invariant);
    assert!(error.contains("option weights: fp8 is not built for the batch-invariant mode"), "{error}");
    let error = load(Weights::Kept, Mode::Fast);
    assert!(error.contains("option weights: kept, but no matrix"), "{error}");
    let cuda = CudaOptions { weights: Weights::Kept, ..CudaOptions::default() };
    let error = CudaModel::dummy(&made.path(), 1, &Made::options(), &cuda).unwrap_err().to_string();
    assert!(error.contains("option weights: kept needs a GGUF file"), "{error}");
}
