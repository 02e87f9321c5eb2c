use crate::PAGE_POSITIONS;

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

    /// Whether a query at position `line` or later needs page `index`: it sees one of its keys or
    /// will write one.
    pub fn needs(self, line: u32, index: u32) -> bool {
        match self {
            Self::Full => true,
            Self::Window { sink, .. } => {
                u64::from(index) * u64::from(PAGE_POSITIONS) < u64::from(sink) || index >= self.reach(line)
            }
        }
    }

    /// The first page behind the sink that a query at `line` or later needs.
    pub(crate) fn reach(self, line: u32) -> u32 {
        match self {
            Self::Full => 0,
            // The query sees keys above `line - recent`; it writes its own page even when it sees none.
            Self::Window { recent, .. } => {
                (line.saturating_add(1).saturating_sub(recent)).min(line) / PAGE_POSITIONS
            }
        }
    }
}

/// Index of a class in the model's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u8);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_window_sees_its_sink_and_its_recent_keys() {
        let class = HeadClass::Window { sink: 2, recent: 3 };
        let seen: Vec<u32> = (0..10).filter(|&k| class.sees(7, k)).collect();
        assert_eq!(seen, [0, 1, 5, 6, 7]);
        assert_eq!((0..10).filter(|&k| HeadClass::Full.sees(4, k)).count(), 5);
    }

    proptest! {
        /// A page is needed exactly when some query from the line on sees one of its keys.
        #[test]
        fn a_page_is_needed_while_it_can_be_seen(sink in 0u32..50, recent in 1u32..70, line in 0u32..200) {
            let class = HeadClass::Window { sink, recent };
            for index in 0..12 {
                let keys = index * PAGE_POSITIONS..(index + 1) * PAGE_POSITIONS;
                let seen = keys.into_iter().any(|key| (line..400).any(|query| class.sees(query, key)));
                prop_assert_eq!(class.needs(line, index), seen, "page {}", index);
            }
        }
    }
}
