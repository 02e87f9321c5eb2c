//! Pages of the KV cache as bookkeeping: who holds which page, which pages a sequence still needs,
//! and which hold a prefix that the next sequence may start from.
//!
//! ```text
//! free --take--> OwnedPage --seal(hash)--> SharedPage --release by the last holder--> cached
//!   ^                |                         ^                                     |    |
//!   +-- give back ---+                         +------------ share(hash) ------------+    |
//!   +------------------- evicted: no free page is left, let go longest ago ---------------+
//! ```
//!
//! A page is 16 positions of every (layer, head) of one [`HeadClass`] on this rank; each class has
//! its own [`PagePool`], and a sequence has one [`PageTable`] per class. Owned and shared pages are
//! values that cannot be copied, so using one after it was given back, or writing one that is
//! sealed, does not compile. A sealed page is named by a [`PageHash`] over everything before it.
//! A [`HeadMap`] says which head is of which class, [`Shards`] which rank of a
//! group holds which head.
//!
//! Not here: tensors (`model::cache`), bytes in flight (`transport`), which sequence has to give way
//! (`scheduler`). Start at [`PageTable`].
#![forbid(unsafe_code)]

mod class;
mod hit;
mod map;
mod page;
mod pool;
mod prefix;
mod shard;
mod table;

pub use class::{ClassId, HeadClass};
pub use hit::{hit_pages, longest_hit};
pub use map::{BadHeadMap, HeadMap};
pub use page::{PAGE_POSITIONS, PageId, pages_for};
pub use pool::{OwnedPage, PagePool, PoolChange, SharedPage};
pub use prefix::{PageHash, PrefixChain, PrefixRoot, Scope};
pub use shard::{Shards, Unit, Units, Unshardable};
pub use table::PageTable;
