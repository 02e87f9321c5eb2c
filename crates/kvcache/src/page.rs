/// Positions in a page, for every class and back end.
pub const PAGE_POSITIONS: u32 = 16;

/// The number of a page: an index into the storage of its class (`model::cache`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// Pages that hold `positions` positions.
pub const fn pages_for(positions: u32) -> u32 {
    positions.div_ceil(PAGE_POSITIONS)
}
