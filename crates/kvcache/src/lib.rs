//! Pages of the KV cache as bookkeeping: numbers only, no tensor.
#![forbid(unsafe_code)]

mod class;
mod page;

pub use class::{ClassId, HeadClass};
pub use page::{PAGE_POSITIONS, PageId, pages_for};
