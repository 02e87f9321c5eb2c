use crate::checksum;

/// One unit of a hand-off: 16 positions of one layer of one head class. It goes before the unit's bytes
/// in the payload of its message; the message's token is the transfer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageUnit {
    /// Which page of the transfer: position of its first token / 16.
    pub page: u32,
    pub layer: u32,
    /// Index of the head class in the model's head map.
    pub class: u32,
    /// The sender's storage when the page was sealed: pages of another are stale.
    pub generation: u64,
    /// Of the bytes in the storage they were read from.
    pub checksum: u64,
}

/// Size of a [`PageUnit`] on the way.
pub const UNIT_BYTES: usize = 28;

impl PageUnit {
    /// The unit, then its bytes; what `into` held is gone.
    pub fn write(&self, bytes: &[u8], into: &mut Vec<u8>) {
        into.clear();
        for number in [self.page, self.layer, self.class] {
            into.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.generation, self.checksum] {
            into.extend_from_slice(&number.to_le_bytes());
        }
        into.extend_from_slice(bytes);
    }

    /// The unit and its bytes; `None` when the payload is too short to be one. Whether the bytes are
    /// those that its checksum names is said by [`PageUnit::holds`].
    pub fn read(payload: &[u8]) -> Option<(Self, &[u8])> {
        let (head, bytes) = payload.split_first_chunk::<UNIT_BYTES>()?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let unit =
            Self { page: word(0), layer: word(4), class: word(8), generation: long(12), checksum: long(20) };
        Some((unit, bytes))
    }

    /// Whether these are its bytes.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        checksum(bytes) == self.checksum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_unit_is_read_as_it_was_written(page: u32, layer: u32, class: u32, generation: u64, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let unit = PageUnit { page, layer, class, generation, checksum: checksum(&bytes) };
            let mut payload = vec![1, 2, 3];
            unit.write(&bytes, &mut payload);
            let (read, rest) = PageUnit::read(&payload).unwrap();
            prop_assert_eq!((read, rest), (unit, &bytes[..]));
            prop_assert!(read.holds(rest));
        }

        #[test]
        fn what_is_too_short_is_no_unit(payload in prop::collection::vec(any::<u8>(), 0..UNIT_BYTES)) {
            prop_assert_eq!(PageUnit::read(&payload), None);
        }
    }

    #[test]
    fn other_bytes_are_not_its_bytes() {
        let unit = PageUnit { page: 0, layer: 0, class: 0, generation: 1, checksum: checksum(b"keys") };
        assert!(unit.holds(b"keys") && !unit.holds(b"kezs"));
    }
}
