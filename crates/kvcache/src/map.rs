use crate::{HeadClass, PAGE_POSITIONS, PageTable};

/// Which head class each (layer, KV head) belongs to (DuoAttention, arXiv 2410.10819).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadMap {
    /// At most [`HeadMap::MOST_CLASSES`].
    pub classes: Vec<HeadClass>,
    /// `[layer][KV head]`: index of the class.
    pub class_of: Vec<Vec<u8>>,
}

/// Why a head map does not suit a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeadMap {
    #[error("it has {0} head classes; 1 or 2 are built")]
    Classes(usize),
    #[error("it has {found} layers and the model has {expected}")]
    Layers { found: usize, expected: usize },
    #[error("layer {layer} has {found} KV heads and the model has {expected}")]
    Heads { layer: usize, found: usize, expected: usize },
    #[error("layer {layer} names head class {class}, which it does not have")]
    Class { layer: usize, class: u8 },
}

impl HeadMap {
    pub const MOST_CLASSES: usize = 2;

    /// All heads in one class.
    pub fn uniform(class: HeadClass, layers: usize, kv_heads: usize) -> Self {
        Self { classes: vec![class], class_of: vec![vec![0; kv_heads]; layers] }
    }

    /// Of every layer, the first heads are Full and the others have a window: for measurements, where it does not
    /// matter which.
    pub fn half_windows(layers: usize, kv_heads: usize, sink: u32, recent: u32) -> Self {
        let heads = (0..kv_heads).map(|head| u8::from(head >= kv_heads / 2)).collect();
        Self {
            classes: vec![HeadClass::Full, HeadClass::Window { sink, recent }],
            class_of: vec![heads; layers],
        }
    }

    /// The class of a head; class 0 for one that is not there.
    #[inline]
    pub fn class(&self, layer: usize, head: usize) -> usize {
        self.class_of.get(layer).and_then(|heads| heads.get(head)).map_or(0, |class| usize::from(*class))
    }

    /// Heads of `class` in `layer`.
    pub fn heads(&self, layer: usize, class: usize) -> impl Iterator<Item = usize> {
        let heads = self.class_of.get(layer).map_or(&[][..], Vec::as_slice);
        heads.iter().enumerate().filter(move |(_, of)| usize::from(**of) == class).map(|(head, _)| head)
    }

    /// KV heads of the largest class in a layer.
    pub fn most_heads(&self) -> u32 {
        let counts = (0..self.class_of.len())
            .flat_map(|layer| (0..self.classes.len()).map(move |class| self.heads(layer, class).count()));
        counts.max().unwrap_or(0) as u32
    }

    /// (layer, KV head) pairs of a class: what one position of one of its pages holds keys and values of.
    pub fn units(&self, class: usize) -> usize {
        (0..self.class_of.len()).map(|layer| self.heads(layer, class).count()).sum()
    }

    /// Whether no head looks back on less than everything.
    pub fn is_full(&self) -> bool {
        let window = |class: &u8| self.classes.get(usize::from(*class)) != Some(&HeadClass::Full);
        !self.class_of.iter().flatten().any(window)
    }

