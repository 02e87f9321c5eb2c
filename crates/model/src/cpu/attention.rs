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

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use kvcache::{HeadClass, HeadMap, PAGE_POSITIONS, PageId};

use super::pool::{Parts, Pool};
use crate::cache::{Cell, KvDtype, Storage, Unit, visible};
use crate::quant::F16;
use crate::simd::{Kernel, Lanes, Level};
use kernels::{Merge, Softmax, add, divide, score, softmax, weigh};

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

/// Most values that spans of a step leave to be merged.
const MOST_LEFT: usize = 4 << 20;

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
        let Heads { heads, kv_heads, head_dim } = self.heads;
        // The query heads that share a KV head lie next to each other: one task reads its keys once.
        let group = heads / kv_heads * head_dim;
        let at = |row: usize, kv_head: usize| (row * kv_heads + kv_head) * group;
        let out = Parts::new(out);
        // Of a block and a KV head.
        let units = blocks.len() * kv_heads;
        let rows = |unit: usize, task: &mut dyn FnMut(Attend<'_>, &Range<usize>, usize)| {
            let (block, kv_head) = (&blocks[unit / kv_heads], unit % kv_heads);
            let unit = Unit { layer: self.layer, kv_head };
            let class = self.map.class(unit.layer, unit.kv_head);
            let (table, first) = row(block.start, class);
            let storage = &self.storage[class];
            let class = self.view.unwrap_or(storage.class);
            with_scratch(|scratch| {
                let mut own = std::mem::take(&mut scratch.q);
                own.clear();
                block.clone().for_each(|row| own.extend_from_slice(&q[at(row, kv_head)..][..group]));
                let (q, rows) = (&own[..], block.len());
                task(
                    Attend { table, first, rows, class, storage, unit, head_dim, q, scratch },
                    block,
                    kv_head,
                );
                scratch.q = own;
            });
        };
        let longest = blocks.iter().map(|block| row(block.end - 1, 0).1 as usize + 1).max().unwrap_or(0);
        let spans = longest.div_ceil(SPAN);
        let widest = blocks.iter().map(Range::len).max().unwrap_or(0) * (heads / kv_heads);
        let entry = head_dim + 2;
        let of_unit = spans * widest * entry;
        let tasks = 4 * pool.threads();
        if units >= tasks || spans < 2 || units * of_unit > MOST_LEFT {
            pool.each(units, |unit| {
                rows(unit, &mut |rows, block, kv_head| {
                    let mut whole = std::mem::take(&mut rows.scratch.out);
                    // Whatever it held is written over.
                    whole.resize(rows.q.len(), 0.0);
                    let scratch = rows.run(level, To::Rows(&mut whole));
                    for (row, from) in block.clone().zip(whole.chunks_exact(group)) {
                        // SAFETY: of a row and a KV head there is one task.
                        unsafe { out.get(at(row, kv_head), group) }.copy_from_slice(from);
                    }
                    scratch.out = whole;
                });
            });
            return;
        }
        left.resize(units * of_unit, 0.0);
        let parts = Parts::new(left);
        let each = spans.div_ceil(tasks.div_ceil(units));
        let runs = spans.div_ceil(each);
        pool.each(units * runs, |task| {
            let (unit, run) = (task / runs, task % runs);
            rows(unit, &mut |rows, _, _| {
                let spans_ = run * each..spans.min((run + 1) * each);
                let start = unit * of_unit + spans_.start * widest * entry;
                // SAFETY: of a unit each span is in one task.
                let part = unsafe { parts.get(start, spans_.len() * widest * entry) };
                rows.run(level, To::Spans(spans_, part));
            });
        });
        pool.each(units, |unit| {
            let (block, kv_head) = (blocks[unit / kv_heads].clone(), unit % kv_heads);
            // SAFETY: all tasks that wrote are done, and each unit is read in one.
            let part = unsafe { parts.get(unit * of_unit, of_unit) };
            for (index, row) in block.enumerate() {
                // SAFETY: of a row and a KV head there is one task.
                let out = unsafe { out.get(at(row, kv_head), group) };
                let first = index * (heads / kv_heads);
                level.run(Merge { part, first, widest, head_dim, out });
            }
        });
    }
}

