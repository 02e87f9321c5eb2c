use super::super::inputs::Source;
use super::super::packed::{Rows, pack};
use super::*;
use crate::quant::emulation;
use crate::weights::Matrix;

/// SplitMix64 (Steele, Lea and Flood 2014).
fn noise(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

struct Case {
    matrix: Matrix,
    rows: Vec<Vec<u8>>,
    x: Vec<f32>,
    count: usize,
}

/// A random matrix and `count` rows of inputs, among them a block of zeros and one huge value.
fn case(format: Format, outputs: usize, blocks: usize, count: usize, seed: u64) -> Case {
    let mut next = noise(seed);
    let rows: Vec<Vec<u8>> = (0..outputs).map(|_| emulation::random_row(format, blocks, &mut next)).collect();
    let inputs = blocks * format.block().0;
    let mut x: Vec<f32> = (0..count * inputs).map(|_| (next() as i32 as f32) * 2f32.powi(-30)).collect();
    let zeros = inputs.min(256);
    x[..zeros].fill(0.0);
    if let Some(x) = x.last_mut() {
        *x = 1e6;
    }
    let matrix = Matrix::in_memory(format, outputs, inputs, &rows.concat());
    Case { matrix, rows, x, count }
}

/// At one level, after another product, with two threads.
fn product(level: Level, case: &Case) -> Vec<f32> {
    let mut pool = Pool::new(2).unwrap();
    let weight = pack(&[Rows::all(&case.matrix)], &mut pool).unwrap().remove(0);
    let (mut inputs, mut out) = (Inputs::default(), vec![f32::NAN; 3]);
    inputs.float_mut(case.count, weight.inputs).copy_from_slice(&case.x);
    inputs.set(&mut pool, level, (case.count, weight.inputs), Source::There, [&weight]);
    multiply(&mut pool, level, &inputs, [(&weight, &mut out)]);
    out
}

#[test]
fn every_format_at_every_level_equals_the_scalar_definition_to_the_bit() {
    let mut products = 0;
    for format in emulation::ALL {
        // Element formats also with a number of inputs that is no multiple of their 16 accumulators.
        let widths: &[usize] = if format.block().0 == 1 { &[48, 77] } else { &[1, 3] };
        for (i, &blocks) in widths.iter().enumerate() {
            for (outputs, count) in [(16, 1), (35, 1), (5, 2), (16, 3), (11, 4), (9, 7), (24, 9), (40, 18)] {
                let case = case(format, outputs, blocks, count, (outputs * 31 + count + i) as u64);
                let width = case.matrix.inputs;
                let expected: Vec<f32> = case
                    .x
                    .chunks_exact(width)
                    .flat_map(|x| case.rows.iter().map(|row| emulation::product(format, row, x)))
                    .collect();
                for level in Level::available() {
                    let found = product(level, &case);
                    assert_eq!(found.len(), expected.len());
                    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        assert_eq!(
                            found.to_bits(),
                            expected.to_bits(),
                            "{format:?} {outputs}x{width}, {count} rows, {level}, value {i}: {found} != {expected}"
                        );
                        products += 1;
                    }
                }
            }
        }
    }
    println!("{products} outputs compared at {:?}", Level::available());
}

/// The definition means what it should: the product of the weights and of the rounded inputs.
#[test]
fn the_scalar_definition_is_the_product_of_the_weights() {
    for format in emulation::ALL {
        let elems = format.block().0;
        let case = case(format, 6, if elems == 1 { 96 } else { 3 }, 2, 5);
        let rounded = |x: &[f32]| {
            let (s, q) = emulation::quantise(x);
            q.into_iter().map(move |q| f64::from(s) * f64::from(q))
        };
        for x in case.x.chunks_exact(case.matrix.inputs) {
            let meant: Vec<f64> = match elems {
                1 => x.iter().map(|x| f64::from(*x)).collect(),
                _ => x.chunks_exact(elems).flat_map(rounded).collect(),
            };
            for (r, row) in case.rows.iter().enumerate() {
                let terms: Vec<f64> =
                    emulation::weights(format, row).iter().zip(&meant).map(|(w, x)| w * x).collect();
                let found = f64::from(emulation::product(format, row, x));
                let error = (found - terms.iter().sum::<f64>()).abs();
                // Products and minima cancel, so the error is measured against their size.
                let size: f64 = terms.iter().map(|t| t.abs()).sum();
                assert!(error <= 2e-6 * size, "{format:?} row {r}: {found}, off by {error:e} of {size}");
            }
        }
    }
}

#[test]
fn dequantised_rows_are_the_defined_weights() {
    for format in emulation::ALL {
        let blocks = if format.block().0 == 1 { 40 } else { 4 };
        let case = case(format, 7, blocks, 1, 9);
        let mut found = vec![0.0; case.matrix.inputs];
        for (r, row) in case.rows.iter().enumerate() {
            case.matrix.dequantise_row(r, &mut found);
            for (i, (found, expected)) in found.iter().zip(emulation::weights(format, row)).enumerate() {
                // Scales times minima of K formats round before they are subtracted.
                let error = (f64::from(*found) - expected).abs();
                assert!(error <= 1e-6 * expected.abs() + 1e-6, "{format:?} row {r} element {i}: {found}");
            }
        }
    }
}

#[test]
fn broken_inputs_reach_the_outputs() {
    for format in emulation::ALL {
        for broken in [f32::NAN, f32::INFINITY] {
            let blocks = if format.block().0 == 1 { 40 } else { 2 };
            let mut case = case(format, 9, blocks, 2, 1);
            case.x[3] = broken;
            for level in Level::available() {
                let found = product(level, &case);
                assert!(found[..9].iter().all(|y| !y.is_finite()), "{format:?} {level}");
            }
        }
    }
}
