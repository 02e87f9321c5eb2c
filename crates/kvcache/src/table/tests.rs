use proptest::prelude::*;
use request::TokenId;

use super::*;
use crate::{PrefixChain, PrefixRoot, longest_hit};

const WINDOW: HeadClass = HeadClass::Window { sink: 20, recent: 40 };

fn hashes(positions: u32) -> Vec<PageHash> {
    let tokens: Vec<TokenId> = (0..positions).map(TokenId).collect();
    PrefixChain::new(PrefixRoot::salted("")).reach(&tokens).to_vec()
}

#[test]
fn a_full_table_grows_and_rolls_back_by_whole_pages() {
    let mut pool = PagePool::new(HeadClass::Full, 8);
    let mut table = PageTable::new();
    assert_eq!(table.cover(17, &mut pool).unwrap(), [PageId(0), PageId(1)]);
    assert_eq!(table.cover(32, &mut pool).unwrap(), []);
    assert_eq!(table.truncate(17, &mut pool), None);
    assert_eq!(table.truncate(16, &mut pool), Some(1));
    assert_eq!((table.held(), table.covers(), table.missing(40)), (1, 16, 2));
    assert!(table.commit(16, &mut pool).is_empty());
    assert_eq!(table.cover(1000, &mut pool), None, "more than there are");
    assert_eq!((table.held(), pool.available()), (1, 7), "and nothing changed");
}

#[test]
fn a_window_keeps_sink_and_recent_pages() {
    let mut pool = PagePool::new(WINDOW, 64);
    let mut table = PageTable::new();
    table.cover(160, &mut pool).unwrap();
    // Positions up to 160 - 40 = 120 are out of sight: pages 2..7 (32..112); 0 and 1 hold the sink.
    assert_eq!(table.commit(160, &mut pool), [6, 5, 4, 3, 2]);
    assert_eq!(table.held(), 5);
    assert!(table.commit(160, &mut pool).is_empty());
}

#[test]
fn the_deepest_page_of_a_finished_sequence_is_evicted_first() {
    let (mut pool, chain) = (PagePool::new(HeadClass::Full, 3), hashes(48));
    let mut table = PageTable::new();
    table.cover(48, &mut pool).unwrap();
    table.seal(&chain, &mut pool);
    table.truncate(0, &mut pool);
    assert_eq!((pool.free(), pool.cached()), (0, 3));
    let mut next = PageTable::new();
    next.cover(16, &mut pool).unwrap();
    assert_eq!(longest_hit(std::slice::from_ref(&pool), &chain), 2, "the prefix is what lasts");
}

#[test]
fn a_window_table_resumes_with_holes() {
    let (mut pool, chain) = (PagePool::new(WINDOW, 16), hashes(160));
    let mut table = PageTable::new();
    table.cover(160, &mut pool).unwrap();
    table.seal(&chain, &mut pool);
    table.truncate(0, &mut pool);
    let resumed = PageTable::resume(&chain, &mut pool);
    let there: String = resumed.pages().map(|page| if page.is_some() { 'x' } else { '.' }).collect();
    assert_eq!(there, "xx.....xxx");
    assert_eq!((resumed.held(), resumed.owned().count(), pool.cached()), (5, 0, 5));
}

proptest! {
    /// Whatever is done, no page is lost or doubled, everything a later query sees is still there,
    /// sealed pages are never handed to a second writer, and the worst case holds.
    #[test]
    fn pages_are_conserved_and_visible_keys_are_kept(
        steps in prop::collection::vec((1u32..33, 0u32..6), 1..60),
        full: bool, sealing: bool, resumed in 0u32..200,
    ) {
        let class = if full { HeadClass::Full } else { WINDOW };
        let mut pool = PagePool::new(class, 400);
        let worst = PageTable::worst_case(class, 60 * 40, 40);
        let chain = hashes(60 * 40);
        let mut before = PageTable::new();
        before.cover(resumed, &mut pool).unwrap();
        before.seal(&chain[..(resumed / PAGE_POSITIONS) as usize], &mut pool);
        let start = resumed / PAGE_POSITIONS * PAGE_POSITIONS;
        let mut table = PageTable::resume(&chain[..(start / PAGE_POSITIONS) as usize], &mut pool);
        let mut line = start;
        for (grow, drafts) in steps {
            table.cover(line + grow + drafts, &mut pool).unwrap();
            prop_assert!(table.held() <= worst);
            line += grow;
            table.truncate(line, &mut pool);
            if sealing {
                table.seal(&chain[..(line / PAGE_POSITIONS) as usize], &mut pool);
            }
            table.commit(line, &mut pool);
            prop_assert_eq!(table.pages().flatten().count() as u32, table.held());
            let pages: Vec<_> = table.pages().collect();
            for key in 0..line {
                prop_assert!(!class.sees(line, key) || pages[(key / PAGE_POSITIONS) as usize].is_some());
            }
            let mut distinct: Vec<_> = table.pages().flatten().chain(before.pages().flatten()).collect();
            distinct.sort();
            distinct.dedup();
            prop_assert_eq!(distinct.len() as u32 + pool.available(), 400, "no page is lost");
            prop_assert!(table.owned().all(|page| before.pages().all(|other| other != Some(page))));
        }
        table.truncate(0, &mut pool);
        before.truncate(0, &mut pool);
        prop_assert_eq!((table.held(), before.held()), (0, 0));
        prop_assert_eq!(pool.available(), 400);
        if sealing {
            prop_assert_eq!(pool.cached(), line / PAGE_POSITIONS, "every full page can be found again");
        }
    }
}
