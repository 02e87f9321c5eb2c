//! Random numbers of the operating system, for seeds and jitter.

use crate::failure::{self, Failure, Reason};

/// JavaScript holds integers up to here exactly, so a returned seed survives any client.
const SEEDS: u64 = 1 << 53;

fn draw() -> Result<u64, Failure> {
    getrandom::u64()
        .map_err(|e| failure::new(Reason::Internal, format!("no random numbers from the system: {e}")))
}

pub(crate) fn seed() -> Result<u64, Failure> {
    Ok(draw()? % SEEDS)
}

/// Uniform in 0 to 1, 1 excluded.
pub(crate) fn share() -> Result<f64, Failure> {
    Ok(seed()? as f64 / SEEDS as f64)
}
