//! Embedding, RMS norm, SiLU gate and the tokens of a draw against references in f64, over poison.

use super::*;
use crate::cuda::linear::Norm;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];
/// Widths that one round of a block's threads holds, and such as take more; 896 is Qwen2.5-0.5B's, 12288 beyond what is kept.
const WIDTHS: [usize; 5] = [64, 576, 896, 4096, 12_288];
const ROWS: usize = 7;

/// Of a value that is rounded to the dtype, relative to it; and what one is off where the dtype has no smaller ones.
fn bounds(dtype: Dtype) -> (f64, f64) {
    match dtype {
        Dtype::F32 => (2e-6, 1e-35),
        Dtype::Bf16 => (4e-3, 1e-35),
        Dtype::F16 => (5e-4, 6e-8),
    }
}

fn kernels(device: &Device, dtype: Dtype) -> Elementwise {
    Elementwise::new(device, Cells { dtype, kept: KvKept::Dtype, head_dim: 64 }).unwrap()
}

fn rounded(dtype: Dtype, values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|x| dtype.round(x)).collect()
}

fn ints(device: &Device, values: &[i32]) -> Buffer {
    Buffer::of(device, "a test's numbers", values).unwrap()
}

/// A row more than is written: it must stay poison.
fn poisoned(device: &Device, dtype: Dtype, width: usize) -> Buffer {
    dtype.upload(device, "poison", &vec![f32::NAN; (ROWS + 1) * width]).unwrap()
}

/// Every value by itself: (relative, absolute) bounds.
fn check(device: &Device, dtype: Dtype, out: &Buffer, expected: &[f64], bounds: (f64, f64), what: &str) {
    let width = expected.len() / ROWS;
    let found = dtype.download(device, out, 0, (ROWS + 1) * width).unwrap();
    let (written, behind) = found.split_at(ROWS * width);
    for (i, (found, expected)) in written.iter().zip(expected).enumerate() {
        let near = (f64::from(*found) - expected).abs() <= bounds.0 * expected.abs() + bounds.1;
        assert!(near, "{what}, row {}, value {}: {found} for {expected}", i / width, i % width);
    }
    assert!(behind.iter().all(|x| x.is_nan()), "{what}: written beyond the last row");
}

#[test]
fn rows_are_those_of_the_embedding_and_padding_is_zeros() {
    let Some(device) = device() else { return };
    let mut random = Random::new(41);
    const VOCAB: usize = 50;
    for dtype in DTYPES {
        for width in WIDTHS {
            let table = rounded(dtype, random.normals(VOCAB * width));
            let embedding = dtype.upload(&device, "embedding", &table).unwrap();
            // A row of padding has a token that no row has.
            let (tokens, slots) = ([0, 49, 7, i32::MAX, 7, -1, 1], [0, 1, 0, -1, 5, -1, 2]);
            let (token_list, slot_list) = (ints(&device, &tokens), ints(&device, &slots));
            let rows = Rows {
                count: ROWS as u32,
                tokens: token_list.at(0),
                positions: 0,
                slots: slot_list.at(0),
                stored: 0,
            };
            let x = poisoned(&device, Dtype::F32, width);
            kernels(&device, dtype).embed(&device, &embedding, rows, x.at(0), width as u32).unwrap();
            let row = |(token, slot): (i32, i32)| match slot {
                -1 => vec![0.0; width],
                _ => table[token as usize * width..][..width].iter().map(|x| f64::from(*x)).collect(),
            };
            let expected: Vec<f64> = tokens.into_iter().zip(slots).flat_map(row).collect();
            check(&device, Dtype::F32, &x, &expected, (0.0, 0.0), &format!("{dtype:?} {width}"));
        }
    }
}

