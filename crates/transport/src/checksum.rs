/// A checksum of bytes for finding faults, not forgeries: each piece of 16 bytes adds two products of
/// its words, each word moved by a key of its place (NH, from UMAC: Black et al., CRYPTO 1999). So a piece that
/// changed and a piece in another's place both show but for a chance of about 2^-32.
///
/// It is what the GPU computes beside the copy of a page (`kernels/pages.cu`). A last piece of less than 16 bytes counts as if
/// zeros followed: who sends bytes sends their length too.
pub fn checksum(bytes: &[u8]) -> u64 {
    let (pieces, rest) = bytes.as_chunks::<16>();
    let mut last = [0; 16];
    last[..rest.len()].copy_from_slice(rest);
    let last = (!rest.is_empty()).then_some(&last);
    pieces.iter().chain(last).zip(0u32..).fold(0, |sum, (piece, place)| {
        let key = mix(place);
        let word = |at: usize| {
            let word = u32::from_le_bytes([piece[at], piece[at + 1], piece[at + 2], piece[at + 3]]);
            u64::from(word.wrapping_add(key.rotate_left(2 * at as u32)))
        };
        sum.wrapping_add(word(0).wrapping_mul(word(4))).wrapping_add(word(8).wrapping_mul(word(12)))
    })
}

fn mix(place: u32) -> u32 {
    let i = (place ^ place >> 15).wrapping_mul(0x2c1b_3c6d).wrapping_add(0x9e37_79b9);
    let i = (i ^ i >> 12).wrapping_mul(0x297a_2d39);
    i ^ i >> 15
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_bit_counts(bytes in prop::collection::vec(any::<u8>(), 1..300), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut other = bytes.clone();
            other[at.index(bytes.len())] ^= 1 << bit;
            prop_assert_ne!(checksum(&bytes), checksum(&other));
        }

        #[test]
        fn every_place_counts(bytes in prop::collection::vec(any::<u8>(), 32..300), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
            let pieces = bytes.len() / 16;
            let (a, b) = (a.index(pieces) * 16, b.index(pieces) * 16);
            let mut other = bytes.clone();
            for i in 0..16 {
                other.swap(a + i, b + i);
            }
            prop_assert_eq!(checksum(&bytes) == checksum(&other), bytes == other);
        }
    }

    #[test]
    fn all_zeros_of_another_length_are_another_sum() {
        assert_ne!(checksum(&[0; 32]), checksum(&[0; 48]));
        assert_eq!(checksum(&[]), 0);
    }
}
