//! What the tests of kernels share.

use super::Device;

/// GPU 0. A test without one says so and passes; with `PACELINE_REQUIRE` set to `gpu` it fails.
pub(crate) fn device() -> Option<Device> {
    match Device::open(0) {
        Ok(device) => Some(device),
        Err(why) => {
            let required = std::env::var_os("PACELINE_REQUIRE").is_some_and(|r| r == "gpu");
            assert!(!required, "a GPU is required: {why}");
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// A repeatable stream of numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        (self.bits() >> 32) as u32 % bound
    }

    /// Nearly normal, variance 1.
    pub(crate) fn normal(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| (self.bits() >> 40) as f32 / 16_777_216.0).sum();
        sum - 6.0
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// Largest distance relative to the reference's norm: |out - ref| / |ref|.
pub(crate) fn relative(out: &[f32], reference: &[f64]) -> f64 {
    assert_eq!(out.len(), reference.len());
    let (mut off, mut norm) = (0.0, 0.0);
    for (out, reference) in out.iter().zip(reference) {
        off += (f64::from(*out) - reference).powi(2);
        norm += reference.powi(2);
    }
    (off / norm.max(f64::MIN_POSITIVE)).sqrt()
}
