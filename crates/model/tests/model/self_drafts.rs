//! Drafts of the first layers: the step that goes on behind them gives what it would have given, to the bit.

use engine::{Model, ModelError, SaidBy, SelfDraft};
use gguf::{Array, TensorKind, Value};
use kvcache::{ClassId, HeadClass, HeadMap, PageId, pages_for};
use model::CpuModel;
use request::{Sampling, SamplingParams, TokenId};
use scheduler::Slot;

use crate::bits::assert_equal;
use crate::steps::{Sequences, clear, logits};
use crate::tiny::{LAYERS, Shape, Tensor, Tiny, VOCAB, tokens};

fn ask(token: u32, position: usize, exit: u32, most: u32) -> SelfDraft {
    SelfDraft {
        slot: Slot(0),
        token: TokenId(token),
        position: position as u32,
        exit,
        window: None,
        most,
        stop: None,
        stop_ids: Vec::new(),
        sampling: Sampling { params: SamplingParams::at(1.0), seed: 4, choice: 0 },
        watch: true,
    }
}

/// Prefills all but the last token of `prompt` in slot 0.
fn prefill(model: &mut CpuModel, sequences: &mut Sequences, prompt: &[u32]) {
    let mut step = sequences.step(&[(0, 0, &prompt[..prompt.len() - 1])]);
    step.deltas.insert(0, clear(0));
    model.logits(&step).unwrap();
}

#[test]
fn a_step_behind_its_own_drafts_has_the_bits_of_one_without() {
    for (architecture, kind, window) in [
        ("llama", TensorKind::Q4_0, None),
        ("qwen2", TensorKind::Q5_K, None),
        ("qwen3", TensorKind::F32, None),
        ("llama", TensorKind::Q8_0, Some(11)),
    ] {
        let tiny = Tiny::new(Shape { layers: 4, ..Shape::of(architecture, kind) });
        let tiny = window.map_or(tiny.clone(), |window| tiny.windowed(window));
        let (mut model, mut plain) = (tiny.load(2).unwrap(), tiny.load(1).unwrap());
        let layers = model.spec().layered.unwrap().layers;
        assert!(layers > 1);
        // Drafts begin at each side of a page's border, and reach over it and over a span.
        for length in [2, 15, 16, 17, 33, 505] {
            for exit in 1..layers {
                // All of the drafts; the first two and another; none of them; none were made, only watched.
                for (most, keep, other) in [(16, 16, None), (16, 2, Some(7)), (16, 0, None), (0, 0, Some(7))]
                {
                    let prompt = tokens(length);
                    let mut sequences = Sequences::new(1, 64);
                    prefill(&mut model, &mut sequences, &prompt);
                    let last = prompt[length - 1];
                    let drafts = model.self_draft(&ask(last, length - 1, exit, most)).unwrap();
                    assert_eq!(drafts.len(), most as usize);
                    let drafts = drafts.into_iter().map(|(id, _)| id.0).take(keep).chain(other);
                    let rows: Vec<u32> = std::iter::once(last).chain(drafts).collect();
                    let step = sequences.step(&[(0, length as u32 - 1, &rows)]);
                    let found: Vec<Vec<f32>> =
                        model.logits(&step).unwrap().into_iter().map(|(_, l)| l).collect();
                    let text = [&prompt[..length - 1], &rows].concat();
                    let expected = logits(&mut plain, &text, 64).unwrap()[length - 1..].to_vec();
                    let what =
                        format!("{architecture} {kind}, {length} tokens, exit {exit}, {keep} of {most} kept");
                    assert_equal(&found, &expected, &what);
                    // And so has what follows.
                    let next = sequences.step(&[(0, text.len() as u32, &[5])]);
                    let found: Vec<Vec<f32>> =
                        model.logits(&next).unwrap().into_iter().map(|(_, l)| l).collect();
                    let expected = logits(&mut plain, &[text, vec![5]].concat(), 64).unwrap().pop().unwrap();
                    assert_equal(&found, &[expected], &format!("{what}, after it"));
                }
            }
        }
    }
}

