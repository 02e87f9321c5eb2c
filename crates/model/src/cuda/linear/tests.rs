use super::super::testing::{Random, device, relative};
use super::*;

#[test]
fn an_output_layer_is_walked_others_have_a_block_a_tile() {
    assert_eq!(geometry(4096, None, 132), Launch { grid: [256, 1, 1], threads: 256, shared: 0 });
    assert_eq!(geometry(128_256, None, 132).grid, [264, 1, 1]);
}

struct Case {
    x: Vec<f32>,
    w: Vec<f32>,
    norm: Vec<f32>,
    inputs: usize,
}

impl Case {
    fn new(random: &mut Random, dtype: Dtype, rows: usize, inputs: usize, outputs: usize) -> Self {
        let rounded = |values: Vec<f32>| values.into_iter().map(|v| dtype.round(v)).collect();
        Self {
            x: rounded(random.normals(rows * inputs)),
            w: rounded(random.normals(outputs * inputs)),
            norm: random.normals(inputs),
            inputs,
        }
    }

    /// In f64; with `norm`, of the normed inputs (not rounded).
    fn product(&self, norm: bool) -> Vec<f64> {
        let mut out = Vec::new();
        for x in self.x.chunks_exact(self.inputs) {
            let squares: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
            let scale = if norm { 1.0 / (squares / self.inputs as f64 + 1e-5).sqrt() } else { 1.0 };
            let weight = |k: usize| if norm { f64::from(self.norm[k]) } else { 1.0 };
            for w in self.w.chunks_exact(self.inputs) {
                let sum: f64 = x
                    .iter()
                    .zip(w)
                    .enumerate()
                    .map(|(k, (x, w))| f64::from(*x) * weight(k) * f64::from(*w))
                    .sum();
                out.push(sum * scale);
            }
        }
        out
    }
}

const SIZES: [(usize, usize); 5] = [(64, 32), (576, 96), (896, 4864), (1536, 256), (4096, 64)];

fn poisoned(device: &Device, dtype: Dtype, count: usize) -> Buffer {
    dtype.upload(device, "poison", &vec![f32::NAN; count]).unwrap()
}

/// Rows alone and beside others, against f64; nothing is left unwritten.
#[test]
fn products_of_few_and_many_rows() {
    let Some(device) = device() else { return };
    let mut random = Random::new(1);
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        // Of the stored result; sums themselves are float.
        let (bound, float) = (if dtype == Dtype::F32 { 1e-6 } else { 4e-3 }, 2e-6);
        for mode in [Mode::Fast, Mode::Invariant] {
            let linear = Linear::new(&device, dtype, mode).unwrap();
            for (inputs, outputs) in SIZES {
                for rows in [1, 2, 7, 8, 9, 33] {
                    let case = Case::new(&mut random, dtype, rows, inputs, outputs);
                    let padded = Linear::padded(mode, rows as u32) as usize;
                    let w = Dense {
                        weights: dtype.upload(&device, "w", &case.w).unwrap(),
                        outputs: outputs as u32,
                        inputs: inputs as u32,
                    };
                    let mut x = dtype.upload(&device, "x", &vec![0.0; padded * inputs]).unwrap();
                    dtype.write(&device, &mut x, 0, &case.x).unwrap();
                    let expected = case.product(false);
                    let what = format!("{dtype:?} {mode:?} {rows} x {inputs} x {outputs}");

                    let out = poisoned(&device, dtype, padded * outputs);
                    linear.store(&device, &w, x.at(0), out.at(0), rows as u32).unwrap();
                    let found = dtype.download(&device, &out, 0, rows * outputs).unwrap();
                    assert!(
                        relative(&found, &expected) < bound,
                        "store {what}: {}",
                        relative(&found, &expected)
                    );

                    let out = poisoned(&device, Dtype::F32, padded * outputs);
                    linear.store_float(&device, &w, x.at(0), out.at(0), rows as u32).unwrap();
                    let found = Dtype::F32.download(&device, &out, 0, rows * outputs).unwrap();
                    assert!(relative(&found, &expected) < float, "{what}: {}", relative(&found, &expected));

                    let residual = Dtype::F32.upload(&device, "r", &vec![1.0; padded * outputs]).unwrap();
                    linear.add(&device, &w, x.at(0), residual.at(0), rows as u32).unwrap();
                    let found = Dtype::F32.download(&device, &residual, 0, rows * outputs).unwrap();
                    let more: Vec<f64> = expected.iter().map(|v| v + 1.0).collect();
                    assert!(relative(&found, &more) < float, "add {what}: {}", relative(&found, &more));
                }
            }
        }
    }
}

