//! Models over several GPUs, or over one that holds several parts.

use super::*;
use crate::cuda::testing::relative;
use crate::cuda::{device_count, transfer_rates};

/// Two and four parts of a model, on as many GPUs as there are, compute what one does but for the order of sums.
#[test]
fn parts_of_a_model_say_what_the_whole_says() {
    if device().is_none() {
        return;
    }
    let gpus = device_count();
    for (kind, head_dim, heads, kv_heads, tied) in
        [("llama", 64, 4, 2, true), ("qwen2", 64, 8, 4, false), ("qwen3", 128, 4, 4, false)]
    {
        let made = Made::new(kind, head_dim, heads, kv_heads, tied);
        for ranks in [2, 4].into_iter().filter(|ranks| kv_heads % ranks == 0) {
            // More rows than a graph takes, more than are pushed, and single ones. Where a GPU holds several parts,
            // those that wait must leave room for those that are waited for.
            let first = if gpus >= ranks { 300 } else { 100 };
            let (prompt, chunks) = (tokens(6, first + 110), [first, 20, 40, 7, 16]);
            for (dtype, mode, bound) in [
                (Dtype::F32, Mode::Fast, 1e-5),
                (Dtype::Bf16, Mode::Fast, 0.04),
                (Dtype::Bf16, Mode::Invariant, 0.04),
            ] {
                let of = |ordinals: Vec<usize>, dtype: Dtype, nccl: bool| {
                    let mut gpu =
                        made.gpu(&CudaOptions { ordinals, dtype, mode, nccl, ..CudaOptions::default() });
                    all_logits(|step| gpu.logits(step).unwrap(), &prompt, &chunks, 1).concat()
                };
                let whole: Vec<f64> = of(vec![0], Dtype::F32, false).into_iter().map(f64::from).collect();
                let ordinals: Vec<usize> = (0..ranks).map(|rank| rank % gpus).collect();
                let parts = of(ordinals.clone(), dtype, false);
                let off = relative(&parts, &whole);
                println!("{kind} over {ranks}: {dtype:?} {mode:?}: {off:e}");
                assert!(off < bound, "{kind} over {ranks}: {dtype:?} {mode:?}: {off}");
                if gpus >= ranks && mode == Mode::Fast {
                    let off = relative(&of(ordinals, dtype, true), &whole);
                    println!("{kind} over {ranks} by NCCL: {dtype:?}: {off:e}");
                    assert!(off < bound, "{kind} over {ranks} by NCCL: {off}");
                }
            }
        }
    }
}

/// Made-up weights are the same whatever they are cut into, and the invariant mode holds over parts.
#[test]
fn made_up_parts_are_parts_of_the_whole() {
    if device().is_none() {
        return;
    }
    let gpus = device_count();
    let made = Made::new("llama", 64, 8, 4, false);
    let prompt = tokens(8, 90);
    let mut all = Vec::new();
    for (ordinals, chunks) in
        [(vec![0], vec![60, 20]), (vec![0, 1 % gpus], vec![60, 20]), (vec![0, 1 % gpus], vec![1, 33, 3, 50])]
    {
        let cuda = CudaOptions { ordinals, mode: Mode::Invariant, ..CudaOptions::default() };
        let mut gpu = CudaModel::dummy(&made.path(), 5, &Made::options(), &cuda).unwrap();
        all.push(all_logits(|step| gpu.logits(step).unwrap(), &prompt, &chunks, 1).concat());
    }
    let whole: Vec<f64> = all[0].iter().copied().map(f64::from).collect();
    let off = relative(&all[1], &whole);
    println!("made up over 2: {off:e}");
    assert!(off < 0.04, "{off}");
    assert!(all[1] == all[2], "the invariant mode over parts depends on chunks");
}