/// What a layer would have said is what it says as the exit, at the rows of the draft and at those that only the step
/// computed; and what it says depends on the layer.
#[test]
fn shadow_tokens_are_what_the_layer_drafts() {
    let tiny = Tiny::new(Shape { layers: 5, ..Shape::of("llama", TensorKind::F32) });
    let mut model = tiny.load(1).unwrap();
    let layers = model.spec().layered.unwrap().layers;
    let prompt = tokens(20);
    let mut told = Vec::new();
    for exit in 1..layers {
        let mut sequences = Sequences::new(1, 64);
        prefill(&mut model, &mut sequences, &prompt);
        let asked = ask(prompt[19], 19, exit, 4);
        let drafts = model.self_draft(&asked).unwrap();
        let rows: Vec<u32> = std::iter::once(prompt[19]).chain(drafts.iter().map(|(id, _)| id.0)).collect();
        model.logits(&sequences.step(&[(0, 19, &rows)])).unwrap();
        let said = model.said(Slot(0), 5, &asked.sampling).unwrap();
        assert!(said.iter().all(|by| by.said.len() == 5), "{said:?}");
        assert!(said.iter().flat_map(|by| &by.said).all(|(_, sure)| (0.0..=1.0).contains(sure)), "{said:?}");
        let of_exit = said.iter().find(|by| by.exit == exit);
        // Only the lower half is heard.
        let Some(SaidBy { said: shadows, .. }) = of_exit else { continue };
        assert_eq!(shadows[..4], drafts, "exit {exit}");
        told.push(drafts);
    }
    told.dedup();
    assert!(told.len() > 1, "layers differ: {told:?}");
}

#[test]
fn nonsense_is_refused_and_leaves_nothing_behind() {
    let mut model = Tiny::new(Shape::of("llama", TensorKind::F32)).load(1).unwrap();
    let layers = model.spec().layered.unwrap().layers;
    let prompt = tokens(5);
    let mut sequences = Sequences::new(4, 64);
    prefill(&mut model, &mut sequences, &prompt);
    for asked in [
        ask(1, 4, 0, 2),
        ask(1, 4, layers, 2),
        ask(1, 4, 1, 17),
        ask(1, 40, 1, 2),
        ask(1 << 20, 4, 1, 2),
        SelfDraft { slot: Slot(9), ..ask(1, 4, 1, 2) },
        SelfDraft { slot: Slot(1), ..ask(1, 4, 1, 2) },
    ] {
        let refused = model.self_draft(&asked);
        assert!(
            matches!(refused, Err(ModelError::OutOfRange { .. } | ModelError::NoPage { .. })),
            "{asked:?}: {refused:?}"
        );
        assert!(model.said(Slot(0), 1, &Sampling::GREEDY).is_err());
    }
    let found = model.logits(&sequences.step(&[(0, 4, &prompt[4..])])).unwrap();
    let mut plain = Tiny::new(Shape::of("llama", TensorKind::F32)).load(1).unwrap();
    assert_eq!(found[0].1, logits(&mut plain, &prompt, 64).unwrap()[4]);
}

/// A file that says after which layers its model speaks, and with which tokens: only those are heard and drafted, and
/// the step is what it would have been.
#[test]
fn a_trained_model_drafts_with_its_own_tokens() {
    let mut tiny = Tiny::new(Shape { layers: 5, ..Shape::of("llama", TensorKind::Q8_0) });
    let plain_model = tiny.load(1).unwrap();
    let listed: Vec<i32> = (0..VOCAB as i32).filter(|id| id % 3 == 1).collect();
    tiny.key("paceline.early.layers", Value::Array(Array::I32(vec![1, 4])));
    tiny.key("paceline.early.tokens", Value::Array(Array::I32(listed.clone())));
    let (mut model, mut plain) = (tiny.load(2).unwrap(), plain_model);
    let dearer = plain.spec().layered.unwrap().draft;
    assert!(model.spec().layered.unwrap().draft < dearer / 2.0, "a third of the head");
    let prompt = tokens(20);
    let mut sequences = Sequences::new(1, 64);
    prefill(&mut model, &mut sequences, &prompt);
    let asked = ask(prompt[19], 19, 2, 16);
    let drafts = model.self_draft(&asked).unwrap();
    assert!(drafts.iter().all(|(id, _)| listed.contains(&(id.0 as i32))), "{drafts:?}");
    let rows: Vec<u32> = std::iter::once(prompt[19]).chain(drafts.iter().map(|(id, _)| id.0)).collect();
    let found = model.logits(&sequences.step(&[(0, 19, &rows)])).unwrap();
    let expected = logits(&mut plain, &[&prompt[..19], &rows].concat(), 64).unwrap();
    let found: Vec<Vec<f32>> = found.into_iter().map(|(_, logits)| logits).collect();
    assert_equal(&found, &expected[19..], "the head of the target has all tokens");
    let said = model.said(Slot(0), 17, &asked.sampling).unwrap();
    assert_eq!(said.iter().map(|by| by.exit).collect::<Vec<_>>(), [1, 4]);
    assert!(said.iter().flat_map(|by| &by.said).all(|(id, _)| listed.contains(&(id.0 as i32))));
}

