//! The whole model on a GPU against the model on the CPU, which is tested against candle, and against itself.

mod codes;
mod early;
mod quantised;

use std::collections::HashMap;
use std::path::PathBuf;

use kvcache::{ClassId, PageId, pages_for};
use request::{Sampling, SamplingParams, TokenId};
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, TableChange, TableDelta};

use super::super::testing::{Random, device};
use super::*;
use crate::CpuModel;

mod pages;
mod parts;
mod recycled;
mod trees;

const VOCAB: u32 = 512;

/// Of a GPU's multiprocessors, which one model at a time may fill.
static FILLED: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A folder with a small random model.
struct Made {
    folder: tempfile::TempDir,
}

impl Made {
    fn new(kind: &str, head_dim: usize, heads: usize, kv_heads: usize, tied: bool) -> Self {
        Self::of(kind, head_dim, heads, kv_heads, tied, 704)
    }

    fn of(kind: &str, head_dim: usize, heads: usize, kv_heads: usize, tied: bool, ffn: usize) -> Self {
        let (hidden, layers) = (256usize, 3usize);
        let class = match kind {
            "llama" => "LlamaForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            _ => "Qwen3ForCausalLM",
        };
        let config = serde_json::json!({
            "architectures": [class], "model_type": kind, "vocab_size": VOCAB, "hidden_size": hidden,
            "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        });
        let mut random = Random::new(17);
        let mut tensors: HashMap<String, (Vec<usize>, Vec<u8>)> = HashMap::new();
        let mut tensor = |name: String, shape: Vec<usize>, mean: f32, scale: f32| {
            let count = shape.iter().product();
            let bytes =
                random.normals(count).into_iter().flat_map(|v| (mean + scale * v).to_le_bytes()).collect();
            tensors.insert(name, (shape, bytes));
        };
        tensor("model.embed_tokens.weight".into(), vec![VOCAB as usize, hidden], 0.0, 1.0);
        tensor("model.norm.weight".into(), vec![hidden], 1.0, 0.1);
        if !tied {
            tensor("lm_head.weight".into(), vec![VOCAB as usize, hidden], 0.0, 0.2);
        }
        let (q, k) = (heads * head_dim, kv_heads * head_dim);
        for layer in 0..layers {
            let mut part = |name: &str, shape: Vec<usize>, mean, scale| {
                tensor(format!("model.layers.{layer}.{name}"), shape, mean, scale);
            };
            part("input_layernorm.weight", vec![hidden], 1.0, 0.1);
            part("post_attention_layernorm.weight", vec![hidden], 1.0, 0.1);
            for (name, width) in [("q", q), ("k", k), ("v", k)] {
                part(&format!("self_attn.{name}_proj.weight"), vec![width, hidden], 0.0, 0.06);
                if kind == "qwen2" {
                    part(&format!("self_attn.{name}_proj.bias"), vec![width], 0.0, 0.3);
                }
            }
            if kind == "qwen3" {
                part("self_attn.q_norm.weight", vec![head_dim], 1.0, 0.1);
                part("self_attn.k_norm.weight", vec![head_dim], 1.0, 0.1);
            }
            part("self_attn.o_proj.weight", vec![hidden, q], 0.0, 0.06);
            part("mlp.gate_proj.weight", vec![ffn, hidden], 0.0, 0.06);
            part("mlp.up_proj.weight", vec![ffn, hidden], 0.0, 0.06);
            part("mlp.down_proj.weight", vec![hidden, ffn], 0.0, 0.06);
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let views = tensors.iter().map(|(name, (shape, bytes))| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
            (name.clone(), view)
        });
        safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    fn options() -> Options {
        Options {
            context: Some(2048),
            vocab: None,
            slots: 40,
            pages: PageBudget::Pages(2000),
            threads: 2,
            heads: None,
        }
    }

    fn gpu(&self, cuda: &CudaOptions) -> CudaModel {
        CudaModel::load(&self.path(), &Self::options(), cuda).unwrap()
    }
}

fn rows(slot: u32, first: u32, tokens: &[TokenId], picks: bool) -> Vec<Row> {
    (tokens.iter().zip(first..))
        .map(|(token, position)| Row {
            slot: Slot(slot),
            token: RowToken::Known(*token),
            position,
            parent: Parent::Previous,
            layers: Layers::All,
            output: if picks { Output::Pick } else { Output::None },
            adapter: None,
        })
        .collect()
}

/// Pages for `positions` positions of a slot, at most 800, in an order that is not that of memory.
fn table(slot: u32, positions: u32, classes: u8) -> Vec<TableDelta> {
    const EACH: u32 = 50;
    let pages = pages_for(positions);
    assert!(pages <= EACH);
    (0..classes)
        .flat_map(|class| {
            (0..pages).map(move |index| TableDelta {
                slot: Slot(slot),
                class: ClassId(class),
                change: TableChange::Append(PageId(slot * EACH + pages - 1 - index)),
            })
        })
        .collect()
}

fn tokens(seed: u64, count: u32) -> Vec<TokenId> {
    let mut random = Random::new(seed);
    (0..count).map(|_| TokenId(random.below(VOCAB))).collect()
}

/// The largest difference of two rows of logits, and the gap between the two best of the first.
fn compare(a: &[f32], b: &[f32]) -> (f32, f32) {
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let mut sorted = a.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    (off, sorted[0] - sorted[1])
}

/// A prompt in chunks, then rows one by one: every row's logits.
fn all_logits(
    mut logits: impl FnMut(&Step) -> Vec<(u32, Vec<f32>)>,
    prompt: &[TokenId],
    chunks: &[u32],
    classes: u8,
) -> Vec<Vec<f32>> {
    let mut deltas = table(0, prompt.len() as u32, classes);
    let (mut at, mut found) = (0, Vec::new());
    for chunk in chunks.iter().copied().chain(std::iter::repeat(1)) {
        if at == prompt.len() {
            break;
        }
        let end = (at + chunk as usize).min(prompt.len());
        let rows = rows(0, at as u32, &prompt[at..end], true);
        let step = Step { deltas: std::mem::take(&mut deltas), rows };
        found.extend(logits(&step).into_iter().map(|(_, logits)| logits));
        at = end;
    }
    found
}

/// F32 on the GPU equals the CPU's F32 path up to the CPU's KV, which is F16: the tokens are the same but for
/// near-ties.
#[test]
fn f32_says_what_the_cpu_says() {
    if device().is_none() {
        return;
    }
    for (kind, head_dim, heads, kv_heads, tied) in
        [("llama", 64, 4, 2, true), ("qwen2", 64, 6, 1, false), ("qwen3", 128, 4, 4, false)]
    {
        let made = Made::new(kind, head_dim, heads, kv_heads, tied);
        let mut cpu = CpuModel::load(&made.path(), &Made::options()).unwrap();
        let cuda = CudaOptions { dtype: Dtype::F32, ..CudaOptions::default() };
        let mut gpu = made.gpu(&cuda);
        let prompt = tokens(3, 150);
        let chunks = [70, 5, 40, 16];
        let expected = all_logits(|step| cpu.logits(step).unwrap(), &prompt, &chunks, 1);
        let found = all_logits(|step| gpu.logits(step).unwrap(), &prompt, &chunks, 1);
        assert_eq!(found.len(), 150);
        let (mut worst, mut same) = (0.0f32, 0);
        for (expected, found) in expected.iter().zip(&found) {
            let (off, gap) = compare(expected, found);
            worst = worst.max(off);
            let equal = sampling::argmax(expected) == sampling::argmax(found);
            same += u32::from(equal);
            assert!(equal || gap < 2e-2, "{kind}: another token at a gap of {gap}");
        }
        let reference: Vec<f64> = expected.concat().into_iter().map(f64::from).collect();
        let off = super::super::testing::relative(&found.concat(), &reference);
        println!("{kind}: {off:e}, largest difference of a logit {worst:e}, {same} of 150 tokens equal");
        assert!(off < 2e-3, "{kind}: {off}");
    }
}

/// BF16 is what rounding makes of F32: near, and nearer than another model.
#[test]
fn bf16_is_near_f32() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 128, 4, 2, false);
    let prompt = tokens(4, 100);
    let of = |cuda: &CudaOptions| {
        let mut gpu = made.gpu(cuda);
        all_logits(|step| gpu.logits(step).unwrap(), &prompt, &[60, 10, 20], 1)
    };
    let exact = of(&CudaOptions { dtype: Dtype::F32, ..CudaOptions::default() });
    for (dtype, bound) in [(Dtype::Bf16, 0.05), (Dtype::F16, 0.01)] {
        for mode in [Mode::Fast, Mode::Invariant] {
            for graphs in [false, true] {
                let found = of(&CudaOptions { dtype, mode, graphs, ..CudaOptions::default() });
                let flat = |rows: &[Vec<f32>]| rows.concat();
                let reference: Vec<f64> = flat(&exact).into_iter().map(f64::from).collect();
                let off = super::super::testing::relative(&flat(&found), &reference);
                println!("{dtype:?} {mode:?} graphs {graphs}: {off:.4}");
                assert!(off < bound, "{dtype:?} {mode:?} graphs {graphs}: {off}");
            }
        }
    }
}

/// Few rows by kernels that live from one attention to the next: near F32 and near the same model kernel by kernel, for
/// every count of rows, and the same bits in every run.
#[test]
fn persistent_kernels_compute_what_separate_ones_do() {
    if device().is_none() {
        return;
    }
    let _alone = FILLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let shapes = [
        ("llama", 128, 4, 2, false, false),
        ("llama", 64, 4, 2, true, true),
        ("qwen2", 64, 14, 2, true, false),
        ("qwen3", 128, 8, 8, false, true),
    ];
    for (kind, head_dim, heads, kv_heads, tied, windows) in shapes {
        let made = Made::new(kind, head_dim, heads, kv_heads, tied);
        let prompt = tokens(6, 300);
        let chunks: Vec<u32> = std::iter::once(64).chain(1..=16).collect();
        let of = |dtype, persistent: Persist| {
            let heads = windows.then(|| HeadMap::half_windows(3, kv_heads, 16, 64));
            let classes = 1 + u8::from(windows);
            let options = Options { heads, ..Made::options() };
            let cuda = CudaOptions { dtype, persistent, ..CudaOptions::default() };
            let mut gpu = CudaModel::load(&made.path(), &options, &cuda).unwrap();
            let persists = gpu.ranks.first().forward.persists(8);
            assert_eq!(persists, persistent == Persist::Always && dtype == Dtype::Bf16, "{kind}");
            all_logits(|step| gpu.logits(step).unwrap(), &prompt, &chunks, classes)
        };
        let (exact, apart) = (of(Dtype::F32, Persist::Never), of(Dtype::Bf16, Persist::Never));
        let (found, again) = (of(Dtype::Bf16, Persist::Always), of(Dtype::Bf16, Persist::Always));
        assert!(found == again, "{kind}: other bits in another run");
        assert!(found != apart, "{kind}: the kernels were not used");
        let flat = |rows: &[Vec<f32>]| rows.concat().into_iter().map(f64::from).collect::<Vec<f64>>();
        let (exact, apart) = (flat(&exact), flat(&apart));
        let off = |rows: &[Vec<f32>], from: &[f64]| super::super::testing::relative(&rows.concat(), from);
        println!("{kind}: {:.4} of F32, {:.4} of kernel by kernel", off(&found, &exact), off(&found, &apart));
        assert!(off(&found, &exact) < 0.05 && off(&found, &apart) < 0.05, "{kind}");
        // Each row on its own: none is lost in the others' average.
        for (row, (found, exact)) in found.iter().zip(exact.chunks_exact(VOCAB as usize)).enumerate() {
            let off = super::super::testing::relative(found, exact);
            assert!(off < 0.12, "{kind}, row {row}: {off}");
        }
    }
}

/// Batches whose products are streamed, or wide: near F32 and near the same model with plain products, in chunks and in steps
/// of many sequences, and the same bits in every run.
#[test]
fn streamed_products_compute_what_plain_ones_do() {
    if device().is_none() {
        return;
    }
    let _alone = FILLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (kind, head_dim, heads, kv_heads, tied) in
        [("llama", 128, 4, 2, false), ("llama", 64, 4, 2, true), ("qwen3", 128, 8, 8, false)]
    {
        let made = Made::of(kind, head_dim, heads, kv_heads, tied, 1024);
        let prompt = tokens(6, 400);
        let chunks = [9, 16, 10, 17, 64, 33, 48, 65, 12, 90];
        let prompts: Vec<_> = (0..32).map(|i| tokens(200 + i, 20 + 3 * i as u32)).collect();
        let of = |dtype, persistent: Persist| {
            let cuda = CudaOptions { dtype, persistent, ..CudaOptions::default() };
            let mut gpu = made.gpu(&cuda);
            let forward = &gpu.ranks.first().forward;
            let (streams, gates) = (
                [8, 9, 64, 65].map(|n| forward.streams(n)),
                [64, 65, 128, 129].map(|n| forward.has_wide_gates(n)),
            );
            let all = persistent != Persist::Never && dtype == Dtype::Bf16;
            assert_eq!(streams, [false, all, all, false], "{kind}");
            // By size these gates, of two tiles, are not for it.
            let wide = all && persistent == Persist::Always;
            assert_eq!(gates, [false, wide, wide, false], "{kind}");
            let logits = all_logits(|step| gpu.logits(step).unwrap(), &prompt, &chunks, 1);
            (logits, answers(&mut gpu, &prompts, 12, 32, 64))
        };
        let (exact, plain) = (of(Dtype::F32, Persist::Never), of(Dtype::Bf16, Persist::Never));
        let by_size = of(Dtype::Bf16, Persist::BySize);
        let (found, again) = (of(Dtype::Bf16, Persist::Always), of(Dtype::Bf16, Persist::Always));
        assert!(found.0 == again.0, "{kind}: other bits in another run");
        assert_eq!(found.1, again.1, "{kind}: other texts in another run");
        assert!(by_size.0 != plain.0, "{kind}: streamed kernels were not used");
        // The chunk of 65, up to which both do the same.
        let wide = 197..262;
        assert!(found.0[wide.clone()] != by_size.0[wide], "{kind}: wide kernels were not used");
        let flat = |rows: &[Vec<f32>]| rows.concat().into_iter().map(f64::from).collect::<Vec<f64>>();
        let off = |rows: &[Vec<f32>], from: &[f64]| super::super::testing::relative(&rows.concat(), from);
        let (of_exact, of_plain) = (off(&found.0, &flat(&exact.0)), off(&found.0, &flat(&plain.0)));
        println!("{kind}: {of_exact:.4} of F32, {of_plain:.4} of plain products");
        assert!(of_exact < 0.05 && of_plain < 0.05, "{kind}");
        // Most of the tokens of 32 sequences: some are near-ties.
        let same = found.1.iter().flatten().zip(exact.1.iter().flatten()).filter(|(a, b)| a == b).count();
        assert!(same > 32 * 12 / 2, "{kind}: {same} of {} tokens as in F32", 32 * 12);
    }
}

/// All sizes of steps are captured beforehand, and what is said stays the same.
#[test]
fn a_model_that_is_warm_says_what_a_cold_one_does() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 64, 8, 2, false);
    let prompts: Vec<_> = (0..8).map(|i| tokens(200 + i, 20 + 9 * i as u32)).collect();
    // What is fastest may be another thing in another run: in this mode it does not matter.
    let cuda = CudaOptions { mode: Mode::Invariant, ..CudaOptions::default() };
    let (mut cold, mut warm) = (made.gpu(&cuda), made.gpu(&cuda));
    warm.warm().unwrap();
    let sizes = warm.ranks.first().forward.graph_plans();
    assert!(sizes.len() > forward::BUCKETS.len(), "{sizes:?}");
    assert_eq!(answers(&mut warm, &prompts, 12, 8, 64), answers(&mut cold, &prompts, 12, 8, 64));
}

