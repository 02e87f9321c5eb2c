//! Models whose keys and values are kept in FP8, against the same models in BF16.

use super::*;
use crate::cuda::testing::relative;

fn wide(logits: &[Vec<f32>]) -> Vec<f64> {
    logits.iter().flatten().copied().map(f64::from).collect()
}

fn codes() -> CudaOptions {
    CudaOptions { kv: KvKept::Fp8, ..CudaOptions::default() }
}

/// Codes keep four bits of an element: logits are near those of BF16, in both modes, with windows, by graphs and without,
/// and not equal to them.
#[test]
fn codes_say_nearly_what_bf16_says() {
    if device().is_none() {
        return;
    }
    for (kind, head_dim, heads, kv_heads, windows) in
        [("llama", 128, 4, 2, false), ("qwen2", 64, 6, 1, false), ("qwen3", 64, 8, 2, true)]
    {
        let made = Made::new(kind, head_dim, heads, kv_heads, false);
        let prompt = tokens(7, 300);
        // Prefill, verification and single rows.
        let chunks = [150, 40, 16, 5, 3, 60];
        let of = |cuda: &CudaOptions| {
            let map = windows.then(|| HeadMap::half_windows(3, kv_heads, 16, 64));
            let classes = 1 + u8::from(windows);
            let options = Options { heads: map, ..Made::options() };
            let mut gpu = CudaModel::load(&made.path(), &options, cuda).unwrap();
            all_logits(|step| gpu.logits(step).unwrap(), &prompt, &chunks, classes)
        };
        let exact = of(&CudaOptions { dtype: Dtype::F32, ..CudaOptions::default() });
        let rounded = relative(&of(&CudaOptions::default()).concat(), &wide(&exact));
        for mode in [Mode::Fast, Mode::Invariant] {
            for graphs in [true, false] {
                let found = of(&CudaOptions { mode, graphs, ..codes() });
                let off = relative(&found.concat(), &wide(&exact));
                println!("{kind} {mode:?} graphs {graphs}: fp8 {off:.4}, bf16 {rounded:.4}");
                assert!(off > rounded && off < 0.1, "{kind} {mode:?} graphs {graphs}: {off}, bf16 {rounded}");
                // Each row on its own: none is lost in the others' average.
                for (row, (found, exact)) in found.iter().zip(&exact).enumerate() {
                    let exact: Vec<f64> = exact.iter().copied().map(f64::from).collect();
                    let off = relative(found, &exact);
                    assert!(off < 0.25, "{kind} {mode:?}, row {row}: {off}");
                }
            }
        }
    }
}

/// Few rows by kernels that live from one attention to the next write the same pages.
#[test]
fn persistent_kernels_keep_codes() {
    if device().is_none() {
        return;
    }
    let _alone = FILLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (kind, head_dim, heads, kv_heads) in
        [("llama", 128, 4, 2), ("qwen2", 64, 14, 2), ("qwen3", 128, 8, 8)]
    {
        let made = Made::new(kind, head_dim, heads, kv_heads, false);
        let prompt = tokens(6, 200);
        let chunks: Vec<u32> = std::iter::once(64).chain(1..=8).cycle().take(40).collect();
        let of = |persistent: Persist| {
            let mut gpu = made.gpu(&CudaOptions { persistent, ..codes() });
            assert_eq!(gpu.ranks.first().forward.persists(8), persistent == Persist::Always, "{kind}");
            all_logits(|step| gpu.logits(step).unwrap(), &prompt, &chunks, 1)
        };
        let (apart, found) = (of(Persist::Never), of(Persist::Always));
        assert!(found != apart, "{kind}: the kernels were not used");
        let off = relative(&found.concat(), &wide(&apart));
        println!("{kind}: {off:.4} of kernel by kernel");
        // Sums in another order may give a key other codes.
        assert!(off < 0.1, "{kind}: {off}");
    }
}

/// A key's codes depend on nothing but the key: the invariant mode's promise holds.
#[test]
fn invariant_texts_of_codes_are_the_same_alone_and_in_a_batch_of_32() {
    if device().is_none() {
        return;
    }
    for (kind, head_dim, heads, kv_heads) in [("llama", 128, 4, 2), ("qwen2", 64, 8, 2)] {
        let made = Made::new(kind, head_dim, heads, kv_heads, false);
        let prompts: Vec<_> = (0..32).map(|i| tokens(100 + i, 20 + 23 * i as u32)).collect();
        let cuda = CudaOptions { mode: Mode::Invariant, ..codes() };
        let mut model = made.gpu(&cuda);
        let batch = answers(&mut model, &prompts, 24, 32, 4096);
        assert_eq!(batch, answers(&mut model, &prompts, 24, 2, 50));
        let mut plain = made.gpu(&CudaOptions { graphs: false, rows: 64, ..cuda.clone() });
        assert_eq!(batch, answers(&mut plain, &prompts, 24, 8, 33));
        // The test would see a difference: texts are not those of BF16.
        let mut whole = made.gpu(&CudaOptions { kv: KvKept::Dtype, ..cuda });
        assert_ne!(batch, answers(&mut whole, &prompts, 24, 32, 4096));
    }
}

/// As many bytes hold nearly twice as many pages.
#[test]
fn pages_of_codes_take_little_more_than_half() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 128, 4, 2, true);
    let options = Options { pages: PageBudget::Bytes(64 << 20), ..Made::options() };
    let pages = |cuda: &CudaOptions| {
        CudaModel::load(&made.path(), &options, cuda).unwrap().spec().classes[0].1 as usize
    };
    // Three layers of two heads, keys and values: two bytes an element; or one, a scale of four for each, and 16 second
    // codes a key.
    assert_eq!(pages(&CudaOptions::default()), (64 << 20) / (3 * 2 * 16 * 2 * 128 * 2));
    assert_eq!(pages(&codes()), (64 << 20) / (3 * 2 * 16 * (2 * (128 + 4) + 16)));
}

/// Parts of a model keep their own heads.
#[test]
fn parts_of_a_model_keep_codes() {
    if device().is_none() {
        return;
    }
    let gpus = crate::cuda::device_count();
    let made = Made::new("llama", 64, 8, 4, false);
    let prompt = tokens(9, 120);
    let of = |ordinals: Vec<usize>| {
        let mut gpu = made.gpu(&CudaOptions { ordinals, mode: Mode::Invariant, ..codes() });
        all_logits(|step| gpu.logits(step).unwrap(), &prompt, &[60, 20, 5], 1)
    };
    let off = relative(&of(vec![0, 1 % gpus]).concat(), &wide(&of(vec![0])));
    println!("codes over 2 parts: {off:.4}");
    // Other sums over ranks may give a key other codes.
    assert!(off < 0.1, "{off}");
}

#[test]
fn codes_of_other_dtypes_are_refused_by_name() {
    if device().is_none() {
        return;
    }
    let made = Made::new("llama", 64, 4, 2, true);
    for dtype in [Dtype::F16, Dtype::F32] {
        let cuda = CudaOptions { dtype, ..codes() };
        let error = CudaModel::load(&made.path(), &Made::options(), &cuda).unwrap_err().to_string();
        assert!(error.contains("option kv: fp8 is built for models in bf16"), "{error}");
    }
}
