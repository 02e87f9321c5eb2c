//! Heads of several classes: some see everything, some a sink and a window.

use engine::Model as _;
use gguf::TensorKind;
use kvcache::{HeadClass, HeadMap, PrefixRoot};
use model::{CpuModel, Level, Options, PageBudget};
use request::TokenId;
use scheduler::{Ahead, Config, NewSequence, Policy, Scheduler, SequenceId};

use crate::bits::{assert_batch_equals_alone, assert_equal};
use crate::reference::{distance, median, naive};
use crate::steps::logits;
use crate::tiny::{LAYERS, Shape, Tiny, tokens};

/// Layer 0: full and window; layer 1: window and full.
fn split(sink: u32, recent: u32) -> HeadMap {
    HeadMap {
        classes: vec![HeadClass::Full, HeadClass::Window { sink, recent }],
        class_of: vec![vec![0, 1], vec![1, 0]],
    }
}

#[test]
fn windows_wider_than_the_context_change_no_bit() {
    let tokens = tokens(600);
    for (architecture, kind) in [("llama", TensorKind::Q8_0), ("qwen2", TensorKind::Q4_K)] {
        let tiny = Tiny::new(Shape::of(architecture, kind));
        let plain = logits(&mut tiny.load(2).unwrap(), &tokens, 200).unwrap();
        for (sink, recent) in [(0, 600), (16, 584), (600, 1), (1 << 30, 1 << 30), (u32::MAX, u32::MAX)] {
            let mut model = tiny.load_heads(2, split(sink, recent)).unwrap();
            let found = logits(&mut model, &tokens, 150).unwrap();
            assert_equal(&found, &plain, &format!("{architecture}, sink {sink}, recent {recent}"));
        }
        // One key fewer is seen: this comparison can fail.
        let mut model = tiny.load_heads(2, split(0, 599)).unwrap();
        assert_ne!(logits(&mut model, &tokens, 150).unwrap()[599], plain[599]);
    }
}

#[test]
fn each_head_sees_what_a_naive_pass_lets_it_see() {
    for (sink, recent, length, bound) in [
        (0, 1, 50, 1e-5),
        (4, 16, 50, 1e-5),
        (17, 3, 50, 1e-5),
        // Over a span's edge; the sink alone in the first span.
        (20, 40, 600, 1e-4),
        (0, 512, 600, 1e-4),
        (513, 7, 600, 1e-4),
    ] {
        let tiny = Tiny::new(Shape::of("llama", TensorKind::F32));
        let (tokens, map) = (tokens(length), split(sink, recent));
        let found = logits(&mut tiny.load_heads(2, map.clone()).unwrap(), &tokens, 200).unwrap();
        let expected = naive::logits(&tiny, &tokens, Some(&map));
        let distances: Vec<f64> = found.iter().zip(&expected).map(|(f, e)| distance(f, e)).collect();
        let worst = distances.iter().copied().fold(0.0, f64::max);
        let median = median(distances);
        assert!(
            median <= bound && worst <= 10.0 * bound,
            "sink {sink}, recent {recent}: {median:e}, {worst:e}"
        );
    }
}

#[test]
fn classes_keep_the_bits_over_chunks_batch_threads_and_level() {
    let (short, long) = (tokens(40), tokens(700));
    let tiny = Tiny::new(Shape::of("qwen2", TensorKind::Q4_0));
    for (sink, recent) in [(3, 11), (16, 300)] {
        let mut reference: Option<Vec<Vec<f32>>> = None;
        for threads in [1, 2] {
            let mut model = tiny.load_heads(threads, split(sink, recent)).unwrap();
            for level in Level::available() {
                model.set_level(level);
                for chunk in [700, 97] {
                    let found = logits(&mut model, &long, chunk).unwrap();
                    let reference = reference.get_or_insert_with(|| found.clone());
                    assert_equal(
                        &found,
                        reference,
                        &format!("{threads} threads, {level}, chunks of {chunk}"),
                    );
                }
                assert_batch_equals_alone(&mut model, &short, &format!("{level}"));
            }
        }
    }
}

