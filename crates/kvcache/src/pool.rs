use std::collections::{BTreeMap, HashMap};

use crate::{HeadClass, PageHash, PageId};

/// A page in one sequence's hands: writable, not copyable; goes back by [`PagePool::give_back`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dropped page is lost to the pool; give it back"]
pub struct OwnedPage(PageId);

impl OwnedPage {
    pub fn id(&self) -> PageId {
        self.0
    }
}

/// One sequence's hold on a sealed page: nobody writes it any more, others may hold it too. Not
/// copyable; goes back by [`PagePool::release`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dropped hold keeps its page from everybody; release it"]
pub struct SharedPage(PageId);

impl SharedPage {
    pub fn id(&self) -> PageId {
        self.0
    }
}

/// What happened to the content that a pool can find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolChange {
    /// A page of this content was sealed, and none was there before.
    Stored(PageHash),
    /// It was taken for something else, and is not written yet.
    Evicted { page: PageId, hash: PageHash },
    /// Nothing is found any more.
    Forgotten,
}

/// The pages of one head class.
///
/// A page is free, owned, or sealed. A sealed page that nobody holds stays as *cached*: it is found
/// by its hash until no free page is left and it is the one that was let go longest ago.
#[derive(Debug)]
pub struct PagePool {
    class: HeadClass,
    free: Vec<PageId>,
    /// By page.
    sealed: Vec<Sealed>,
    /// Never iterated: the order of a hash map must not decide anything.
    index: HashMap<PageHash, PageId>,
    /// Cached pages, by when they were let go.
    cached: BTreeMap<u64, PageId>,
    /// Counts pages let go; orders `cached`.
    let_go: u64,
    evictions: u64,
    /// Since they were last asked for; `None`: nobody asks.
    changes: Option<Vec<PoolChange>>,
}

#[derive(Clone, Debug, Default)]
struct Sealed {
    /// The key in `index`; `None` for a page that is not sealed, or whose content another page has
    /// under that hash.
    hash: Option<PageHash>,
    holders: u32,
    /// The key in `cached`.
    since: Option<u64>,
}

impl PagePool {
    pub fn new(class: HeadClass, capacity: u32) -> Self {
        Self {
            class,
            // Reversed, so that pages are first taken in rising order: logs read better.
            free: (0..capacity).rev().map(PageId).collect(),
            sealed: vec![Sealed::default(); capacity as usize],
            index: HashMap::new(),
            cached: BTreeMap::new(),
            let_go: 0,
            evictions: 0,
            changes: None,
        }
    }

    pub fn class(&self) -> HeadClass {
        self.class
    }