fn with_scratch(task: impl FnOnce(&mut Scratch)) {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(task);
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

/// Of one thread.
#[derive(Default)]
struct Scratch {
    /// Queries and outputs of a task's rows.
    q: Vec<f32>,
    out: Vec<f32>,
    /// Scores, then probabilities, of one span: `SPAN` per head.
    scores: Vec<f32>,
    /// Of one page, per head, with the values' scales.
    weights: Vec<f32>,
    /// Outputs of one span, all heads.
    span: Vec<f32>,
    /// Of that span, per head.
    part: Vec<Option<Softmax>>,
    /// Of the spans so far, per head.
    total: Vec<Option<Softmax>>,
}

/// The query heads that share a KV head, of rows that follow each other; heads of one row lie next to each other.
struct Attend<'a> {
    table: &'a [Option<PageId>],
    /// Position of the first row.
    first: u32,
    rows: usize,
    /// What it sees.
    class: HeadClass,
    storage: &'a Storage,
    unit: Unit,
    head_dim: usize,
    q: &'a [f32],
    scratch: &'a mut Scratch,
}

/// Where results go.
enum To<'a> {
    /// All spans merged: rows of the heads.
    Rows(&'a mut [f32]),
    /// Of these spans alone, one after the other: of each head its output, its largest score and its sum, which is 0 where it
    /// sees nothing; then nothing up to the widest block's heads.
    Spans(Range<usize>, &'a mut [f32]),
}

/// The same over elements C.
struct Over<'r, 'a, C>(&'r mut Attend<'a>, To<'r>, PhantomData<C>);

impl<C: Cell> Kernel for Over<'_, '_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.1 {
            To::Rows(out) => self.0.rows::<L, C>(l, out),
            To::Spans(spans, parts) => self.0.spans::<L, C>(l, spans, parts),
        }
    }
}

/// Keys within a span.
type Keys = Range<usize>;

