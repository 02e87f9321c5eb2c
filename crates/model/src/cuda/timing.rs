//! How long kernels take, for whoever tunes them (`paceline bench kernels`).

use cudarc::driver::sys;

use super::error::Doing;
use super::{CudaError, Device};

/// What one kernel took, and what it had to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    pub kernel: &'static str,
    pub shape: String,
    pub microseconds: f64,
    /// The fewest bytes it can move.
    pub bytes: u64,
    /// Multiplications and additions.
    pub operations: u64,
}

/// Microseconds of one run: the median of `batches` batches of `repeats` runs between two events.
pub(crate) fn time(
    device: &Device,
    batches: usize,
    repeats: usize,
    run: impl Fn() -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    let event =
        || device.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).doing("making an event");
    let (start, end) = (event()?, event()?);
    let mut taken = Vec::with_capacity(batches);
    for _ in 0..batches.max(1) {
        start.record(&device.stream).doing("recording an event")?;
        for _ in 0..repeats.max(1) {
            run()?;
        }
        end.record(&device.stream).doing("recording an event")?;
        device.synchronize()?;
        let milliseconds = start.elapsed_ms(&end).doing("reading an event")?;
        taken.push(f64::from(milliseconds) * 1e3 / repeats.max(1) as f64);
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken[taken.len() / 2])
}