/// Logits of `prompt` where a scheduler says which pages a sequence has, and the positions that the prefix cache
/// gave it.
fn scheduled(
    scheduler: &mut Scheduler,
    model: &mut CpuModel,
    id: u64,
    prompt: &[u32],
) -> (Vec<Vec<f32>>, usize) {
    let known: Vec<TokenId> = prompt.iter().copied().map(TokenId).collect();
    let length = known.len() as u32;
    let new = NewSequence {
        id: SequenceId(id),
        tokens: known,
        limit: length + 1,
        longest: length + 1,
        priority: 0,
        root: PrefixRoot::salted(""),
        settled: u32::MAX,
    };
    scheduler.add(new).unwrap();
    let (mut all, mut cached) = (Vec::new(), 0);
    loop {
        let plan = scheduler.plan(|_| Ahead::Go(&[]));
        cached += plan.admitted.iter().map(|a| a.cached as usize).sum::<usize>();
        assert!(!plan.slices.is_empty(), "nothing moves");
        let mut step = plan.step.clone();
        for row in &mut step.rows {
            row.output = scheduler::Output::Pick;
        }
        all.extend(model.logits(&step).unwrap().into_iter().map(|(_, logits)| logits));
        for slice in &plan.slices {
            scheduler.commit(slice, 0, if slice.picks { &[TokenId(1)] } else { &[] });
            if slice.picks {
                scheduler.remove(slice.sequence);
                return (all, cached);
            }
        }
    }
}

/// What `commit` gives up is not needed, and what the prefix cache gives back is what was there.
#[test]
fn evicted_pages_and_prefix_hits_change_no_bit() {
    let (prompt, map) = (tokens(400), split(20, 70));
    let tiny = Tiny::new(Shape::of("llama", TensorKind::Q8_0));
    let mut model = tiny.load_heads(2, map).unwrap();
    let expected = logits(&mut model, &prompt, 400).unwrap();
    let clear = |class| crate::steps::in_class(crate::steps::clear(0), class);
    // 400 positions are 25 pages; a window with chunks of 30 never holds more than 11.
    for (window_pages, half_way) in [(11, 32), (40, 208)] {
        model.logits(&scheduler::Step { deltas: vec![clear(0), clear(1)], rows: vec![] }).unwrap();
        let mut scheduler = Scheduler::new(Config {
            token_budget: 30,
            tile: 1,
            policy: Policy::Sarathi,
            max_waiting: 4,
            context: 1024,
            slots: 2,
            tree_rows: 0,
            classes: vec![(model.spec().classes[0].0, 60), (model.spec().classes[1].0, window_pages)],
            prefix_cache: true,
        });
        let (first, cached) = scheduled(&mut scheduler, &mut model, 1, &prompt);
        assert_eq!(cached, 0);
        assert_equal(&first, &expected, "evicted");
        // The same once more, after others came in between; then one that leaves it half way.
        let (again, cached) = scheduled(&mut scheduler, &mut model, 2, &prompt);
        assert_eq!(cached, 384, "the last pages of the window are there in any case");
        assert_equal(&again, &expected[cached..], "after a hit");
        let other: Vec<u32> = prompt[..210].iter().copied().chain(tokens(50)).collect();
        let (third, cached) = scheduled(&mut scheduler, &mut model, 3, &other);
        assert_eq!(cached, half_way);
        assert_equal(&third[..210 - cached], &expected[cached..210], "as far as it is the same");
    }
}

#[test]
fn pages_of_a_class_take_what_its_heads_take() {
    let tiny = Tiny::new(Shape::of("llama", TensorKind::F16));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny.bytes()).unwrap();
    let load = |bytes, heads| {
        let pages = PageBudget::Bytes(bytes);
        let options = Options { context: Some(512), vocab: None, slots: 2, pages, threads: 1, heads };
        CpuModel::load(file.path(), &options)
    };
    // Two of four heads have a window: half the bytes of a page each.
    let page = (LAYERS * 2 * 16 * tiny.shape.head_dim * 2 * 2) as u64;
    let full = load(100 * page, None).unwrap().spec().classes.clone();
    assert_eq!(full, [(HeadClass::Full, 100)]);
    let map = split(16, 32);
    let classes = load(1000 * page, Some(map.clone())).unwrap().spec().classes.clone();
    // 512 positions of two slots, however wide their chunks; the rest is the full heads'.
    assert_eq!(classes, [(HeadClass::Full, 1936), (map.classes[1], 64)]);
    let error = load(page - 1, Some(map)).unwrap_err().to_string();
    assert!(error.contains("pages") && error.contains("hold no page"), "{error}");
}

