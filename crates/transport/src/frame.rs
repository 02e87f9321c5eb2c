//! How a message looks on the way. All numbers are little endian.
//!
//! ```text
//!  0 magic "PCL1"    4 kind        8 token      16 item     24 number of the frame
//! 32 length         40 sum of the payload       48 sum of bytes 0..48         56 payload
//! ```
//!
//! Whoever reads this reads bytes from outside: nothing is believed, and nothing allocated, before its
//! checksum and its bound hold.

use crate::checksum;

/// Most bytes of one message.
pub const MOST_BYTES: usize = 64 << 20;

/// Bytes before the payload.
pub(crate) const HEADER: usize = 56;
const SUMMED: usize = 48;
const MAGIC: [u8; 4] = *b"PCL1";

/// What a message is about; the meaning is its users'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Head {
    /// What sort of message.
    pub kind: u32,
    /// Which exchange it belongs to: a transfer, the incarnation of a group. One of another exchange is
    /// stale.
    pub token: u64,
    /// Which message of the exchange: a step, a unit.
    pub item: u64,
}

/// A header that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) head: Head,
    /// Counts the frames of a link in one direction, from 0: one that is missing or early shows.
    pub(crate) number: u64,
    pub(crate) length: usize,
    pub(crate) sum: u64,
}

/// Why a frame is not what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it does not begin as a frame does")]
    Magic,
    #[error("its header does not match its checksum")]
    Header,
    #[error("its payload does not match its checksum")]
    Payload,
    #[error("it ends early")]
    Truncated,
}

/// The bytes before `payload`.
pub(crate) fn header(head: Head, number: u64, payload: &[u8]) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC);
    put(4, &head.kind.to_le_bytes());
    put(8, &head.token.to_le_bytes());
    put(16, &head.item.to_le_bytes());
    put(24, &number.to_le_bytes());
    put(32, &(payload.len() as u64).to_le_bytes());
    put(40, &checksum(payload).to_le_bytes());
    let sum = checksum(&bytes[..SUMMED]);
    bytes[SUMMED..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

impl Header {
    /// Reads a header. Its length is bounded by [`MOST_BYTES`].
    pub(crate) fn parse(bytes: &[u8; HEADER]) -> Result<Self, Damage> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        if bytes[..4] != MAGIC {
            return Err(Damage::Magic);
        }
        if checksum(&bytes[..SUMMED]) != word(SUMMED) {
            return Err(Damage::Header);
        }
        // Who sends more than the bound does not speak this protocol, whatever its checksum says.
        let length = usize::try_from(word(32)).ok().filter(|l| *l <= MOST_BYTES).ok_or(Damage::Header)?;
        let kind = (word(0) >> 32) as u32;
        let head = Head { kind, token: word(8), item: word(16) };
        Ok(Self { head, number: word(24), length, sum: word(40) })
    }

    pub(crate) fn check(&self, payload: &[u8]) -> Result<(), Damage> {
        match payload.len() == self.length && checksum(payload) == self.sum {
            true => Ok(()),
            false => Err(Damage::Payload),
        }
    }
}

/// A whole frame at once, as `local` carries it.
pub(crate) fn split(frame: &[u8]) -> Result<(Header, &[u8]), Damage> {
    let (header, payload) = frame.split_first_chunk::<HEADER>().ok_or(Damage::Truncated)?;
    let header = Header::parse(header)?;
    if payload.len() < header.length {
        return Err(Damage::Truncated);
    }
    header.check(payload)?;
    Ok((header, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(head: Head, number: u64, payload: &[u8]) -> Vec<u8> {
        [&header(head, number, payload)[..], payload].concat()
    }

    fn heads() -> impl Strategy<Value = Head> {
        (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(kind, token, item)| Head { kind, token, item })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(head in heads(), number: u64, payload in prop::collection::vec(any::<u8>(), 0..400)) {
            let bytes = frame(head, number, &payload);
            let (read, rest) = split(&bytes).unwrap();
            prop_assert_eq!((read.head, read.number, rest), (head, number, &payload[..]));
        }

        #[test]
        fn bytes_that_are_no_frame_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(split(&bytes).is_err());
        }

        /// Begins like a frame; the rest is anything.
        #[test]
        fn a_header_needs_its_checksum(rest in prop::collection::vec(any::<u8>(), HEADER..200)) {
            let bytes = [&MAGIC[..], &rest].concat();
            prop_assert_eq!(split(&bytes).unwrap_err(), Damage::Header);
        }

        #[test]
        fn one_changed_bit_is_seen(head in heads(), payload in prop::collection::vec(any::<u8>(), 0..400), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = frame(head, 7, &payload);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(split(&bytes).is_err());
        }

        #[test]
        fn a_frame_that_ends_early_is_seen(head in heads(), payload in prop::collection::vec(any::<u8>(), 0..400), keep in any::<prop::sample::Index>()) {
            let bytes = frame(head, 7, &payload);
            prop_assert_eq!(split(&bytes[..keep.index(bytes.len())]).unwrap_err(), Damage::Truncated);
        }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_though_its_checksum_holds() {
        let mut bytes = header(Head::default(), 0, &[]);
        for (length, fine) in [(MOST_BYTES as u64, true), (MOST_BYTES as u64 + 1, false), (u64::MAX, false)] {
            bytes[32..40].copy_from_slice(&length.to_le_bytes());
            let sum = checksum(&bytes[..SUMMED]);
            bytes[SUMMED..].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(Header::parse(&bytes).is_ok(), fine, "{length}");
        }
    }
}