/// Greedy answers of several sequences, `together` at a time, prompts in chunks of `chunk`.
fn answers(
    model: &mut CudaModel,
    prompts: &[Vec<TokenId>],
    length: u32,
    together: usize,
    chunk: usize,
) -> Vec<Vec<TokenId>> {
    let mut all = Vec::new();
    let classes = model.spec().classes.len() as u8;
    for group in prompts.chunks(together) {
        let mut step = Step::default();
        for slot in 0..model.spec().slots {
            for class in 0..classes {
                step.deltas.push(TableDelta {
                    slot: Slot(slot),
                    class: ClassId(class),
                    change: TableChange::Clear,
                });
            }
        }
        for (slot, prompt) in (0..).zip(group) {
            step.deltas.extend(table(slot, prompt.len() as u32 + length, classes));
        }
        let mut said: Vec<Vec<TokenId>> = vec![Vec::new(); group.len()];
        let mut done = vec![0; group.len()];
        while said.iter().any(|s| s.len() < length as usize) {
            let mut owners = Vec::new();
            let mut draws = Vec::new();
            for (slot, prompt) in group.iter().enumerate() {
                let known: Vec<TokenId> = prompt.iter().chain(&said[slot]).copied().collect();
                if said[slot].len() == length as usize {
                    continue;
                }
                let end = (done[slot] + chunk).min(known.len());
                let mut more = rows(slot as u32, done[slot] as u32, &known[done[slot]..end], false);
                if end == known.len() {
                    more.last_mut().unwrap().output = Output::Pick;
                    owners.push(slot);
                    let params = SamplingParams::at(if slot % 2 == 0 { 0.0 } else { 0.9 });
                    draws.push(Draw::new(Sampling { params, seed: prompt[0].0.into(), choice: 0 }));
                }
                done[slot] = end;
                step.rows.extend(more);
            }
            let ticket = model.submit(&step).unwrap();
            for (pick, slot) in model.collect(ticket, &draws).unwrap().0.iter().zip(owners) {
                said[slot].push(pick.drawn.token);
            }
            step = Step::default();
        }
        all.extend(said);
    }
    all
}

