//! Attention over pages.
//!
//! Contract: a query's keys are taken in absolute spans of 512 positions; keys that its class does not
//! see, and spans without one that it sees, take no part. Within a span the scores are
//! `(fma over the elements of q and k in order, from 0) * (1 / sqrt(head_dim))`; with m the largest,
//! `p_j = exp(score_j - m)`; the sum of the p_j in 16 accumulators by j mod 16 and the tree of `quant`; each
//! output element `o = fma(p_j, v_j, o)` in key order. Spans are merged in order: `m' = max(m, m_s)`,
//! `a = exp(m - m')`, `b = exp(m_s - m')`, `l = fma(l, a, l_s * b)`, `o = fma(o, a, o_s * b)`; the result is
//! `o / l`. Nothing depends on other rows.
//!
//! Side by side lie 16 keys for the scores and 16 elements for the outputs: neither needs a sum across lanes.

use std::cell::RefCell;
use std::ops::Range;

use kvcache::{HeadMap, PAGE_POSITIONS, PageId};

use super::exp::exp;
use super::pool::Pool;
use crate::cache::{Storage, Unit, visible};
use crate::quant::F16;
use crate::quant::float::{SPLIT, halves, tree};
use crate::simd::{Halves, Kernel, LANES, Lanes, Level};

/// Keys whose softmax is taken together.
const SPAN: usize = 512;
const POSITIONS: usize = PAGE_POSITIONS as usize;

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
    /// By class.
    pub(super) storage: &'a [Storage],
}

impl Attention<'_> {
    /// Attends with every head of every row; `row` gives its page table for a class, whose pages are there, and its
    /// position. `q`
    /// and `out` are rows of `heads * head_dim`.
    pub(super) fn attend<'t>(
        &self,
        pool: &mut Pool,
        level: Level,
        row: impl Fn(usize, usize) -> (&'t [Option<PageId>], u32) + Sync,
        q: &[f32],
        out: &mut [f32],
    ) {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        let Heads { heads, kv_heads, head_dim } = self.heads;
        // The query heads that share a KV head lie next to each other: one task reads its keys once.
        let group = heads / kv_heads * head_dim;
        pool.pieces(out, group, |i, out| {
            let unit = Unit { layer: self.layer, kv_head: i % kv_heads };
            let class = self.map.class(unit.layer, unit.kv_head);
            let (table, position) = row(i / kv_heads, class);
            SCRATCH.with_borrow_mut(|scratch| {
                level.run(Attend {
                    table,
                    position,
                    storage: &self.storage[class],
                    unit,
                    head_dim,
                    q: &q[i * group..(i + 1) * group],
                    out,
                    scratch,
                });
            });
        });
    }
}

/// Of one thread.
#[derive(Default)]
struct Scratch {
    /// Scores, then probabilities, of one span: `SPAN` per head.
    scores: Vec<f32>,
    /// Outputs of one span, all heads.
    span: Vec<f32>,
    /// Of that span, per head.
    part: Vec<Softmax>,
    /// Of the spans so far, per head.
    total: Vec<Softmax>,
}

/// The largest score and the sum of `exp(score - largest)`.
#[derive(Clone, Copy)]
struct Softmax {
    largest: f32,
    sum: f32,
}

/// The query heads of one row that share a KV head.
struct Attend<'a> {
    table: &'a [Option<PageId>],
    position: u32,
    storage: &'a Storage,
    unit: Unit,
    head_dim: usize,
    q: &'a [f32],
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let heads = self.q.len() / self.head_dim;
        let visible = visible(self.storage.class, self.position);
        self.scratch.scores.resize(heads * SPAN, 0.0);
        self.scratch.span.resize(heads * self.head_dim, 0.0);
        self.scratch.total.clear();
        for start in (0..=self.position as usize).step_by(SPAN) {
            let count = (self.position as usize + 1 - start).min(SPAN);
            // Within the span.
            let mut seen = [0..0, 0..0];
            for (seen, visible) in seen.iter_mut().zip(&visible) {
                let from = (visible.start as usize).saturating_sub(start).min(count);
                *seen = from..(visible.end as usize).saturating_sub(start).clamp(from, count);
            }
            if seen.iter().all(Range::is_empty) {
                continue;
            }
            for seen in &seen {
                self.scores(l, start, seen.clone());
            }
            self.scratch.part.clear();
            for scores in self.scratch.scores.as_chunks_mut::<SPAN>().0 {
                self.scratch.part.push(softmax(l, scores, &seen));
            }
            self.scratch.span.fill(0.0);
            for seen in &seen {
                self.values(l, start, seen.clone());
            }
            if self.scratch.total.is_empty() {
                self.out.copy_from_slice(&self.scratch.span);
                self.scratch.total.clone_from(&self.scratch.part);
                continue;
            }
            let spans = self.scratch.span.chunks_exact(self.head_dim);
            let parts = self.out.chunks_exact_mut(self.head_dim).zip(spans);
            for ((total, new), (out, span)) in
                self.scratch.total.iter_mut().zip(&self.scratch.part).zip(parts)
            {
                merge(total, *new, out, span);
            }
        }
        for (out, total) in self.out.chunks_exact_mut(self.head_dim).zip(&self.scratch.total) {
            for out in out {
                *out /= total.sum;
            }
        }
    }
}