#[test]
fn rows_are_normed_all_of_them_or_those_that_pick() {
    let Some(device) = device() else { return };
    let mut random = Random::new(43);
    const EPSILON: f32 = 1e-5;
    // Sizes far apart; beside zeros and what is tiny epsilon counts.
    let sizes = [1.0, 300.0, 1e-3, 0.0, 1e4, 1.0, 1e-6];
    for dtype in DTYPES {
        for width in WIDTHS {
            let x: Vec<f32> = sizes
                .iter()
                .flat_map(|size| random.normals(width).into_iter().map(move |x| x * size))
                .collect();
            let weight = random.normals(width);
            let (weights, from) =
                (Buffer::of(&device, "weights", &weight).unwrap(), Buffer::of(&device, "x", &x));
            let norm = Norm { weight: weights.at(0), epsilon: EPSILON };
            let order = [6, 0, 0, 2, 5, 1, 3];
            let picked = ints(&device, &order);
            for (picked, order) in [(None, [0, 1, 2, 3, 4, 5, 6]), (Some(picked.at(0)), order)] {
                let out = poisoned(&device, dtype, width);
                let (from, to) = (from.as_ref().unwrap().at(0), out.at(0));
                let (rows, hidden) = (ROWS as u32, width as u32);
                let kernels = kernels(&device, dtype);
                kernels.rms_norm(&device, from, picked, rows, norm, to, hidden).unwrap();
                let row = |index: i32| {
                    let row = &x[index as usize * width..][..width];
                    let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                    let scale = 1.0 / (squares / width as f64 + f64::from(EPSILON)).sqrt();
                    let normed =
                        row.iter().zip(&weight).map(move |(x, w)| f64::from(*x) * scale * f64::from(*w));
                    normed.collect::<Vec<f64>>()
                };
                let expected: Vec<f64> = order.into_iter().flat_map(row).collect();
                let what = format!("{dtype:?} {width}, chosen: {}", picked.is_some());
                check(&device, dtype, &out, &expected, bounds(dtype), &what);
            }
        }
    }
}

#[test]
fn gates_open_as_silu_says() {
    let Some(device) = device() else { return };
    let mut random = Random::new(47);
    for dtype in DTYPES {
        for width in WIDTHS {
            let mut both = rounded(dtype, random.normals(ROWS * 2 * width));
            // Gates far open and far shut.
            for row in both.chunks_mut(2 * width) {
                for (i, x) in row[..width].iter_mut().step_by(5).enumerate() {
                    *x = dtype.round(*x * [1.0, 20.0, 200.0][i % 3]);
                }
            }
            let from = dtype.upload(&device, "gate and up", &both).unwrap();
            let out = poisoned(&device, dtype, width);
            let kernels = kernels(&device, dtype);
            kernels.silu_mul(&device, from.at(0), out.at(0), ROWS as u32, width as u32).unwrap();
            let row = |row: &[f32]| {
                let (gate, up) = row.split_at(width);
                let value = |(g, u): (&f32, &f32)| {
                    let g = f64::from(*g);
                    g / (1.0 + (-g).exp()) * f64::from(*u)
                };
                gate.iter().zip(up).map(value).collect::<Vec<f64>>()
            };
            let expected: Vec<f64> = both.chunks(2 * width).flat_map(row).collect();
            // e^x of a large x is some 30 units of the last place off.
            let (relative, absolute) = bounds(dtype);
            let bounds = (relative + 3e-5, absolute);
            check(&device, dtype, &out, &expected, bounds, &format!("{dtype:?} {width}"));
        }
    }
}

#[test]
fn tokens_of_a_draw_are_taken_and_what_is_none_becomes_zero() {
    let Some(device) = device() else { return };
    const VOCAB: i32 = 1000;
    // Pairs of token and status; the last three are no tokens.
    let drawn: Vec<i32> = [17, 999, 0, 500, -1, VOCAB, i32::MAX].into_iter().flat_map(|t| [t, 9]).collect();
    let rows: Vec<i32> = (0..300).map(|i| i * 5 % 7).collect();
    let (pairs, tokens) = (ints(&device, &drawn), ints(&device, &[&rows[..], &[77]].concat()));
    let (count, vocab) = (rows.len() as u32, VOCAB as u32);
    kernels(&device, Dtype::F32).take_tokens(&device, tokens.at(0), pairs.at(0), count, vocab).unwrap();
    let found: Vec<i32> = tokens.read(&device, 0, rows.len() + 1).unwrap();
    let taken = |row: &i32| Some(drawn[2 * *row as usize]).filter(|t| (0..VOCAB).contains(t)).unwrap_or(0);
    let expected: Vec<i32> = rows.iter().map(taken).chain([77]).collect();
    assert_eq!(found, expected);
}
