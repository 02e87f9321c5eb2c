//! Figures of one moment or since the start; processes turn them into metrics.

/// Pages of the head class that has the smallest share left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagesFacts {
    pub total: u32,
    /// Hold nothing.
    pub free: u32,
    /// Hold a prefix that nobody reads now; taken when no page is free.
    pub cached: u32,
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens of sequences at their first admission.
    pub prefix_queries: u64,
    /// Of these, tokens that the prefix cache served.
    pub prefix_hits: u64,
    /// Tokens that came back through the cache after a preemption; not in `prefix_hits`.
    pub recovered: u64,
    /// Cached pages that were taken for something else, over all classes.
    pub evictions: u64,
    /// Sequences that gave up slot and pages to run again later.
    pub preemptions: u64,
}
