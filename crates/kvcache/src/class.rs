/// What a head may look back on; decides which pages a sequence keeps for it.
///
/// A model has one or more classes; every (layer, KV head) belongs to exactly one, and each class
/// of a sequence has its own page table (DuoAttention, arXiv 2410.10819).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadClass {
    /// Every earlier position.
    Full,
    /// The first `sink` positions and the last `recent` ones (the query's own included).
    Window { sink: u32, recent: u32 },
}

impl HeadClass {
    /// Whether the query at position `query` sees the key at `key`. The mask is absolute: it does
    /// not depend on how a prompt was cut into chunks.
    #[inline]
    pub fn sees(self, query: u32, key: u32) -> bool {
        match self {
            Self::Full => key <= query,
            Self::Window { sink, recent } => key <= query && (key < sink || query - key < recent),
        }
    }
}

/// Index of a class in the model's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_sees_its_sink_and_its_recent_keys() {
        let class = HeadClass::Window { sink: 2, recent: 3 };
        let seen: Vec<u32> = (0..10).filter(|&k| class.sees(7, k)).collect();
        assert_eq!(seen, [0, 1, 5, 6, 7]);
        assert_eq!((0..10).filter(|&k| HeadClass::Full.sees(4, k)).count(), 5);
    }
}