#[test]
fn norms_inside_products() {
    let Some(device) = device() else { return };
    let mut random = Random::new(2);
    let linear = Linear::new(&device, Dtype::Bf16, Mode::Fast).unwrap();
    for (inputs, outputs) in SIZES {
        for rows in 1..=2 {
            let case = Case::new(&mut random, Dtype::Bf16, rows, inputs, outputs);
            let w = Dense {
                weights: Dtype::Bf16.upload(&device, "w", &case.w).unwrap(),
                outputs: outputs as u32,
                inputs: inputs as u32,
            };
            let x = Buffer::of(&device, "x", &case.x).unwrap();
            let weight = Buffer::of(&device, "norm", &case.norm).unwrap();
            let norm = Norm { weight: weight.at(0), epsilon: 1e-5 };
            assert!(linear.norms(&w, rows as u32));
            let (expected, what) = (case.product(true), format!("{rows} x {inputs} x {outputs}"));

            let out = poisoned(&device, Dtype::Bf16, rows * outputs);
            linear.norm_store(&device, &w, norm, x.at(0), out.at(0), rows as u32).unwrap();
            let found = Dtype::Bf16.download(&device, &out, 0, rows * outputs).unwrap();
            assert!(relative(&found, &expected) < 5e-3, "{what}: {}", relative(&found, &expected));

            let out = poisoned(&device, Dtype::Bf16, rows * outputs / 2);
            linear.norm_gate(&device, &w, norm, x.at(0), out.at(0), rows as u32).unwrap();
            let found = Dtype::Bf16.download(&device, &out, 0, rows * outputs / 2).unwrap();
            let gated = gated(&expected, outputs);
            assert!(relative(&found, &gated) < 8e-3, "gate {what}: {}", relative(&found, &gated));
        }
    }
}

/// silu of the first half of each row times the second.
fn gated(rows: &[f64], outputs: usize) -> Vec<f64> {
    rows.chunks_exact(outputs)
        .flat_map(|both| {
            let (gate, up) = both.split_at(outputs / 2);
            gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u)
        })
        .collect()
}

/// The bits of a row do not depend on the rows beside it, in the fast kernels too; and in invariant mode not on how
/// many there are.
#[test]
fn a_row_alone_has_the_bits_it_has_in_a_batch() {
    let Some(device) = device() else { return };
    let mut random = Random::new(3);
    for (mode, batches) in [(Mode::Fast, vec![2, 8]), (Mode::Invariant, vec![2, 8, 32, 200])] {
        let linear = Linear::new(&device, Dtype::Bf16, mode).unwrap();
        let (inputs, outputs) = (2048usize, 1024usize);
        for rows in batches {
            let case = Case::new(&mut random, Dtype::Bf16, rows, inputs, outputs);
            let w = Dense {
                weights: Dtype::Bf16.upload(&device, "w", &case.w).unwrap(),
                outputs: outputs as u32,
                inputs: inputs as u32,
            };
            let compute = |x: &[f32]| {
                let rows = (x.len() / inputs) as u32;
                let padded = Linear::padded(mode, rows) as usize;
                let mut at = Dtype::Bf16.upload(&device, "x", &vec![0.0; padded * inputs]).unwrap();
                Dtype::Bf16.write(&device, &mut at, 0, x).unwrap();
                let out = poisoned(&device, Dtype::Bf16, padded * outputs);
                linear.store(&device, &w, at.at(0), out.at(0), rows).unwrap();
                Dtype::Bf16.download(&device, &out, 0, x.len() / inputs * outputs).unwrap()
            };
            let together = compute(&case.x);
            for (row, x) in case.x.chunks_exact(inputs).enumerate() {
                let alone = compute(x);
                assert_eq!(
                    alone,
                    together[row * outputs..(row + 1) * outputs],
                    "{mode:?}, row {row} of {rows}"
                );
            }
        }
    }
}