/// In invariant mode the text does not depend on the batch, the chunks, or whether graphs are used.
#[test]
fn invariant_texts_are_the_same_alone_and_in_a_batch_of_32() {
    if device().is_none() {
        return;
    }
    for (kind, head_dim, heads, kv_heads) in [("llama", 128, 4, 2), ("qwen2", 64, 8, 2)] {
        let made = Made::new(kind, head_dim, heads, kv_heads, false);
        let prompts: Vec<_> = (0..32).map(|i| tokens(100 + i, 20 + 23 * i as u32)).collect();
        let cuda = CudaOptions { mode: Mode::Invariant, ..CudaOptions::default() };
        let mut model = made.gpu(&cuda);
        // Every prompt of a group sits in the slot whose draws it had: parity decides the temperature.
        let batch = answers(&mut model, &prompts, 24, 32, 4096);
        let pairs = answers(&mut model, &prompts, 24, 2, 50);
        assert_eq!(batch, pairs);
        let mut plain = made.gpu(&CudaOptions { graphs: false, rows: 64, ..cuda });
        assert_eq!(batch, answers(&mut plain, &prompts, 24, 8, 33));
        // The test would see a difference: texts differ among prompts.
        assert!(batch.windows(2).any(|two| two[0] != two[1]));
    }
}

