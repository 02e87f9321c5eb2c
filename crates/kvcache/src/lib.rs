//! Pages of the KV cache as bookkeeping: who owns which page, and which pages a sequence still needs.
//!
//! ```text
//! PagePool --reserve--> Reservation --take--> OwnedPage (one sequence's, in a PageTable)
//! truncate, commit or clear of the table gives pages back to the pool
//! ```
//!
//! A page is 16 positions of every (layer, head) of one [`HeadClass`] on this rank; each class of a
//! sequence has its own [`PageTable`]. A page is a value that cannot be copied, so using one after
//! it was given back does not compile.
//!
//! Not here: tensors (`model::cache`), bytes in flight (`transport`), sealed pages shared by prefix
//! (issue 3). Start at [`PageTable`].
#![forbid(unsafe_code)]

mod class;
mod page;
mod pool;
mod prefix;
mod table;

pub use class::{ClassId, HeadClass};
pub use page::{PAGE_POSITIONS, PageId, pages_for};
pub use pool::{NoPages, OwnedPage, PagePool, Reservation};
pub use prefix::{PageHash, PrefixChain, PrefixRoot, Scope};
pub use table::PageTable;