impl Attend<'_> {
    /// Scores of the keys `seen` (within the span at `start`), and of others in their pages.
    #[inline(always)]
    fn scores<L: Lanes>(&mut self, l: L, start: usize, seen: Range<usize>) {
        let mut page = seen.start / POSITIONS;
        let end = seen.end.div_ceil(POSITIONS);
        while page < end {
            // Two pages at a time; a single last one twice.
            let second = (page + 1).min(end - 1);
            let keys = [page, second].map(|page| {
                let id = self.table.get(start / POSITIONS + page).copied().flatten();
                id.map_or(&[][..], |id| self.storage.keys(id, self.unit))
            });
            let to = [page * POSITIONS, second * POSITIONS];
            let (mut q, mut scores) = (self.q, &mut self.scratch.scores[..]);
            while !q.is_empty() {
                let n = match q.len() / self.head_dim {
                    4.. => score::<L, 4>(l, keys, q, self.head_dim, to, scores),
                    2.. => score::<L, 2>(l, keys, q, self.head_dim, to, scores),
                    _ => score::<L, 1>(l, keys, q, self.head_dim, to, scores),
                };
                q = &q[n * self.head_dim..];
                scores = &mut scores[n * SPAN..];
            }
            page += 2;
        }
    }

    /// Adds the values of the keys `seen`, weighted by what `scores` has become.
    #[inline(always)]
    fn values<L: Lanes>(&mut self, l: L, start: usize, seen: Range<usize>) {
        let head_dim = self.head_dim;
        let mut j = seen.start;
        while j < seen.end {
            let offset = j % POSITIONS;
            let many = (seen.end - j).min(POSITIONS - offset);
            if let Some(Some(page)) = self.table.get((start + j) / POSITIONS) {
                let values = self.storage.values(*page, self.unit);
                let values = &values[offset * head_dim..(offset + many) * head_dim];
                let mut scores = &self.scratch.scores[j..];
                let mut span = &mut self.scratch.span[..];
                while !span.is_empty() {
                    let n = match span.len() / head_dim {
                        4.. => weigh::<L, 4>(l, values, scores, head_dim, span),
                        2.. => weigh::<L, 2>(l, values, scores, head_dim, span),
                        _ => weigh::<L, 1>(l, values, scores, head_dim, span),
                    };
                    span = &mut span[n * head_dim..];
                    scores = &scores[(n * SPAN).min(scores.len())..];
                }
            }
            j += many;
        }
    }
}

/// Scores of two pages' keys for H heads, to places `to` of each head's; H.
#[inline(always)]
fn score<L: Lanes, const H: usize>(
    l: L,
    keys: [&[Halves]; 2],
    q: &[f32],
    head_dim: usize,
    to: [usize; 2],
    scores: &mut [f32],
) -> usize {
    let mut heads: [&[f32]; H] = [&[]; H];
    for (h, head) in heads.iter_mut().enumerate() {
        *head = &q[h * head_dim..(h + 1) * head_dim];
    }
    let (mut first, mut second) = ([l.floats(0.0); H], [l.floats(0.0); H]);
    for (d, (a, b)) in keys[0].iter().zip(keys[1]).enumerate().take(head_dim) {
        let (a, b) = (l.halves(a), l.halves(b));
        for h in 0..H {
            let q = l.floats(heads[h][d]);
            first[h] = l.fma(q, a, first[h]);
            second[h] = l.fma(q, b, second[h]);
        }
    }
    let scale = l.floats(1.0 / (head_dim as f32).sqrt());
    for h in 0..H {
        for (sums, to) in [(first[h], to[0]), (second[h], to[1])] {
            if let Some(scores) = scores[h * SPAN + to..].first_chunk_mut() {
                l.store(l.times(sums, scale), scores);
            }
        }
    }
    H
}

