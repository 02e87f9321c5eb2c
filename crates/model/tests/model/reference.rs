//! Logits against independent forward passes: a naive one on small models, candle on SmolLM2.

mod candle;
pub(crate) mod naive;

use gguf::TensorKind;

use crate::steps::logits;
use crate::tiny::{Shape, Tiny, tokens};

/// Relative distance of two rows of logits, each taken from its own mean: a constant added to all
/// logits changes no probability.
pub(crate) fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let center = |row: Vec<f64>| {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        row.into_iter().map(move |l| l - mean).collect::<Vec<f64>>()
    };
    let found = center(found.iter().map(|l| f64::from(*l)).collect());
    let expected = center(expected.to_vec());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let off = square(&mut found.iter().zip(&expected).map(|(f, e)| f - e));
    (off / square(&mut expected.iter().copied())).sqrt()
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn f32_weights_give_the_logits_of_a_naive_pass() {
    // 600 keys are more than one span of attention. Their bound is wider for a reason of its own: where
    // a key lies between two half floats, an error of 1e-7 decides which one it becomes. Inputs of the
    // naive pass changed by 3e-7 move its own logits by 2e-5 at this length.
    for (architecture, tied, window, length, bound) in [
        ("llama", true, None, 50, 1e-5),
        ("llama", false, None, 50, 1e-5),
        ("qwen2", true, None, 50, 1e-5),
        ("qwen2", false, None, 50, 1e-5),
        ("qwen3", true, None, 50, 1e-5),
        ("llama", true, Some(1), 50, 1e-5),
        ("llama", true, Some(20), 50, 1e-5),
        ("llama", false, None, 600, 1e-4),
        ("qwen2", true, None, 600, 1e-4),
        ("qwen3", false, None, 600, 1e-4),
        // The window leaves the first span behind; a window over both spans; one at their edge.
        ("llama", true, Some(40), 600, 1e-4),
        ("llama", true, Some(500), 600, 1e-4),
        ("llama", true, Some(512), 600, 1e-4),
    ] {
        let tiny = Tiny::new(Shape { tied, ..Shape::of(architecture, TensorKind::F32) });
        let tiny = window.map_or(tiny.clone(), |window| tiny.windowed(window));
        let tokens = tokens(length);
        let found = logits(&mut tiny.load(2).unwrap(), &tokens, 200).unwrap();
        let expected = naive::logits(&tiny, &tokens, None);
        let distances: Vec<f64> = found.iter().zip(&expected).map(|(f, e)| distance(f, e)).collect();
        let worst = distances.iter().copied().fold(0.0, f64::max);
        let median = median(distances);
        println!(
            "{architecture}, tied {tied}, window {window:?}, {length}: median {median:.1e}, worst {worst:.1e}"
        );
        assert!(
            median <= bound,
            "{architecture}, tied {tied}, window {window:?}, {length}: median {median:e}"
        );
        assert!(
            worst <= 10.0 * bound,
            "{architecture}, tied {tied}, window {window:?}, {length}: worst {worst:e}"
        );
    }
}
