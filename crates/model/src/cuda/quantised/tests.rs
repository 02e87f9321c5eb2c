use super::*;
use crate::cuda::testing::{self, Random, relative};
use crate::quant::{Format, emulation};

#[test]
fn warps_take_turns_evenly() {
    let of = |kept, outputs, inputs, columns| {
        let launch = geometry(Dtype::Bf16, kept, outputs, inputs, columns);
        (launch.grid[0], launch.threads / 32, launch.shared)
    };
    assert_eq!(of(Kept::Q4_K, 14_336, 4096, 1), (448, 8, 8 << 10));
    assert_eq!(of(Kept::Q4_K, 4096, 14_336, 1), (128, 14, 14 << 10));
    assert_eq!(of(Kept::Q8_0, 33, 128, 2), (2, 1, 2 << 10));
    assert_eq!(of(Kept::Fp8, 4096, 4096, 2), (128, 16, 32 << 10));
    assert_eq!(geometry(Dtype::F32, Kept::Fp8, 9, 128, 2).grid, [2, 1, 1]);
}

#[test]
fn a_matrix_is_padded_to_whole_tiles() {
    assert_eq!(Kept::Q4_K.bytes(14_336, 4096), 896 * 16 * 2368);
    assert_eq!(Kept::Q8_0.bytes(1, 576), 2 * 5 * 2176);
    assert_eq!(Kept::Fp8.bytes(33, 128), 4 * 2048);
}

/// A matrix and its weights.
fn matrix(
    device: &Device,
    random: &mut Random,
    kept: Kept,
    outputs: usize,
    inputs: usize,
) -> (Quantised, Vec<f32>) {
    let blocks = |random: &mut Random, format: Format| {
        let bytes = emulation::random_row(format, outputs * inputs / format.block().0, || random.bits());
        let mut weights = vec![0.0; outputs * inputs];
        format.dequantise(&bytes, &mut weights);
        (bytes, weights)
    };
    match kept {
        Kept::Q4_K => {
            let (bytes, weights) = blocks(random, Format::Q4_K);
            (Quantised::q4_k(device, &bytes, outputs, inputs).unwrap(), weights)
        }
        Kept::Q8_0 => {
            let (bytes, weights) = blocks(random, Format::Q8_0);
            (Quantised::q8_0(device, &bytes, outputs, inputs).unwrap(), weights)
        }
        Kept::Fp8 => {
            // Small ones too: subnormal codes.
            let mut given = random.normals(outputs * inputs);
            given.iter_mut().for_each(|w| *w *= [1.0, 1e-3][random.below(2) as usize]);
            let scales: Vec<f32> = given.chunks(inputs).map(fp8::scale).collect();
            let weights = given.iter().enumerate().map(|(i, w)| {
                let scale = scales[i / inputs];
                fp8::value(fp8::code(w / scale)) * scale
            });
            let weights = weights.collect();
            (Quantised::fp8(device, &given, outputs, inputs).unwrap(), weights)
        }
    }
}

/// Shapes: every edge of tiles, padding of outputs and of inputs, few and many warps.
fn shapes(kept: Kept) -> Vec<(usize, usize)> {
    let mut shapes = vec![(1, 256), (16, 256), (17, 512), (33, 1024), (100, 256), (96, 4352), (8200, 512)];
    match kept {
        Kept::Q4_K => {}
        Kept::Q8_0 => shapes.extend([(5, 32), (40, 96), (64, 576)]),
        Kept::Fp8 => shapes.extend([(5, 8), (40, 136), (64, 576)]),
    }
    shapes
}

const ALL: [Kept; 3] = [Kept::Q4_K, Kept::Q8_0, Kept::Fp8];

