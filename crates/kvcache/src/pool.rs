use crate::PageId;

/// A page in one sequence's hands: writable, not copyable; goes back by [`PagePool::give_back`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dropped page is lost to the pool; give it back"]
pub struct OwnedPage(PageId);

impl OwnedPage {
    pub fn id(&self) -> PageId {
        self.0
    }
}

/// The right to take pages later without failing. Goes back by [`PagePool::release`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dropped reservation keeps its pages from everybody; release it"]
pub struct Reservation {
    unused: u32,
}

impl Reservation {
    /// Pages that can still be taken on it.
    pub fn unused(&self) -> u32 {
        self.unused
    }
}

/// The free pages of one head class.
///
/// Pages are promised before they are taken: a sequence that was admitted never fails for memory in
/// the middle of its answer.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<PageId>,
    capacity: u32,
    promised: u32,
}

/// The pool cannot promise that many pages now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} pages are needed and {available} of {capacity} are available")]
pub struct NoPages {
    pub needed: u32,
    pub available: u32,
    pub capacity: u32,
}

impl PagePool {
    pub fn new(capacity: u32) -> Self {
        // Reversed, so that pages are first taken in rising order: logs read better.
        Self { free: (0..capacity).rev().map(PageId).collect(), capacity, promised: 0 }
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Pages neither taken nor promised.
    pub fn available(&self) -> u32 {
        self.free.len() as u32 - self.promised
    }

    pub fn reserve(&mut self, pages: u32) -> Result<Reservation, NoPages> {
        let available = self.available();
        if pages > available {
            return Err(NoPages { needed: pages, available, capacity: self.capacity });
        }
        self.promised += pages;
        Ok(Reservation { unused: pages })
    }

    /// Takes one promised page; `None` when the reservation is used up.
    pub fn take(&mut self, reservation: &mut Reservation) -> Option<OwnedPage> {
        reservation.unused = reservation.unused.checked_sub(1)?;
        self.promised -= 1;
        let page = self.free.pop();
        debug_assert!(page.is_some(), "every promised page is in the free list");
        page.map(OwnedPage)
    }

    /// Takes a page back; its promise returns to the sequence's reservation.
    pub fn give_back(&mut self, page: OwnedPage, reservation: &mut Reservation) {
        debug_assert!(!self.free.contains(&page.0), "page {:?} is given back once", page.0);
        self.free.push(page.0);
        self.promised += 1;
        reservation.unused += 1;
    }

    /// Ends a reservation.
    pub fn release(&mut self, reservation: Reservation) {
        self.promised -= reservation.unused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_is_not_promised_twice() {
        let mut pool = PagePool::new(4);
        let mut a = pool.reserve(3).unwrap();
        assert_eq!(pool.reserve(2).unwrap_err(), NoPages { needed: 2, available: 1, capacity: 4 });
        let page = pool.take(&mut a).unwrap();
        assert_eq!((pool.available(), a.unused()), (1, 2));
        pool.give_back(page, &mut a);
        assert_eq!((pool.available(), a.unused()), (1, 3));
        pool.release(a);
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn a_used_up_reservation_gives_nothing() {
        let mut pool = PagePool::new(4);
        let mut a = pool.reserve(1).unwrap();
        let page = pool.take(&mut a).unwrap();
        assert_eq!(pool.take(&mut a), None);
        pool.give_back(page, &mut a);
        pool.release(a);
    }
}
