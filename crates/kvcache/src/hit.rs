use crate::{HeadClass, PAGE_POSITIONS, PageHash, PageId, PagePool, pages_for};

/// The longest prefix, in pages, that every class can serve from its sealed pages.
///
/// To go on at position b = 16 * pages, a full class needs every page before b; a window class its
/// sink pages and those that a query at b or later still sees. `chain` holds the hashes of the pages
/// that may be served; `pools` has one pool per class.
pub fn longest_hit(pools: &[PagePool], chain: &[PageHash]) -> u32 {
    let (full, windows): (Vec<_>, Vec<_>) = pools.iter().partition(|pool| pool.class() == HeadClass::Full);
    let bound = full.iter().fold(chain.len(), |bound, pool| {
        chain[..bound].iter().take_while(|hash| pool.find(hash).is_some()).count()
    });
    let windows: Vec<Runs> = windows.iter().map(|pool| Runs::new(pool, &chain[..bound])).collect();
    (1..=bound as u32).rev().find(|pages| windows.iter().all(|runs| runs.suit(*pages))).unwrap_or(0)
}

/// The pages that a table resumed after `chain` would share.
pub fn hit_pages(pool: &PagePool, chain: &[PageHash]) -> Vec<PageId> {
    let line = chain.len() as u32 * PAGE_POSITIONS;
    let needed = chain.iter().zip(0..).filter(|(_, index)| pool.class().needs(line, *index));
    needed.filter_map(|(hash, _)| pool.find(hash)).collect()
}

/// Which pages of a chain a window class has.
struct Runs {
    class: HeadClass,
    sink: u32,
    /// Pages there from the first one on.
    head: u32,
    /// At index i: pages there in a row, the last of them page i.
    ending: Vec<u32>,
}

impl Runs {
    fn new(pool: &PagePool, chain: &[PageHash]) -> Self {
        let sink = match pool.class() {
            HeadClass::Full => 0,
            HeadClass::Window { sink, .. } => sink,
        };
        let mut run = 0;
        let ending: Vec<u32> = chain
            .iter()
            .map(|hash| {
                run = if pool.find(hash).is_some() { run + 1 } else { 0 };
                run
            })
            .collect();
        let head = ending.iter().take_while(|run| **run > 0).count() as u32;
        Self { class: pool.class(), sink, head, ending }
    }

    fn suit(&self, pages: u32) -> bool {
        let reach = self.class.reach(pages * PAGE_POSITIONS);
        self.head >= pages_for(self.sink).min(pages)
            && self.ending[pages as usize - 1] >= pages.saturating_sub(reach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PrefixChain, PrefixRoot};
    use proptest::prelude::*;
    use request::TokenId;

    fn hashes(pages: u32) -> Vec<PageHash> {
        let tokens: Vec<TokenId> = (0..pages * PAGE_POSITIONS).map(TokenId).collect();
        PrefixChain::new(PrefixRoot::salted("")).reach(&tokens).to_vec()
    }

    /// A pool that holds the pages marked `x`.
    fn pool(class: HeadClass, there: &str) -> PagePool {
        let mut pool = PagePool::new(class, there.len() as u32);
        for (hash, mark) in hashes(there.len() as u32).into_iter().zip(there.chars()) {
            let page = pool.take().unwrap();
            if mark == 'x' {
                let page = pool.seal(page, hash);
                pool.release(page);
            }
        }
        pool
    }

    const WINDOW: HeadClass = HeadClass::Window { sink: 4, recent: 20 };

    #[test]
    fn the_longest_prefix_that_suits_all_classes() {
        // At b = 16n the window sees keys above b - 20: pages n-2 and n-1, and the sink's page 0.
        for (full, window, hit) in [
            ("xxxx", "xxxx", 4),
            ("xx.x", "xxxx", 2),
            ("xxxxxx", "x...xx", 6),
            ("xxxxxx", "x..xx.", 5),
            ("xxxxxx", "x.x.x.", 1),
            ("xxxxxx", ".xxxxx", 0),
            ("......", "xxxxxx", 0),
        ] {
            let pages = full.len() as u32;
            let pools = [pool(HeadClass::Full, full), pool(WINDOW, window)];
            assert_eq!(longest_hit(&pools, &hashes(pages)), hit, "{full} {window}");
        }
    }

    proptest! {
        /// The definition, tried page by page.
        #[test]
        fn it_is_the_longest(
            full in "[x.]{8}|x{8}", window in "[x.]{8}|x{8}", sink in 0u32..40, recent in 1u32..80,
        ) {
            let class = HeadClass::Window { sink, recent };
            let (pools, chain) = ([pool(HeadClass::Full, &full), pool(class, &window)], hashes(8));
            let suits = |pages: u32| pools.iter().all(|pool| {
                (0..pages).all(|i| !pool.class().needs(pages * 16, i) || pool.find(&chain[i as usize]).is_some())
            });
            let longest = (0..=8).rev().find(|pages| suits(*pages)).unwrap();
            prop_assert_eq!(longest_hit(&pools, &chain), longest);
        }
    }
}