/// Half of the heads with a window: as the CPU computes a whole model with it, and unlike full attention.
#[test]
fn windows_change_what_is_said_only_beyond_them() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 64, 4, 2, false);
    let prompt = tokens(5, 300);
    let of = |heads: Option<HeadMap>| {
        let classes = heads.as_ref().map_or(1, |map| map.classes.len()) as u8;
        let options = Options { heads, ..Made::options() };
        let cuda = CudaOptions { dtype: Dtype::F32, ..CudaOptions::default() };
        let mut gpu = CudaModel::load(&made.path(), &options, &cuda).unwrap();
        all_logits(|step| gpu.logits(step).unwrap(), &prompt, &[100, 3, 150], classes)
    };
    let full = of(None);
    let half = of(Some(HeadMap::half_windows(3, 2, 16, 64)));
    let wide = of(Some(HeadMap::half_windows(3, 2, 16, 4000)));
    let off = |a: &[Vec<f32>], at: usize| compare(&a[at], &full[at]).0;
    assert!((0..64).all(|at| off(&half, at) < 1e-4), "inside the window");
    assert!((200..300).all(|at| off(&half, at) > 1e-3), "beyond the window");
    assert!((0..300).all(|at| off(&wide, at) < 1e-4), "a window that hides nothing");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 64, 4, 2, true);
    let options = Options { pages: PageBudget::Pages(u32::MAX / 4), ..Made::options() };
    let error = CudaModel::load(&made.path(), &options, &CudaOptions::default()).unwrap_err().to_string();
    assert!(error.contains("the KV cache needs") && error.contains("are free"), "{error}");
    let cuda = CudaOptions { ordinals: vec![99], ..CudaOptions::default() };
    let error = CudaModel::load(&made.path(), &Made::options(), &cuda).unwrap_err().to_string();
    assert!(error.contains("there is no GPU 99"), "{error}");
    let mut model = made.gpu(&CudaOptions::default());
    let outside = Step { deltas: Vec::new(), rows: rows(0, 0, &[TokenId(1)], true) };
    assert!(matches!(model.submit(&outside), Err(ModelError::NoPage { slot: 0, position: 0 })));
    let free = Options { pages: PageBudget::Free(50), ..Made::options() };
    let model = CudaModel::load(&made.path(), &free, &CudaOptions::default()).unwrap();
    assert!(model.spec().classes[0].1 > 1200, "half of a GPU holds many pages of a small model");
}
