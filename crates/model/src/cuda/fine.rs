//! Which columns of keys in FP8 pages have a second code: those that decide scores, because keys are large there.
//!
//! A code keeps four bits of an element, so the error of a score comes from a key's largest elements. They are where RoPE
//! turns slowest (arXiv 2502.01563), whatever the weights.

use crate::arch::{Rope, RopeStyle};

/// Columns (`FINE` in kernels/fp8.cuh).
pub(crate) const FINE: usize = 16;

/// As they lie in a page.
pub(crate) type Columns = [u8; FINE];

/// Those of the last pairs of a head of `head_dim`: pair by pair, as the kernel writes their second codes.
pub(crate) fn columns(head_dim: usize, rope: &Rope) -> Columns {
    let turned = rope.dims / 2;
    std::array::from_fn(|i| {
        let (pair, second) = ((head_dim / 2).saturating_sub(FINE / 2) + i / 2, i % 2);
        let apart = rope.style == RopeStyle::Halves && pair < turned;
        (if apart { pair + second * turned } else { 2 * pair + second }) as u8
    })
}

/// Columns as the bytes of ints.
pub(crate) fn ints(columns: &Columns) -> impl Iterator<Item = i32> {
    columns.as_chunks().0.iter().map(|four| i32::from_le_bytes(*four))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Scaling;
    use crate::cuda::quantised::fp8;
    use crate::cuda::testing::Random;

    fn of(head_dim: usize, style: RopeStyle, dims: usize) -> Columns {
        columns(head_dim, &Rope { style, dims, base: 1e4, scaling: Scaling::None })
    }

    #[test]
    fn the_last_pairs_are_taken() {
        let halves = [24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63];
        assert_eq!(of(64, RopeStyle::Halves, 64), halves);
        let last = [112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127];
        assert_eq!(of(128, RopeStyle::Adjacent, 128), last);
        assert_eq!(of(128, RopeStyle::HalvesToAdjacent, 128), last);
        // What is not turned is slowest of all.
        assert_eq!(of(128, RopeStyle::Halves, 64), last);
    }

    /// A key as Qwen2.5 has them: outliers from a bias. Its score is off by a tenth of what it is without second codes, or
    /// less.
    #[test]
    fn second_codes_save_the_scores_of_keys_with_outliers() {
        let mut random = Random::new(3);
        let columns = of(128, RopeStyle::Halves, 128);
        let (mut once, mut twice) = (0.0, 0.0);
        for _ in 0..200 {
            let large =
                |random: &mut Random, i: usize| if i % 64 == 60 { 20.0 * random.normal() } else { 0.0 };
            let q: Vec<f32> = (0..128).map(|i| random.normal() + large(&mut random, i)).collect();
            let k: Vec<f32> = (0..128).map(|i| random.normal() + 5.0 * large(&mut random, i)).collect();
            let scale = fp8::scale(&k);
            for (i, (q, k)) in q.iter().zip(&k).enumerate() {
                let rest = k / scale - fp8::value(fp8::code(k / scale));
                let kept = rest - fp8::value(fp8::code(rest));
                let kept = if columns.contains(&(i as u8)) { kept } else { rest };
                once += f64::from(q * rest * scale).powi(2);
                twice += f64::from(q * kept * scale).powi(2);
            }
        }
        assert!(twice * 100.0 < once, "{twice} of {once}");
    }
}
