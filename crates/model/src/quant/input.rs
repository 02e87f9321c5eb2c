//! Inputs of a product, quantised once per row and shared by all its matrices.

/// A block of quantised inputs along K.
pub(crate) trait Input: Copy + Send + Sync + 'static {
    const ELEMS: usize;

    /// Quantises `x`, which holds `ELEMS` values.
    fn quantise(x: &[f32]) -> Self;
}

/// 32 inputs with one scale. A cache line of its own: no kernel's load of `q` crosses one.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Input32 {
    pub(crate) q: [i8; 32],
    pub(crate) scale: f32,
    /// `scale * sum of q`, rounded once: what a format with minima multiplies.
    pub(crate) scaled_sum: f32,
    /// -8, -16 and -128 times the sum of `q`, exact: where the integer sums of formats whose quants lie
    /// around 8, 16 and 128 begin.
    pub(crate) minus8: i32,
    pub(crate) minus16: i32,
    pub(crate) minus128: i32,
}

/// 256 inputs with one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Input256 {
    pub(crate) q: [i8; 256],
    /// -32 times the sums of `q` over 16 elements each, exact.
    pub(crate) minus32: [i32; 16],
    /// Sums of `q` over 32 elements each, in the pairs (0, 2), (1, 3), (4, 6), (5, 7).
    pub(crate) pairs: [[i16; 2]; 4],
    pub(crate) scale: f32,
}

impl Input32 {
    pub(crate) const ZERO: Self =
        Self { q: [0; 32], scale: 0.0, scaled_sum: 0.0, minus8: 0, minus16: 0, minus128: 0 };
}

impl Input256 {
    pub(crate) const ZERO: Self = Self { q: [0; 256], minus32: [0; 16], pairs: [[0; 2]; 4], scale: 0.0 };
}

impl Input for Input32 {
    const ELEMS: usize = 32;

    #[inline(always)]
    fn quantise(x: &[f32]) -> Self {
        let scales = Scales::of(x);
        let mut q = [0; 32];
        round(x, scales.inverse, &mut q);
        let sum = sum(&q);
        Self {
            q,
            scale: scales.scale,
            scaled_sum: scales.scale * sum as f32,
            minus8: -8 * sum,
            minus16: -16 * sum,
            minus128: -128 * sum,
        }
    }
}

impl Input for Input256 {
    const ELEMS: usize = 256;

    #[inline(always)]
    fn quantise(x: &[f32]) -> Self {
        let scales = Scales::of(x);
        let mut q = [0; 256];
        round(x, scales.inverse, &mut q);
        let mut minus32 = [0; 16];
        for (minus, q) in minus32.iter_mut().zip(q.as_chunks::<16>().0) {
            *minus = -32 * sum(q);
        }
        // At most 32 * 127.
        let of = |j: usize| ((minus32[2 * j] + minus32[2 * j + 1]) / -32) as i16;
        let pairs = [[of(0), of(2)], [of(1), of(3)], [of(4), of(6)], [of(5), of(7)]];
        Self { q, minus32, pairs, scale: scales.scale }
    }
}

#[inline(always)]
fn sum(q: &[i8]) -> i32 {
    q.iter().map(|q| i32::from(*q)).sum()
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
                let sum = q.iter().sum::<i32>();
                prop_assert_eq!(found.minus8, -8 * sum);
                prop_assert_eq!(found.minus16, -16 * sum);
                prop_assert_eq!(found.minus128, -128 * sum);
                prop_assert!(q.iter().all(|q| q.abs() <= 127));
            }
            let (scale, q) = quantise(&x);
            let found = Input256::quantise(&x);
            prop_assert_eq!(found.scale.to_bits(), scale.to_bits());
            prop_assert_eq!(found.q.map(i32::from).to_vec(), q.clone());
            let minus32 = q.chunks(16).map(|q| -32 * q.iter().sum::<i32>());
            prop_assert_eq!(found.minus32.to_vec(), minus32.collect::<Vec<i32>>());
            for (j, sum) in q.chunks(32).map(|q| q.iter().sum::<i32>()).enumerate() {
                prop_assert_eq!(i32::from(found.pairs[j / 4 * 2 + j % 2][j / 2 % 2]), sum);
            }
        }
    }

    #[test]
    fn the_edges_of_the_scale() {
        let block = |x: f32| Input32::quantise(&[x; 32]);
        assert_eq!((block(1e-37).scale, block(1e-37).minus8), (0.0, 0));
        assert_eq!(block(1e-35).minus8, -8 * 32 * 127);
        assert_eq!(block(f32::MAX).minus8, -8 * 32 * 127);
        assert!(block(f32::NAN).scale.is_nan() && block(f32::NEG_INFINITY).scale.is_nan());
    }
}