    /// A name for what it does to a model's numerics: two maps with one name mask alike.
    pub fn digest(&self) -> String {
        use sha2::{Digest as _, Sha256};

        let mut hash = Sha256::new_with_prefix(b"paceline head map 1");
        for heads in &self.class_of {
            hash.update((heads.len() as u64).to_le_bytes());
            for class in heads {
                // What a head sees, whatever number its class has.
                let (sink, recent) = match self.classes.get(usize::from(*class)) {
                    Some(HeadClass::Window { sink, recent }) => (*sink, *recent),
                    Some(HeadClass::Full) | None => (u32::MAX, u32::MAX),
                };
                hash.update(sink.to_le_bytes());
                hash.update(recent.to_le_bytes());
            }
        }
        hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Checks it against the shape of a model.
    pub fn check(&self, layers: usize, kv_heads: usize) -> Result<(), BadHeadMap> {
        if !(1..=Self::MOST_CLASSES).contains(&self.classes.len()) {
            return Err(BadHeadMap::Classes(self.classes.len()));
        }
        if self.class_of.len() != layers {
            return Err(BadHeadMap::Layers { found: self.class_of.len(), expected: layers });
        }
        for (layer, heads) in self.class_of.iter().enumerate() {
            if heads.len() != kv_heads {
                return Err(BadHeadMap::Heads { layer, found: heads.len(), expected: kv_heads });
            }
            if let Some(class) = heads.iter().find(|class| usize::from(**class) >= self.classes.len()) {
                return Err(BadHeadMap::Class { layer, class: *class });
            }
        }
        Ok(())
    }

    /// Pages of each class that fit `bytes` when a page of class i takes `sizes[i]` bytes; `None`: not one of each.
    ///
    /// A window class has what `slots` sequences of `context` positions can hold at once, if that is less than an
    /// equal number of pages of each class; what it leaves goes to the full class.
    pub fn share_out(&self, bytes: u64, sizes: &[u64], slots: u32, context: u32) -> Option<Vec<u32>> {
        /// Longer chunks of a prompt than any back end takes at once: room for the pages of one step.
        const CHUNK: u32 = 2048;
        let equal = bytes / sizes.iter().sum::<u64>().max(1);
        if equal == 0 {
            return None;
        }
        let most = |class: &HeadClass| {
            u64::from(PageTable::worst_case(*class, context, CHUNK)).saturating_mul(slots.into())
        };
        let mut pages: Vec<u64> = self.classes.iter().map(|class| equal.min(most(class))).collect();
        let taken: u64 = pages.iter().zip(sizes).map(|(pages, size)| pages * size).sum();
        // All that is left, even beyond what slots can use: it keeps prefixes.
        let full = |(class, size): (&HeadClass, &u64)| *class == HeadClass::Full && *size > 0;
        let rest = self.classes.iter().zip(sizes).position(full).or(sizes.iter().position(|size| *size > 0));
        if let Some(rest) = rest {
            pages[rest] += bytes.saturating_sub(taken) / sizes[rest];
        }
        Some(pages.into_iter().map(|pages| pages.min(1 << 30) as u32).collect())
    }

    /// Bytes of keys and values of `positions` positions, if no page were larger than what it holds: DuoAttention's
    /// formula, where `unit` bytes are those of one position of one head.
    pub fn kv_bytes(&self, positions: u32, unit: u64) -> u64 {
        let held = |class: &HeadClass| match class {
            HeadClass::Full => u64::from(positions),
            HeadClass::Window { sink, recent } => u64::from(positions.min(sink.saturating_add(*recent))),
        };
        let classes = self.classes.iter().enumerate();
        classes.map(|(index, class)| self.units(index) as u64 * held(class) * unit).sum()
    }

    /// Bytes of one page of a class.
    pub fn page_bytes(&self, class: usize, unit: u64) -> u64 {
        self.units(class) as u64 * u64::from(PAGE_POSITIONS) * unit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{PagePool, PrefixChain, PrefixRoot, hit_pages, longest_hit};

    fn map(windows: &[u8], kv_heads: usize, sink: u32, recent: u32) -> HeadMap {
        HeadMap {
            classes: vec![HeadClass::Full, HeadClass::Window { sink, recent }],
            class_of: windows.chunks(kv_heads).map(<[u8]>::to_vec).collect(),
        }
    }

    /// Formula 5.3 of DuoAttention's paper, for what a sequence holds and for what a hand-off of it would move.
    #[test]
    fn what_is_held_and_moved_is_the_formula() {
        const UNIT: u64 = 2 * 2 * 128;
        for sparsity in [0usize, 14, 28, 42, 56] {
            let windows: Vec<u8> = (0..56).map(|i| u8::from(i * 23 % 56 < sparsity)).collect();
            let map = map(&windows, 2, 128, 256);
            for positions in [1024u32, 8192, 32_768] {
                let tokens: Vec<_> = (0..positions).map(request::TokenId).collect();
                let hashes = PrefixChain::new(PrefixRoot::salted("")).reach(&tokens).to_vec();
                let mut pools: Vec<PagePool> =
                    map.classes.iter().map(|class| PagePool::new(*class, positions / 16 + 1)).collect();
                let mut held = 0;
                for (class, pool) in pools.iter_mut().enumerate() {
                    let mut table = PageTable::new();
                    // As prompts are computed: chunk by chunk, with a commit after each.
                    for line in (128..=positions).step_by(128) {
                        table.cover(line, pool).unwrap();
                        table.seal(&hashes[..line as usize / 16], pool);
                        table.commit(line, pool);
                        assert!(table.held() <= PageTable::worst_case(pool.class(), positions, 128));
                    }
                    held += u64::from(table.held()) * map.page_bytes(class, UNIT);
                    table.truncate(0, pool);
                }
                let formula = map.kv_bytes(positions, UNIT);
                let off = |bytes: u64| (bytes as f64 - formula as f64).abs() / formula as f64;
                assert!(off(held) <= 0.02, "{sparsity}/56 windows, {positions}: {held} held, {formula}");
                // What the pools still have of it is a hit, and moves as little.
                let pages = longest_hit(&pools, &hashes);
                assert_eq!(pages, positions / 16, "{sparsity}/56");
                let moved: u64 = pools
                    .iter()
                    .enumerate()
                    .map(|(class, pool)| hit_pages(pool, &hashes).len() as u64 * map.page_bytes(class, UNIT))
                    .sum();
                assert!(off(moved) <= 0.02, "{sparsity}/56 windows, {positions}: {moved} moved, {formula}");
            }
        }
    }

    #[test]
    fn a_map_of_another_model_is_refused() {
        let map = HeadMap::half_windows(3, 2, 1, 2);
        map.check(3, 2).unwrap();
        assert_eq!(map.check(4, 2), Err(BadHeadMap::Layers { found: 3, expected: 4 }));
        assert_eq!(map.check(3, 4), Err(BadHeadMap::Heads { layer: 0, found: 2, expected: 4 }));
        let mut wrong = map.clone();
        wrong.class_of[1][1] = 2;
        assert_eq!(wrong.check(3, 2), Err(BadHeadMap::Class { layer: 1, class: 2 }));
        wrong.classes = vec![HeadClass::Full; 3];
        assert_eq!(wrong.check(3, 2), Err(BadHeadMap::Classes(3)));
    }

    #[test]
    fn a_digest_names_what_heads_see() {
        let half = HeadMap::half_windows(2, 2, 1, 2);
        let swapped =
            HeadMap { classes: half.classes.iter().rev().copied().collect(), class_of: vec![vec![1, 0]; 2] };
        assert_eq!(half.digest(), swapped.digest(), "the same heads under other numbers");
        let others = [
            HeadMap::half_windows(2, 2, 1, 3),
            HeadMap::half_windows(2, 2, 2, 2),
            HeadMap::half_windows(3, 2, 1, 2),
            HeadMap::half_windows(1, 4, 1, 2),
            HeadMap::uniform(HeadClass::Full, 2, 2),
        ];
        for other in others {
            assert_ne!(half.digest(), other.digest(), "{other:?}");
        }
        assert!(!half.is_full() && HeadMap::uniform(HeadClass::Full, 2, 2).is_full());
    }

    proptest! {
        /// Never more bytes than there are, and a full class has no less than without windows.
        #[test]
        fn shares_fit(
            windows in prop::collection::vec(0u8..2, 1..9), sink in 0u32..100, recent in 1u32..5000,
            bytes in 0u64..1 << 32, slots in 1u32..64, context in 1u32..100_000,
        ) {
            let map = map(&windows, 1, sink, recent);
            let sizes: Vec<u64> = (0..2).map(|class| map.page_bytes(class, 512)).collect();
            let Some(pages) = map.share_out(bytes, &sizes, slots, context) else {
                prop_assert!(bytes < sizes.iter().sum());
                return Ok(());
            };
            let taken: u64 = pages.iter().zip(&sizes).map(|(pages, size)| u64::from(*pages) * size).sum();
            prop_assert!(taken <= bytes);
            prop_assert!(pages.iter().all(|pages| *pages > 0));
            prop_assert!(sizes[0] > 0 || u64::from(pages[0]) <= bytes / sizes[1], "a class without heads");
            prop_assert!(u64::from(pages[0]) >= bytes / sizes.iter().sum::<u64>() || sizes[0] == 0 || pages[0] == 1 << 30);
        }
    }
}
