//! Attention over pages.
//!
//! Contract (with bytes for keys and values, each score and each p_j is multiplied with the scale of its key or value
//! before it is used; the rest is the same): a query's keys are taken in absolute spans of 512 positions; keys that its class does not
//! see, and spans without one that it sees, take no part. Within a span the scores are
//! `(fma over the elements of q and k in order, from 0) * (1 / sqrt(head_dim))`; with m the largest,
//! `p_j = exp(score_j - m)`; the sum of the p_j in 16 accumulators by j mod 16 and the tree of `quant`; each
//! output element `o = fma(p_j, v_j, o)` in key order. Spans are merged in order: `m' = max(m, m_s)`,
//! `a = exp(m - m')`, `b = exp(m_s - m')`, `l = fma(l, a, l_s * b)`, `o = fma(o, a, o_s * b)`; the result is
//! `o / l`. Nothing depends on other rows.
//!
//! Side by side lie 16 keys for the scores and 16 elements for the outputs: neither needs a sum across lanes.

mod kernels;
mod task;

use std::ops::Range;

use kvcache::{HeadClass, HeadMap, PAGE_POSITIONS, PageId};

use super::pool::{Parts, Pool};
use crate::cache::{Storage, Unit};
use crate::simd::Level;
use kernels::Merge;
use task::{Attend, To, with_scratch};

/// Keys whose softmax is taken together.
const SPAN: usize = 512;
const POSITIONS: usize = PAGE_POSITIONS as usize;
/// Rows of one sequence that read its keys together: a key is fetched and widened once for all of them.
const TOGETHER: usize = 16;
/// Their heads, at most, so that queries and outputs of a task stay in the caches.
const MOST_HEADS: usize = 64;

/// Heads, and how they share keys.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// What all rows of a piece attend to.
pub(super) struct Attention<'a> {
    pub(super) heads: Heads,
    pub(super) layer: usize,
    /// Which class each head is of.
    pub(super) map: &'a HeadMap,
    /// What heads see instead of what their class does: less.
    pub(super) view: Option<HeadClass>,
    /// By class.
    pub(super) storage: &'a [Storage],
}

/// Most values that spans leave at a time to be merged.
const MOST_LEFT: usize = 4 << 20;

/// How what spans leave lies in memory: for each unit (a block and a KV head) and each span the same room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    units: usize,
    spans: usize,
    /// Heads that a span has room for.
    widest: usize,
    head_dim: usize,
}

impl Left {
    /// Values of a head: its output, its largest score and its sum.
    fn entry(&self) -> usize {
        self.head_dim + 2
    }

    fn of_span(&self) -> usize {
        self.widest * self.entry()
    }

    fn of_unit(&self) -> usize {
        self.spans * self.of_span()
    }

    fn all(&self) -> usize {
        self.units * self.of_unit()
    }

    /// What a rank's spans left, one after the other. `owners`: by span.
    pub(super) fn places(self, owners: &[usize], rank: usize) -> impl Iterator<Item = Range<usize>> {
        let own = move |span: &usize| owners.get(*span) == Some(&rank);
        let of_unit = move |unit| (0..self.spans).filter(own).map(move |span| (unit, span));
        (0..self.units).flat_map(of_unit).map(move |(unit, span)| {
            let start = unit * self.of_unit() + span * self.of_span();
            start..start + self.of_span()
        })
    }
}