impl<'a> Attend<'a> {
    /// Computes; gives the scratch back.
    fn run(mut self, level: Level, to: To<'_>) -> &'a mut Scratch {
        let heads = self.q.len() / self.head_dim;
        self.scratch.scores.resize(heads * SPAN, 0.0);
        if self.storage.dtype == KvDtype::Int8 {
            self.scratch.weights.resize(heads * SPAN, 0.0);
        }
        self.scratch.span.resize(heads * self.head_dim, 0.0);
        match self.storage.dtype {
            KvDtype::F16 => level.run(Over::<F16>(&mut self, to, PhantomData)),
            KvDtype::Int8 => level.run(Over::<u8>(&mut self, to, PhantomData)),
        }
        self.scratch
    }

    #[inline(always)]
    fn rows<L: Lanes, C: Cell>(&mut self, l: L, out: &mut [f32]) {
        self.scratch.total.clear();
        self.scratch.total.resize(self.q.len() / self.head_dim, None);
        for start in (0..self.first as usize + self.rows).step_by(SPAN) {
            if !self.span::<L, C>(l, start) {
                continue;
            }
            let spans = self.scratch.span.chunks_exact(self.head_dim);
            let totals = self.scratch.total.iter_mut().zip(&self.scratch.part);
            for ((total, part), (out, span)) in totals.zip(out.chunks_exact_mut(self.head_dim).zip(spans)) {
                add(total, *part, out, span);
            }
        }
        for (out, total) in out.chunks_exact_mut(self.head_dim).zip(&self.scratch.total) {
            divide(out, *total);
        }
    }

    #[inline(always)]
    fn spans<L: Lanes, C: Cell>(&mut self, l: L, spans: Range<usize>, parts: &mut [f32]) {
        let (head_dim, count) = (self.head_dim, spans.len());
        for (span, to) in spans.zip(parts.chunks_exact_mut(parts.len() / count)) {
            let seen = self.span::<L, C>(l, span * SPAN);
            let heads = self.scratch.span.chunks_exact(head_dim).enumerate();
            for ((head, span), to) in heads.zip(to.chunks_exact_mut(head_dim + 2)) {
                let part = self.scratch.part.get(head).copied().flatten().filter(|_| seen);
                to[..head_dim].copy_from_slice(span);
                (to[head_dim], to[head_dim + 1]) = part.map_or((0.0, 0.0), |part| (part.largest, part.sum));
            }
        }
    }

    /// One span, to `scratch.part` and `scratch.span`; whether any row sees anything of it.
    #[inline(always)]
    fn span<L: Lanes, C: Cell>(&mut self, l: L, start: usize) -> bool {
        let heads = self.q.len() / self.head_dim;
        let group = heads / self.rows;
        let mut seen: [[Keys; 2]; TOGETHER] = std::array::from_fn(|_| [0..0, 0..0]);
        let seen = &mut seen[..self.rows];
        seen.iter_mut().enumerate().for_each(|(row, seen)| *seen = self.seen(start, row));
        if seen.iter().flatten().all(Range::is_empty) {
            return false;
        }
        let common = [0, 1].map(|which| common(seen, which));
        for which in 0..2 {
            self.scores::<L, C>(l, start, common[which].clone(), 0..heads);
            for (row, seen) in seen.iter().enumerate() {
                for keys in beside(&seen[which], &common[which]) {
                    self.scores::<L, C>(l, start, keys, row * group..(row + 1) * group);
                }
            }
        }
        self.scratch.part.clear();
        let scores = self.scratch.scores.as_chunks_mut::<SPAN>().0;
        for (head, scores) in scores.iter_mut().enumerate().take(heads) {
            let seen = &seen[head / group];
            let part = (!seen.iter().all(Range::is_empty)).then(|| softmax(l, scores, seen));
            self.scratch.part.push(part);
        }
        self.scratch.span.fill(0.0);
        // Of each row in the order of its keys: what it sees alone, what all see, what it sees alone.
        for which in 0..2 {
            for side in 0..2 {
                for (row, seen) in seen.iter().enumerate() {
                    let [before, behind] = beside(&seen[which], &common[which]);
                    let keys = if side == 0 { before } else { behind };
                    self.values::<L, C>(l, start, keys, row * group..(row + 1) * group);
                }
                if side == 0 {
                    self.values::<L, C>(l, start, common[which].clone(), 0..heads);
                }
            }
        }
        true
    }

    /// What a row sees of the span at `start`.
    fn seen(&self, start: usize, row: usize) -> [Keys; 2] {
        let position = self.first as usize + row;
        let count = (position + 1).saturating_sub(start).min(SPAN);
        visible(self.class, position as u32).map(|visible| {
            let from = (visible.start as usize).saturating_sub(start).min(count);
            from..(visible.end as usize).saturating_sub(start).clamp(from, count)
        })
    }

    /// Scores of the keys `seen` (within the span at `start`), and of others in their pages, with some of the heads.
    #[inline(always)]
    fn scores<L: Lanes, C: Cell>(&mut self, l: L, start: usize, seen: Keys, heads: Range<usize>) {
        if seen.is_empty() {
            return;
        }
        let mut page = seen.start / POSITIONS;
        let end = seen.end.div_ceil(POSITIONS);
        while page < end {
            // Two pages at a time; a single last one twice.
            let second = (page + 1).min(end - 1);
            let keys = [page, second].map(|page| {
                let id = self.table.get(start / POSITIONS + page).copied().flatten();
                id.map_or(&[][..], |id| self.storage.keys::<C>(id, self.unit))
            });
            let to = [page * POSITIONS, second * POSITIONS];
            let mut q = &self.q[heads.start * self.head_dim..heads.end * self.head_dim];
            let mut scores = &mut self.scratch.scores[heads.start * SPAN..heads.end * SPAN];
            while !q.is_empty() {
                let n = match q.len() / self.head_dim {
                    4.. => score::<L, C, 4>(l, keys, q, self.head_dim, to, scores),
                    2.. => score::<L, C, 2>(l, keys, q, self.head_dim, to, scores),
                    _ => score::<L, C, 1>(l, keys, q, self.head_dim, to, scores),
                };
                q = &q[n * self.head_dim..];
                scores = &mut scores[n * SPAN..];
            }
            if C::SCALED {
                for page in page..=second {
                    let Some(id) = self.table.get(start / POSITIONS + page).copied().flatten() else {
                        continue;
                    };
                    let scales = self.storage.scales(id, self.unit)[0];
                    let scores = &mut self.scratch.scores[heads.start * SPAN..heads.end * SPAN];
                    for scores in scores.chunks_mut(SPAN) {
                        let of_page = scores[page * POSITIONS..].iter_mut().zip(&scales);
                        of_page.for_each(|(score, scale)| *score *= scale);
                    }
                }
            }
            page += 2;
        }
    }

    /// Adds the values of the keys `seen`, weighted by what `scores` has become, to some of the heads.
    #[inline(always)]
    fn values<L: Lanes, C: Cell>(&mut self, l: L, start: usize, seen: Keys, heads: Range<usize>) {
        let head_dim = self.head_dim;
        let mut j = seen.start;
        while j < seen.end {
            let offset = j % POSITIONS;
            let many = (seen.end - j).min(POSITIONS - offset);
            if let Some(Some(page)) = self.table.get((start + j) / POSITIONS) {
                let values = self.storage.values::<C>(*page, self.unit);
                let values = &values[offset * head_dim..(offset + many) * head_dim];
                let scored = heads.start * SPAN..heads.end * SPAN;
                if C::SCALED {
                    let scales = self.storage.scales(*page, self.unit)[1];
                    let from = self.scratch.scores[scored.clone()].chunks(SPAN);
                    for (scores, weights) in from.zip(self.scratch.weights[scored.clone()].chunks_mut(SPAN)) {
                        let to = weights[j..j + many].iter_mut().zip(&scores[j..]).zip(&scales[offset..]);
                        to.for_each(|((to, score), scale)| *to = score * scale);
                    }
                }
                let scores = if C::SCALED { &self.scratch.weights } else { &self.scratch.scores };
                let mut scores = &scores[scored][j..];
                let mut span = &mut self.scratch.span[heads.start * head_dim..heads.end * head_dim];
                while !span.is_empty() {
                    let n = match span.len() / head_dim {
                        4.. => weigh::<L, C, 4>(l, values, scores, head_dim, span),
                        2.. => weigh::<L, C, 2>(l, values, scores, head_dim, span),
                        _ => weigh::<L, C, 1>(l, values, scores, head_dim, span),
                    };
                    span = &mut span[n * head_dim..];
                    scores = &scores[(n * SPAN).min(scores.len())..];
                }
            }
            j += many;
        }
    }
}

/// What all rows see.
fn common(seen: &[[Keys; 2]], which: usize) -> Keys {
    let start = seen.iter().map(|seen| seen[which].start).max().unwrap_or(0);
    let end = seen.iter().map(|seen| seen[which].end).min().unwrap_or(0);
    start..end.max(start)
}

/// What a row sees before and behind what all see.
fn beside(seen: &Keys, common: &Keys) -> [Keys; 2] {
    if common.is_empty() {
        return [seen.clone(), seen.end..seen.end];
    }
    [seen.start..common.start, common.end..seen.end]
}
