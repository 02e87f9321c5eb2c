use super::super::testing::{Random, device, relative};
use super::*;

#[test]
fn shares_are_even_and_end_with_tiles_where_that_is_cheap() {
    // Of Llama-3.1-8B on 66 pairs of multiprocessors: q, k and v, o, gate and up, down.
    assert_eq!(
        [(24, 64), (16, 64), (112, 64), (16, 224)].map(|(tiles, chunks)| share(tiles, chunks, 66)),
        [24, 16, 109, 56]
    );
    for (tiles, chunks) in [(1, 2), (1, 64), (7, 3), (112, 64), (501, 64), (28, 80)] {
        let share = share(tiles, chunks, 66);
        assert!(share > 0 && (tiles * chunks).div_ceil(share) <= 66, "{tiles} {chunks}");
    }
}

/// A product's inputs, and its results in f64.
struct Case {
    inputs: usize,
    outputs: usize,
    x: Vec<f32>,
    w: Vec<f32>,
}

impl Case {
    fn new(random: &mut Random, rows: usize, inputs: usize, outputs: usize) -> Self {
        let rounded = |values: Vec<f32>| values.into_iter().map(|v| Dtype::Bf16.round(v)).collect();
        let (x, w) = (rounded(random.normals(rows * inputs)), rounded(random.normals(outputs * inputs)));
        Self { inputs, outputs, x, w }
    }

    fn product(&self) -> Vec<f64> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        let of = |x| self.w.chunks_exact(self.inputs).map(move |w| dot(x, w));
        self.x.chunks_exact(self.inputs).flat_map(of).collect()
    }

    fn dense(&self, device: &Device) -> Dense {
        let weights = Dtype::Bf16.upload(device, "w", &self.w).unwrap();
        Dense { weights, outputs: self.outputs as u32, inputs: self.inputs as u32 }
    }

    /// The rows, and poison up to the most of them: no row must depend on another.
    fn rows(&self, device: &Device) -> Buffer {
        let mut x = self.x.clone();
        x.resize(Streamed::MOST_ROWS as usize * self.inputs, f32::NAN);
        Dtype::Bf16.upload(device, "x", &x).unwrap()
    }
}

fn poisoned(device: &Device, dtype: Dtype, count: usize) -> Buffer {
    dtype.upload(device, "poison", &vec![f32::NAN; count]).unwrap()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Shares that are less than a tile, a tile, and more; that end with tiles and within them.
const SIZES: [(usize, usize); 6] =
    [(128, 256), (384, 512), (4096, 256), (896, 8960), (256, 34_048), (1664, 6144)];
const ROWS: [usize; 6] = [1, 9, 16, 31, 33, 64];
const EPSILON: f32 = 1e-5;

#[test]
fn products_norms_and_gates_against_f64() {
    let Some(device) = device() else { return };
    let Some(streamed) = Streamed::new(&device, Dtype::Bf16, Mode::Fast, 256).unwrap() else { return };
    let mut random = Random::new(5);
    for (inputs, outputs) in SIZES {
        for rows in ROWS {
            let case = Case::new(&mut random, rows, inputs, outputs);
            let (w, x) = (case.dense(&device), case.rows(&device));
            let x = Activations { address: x.at(0), room: Streamed::MOST_ROWS, width: inputs as u32 };
            let (expected, what) = (case.product(), format!("{rows} x {inputs} x {outputs}"));
            let run = |end| streamed.product(&device, &w, x, rows as u32, end).unwrap();
            // Sums of squares for any scale: those of 128 values each.
            let scales: Vec<f64> = (0..rows).map(|row| 1.0 / (1.0 + row as f64)).collect();
            let mut squares = vec![f32::NAN; Streamed::squares_bytes(inputs as u32) / 4];
            for (i, square) in squares.iter_mut().enumerate() {
                let Some(scale) = scales.get(i % Streamed::MOST_ROWS as usize) else { continue };
                *square = (f64::from(TILE) * (1.0 / (scale * scale) - f64::from(EPSILON))) as f32;
            }
            let squares = Buffer::of(&device, "squares", &squares).unwrap();
            let unscaled = Unscaled { squares: squares.at(0), epsilon: EPSILON };
            let all = Streamed::MOST_ROWS as usize * outputs;
            for norm in [None, Some(unscaled)] {
                let scale = |i: usize, width: usize| if norm.is_some() { scales[i / width] } else { 1.0 };
                let out = poisoned(&device, Dtype::Bf16, all);
                run(End::Store { out: out.at(0), norm });
                let found = Dtype::Bf16.download(&device, &out, 0, all).unwrap();
                let scaled: Vec<f64> =
                    expected.iter().enumerate().map(|(i, y)| y * scale(i, outputs)).collect();
                let off = relative(&found[..rows * outputs], &scaled);
                assert!(off < 4e-3, "store {what}: {off}");
                assert!(found[rows * outputs..].iter().all(|v| v.is_nan()), "store {what}: other rows");

                let out = poisoned(&device, Dtype::Bf16, all / 2);
                run(End::Gate { out: out.at(0), norm });
                let found = Dtype::Bf16.download(&device, &out, 0, all / 2).unwrap();
                let half = outputs / 2;
                let gated: Vec<f64> = (0..rows * half)
                    .map(|i| {
                        let y = |at: usize| scaled[i / half * outputs + at + i % half];
                        silu(y(0)) * y(half)
                    })
                    .collect();
                let off = relative(&found[..rows * half], &gated);
                assert!(off < 4e-3, "gate {what}: {off}");
                assert!(found[rows * half..].iter().all(|v| v.is_nan()), "gate {what}: other rows");
            }

            let before = random.normals(all);
            let weight = random.normals(outputs);
            let weights = Buffer::of(&device, "norm", &weight).unwrap();
            for is_last in [true, false] {
                let residual = Buffer::of(&device, "x", &before).unwrap();
                let normed = poisoned(&device, Dtype::Bf16, all);
                let sums = poisoned(&device, Dtype::F32, Streamed::squares_bytes(outputs as u32) / 4);
                let next = Next { weight: weights.at(0), normed: normed.at(0), squares: sums.at(0) };
                run(End::Add { x: residual.at(0), next: (!is_last).then_some(next) });
                let found = Dtype::F32.download(&device, &residual, 0, all).unwrap();
                let sum: Vec<f64> = expected.iter().zip(&before).map(|(y, x)| y + f64::from(*x)).collect();
                let off = relative(&found[..rows * outputs], &sum);
                assert!(off < 2e-6, "add {what}: {off}");
                assert_eq!(found[rows * outputs..], before[rows * outputs..], "add {what}: other rows");
                if is_last {
                    continue;
                }
                let found = Dtype::Bf16.download(&device, &normed, 0, rows * outputs).unwrap();
                let expected: Vec<f64> =
                    sum.iter().enumerate().map(|(i, v)| v * f64::from(weight[i % outputs])).collect();
                assert!(relative(&found, &expected) < 4e-3, "norm {what}");
                let found = Dtype::F32
                    .download(&device, &sums, 0, Streamed::squares_bytes(outputs as u32) / 4)
                    .unwrap();
                let most = Streamed::MOST_ROWS as usize;
                let of = |i: usize| -> f64 {
                    let from = i % most * outputs + i / most * TILE as usize;
                    sum[from..from + TILE as usize].iter().map(|v| v * v).sum()
                };
                let (found, expected): (Vec<f32>, Vec<f64>) = found
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| i % most < rows)
                    .map(|(i, v)| (*v, of(i)))
                    .unzip();
                assert!(relative(&found, &expected) < 1e-5, "squares {what}");
            }
        }
    }
}

