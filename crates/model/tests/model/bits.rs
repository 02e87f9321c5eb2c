//! The contract: logits do not depend on batch, chunks, threads or processor, to the bit.

use engine::Model as _;
use gguf::TensorKind;
use model::{CpuModel, CpuOptions, KvDtype, Level};

use crate::real;
use crate::steps::{Sequences, in_class, logits};
use crate::tiny::{Shape, Tiny, tokens};

const KINDS: [TensorKind; 11] = [
    TensorKind::F32,
    TensorKind::F16,
    TensorKind::BF16,
    TensorKind::Q8_0,
    TensorKind::Q4_0,
    TensorKind::Q4_1,
    TensorKind::Q5_0,
    TensorKind::Q5_1,
    TensorKind::Q4_K,
    TensorKind::Q5_K,
    TensorKind::Q6_K,
];

fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    logits.iter().map(|row| row.iter().map(|l| l.to_bits()).collect()).collect()
}

/// Equal bits, with a message shorter than the logits.
pub(crate) fn assert_equal(found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in bits(found).into_iter().zip(bits(expected)).enumerate() {
        let differ = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert!(found.len() == expected.len() && differ == 0, "{what}: row {i}, {differ} logits differ");
    }
}

/// The last token of each of three sequences of one step, after different prompts, and a
/// verification run in a fourth: each as if it were alone.
pub(crate) fn assert_batch_equals_alone(model: &mut CpuModel, tokens: &[u32], what: &str) {
    let n = tokens.len();
    let alone = logits(model, tokens, 1).unwrap();
    let mut sequences = Sequences::new(4, 64).of(model);
    let classes = model.spec().classes.len() as u8;
    let clear = |slot| (0..classes).map(move |class| in_class(crate::steps::clear(slot), class));
    // Slot 0's table was filled by the run alone.
    let mut first = sequences.step(&[
        (0, 0, &tokens[..n - 1]),
        (1, 0, &tokens[..n - 5]),
        (2, 0, &tokens[..1]),
        (3, 0, &tokens[..n / 2]),
    ]);
    first.deltas.splice(0..0, clear(0));
    model.logits(&first).unwrap();
    let step = sequences.step(&[
        (3, n as u32 / 2, &tokens[n / 2..]),
        (0, n as u32 - 1, &tokens[n - 1..]),
        (2, 1, &tokens[1..4]),
        (1, n as u32 - 5, &tokens[n - 5..]),
    ]);
    let found: Vec<Vec<f32>> = model.logits(&step).unwrap().into_iter().map(|(_, l)| l).collect();
    let expected = [&alone[n / 2..], &alone[n - 1..], &alone[1..4], &alone[n - 5..]].concat();
    assert_equal(&found, &expected, what);
    for slot in 0..4 {
        let step = scheduler::Step { deltas: clear(slot).collect(), rows: vec![] };
        model.logits(&step).unwrap();
    }
}

#[test]
fn logits_do_not_depend_on_chunks_batch_threads_or_level() {
    let tokens = tokens(40);
    // Every format with two architectures, and the others with one.
    let formats = ["llama", "qwen2"].into_iter().flat_map(|a| KINDS.map(|kind| (a, kind, None)));
    let others = [("qwen3", TensorKind::Q5_K, None), ("llama", TensorKind::F16, Some(11))];
    {
        for (architecture, kind, window) in formats.chain(others) {
            let tiny = Tiny::new(Shape::of(architecture, kind));
            let tiny = window.map_or(tiny.clone(), |window| tiny.windowed(window));
            let mut reference: Option<Vec<Vec<f32>>> = None;
            for threads in [1, 2, 3] {
                let mut model = tiny.load(threads).unwrap();
                for level in Level::available() {
                    model.set_level(level);
                    for chunk in [40, 7, 1] {
                        let found = logits(&mut model, &tokens, chunk).unwrap();
                        assert!(found.iter().flatten().all(|l| l.is_finite()));
                        let reference = reference.get_or_insert_with(|| found.clone());
                        let what =
                            format!("{architecture} {kind} {threads} threads {level} chunks of {chunk}");
                        assert_equal(&found, reference, &what);
                    }
                    assert_batch_equals_alone(&mut model, &tokens, &format!("{architecture} {kind} {level}"));
                }
            }
            // The comparison would be worth nothing on logits that are all alike.
            let reference = reference.unwrap();
            assert_ne!(reference[3], reference[4]);
        }
    }
}

/// Past 512 keys attention merges spans, past 256 rows a step is computed in pieces.
#[test]
fn long_sequences_keep_their_bits() {
    let tokens = tokens(700);
    let tiny = Tiny::new(Shape::of("llama", TensorKind::Q4_0));
    for tiny in [tiny.clone(), tiny.windowed(300)] {
        let mut reference: Option<Vec<Vec<f32>>> = None;
        let mut model = tiny.load(2).unwrap();
        for level in Level::available() {
            model.set_level(level);
            for chunk in [700, 300, 97] {
                let found = logits(&mut model, &tokens, chunk).unwrap();
                let reference = reference.get_or_insert_with(|| found.clone());
                assert_equal(&found, reference, &format!("{level} chunks of {chunk}"));
            }
        }
        // Row by row threads share the spans; of each block, if there are few.
        for threads in [1, 2, 5] {
            let found = logits(&mut tiny.load(threads).unwrap(), &tokens, 1).unwrap();
            let reference = reference.as_deref().unwrap_or_default();
            assert_equal(&found, reference, &format!("{threads} threads, row by row"));
        }
    }
}