/// A matrix of zeros between a layer and the norm makes all drafted tokens equally likely there, and nowhere else.
#[test]
fn an_exit_passes_its_own_matrix() {
    let shape = Shape { layers: 5, ..Shape::of("llama", TensorKind::Q8_0) };
    let mut tiny = Tiny::new(shape.clone());
    let side = shape.hidden as u64;
    let bytes = vec![0; shape.hidden * shape.hidden / 32 * 34];
    let zeros = Tensor { dims: vec![side, side], kind: TensorKind::Q8_0, bytes };
    tiny.tensors.insert("blk.1.early.weight".to_owned(), zeros.clone());
    tiny.key("paceline.early.layers", Value::Array(Array::I32(vec![1, 2, 3])));
    tiny.key("paceline.early.tokens", Value::Array(Array::I32((10..50).collect())));
    let (mut model, mut plain) = (tiny.load(2).unwrap(), Tiny::new(shape.clone()).load(1).unwrap());
    let prompt = tokens(20);
    for exit in [1, 2, 3] {
        let mut sequences = Sequences::new(1, 64);
        prefill(&mut model, &mut sequences, &prompt);
        let asked = ask(prompt[19], 19, exit, 3);
        let drafts = model.self_draft(&asked).unwrap();
        let even = |sure: f64| (sure - 1.0 / 40.0).abs() < 1e-6;
        assert!(drafts.iter().all(|(_, sure)| even(*sure) == (exit == 2)), "exit {exit}: {drafts:?}");
        let rows: Vec<u32> = std::iter::once(prompt[19]).chain(drafts.iter().map(|(id, _)| id.0)).collect();
        let found = model.logits(&sequences.step(&[(0, 19, &rows)])).unwrap();
        let found: Vec<Vec<f32>> = found.into_iter().map(|(_, logits)| logits).collect();
        let expected = logits(&mut plain, &[&prompt[..19], &rows].concat(), 64).unwrap();
        assert_equal(&found, &expected[19..], &format!("the model behind exit {exit} is the same"));
        for SaidBy { exit, said } in model.said(Slot(0), 4, &asked.sampling).unwrap() {
            assert!(said.iter().all(|(_, sure)| even(*sure) == (exit == 2)), "layer {exit}: {said:?}");
        }
    }
    let mut narrow = Tiny::new(shape);
    narrow.tensors.insert("blk.1.early.weight".to_owned(), Tensor { dims: vec![side, side / 2], ..zeros });
    assert!(narrow.load(1).unwrap_err().to_string().contains("blk.1.early.weight"));
}

#[test]
fn what_a_file_says_of_early_exit_is_checked() {
    for (key, numbers) in [
        ("paceline.early.layers", vec![0, 1]),
        ("paceline.early.layers", vec![5]),
        ("paceline.early.layers", vec![2, 2]),
        ("paceline.early.tokens", vec![-1, 3]),
        ("paceline.early.tokens", vec![3, 1]),
        ("paceline.early.tokens", vec![VOCAB as i32]),
    ] {
        let mut tiny = Tiny::new(Shape { layers: 5, ..Shape::of("llama", TensorKind::Q8_0) });
        tiny.key(key, Value::Array(Array::I32(numbers)));
        let error = tiny.load(1).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("rising order"), "{error}");
    }
    let mut floats = Tiny::new(Shape::of("llama", TensorKind::F32));
    floats.key("paceline.early.tokens", Value::Array(Array::I32(vec![1, 2])));
    assert!(floats.load(1).unwrap_err().to_string().contains("quantised output layers"));
}

fn over(window: HeadClass, length: usize, last: u32, most: u32, layers: u32) -> SelfDraft {
    SelfDraft { exit: layers, window: Some(window), watch: false, ..ask(last, length - 1, 1, most) }
}