#[test]
fn products_are_those_of_the_dequantised_weights() {
    let Some(device) = testing::device() else { return };
    let mut random = Random::new(std::process::id().into());
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let products = Products::new(&device, dtype).unwrap();
        let mut worst = [0.0f64; 2];
        for kept in ALL {
            for (outputs, inputs) in shapes(kept) {
                let (w, weights) = matrix(&device, &mut random, kept, outputs, inputs);
                let x: Vec<f32> = random.normals(16 * inputs).into_iter().map(|x| dtype.round(x)).collect();
                let start = random.normals(16 * outputs);
                // What lies behind the rows must not be read as a row, or written.
                for rows in [1, 2, 7, 8, 9, 16] {
                    let mut given = vec![f32::NAN; (rows + 1) * inputs];
                    given[..rows * inputs].copy_from_slice(&x[..rows * inputs]);
                    let on_device = dtype.upload(&device, "x", &given).unwrap();
                    let mut expected = vec![0.0f64; rows * outputs];
                    for (at, y) in expected.iter_mut().enumerate() {
                        let (x, w) = (
                            &x[at / outputs * inputs..][..inputs],
                            &weights[at % outputs * inputs..][..inputs],
                        );
                        *y = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    }
                    for epilogue in [Epilogue::Store, Epilogue::Residual] {
                        let adds = epilogue == Epilogue::Residual;
                        let kept_in = if adds { Dtype::F32 } else { dtype };
                        let mut poison = vec![f32::NAN; (rows + 1) * outputs];
                        if adds {
                            poison[..rows * outputs].copy_from_slice(&start[..rows * outputs]);
                        }
                        let out = kept_in.upload(&device, "out", &poison).unwrap();
                        products
                            .product(&device, &w, on_device.at(0), out.at(0), rows as u32, epilogue)
                            .unwrap();
                        let found = kept_in.download(&device, &out, 0, poison.len()).unwrap();
                        assert!(
                            found[rows * outputs..].iter().all(|y| y.is_nan()),
                            "written behind the rows"
                        );
                        let reference: Vec<f64> = expected
                            .iter()
                            .enumerate()
                            .map(|(at, y)| if adds { y + f64::from(start[at]) } else { *y })
                            .collect();
                        let off = relative(&found[..rows * outputs], &reference);
                        let bound = match kept_in {
                            Dtype::F32 => 5e-6,
                            // A single output may be off by half a step of its type.
                            Dtype::F16 => 1.0 / 2048.0 + 5e-6,
                            Dtype::Bf16 => 1.0 / 256.0 + 5e-6,
                        };
                        assert!(
                            off < bound,
                            "{kept:?} {dtype:?} {rows} x {outputs} x {inputs} {epilogue:?}: {off:e}"
                        );
                        worst[usize::from(adds)] = worst[usize::from(adds)].max(off);
                    }
                }
            }
        }
        println!("{}: worst relative error stored {:.1e}, residual {:.1e}", dtype.name(), worst[0], worst[1]);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_sixteen() {
    let Some(device) = testing::device() else { return };
    let mut random = Random::new(std::process::id().into());
    let (outputs, inputs) = (96, 4352);
    let products = Products::new(&device, Dtype::Bf16).unwrap();
    for kept in ALL {
        let (w, _) = matrix(&device, &mut random, kept, outputs, inputs);
        let x = Dtype::Bf16.upload(&device, "x", &random.normals(16 * inputs)).unwrap();
        let run = |row: usize, rows: usize| {
            let out = Buffer::zeros(&device, "out", rows * outputs * 4).unwrap();
            let at = x.at(row * inputs * 2);
            products.product(&device, &w, at, out.at(0), rows as u32, Epilogue::Residual).unwrap();
            out.read::<u32>(&device, 0, rows * outputs).unwrap()
        };
        let all = run(0, 16);
        for row in 0..16 {
            assert_eq!(run(row, 1), all[row * outputs..(row + 1) * outputs], "{kept:?}, row {row}");
        }
        assert_eq!(run(0, 5), all[..5 * outputs]);
    }
}

#[test]
fn whole_matrices_are_the_dequantised_weights() {
    let Some(device) = testing::device() else { return };
    let mut random = Random::new(std::process::id().into());
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let products = Products::new(&device, dtype).unwrap();
        for kept in ALL {
            for (outputs, inputs) in shapes(kept) {
                let (w, weights) = matrix(&device, &mut random, kept, outputs, inputs);
                let out = dtype.upload(&device, "out", &vec![f32::NAN; outputs * inputs + 8]).unwrap();
                products.dequantise(&device, &w, out.at(0)).unwrap();
                let found = dtype.download(&device, &out, 0, outputs * inputs + 8).unwrap();
                let differs = weights.iter().zip(&found).position(|(w, f)| dtype.round(*w) != *f);
                assert_eq!(differs, None, "{kept:?} {dtype:?} {outputs} x {inputs}");
                assert!(found[outputs * inputs..].iter().all(|f| f.is_nan()));
            }
        }
    }
}
