use super::super::testing::{Random, device, relative};
use super::super::{Buffer, Device};
use super::*;

fn wide(device: &Device) -> Option<Wide> {
    let wide = Wide::new(device, Dtype::Bf16, Mode::Fast, Persist::BySize).unwrap();
    assert_eq!(wide.is_some(), device.hopper);
    wide
}

/// Fewer tiles than clusters, and as many and more, so that blocks take several; sums of one stage of the ring and of many. The
/// last ones have a part of a tile.
const SIZES: [(usize, usize); 6] =
    [(64, 1024), (192, 2048), (1664, 3072), (128, 68_608), (256, 328), (320, 35_000)];

/// Against f64; rows that are not asked for are neither read into others nor written; the same bits in every run.
#[test]
fn products_and_gates_against_f64() {
    let Some(device) = device() else { return };
    let Some(wide) = wide(&device) else { return };
    let mut random = Random::new(7);
    for (inputs, outputs) in SIZES {
        for rows in [1, 65, 96, 127, 128] {
            let rounded =
                |values: Vec<f32>| values.into_iter().map(|v| Dtype::Bf16.round(v)).collect::<Vec<f32>>();
            let (x, w) = (rounded(random.normals(rows * inputs)), rounded(random.normals(outputs * inputs)));
            let upload = |what, values: &[f32]| Dtype::Bf16.upload(&device, what, values).unwrap();
            // Poison up to the most rows.
            let mut padded = x.clone();
            padded.resize(ROWS as usize * inputs, f32::NAN);
            let from = upload("x", &padded);
            let weights = Dense { weights: upload("w", &w), outputs: outputs as u32, inputs: inputs as u32 };
            let from = Activations { address: from.at(0), room: ROWS, width: inputs as u32 };
            let dot = |x: &[f32], w: &[f32]| -> f64 {
                x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            };
            let product: Vec<f64> =
                x.chunks_exact(inputs).flat_map(|x| w.chunks_exact(inputs).map(move |w| dot(x, w))).collect();
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let half = outputs / 2;
            let gated =
                product.chunks_exact(outputs).flat_map(|y| (0..half).map(|i| silu(y[i]) * y[half + i]));
            for (end, dtype, width, expected, bound) in [
                (WideEnd::StoreFloat, Dtype::F32, outputs, product.clone(), 4e-6),
                (WideEnd::Gate, Dtype::Bf16, half, gated.collect(), 6e-3),
            ] {
                if !suits(&weights, end) {
                    continue;
                }
                let what = format!("{end:?} {rows} x {inputs} x {outputs}");
                let run = || {
                    let all = ROWS as usize * width;
                    let out = dtype.upload(&device, "poison", &vec![f32::NAN; all]).unwrap();
                    wide.product(&device, &weights, from, rows as u32, end, out.at(0)).unwrap();
                    dtype.download(&device, &out, 0, all).unwrap()
                };
                let found = run();
                // Of a warpgroup's outputs for a row each.
                for (i, (found, expected)) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
                    for (at, (found, expected)) in found.chunks(64).zip(expected.chunks(64)).enumerate() {
                        let off = relative(found, expected);
                        assert!(off < bound, "{what}, row {i}, outputs from {}: {off}", 64 * at);
                    }
                }
                assert!(found[rows * width..].iter().all(|v| v.is_nan()), "{what}: other rows");
                assert!(run()[..rows * width] == found[..rows * width], "{what}: other bits in another run");
            }
        }
    }
}

#[test]
fn what_does_not_suit_is_refused() {
    let Some(device) = device() else { return };
    let Some(wide) = wide(&device) else { return };
    let buffer = Buffer::zeros(&device, "x", 1 << 20).unwrap();
    let run = |outputs: u32, inputs: u32, rows: u32, room: u32, end| {
        let weights = Buffer::zeros(&device, "w", (outputs * inputs * 2) as usize).unwrap();
        let x = Activations { address: buffer.at(0), room, width: inputs.min(256) };
        wide.product(&device, &Dense { weights, outputs, inputs }, x, rows, end, buffer.at(0))
    };
    for end in [WideEnd::Gate, WideEnd::StoreFloat] {
        assert!(run(1024, 256, 65, 128, end).is_ok());
        for (inputs, rows, room) in
            [(512, 65, 128), (96, 65, 128), (256, 0, 128), (256, 129, 256), (256, 65, 127)]
        {
            assert!(run(1024, inputs, rows, room, end).is_err(), "{end:?} {inputs} {rows} {room}");
        }
    }
    assert!(run(1536, 256, 65, 128, WideEnd::Gate).is_err());
    for (dtype, mode, persist) in [
        (Dtype::F16, Mode::Fast, Persist::BySize),
        (Dtype::Bf16, Mode::Invariant, Persist::BySize),
        (Dtype::Bf16, Mode::Fast, Persist::Never),
    ] {
        assert!(Wide::new(&device, dtype, mode, persist).unwrap().is_none());
    }
}

/// Gates of Llama-3.1-8B, Qwen2.5-32B, Llama-3.1-70B and output layers of Llama and Qwen; not gates of Qwen2.5-1.5B, 3B and 7B,
/// which have few tiles or a turn with few.
#[test]
fn large_matrices_are_worth_it() {
    assert_eq!([28_672, 55_296, 57_344, 128_256, 152_064].map(|outputs| is_worth_it(outputs, 32)), [true; 5]);
    assert_eq!([17_920, 22_016, 37_888].map(|outputs| is_worth_it(outputs, 32)), [false; 3]);
}
