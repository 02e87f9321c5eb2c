use super::*;
use crate::cuda::testing::{self, Random, relative};

fn shape(hidden: usize, rows: u32, dtype: Dtype, mode: Mode) -> Shape {
    Shape::new(hidden, rows, dtype, mode, false)
}

/// Ranks that share GPU 0, or on two GPUs where there are two.
fn devices(ranks: usize) -> Option<Vec<Rc<Device>>> {
    testing::device()?;
    let gpus = super::super::device_count();
    Some((0..ranks).map(|rank| Rc::new(Device::open(rank % gpus).unwrap())).collect())
}

#[test]
fn every_value_has_a_thread() {
    for hidden in [4u32, 64, 2048, 4096, 5120, 8192] {
        for way in [Way::Push, Way::Pull, Way::Nccl] {
            for norm in [false, true] {
                let launch = geometry(way, 7, hidden, norm);
                assert!(launch.threads <= 1024 && launch.threads.is_multiple_of(32));
                assert!(launch.grid[1] * launch.threads * EACH >= hidden / 4, "{hidden} {way:?} {norm}");
                assert!(launch.grid[0] == 7 && (!norm || launch.grid[1] == 1));
            }
        }
    }
    assert!(shape(8192, 1, Dtype::Bf16, Mode::Fast).check(2).is_ok());
    assert!(shape(8196, 1, Dtype::Bf16, Mode::Fast).check(2).is_err());
    assert!(shape(10, 1, Dtype::Bf16, Mode::Fast).check(2).is_err());
}

#[test]
fn the_invariant_mode_sums_all_rows_alike() {
    let fast = shape(4096, 2048, Dtype::Bf16, Mode::Fast);
    assert_eq!([1, 8, 9].map(|rows| fast.way(rows, true)), [Way::Push, Way::Push, Way::Pull]);
    assert_eq!([1, 256, 257].map(|rows| fast.partial(rows)), [Dtype::F32, Dtype::F32, Dtype::Bf16]);
    assert_eq!(fast.way(1, false), Way::Nccl);
    let invariant = shape(4096, 2048, Dtype::Bf16, Mode::Invariant);
    for rows in [1, 8, 9, 256, 257, 2048] {
        assert_eq!((invariant.way(rows, true), invariant.partial(rows)), (Way::Pull, Dtype::F32));
    }
}

