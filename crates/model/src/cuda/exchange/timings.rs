//! How long an exchange takes among others in a graph.

use std::rc::Rc;

use cudarc::driver::sys;

use super::super::error::Doing;
use super::super::linear::Norm;
use super::super::timing::Timing;
use super::super::{Buffer, CudaError, Device, Dtype, Mode};
use super::{Exchange, Shape, Target};

const HIDDEN: usize = 4096;
const MOST: u32 = 2048;
/// Exchanges of a graph.
const EACH: usize = 64;
const BATCHES: usize = 7;

/// What sums over these GPUs take, by their own memory or by NCCL.
pub fn exchange_timings(ordinals: &[usize], nccl: bool) -> Result<Vec<Timing>, CudaError> {
    let devices = ordinals.iter().map(|&ordinal| Device::open(ordinal).map(Rc::new));
    measure(&devices.collect::<Result<Vec<_>, _>>()?, nccl)
}

/// Of rows of 4096, as a step makes them: both slots in turn, launched as graphs on all GPUs.
fn measure(devices: &[Rc<Device>], nccl: bool) -> Result<Vec<Timing>, CudaError> {
    let shape = Shape::new(HIDDEN, MOST, Dtype::Bf16, Mode::Fast, nccl);
    let exchange = Exchange::new(devices, shape)?;
    let mut buffers = Vec::new();
    for device in devices {
        let zeros = |bytes| Buffer::zeros(device, "a measurement", bytes);
        buffers.push((
            zeros(MOST as usize * HIDDEN * 4)?,
            zeros(MOST as usize * HIDDEN * 2)?,
            zeros(HIDDEN * 4)?,
        ));
    }
    let mut timings = Vec::new();
    for rows in [1, 2, 4, 8, 16, 32, 64, 128, 256, 2048] {
        for normed in [false, true] {
            let targets: Vec<Target> = (buffers.iter())
                .map(|(x, out, weight)| {
                    let norm = Norm { weight: weight.at(0), epsilon: 1e-5 };
                    Target { x: x.at(0), norm: normed.then_some((norm, out.at(0))) }
                })
                .collect();
            exchange.warm(rows)?;
            for device in devices {
                device.bind()?;
                device.synchronize()?;
                let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
                device.stream.begin_capture(mode).doing("capturing exchanges")?;
            }
            let queued = (0..EACH).try_for_each(|n| exchange.sum(n % 2, rows, &targets));
            let graphs: Vec<_> =
                devices.iter().map(|d| d.stream.end_capture(sys::CUgraphInstantiate_flags(0))).collect();
            queued?;
            let mut ready = Vec::new();
            for graph in graphs {
                let graph = graph.doing("capturing exchanges")?;
                ready.push(graph.ok_or(CudaError::NotBuilt { what: "a graph without exchanges" })?);
            }
            let run = || ready.iter().try_for_each(|graph| graph.launch().doing("launching exchanges"));
            run()?;
            // The others are launched within the first graph's time: several graphs in a row hide the skew.
            let microseconds = super::super::timing::time(&devices[0], BATCHES, 8, run)? / EACH as f64;
            for device in devices {
                device.bind()?;
                device.synchronize()?;
            }
            exchange.check()?;
            let bytes = u64::from(rows) * HIDDEN as u64 * shape.partial(rows).bytes() as u64;
            let way = if nccl { "nccl" } else { "peers" };
            timings.push(Timing {
                kernel: "exchange",
                shape: format!("{way}, {rows} rows{}", if normed { ", norm" } else { "" }),
                microseconds,
                bytes: bytes * (devices.len() as u64 - 1),
                operations: 0,
            });
        }
    }
    Ok(timings)
}