/// Drafts over a window are what a model would say whose heads have that window and whose past was computed by one that
/// sees everything; and the step behind them has the bits of one without.
#[test]
fn drafts_over_a_window_see_the_window_of_what_is_there() {
    for (architecture, kind) in [("llama", TensorKind::Q4_0), ("qwen3", TensorKind::Q8_0)] {
        let tiny = Tiny::new(Shape::of(architecture, kind));
        let (mut model, mut plain) = (tiny.load(2).unwrap(), tiny.load(1).unwrap());
        let layers = model.spec().layered.unwrap().layers;
        let mut told = 0;
        for (length, sink, recent) in [(40, 3, 9), (40, 0, 1), (560, 17, 30), (530, 2, 600), (33, 16, 16)] {
            let window = HeadClass::Window { sink, recent };
            let heads = HeadMap::uniform(window, LAYERS, 2);
            let mut narrow = tiny.load_heads(1, heads).unwrap();
            assert!(!narrow.spec().layered.unwrap().windows);
            let what = format!("{architecture}, {length} tokens, {window:?}");
            let prompt = tokens(length);
            let (mut ours, mut theirs) = (Sequences::new(1, 64), Sequences::new(1, 64));
            prefill(&mut model, &mut ours, &prompt);
            prefill(&mut narrow, &mut theirs, &prompt);
            for page in 0..pages_for(length as u32 - 1) {
                for layer in 0..layers {
                    let mut bytes = Vec::new();
                    model.export(ClassId(0), PageId(page), layer, &mut bytes).unwrap();
                    narrow.import(ClassId(0), PageId(page), layer, &bytes).unwrap();
                }
            }
            let last = prompt[length - 1];
            let asked = over(window, length, last, 9, layers);
            let drafts = model.self_draft(&asked).unwrap();
            assert_eq!(drafts.len(), 9, "{what}");
            let rows: Vec<u32> = std::iter::once(last).chain(drafts.iter().map(|(id, _)| id.0)).collect();
            for (position, pair) in (length as u32 - 1..).zip(rows.windows(2)) {
                let found = narrow.logits(&theirs.step(&[(0, position, &pair[..1])])).unwrap();
                let said = sampling::pick(&found[0].1, &asked.sampling, position + 1).unwrap();
                assert_eq!(said.0, pair[1], "{what}: at {position}");
            }
            let found = model.logits(&ours.step(&[(0, length as u32 - 1, &rows)])).unwrap();
            let found: Vec<Vec<f32>> = found.into_iter().map(|(_, logits)| logits).collect();
            let expected = logits(&mut plain, &[&prompt[..length - 1], &rows].concat(), 64).unwrap();
            assert_equal(&found, &expected[length - 1..], &what);
            let said = |(at, row): (usize, &Vec<f32>)| {
                sampling::pick(row, &asked.sampling, (length + at) as u32).unwrap().0
            };
            let right = found.iter().enumerate().map(said).zip(&rows[1..]).filter(|(a, b)| a == *b).count();
            assert!(recent < 600 || right == 9, "{what}: a window of everything is always right");
            told += usize::from(right < 9);
        }
        assert!(told > 0, "{architecture}: what lies beyond a window matters");
    }
}

#[test]
fn windows_are_refused_where_they_are_not_built() {
    let tiny = Tiny::new(Shape::of("llama", TensorKind::F32));
    let mut model = tiny.load(1).unwrap();
    let layers = model.spec().layered.unwrap().layers;
    let prompt = tokens(5);
    prefill(&mut model, &mut Sequences::new(1, 64), &prompt);
    let window = HeadClass::Window { sink: 1, recent: 2 };
    let asked = over(window, 5, prompt[4], 2, layers);
    assert!(matches!(
        model.self_draft(&SelfDraft { exit: layers - 1, ..asked.clone() }),
        Err(ModelError::OutOfRange { .. })
    ));
    assert_eq!(model.self_draft(&asked).unwrap().len(), 2);
    let mut windowed = tiny.windowed(3).load(1).unwrap();
    prefill(&mut windowed, &mut Sequences::new(1, 64), &prompt);
    assert!(matches!(windowed.self_draft(&asked), Err(ModelError::Unsupported { .. })));
}