/// Sums and norms of random numbers, one exchange after the other over both slots: near f64, and the same bits on all
/// ranks.
fn sums_are_right(devices: &[Rc<Device>], nccl: bool, modes: &[Mode]) {
    let mut random = Random::new(std::process::id().into());
    let ranks = devices.len();
    for &mode in modes {
        for (dtype, hidden, most) in [(Dtype::Bf16, 4096, 40), (Dtype::F16, 320, 300), (Dtype::F32, 8192, 20)]
        {
            let shape = Shape { nccl, ..shape(hidden, most, dtype, mode) };
            let mut exchange = Exchange::new(devices, shape).unwrap();
            for (turn, rows) in [1, 3, 8, 9, 1, most, 2, most].into_iter().enumerate() {
                let (slot, normed) = (turn % 2, turn % 3 != 0);
                let count = rows as usize * hidden;
                let kind = shape.partial(rows);
                let start = random.normals(count);
                let weight = random.normals(hidden);
                let mut expected: Vec<f64> = start.iter().map(|v| f64::from(*v)).collect();
                let (mut targets, mut buffers) = (Vec::new(), Vec::new());
                for (rank, device) in devices.iter().enumerate() {
                    let y = random.normals(count);
                    for (sum, y) in expected.iter_mut().zip(&y) {
                        *sum += f64::from(kind.round(*y));
                    }
                    kind.write(device, &mut exchange.parts[rank].partial[slot], 0, &y).unwrap();
                    let x = Buffer::of(device, "x", &start).unwrap();
                    let out = dtype.upload(device, "out", &vec![f32::NAN; count]).unwrap();
                    let weight = Buffer::of(device, "weight", &weight).unwrap();
                    let norm = Norm { weight: weight.at(0), epsilon: 1e-5 };
                    targets.push(Target { x: x.at(0), norm: normed.then_some((norm, out.at(0))) });
                    buffers.push((x, out, weight));
                }
                exchange.sum(slot, rows, &targets).unwrap();
                let (mut sums, mut outs) = (Vec::new(), Vec::new());
                for (device, (x, out, _)) in devices.iter().zip(&buffers) {
                    sums.push(x.read::<f32>(device, 0, count).unwrap());
                    outs.push(dtype.download(device, out, 0, count).unwrap());
                }
                exchange.check().unwrap();
                // NCCL rounds a sum of more than two numbers, or of short ones, once more.
                let bound = if nccl && kind != Dtype::F32 { 1e-2 } else { 1e-6 };
                let off = relative(&sums[0], &expected);
                assert!(off < bound, "{dtype:?} {rows} rows of {hidden}: {off}");
                assert!(sums.iter().all(|other| *other == sums[0]), "ranks differ at {rows} rows");
                if normed {
                    let rows = expected.chunks(hidden).flat_map(|row| {
                        let squares: f64 = row.iter().map(|v| v * v).sum();
                        let scale = 1.0 / (squares / hidden as f64 + 1e-5).sqrt();
                        row.iter()
                            .zip(&weight)
                            .map(move |(v, w)| v * scale * f64::from(*w))
                            .collect::<Vec<_>>()
                    });
                    let off = relative(&outs[0], &rows.collect::<Vec<_>>());
                    let bound = if dtype == Dtype::F32 { 1e-6 } else { 4e-3f64.max(bound) };
                    assert!(off < bound, "{dtype:?}: norms are off by {off}");
                    assert!(outs.iter().all(|other| *other == outs[0]), "norms differ");
                } else {
                    assert!(outs.iter().flatten().all(|v| v.is_nan()), "a norm that nobody asked for");
                }
            }
            assert_eq!(exchange.parts.len(), ranks);
        }
    }
}

#[test]
fn sums_are_the_same_on_all_ranks() {
    for ranks in [2, 3, 4] {
        let Some(devices) = devices(ranks) else { return };
        sums_are_right(&devices, false, &[Mode::Fast, Mode::Invariant]);
    }
}

#[test]
fn nccl_makes_the_same_sums() {
    let Some(devices) = devices(2) else { return };
    if super::super::device_count() < 2 {
        eprintln!("skipped: NCCL needs two GPUs");
        return;
    }
    sums_are_right(&devices, true, &[Mode::Fast]);
}

/// A rank that never comes does not hold the others for ever, and is named.
#[test]
fn a_wait_for_a_dead_rank_ends() {
    let Some(devices) = devices(2) else { return };
    for rows in [1, 20] {
        let shape = Shape { patience_ns: 20_000_000, ..shape(256, 32, Dtype::Bf16, Mode::Fast) };
        let exchange = Exchange::new(&devices, shape).unwrap();
        let device = &devices[1];
        let x = Buffer::zeros(device, "x", 32 * 256 * 4).unwrap();
        let launch = |slot: usize| {
            // Rank 1 alone.
            device.bind().unwrap();
            exchange.one(1, slot, rows, Target { x: x.at(0), norm: None }).unwrap();
        };
        launch(0);
        device.synchronize().unwrap();
        let error = exchange.check().unwrap_err();
        assert!(matches!(error, CudaError::PeerSilent { rank: 1 }), "{error}");
        // Later ones do not wait again.
        let start = std::time::Instant::now();
        (0..100).for_each(|n| launch(n % 2));
        device.synchronize().unwrap();
        assert!(start.elapsed() < std::time::Duration::from_millis(500));
    }
}
