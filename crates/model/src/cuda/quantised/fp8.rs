//! E4M3: a sign, four bits of exponent (bias 7) and three of mantissa; no infinity, 448 is the largest (arXiv
//! 2209.05433).

/// The largest value.
const LARGEST: f32 = 448.0;

/// What the weights of an output are divided by, so that the largest becomes 448; 1 for an output of zeros.
pub(crate) fn scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0.0f32, |most, w| most.max(w.abs()));
    // Below the smallest normal float the quotient would lose its bits.
    if largest / LARGEST < f32::MIN_POSITIVE { 1.0 } else { largest / LARGEST }
}

/// The nearest E4M3, ties to even; beyond 448 the largest. NaN becomes its NaN.
pub(crate) fn code(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let size = value.abs();
    if size.is_nan() {
        return sign | 0x7f;
    }
    if size < 1.0 / 64.0 {
        // Steps of 2^-9; eight of them are the smallest normal value, and its code.
        return sign | (size * 512.0).round_ties_even() as u8;
    }
    let bits = size.min(LARGEST).to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - ((127 - 7) << 3)) as u8
}

/// The value of a code.
#[cfg(test)]
pub(crate) fn value(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_code_is_the_code_of_its_value() {
        for c in 0..=255u8 {
            assert_eq!(code(value(c)), c, "{}", value(c));
        }
        assert_eq!(value(0x7e), 448.0);
        assert_eq!([code(1e9), code(-1e9), code(464.0), code(0.0), code(-0.0)], [0x7e, 0xfe, 0x7e, 0, 0x80]);
        // Halfway: to the even code.
        assert_eq!([code(1.0625), code(1.1875), code(1.0 / 1024.0), code(3.0 / 1024.0)], [0x38, 0x3a, 0, 2]);
    }

    proptest! {
        /// Half a step: a sixteenth of the value's power of two, or 2^-10 where values are subnormal.
        #[test]
        fn the_error_is_at_most_half_a_step(x in prop_oneof![-448f32..448.0, -0.05f32..0.05]) {
            let error = (value(code(x)) - x).abs();
            let power = 2f32.powi(x.abs().log2().floor() as i32);
            prop_assert!(error <= (power / 16.0).max(1.0 / 1024.0), "{x} became {}", value(code(x)));
        }

        #[test]
        fn a_row_keeps_four_bits_of_its_weights(row in prop::collection::vec(-3f32..3.0, 1..200), by in -30i32..30) {
            let row: Vec<f32> = row.iter().map(|w| w * 2f32.powi(by)).collect();
            let s = scale(&row);
            for w in &row {
                let error = (value(code(w / s)) * s - w).abs();
                // Half a step, and the roundings of the quotient and of the product.
                prop_assert!(error <= (w.abs() / 16.0).max(s / 1024.0) * 1.00001, "{w}, scale {s}, error {error}");
            }
        }
    }

    #[test]
    fn rows_without_size_have_a_scale() {
        assert_eq!(scale(&[0.0; 3]), 1.0);
        assert_eq!(scale(&[1e-45]), 1.0);
        assert_eq!(scale(&[-896.0, 3.0]), 2.0);
    }
}
