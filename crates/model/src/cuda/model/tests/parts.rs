//! Models over several GPUs, or over one that holds several parts.

use super::*;
use crate::cuda::device_count;
use crate::cuda::testing::relative;

/// Two and four parts of a model, on as many GPUs as there are, compute what one does but for the order of sums.
#[test]
fn parts_of_a_model_say_what_the_whole_says() {
    if device().is_none() {
        return;
    }
    let gpus = device_count();
    // Parts that share all of one GPU may wait for each other in vain: one that waits can take the other's room.
    if gpus == 1 {
        return println!("not run: it takes two GPUs");
    }
    let _alone = FILLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
                    // Where each part has a GPU of its own, few rows sum inside such kernels.
                    let persistent = Persist::Always;
                    let cuda =
                        CudaOptions { ordinals, dtype, mode, nccl, persistent, ..CudaOptions::default() };
                    let mut gpu = made.gpu(&cuda);
                    let ranks = cuda.ordinals.len();
                    let can = dtype == Dtype::Bf16 && mode == Mode::Fast && !nccl && gpus >= ranks;
                    assert_eq!(gpu.ranks.first().forward.persists(8), can, "{kind} over {ranks}");
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