    /// From now on changes are kept for [`PagePool::changes`], which is to be called after each step.
    pub fn watch(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// What happened since the last call, in order.
    pub fn changes(&mut self) -> Vec<PoolChange> {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn changed(&mut self, change: PoolChange) {
        if let Some(changes) = &mut self.changes {
            changes.push(change);
        }
    }

    pub fn capacity(&self) -> u32 {
        self.sealed.len() as u32
    }

    /// Pages that hold nothing.
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Sealed pages that nobody holds.
    pub fn cached(&self) -> u32 {
        self.cached.len() as u32
    }

    /// Pages that [`PagePool::take`] can give.
    pub fn available(&self) -> u32 {
        self.free() + self.cached()
    }

    /// Cached pages that were taken for something else, since the start.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// A free page or, when none is left, the cached one that was let go longest ago.
    pub fn take(&mut self) -> Option<OwnedPage> {
        if let Some(page) = self.free.pop() {
            return Some(OwnedPage(page));
        }
        let (_, page) = self.cached.pop_first()?;
        if let Some(hash) = std::mem::take(&mut self.sealed[page.0 as usize]).hash {
            self.index.remove(&hash);
            self.changed(PoolChange::Evicted { page, hash });
        }
        self.evictions += 1;
        Some(OwnedPage(page))
    }

    /// Takes back a page that was never sealed: its content is lost.
    pub fn give_back(&mut self, page: OwnedPage) {
        self.free.push(page.0);
    }

    /// Ends writing to a full page. From here it is found by `hash`, unless another page is already:
    /// then this one serves its holder and is free afterwards.
    pub fn seal(&mut self, page: OwnedPage, hash: PageHash) -> SharedPage {
        let id = page.0;
        let first = *self.index.entry(hash).or_insert(id) == id;
        self.sealed[id.0 as usize] = Sealed { hash: first.then_some(hash), holders: 1, since: None };
        if first {
            self.changed(PoolChange::Stored(hash));
        }
        SharedPage(id)
    }

    /// The page with this content.
    pub fn find(&self, hash: &PageHash) -> Option<PageId> {
        self.index.get(hash).copied()
    }

    /// A hold on the page with this content.
    pub fn share(&mut self, hash: &PageHash) -> Option<SharedPage> {
        let page = self.find(hash)?;
        let sealed = &mut self.sealed[page.0 as usize];
        sealed.holders += 1;
        if let Some(since) = sealed.since.take() {
            self.cached.remove(&since);
        }
        Some(SharedPage(page))
    }

    /// Sequences that hold a sealed page; 0 when it is only cached.
    pub fn holders(&self, page: PageId) -> u32 {
        self.sealed.get(page.0 as usize).map_or(0, |sealed| sealed.holders)
    }

    /// Ends a hold. Of pages let go one after another, the first is evicted first.
    pub fn release(&mut self, page: SharedPage) {
        let sealed = &mut self.sealed[page.0.0 as usize];
        sealed.holders -= 1;
        match sealed.hash {
            _ if sealed.holders > 0 => {}
            Some(_) => {
                sealed.since = Some(self.let_go);
                self.cached.insert(self.let_go, page.0);
                self.let_go += 1;
            }
            None => self.free.push(page.0),
        }
    }

    /// Nothing is found by its hash any more: what the storage holds is not known. Cached pages are
    /// free, held ones will be.
    pub fn forget(&mut self) {
        self.index.clear();
        for sealed in &mut self.sealed {
            (sealed.hash, sealed.since) = (None, None);
        }
        self.free.extend(std::mem::take(&mut self.cached).into_values());
        self.changed(PoolChange::Forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PrefixChain, PrefixRoot};
    use request::TokenId;

    fn hashes(pages: u32) -> Vec<PageHash> {
        let tokens: Vec<TokenId> = (0..pages * 16).map(TokenId).collect();
        PrefixChain::new(PrefixRoot::salted("")).reach(&tokens).to_vec()
    }

    #[test]
    fn a_sealed_page_is_shared_and_stays_when_it_is_let_go() {
        let mut pool = PagePool::new(HeadClass::Full, 2);
        let [hash, other] = hashes(2)[..] else { unreachable!() };
        let page = pool.take().unwrap();
        let first = pool.seal(page, hash);
        let second = pool.share(&hash).unwrap();
        assert_eq!((first.id(), pool.holders(first.id())), (second.id(), 2));
        assert_eq!(pool.share(&other), None);
        pool.release(first);
        assert_eq!((pool.free(), pool.cached()), (1, 0), "the other still holds it");
        pool.release(second);
        assert_eq!((pool.free(), pool.cached(), pool.available()), (1, 1, 2));
        let third = pool.share(&hash).unwrap();
        assert_eq!((pool.cached(), pool.available()), (0, 1));
        pool.release(third);
    }

    #[test]
    fn free_pages_go_first_then_the_page_let_go_longest_ago() {
        let mut pool = PagePool::new(HeadClass::Full, 3);
        let hashes = hashes(2);
        let shared: Vec<SharedPage> = hashes
            .iter()
            .map(|hash| {
                let page = pool.take().unwrap();
                pool.seal(page, *hash)
            })
            .collect();
        shared.into_iter().for_each(|page| pool.release(page));
        // Read again: now the second is older.
        let again = pool.share(&hashes[0]).unwrap();
        pool.release(again);
        assert_eq!(pool.take().unwrap().id(), PageId(2), "free");
        assert_eq!(pool.evictions(), 0);
        assert_eq!(pool.take().unwrap().id(), PageId(1));
        assert_eq!((pool.find(&hashes[0]), pool.find(&hashes[1])), (Some(PageId(0)), None));
        assert_eq!(pool.take().unwrap().id(), PageId(0));
        assert_eq!((pool.take(), pool.evictions()), (None, 2));
    }

    #[test]
    fn the_second_page_of_one_content_is_not_found_and_is_free_afterwards() {
        let mut pool = PagePool::new(HeadClass::Full, 2);
        let hash = hashes(1)[0];
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        let (a, b) = (pool.seal(a, hash), pool.seal(b, hash));
        assert_eq!(pool.find(&hash), Some(a.id()));
        pool.release(b);
        assert_eq!((pool.free(), pool.cached()), (1, 0));
        pool.release(a);
        assert_eq!((pool.free(), pool.cached()), (1, 1));
    }

    #[test]
    fn whoever_watches_is_told_what_can_be_found() {
        let mut pool = PagePool::new(HeadClass::Full, 1);
        let hashes = hashes(2);
        let page = pool.take().unwrap();
        let page = pool.seal(page, hashes[0]);
        pool.release(page);
        assert_eq!(pool.changes(), [], "nobody watched");
        pool.watch();
        let page = pool.take().unwrap();
        let page = pool.seal(page, hashes[1]);
        let evicted = PoolChange::Evicted { page: PageId(0), hash: hashes[0] };
        assert_eq!(pool.changes(), [evicted, PoolChange::Stored(hashes[1])]);
        pool.release(page);
        pool.forget();
        assert_eq!((pool.changes(), pool.changes()), (vec![PoolChange::Forgotten], vec![]));
    }

    #[test]
    fn what_is_forgotten_is_not_found_again() {
        let mut pool = PagePool::new(HeadClass::Full, 2);
        let hashes = hashes(2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        let (a, b) = (pool.seal(a, hashes[0]), pool.seal(b, hashes[1]));
        pool.release(a);
        pool.forget();
        assert_eq!((pool.find(&hashes[0]), pool.find(&hashes[1]), pool.free()), (None, None, 1));
        pool.release(b);
        assert_eq!((pool.free(), pool.cached()), (2, 0));
    }
}
