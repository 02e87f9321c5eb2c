//! Inputs of a product, quantised once per row and shared by all its matrices.

/// A block of quantised inputs along K.
pub(crate) trait Input: Copy + Send + Sync + 'static {
    const ELEMS: usize;

    /// Quantises `x`, which holds `ELEMS` values.
    fn quantise(x: &[f32]) -> Self;
}

/// 32 inputs with one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Input32 {
    pub(crate) scale: f32,
    /// Sum of `q`, exact.
    pub(crate) sum: i32,
    /// `scale * sum`, rounded once: what a format with minima multiplies.
    pub(crate) scaled_sum: f32,
    pub(crate) q: [i8; 32],
}

/// 256 inputs with one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Input256 {
    pub(crate) scale: f32,
    /// Sums of `q` over 16 elements each, exact.
    pub(crate) sums: [i32; 16],
    pub(crate) q: [[i8; 32]; 8],
}

impl Input for Input32 {
    const ELEMS: usize = 32;

    #[inline(always)]
    fn quantise(x: &[f32]) -> Self {
        let scales = Scales::of(x);
        let mut q = [0; 32];
        round(x, scales.inverse, &mut q);
        let sum = q.iter().map(|q| i32::from(*q)).sum();
        Self { scale: scales.scale, sum, scaled_sum: scales.scale * sum as f32, q }
    }
}

impl Input for Input256 {
    const ELEMS: usize = 256;

    #[inline(always)]
    fn quantise(x: &[f32]) -> Self {
        let scales = Scales::of(x);
        let mut q = [[0; 32]; 8];
        round(x, scales.inverse, q.as_flattened_mut());
        let mut sums = [0; 16];
        for (sum, q) in sums.iter_mut().zip(q.as_flattened().chunks_exact(16)) {
            *sum = q.iter().map(|q| i32::from(*q)).sum();
        }
        Self { scale: scales.scale, sums, q }
    }
}

struct Scales {
    scale: f32,
    inverse: f32,
}

impl Scales {
    #[inline(always)]
    fn of(x: &[f32]) -> Self {
        /// 2^-119: below it `127 / largest` would leave the range of f32.
        const TINY: f32 = f32::MIN_POSITIVE * 128.0;
        // As integers magnitudes keep their order and NaN lies above infinity, so nothing is lost.
        let largest = x.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            Self { scale: f32::NAN, inverse: 0.0 }
        } else if largest < TINY {
            Self { scale: 0.0, inverse: 0.0 }
        } else {
            Self { scale: largest / 127.0, inverse: 127.0 / largest }
        }
    }
}

#[inline(always)]
fn round(x: &[f32], inverse: f32, q: &mut [i8]) {
    /// 1.5 * 2^23: adding it rounds to nearest even and leaves the integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * inverse + MAGIC).to_bits() as i8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quant::emulation::quantise;

    proptest! {
        #[test]
        fn blocks_are_quantised_as_defined(
            x in prop::collection::vec(prop_oneof![-4f32..4.0, -1e30f32..1e30, Just(0.0), Just(-0.0)], 256),
        ) {
            for x in x.chunks_exact(32) {
                let (scale, q) = quantise(x);
                let found = Input32::quantise(x);
                prop_assert_eq!(found.scale.to_bits(), scale.to_bits());
                prop_assert_eq!(found.q.map(i32::from).to_vec(), q.clone());
                prop_assert_eq!(found.sum, q.iter().sum::<i32>());
                prop_assert!(q.iter().all(|q| q.abs() <= 127));
            }
            let (scale, q) = quantise(&x);
            let found = Input256::quantise(&x);
            prop_assert_eq!(found.scale.to_bits(), scale.to_bits());
            prop_assert_eq!(found.q.as_flattened().iter().map(|q| i32::from(*q)).collect::<Vec<_>>(), q.clone());
            prop_assert_eq!(found.sums.to_vec(), q.chunks(16).map(|q| q.iter().sum()).collect::<Vec<i32>>());
        }
    }

    #[test]
    fn the_edges_of_the_scale() {
        let block = |x: f32| Input32::quantise(&[x; 32]);
        assert_eq!((block(1e-37).scale, block(1e-37).sum), (0.0, 0));
        assert_eq!(block(1e-35).sum, 32 * 127);
        assert_eq!(block(f32::MAX).sum, 32 * 127);
        assert!(block(f32::NAN).scale.is_nan() && block(f32::NEG_INFINITY).scale.is_nan());
    }
}