/// `span = fma(p_j, v_j, span)` for H heads and the rows of `values`; `p_j` is at `h * SPAN + j`. H.
#[inline(always)]
fn weigh<L: Lanes, const H: usize>(
    l: L,
    values: &[F16],
    scores: &[f32],
    head_dim: usize,
    span: &mut [f32],
) -> usize {
    let mut d = 0;
    while d < head_dim {
        d += match head_dim - d {
            64.. => lanes::<L, H, 4>(l, values, scores, head_dim, d, span),
            16.. => lanes::<L, H, 1>(l, values, scores, head_dim, d, span),
            rest => {
                for h in 0..H {
                    let out = &mut span[h * head_dim + d..(h + 1) * head_dim];
                    for (v, p) in values.chunks_exact(head_dim).zip(&scores[h * SPAN..]) {
                        for (out, v) in out.iter_mut().zip(&v[d..]) {
                            *out = p.mul_add(crate::quant::half(*v), *out);
                        }
                    }
                }
                rest
            }
        };
    }
    H
}

/// The same for elements `d` to `d + 16 D`; their number.
#[inline(always)]
fn lanes<L: Lanes, const H: usize, const D: usize>(
    l: L,
    values: &[F16],
    scores: &[f32],
    head_dim: usize,
    d: usize,
    span: &mut [f32],
) -> usize {
    let count = values.len() / head_dim;
    let mut acc = [[l.floats(0.0); D]; H];
    let mut p: [&[f32]; H] = [&[]; H];
    for h in 0..H {
        p[h] = &scores[h * SPAN..h * SPAN + count];
        let from = span[h * head_dim + d..].as_chunks::<LANES>().0;
        for i in 0..D {
            acc[h][i] = l.load(&from[i]);
        }
    }
    for (j, v) in values.chunks_exact(head_dim).enumerate() {
        let v = v[d..].as_chunks::<LANES>().0;
        let mut row = [l.floats(0.0); D];
        for i in 0..D {
            row[i] = l.halves(halves(&v[i]));
        }
        for h in 0..H {
            let p = l.floats(p[h][j]);
            for i in 0..D {
                acc[h][i] = l.fma(p, row[i], acc[h][i]);
            }
        }
    }
    for h in 0..H {
        let to = span[h * head_dim + d..].as_chunks_mut::<LANES>().0;
        for i in 0..D {
            l.store(acc[h][i], &mut to[i]);
        }
    }
    D * LANES
}

/// Scores to `exp(score - largest)` where they are seen and 0 elsewhere, in place.
#[inline(always)]
fn softmax<L: Lanes>(l: L, scores: &mut [f32; SPAN], seen: &[Range<usize>; 2]) -> Softmax {
    let [first, second] = seen;
    // Whatever other keys of the pages gave, exp makes a 0 of it.
    for unseen in [0..first.start, first.end..second.start.max(first.end), second.end.max(first.end)..SPAN] {
        scores[unseen].fill(f32::NEG_INFINITY);
    }
    let end = second.end.max(first.end).next_multiple_of(LANES);
    let scores = scores[..end].as_chunks_mut::<LANES>().0;
    let mut most = l.floats(f32::NEG_INFINITY);
    for scores in &mut *scores {
        // A NaN is passed over here and comes back through exp.
        most = l.larger(l.load(scores), most);
    }
    let mut each = [0.0; LANES];
    l.store(most, &mut each);
    let largest = each.iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
    let mut sums = l.floats(0.0);
    for scores in &mut *scores {
        for s in scores.iter_mut() {
            *s = if *s == f32::NEG_INFINITY { 0.0 } else { exp(*s - largest) };
        }
        // Adding a 0 changes no sum: they start at 0 and never fall.
        sums = l.plus(sums, l.load(scores));
    }
    let mut each = [0.0; SPLIT];
    l.store(sums, &mut each);
    Softmax { largest, sum: tree(&each) }
}

#[inline(always)]
fn merge(total: &mut Softmax, new: Softmax, out: &mut [f32], span: &[f32]) {
    let largest = if new.largest > total.largest { new.largest } else { total.largest };
    let (a, b) = (exp(total.largest - largest), exp(new.largest - largest));
    *total = Softmax { largest, sum: total.sum.mul_add(a, new.sum * b) };
    for (out, span) in out.iter_mut().zip(span) {
        *out = out.mul_add(a, span * b);
    }
}