/// Whoever adds what clusters share does it in the same order: bits do not change from run to run.
#[test]
fn the_same_bits_in_every_run() {
    let Some(device) = device() else { return };
    let Some(streamed) = Streamed::new(&device, Dtype::Bf16, Mode::Fast, 256).unwrap() else { return };
    let mut random = Random::new(6);
    for (inputs, outputs) in [(4096, 512), (1664, 6144), (896, 8960)] {
        let case = Case::new(&mut random, 64, inputs, outputs);
        let (w, x) = (case.dense(&device), case.rows(&device));
        let x = Activations { address: x.at(0), room: Streamed::MOST_ROWS, width: inputs as u32 };
        let before = random.normals(64 * outputs);
        let weight = Buffer::of(&device, "norm", &random.normals(outputs)).unwrap();
        let run = || {
            let [out, gated, normed] = [outputs, outputs / 2, outputs]
                .map(|width| Dtype::Bf16.upload(&device, "zeros", &vec![0.0; 64 * width]).unwrap());
            let residual = Buffer::of(&device, "x", &before).unwrap();
            let squares = Buffer::zeros(&device, "squares", Streamed::squares_bytes(outputs as u32)).unwrap();
            let next = Next { weight: weight.at(0), normed: normed.at(0), squares: squares.at(0) };
            for end in [
                End::Store { out: out.at(0), norm: None },
                End::Gate { out: gated.at(0), norm: None },
                End::Add { x: residual.at(0), next: Some(next) },
            ] {
                streamed.product(&device, &w, x, 64, end).unwrap();
            }
            let bits = |buffer: &Buffer| buffer.read::<u8>(&device, 0, buffer.bytes()).unwrap();
            [&out, &gated, &normed, &residual, &squares].map(bits)
        };
        let first = run();
        assert!(first.iter().all(|bytes| bytes.iter().any(|byte| *byte != 0)), "{inputs} x {outputs}");
        for _ in 0..20 {
            assert!(run() == first, "{inputs} x {outputs}");
        }
    }
}

#[test]
fn what_does_not_suit_is_refused() {
    let Some(device) = device() else { return };
    let Some(streamed) = Streamed::new(&device, Dtype::Bf16, Mode::Fast, 256).unwrap() else { return };
    let dense = |outputs: u32, inputs: u32| {
        let weights = Buffer::zeros(&device, "w", (outputs * inputs * 2) as usize).unwrap();
        Dense { weights, outputs, inputs }
    };
    let buffer = Buffer::zeros(&device, "x", 1 << 20).unwrap();
    let end = End::Store { out: buffer.at(0), norm: None };
    let x = Activations { address: buffer.at(0), room: 64, width: 256 };
    assert!(streamed.product(&device, &dense(256, 256), x, 64, end).is_ok());
    for (outputs, inputs, rows) in
        [(256, 256, 65), (256, 256, 0), (384, 256, 1), (256, 192, 1), (256, 128, 1)]
    {
        assert!(
            streamed.product(&device, &dense(outputs, inputs), x, rows, end).is_err(),
            "{outputs} {inputs} {rows}"
        );
    }
    assert!(Streamed::new(&device, Dtype::Bf16, Mode::Invariant, 256).unwrap().is_none());
}