#[test]
fn what_cannot_be_cut_is_refused_by_name() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 64, 6, 2, true);
    for (ranks, named) in [(3, "2 KV heads"), (4, "6 query heads"), (9, "1 to 8 GPUs"), (0, "1 to 8 GPUs")] {
        let cuda = CudaOptions { ordinals: vec![0; ranks], ..CudaOptions::default() };
        let error = CudaModel::load(&made.path(), &Made::options(), &cuda).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

/// Decoding over one GPU and over two, and pages between two: `paceline bench gpu` gives the same with more detail.
#[test]
#[ignore = "figures, not a test; needs two GPUs"]
fn two_gpus_figures() {
    let shape = |vocab: u32, hidden: u32, ffn: u32| {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden,
            "intermediate_size": ffn, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
            "tie_word_embeddings": false,
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let options =
        Options { context: Some(2048), vocab: None, slots: 32, pages: PageBudget::Pages(1600), threads: 1 };
    let make = |shape: serde_json::Value, ordinals: Vec<usize>, nccl: bool| {
        std::fs::write(folder.path().join("config.json"), shape.to_string()).unwrap();
        let cuda = CudaOptions { ordinals, nccl, ..CudaOptions::default() };
        CudaModel::dummy(folder.path(), 1, &options, &cuda).unwrap()
    };
    // Pages as large as those of the model below.
    for (from, to) in [(vec![0], vec![1]), (vec![0, 1], vec![1])] {
        let [a, b] = [&from, &to].map(|ordinals| make(shape(512, 1024, 1024), ordinals.clone(), false));
        for megabytes in [16, 64, 256, 1024] {
            for rate in transfer_rates(&a, &b, megabytes << 20).unwrap() {
                let (us, gb) = (rate.microseconds, rate.bytes as f64 / rate.microseconds / 1e3);
                println!("{from:?} to {to:?}: {:10} {megabytes:5} MiB {us:9.1} us {gb:7.1} GB/s", rate.what);
            }
        }
    }
    for (ordinals, nccl) in [(vec![0], false), (vec![0, 1], false), (vec![0, 1], true)] {
        let mut model = make(shape(128_256, 4096, 14336), ordinals.clone(), nccl);
        for batch in [1u32, 8, 32] {
            let clear = |slot| TableDelta { slot: Slot(slot), class: ClassId(0), change: TableChange::Clear };
            let mut deltas: Vec<TableDelta> = (0..32).map(clear).collect();
            deltas.extend((0..batch).flat_map(|slot| table(slot, 560, 1)));
            for slot in 0..batch {
                let rows = rows(slot, 0, &tokens(slot.into(), 512), false);
                let ticket = model.submit(&Step { deltas: std::mem::take(&mut deltas), rows }).unwrap();
                model.collect(ticket, &[]).unwrap();
            }
            let mut times = Vec::new();
            for n in 0..40 {
                let rows =
                    (0..batch).flat_map(|slot| rows(slot, 512 + n, &[TokenId(n + slot)], true)).collect();
                let start = std::time::Instant::now();
                let ticket = model.submit(&Step { deltas: Vec::new(), rows }).unwrap();
                let draws = vec![Draw::new(Sampling::GREEDY); batch as usize];
                model.collect(ticket, &draws).unwrap();
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            times.drain(..4);
            times.sort_by(f64::total_cmp);
            let (least, half) = (times[0], times[times.len() / 2]);
            println!(
                "decode {batch:2} on {ordinals:?} nccl {nccl}: median {half:.3} ms, least {least:.3} ms"
            );
        }
        let mut times = Vec::new();
        for _ in 0..4 {
            let clear = |slot| TableDelta { slot: Slot(slot), class: ClassId(0), change: TableChange::Clear };
            let append = |page| TableDelta {
                slot: Slot(0),
                class: ClassId(0),
                change: TableChange::Append(PageId(page)),
            };
            let deltas = (0..32).map(clear).chain((0..128).map(append)).collect();
            let mut rows = rows(0, 0, &tokens(1, 2048), false);
            rows[2047].output = Output::Pick;
            let start = std::time::Instant::now();
            let ticket = model.submit(&Step { deltas, rows }).unwrap();
            model.collect(ticket, &[Draw::new(Sampling::GREEDY)]).unwrap();
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        println!("prefill 2048 on {ordinals:?} nccl {nccl}: {times:.2?} ms");
    }
}