#[test]
fn a_head_map_that_does_not_suit_is_refused() {
    let tiny = Tiny::new(Shape::of("llama", TensorKind::F16));
    for (map, said) in [
        (HeadMap::half_windows(3, 2, 1, 2), "it has 3 layers and the model has 2"),
        (HeadMap::half_windows(2, 4, 1, 2), "layer 0 has 4 KV heads and the model has 2"),
        (HeadMap { classes: vec![HeadClass::Full; 3], ..split(1, 2) }, "3 head classes"),
    ] {
        let error = tiny.load_heads(1, map).unwrap_err().to_string();
        assert!(error.contains("heads") && error.contains(said), "{error}");
    }
    let error = tiny.windowed(20).load_heads(1, split(1, 2)).unwrap_err().to_string();
    assert!(error.contains("own window") && error.contains("not built"), "{error}");
}

/// The shares that a naive pass has, on weights whose attention is far from even.
#[test]
fn shares_of_attention_are_those_of_a_naive_pass() {
    use model::Asked;

    let mut tiny = Tiny::new(Shape::of("llama", TensorKind::F32));
    // Larger queries: some keys get most of the attention.
    for tensor in ["blk.0.attn_q.weight", "blk.1.attn_q.weight"] {
        let bytes = &mut tiny.tensors.get_mut(tensor).unwrap().bytes;
        for weight in bytes.as_chunks_mut().0 {
            *weight = (f32::from_le_bytes(*weight) * 6.0).to_le_bytes();
        }
    }
    let tokens = tokens(300);
    let asked = [
        Asked { queries: 290..300, keys: 16..200 },
        Asked { queries: 299..300, keys: 0..300 },
        Asked { queries: 10..11, keys: 5..500 },
        Asked { queries: 7..8, keys: 8..20 },
    ];
    let ids: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
    let mut model = tiny.load(2).unwrap();
    let mut computed = Vec::new();
    let found = model.attention_shares(&ids, &asked, |done| computed.push(done)).unwrap();
    assert_eq!(computed, [256, 300]);
    let shares = naive::shares(&tiny, &tokens);
    for (asked, found) in asked.iter().zip(&found) {
        for (layer, found) in found.iter().enumerate() {
            for (kv_head, found) in found.iter().enumerate() {
                let of = |head: usize| {
                    let queries = asked.queries.clone().map(|query| &shares[query as usize][layer][head]);
                    let keys = queries.map(|share| {
                        share.iter().enumerate().filter(|(key, _)| asked.keys.contains(&(*key as u32)))
                    });
                    keys.flatten().map(|(_, share)| share).sum::<f64>() / asked.queries.len() as f64
                };
                let expected = of(2 * kv_head).max(of(2 * kv_head + 1));
                assert!((found - expected).abs() < 1e-4, "{asked:?}: {found} and {expected}");
            }
        }
    }
    assert!(found[0].iter().flatten().any(|share| (0.05..0.95).contains(share)), "{found:?}");
    // It leaves no trace.
    let plain = logits(&mut tiny.load(1).unwrap(), &tokens, 300).unwrap();
    assert_equal(&logits(&mut model, &tokens, 300).unwrap(), &plain, "afterwards");
    let long = vec![TokenId(1); 5000];
    assert!(model.attention_shares(&long, &[], |_| {}).is_err());
    let mut split = tiny.load_heads(1, split(1, 2)).unwrap();
    let error = split.attention_shares(&ids, &[], |_| {}).unwrap_err().to_string();
    assert!(error.contains("windows"), "{error}");
}