/// The same on real weights, whose sizes are not powers of two.
#[test]
fn smollm2_keeps_its_bits() {
    let Some(path) = real::find("smollm2-135m.gguf") else { return };
    let mut model = CpuModel::load(&path, &real::OPTIONS).unwrap();
    let tokens: Vec<u32> = (0..24).map(|i| (i * i * 37 + 400) % 40_000).collect();
    let alone = logits(&mut model, &tokens, 1).unwrap();
    for level in Level::available().into_iter().rev() {
        model.set_level(level);
        let chunked = logits(&mut model, &tokens, 9).unwrap();
        assert_equal(&chunked, &alone, &format!("{level}, chunks of 9"));
    }
    let one = CpuModel::load(&path, &model::Options { threads: 1, ..real::OPTIONS });
    assert_equal(&logits(&mut one.unwrap(), &tokens, 24).unwrap(), &alone, "one thread");
}

/// Pages that no query sees may be gone, or never have been there.
#[test]
fn a_window_needs_only_the_pages_it_sees() {
    use kvcache::PageId;
    use scheduler::{Step, TableChange, TableDelta};

    let (tokens, window) = (tokens(90), 20);
    let tiny = Tiny::new(Shape::of("llama", TensorKind::F16)).windowed(window);
    let mut model = tiny.load(2).unwrap();
    let expected = logits(&mut model, &tokens, 90).unwrap();
    // Step by step, dropping what has passed out of sight.
    let mut sequences = Sequences::new(1, 64);
    let clear = Step { deltas: vec![crate::steps::clear(0)], rows: vec![] };
    model.logits(&clear).unwrap();
    let (mut found, mut dropped) = (Vec::new(), 0);
    for (position, token) in (0..).zip(&tokens) {
        let mut step = sequences.step(&[(0, position, std::slice::from_ref(token))]);
        while (dropped + 1) * 16 + window <= position + 1 {
            step.deltas.push(TableDelta { change: TableChange::Drop(dropped), ..crate::steps::append(0, 0) });
            dropped += 1;
        }
        found.extend(model.logits(&step).unwrap().into_iter().map(|(_, logits)| logits));
    }
    assert_eq!(dropped, 4);
    assert_equal(&found, &expected, "pages dropped");
    // A prefix hit at 80: three holes, then the two pages that position 80 and later still see, shared.
    let change = |change| TableDelta { change, ..crate::steps::append(1, 0) };
    let mut hit = Sequences::new(4, 0);
    let mut step = hit.step(&[(1, 80, &tokens[80..])]);
    step.deltas = vec![change(TableChange::Hole); 3];
    step.deltas.extend([3, 4].map(|page| change(TableChange::Share(PageId(page)))));
    step.deltas.push(change(TableChange::Append(PageId(100))));
    // Slot 0's pages are 0, 1, ..: dropped ones keep what they held in this test.
    let found: Vec<Vec<f32>> = model.logits(&step).unwrap().into_iter().map(|(_, l)| l).collect();
    assert_equal(&found, &expected[80..], "after a hit");
    // A page too few is noticed, not read as zeros.
    step.deltas[3].change = TableChange::Hole;
    step.deltas.insert(0, change(TableChange::Clear));
    assert_eq!(model.submit(&step).unwrap_err(), engine::ModelError::NoPage { slot: 1, position: 48 });
}

/// Keys and values of bytes: other text than of half floats, but near it, in half the memory, and as independent of
/// batch, chunks, threads and level, over two spans of attention.
#[test]
fn bytes_for_keys_and_values_keep_the_contract() {
    let tokens = tokens(530);
    let tiny = Tiny::new(Shape::of("qwen2", TensorKind::Q8_0));
    let load = |threads, kv| tiny.load_as(threads, &CpuOptions { kv, ..CpuOptions::default() }).unwrap();
    let mut model = load(1, KvDtype::Int8);
    let expected = logits(&mut model, &tokens, 530).unwrap();
    for level in Level::available() {
        for (threads, chunk) in [(1, 64), (2, 7), (3, 530)] {
            let mut model = load(threads, KvDtype::Int8);
            model.set_level(level);
            let what = format!("{level}, {threads} threads, chunks of {chunk}");
            assert_equal(&logits(&mut model, &tokens, chunk).unwrap(), &expected, &what);
        }
        model.set_level(level);
        assert_batch_equals_alone(&mut model, &tokens[..40], &format!("{level}"));
    }
    let halves = logits(&mut load(1, KvDtype::F16), &tokens, 530).unwrap();
    // The first row sees one key: its score does not matter, its value does.
    let distance = |a: &[f32], b: &[f32]| -> f32 {
        let (difference, size): (Vec<f32>, Vec<f32>) =
            a.iter().zip(b).map(|(a, b)| ((a - b).powi(2), b * b)).unzip();
        (difference.iter().sum::<f32>() / size.iter().sum::<f32>()).sqrt()
    };
    let distances: Vec<f32> = expected.iter().zip(&halves).map(|(a, b)| distance(a, b)).collect();
    let worst = distances.iter().copied().fold(0.0, f32::max);
    assert!(worst > 0.0 && worst < 0.1, "{distances:?}");
}