impl Attention<'_> {
    /// Attends with every head of every row; `row` gives its page table for a class, whose pages are there, and its position. `q`
    /// and `out` are rows of `heads * head_dim`. Rows of a block have one table and positions that follow each other.
    /// Where there are few blocks, threads share their spans, which leave their results in `left` to be merged in order.
    #[allow(clippy::too_many_arguments, reason = "what a pass has, borrowed one by one")]
    pub(super) fn attend<'t>(
        &self,
        pool: &mut Pool,
        level: Level,
        blocks: &[Range<usize>],
        row: impl Fn(usize, usize) -> (&'t [Option<PageId>], u32) + Sync,
        q: &[f32],
        out: &mut [f32],
        left: &mut Vec<f32>,
    ) {
        let of = self.left(blocks, &row);
        if of.units < 4 * pool.threads() && of.spans > 1 && of.all() <= MOST_LEFT {
            self.spans(pool, level, blocks, &row, q, |_| true, left);
            self.merge(pool, level, blocks, &of, left, out);
            return;
        }
        let (group, kv_heads) = (self.group(), self.heads.kv_heads);
        let out = Parts::new(out);
        pool.each(of.units, |unit| {
            self.unit(unit, blocks, &row, q, &mut |rows| {
                let mut whole = std::mem::take(&mut rows.scratch.out);
                // Whatever it held is written over.
                whole.resize(rows.q.len(), 0.0);
                let scratch = rows.run(level, To::Rows(&mut whole));
                for (row, from) in blocks[unit / kv_heads].clone().zip(whole.chunks_exact(group)) {
                    // SAFETY: of a row and a KV head there is one task.
                    unsafe { out.get((row * kv_heads + unit % kv_heads) * group, group) }
                        .copy_from_slice(from);
                }
                scratch.out = whole;
            });
        });
    }

    /// As many of the blocks as may leave their spans at a time, at least one.
    pub(super) fn at_a_time<'t>(
        &self,
        blocks: &[Range<usize>],
        row: impl Fn(usize, usize) -> (&'t [Option<PageId>], u32) + Sync,
    ) -> usize {
        let of = self.left(blocks, &row);
        (MOST_LEFT / (self.heads.kv_heads * of.of_unit()).max(1)).max(1)
    }

    /// What spans give, to `left`; those that are not `own` are taken to see nothing.
    #[allow(clippy::too_many_arguments, reason = "what a pass has, borrowed one by one")]
    pub(super) fn spans<'t>(
        &self,
        pool: &mut Pool,
        level: Level,
        blocks: &[Range<usize>],
        row: impl Fn(usize, usize) -> (&'t [Option<PageId>], u32) + Sync,
        q: &[f32],
        own: impl Fn(usize) -> bool + Sync,
        left: &mut Vec<f32>,
    ) -> Left {
        let of = self.left(blocks, &row);
        left.resize(of.all(), 0.0);
        let parts = Parts::new(left);
        let each = of.spans.div_ceil((4 * pool.threads()).div_ceil(of.units.max(1)));
        let runs = of.spans.div_ceil(each.max(1));
        pool.each(of.units * runs, |task| {
            let (unit, run) = (task / runs, task % runs);
            self.unit(unit, blocks, &row, q, &mut |rows| {
                let spans = run * each..of.spans.min((run + 1) * each);
                let start = unit * of.of_unit() + spans.start * of.of_span();
                // SAFETY: of a unit each span is in one task.
                let part = unsafe { parts.get(start, spans.len() * of.of_span()) };
                rows.run(level, To::Spans(spans, &own, part));
            });
        });
        of
    }

    /// Merges what spans left, in order, to rows of `out`.
    pub(super) fn merge(
        &self,
        pool: &mut Pool,
        level: Level,
        blocks: &[Range<usize>],
        of: &Left,
        left: &[f32],
        out: &mut [f32],
    ) {
        let (group, kv_heads, head_dim) = (self.group(), self.heads.kv_heads, self.heads.head_dim);
        let out = Parts::new(out);
        pool.each(of.units, |unit| {
            let (block, kv_head) = (blocks[unit / kv_heads].clone(), unit % kv_heads);
            let part = &left[unit * of.of_unit()..][..of.of_unit()];
            for (index, row) in block.enumerate() {
                // SAFETY: of a row and a KV head there is one task.
                let out = unsafe { out.get((row * kv_heads + kv_head) * group, group) };
                let first = index * (self.heads.heads / kv_heads);
                level.run(Merge { part, first, widest: of.widest, head_dim, out });
            }
        });
    }

    /// Values of the query heads that share a KV head. They lie next to each other: one task reads its keys once.
    fn group(&self) -> usize {
        self.heads.heads / self.heads.kv_heads * self.heads.head_dim
    }

    fn left<'t>(
        &self,
        blocks: &[Range<usize>],
        row: &impl Fn(usize, usize) -> (&'t [Option<PageId>], u32),
    ) -> Left {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let longest = blocks.iter().map(|block| row(block.end - 1, 0).1 as usize + 1).max().unwrap_or(0);
        let widest = blocks.iter().map(Range::len).max().unwrap_or(0) * (heads / kv_heads);
        Left { units: blocks.len() * kv_heads, spans: longest.div_ceil(SPAN), widest, head_dim }
    }

    /// Gives a task what a block and a KV head need.
    fn unit<'t>(
        &self,
        unit: usize,
        blocks: &[Range<usize>],
        row: &impl Fn(usize, usize) -> (&'t [Option<PageId>], u32),
        q: &[f32],
        task: &mut dyn FnMut(Attend<'_>),
    ) {
        let (kv_heads, head_dim, group) = (self.heads.kv_heads, self.heads.head_dim, self.group());
        let (block, kv_head) = (&blocks[unit / kv_heads], unit % kv_heads);
        let unit = Unit { layer: self.layer, kv_head };
        let class = self.map.class(unit.layer, unit.kv_head);
        let (table, first) = row(block.start, class);
        let storage = &self.storage[class];
        let class = self.view.unwrap_or(storage.class);
        with_scratch(|scratch| {
            let mut own = std::mem::take(&mut scratch.q);
            own.clear();
            let of_row = |row: usize| &q[(row * kv_heads + kv_head) * group..][..group];
            block.clone().for_each(|row| own.extend_from_slice(of_row(row)));
            let (q, rows) = (&own[..], block.len());
            task(Attend { table, first, rows, class, storage, unit, head_dim, q, scratch });
            scratch.q = own;
        });
    }
}

/// Cuts rows into blocks that read their keys together, to `blocks`. `follows`: a row is behind the one before it in the same
/// sequence. As many rows as leave all threads about equally busy: reading keys is taken to cost what two rows compute.
pub(super) fn blocks(
    rows: usize,
    follows: impl Fn(usize) -> bool,
    heads: Heads,
    threads: usize,
    blocks: &mut Vec<Range<usize>>,
) {
    const READING: usize = 2;
    let most = (MOST_HEADS * heads.kv_heads / heads.heads).clamp(1, TOGETHER);
    let time = |together: &usize| {
        let tasks = rows.div_ceil(*together) * heads.kv_heads;
        tasks.div_ceil(threads) * (together + READING)
    };
    let together = (1..=most).min_by_key(time).unwrap_or(1);
    blocks.clear();
    for row in 0..rows {
        match blocks.last_mut() {
            Some(last) if last.len() < together && follows(row) => last.end = row + 1,
            _ => blocks.push(row..row + 1),
        }
    }
}
